"""The commands: what they are, what they write, and what they print."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import plain
import pytest
import tiny
import tiny_run
import typer
import yaml
from tiny_run import call

from cpift.cli import main as cli


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    with tiny_run.one_thread():
        yield


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
    script = "import sys; sys.argv=['cpift', '--help']\nfrom cpift.cli.main import main\ntry: main()\nexcept SystemExit: pass\n"
    script += "print(sorted({'torch', 'transformers', 'numpy', 'numba'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip().endswith("[]")
    assert "identify" in done.stdout


def test_the_version_is_the_package_s(capsys: pytest.CaptureFixture[str]) -> None:
    """One number: that of pyproject.toml."""
    code, output, _ = call(capsys, "--version")
    stated = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]["version"]
    assert (code, output.strip()) == (0, f"cpift {stated}")


OPTIONS = {
    "add": {
        "as_patch", "base", "compare", "evaluation", "keep", "metric", "mirror", "model", "out", "recipe", "sets", "task",
    },
    "run": {"recipe", "out", "sets", "until", "mirror", "dry_run", "engine", "jobs", "address", "gpus_per_job"},
    "data": {"recipe", "sets", "examples", "as_json"},
    "patch": set(),
    "protect": {
        "model", "out", "base", "rows", "by", "percent", "unit", "only", "exclude", "max_length", "threads",
    },
    "diff": {"as_json", "base", "exclude", "html", "max_length", "max_memory", "max_rows", "percent", "rows", "seed", "threads", "threshold", "tuned"},
    "plan": {"recipe", "sets", "measure", "gpus", "as_json", "out"},
    "identify": {"base", "tuned", "out", "percent", "include", "exclude", "max_memory", "vocabulary", "threads"},
    "group": {"regions", "threshold", "out", "seed"},
    "fuse": {"from_mergekit", "write_mergekit", 
        "base", "tuned", "out", "backbone", "region", "overlap", "interpolation", "space", "vector", "weight",
        "vocabulary", "max_shard_size", "dtype", "threads",
    },
    "evaluate": {"models", "task", "metric", "rows", "base", "out", "as_json", "cache", "no_cache", "sets"},
    "export": {"model", "out", "form", "base", "rank", "dtype", "max_shard_size"},
    "apply": {"delta", "base", "out", "max_shard_size"},
    "compare": {
        "recipe", "out", "methods", "seeds", "budget", "reference", "jobs", "keep_models", "sets", "tune",
        "engine", "address", "gpus_per_job",
    },
    "status": {"folder"},
    "report": {"folder", "out"},
    "push": {"folder", "repo", "private", "revision", "report"},
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


def test_compare_names_every_method_in_its_help(capsys: pytest.CaptureFixture[str]) -> None:
    """One left out is one that nobody finds."""
    from cpift.compare.methods import METHODS

    always, arriving = call(capsys, "compare", "--help")[1].split("under --budget incremental")
    assert {method.name for method in METHODS.values() if method.run} <= set(re.findall(r"\w+", always))
    assert {method.name for method in METHODS.values() if method.arrive} <= set(re.findall(r"\w+", arriving))


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
    for folder in {file.parent for file in files}:  # a folder stands for the files in it
        assert call(capsys, "group", folder, "--threshold", "0.05", "--out", family / "again.json")[0] == 0
        assert json.loads((family / "again.json").read_text()) == found
    (family / "02-identify/a").mkdir(parents=True)
    shutil.copyfile(files[0], family / "02-identify/a/region.safetensors")
    assert call(capsys, "group", family / "02-identify", "--out", family / "one.json")[0] == 0
    assert json.loads((family / "one.json").read_text())["tasks"] == ["a"]
    assert call(capsys, "group", family / "nothing", family / "base", "--out", family / "one.json")[0] == 2
    assert {"tasks", "jaccard", "groups", "order"} <= set(found)
    assert found["tasks"] == ["a", "b", "c"]
    assert sorted(t for members in found["groups"] for t in members) == ["a", "b", "c"]
    assert sorted(found["order"]) == list(range(len(found["groups"])))
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
    before = (family / "f/model.safetensors").stat().st_mtime_ns
    again = ["--base", family / "base", "--backbone", family / "c", *tuned, *regions, "--out", family / "f"]
    assert call(capsys, "fuse", *again)[0] == 0
    assert (family / "f/model.safetensors").stat().st_mtime_ns == before, "what was done is done again"


def test_init_writes_a_recipe_that_loads_and_never_overwrites(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With a comment on every part."""
    from cpift.recipe.recipe import Recipe

    assert call(capsys, "init", tmp_path / "r.yaml")[0] == 0
    assert Recipe.load(tmp_path / "r.yaml").group.threshold == 0.1
    code, _, err = call(capsys, "init", tmp_path / "r.yaml")
    assert code == 2
    assert "exists" in err
    (tmp_path / "r.yaml").write_text("mine")
    assert call(capsys, "init", tmp_path / "r.yaml")[0] == 2
    assert (tmp_path / "r.yaml").read_text() == "mine"


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


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_run.finished_run(tmp_path_factory)


def everything(folder: Path) -> dict[str, int]:
    return {str(p): p.stat().st_mtime_ns for p in folder.rglob("*")}


def test_status_and_dry_run_say_what_is_there_and_write_nothing(
    whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every stage done; with another setting, stale and why; in a new folder, missing, and no folder is made."""
    before = everything(whole)
    code, out, err = call(capsys, "status", whole)
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert len(lines) == len(tiny_run.stamps(whole))
    assert all(line.startswith("done ") for line in lines)
    recipe = tmp_path / "r.yaml"
    recipe.write_text(yaml.safe_dump(tiny.recipe(whole.parent), sort_keys=False))
    code, out, _ = call(capsys, "run", recipe, "--out", whole, "--dry-run", "--set", "fuse.overlap=mean")
    assert code == 0
    assert "stale    05-fuse  (overlap changed)" in out
    assert "done     03-group" in out
    assert everything(whole) == before
    code, out, _ = call(capsys, "run", recipe, "--out", tmp_path / "new", "--dry-run")
    assert code == 0
    assert "missing  00-tasks/upper" in out
    assert not (tmp_path / "new").exists()


def test_a_run_that_is_done_prints_the_table_and_the_line_that_loads_the_model(
    whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every model and task; and the line does load it."""
    out = tiny_run.copy(whole, tmp_path / "out")
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(tiny.recipe(whole.parent), sort_keys=False))
    code, said, _ = call(capsys, "run", tmp_path / "r.yaml", "--out", out)
    assert code == 0
    models = json.loads((out / "scores.json").read_text())["models"]
    assert all(any(line.startswith(model) for line in said.splitlines()) for model in models)
    line = said.strip().splitlines()[-1]
    space: dict[str, Any] = {}
    exec(line, space)
    assert space["model"].num_parameters() > 0
    code, said, _ = call(capsys, "run", tmp_path / "r.yaml", "--out", out, "--until", "fuse")
    assert code == 0
    assert "05-fuse  is there, unchanged" in said
    assert "06-refine" not in said


def test_interrupted_it_says_how_to_go_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Exit code 130, as a shell has it, and no traceback."""
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(tiny.recipe(tmp_path)))

    def stop(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("cpift.runs.preflight.load_task", stop)
    code, out, err = call(capsys, "run", tmp_path / "r.yaml", "--out", tmp_path / "out")
    assert code == 130
    assert "run the same command again to resume" in out
    assert "Traceback" not in err
