"""compare --tune: which rows decide, how many trials each method has, and which learning rate is used."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import tiny
from tiny_run import call, one_thread

from cpift.compare import compare
from cpift.compare.jobs import Job
from cpift.compare.table import markdown
from cpift.compare.tuning import chosen, factors, held_out, scaled
from cpift.errors import CpiftError
from cpift.recipe.recipe import Recipe
from cpift.report.tuning import tuning_table


def made(folder: Path, **changes: Any) -> Recipe:
    """Two tasks of 150 rows, of which 12 are split off to evaluate; every row once, some among them alike."""
    values = tiny.recipe(folder, ("reverse", "upper"), **changes)
    for task in ("reverse", "upper"):
        values["tasks"][task] = {
            "train": str(tiny.jsonl(folder / f"{task}.jsonl", tiny.rows(task, 150, 7))),
            "eval": 12,
        }
    return Recipe.parse(values)


def prompts(file: Path) -> list[str]:
    return [json.loads(line)["messages"][0]["content"] for line in file.read_text().splitlines()]


def test_no_row_that_is_evaluated_decides(tmp_path: Path) -> None:
    """Evaluation rows as the runs of the comparison themselves have written them."""
    recipe, seeds = (
        made(tmp_path, training={"learning_rate": 1e-2, "per_device_train_batch_size": 8, "bf16": False}),
        [0, 1],
    )
    with one_thread():
        found = compare(recipe, tmp_path / "c", ["base", "multi_task"], seeds, ["paper"], tune=2, keep_models=True)
    rows = tmp_path / "c" / "tuning" / "rows"
    for task in ("reverse", "upper"):
        evaluated = {
            p
            for f in (tmp_path / "c" / "seeds").glob(f"[01]/*/*/stages/00-tasks/{task}/eval.jsonl")
            for p in prompts(f)
        }
        tuning, training = (prompts(rows / f"{task}.{part}.jsonl") for part in ("tuning", "train"))
        assert len(evaluated) > 12  # of two seeds
        assert len(tuning) == len(set(tuning)) == 12
        assert not evaluated & {*tuning, *training}
        assert not set(tuning) & set(training)
    assert set(found["tuning"]) == {"multi_task"}  # the base trains nothing
    trials = found["tuning"]["multi_task"]
    assert [float(factor) for factor in trials["scores"]] == pytest.approx([1 / 3, 1], rel=1e-3)
    # What was trained has that rate, by the record of the stage.
    (settings,) = {
        json.loads(f.read_text())["settings"]["training"]["learning_rate"]
        for f in (tmp_path / "c" / "seeds").glob("[01]/paper/multi_task*/stages/multi_task/stage.json")
    }
    assert settings == pytest.approx(1e-2 * trials["factor"])
    assert f"| `multi_task` | × {trials['factor']:.4g}" in markdown(found)
    page = (tmp_path / "c" / "report.html").read_text()
    assert all(f"{score:.3f}" in page[page.index("tuning-part") :] for score in trials["scores"].values())


def test_the_highest_score_is_taken_and_its_edge_named() -> None:
    def result(score: float) -> Any:
        return {"scores": {"t": {"metric": "exact_match", "score": score}}, "tokens": 1, "seconds": 1}

    jobs = [Job("paper", "multi_task", 3, factor) for factor in (1 / 3, 1.0, 3.0)]
    found = chosen(dict(zip(jobs, map(result, (0.2, 0.5, 0.5)), strict=True)))["multi_task"]
    assert (found["factor"], found["at_the_edge"]) == (1.0, False)  # of equal ones the lower
    found = chosen(dict(zip(jobs, map(result, (0.2, 0.5, 0.6)), strict=True)))["multi_task"]
    assert (found["factor"], found["at_the_edge"]) == (3.0, True)


def test_the_page_shows_each_trial_under_its_factor() -> None:
    """Two methods with one factor in common: no score in another's column; without tuning there is no table."""
    tuned = {
        "a": {"scores": {"0.3333": 0.25, "1.0": 0.5}, "factor": 1.0, "at_the_edge": True},
        "b": {"scores": {"1.0": 0.125}, "factor": 1.0, "at_the_edge": False},
    }
    note, table = map(str, tuning_table({"tuning": tuned}))  # type: ignore[typeddict-item]
    cells = re.findall(r"<t[dh][^>]*>(.*?)</t[dh]>", table)
    assert [re.sub(r"<[^>]*>", "", cell) for cell in cells] == [
        "method", "chosen", "× 0.3333", "× 1",
        "a", "× 1 (at the edge)", "0.250", "0.500",
        "b", "× 1", "–", "0.125",
    ]  # fmt: skip
    assert "a higher --tune" in note
    assert tuning_table({}) == []  # type: ignore[typeddict-item]


@pytest.mark.parametrize(("trials", "expected"), [(2, [1 / 3, 1]), (3, [1 / 3, 1, 3]), (4, [1 / 9, 1 / 3, 1, 3])])
def test_the_recipes_own_rate_is_a_trial(trials: int, expected: list[float]) -> None:
    assert factors(trials) == pytest.approx(expected)


def test_every_stages_rate_is_scaled(tmp_path: Path) -> None:
    recipe = made(tmp_path, training={}, refine={"examples_per_task": 4, "training": {"learning_rate": 2e-4}})
    found = scaled(recipe, 3.0)
    assert found.training["learning_rate"] == pytest.approx(3e-4)  # the default is 1e-4
    assert found.refine.training["learning_rate"] == pytest.approx(6e-4)
    assert "learning_rate" not in found.probe.training


def test_too_few_rows_are_named(tmp_path: Path) -> None:
    recipe = Recipe.parse(tiny.recipe(tmp_path))
    with pytest.raises(CpiftError, match=r"tasks.reverse: --tune needs 50 training rows .* there are 1\d;"):
        held_out(recipe, tmp_path / "rows", [0])


def test_rows_of_a_benchmark_do_not_decide(tmp_path: Path) -> None:
    values = tiny.recipe(tmp_path, ("reverse", "upper"))
    del values["tasks"]["upper"]["eval"]
    values["tasks"]["upper"]["metric"] = "lm_eval:anything"
    with pytest.raises(CpiftError, match=r"tasks.upper.metric: --tune .* lm_eval:anything has rows of its own"):
        held_out(Recipe.parse({**values, "tasks": {"upper": values["tasks"]["upper"]}}), tmp_path / "rows", [0])


@pytest.mark.parametrize(("options", "line"), [
    (["--tune", "1"], "--tune 1: give the number of learning rates that each method tries, 2 or more"),
    (["--tune", "3", "--budget", "paper", "incremental"], "--tune: give one --budget"),
])  # fmt: skip
def test_bad_options(options: list[str], line: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text(made(tmp_path).dump())
    code, _, errors = call(capsys, "compare", file, "--out", tmp_path / "c", "--methods", "multi_task", *options)
    assert code == 2
    assert line in errors
    assert not (tmp_path / "c" / "tuning").exists()
