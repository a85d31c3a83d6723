"""Runs steps one after the other, each a process with a time limit of its own, and keeps what they measured.

The limits add up to the budget at most. A step's limit is its share of what is left, so that time which one step
leaves unused passes on to the later ones. A step that fails, is killed or takes too long leaves its last lines, and the
next one runs.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path

from record import Measure, write_whole

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
LAST_LINES = 15
WORK_SHARE = 0.85  # of a step's limit it is given to work in; the rest is for its start and end
GRACE = 2.0  # seconds between asking a process to end and ending it
BAD = ("failed", "timed out", "killed", "no time left")


@dataclass(frozen=True)
class StepPlan:
    """A step before it runs. ``share``: its part of the budget, beside the other steps' shares."""

    name: str
    script: str
    share: float
    what: str
    arguments: tuple[str, ...] = ()


@dataclass
class Outcome:
    """A step after it ran. ``state``: done, skipped, or one of ``BAD``."""

    name: str
    state: str
    seconds: float = 0.0
    limit: float = 0.0
    reason: str = ""
    measures: list[Measure] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    last_lines: list[str] = field(default_factory=list)

    @property
    def failed(self) -> bool:
        return self.state in BAD


def run_steps(
    plans: Sequence[StepPlan],
    budget: float,
    scratch: Path,
    log: Path,
    *,
    common: Sequence[str] = (),
    broken: Mapping[str, str] | None = None,
    after: Callable[[list[Outcome]], None] = lambda outcomes: None,
) -> list[Outcome]:
    """Run the steps in order.

    Args:
        plans: the steps.
        budget: seconds for all of them.
        scratch: folder that the steps share.
        log: file to which all that they print goes.
        common: arguments that every step gets.
        broken: steps that fail on purpose, by name, and how.
        after: called after each step with all outcomes so far.
    """
    end = time.monotonic() + budget
    outcomes: list[Outcome] = []
    for number, plan in enumerate(plans):
        left = end - time.monotonic()
        limit = left * plan.share / sum(later.share for later in plans[number:])
        if limit < 0.5:
            outcomes.append(Outcome(plan.name, "no time left", limit=max(limit, 0.0)))
        else:
            how = (broken or {}).get(plan.name)
            arguments = [*common, *plan.arguments, *(["--break", how] if how else [])]
            outcomes.append(_run_step(plan, limit, scratch, log, arguments))
        after(outcomes)
    return outcomes


def _run_step(plan: StepPlan, limit: float, scratch: Path, log: Path, arguments: Sequence[str]) -> Outcome:
    result = scratch / f"{plan.name}.json"
    result.unlink(missing_ok=True)
    command = [sys.executable, "-u", str(HERE / plan.script), "--out", str(result), "--scratch", str(scratch)]
    command += ["--seconds", str(limit * WORK_SHARE), *arguments]
    with log.open("ab") as output:
        output.write(f"\n=== {plan.name}, limit {limit:.0f} s\n".encode())
        output.flush()
        start = output.tell()
        began = time.monotonic()
        process = subprocess.Popen(
            command, stdout=output, stderr=subprocess.STDOUT, env=_environment(), process_group=0
        )
        try:
            process.wait(limit)
            timed_out = False
        except subprocess.TimeoutExpired:
            timed_out = True
        finally:  # also when this process is interrupted
            _end(process)
        seconds = time.monotonic() - began
    outcome = Outcome(plan.name, _state(process.returncode, timed_out), seconds, limit)
    _read_result(outcome, result)
    if outcome.failed:
        outcome.reason = outcome.reason or _reason(process.returncode, timed_out, limit)
        outcome.last_lines = _last_lines(log, start)
    return outcome


def _end(process: subprocess.Popen[bytes]) -> None:
    """End the step and whatever it started."""
    if process.poll() is None:
        _signal_group(process.pid, signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            process.wait(GRACE)
    _signal_group(process.pid, signal.SIGKILL)
    process.wait()


def _signal_group(group: int, number: int) -> None:
    with suppress(ProcessLookupError, PermissionError):  # nobody of it is left
        os.killpg(group, number)


def _state(code: int, timed_out: bool) -> str:
    if timed_out:
        return "timed out"
    return "done" if code == 0 else "killed" if code < 0 else "failed"


def _reason(code: int, timed_out: bool, limit: float) -> str:
    if timed_out:
        return f"took longer than its {limit:.0f} s"
    return f"ended by signal {-code}" if code < 0 else f"exit code {code}"


def _read_result(outcome: Outcome, file: Path) -> None:
    """What the step had written when it ended."""
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return  # it did not come so far
    outcome.measures = [Measure(**measure) for measure in data["measures"]]
    outcome.faults = data["faults"]
    if data["skipped"] and outcome.state == "done":
        outcome.state, outcome.reason = "skipped", data["skipped"]
    if outcome.faults and outcome.failed:
        more = f"; and {len(outcome.faults) - 1} more" if len(outcome.faults) > 1 else ""
        outcome.reason = outcome.faults[0] + more


def _last_lines(log: Path, start: int) -> list[str]:
    with log.open("rb") as output:
        output.seek(start)
        text = output.read()[-20000:].decode(errors="replace").replace("\r", "\n")
    return [line for line in text.splitlines() if line.strip()][-LAST_LINES:]


def _environment() -> dict[str, str]:
    """That of this process, with the package's source and what the steps share from the tests and benchmarks."""
    places = [str(ROOT / "src"), str(ROOT / "tests"), str(ROOT / "benchmarks"), os.environ.get("PYTHONPATH", "")]
    quiet = {"TQDM_DISABLE": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1", "PYTHONFAULTHANDLER": "1"}
    return {**quiet, **os.environ, "PYTHONPATH": os.pathsep.join(place for place in places if place)}


def to_json(head: Mapping[str, object], outcomes: Sequence[Outcome]) -> str:
    return json.dumps({**head, "steps": [asdict(outcome) for outcome in outcomes]}, indent=1)


def table(outcomes: Sequence[Outcome]) -> str:
    """All that was measured, as one Markdown table."""
    lines = ["| step | what | result | note |", "|---|---|---|---|"]
    for outcome in outcomes:
        lines.append(_row(f"**{outcome.name}**", f"**{outcome.state}**", f"{outcome.seconds:.1f} s", outcome.reason))
        lines += [_row("", m.what, _shown(m), m.note) for m in outcome.measures]
    return "\n".join(lines)


def _row(*cells: str) -> str:
    return "| " + " | ".join(" ".join(cell.split()).replace("|", "\\|") for cell in cells) + " |"


def _shown(measure: Measure) -> str:
    value = measure.value
    if value is None:
        return "left out"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if not isinstance(value, float):
        return f"{value} {measure.unit}".strip()
    digits = ".0f" if abs(value) >= 1000 else ".3g"
    return f"{value:{digits}} {measure.unit}".strip()


def write_results(out: Path, name: str, head: Mapping[str, object], outcomes: Sequence[Outcome]) -> None:
    """``NAME.json`` and ``NAME.md``, each whole."""
    write_whole(out / f"{name}.json", to_json(head, outcomes))
    title = ", ".join(f"{key} {value}" for key, value in head.items() if value)
    write_whole(out / f"{name}.md", f"{title}\n\n{table(outcomes)}\n")
