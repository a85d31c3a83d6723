"""What is published: every file of raw outcomes has its command, and the command stands for just what the file holds."""

from __future__ import annotations

import argparse
import gzip
import json
import os
import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from cpift.cli_options import overrides
from cpift.compare.jobs import jobs_of, overrides_of
from cpift.recipe import Recipe

ROOT = Path(__file__).parents[1]
RAW = ROOT / "docs" / "results"
COMMANDS = dict(re.findall(r"^## (\S+)\n\n```sh\n(.*?)```", (RAW / "README.md").read_text(), re.M | re.S))


def raw(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(gzip.decompress((RAW / f"{name}.comparison.json.gz").read_bytes()))
    return found


def asked(name: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser(exit_on_error=False)
    parser.add_argument("recipe")
    parser.add_argument("--out")
    parser.add_argument("--set", action="append", default=[])
    parser.add_argument("--reference", default="cpi_ft")
    parser.add_argument("--seeds", nargs="+", type=int)
    parser.add_argument("--budget", nargs="+", default=["equal_tokens"])
    parser.add_argument("--methods", nargs="+")
    words = shlex.split(COMMANDS[name].replace("\\\n", " "))
    assert words[:2] == ["cpift", "compare"]
    return parser.parse_args(words[2:])


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
def test_the_command_makes_what_the_file_holds(name: str) -> None:
    """The same recipe, methods, seeds, budgets, and a setting that each variant's name gives."""
    found, told = raw(name), asked(name)
    assert (found["reference"], found["seeds"], found["state"]) == (told.reference, told.seeds, "done")
    jobs = {(job.budget, job.method, job.seed) for job in jobs_of(told.methods, told.seeds, told.budget)}
    assert jobs == {
        (b, m, int(s)) for b, methods in found["budgets"].items() for m, seeds in methods.items() for s in seeds
    }
    recipe = Recipe.load(ROOT / told.recipe, overrides(told.set))
    for method in told.methods:
        recipe.changed(overrides_of(method))
    assert placed(Recipe.parse(found["recipe"]).model_dump(by_alias=True)) == placed(recipe.model_dump(by_alias=True))


@pytest.mark.parametrize("name", COMMANDS)
def test_equal_tokens_are_equal(name: str) -> None:
    """Each method's mean, as in the table, within 2 % of what CPI-FT saw; each seed within 3 %."""
    found = raw(name)
    methods = found["budgets"].get("equal_tokens", {}) if "cpi_ft" in found["budgets"].get("equal_tokens", {}) else {}
    for method in methods.keys() - {"base"}:
        seen = {seed: result["tokens"] for seed, result in methods[method].items()}
        wanted = {seed: methods["cpi_ft"][seed]["tokens"] for seed in seen}
        assert sum(seen.values()) == pytest.approx(sum(wanted.values()), rel=0.02), method
        assert seen == pytest.approx(wanted, rel=0.03), method
