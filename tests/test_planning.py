"""What ``plan`` counts is what the run then does; what it measures covers every kind of work."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tiny
import tiny_run

from cpift.data.encoding import Encoded
from cpift.errors import CpiftError
from cpift.planning import trial
from cpift.planning.plan import plan
from cpift.recipe.recipe import Recipe

SOURCES: list[dict[str, Any]] = [
    {},
    {"refine": {"examples_per_task": 5, "data": "mixed", "epochs": 2}},
    {"backbone": "multi_task", "probe": {"steps": "auto"}},
    {"backbone": "pretrained"},
]


@pytest.mark.parametrize("changes", SOURCES, ids=["plain", "mixed", "multi-task", "no backbone"])
def test_the_steps_are_those_of_the_run(tmp_path: Path, changes: dict[str, Any]) -> None:
    """Of each part, from the stages that the run would make with every task a group of its own."""
    from cpift.runs.executor import Runner
    from cpift.runs.stage import Run
    from cpift.runs.stages.graph import first_stages, last_stages, middle_stages

    recipe = Recipe.parse(tiny.recipe(tmp_path, **changes))
    current = Run(recipe, tmp_path / "out")
    Runner(current).make(first_stages(current))
    current.groups = lambda: [[task] for task in recipe.tasks]  # type: ignore[method-assign]
    stages = [*middle_stages(current), *last_stages(current)]
    told = plan(recipe)
    for kind in ("probe", "backbone", "refine"):
        trained = [s for s in stages if s.trains and s.kind == kind]
        parts = [p for p in told["stages"] if p["stage"].startswith(kind)]
        assert sum(p["steps"] for p in parts) == sum(s.settings["steps"] for s in trained), kind
        assert sum(p["stages"] for p in parts) == len(trained), kind
    few = [text for text in told["warnings"] if text.startswith("probe.steps: auto is one pass over the rows")]
    assert len(few) == (recipe.probe.steps == "auto" and told["stages"][0]["steps"] < 10)
    assert told["checkpoints"] == sum(s.writes_model for s in stages)
    assert told["evaluated_models"] == len({s.together for s in stages if s.together.startswith("evaluate/")})


@pytest.mark.parametrize("by_length", [True, False])
def test_the_trial_has_the_longest_rows_and_all_tasks(by_length: bool) -> None:
    """The longest of all first and last, between them batches of each task in turn, grouped by length as in a training."""
    rows = {"a": [Encoded([1] * n, [1] * n) for n in range(2, 50)], "b": [Encoded([1] * 50, [1] * 50)]}
    drawn = trial.sample(rows, 4, by_length)
    assert len(drawn) == 4 * trial.STEPS
    batches = [[len(row.input_ids) for row in drawn[i : i + 4]] for i in range(0, len(drawn), 4)]
    assert batches[0] == batches[-1] == [50, 49, 48, 47]
    assert all(set(batch) == {50} for batch in batches[2:-1:2])
    padded, real = sum(4 * max(b) for b in batches[1:-1:2]), sum(map(sum, batches[1:-1:2]))
    assert (padded < 1.35 * real) == by_length  # 12 rows are sorted at a time; at random about half is padding


def test_the_measured_plan(tmp_path: Path) -> None:
    """Every kind of work has its seconds; the whole is their sum; generated answers are timed; nothing is left behind."""
    data = tiny.recipe(tmp_path, ("reverse", "upper"))
    data["tasks"]["upper"] |= {"metric": "generate", "max_new_tokens": 4}
    with tiny_run.one_thread():
        told = plan(Recipe.parse(data), measure=True, gpus=2)
    found = told["measured"]
    assert all(value > 0 for key, value in found.items() if key != "row_seconds"), found
    assert set(found["row_seconds"]) == {"reverse", "upper"}
    assert [p["stage"] for p in told["stages"]] == [
        "probe reverse",
        "probe upper",
        "backbone",
        "refine",
        "identify",
        "fuse",
    ]
    whole = sum(p["seconds"] for p in told["stages"]) + told["evaluate_seconds"] + told["other_seconds"]
    assert told["seconds"] == pytest.approx(whole)
    probe = told["stages"][0]
    assert probe["seconds"] == pytest.approx(
        probe["tokens"] / found["train_tokens_per_second"] + found["train_overhead_seconds"] + found["finish_seconds"]
    )
    one = found["load_seconds"] + 6 * (found["row_seconds"]["reverse"] + found["row_seconds"]["upper"])
    assert told["evaluate_seconds"] == pytest.approx(7 * (one + found["guard_seconds"]))
    assert told["memory"] == max(value for key, value in found.items() if key.endswith("_peak"))
    assert told["gpus"]["training"]["FSDP2"]["weights"] == 2 * told["parameters"]
    assert {p.name for p in tmp_path.iterdir() if p.is_dir()} == {"base"}
    json.dumps(told)


def test_a_number_of_gpus(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Both shardings, scoring, cards; without the option, as before; nonsense is refused."""
    recipe = tmp_path / "r.yaml"
    recipe.write_text(json.dumps(tiny.recipe(tmp_path)))
    code, out, _ = tiny_run.call(capsys, "plan", recipe, "--gpus", 2)
    assert code == 0
    assert "on 2 GPUs, each:" in out
    assert all(word in out for word in ("data parallel", "FSDP2", "scoring", "fits a card of 24 or 40 or 80 GB"))
    code, out, _ = tiny_run.call(capsys, "plan", recipe)
    assert code == 0
    assert "GPU" not in out
    assert tiny_run.call(capsys, "plan", recipe, "--gpus", 3)[0] == 2
    with pytest.raises(CpiftError, match="--gpus 0: is no number of GPUs"):
        plan(Recipe.load(recipe), gpus=0)


@pytest.mark.parametrize(
    ("saving", "lying"), [({}, 0), ({"save_steps": 2}, 2), ({"save_steps": 2, "save_strategy": "no"}, 0)]
)
def test_the_trainers_own_checkpoints_take_room(tmp_path: Path, saving: dict[str, Any], lying: int) -> None:
    """Weights and moments, twice while a new one is written; none where a stage is shorter than save_steps."""
    data = tiny.recipe(tmp_path)
    plain, told = plan(Recipe.parse(data)), plan(Recipe.parse({**data, "training": data["training"] | saving}))
    assert told["disk"] == plain["disk"] + lying * 12 * told["parameters"]
