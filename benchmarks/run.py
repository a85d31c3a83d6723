"""make bench: selection and fusion beside their peers; prints a table and writes docs/benchmarks.md.

Makes its checkpoints in --scratch (about 60 GB at the peak, removed as it goes); takes about an hour on 2 cores.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import torch
from measure import Measured, median, run, spread
from peers import mergekit_command, mergekit_environment
from synthetic import make

HERE = Path(__file__).parent
CPIFT = [sys.executable, "-m", "cpift.cli"]
PEERS = [sys.executable, str(HERE / "peers.py")]
PERCENT = "1"


class Bench:
    def __init__(self, scratch: Path, repeat: int, threads: int, out: Path) -> None:
        self.scratch, self.repeat, self.threads, self.out = scratch, repeat, threads, out
        self.lines: list[str] = []

    def say(self, line: str = "") -> None:
        print(line, flush=True)
        self.lines.append(line)
        self.out.write_text("\n".join(self.lines) + "\n", encoding="utf-8")

    def checkpoints(self, size: str, dtype: str, tasks: int = 3) -> list[Path]:
        return make(self.scratch / f"{size}-{dtype}", size, getattr(torch, dtype), tasks)

    def drop(self, size: str, dtype: str) -> None:
        shutil.rmtree(self.scratch / f"{size}-{dtype}", ignore_errors=True)

    def measure(self, command: list[str], out: Path | None = None, warm_up: int = 1) -> list[Measured]:
        """Several runs, after one that warms up (compiles, fills the cache); slow peers go without."""
        runs = []
        for i in range(1 - warm_up, self.repeat + 1):
            if out is not None:
                shutil.rmtree(out, ignore_errors=True)
            taken = run(command, self.threads)
            if i:
                runs.append(taken)
        return runs

    def identify(self, folders: list[Path], *more: str) -> list[Measured]:
        out = self.scratch / "regions"
        return self.measure(
            [*CPIFT, "identify", *arguments(folders), "--percent", PERCENT, "--out", str(out), *more], out
        )

    def fuse(self, folders: list[Path], *more: str) -> list[Measured]:
        out = self.scratch / "fused"
        return self.measure([*CPIFT, "fuse", *arguments(folders), "--out", str(out), *more], out)

    def row(self, name: str, runs: list[Measured], note: str = "") -> None:
        memory = max(r.private for r in runs) / 1e9
        self.say(
            f"| {name} | {spread([r.wall for r in runs])} | {spread([r.cpu for r in runs])} | {memory:.2f} | {note} |"
        )


def arguments(folders: list[Path]) -> list[str]:
    tasks = [f"--tuned={folder.name}={folder}" for folder in folders[1:]]
    return ["--base", str(folders[0]), *tasks, "--threads", os.environ.get("BENCH_THREADS", "2")]


HEAD = "| what | wall s, median (min–max) | processor s | peak private memory GB | note |\n|---|---|---|---|---|"


def side_by_side(bench: Bench, dtype: str, peers: bool) -> None:
    folders = bench.checkpoints("1.1B", dtype)
    nbytes = sum(f.stat().st_size for folder in folders for f in folder.glob("*.safetensors"))
    bench.say(f"\n## 1.1B, {dtype}, a base and three tasks, 4 shards each, {nbytes / 1e9:.1f} GB\n")
    bench.say(HEAD)
    alone = {
        what: bench.measure([*PEERS, what, "--scratch", str(bench.scratch / "alone"), *map(str, folders)])
        for what in ("read", "identify", "fuse")
    }
    seconds = {what: median(runs, "inner") for what, runs in alone.items()}
    bench.say(
        f"| reading into nothing, the work alone | {spread([r.inner for r in alone['read']])} | | | {nbytes / seconds['read'] / 1e9:.1f} GB/s |"
    )
    share = seconds["read"] / seconds["identify"]
    bench.say(
        f"| `identify()`, the work alone | {spread([r.inner for r in alone['identify']])} | | | {share:.2f} of the speed of reading |"
    )
    bench.say(f"| `fuse()`, the work alone | {spread([r.inner for r in alone['fuse']])} | | | |")
    ours = bench.identify(folders)
    k = int(1.1e9 * float(PERCENT) / 100)
    bench.row("cpift identify", ours, f"16·k·N is {16 * k * 3 / 1e9:.2f} GB")
    bench.row("cpift identify --max-memory 100MB", bench.identify(folders, "--max-memory", "100MB"), "scratch file")
    if peers and dtype == "bfloat16":
        naive = bench.measure([*PEERS, "partition", *map(str, folders)], warm_up=0)
        times = median(naive, "wall") / median(ours, "wall")
        bench.row("numpy.partition of one vector", naive, f"{times:.1f} × cpift")
    regions = bench.scratch / "regions"
    given = [f"--region={folder.name}={regions / folder.name}.region.safetensors" for folder in folders[1:]]
    fused = bench.fuse(folders)
    bench.row("cpift fuse, SLERP", fused)
    bench.row("cpift fuse, SLERP, with regions", bench.fuse(folders, *given))
    if peers and dtype == "bfloat16":
        command = mergekit_environment(bench.scratch)
        for method in ("multislerp", "ties"):
            out = bench.scratch / "merged"
            taken = bench.measure(mergekit_command(command, method, folders, out, bench.threads), out, warm_up=0)
            times = median(taken, "wall") / median(fused, "wall")
            memory = max(r.private for r in taken) / max(r.private for r in fused)
            bench.row(f"mergekit {method}", taken, f"{times:.1f} × the time, {memory:.1f} × the memory of cpift fuse")
            shutil.rmtree(out)
    reads_once(bench, folders)
    if dtype == "bfloat16":
        profile(bench, folders)


def reads_once(bench: Bench, folders: list[Path]) -> None:
    """Cold cache: bytes fetched from the disk, as the kernel counts them, against the size of the files."""
    files = [f for folder in folders for f in folder.glob("*.safetensors")]
    size = sum(f.stat().st_size for f in files)
    for file in files:
        with file.open("rb") as stream:
            os.fsync(stream.fileno())
            os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    script = (
        "import sys; from cpift.cli.main import main\ntry: main()\nfinally:\n"
        " print(open('/proc/self/io').read().split('read_bytes: ')[1].split()[0], file=open(sys.argv.pop() + '.io', 'w'))"
    )
    mark = bench.scratch / "reads"
    shutil.rmtree(bench.scratch / "regions-cold", ignore_errors=True)
    command = [sys.executable, "-c", script.replace("sys.argv.pop()", repr(str(mark))), "identify", *arguments(folders)]
    run([*command, "--percent", PERCENT, "--out", str(bench.scratch / "regions-cold")], bench.threads)
    fetched = int(Path(f"{mark}.io").read_text())
    bench.say(f"\nRead from the disk by a cold `cpift identify`: {fetched / size:.3f} × the size of the files.")


def profile(bench: Bench, folders: list[Path]) -> None:
    """Where the time goes, part by part, in one process that is warm."""
    command = [sys.executable, str(HERE / "parts.py"), str(bench.scratch / "alone"), *map(str, folders)]
    env = {**os.environ, "OMP_NUM_THREADS": str(bench.threads)}
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=env)
    bench.say("\n" + done.stdout.strip())


def regions(bench: Bench) -> None:
    done = subprocess.run(
        [sys.executable, HERE / "regions.py", bench.scratch / "7B"], check=True, capture_output=True, text=True
    )
    bench.say("\n## Regions of a 7B model, 1 %\n\n" + done.stdout.strip())


def growth(bench: Bench) -> None:
    bench.say("\n## Growth with the number of parameters (bfloat16, three tasks)\n")
    bench.say("| size | identify s | identify GB | fuse s | fuse GB |\n|---|---|---|---|---|")
    for size in ("0.5B", "1.1B", "2.2B"):
        folders = bench.checkpoints(size, "bfloat16")
        a, b = bench.identify(folders), bench.fuse(folders)
        cells = [spread([r.wall for r in runs]) + f" | {max(r.private for r in runs) / 1e9:.2f}" for runs in (a, b)]
        bench.say(f"| {size} | {' | '.join(cells)} |")
        if size != "1.1B":
            bench.drop(size, "bfloat16")
    bench.say("\n## Growth with the number of tasks (1.1B, bfloat16)\n")
    bench.say("| tasks | identify s | identify GB | fuse s | fuse GB |\n|---|---|---|---|---|")
    folders = bench.checkpoints("1.1B", "bfloat16", 5)
    for tasks in (1, 3, 5):
        a, b = bench.identify(folders[: tasks + 1]), bench.fuse(folders[: tasks + 1])
        cells = [spread([r.wall for r in runs]) + f" | {max(r.private for r in runs) / 1e9:.2f}" for runs in (a, b)]
        bench.say(f"| {tasks} | {' | '.join(cells)} |")


def freezing(bench: Bench) -> None:
    done = subprocess.run([sys.executable, HERE / "freeze_step.py"], check=True, capture_output=True, text=True)
    found = json.loads(done.stdout.splitlines()[-1])
    low, middle, high = found["step_seconds"]
    bench.say("\n## Freezing, a training step of a SmolLM2-135M-shaped model (8 × 64 tokens, bf16 autocast, AdamW)\n")
    bench.say(
        f"Step without freezing: {middle:.2f} s ({low:.2f}–{high:.2f}). Seconds spent in freezing, of each step's:\n"
    )
    bench.say("| region | median | min | max | steps compared pair by pair, median | bytes kept for an element |")
    bench.say("|---|---|---|---|---|---|")
    for way in ("1 %", "3 %", "30 %", "90 %"):
        (low, middle, high), paired, kept = found[way], found[f"{way} paired"], found[f"{way} bytes"]
        bench.say(f"| {way} | {middle:.2%} | {low:.2%} | {high:.2%} | {paired:+.1%} | {kept:.2f} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scratch", type=Path, default=HERE.parent / "scratch" / "bench")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--out", type=Path, default=HERE.parent / "docs" / "benchmarks.md")
    parser.add_argument("--no-peers", action="store_true", help="leave out mergekit and the torch version")
    args = parser.parse_args()
    os.environ["BENCH_THREADS"] = str(args.threads)
    args.scratch.mkdir(parents=True, exist_ok=True)
    bench = Bench(args.scratch, args.repeat, args.threads, args.out)
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, cwd=HERE
    ).stdout.strip()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    bench.say(
        "# Benchmarks\n\nWhat these say, against the targets and why, and `cpift plan` against reality: [benchmarks-notes.md](benchmarks-notes.md).\n"
    )
    bench.say(
        f"`make bench` at commit {commit}: {args.threads} threads on {os.cpu_count()} cores ({platform.machine()}), "
        f"{memory:.0f} GiB; Python {platform.python_version()}, torch {torch.__version__}. "
        f"{args.repeat} runs each after a warm-up, warm file cache; whole processes, start-up included."
    )
    freezing(bench)
    regions(bench)
    side_by_side(bench, "bfloat16", not args.no_peers)
    growth(bench)
    bench.drop("1.1B", "bfloat16")
    side_by_side(bench, "float32", not args.no_peers)
    bench.drop("1.1B", "float32")


if __name__ == "__main__":
    main()
