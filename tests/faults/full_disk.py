"""A disk that fills up in any stage: what must hold. Used by the tests and by the soak."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import preloaded
from tiny_run import same, stamps

SIZE = 8 * 2**20
LATER = ("00*", "01*", "02*", "03*", "04*", "05*", "06*", "07*")

# The stage that finds no room, what of a finished run is there before it, and the bytes that are left.
STAGES = {
    "recipe": ("00", "", 0), "rows": ("00", "", 20_000), "probe, before": ("01", "", 30_000),
    "probe, in its midst": ("01", "", 135_000), "probe, its trainer's checkpoint": ("01", "save", 300_000),
    "regions": ("02", "", 12_000), "groups": ("03", "", 0), "backbone": ("04", "", 135_000),
    "fusion": ("05", "", 135_000), "refinement": ("06", "", 135_000), "scores": ("07", "", 4_096), "model": ("08", "", 0),
}  # fmt: skip


@contextmanager
def small_disk(place: Path) -> Iterator[Path | None]:
    """A small disk of its own in the folder ``place``; None where this user may not mount one."""
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "tmpfs", str(place)]
    if subprocess.run(command, capture_output=True).returncode:
        yield None
        return
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", place], check=True)


def fill(place: Path, leave: int) -> Path:
    """Write until so many bytes are left; deleting the file makes room again."""
    ballast = place / "ballast"
    free = os.statvfs(place).f_bavail * os.statvfs(place).f_frsize
    with ballast.open("wb") as file:
        file.write(b"x" * max(0, free - leave))
    return ballast


def run_full(recipe: Path, whole: Path, disk: Path, said: Path, name: str) -> None:
    """The finished stages are untouched, nothing that looks finished is left, and the weights are those of any run."""
    first, saving, leave = STAGES[name]
    out = disk / "out"
    if first > "00":
        shutil.copytree(whole, out, copy_function=shutil.copy2)
        for pattern in LATER:
            for folder in (out / "stages").glob(pattern):
                if folder.name[:2] >= first:
                    shutil.rmtree(folder)
        shutil.rmtree(out / "model")
        (out / "scores.json").unlink()
    ballast, before = fill(disk, leave), stamps(out)
    arguments = ["run", str(recipe), "--out", str(out)]
    if saving:
        arguments += ["--set", "training.save_strategy=steps", "--set", "training.save_steps=1"]
    process = preloaded.start(arguments, said)
    process.join(120)
    text = said.read_text()
    told = [line for line in text.splitlines() if line.startswith("cpift: ")]
    assert process.exitcode == 2, text[-2000:]
    assert "Traceback" not in text, text[-2000:]
    assert len(told) == 1, text
    assert "disk" in told[0]
    assert "room" in told[0]
    after = stamps(out)
    assert {stage: after.get(stage) for stage in before} == before
    assert not (out / "model").exists()
    ballast.unlink()
    again = preloaded.start(arguments, said)
    again.join(120)
    assert again.exitcode == 0, said.read_text()[-2000:]
    assert saving or same(out / "model", whole / "model")
    assert not list(out.rglob("*.partial"))
