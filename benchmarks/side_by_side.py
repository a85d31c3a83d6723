"""Selection and fusion beside reading, writing and mergekit, in turn."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from bench import HEAD, HERE, PEERS, PERCENT, Bench, Entry, ratios, size_of
from measure import Measured, median, run, spread
from peers import mergekit_command

if TYPE_CHECKING:
    from run import Sizes


def small(bench: Bench, sizes: Sizes, mergekit: Path | None) -> None:
    """Of 0.4B, in bf16."""
    _all_of(bench, sizes.small, "bfloat16", mergekit, {"multislerp": 3, "karcher": 2, "ties": 1})


def single(bench: Bench, sizes: Sizes, mergekit: Path | None) -> None:
    """The same in fp32, without peers."""
    _all_of(bench, sizes.small, "float32", None, {})


def _all_of(bench: Bench, size: str, dtype: str, mergekit: Path | None, peers: Mapping[str, int]) -> None:
    folders = _begin(bench, size, dtype)
    alone(bench, folders)
    ours(bench, folders, mergekit, peers)
    reads_once(bench, folders)
    bench.drop(size, dtype)


def large(bench: Bench, sizes: Sizes, mergekit: Path | None) -> None:
    """Of 1.1B, in bf16, with the profile; without TIES, which alone would take minutes."""
    folders = _begin(bench, sizes.large, "bfloat16")
    alone(bench, folders)
    ours(bench, folders, mergekit, {"multislerp": 2, "karcher": 1})
    profile(bench, folders)
    bench.drop(sizes.large, "bfloat16")


def _begin(bench: Bench, size: str, dtype: str) -> list[Path]:
    folders = bench.checkpoints(size, dtype)
    bench.say(f"\n## {size}, {dtype}, a base and three tasks, 4 shards each, {size_of(folders) / 1e9:.1f} GB\n")
    return folders


def alone(bench: Bench, folders: list[Path]) -> None:
    """What a caller of the library waits for, in a process that has started, beside the floor: the bytes moved."""
    scratch = bench.scratch / "alone"
    entries = {
        what: Entry([*PEERS, what, "--scratch", str(scratch), *map(str, folders)], warm_up=False)
        for what in ("read", "identify", "write", "fuse")
    }
    runs = {what: [r for r in found if r is not None] for what, found in bench.in_turn(entries).items()}
    bench.say("| the work alone | s, median (min–max) | note |\n|---|---|---|")
    if not all(runs.values()):
        bench.say("| not in the part's time | | |\n")
        return
    seconds = {what: median(found, "inner") for what, found in runs.items()}
    read, floor = seconds["read"], seconds["read"] + seconds["write"]
    shares = [f"{a.inner / b.inner:.2f}" for a, b in zip(runs["read"], runs["identify"], strict=False)]
    notes = {
        "read": f"all files, into a buffer that stays in the cache: {size_of(folders) / read / 1e9:.1f} GB/s",
        "identify": f"{read / seconds['identify']:.2f} of the speed of reading (pair by pair {', '.join(shares)})",
        "write": "as many bytes as the result has, synced",
        "fuse": f"{seconds['fuse'] / floor:.1f} × the floor, which is reading and writing: {floor:.2f} s",
    }
    for what, note in notes.items():
        bench.say(f"| {what} | {spread([r.inner for r in runs[what]])} | {note} |")
    bench.say()


def ours(bench: Bench, folders: list[Path], mergekit: Path | None, peers: Mapping[str, int]) -> None:
    """The commands, and mergekit's merges of the same files in turn with them.

    Args:
        bench: the settings.
        folders: the base and the tasks.
        mergekit: its command; None: no peers.
        peers: in how many rounds each of its methods takes part. One of a single round comes last, in a turn with fuse
            alone, so that it leaves the others their time.
    """
    bench.say(HEAD)
    found = bench.in_turn({"identify": bench.identify(folders)})
    bench.row("cpift identify", found["identify"])
    found = bench.in_turn({"spilled": bench.identify(folders, "--max-memory", "100MB", rounds=1)})
    bench.row("cpift identify --max-memory 100MB", found["spilled"], "scratch file")
    made = bench.scratch / "regions"
    given = [f"--region={folder.name}={made / folder.name}.region.safetensors" for folder in folders[1:]]
    merged = bench.scratch / "merged"
    theirs = {} if mergekit is None else {
        method: Entry(
            mergekit_command(mergekit, method, folders, merged / method, bench.threads), merged / method, rounds, False
        )
        for method, rounds in peers.items()
    }  # fmt: skip
    often = {method: entry for method, entry in theirs.items() if entry.rounds > 1}
    found = bench.in_turn({"fuse": bench.fuse(folders), "with regions": bench.fuse(folders, *given), **often})
    bench.row("cpift fuse, SLERP", found["fuse"])
    note = f"{ratios(found['with regions'], found['fuse'])} the time without"
    bench.row("cpift fuse, SLERP, with regions", found["with regions"], note)
    for method in often:
        _peer(bench, method, found[method], found["fuse"])
    for method in theirs.keys() - often.keys():
        found = bench.in_turn({"fuse": replace(bench.fuse(folders), rounds=1, warm_up=False), method: theirs[method]})
        _peer(bench, method, found[method], found["fuse"])
    shutil.rmtree(merged, ignore_errors=True)


def _peer(bench: Bench, method: str, theirs: list[Measured | None], own: list[Measured | None]) -> None:
    note = f"{ratios(theirs, own)} the time of cpift fuse"
    if None in theirs:
        note += "; stopped at the part's limit"
    bench.row(f"mergekit {method}", theirs, note + _memory(theirs, own))


def _memory(theirs: list[Measured | None], own: list[Measured | None]) -> str:
    peaks = [max((r.private for r in runs if r is not None), default=0) for runs in (theirs, own)]
    return f", {peaks[0] / peaks[1]:.0f} × the memory" if all(peaks) else ""


def reads_once(bench: Bench, folders: list[Path]) -> None:
    """Cold cache: bytes fetched from the disk, as the kernel counts them, against the size of the files."""
    files = [f for folder in folders for f in folder.glob("*.safetensors")]
    script = (
        "import sys; from cpift.cli.main import main\ntry: main()\nfinally:\n"
        " print(open('/proc/self/io').read().split('read_bytes: ')[1].split()[0], file=open(sys.argv.pop() + '.io', 'w'))"
    )
    mark, cold = bench.scratch / "reads", bench.scratch / "cold"
    shares = []
    for what, more in (("identify", ["--percent", PERCENT]), ("fuse", [])):
        for file in files:
            with file.open("rb") as stream:
                os.fsync(stream.fileno())
                os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        shutil.rmtree(cold, ignore_errors=True)
        command = [sys.executable, "-c", script.replace("sys.argv.pop()", repr(str(mark))), what]
        taken = run([*command, *bench.arguments(folders), *more, "--out", str(cold)], bench.threads, limit=bench.left)
        if taken is None:
            return
        share = int(Path(f"{mark}.io").read_text()) / size_of(folders)
        shares.append(f"`cpift {what}` {share:.3f} × the size of the files, in {taken.wall:.1f} s")
    shutil.rmtree(cold, ignore_errors=True)
    bench.say(f"\nRead from a cold disk, start-up and libraries included: {', '.join(shares)}.")


def profile(bench: Bench, folders: list[Path]) -> None:
    """Where the time goes, part by part, in one process that is warm."""
    printed = bench.output("Profile", [sys.executable, HERE / "parts.py", bench.scratch / "alone", *folders])
    if printed is not None:
        bench.say("\n" + printed)
