"""What cpift is set beside: reading alone, a straightforward torch version of selection, and mergekit's merges."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
import venv
from pathlib import Path

import yaml

MERGEKIT = ("mergekit==0.1.5", "torch==2.13.0")  # the newest in November 2026


def read_alone(folders: list[Path], threads: int) -> None:
    """Read all weights into nothing, by ``threads`` threads."""
    from concurrent.futures import ThreadPoolExecutor

    def read(file: Path) -> None:
        buffer = memoryview(bytearray(2**20))
        with file.open("rb", buffering=0) as stream:
            while stream.readinto(buffer):
                pass

    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(read, [f for folder in folders for f in sorted(folder.glob("*.safetensors"))]))


def write_alone(folders: list[Path], scratch: Path, threads: int) -> None:
    """Write as many bytes as the base has, from a buffer that stays in the cache, and wait for the disk."""
    from concurrent.futures import ThreadPoolExecutor

    size = sum(f.stat().st_size for f in folders[0].glob("*.safetensors"))
    buffer = memoryview(bytearray(2**20))
    scratch.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(scratch / "written", os.O_RDWR | os.O_CREAT | os.O_TRUNC)
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(lambda at: os.pwrite(descriptor, buffer[: size - at], at), range(0, size, len(buffer))))
    os.fsync(descriptor)
    os.close(descriptor)


def straightforward(folders: list[Path], percent: float) -> None:
    """The core regions as one would write them: all of |Δ| in one vector, its k-th largest, what is not below.

    By numpy, one thread. torch.topk on 1.1 billion elements takes 16 bytes for each, and was killed here at 24 GiB.
    """
    import numpy as np
    import torch
    from safetensors import safe_open

    def tensors(folder: Path) -> dict[str, torch.Tensor]:
        found: dict[str, torch.Tensor] = {}
        for file in sorted(folder.glob("*.safetensors")):
            with safe_open(file, "pt") as stream:
                found |= {name: stream.get_tensor(name) for name in stream.keys()}  # noqa: SIM118
        return found

    base = tensors(folders[0])
    for folder in folders[1:]:
        tuned = tensors(folder)
        size = np.concatenate([(tuned[n].float() - base[n].float()).abs().numpy().ravel() for n in sorted(base)])
        place = size.size - int(percent * size.size / 100)
        np.flatnonzero(size >= np.partition(size, place)[place])


def mergekit_environment(scratch: Path) -> Path:
    """A virtual environment with mergekit alone; returns its ``mergekit-yaml``."""
    place = scratch / "mergekit-env"
    command = place / "bin" / "mergekit-yaml"
    if not command.exists():
        venv.create(place, with_pip=True)
        subprocess.run([place / "bin" / "pip", "install", "--quiet", *MERGEKIT], check=True)
    return command


def mergekit_versions(command: Path) -> str:
    """Versions of mergekit and its torch, in the environment of this command."""
    script = "from importlib.metadata import version as v; print('mergekit', v('mergekit') + ', torch', v('torch'))"
    python = command.parent / "python"
    return subprocess.run([python, "-c", script], check=True, capture_output=True, text=True).stdout.strip()


def mergekit_command(command: Path, method: str, folders: list[Path], out: Path, threads: int) -> list[str]:
    """The merge of the same checkpoints, with the fastest flags that it has for a CPU."""
    base, *tasks = (str(folder) for folder in folders)
    models = [
        {"model": task, "parameters": {"weight": 1.0, **({"density": 0.2} if method == "ties" else {})}}
        for task in tasks
    ]
    recipe = {"merge_method": method, "models": models, "dtype": "bfloat16"}
    if method == "ties":
        recipe["base_model"] = base
    out.parent.mkdir(parents=True, exist_ok=True)
    file = out.with_suffix(".yaml")
    file.write_text(yaml.safe_dump(recipe))
    flags = ["--lazy-unpickle", "--low-cpu-memory", "--no-copy-tokenizer", "--no-write-model-card", "--quiet"]
    return [str(command), str(file), str(out), *flags, "--num-threads", str(threads)]


def inside(what: str, folders: list[Path], threads: int, scratch: Path) -> float:
    """Seconds of the work alone, in a process that has started and compiled: what a caller of the library waits for."""
    import shutil

    from cpift import fuse, identify

    tasks = {folder.name: folder for folder in folders[1:]}
    taken = 0.0
    for _ in range(2):  # the first call loads what is compiled
        shutil.rmtree(scratch, ignore_errors=True)
        began = time.perf_counter()
        if what == "identify":
            identify(folders[0], tasks, threads=threads)
        elif what == "fuse":
            fuse(folders[0], tasks, scratch, threads=threads)
        elif what == "write":
            write_alone(folders, scratch, threads)
        else:
            read_alone(folders, threads)
        taken = time.perf_counter() - began
    shutil.rmtree(scratch, ignore_errors=True)
    return taken


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=["read", "write", "identify", "fuse", "partition"])
    parser.add_argument("folders", type=Path, nargs="+")
    parser.add_argument("--percent", type=float, default=1.0)
    parser.add_argument("--scratch", type=Path, default=Path("scratch"))
    args = parser.parse_args()
    threads = int(os.environ.get("OMP_NUM_THREADS", "1"))
    if args.what == "partition":
        straightforward(args.folders, args.percent)
    else:
        print(f"seconds {inside(args.what, args.folders, threads, args.scratch)}")
    sys.exit(0)
