"""What a command imports decides how fast it starts: counted by modules, not by the clock."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from checkpoints import write

from cpift.method.region import Region

SCRIPT = """
import atexit, json, sys
atexit.register(lambda: print(json.dumps(sorted(sys.modules))))
from cpift.cli.main import main
main()
"""
# Packages of minutes of training and scoring; none of them is needed to read checkpoints.
TRAINING = {"torch", "transformers", "trl", "peft", "accelerate", "datasets", "pyarrow", "pandas", "jinja2", "yaml"}

COMPILED = {"numba", "llvmlite", "scipy"}  # what the compiled loops take to start
# What draws bars and folds tables, and fetches models: none of it has a part in short work.
BESIDE = {"rich", "pygments", "huggingface_hub", "httpx", "asyncio", "sqlite3", "xml.etree"}

OTHERS = {f"cpift.cli.{name}" for name in ("runs", "add", "compare", "data", "evaluate", "exports", "fuse", "patch")}
"""Commands that are not called."""


def imported(*arguments: str) -> set[str]:
    """All modules that one command has imported when it ends."""
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, *arguments], capture_output=True, text=True, check=True
    )  # fmt: skip
    return set(json.loads(done.stdout.splitlines()[-1]))


@pytest.fixture
def models(tmp_path: Path) -> list[Path]:
    """A base and two fine-tuned checkpoints of a few hundred elements."""
    rng = np.random.default_rng(0)
    base = {"a.weight": rng.standard_normal((20, 30)).astype(np.float32)}
    tuned = [{"a.weight": base["a.weight"] * np.float32(1 + i / 10)} for i in (1, 2)]
    return [write(tmp_path / f"m{i}", weights) for i, weights in enumerate([base, *tuned])]


def test_identify_imports_neither_recipe_nor_training(models: list[Path], tmp_path: Path) -> None:
    """It needs checkpoints and kernels alone."""
    tuned = [f"--tuned=t{i}={place}" for i, place in enumerate(models[1:])]
    modules = imported("identify", "--base", str(models[0]), *tuned, "--out", str(tmp_path / "r"))
    assert (tmp_path / "r" / "t0.region.safetensors").is_file()
    assert not (TRAINING | COMPILED | BESIDE) & modules  # so small a model takes less time in numpy
    assert not OTHERS & modules
    assert not {"cpift.recipe", "cpift.runs", "cpift.data", "cpift.train", "cpift.report"} & modules


def test_group_does_not_even_import_the_kernels(tmp_path: Path) -> None:
    """Regions are compared by numpy; numba alone would take longer than the rest."""
    for name, positions in (("x", [1, 2, 3]), ("y", [3, 4])):
        region = Region({"a.weight": np.array(positions, np.int32)}, 600)
        region.save(tmp_path / f"{name}.region.safetensors")
    files = map(str, sorted(tmp_path.glob("*.safetensors")))
    modules = imported("group", *files, "--out", str(tmp_path / "groups.json"))
    assert json.loads((tmp_path / "groups.json").read_text())["jaccard"] == [[1.0, 0.25], [0.25, 1.0]]
    assert not (TRAINING | COMPILED | BESIDE) & modules
    assert not OTHERS & modules
    assert not {"cpift.recipe", "cpift.runs", "cpift.data", "cpift.train", "cpift.report", "cpift.metrics"} & modules


def test_fuse_imports_no_training(models: list[Path], tmp_path: Path) -> None:
    """Nothing that loads a model into memory."""
    arguments = ["fuse", "--base", str(models[0]), f"--tuned=t={models[1]}", "--out", str(tmp_path / "f")]
    modules = imported(*arguments)
    assert (tmp_path / "f" / "model.safetensors").is_file()
    assert not {"cpift.recipe", "cpift.runs", "cpift.train", "cpift.report"} & modules
    assert not TRAINING & modules - {"yaml"}  # numba, where it compiles, reads its own settings from a YAML file
    arguments[-1] += "2"
    modules = imported(*arguments)
    assert not TRAINING & modules
    assert not {"numba", "scipy", "rich"} & modules  # the first call has kept the code of its loops


def test_diff_imports_no_training(models: list[Path]) -> None:
    """Its table needs no page; only ``--html`` does."""
    modules = imported("diff", *map(str, models))
    assert not (TRAINING | COMPILED | BESIDE) & modules
    assert not OTHERS & modules
    assert not {"cpift.recipe", "cpift.runs", "cpift.data", "cpift.train", "cpift.report"} & modules


MISTAKES = [
    ({"model": "path-or-hub-id"}, "model: path-or-hub-id stands for yours; give a folder"),
    ({"tasks": {"a": {"train": "a.csv", "eval": 1}}}, "a.csv is missing; did you mean a.jsonl?"),
    ({"tasks": {"a": {"train": "b.csv", "eval": 1}}}, "b.csv is missing; paths count from the recipe's folder"),
    ({"tasks": {"a": {"train": "a.jsonl"}}}, "tasks.a: eval is missing"),
    ({"tasks": {"a": {"train": [{"path": "a.jsonl"}, {"path": "b.tsv"}], "eval": 1}}}, "b.tsv is missing"),
    ({"tasks": {"a": {"train": "a.jsonl", "eval": "b.json"}}}, "b.json is missing"),
]


COMMANDS = ["data", "plan", "run --out {0}/out", "compare --out {0}/out --methods cpi_ft"]


def test_a_mistake_in_a_recipe_is_reported_before_the_libraries_are_loaded(tmp_path: Path) -> None:
    """On a busy machine they take a minute. One process sees all mistakes, by all commands."""
    (tmp_path / "a.jsonl").write_text('{"prompt": "a", "completion": "b"}\n')
    given = {"model": "org/base", "tasks": {"a": {"train": "a.jsonl", "eval": 1}}}
    calls, expected = [], []
    for number, (changes, words) in enumerate(MISTAKES):
        (tmp_path / f"{number}.yaml").write_text(json.dumps({**given, **changes}))
        for name, *options in (command.format(tmp_path).split() for command in COMMANDS):
            calls.append([name, f"{tmp_path}/{number}.yaml", *options])
            expected.append(words)
    done = subprocess.run([sys.executable, "-c", ALL, json.dumps(calls)], capture_output=True, text=True, check=True)
    for line, words in zip(done.stderr.splitlines(), expected, strict=True):
        assert line.startswith("cpift: ")
        assert words in line
    codes, modules = json.loads(done.stdout)
    assert codes == [2] * len(calls)
    assert not (TRAINING - {"yaml"}) & set(modules)
    assert not (tmp_path / "out").exists()


ALL = """
import json, sys
from cpift.cli.main import main
codes = []
for call in json.loads(sys.argv[1]):
    sys.argv = ["cpift", *call]
    try:
        main()
    except SystemExit as end:
        codes.append(end.code)
print(json.dumps([codes, sorted(sys.modules)]))
"""
