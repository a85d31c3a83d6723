"""The commands: what they write, and what they say to bad input: one line, exit code 2, nothing written."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import plain
import pytest
import tiny
import typer
import yaml
from checkpoints import write

from cpift import cli


def call(capsys: pytest.CaptureFixture[str], *arguments: Any) -> tuple[int, str, str]:
    """Run a command in this process; exit code, output, errors."""
    before, sys.argv = sys.argv, ["cpift", *map(str, arguments)]
    try:
        cli.main()
        code: Any = 0
    except SystemExit as stop:
        code = stop.code or 0
    finally:
        sys.argv = before
    said = capsys.readouterr()
    return int(code), said.out, said.err


@pytest.fixture
def family(tmp_path: Path) -> Path:
    """base, a, b, c: a Llama with its tokenizer, and three that differ from it."""
    tiny.base(tmp_path / "base")
    from safetensors.numpy import load_file, save_file

    for i, name in enumerate("abc"):
        shutil.copytree(tmp_path / "base", tmp_path / name)
        rng = np.random.default_rng(i)
        weights = load_file(tmp_path / "base/model.safetensors")
        moved = {n: w + 1e-3 * rng.standard_normal(w.shape).astype(np.float32) for n, w in weights.items()}
        save_file(moved, tmp_path / name / "model.safetensors", metadata={"format": "pt"})
    return tmp_path


def test_help_needs_neither_torch_nor_transformers() -> None:
    """It must start at once."""
    script = (
        "import sys; sys.argv=['cpift', '--help']\nfrom cpift import cli\ntry: cli.main()\nexcept SystemExit: pass\n"
    )
    script += "print(sorted({'torch', 'transformers', 'numpy', 'numba'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip().endswith("[]")
    assert "identify" in done.stdout


OPTIONS = {
    "run": {"recipe", "out", "sets", "until", "dry_run"},
    "plan": {"recipe", "sets", "measure", "as_json"},
    "identify": {"base", "tuned", "out", "percent", "exclude", "max_memory", "threads"},
    "group": {"regions", "threshold", "out", "seed"},
    "fuse": {
        "base", "tuned", "out", "backbone", "region", "overlap", "interpolation", "space", "vector", "weight",
        "max_shard_size", "dtype", "threads",
    },
    "evaluate": {"model", "recipe", "out", "sets"},
    "status": {"folder"},
    "init": {"out"},
}  # fmt: skip


def test_the_options_are_these(capsys: pytest.CaptureFixture[str]) -> None:
    """A new option is a deliberate act; each command explains itself, and every option has a help text."""
    commands = typer.main.get_command(cli.app).commands  # type: ignore[attr-defined]
    assert {name: {p.name for p in command.params} for name, command in commands.items()} == OPTIONS
    for name, command in commands.items():
        assert all(getattr(p, "help", None) for p in command.params), name
        code, out, _ = call(capsys, name, "--help")
        assert code == 0
        assert len(out.splitlines()) > 8


def test_from_checkpoints_to_a_fused_model(family: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """identify, group, fuse: files as documented, and a checkpoint that loads with its tokenizer and chat template."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tuned = [f"--tuned={n}={family / n}" for n in "abc"]
    code, out, _ = call(capsys, "identify", "--base", family / "base", *tuned, "--percent", "2", "--out", family / "r")
    assert code == 0
    assert out.count("× the median") == 3
    files = [family / "r" / f"{n}.region.safetensors" for n in "abc"]
    code, out, _ = call(capsys, "group", *files, "--threshold", "0.05", "--out", family / "groups.json")
    assert code == 0
    found = json.loads((family / "groups.json").read_text())
    assert {"tasks", "jaccard", "groups", "order"} <= set(found)
    assert found["tasks"] == ["a", "b", "c"]
    base = plain.load(family / "base")
    cores = [plain.core(base, plain.load(family / n), "2") for n in "abc"]
    assert found["jaccard"][0][1] == pytest.approx(plain.jaccard(cores[0], cores[1]))
    regions = [f"--region={n}={f}" for n, f in zip("abc", files, strict=True)]
    code, out, _ = call(
        capsys, "fuse", "--base", family / "base", "--backbone", family / "c", *tuned, *regions, "--out", family / "f"
    )
    assert code == 0, out
    expected = plain.fuse(base, plain.load(family / "c"), [plain.load(family / n) for n in "abc"], cores)
    got = plain.load(family / "f")
    assert all(np.abs(got[n] - v).max() <= 1e-6 * np.abs(v).max() for n, v in expected.items())
    assert "<|im_start|>" in AutoTokenizer.from_pretrained(family / "f").chat_template
    AutoModelForCausalLM.from_pretrained(family / "f")
    assert (family / "f/generation_config.json").is_file()
    assert (
        call(
            capsys,
            "fuse",
            "--base",
            family / "base",
            "--backbone",
            family / "c",
            *tuned,
            *regions,
            "--out",
            family / "f",
        )[0]
        == 0
    )


def test_init_writes_a_recipe_that_loads_and_never_overwrites(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With a comment on every part."""
    from cpift.recipe import Recipe

    assert call(capsys, "init", tmp_path / "r.yaml")[0] == 0
    assert Recipe.load(tmp_path / "r.yaml").group.threshold == 0.1
    code, _, err = call(capsys, "init", tmp_path / "r.yaml")
    assert code == 2
    assert "exists" in err


def test_plan_and_evaluate(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The plan counts what the run would do; evaluate writes each row's outcome."""
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(tiny.recipe(tmp_path)))
    code, out, _ = call(capsys, "plan", tmp_path / "r.yaml", "--json")
    told = json.loads(out)
    assert code == 0
    assert [p["steps"] for p in told["stages"]] == [3, 3, 3, 9, 3]
    assert told["core"] == told["parameters"] * 5 // 100
    code, out, _ = call(capsys, "plan", tmp_path / "r.yaml", "--measure")
    assert code == 0
    assert "tokens/s in training" in out
    code, out, _ = call(capsys, "evaluate", tmp_path / "base", tmp_path / "r.yaml", "--out", tmp_path / "s.json")
    assert code == 0
    assert len(json.loads((tmp_path / "s.json").read_text())["tasks"]["upper"]["items"]) == 6
    assert {p.name for p in tmp_path.iterdir() if p.is_dir()} == {"base"}


def edit(**changes: Any) -> Callable[[Path], list[Any]]:
    """A recipe with changes, as arguments of ``run``."""

    def make(folder: Path) -> list[Any]:
        data = tiny.recipe(folder)
        for key, value in changes.items():
            *parents, last = key.split("__")
            part = data
            for parent in parents:
                part = part.setdefault(parent, {})
            part[last] = value
        (folder / "r.yaml").write_text(yaml.safe_dump(data))
        return ["run", folder / "r.yaml", "--out", folder / "out"]

    return make


def with_data(lines: list[Any]) -> Callable[[Path], list[Any]]:
    def make(folder: Path) -> list[Any]:
        arguments = edit()(folder)
        tiny.jsonl(folder / "upper.train.jsonl", lines)
        return arguments

    return make


def fusing(change: Callable[[Path], Any], *more: str) -> Callable[[Path], list[Any]]:
    """Arguments of ``identify`` on a base and a checkpoint that is changed."""

    def make(folder: Path) -> list[Any]:
        tiny.base(folder / "base")
        shutil.copytree(folder / "base", folder / "a")
        change(folder)
        return ["identify", "--base", folder / "base", f"--tuned=a={folder / 'a'}", "--out", folder / "out", *more]

    return make


def nan(folder: Path) -> None:
    write(folder / "base", {"w": np.ones(3, np.float32)})
    (folder / "a/model.safetensors").unlink()
    write(folder / "a", {"w": np.array([1, np.nan, 1], np.float32)})
    (folder / "base/config.json").write_text("{}")


def pickle(folder: Path) -> None:
    (folder / "a/model.safetensors").rename(folder / "a/pytorch_model.bin")


def other_base_region(folder: Path) -> list[Any]:
    for i in (0, 1):
        tiny.base(folder / f"base{i}", seed=i)
    from cpift.selection import identify

    identify(folder / "base0", {"a": folder / "base1"})["a"].save(folder / "r")
    return [
        "fuse",
        "--base",
        folder / "base1",
        f"--tuned=a={folder / 'base0'}",
        f"--region=a={folder / 'r'}",
        "--out",
        folder / "out",
    ]


def vocabulary(folder: Path) -> None:
    shutil.rmtree(folder / "a")
    tiny.base(folder / "a")
    from safetensors.numpy import load_file, save_file

    weights = load_file(folder / "a/model.safetensors")
    weights["model.embed_tokens.weight"] = weights["model.embed_tokens.weight"][:-1].copy()
    save_file(weights, folder / "a/model.safetensors")


def adapter(folder: Path) -> None:
    shutil.rmtree(folder / "a")
    (folder / "a").mkdir()
    (folder / "a/adapter_config.json").write_text("{}")


def occupied(folder: Path) -> list[Any]:
    arguments = edit()(folder)
    (folder / "out").mkdir()
    (folder / "out/recipe.yaml").write_text(yaml.safe_dump({**tiny.recipe(folder), "seed": 9}))
    return arguments


def not_empty(folder: Path) -> list[Any]:
    arguments = edit()(folder)
    (folder / "out").mkdir()
    (folder / "out/thesis.txt").write_text("mine")
    return arguments


BAD: dict[str, tuple[Callable[[Path], list[Any]], str]] = {
    "misspelt key": (edit(probe__stpes=3), "'probe.stpes'; did you mean 'steps'"),
    "misspelt training key": (edit(training__learning_rte=3), "unknown key 'learning_rte'; did you mean 'learning_rate'"),
    "percent": (edit(region__percent=0), "region.percent"),
    "no recipe": (lambda f: ["run", f / "none.yaml", "--out", f / "out"], "none.yaml: cannot be read"),
    "missing data": (edit(tasks__upper__train="gone.jsonl"), "gone.jsonl is missing"),
    "malformed row": (with_data([tiny.rows("upper", 1, 0)[0], "{"]), "upper.train.jsonl, line 2: not JSON"),
    "no assistant turn": (with_data([{"messages": [{"role": "user", "content": "x"}]}]), "line 1: has no assistant turn"),
    "empty set": (with_data([]), "upper.train.jsonl holds no rows"),
    "no model": (edit(model="./gone"), "neither a folder"),
    "other run": (occupied, "holds another recipe's run (its seed differ"),
    "not a run": (not_empty, "is not empty and holds no run"),
    "until": (lambda f: [*edit()(f), "--until", "lunch"], "lunch is not one of probe"),
    "set": (lambda f: [*edit()(f), "--set", "nonsense"], "write it as KEY=VALUE"),
    "group order": (edit(group__order=[["upper"]]), "group.order: must hold each task once"),
    "pickle": (fusing(pickle), "pickle"),
    "adapter": (fusing(adapter), "merge_and_unload"),
    "nan": (fusing(nan), "w holds NaN or infinite weights"),
    "vocabularies": (fusing(vocabulary), "vocabularies differ"),
    "percent 0": (fusing(lambda f: None, "--percent", "0"), "percent: 0 is not in (0, 100]"),
    "percent 101": (fusing(lambda f: None, "--percent", "101"), "percent: 101 is not in (0, 100]"),
    "memory": (fusing(lambda f: None, "--max-memory", "lots"), "'lots' is not a size"),
    "region of another base": (other_base_region, "another base"),
    "no name": (lambda f: ["identify", "--base", f, "--tuned", "x", "--out", f / "out"], "write it as NAME=PATH"),
    "name is a path": (lambda f: ["identify", "--base", f, "--tuned=../x=y", "--out", f / "out"], "write it as NAME=PATH"),
    "status": (lambda f: ["status", f], "holds no run"),
    "region file": (lambda f: (write(f, {"w": np.ones(1)}), ["group", f / "model.safetensors", "--out", f / "out"])[1], "not a region file"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_line_and_exit_code_2(tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    """It names the file or key; no traceback; nothing is written but what was there."""
    make, words = BAD[name]
    arguments = make(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    code, out, err = call(capsys, *arguments)
    assert code == 2
    assert err.startswith("cpift: ")
    assert words in err
    assert len(err.splitlines()) == 1
    assert "Traceback" not in out + err
    left = [
        p
        for p in sorted(tmp_path.rglob("*"))
        if p not in before and p.name not in (".lock", "recipe.yaml", "log.jsonl")
    ]
    assert [p for p in left if p.is_file() and ".partial" not in str(p) and "00-tasks" not in str(p)] == []


def test_a_full_disk_is_said_before_the_stage_starts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With what is needed and what is there; also for fuse."""
    arguments = edit()(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**6, 10**6, 1000))  # type: ignore[attr-defined]
    code, _, err = call(capsys, *arguments)
    assert code == 2
    assert "make room first" in err
    assert not list((tmp_path / "out").rglob("*.safetensors"))
    base = tmp_path / "base"
    code, _, err = call(capsys, "fuse", "--base", base, f"--tuned=a={base}", "--out", tmp_path / "fused")
    assert code == 2
    assert "make room first" in err
    assert not (tmp_path / "fused").exists()
