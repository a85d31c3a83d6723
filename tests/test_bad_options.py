"""Options that cannot be, folders that are taken, a disk that is full: one line, exit code 2, nothing half-written."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny
import tiny_run
import yaml
from test_bad_input import edit, refused
from tiny_run import call

from cpift.method.identify import identify


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    with tiny_run.one_thread():
        yield


def occupied(folder: Path) -> list[Any]:
    arguments = edit()(folder)
    (folder / "out").mkdir()
    (folder / "out/recipe.yaml").write_text(yaml.safe_dump({**tiny.recipe(folder), "seed": 9}))
    return arguments


def other_tasks(folder: Path) -> list[Any]:
    arguments = edit()(folder)
    (folder / "out").mkdir()
    (folder / "out/recipe.yaml").write_text(yaml.safe_dump(tiny.recipe(folder, ("first",))))
    return arguments


def not_empty(folder: Path) -> list[Any]:
    arguments = edit()(folder)
    (folder / "out").mkdir()
    (folder / "out/thesis.txt").write_text("mine")
    return arguments


def taken(folder: Path) -> list[Any]:
    (folder / "out").write_text("mine")
    return edit()(folder)


def below_a_file(folder: Path) -> list[Any]:
    arguments = edit()(folder)
    (folder / "file").write_text("mine")
    return [*arguments[:-1], folder / "file/out"]


RUN: dict[str, tuple[Callable[[Path], list[Any]], str]] = {
    "no recipe": (lambda f: ["run", f / "none.yaml", "--out", f / "out"], "none.yaml: cannot be read"),
    "no model": (edit(model="./gone"), "gone is neither a folder"),
    "another run's seed": (occupied, "holds another recipe's run (its seed differ"),
    "another run's tasks": (other_tasks, "holds another recipe's run (its tasks differ"),
    "no run": (not_empty, "is not empty and holds no run"),
    "out is a file": (taken, "is a file; --out names a folder"),
    "until": (edit("--until", "lunch"), "lunch is not one of probe"),
    "set": (edit("--set", "nonsense"), "write it as KEY=VALUE"),
    "set no key": (edit("--set", "=3"), "write it as KEY=VALUE"),
    "set no YAML": (edit("--set", "probe.steps=["), "the value is not YAML"),
    "set a misspelt key": (edit("--set", "probe.stesp=3"), "did you mean 'steps'"),
    "a set key of cpift's": (edit("--set", "training.max_steps=3"), "training.max_steps: is set by cpift"),
    "group order": (edit(group__order=[["upper"]]), "group.order: must hold each task once"),
    "group order, twice": (edit(group__order=[["upper", "double"], ["reverse", "upper"]]), "group.order: must hold each"),
}  # fmt: skip


@pytest.mark.parametrize("name", RUN)
def test_run(tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    """Refused before anything is written."""
    make, words = RUN[name]
    refused(tmp_path, capsys, make(tmp_path), words)


@pytest.mark.parametrize("command", ["run", "plan", "evaluate"])
def test_a_missing_file_of_rows(tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str) -> None:
    """By its full path, with where paths count from."""
    make = edit(command=command, tasks__upper__train="gone.jsonl")
    refused(tmp_path, capsys, make(tmp_path), f"{tmp_path / 'gone.jsonl'} is missing")


LATE: dict[str, tuple[Callable[[Path], list[Any]], str]] = {
    "an empty group": (edit("--until", "group", group__order=[["reverse", "upper", "double"], []]), "group.order"),
    "exclude nothing": (edit("--until", "identify", region__exclude=["*nope*"]), "'*nope*' matches no parameter"),
    "below a file": (below_a_file, "file/out"),
    "a pattern": (edit("--until", "probe", tasks__upper__pattern="("), "tasks.upper.pattern"),
    "endless": (edit("--until", "probe", refine__epochs=float("inf")), "refine.epochs"),
}


@pytest.mark.parametrize("name", LATE)
def test_what_can_be_known_before_a_run_is_refused_before_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    """Hours of training must not end in a message about the recipe."""
    make, words = LATE[name]
    refused(tmp_path, capsys, make(tmp_path), words)


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """base, a, b; regions of a and b (of base), and x, a region of another base."""
    place = tmp_path_factory.mktemp("family")
    for seed, name in enumerate(("base", "a", "b", "stranger")):
        tiny.base(place / name, seed=seed)
    found = identify(place / "base", {"a": place / "a", "b": place / "b"})
    found["a"].save(place / "a.safetensors")
    found["b"].save(place / "b.safetensors")
    identify(place / "stranger", {"x": place / "a"})["x"].save(place / "x.safetensors")
    return place


HERE = "identify --base {f}/base --tuned a={f}/a --out {f}/out"
FUSE = "fuse --base {f}/base --tuned a={f}/a --out {f}/out"
OPTIONS = {
    "identify, percent 0": (f"{HERE} --percent 0", "percent: 0 is not in (0, 100]"),
    "identify, percent 101": (f"{HERE} --percent 101", "percent: 101 is not in (0, 100]"),
    "identify, percent nan": (f"{HERE} --percent nan", "percent: nan is not in (0, 100]"),
    "identify, percent in words": (f"{HERE} --percent one", "percent: one is not in (0, 100]"),
    "identify, memory": (f"{HERE} --max-memory lots", "'lots' is not a size"),
    "identify, include": (f"{HERE} --include *nope*", "include: '*nope*' matches no parameter"),
    "identify, nothing left": (f"{HERE} --include *mlp* --exclude *mlp*", "leave no parameter"),
    "identify, exclude": (f"{HERE} --exclude *nope*", "'*nope*' matches no parameter"),
    "identify, no name": ("identify --base {f}/base --tuned {f}/a --out {f}/out", "write it as NAME=PATH"),
    "identify, a path as name": ("identify --base {f}/base --tuned ../x={f}/a --out {f}/out", "write it as NAME=PATH"),
    "identify, a name twice": (f"{HERE} --tuned a={{f}}/b", "the name a is given twice"),
    "identify, no base": ("identify --base {f}/gone --tuned a={f}/a --out {f}/out", "gone: no such checkpoint"),
    "group, no file": ("group {f}/gone.safetensors --out {f}/g.json", "gone.safetensors: cannot be read"),
    "group, no region": ("group {f}/base/model.safetensors --out {f}/g.json", "model.safetensors: not a region file"),
    "group, threshold": ("group {f}/a.safetensors --threshold 1.5 --out {f}/g.json", "threshold: 1.5 is not in 0"),
    "group, a name twice": ("group {f}/a.safetensors {f}/a.safetensors --out {f}/g.json", "two region files are named a"),
    "group, of two bases": ("group {f}/a.safetensors {f}/x.safetensors --out {f}/g.json", "regions of different bases"),
    "fuse, region of another base": (f"{FUSE} --region a={{f}}/x.safetensors", "another base"),
    "fuse, region of another checkpoint": (f"{FUSE} --region a={{f}}/b.safetensors", "selected on another checkpoint"),
    "fuse, region of none": (f"{FUSE} --region z={{f}}/a.safetensors", "a region is given for z"),
    "fuse, no region file": (f"{FUSE} --region a={{f}}/gone", "gone: cannot be read"),
    "fuse, overlap": (f"{FUSE} --overlap biggest", "overlap"),
    "fuse, interpolation": (f"{FUSE} --interpolation sphere", "interpolation"),
    "fuse, space": (f"{FUSE} --space outer", "space"),
    "fuse, vector": (f"{FUSE} --vector row", "vector"),
    "fuse, weight": (f"{FUSE} --weight 1.5", "weight"),
    "fuse, weight in words": (f"{FUSE} --weight half", "--weight half: write equal or a number"),
    "fuse, dtype": (f"{FUSE} --dtype int8", "dtype: int8 is not one of"),
    "fuse, shards": (f"{FUSE} --max-shard-size lots", "'lots' is not a size"),
    "fuse, out is taken": ("fuse --base {f}/base --tuned a={f}/a --out {f}/b", "exists and holds something else"),
    "status": ("status {f}/base", "base: holds no run"),
    "init": ("init {f}/a", "a: exists"),
    "init below a file": ("init {f}/a.safetensors/r.yaml", "r.yaml: cannot be written"),
    "evaluate, no recipe": ("evaluate {f}/base {f}/gone.yaml --out {f}/s.json", "gone.yaml: cannot be read"),
}  # fmt: skip


@pytest.mark.parametrize("name", OPTIONS)
def test_options(family: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    """Of the commands on checkpoints."""
    line, words = OPTIONS[name]
    refused(family, capsys, line.format(f=family).split(), words)
    assert not (family / "out").exists()


def test_a_result_into_a_folder(family: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A folder cannot become a file; nothing is left beside it."""
    (tmp_path / "out").mkdir()
    arguments = ["group", family / "a.safetensors", "--out", tmp_path / "out"]
    refused(tmp_path, capsys, arguments, f"{tmp_path / 'out'}: cannot be written")


def test_identify_into_a_file(family: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As the other commands have it; before the checkpoints are read."""
    (tmp_path / "out").write_text("mine")
    arguments = ["identify", "--base", family / "base", f"--tuned=a={family / 'a'}", "--out", tmp_path / "out"]
    refused(tmp_path, capsys, arguments, str(tmp_path / "out"))


def test_no_threads(family: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """At least one is needed."""
    arguments = ["identify", "--base", family / "base", f"--tuned=a={family / 'a'}", "--out", tmp_path / "out"]
    refused(tmp_path, capsys, [*arguments, "--threads", "-1"], "threads")


def full(monkeypatch: pytest.MonkeyPatch, free: int) -> None:
    usage = type(shutil.disk_usage("/"))
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**6, 10**6 - free, free))


def test_a_full_disk_is_said_before_the_stage_starts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With what is needed and what is there; also for fuse. With room, the same command goes on."""
    arguments = edit("--until", "probe")(tmp_path)
    base = tmp_path / "base"
    with monkeypatch.context() as patch:
        full(patch, 1000)
        refused(tmp_path, capsys, arguments, "01-probe/reverse: needs 0.0 GB in", written=True)
        fuse = ["fuse", "--base", base, f"--tuned=a={base}", "--out", tmp_path / "fused"]
        refused(tmp_path, capsys, fuse, "make room first")
        assert not (tmp_path / "fused").exists()
    assert call(capsys, *arguments)[0] == 0


@pytest.mark.parametrize("victim", ["recipe.yaml", "state.json"])
def test_a_disk_that_fills_up_leaves_no_half_written_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, victim: str
) -> None:
    """Small files as well: the same command goes on once there is room."""
    arguments = edit("--until", "probe", probe__steps="auto")(tmp_path)
    real = Path.write_text

    def half(self: Path, text: str, *more: Any, **options: Any) -> int:
        if victim in self.name:
            real(self, text[:40], *more, **options)
            raise OSError(28, "No space left on device", str(self))
        return real(self, text, *more, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", half)
        code, _, err = call(capsys, *arguments)
    assert code == 2
    assert "the disk is full" in err
    assert call(capsys, *arguments)[0] == 0


@pytest.mark.parametrize("text", ["", "{", "[]", '{"probe_steps": "x", "rows": {}}', '{"probe_steps": 0, "rows": {}}'])
def test_a_damaged_state_is_told_of(tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str) -> None:
    arguments = edit("--until", "probe", probe__steps="auto")(tmp_path)
    assert call(capsys, *arguments)[0] == 0
    (tmp_path / "out/state.json").write_text(text)
    code, _, err = call(capsys, *arguments)
    assert code == 2
    assert "state.json: is damaged; remove it and run again" in err
    assert len(err.splitlines()) == 1
    (tmp_path / "out/state.json").unlink()
    assert call(capsys, *arguments)[0] == 0
