"""What is published: every file of raw outcomes has its command, and the command stands for just what the file holds."""

from __future__ import annotations

import gzip
import importlib.util
import json
import os
import re
import shlex
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from scipy.stats import ttest_1samp
from tiny_run import call

from cpift.compare.jobs import jobs_of, overrides_of
from cpift.recipe.recipe import Recipe

ROOT = Path(__file__).parents[1]
RAW = ROOT / "docs" / "results"
COMMANDS = dict(re.findall(r"^## (\S+)\n\n```sh\n(.*?)```", (RAW / "outcomes.md").read_text(), re.M | re.S))
WAS_DEFAULT = {"train_sampling_strategy": "group_by_length"}  # when these were made; the recipes write it out now


class Asked(NamedTuple):
    recipe: Recipe
    methods: list[str]
    seeds: list[int]
    budgets: list[str]
    reference: str


@cache
def raw(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(gzip.decompress((RAW / f"{name}.comparison.json.gz").read_bytes()))
    return found


def asked(name: str, capsys: pytest.CaptureFixture[str]) -> Asked:
    """What the command line makes of the command."""
    words, seen = shlex.split(COMMANDS[name].replace("\\\n", " ")), list[Asked]()

    def kept(recipe: Recipe, out: Path, methods: Any, seeds: Any, budgets: Any, *, reference: str, **_: Any) -> Any:
        seen.append(Asked(recipe, methods, seeds, budgets, reference))
        return raw(name)

    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        patch.setattr("cpift.compare.compare", kept)
        patch.setattr("cpift.data.presence.check_presence", lambda recipe: None)  # rows are made, and not committed
        assert words[0] == "cpift"
        assert call(capsys, *words[1:])[0] == 0
    return seen[0]


def placed(value: Any) -> Any:
    """Paths from the checkout, as in the files."""
    if isinstance(value, dict):
        return {key: placed(inner) for key, inner in value.items()}
    if isinstance(value, str) and "/" in value:
        return os.path.relpath(value, ROOT) if os.path.isabs(value) else os.path.normpath(value)
    return value


def test_every_file_has_its_command() -> None:
    assert set(COMMANDS) == {file.name.partition(".comparison")[0] for file in RAW.glob("*.comparison.json.gz")}


@pytest.mark.parametrize("name", COMMANDS)
def test_the_command_makes_what_the_file_holds(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The same recipe, methods, seeds, budgets, and a setting that each variant's name gives."""
    found, told = raw(name), asked(name, capsys)
    assert (found["reference"], found["seeds"], found["state"]) == (told.reference, told.seeds, "done")
    jobs = {(job.budget, job.method, job.seed) for job in jobs_of(told.methods, told.seeds, told.budgets)}
    assert jobs == {
        (b, m, int(s)) for b, methods in found["budgets"].items() for m, seeds in methods.items() for s in seeds
    }
    for method in told.methods:
        told.recipe.changed(overrides_of(method))
    then = Recipe.parse({**found["recipe"], "training": {**WAS_DEFAULT, **found["recipe"]["training"]}})
    assert placed(then.model_dump(by_alias=True)) == placed(told.recipe.model_dump(by_alias=True))


@pytest.mark.parametrize("name", COMMANDS)
def test_equal_tokens_are_equal(name: str) -> None:
    """Each method's mean, as in the table, within 2 % of what CPI-FT saw (multi-task SFT, where it is not there); each
    seed within 3 %."""
    methods = raw(name)["budgets"].get("equal_tokens", {})
    for method in methods.keys() - {"base"}:
        seen = {seed: result["tokens"] for seed, result in methods[method].items()}
        wanted = {seed: result["tokens"] for seed, result in methods.get("cpi_ft", methods["multi_task"]).items()}
        assert sum(seen.values()) == pytest.approx(sum(wanted.values()), rel=0.02), method
        assert seen == pytest.approx(wanted, rel=0.03), method


@pytest.mark.parametrize("name", ["arrivals", "reversed"])
def test_gains_at_arrivals_of_two_methods(name: str) -> None:
    """benchmarks/differences.py and a plain numpy mean over every old (or the new) task at every arrival."""
    spec = importlib.util.spec_from_file_location("differences", ROOT / "benchmarks" / "differences.py")
    assert spec is not None
    assert spec.loader is not None
    differences = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(differences)
    methods = raw(name)["budgets"]["incremental"]
    first, second = methods["cpi_ft_sequential:fuse.weight=0.75"], methods["sequential_replay"]

    def mean(results: Any, old: bool) -> Any:
        seeds = []
        for result in results.values():
            arrivals = result["arrivals"]
            order = [a["task"] for a in arrivals]
            table = np.array(
                [[np.mean(a["items"][task]) for task in order] for a in arrivals]
            )  # after arrival, of task
            gain = np.diff(table, axis=0)
            counted = np.tri(*gain.shape, dtype=bool) if old else np.eye(*gain.shape, k=1, dtype=bool)
            seeds.append(gain[counted].mean())
        return np.mean(seeds)

    for old in (True, False):
        found = differences.gained(first, second, old)
        assert found["difference"] == pytest.approx(mean(first, old) - mean(second, old), abs=1e-12)
        assert found["low"] < found["difference"] < found["high"]


@pytest.mark.parametrize(("name", "budget", "method"), [
    ("arrivals", "incremental", "multi_task"),
    ("generated", "equal_tokens", "ties"),
])  # fmt: skip
def test_the_archive_has_intervals_over_seeds(name: str, budget: str, method: str) -> None:
    """Mean over tasks of the items' means, a seed at a time, and scipy's interval."""
    data = raw(name)
    methods = data["budgets"][budget]

    def means(which: str) -> Any:
        return [np.mean([np.mean(s["items"]) for s in r["scores"].values()]) for r in methods[which].values()]

    gaps = 100 * (np.array(means(method)) - np.array(means(data["reference"])))
    low, high = ttest_1samp(gaps, 0).confidence_interval()
    section = (RAW / "archive-tables.md").read_text().split(f"\n## {name}\n")[1].split("\n## ")[0]
    part = section.split(f"**{budget}**")[1].split("\n**")[0]
    (row,) = (line for line in part.splitlines() if line.startswith(f"| `{method}` |") and "…" in line and "–" in line)
    assert f"{gaps.mean():+.1f} ({low:+.1f} … {high:+.1f})" in row
