"""What every step of a GPU script shares: its options, its clock, the reasons to leave something out.

A step is a module that ends with ``run(work)`` under ``__main__``, started as a process of its own. At its top it
imports the standard library and at most torch. It asks for the rest by :func:`need`, so that a missing library costs
one step and is named.
"""

from __future__ import annotations

import argparse
import faulthandler
import gc
import importlib
import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from record import Record

ROOT = Path(__file__).parents[2]
MODES = ("raise", "hang", "kill")  # ways to fail on purpose


class Skip(Exception):
    """The step cannot be done here; the text says why."""


@dataclass
class Step:
    """One step as its process sees it.

    Args:
        seconds: time to work in; the process is ended some time after.
        scratch: a folder that all steps share. It is removed at the end.
        tiny: the smallest sizes, to try the script itself.
        given_model: a checkpoint's folder or a GGUF file, if one is given.
        data: a folder with a folder for each set of rows, if one is given.
        sets: names of the sets to take, or none for the first ones.
        results: a folder that stays, for raw outcomes beside the table.
        whole_model: take the given model as it is; otherwise, where the sizes are tiny, a small one of its architecture.
    """

    record: Record
    seconds: float
    scratch: Path
    tiny: bool = False
    given_model: Path | None = None
    data: Path | None = None
    sets: list[str] = field(default_factory=list)
    results: Path | None = None
    whole_model: bool = True
    began: float = field(default_factory=time.monotonic)

    @property
    def model(self) -> Path | None:
        """The model to take, if one is given."""
        if self.given_model is None or self.whole_model or not self.tiny:
            return self.given_model
        copy: Path = importlib.import_module("inputs").small_copy(self)
        return copy

    def left(self) -> float:
        """Seconds left to work in."""
        return self.seconds - (time.monotonic() - self.began)


def run(work: Callable[[Step], None]) -> None:
    """Do the step, as its process. Exit code 1: it found something wrong, or an exception ended it."""
    parser = argparse.ArgumentParser(description=sys.modules["__main__"].__doc__)
    parser.add_argument("--out", type=Path, required=True, help="file for what is measured")
    parser.add_argument("--scratch", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--model", type=Path)
    parser.add_argument("--whole-model", action="store_true")
    parser.add_argument("--data", type=Path)
    parser.add_argument("--sets", nargs="*", default=[])
    parser.add_argument("--results", type=Path)
    parser.add_argument("--break", dest="broken", choices=MODES, help=argparse.SUPPRESS)
    given = parser.parse_args()
    faulthandler.register(signal.SIGTERM, chain=True)  # where it was when its time was up
    record = Record(given.out)
    step = Step(
        record,
        given.seconds,
        given.scratch,
        given.tiny,
        given.model,
        given.data,
        given.sets,
        given.results,
        given.whole_model,
    )
    step.scratch.mkdir(parents=True, exist_ok=True)
    record.write()
    if given.broken:
        fail_on_purpose(given.broken)
    try:
        work(step)
    except Skip as reason:
        record.skip(str(reason))
    for text in record.faults:
        print(f"wrong: {text}", flush=True)
    sys.exit(1 if record.faults else 0)


def fail_on_purpose(how: str) -> None:
    """Raise, never end, or be killed: to see that the next step runs."""
    print(f"this step was asked to {how}", flush=True)
    if how == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    while how == "hang":
        time.sleep(60)
    raise RuntimeError("broken on purpose")


def need(*names: str) -> None:
    """Raise :class:`Skip` that names each library which does not import. ``trl:SFTTrainer`` asks for a name in it."""
    missing = []
    for name in names:
        module, _, attribute = name.partition(":")
        try:
            found = importlib.import_module(module)
            if attribute:
                getattr(found, attribute)
        except Exception as error:  # a library that does not fit the others may raise anything
            missing.append(f"{module}, which does not import: {one_line(error)}")
    if missing:
        raise Skip("needs " + "; ".join(missing))


def one_line(error: BaseException) -> str:
    """An error in one line of moderate length."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]


def device() -> Any:
    """The accelerator, or the processor where there is none."""
    import torch

    here = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return here or torch.device("cpu")


def is_cuda() -> bool:
    return bool(device().type == "cuda")


def synchronize() -> None:
    """Wait for the device: a kernel that was started is not done."""
    if is_cuda():
        import torch

        torch.cuda.synchronize()


def allocated() -> int:
    """Bytes of tensors on the device; 0 on a processor."""
    import torch

    return int(torch.cuda.memory_allocated()) if is_cuda() else 0


def peak() -> int:
    """The most bytes on the device since :func:`reset_peak`; 0 on a processor."""
    import torch

    return int(torch.cuda.max_memory_allocated()) if is_cuda() else 0


def reset_peak() -> None:
    if is_cuda():
        import torch

        torch.cuda.reset_peak_memory_stats()


def release() -> None:
    """Give back what no name holds any more."""
    gc.collect()
    if is_cuda():
        import torch

        torch.cuda.empty_cache()


def is_out_of_memory(error: BaseException) -> bool:
    """Is the device's memory behind this error? The package may have put it in words of its own."""
    cause: BaseException | None = error
    while cause is not None:
        if type(cause).__name__ == "OutOfMemoryError" or "out of memory" in str(cause).lower():
            return True
        cause = cause.__cause__ or cause.__context__
    return False


def beside(measured: float, planned: float, goal: float) -> str:
    """How far a measurement is from what was planned."""
    apart = measured / planned - 1
    return f"measured {apart:+.0%} of it; goal within {goal:.0%}: {'met' if abs(apart) <= goal else 'not met'}"


def cores() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
