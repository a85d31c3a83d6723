"""The mirror: a run on a fresh disk resumes where the old one stopped, and takes nothing that is not whole."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
import tiny
import tiny_run
import yaml
from fsspec.registry import known_implementations
from tiny_run import Cut, Listener, call, copy, same, stamps

from cpift.distributed import ranks
from cpift.errors import CpiftError
from cpift.recipe.recipe import Recipe
from cpift.runs import pipeline
from cpift.runs.mirror import Mirror
from cpift.runs.pipeline import run


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    with tiny_run.one_thread():
        yield


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run, made without a mirror."""
    return tiny_run.finished_run(tmp_path_factory)


@pytest.fixture(scope="module")
def recipe(whole: Path) -> Recipe:
    return Recipe.parse(tiny.recipe(whole.parent))


@pytest.fixture(scope="module")
def filled(whole: Path, recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A mirror of the finished run; copy it to change it."""
    place = tmp_path_factory.mktemp("mirror")
    run(recipe, copy(whole, place / "out"), mirror=(place / "there").as_uri())
    return place / "there"


def held(there: Path, recipe: Recipe) -> set[str]:
    """The stages that a mirror counts as finished."""
    return set(Mirror(there.as_uri(), recipe, Path("nowhere")).held)


def test_a_lost_disk_costs_no_finished_stage(whole: Path, recipe: Recipe, tmp_path: Path) -> None:
    """Cut off in a training, its folder lost: elsewhere, only what was not finished is made; the model has the same bits."""
    mirror = "memory://lost-disk/mine"
    with pytest.raises(Cut):
        run(recipe, tmp_path / "first", reporter=Listener("progress", "04-backbone/2"), mirror=mirror)
    finished = set(stamps(tmp_path / "first"))
    log = (tmp_path / "first/log.jsonl").read_text()
    shutil.rmtree(tmp_path / "first")
    listener = Listener()
    run(recipe, tmp_path / "second", reporter=listener, mirror=mirror)
    assert not finished & set(listener.made)
    assert {"01-probe/reverse", "04-backbone/1"} <= finished <= set(listener.kept)
    assert {f"{s} is brought back from {mirror}" for s in finished} <= set(listener.said)
    assert same(tmp_path / "second/model", whole / "model")
    assert set(stamps(tmp_path / "second")) == set(stamps(whole))
    assert (tmp_path / "second/log.jsonl").read_text().startswith(log), "the log is gone on with"
    assert not list((tmp_path / "second").rglob("*.partial"))
    shutil.rmtree(tmp_path / "second")
    third = Listener()
    run(recipe, tmp_path / "third", reporter=third, mirror=mirror)
    assert third.made == []
    assert same(tmp_path / "third/model", whole / "model")


def test_what_is_there_in_the_end(whole: Path, filled: Path, recipe: Recipe, tmp_path: Path) -> None:
    """A run made without a mirror is copied afterwards: a whole run folder, that loads and reports. Once there, no more."""
    made = [p for p in whole.rglob("*") if p.is_file() and p.name != ".lock"]
    ours = {str(p.relative_to(whole)) for p in made if ".scored" not in p.parts}  # made anew from the models
    theirs = {str(p.relative_to(filled)) for p in filled.rglob("*") if p.is_file()}
    assert theirs == ours
    assert {"scores.json", "report.html", "recipe.yaml", "log.jsonl", "model/model.safetensors"} < theirs
    assert same(filled / "model", whole / "model")
    assert not stamps_differ(filled, lambda: run(recipe, copy(whole, tmp_path / "out"), mirror=filled.as_uri()))


def stamps_differ(there: Path, act: Any) -> bool:
    before = stamps(there)
    act()
    return stamps(there) != before


@pytest.mark.parametrize("damage", ["a flipped bit", "cut short", "gone"])
def test_a_damaged_copy_is_made_anew(whole: Path, filled: Path, recipe: Recipe, tmp_path: Path, damage: str) -> None:
    """With a warning that names it; what is sound is taken all the same, and the copy is sound afterwards."""
    there = tmp_path / "there"
    shutil.copytree(filled, there)
    file = there / "stages/06-refine/2/model.safetensors"
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 4
    file.write_bytes(data if damage == "a flipped bit" else data[: len(data) // 2])
    if damage == "gone":
        file.unlink()
    listener = Listener()
    run(recipe, tmp_path / "out", reporter=listener, mirror=there.as_uri())
    warnings = [text for text in listener.said if "is damaged or gone; the stage is made anew" in text]
    assert len(warnings) == 1
    assert warnings[0].startswith("06-refine/2: model.safetensors at file:///")
    assert listener.made == ["06-refine/2"]
    assert same(tmp_path / "out/model", whole / "model")
    assert same(there / "stages/06-refine/2", whole / "stages/06-refine/2")


@pytest.mark.parametrize("left", ["", '{"key": "', "{}\n"])
def test_a_stage_cut_in_the_copying_is_none(
    whole: Path, filled: Path, recipe: Recipe, tmp_path: Path, left: str
) -> None:
    """Its stage.json, which comes last, is not there, half there, or says that the stage is being replaced."""
    there = tmp_path / "there"
    shutil.copytree(filled, there)
    mark = there / "stages/06-refine/3/stage.json"
    mark.unlink()
    if left:
        mark.write_text(left)
    listener = Listener()
    run(recipe, tmp_path / "out", reporter=listener, mirror=there.as_uri())
    assert listener.made == ["06-refine/3"]
    assert same(tmp_path / "out/model", whole / "model")
    assert mark.read_text() == (tmp_path / "out/stages/06-refine/3/stage.json").read_text()


def test_the_mark_of_a_stage_comes_last(
    whole: Path, recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever file the copying is cut off at, what is there of the stage does not count; an older one neither."""
    out, there = copy(whole, tmp_path / "out", ("0[5-7]*",)), tmp_path / "there"
    put = Mirror._put

    def cut(self: Mirror, path: Path) -> None:
        if path == out / "stages/04-backbone/3/model.safetensors":
            raise KeyboardInterrupt
        put(self, path)

    with monkeypatch.context() as patch:
        patch.setattr(Mirror, "_put", cut)
        with pytest.raises(KeyboardInterrupt):
            run(recipe, out, until="backbone", mirror=there.as_uri())
    assert (there / "stages/04-backbone/3/config.json").is_file()
    assert "04-backbone/2" in held(there, recipe)
    assert "04-backbone/3" not in held(there, recipe)
    run(recipe, out, until="backbone", mirror=there.as_uri())
    assert "04-backbone/3" in held(there, recipe)
    mark = out / "stages/04-backbone/3/stage.json"  # made again since, as it seems
    made = json.loads(mark.read_text())
    mark.write_text(json.dumps({**made, "facts": {**made["facts"], "seconds": 1}}))
    with monkeypatch.context() as patch:
        patch.setattr(Mirror, "_put", cut)
        with pytest.raises(KeyboardInterrupt):
            run(recipe, out, until="backbone", mirror=there.as_uri())
    assert "04-backbone/3" not in held(there, recipe)


def test_a_network_that_fails_for_a_while(
    whole: Path, recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run goes on; what was not copied is tried again. Where it stays so, the run is whole, and the exit says no."""
    there, out = tmp_path / "there", copy(whole, tmp_path / "out", ("06-refine/3", "07*"))
    put, down = Mirror._put, ["stages/05-fuse/config.json"]

    def flaky(self: Mirror, path: Path) -> None:
        name = path.relative_to(out).as_posix()
        if name in down:
            if name != "scores.json":
                down.remove(name)
            raise ConnectionError("no route to https://me:secret@host/x")
        put(self, path)

    monkeypatch.setattr(Mirror, "_put", flaky)
    listener = Listener()
    run(recipe, out, reporter=listener, mirror=there.as_uri())
    told = [text for text in listener.said if "was not copied" in text]
    assert len(told) == 1
    assert "05-fuse was not copied to file:///" in told[0]
    assert "no route to https://host/x" in told[0], "no password"
    assert held(there, recipe) == set(stamps(out))
    down.append("scores.json")
    with pytest.raises(CpiftError, match=r"is not complete .*out is; run again to copy"):
        run(recipe, out, mirror=there.as_uri())
    assert (out / "model").is_dir()


def test_an_added_task_on_a_fresh_disk(tmp_path: Path) -> None:
    """``probe.steps: auto`` stays as it was settled: the earlier probes are taken, not trained anew."""
    data = tiny.recipe(tmp_path, ("reverse", "upper"), probe={"steps": "auto"})
    tiny.jsonl(tmp_path / "double.train.jsonl", tiny.rows("double", 40, 0))
    there = (tmp_path / "there").as_uri()
    run(Recipe.parse(data), tmp_path / "first", until="probe", mirror=there)
    more = tiny.recipe(tmp_path, ("reverse", "upper", "double"), probe={"steps": "auto"})
    tiny.jsonl(tmp_path / "double.train.jsonl", tiny.rows("double", 40, 0))
    listener = Listener()
    run(Recipe.parse(more), tmp_path / "second", until="probe", reporter=listener, mirror=there)
    assert listener.made == ["00-tasks/double", "01-probe/double"]
    (tmp_path / "there/state.json").write_text('{"probe_steps": 4,')
    run(Recipe.parse(data), tmp_path / "third", until="probe", mirror=there)  # half a file is none


def test_files_that_lead_out_of_the_folder(filled: Path, recipe: Recipe, tmp_path: Path) -> None:
    """A stage at the mirror that names such a file counts for nothing."""
    there = tmp_path / "there"
    shutil.copytree(filled, there)
    mark = there / "stages/03-group/stage.json"
    sound = json.loads(mark.read_text())
    for outputs in ({"../../escaped": "0"}, {"/tmp/escaped": "0"}, ["groups.json"], None):
        mark.write_text(json.dumps({**sound, "outputs": outputs}))
        assert "03-group" not in held(there, recipe)
    mark.write_text(json.dumps(sound))
    assert "03-group" in held(there, recipe)


REFUSED = [
    ("nope://bucket/run", "nope://bucket/run: Protocol not known: nope; write s3://"),
    ("{place}/a-file/run", "cannot be read ([Errno 20] Not a directory"),
    ("{place}/new/mirror", "lies within"),
    ("{place}/other", "holds another recipe's run (its tasks differ)"),
]


@pytest.mark.parametrize(("url", "words"), REFUSED, ids=["protocol", "not readable", "within", "another run"])
def test_what_is_refused(whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], url: str, words: str) -> None:
    """One line and exit code 2, before anything is made."""
    (tmp_path / "a-file").write_text("")
    (tmp_path / "other").mkdir()
    (tmp_path / "other/recipe.yaml").write_text(yaml.safe_dump({**tiny.recipe(whole.parent, ("first",)), "seed": 0}))
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(tiny.recipe(whole.parent), sort_keys=False))
    mirror, out = url.format(place=tmp_path.as_uri()), tmp_path / "new"
    code, _, errors = call(capsys, "run", tmp_path / "r.yaml", "--out", out, "--mirror", mirror)
    assert code == 2
    assert len(errors.splitlines()) == 1
    assert errors.startswith(f"cpift: --mirror {mirror}: ")
    assert words in errors
    assert not (out / "stages").exists()
    assert not (out / "recipe.yaml").exists()


def test_a_place_that_cannot_be_written(recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Found by writing the recipe there, before anything is made."""

    def denied(*_: Any, **__: Any) -> None:
        raise PermissionError("Access Denied")

    monkeypatch.setattr(fsspec.get_filesystem_class("memory"), "pipe_file", denied)
    with pytest.raises(CpiftError, match=r"cannot be written \(Access Denied\); check the address, network and cred"):
        run(recipe, tmp_path / "out", mirror="memory://denied")
    assert not (tmp_path / "out/recipe.yaml").exists()


def test_a_package_that_is_missing(recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """fsspec's own word for it."""
    monkeypatch.setitem(known_implementations, "absent", {"class": "no_such.Class", "err": "Install it"})
    with pytest.raises(CpiftError, match=r"^--mirror absent://x: Install it$"):
        run(recipe, tmp_path / "out", mirror="absent://x")
    assert not (tmp_path / "out").exists()


def test_the_dry_run_tells_of_the_mirror_and_writes_nothing(
    whole: Path, filled: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """How many stages it holds."""
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(tiny.recipe(whole.parent), sort_keys=False))
    before = {p: p.stat().st_mtime_ns for p in filled.rglob("*")}
    options = ["--out", tmp_path / "out", "--dry-run", "--mirror"]
    code, said, _ = call(capsys, "run", tmp_path / "r.yaml", *options, filled.as_uri())
    assert code == 0
    assert f"the mirror holds {len(stamps(whole))} finished stages" in said
    assert call(capsys, "run", tmp_path / "r.yaml", *options, "nope://x")[0] == 2
    assert {p: p.stat().st_mtime_ns for p in filled.rglob("*")} == before
    assert not (tmp_path / "out").exists()


def test_only_the_leading_process_mirrors(recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that follows does not so much as look at the URL."""
    monkeypatch.setattr(ranks, "leads", lambda: False)
    monkeypatch.setattr(pipeline, "_follow", lambda current: {"followed": True})
    assert run(recipe, tmp_path / "out", mirror="nope://x") == {"followed": True}
