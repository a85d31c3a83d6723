"""Whole runs of a tiny model: what is left, what is frozen, and the settings that are not the paper's."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import tiny_run
from tiny_run import Listener, copy, same, stamps, weights

from cpift.files import manifest
from cpift.method.region import Region
from cpift.recipe.recipe import Recipe
from cpift.runs.pipeline import run
from cpift.runs.status import stage_states
from cpift.train.fine_tune import fine_tune


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    with tiny_run.one_thread():
        yield


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of three tasks."""
    return tiny_run.finished_run(tmp_path_factory)


@pytest.fixture(scope="module")
def place(whole: Path) -> Path:
    """Where its base and data are."""
    return whole.parent


MODELS = [
    "base",
    "probe/reverse",
    "probe/upper",
    "probe/double",
    "backbone",
    "fused",
    "refine/1",
    "refine/2",
    "refine/3",
]


def test_the_run_folder_is_as_documented(whole: Path) -> None:
    """Stages, resolved recipe, scores of every model, a model that loads, nothing half-made."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    assert {p.name for p in whole.iterdir() if not p.name.startswith(".")} >= {
        "recipe.yaml", "stages", "model", "scores.json", "log.jsonl",
    }  # fmt: skip
    assert Recipe.load(whole / "recipe.yaml").group.threshold == 0.9
    scores = json.loads((whole / "scores.json").read_text())
    assert list(scores["models"]) == MODELS
    assert all(len(s["items"]) == 6 for row in scores["models"].values() for s in row.values())
    assert scores["summary"]["probe/upper"]["below_specialist"] >= 0
    AutoModelForCausalLM.from_pretrained(whole / "model")
    assert AutoTokenizer.from_pretrained(whole / "model").chat_template
    assert same(whole / "model", whole / "stages/06-refine/3")
    card = (whole / "model/README.md").read_text()
    assert card.startswith("---\nlibrary_name: transformers")
    assert not list(whole.rglob("*.partial"))
    assert tiny_run.whole_stages_only(whole)
    for stage in stamps(whole):
        made = json.loads((whole / "stages" / stage / "stage.json").read_text())
        assert {"seconds", "peak_memory", "seed", "versions"} <= set(made["facts"]), stage
        assert made["outputs"], stage
    logged = [json.loads(line) for line in (whole / "log.jsonl").read_text().splitlines()]
    assert {event.get("stage") for event in logged} >= set(stamps(whole))


def test_probes_have_equal_budgets_and_start_from_the_base(whole: Path) -> None:
    """Steps and start of each; the backbone's stages go on from one another."""
    made = {
        stage: json.loads((whole / "stages" / stage / "stage.json").read_text())
        for stage in stamps(whole)
        if stage.startswith(("01", "04"))
    }
    assert [made[f"01-probe/{t}"]["facts"]["steps"] for t in ("reverse", "upper", "double")] == [3, 3, 3]
    assert len({made[f"01-probe/{t}"]["settings"]["base"] for t in ("reverse", "upper", "double")}) == 1
    assert "04-backbone/1" in made["04-backbone/2"]["needs"]
    assert "base" in made["04-backbone/1"]["settings"]


def test_the_cores_of_earlier_groups_are_frozen(whole: Path) -> None:
    """From the end of a group's own stage its core keeps its bits to the end, in every stage; what is free moves."""
    found = json.loads((whole / "stages/03-group/groups.json").read_text())
    groups = [found["groups"][i] for i in found["order"]]
    assert len(groups) == 3, "the recipe's threshold makes each task a group"
    stages = [weights(whole / f"stages/06-refine/{k}") for k in (1, 2, 3)]
    fused = weights(whole / "stages/05-fuse")
    frozen: dict[str, set[int]] = {}
    moved_before = 0
    for k, members in enumerate(groups[:-1]):
        for task in members:
            region = Region.load(whole / f"stages/02-identify/{task}/region.safetensors")
            for name, positions in region.positions.items():
                frozen.setdefault(name, set()).update(positions.tolist())
                moved_before += int((fused[name][positions] != stages[k][name][positions]).sum())
                for later in stages[k + 1 :]:
                    assert np.array_equal(stages[k][name][positions], later[name][positions]), (task, name)
        facts = json.loads((whole / f"stages/06-refine/{k + 2}/stage.json").read_text())["facts"]
        assert facts["frozen"] == sum(map(len, frozen.values()))
        assert facts["frozen_changed"] == 0
        free = {n: np.setdiff1d(np.arange(w.size), list(frozen.get(n, ()))) for n, w in stages[k].items()}
        moved = sum(int((stages[k][n][free[n]] != stages[k + 1][n][free[n]]).sum()) for n in free)
        assert moved > 0.5 * sum(map(len, free.values())), "what is free must move"
    assert moved_before, "a group's core moves in its own stage"


def test_with_freeze_off_the_cores_move(whole: Path, place: Path, tmp_path: Path) -> None:
    """The control of the test above."""
    out = copy(whole, tmp_path / "free", ("06-refine", "07-evaluate"))
    run(Recipe.parse(tiny.recipe(place, refine={"examples_per_task": 4, "freeze": False})), out, until="refine")
    first = json.loads((out / "stages/03-group/groups.json").read_text())
    task = first["groups"][first["order"][0]][0]
    region = Region.load(out / f"stages/02-identify/{task}/region.safetensors")
    a, b = weights(out / "stages/06-refine/1"), weights(out / "stages/06-refine/3")
    assert any((a[n][p] != b[n][p]).any() for n, p in region.positions.items())


def test_one_group_is_multi_task_and_freezes_nothing(whole: Path, place: Path, tmp_path: Path) -> None:
    """With τ = 0, and it is said; stages of the groups that were are no part of the result."""
    out, listener = copy(whole, tmp_path / "out"), Listener()
    result = run(Recipe.parse(tiny.recipe(place, group={"threshold": 0.0})), out, reporter=listener)
    assert any("refining freezes nothing" in text for text in listener.said)
    assert [found["code"] for found in result["findings"] if found["stage"] == "03-group"] == ["one-group"]
    assert [s for s in listener.made if s.startswith(("04", "06"))] == ["04-backbone/1", "06-refine/1"]
    assert list(result["models"]) == [*MODELS[:6], "refine/1"]
    assert same(out / "model", out / "stages/06-refine/1")
    assert json.loads((out / "stages/06-refine/1/stage.json").read_text())["facts"]["frozen"] == 0


VARIANTS: dict[str, dict[str, Any]] = {
    "pretrained": {"backbone": "pretrained", "fuse": {"space": "updates"}},
    "multi_task": {"backbone": "multi_task"},
    "a checkpoint": {"backbone": "CHECKPOINT"},
    "karcher, whole model, mean": {"fuse": {"interpolation": "karcher", "vector": "model", "overlap": "mean"}},
}


@pytest.mark.parametrize("name", VARIANTS)
def test_backbones_and_fusions(whole: Path, place: Path, tmp_path: Path, name: str) -> None:
    """Each gives another fused model, from the probes that are there; the numpy reading of it is tested elsewhere."""
    changes = {k: str(whole / "model") if v == "CHECKPOINT" else v for k, v in VARIANTS[name].items()}
    out, listener = copy(whole, tmp_path / "out", ("06-refine", "07-evaluate")), Listener()
    assert run(Recipe.parse(tiny.recipe(place, **changes)), out, until="fuse", reporter=listener) == {}
    expected = ["05-fuse"] if name != "multi_task" else ["04-backbone/1", "05-fuse"]
    assert listener.made == expected
    assert not same(out / "stages/05-fuse", whole / "stages/05-fuse")
    assert not (out / "model").exists()


def test_a_backbone_longer_than_the_probes(whole: Path, place: Path, tmp_path: Path) -> None:
    """Two passes over all rows, in batches of four, whatever the probes' steps."""
    out = copy(whole, tmp_path / "out", ("05-fuse", "06-refine", "07-evaluate"))
    recipe = Recipe.parse(tiny.recipe(place, backbone={"from": "multi_task", "epochs": 2}))
    run(recipe, out, until="backbone")
    rows = sum(manifest.read(out / "stages/00-tasks" / t).facts["train_rows"] for t in recipe.tasks)  # type: ignore[union-attr]
    assert manifest.read(out / "stages/04-backbone/1").facts["steps"] == -(-2 * rows // 4)  # type: ignore[union-attr]


def test_scores_of_a_pretrained_backbone(whole: Path, place: Path, tmp_path: Path) -> None:
    """It is the base, and has no row of its own."""
    out = copy(whole, tmp_path / "out", ("06-refine",))
    result = run(Recipe.parse(tiny.recipe(place, backbone="pretrained")), out)
    assert list(result["models"]) == [m for m in MODELS if m != "backbone"]


def test_given_groups_and_their_order(whole: Path, place: Path, tmp_path: Path) -> None:
    """As lists of lists: stages in that order, tasks of a group together."""
    out, listener = copy(whole, tmp_path / "out", ("06-refine", "07-evaluate")), Listener()
    order = [["double"], ["reverse", "upper"]]
    run(Recipe.parse(tiny.recipe(place, group={"order": order})), out, until="refine", reporter=listener)
    assert [s for s in listener.made if s.startswith(("04", "06"))] == [
        "04-backbone/1", "04-backbone/2", "06-refine/1", "06-refine/2",
    ]  # fmt: skip
    made = [json.loads((out / f"stages/06-refine/{k}/stage.json").read_text()) for k in (1, 2)]
    assert [m["settings"]["tasks"] for m in made] == order
    assert made[1]["facts"]["frozen"] == Region.load(out / "stages/02-identify/double/region.safetensors").count


def test_refining_on_a_mixture(whole: Path, place: Path, tmp_path: Path) -> None:
    """Each stage sees rows of all tasks; where a task has fewer than asked, all, and it is said."""
    out, listener = copy(whole, tmp_path / "out", ("06-refine", "07-evaluate")), Listener()
    mixed = {"examples_per_task": 99, "data": "mixed"}
    run(Recipe.parse(tiny.recipe(place, refine=mixed)), out, until="refine", reporter=listener)
    assert any("16 training rows, fewer than examples_per_task 99" in text for text in listener.said)
    for k in (1, 2, 3):
        made = json.loads((out / f"stages/06-refine/{k}/stage.json").read_text())
        assert made["settings"]["tasks"] == ["reverse", "upper", "double"]
        assert made["facts"]["rows"] == 48
    assert made["facts"]["frozen"] > 0


def test_refining_on_other_rows_in_each_stage(whole: Path, place: Path, tmp_path: Path) -> None:
    """Of 16 rows four stages of 4 see each once; here are three. The first sees what it saw without."""
    out = copy(whole, tmp_path / "out", ("06-refine", "07-evaluate"))
    seen: list[list[Any]] = []

    def kept(model: Any, rows: Any, *more: Any, **options: Any) -> Any:
        seen.append([tuple(row.input_ids) for row in rows])
        return fine_tune(model, rows, *more, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("cpift.runs.stages.train.fine_tune", kept)
        for resample in (False, True):
            mixed = {"examples_per_task": 4, "data": "mixed", "resample": resample}
            run(Recipe.parse(tiny.recipe(place, refine=mixed)), out, until="refine")
    same, other = seen[:3], [seen[0], *seen[3:]]
    assert len(seen) == 5, "the first stage is not made again"
    assert same[0] == same[1] == same[2]
    assert all(len(rows) == 12 for rows in other)
    rows = [row for stage in other for row in stage]
    assert len(set(rows)) == len(rows)


def test_until_stops_after_a_stage_and_goes_on_later(whole: Path, place: Path, tmp_path: Path) -> None:
    """Neither model nor scores before the end."""
    out = copy(whole, tmp_path / "out", ("02*", "03*", "04*", "05*", "06*", "07*"))
    recipe, listener = Recipe.parse(tiny.recipe(place)), Listener()
    assert run(recipe, out, until="identify", reporter=listener) == {}
    assert {s.split("/")[0] for s in stamps(out)} == {"00-tasks", "01-probe", "02-identify"}
    assert {s.name: s.state for s in stage_states(recipe, out)}["03-group"] == "missing"
    listener = Listener()
    run(recipe, out, until="group", reporter=listener)
    assert listener.made == ["03-group"]
    assert not (out / "scores.json").exists()


def test_auto_steps_are_settled_once(place: Path, tmp_path: Path) -> None:
    """A task of another size, added later, gets the budget of the earlier ones."""
    data = tiny.recipe(place, ("reverse", "upper"), probe={"steps": "auto"})
    run(Recipe.parse(data), tmp_path / "out", until="probe")
    more = tiny.recipe(place, ("reverse", "upper", "double"), probe={"steps": "auto"})
    more["tasks"]["double"]["train"] = str(tiny.jsonl(tmp_path / "big.jsonl", tiny.rows("double", 60, 3)))
    listener = Listener()
    run(Recipe.parse(more), tmp_path / "out", until="probe", reporter=listener)
    assert [s for s in listener.made if s.startswith("01")] == ["01-probe/double"]
    assert any("stays at 4" in text for text in listener.said)
