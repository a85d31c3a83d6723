"""Bad input: one line on stderr that names the file or key, exit code 2, nothing half-written."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import tiny_run
import yaml
from checkpoints import write
from safetensors.numpy import load_file, save_file
from tiny_run import call

Make = Callable[[Path], list[Any]]
NO_TURN = {"messages": [{"role": "user", "content": "x"}]}


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    with tiny_run.one_thread():
        yield


def refused(
    folder: Path, capsys: pytest.CaptureFixture[str], arguments: list[Any], words: str, written: bool = False
) -> None:
    """Assert that the command is refused in one line; ``written``: rows are read in a stage, so whole stages may stand."""
    before = {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    code, out, err = call(capsys, *arguments)
    assert code == 2
    assert err.startswith("cpift: ")
    assert words in err
    assert len(err.splitlines()) == 1
    assert "Traceback" not in out + err
    left = {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    if not written:
        assert left == before
    else:
        assert {p: b for p, b in left.items() if p in before} == before
        assert tiny_run.whole_stages_only(folder / "out")
        assert not list((folder / "out").rglob("*.safetensors"))


def edit(*more: str, command: str = "run", **changes: Any) -> Make:
    """Arguments of a command that takes a recipe, with changes to the recipe."""

    def make(folder: Path) -> list[Any]:
        data = tiny.recipe(folder)
        for key, value in changes.items():
            *parents, last = key.split("__")
            part = data
            for parent in parents:
                part = part.setdefault(parent, {})
            part[last] = value
        (folder / "r.yaml").write_text(yaml.safe_dump(data, sort_keys=False))
        return on(folder, command, *more)

    return make


def on(folder: Path, command: str, *more: str) -> list[Any]:
    place = {"run": ["--out", folder / "out"], "plan": [], "evaluate": ["--out", folder / "scores.json"]}[command]
    return [command, *([folder / "base"] if command == "evaluate" else []), folder / "r.yaml", *place, *more]


def with_data(lines: list[Any], command: str) -> Make:
    def make(folder: Path) -> list[Any]:
        arguments = edit(command=command)(folder)
        for part in ("train", "eval"):
            tiny.jsonl(folder / f"upper.{part}.jsonl", lines)
        return arguments

    return make


SETTINGS: dict[str, tuple[dict[str, Any], str]] = {
    "a misspelt key": ({"probe__stpes": 3}, "unknown key 'probe.stpes'; did you mean 'steps'"),
    "a misspelt key of a task": ({"tasks__upper__metrc": "loss"}, "unknown key 'tasks.upper.metrc'; did you mean 'metric'"),
    "an unknown key": ({"zzzzzz": 3}, "unknown key 'zzzzzz'"),
    "percent 0": ({"region__percent": 0}, "region.percent"),
    "percent over 100": ({"region__percent": 100.1}, "region.percent"),
    "a control character": ({"tasks__a\x1b[2J": {"train": "x.jsonl", "eval": 1}}, "unprintable"),
}  # fmt: skip


@pytest.mark.parametrize("command", ["run", "plan", "evaluate"])
@pytest.mark.parametrize("name", SETTINGS)
def test_settings(tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, command: str) -> None:
    """Every command that takes a recipe refuses the same; nothing is written."""
    changes, words = SETTINGS[name]
    refused(tmp_path, capsys, edit(command=command, **changes)(tmp_path), words)
    if command == "run":
        refused(tmp_path, capsys, [*on(tmp_path, "run"), "--dry-run"], words)


@pytest.mark.parametrize(
    "more",
    [
        ["run"],
        ["plan"],
        ["run", "--dry-run"],
        ["evaluate"],
    ],
    ids=" ".join,
)
@pytest.mark.parametrize("where", ["training", "refine__training"])
def test_training_settings(tmp_path: Path, capsys: pytest.CaptureFixture[str], more: list[str], where: str) -> None:
    """Keys of SFTConfig, with the nearest; also by a command that hardly uses them."""
    make = edit(*more[1:], command=more[0], **{f"{where}__max_lenght": 9})
    refused(tmp_path, capsys, make(tmp_path), "unknown key 'max_lenght'; did you mean 'max_length'")


DATA: dict[str, tuple[list[Any], str]] = {
    "malformed": ([tiny.rows("upper", 1, 0)[0], "{"], ".jsonl, line 2: not JSON"),
    "no assistant turn": ([tiny.rows("upper", 1, 0)[0], NO_TURN], ".jsonl, line 2: has no assistant turn"),
    "empty": ([], ".jsonl holds no rows"),
}


@pytest.mark.parametrize("command", ["run", "plan", "evaluate"])
@pytest.mark.parametrize("name", DATA)
def test_data(tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, command: str) -> None:
    """File and line, before anything is trained."""
    lines, words = DATA[name]
    part = "train"  # is read first, by evaluate as well: evaluation rows are told from training rows
    refused(tmp_path, capsys, with_data(lines, command)(tmp_path), f"upper.{part}{words}", written=command == "run")


def spoil(name: str) -> Callable[[Path], None]:
    """Changes the checkpoint in a folder."""

    def change(folder: Path) -> None:
        file = folder / "model.safetensors"
        tensors = {n: w.copy() for n, w in load_file(file).items()}
        first, second = sorted(tensors)[:2]
        if name == "a pickle":
            file.rename(folder / "pytorch_model.bin")
        elif name == "an adapter":
            shutil.rmtree(folder)
            folder.mkdir()
            (folder / "adapter_config.json").write_text("{}")
        elif name == "a missing shard":
            file.unlink()
            write(folder, tensors, shards=2)
            (folder / "model-00002-of-00002.safetensors").unlink()
        elif name == "cut short":
            file.write_bytes(file.read_bytes()[:-9])
        elif name == "gone":
            shutil.rmtree(folder)
        elif name in ("NaN", "infinite"):
            tensors[second].flat[2] = {"NaN": np.nan, "infinite": -np.inf}[name]
            save_file(tensors, file, metadata={"format": "pt"})
        elif name == "another vocabulary":
            tensors[first] = tensors[first][:-1].copy()
            save_file(tensors, file, metadata={"format": "pt"})
        elif name == "another shape":
            tensors[second] = tensors[second][:-1].copy()
            save_file(tensors, file, metadata={"format": "pt"})
        elif name == "a tensor less":
            del tensors[second]
            save_file(tensors, file, metadata={"format": "pt"})

    return change


CHECKPOINT = {
    "a pickle": "is a pickle",
    "an adapter": "merge_and_unload",
    "a missing shard": "model-00002-of-00002.safetensors: this shard is missing",
    "cut short": "model.safetensors: truncated",
    "gone": "no such checkpoint",
    "NaN": "NaN or infinite",
    "infinite": "NaN or infinite",
    "another vocabulary": "vocabularies differ",
    "another shape": "has shape",
    "a tensor less": "lacks model.layers",
}


@pytest.mark.parametrize("option", ["tuned", "backbone"])
@pytest.mark.parametrize("name", CHECKPOINT)
def test_checkpoints(tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, option: str) -> None:
    """Of ``identify`` and ``fuse``: the checkpoint or the tensor is named, and no output folder is there."""
    base, other, words = tiny.base(tmp_path / "base"), tmp_path / "other", CHECKPOINT[name]
    shutil.copytree(base, other)
    spoil(name)(other)
    if option == "tuned":
        given = ["--base", base, f"--tuned=a={other}", "--out", tmp_path / "out"]
        refused(tmp_path, capsys, ["identify", *given], words)
    else:
        given = ["--base", base, f"--tuned=a={base}", "--backbone", other, "--out", tmp_path / "out"]
    refused(tmp_path, capsys, ["fuse", *given], words)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["a pickle", "an adapter", "a missing shard", "cut short", "NaN"])
def test_base_of_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    """What identify and fuse refuse, run, plan and evaluate refuse."""
    edit()(tmp_path)
    spoil(name)(tmp_path / "base")
    for command in ("run", "plan", "evaluate"):
        words = "PEFT" if name == "an adapter" else CHECKPOINT[name]  # evaluate reads those that PEFT can merge
        refused(tmp_path, capsys, on(tmp_path, command), words)


@pytest.mark.parametrize(
    "name",
    ["a pickle", "an adapter", "a missing shard", "gone", "another vocabulary", "another shape", "a tensor less"],
)
def test_backbone_of_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    """A checkpoint that cannot be fused is refused before anything is trained for it."""
    arguments = edit("--until", "fuse", backbone=str(tmp_path / "other"))(tmp_path)
    shutil.copytree(tmp_path / "base", tmp_path / "other")
    spoil(name)(tmp_path / "other")
    refused(tmp_path, capsys, arguments, CHECKPOINT[name])
