"""``cpift add`` and ``arrivals``: what is protected keeps every bit, the rest is averaged, and the next addition goes on."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
import zoo
from tiny_add import TRAINING, arrivals, changed, models, region, values
from tiny_run import Listener, call, one_thread
from transformers import AutoModelForCausalLM

from cpift.console.reporter import Reporter
from cpift.data.encoding import encode
from cpift.errors import CpiftError
from cpift.files import manifest
from cpift.method.apply_patch import apply_patches, remove_patches
from cpift.method.patch import Patch
from cpift.method.region import Region
from cpift.planning.plan import plan
from cpift.recipe.recipe import Recipe
from cpift.report import make_report
from cpift.report.arrivals import summary_lines
from cpift.runs.alternatives import ALTERNATIVES, compare_additions
from cpift.runs.arrival_rows import arrival_steps, replayed_rows
from cpift.runs.make import make
from cpift.runs.pipeline import run
from cpift.runs.stage import Run
from cpift.runs.stages.arrivals import arrival_stages
from cpift.runs.stages.graph import first_stages
from cpift.runs.status import stage_states
from cpift.train.models import load_tokenizer


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``base``, and ``mine``: another model in bf16 that was made from it."""
    return models(tmp_path_factory.mktemp("add"))


@pytest.fixture(scope="module")
def two(place: Path) -> Path:
    """Two arrivals, one kept task."""
    with one_thread():
        run(Recipe.parse(arrivals(place, ["upper", "double"], ["reverse"])), place / "two")
    return place / "two"


def test_protected_positions_keep_every_bit_over_all_arrivals(place: Path, two: Path) -> None:
    before, after = values(place / "mine"), values(two / "model")
    held = region(two / "stages/03-protect")
    assert sum(map(len, held.values())) == int(0.05 * sum(v.numel() for v in before.values()))
    for name, positions in held.items():
        at = torch.from_numpy(positions.astype(np.int64))
        assert torch.equal(after[name][at].view(torch.int16), before[name][at].view(torch.int16)), name
    assert any(not torch.equal(after[n], before[n]) for n in before)


def test_the_core_of_an_arrival_keeps_every_bit_in_the_next(two: Path) -> None:
    first, last = values(two / "stages/04-arrive/1/fuse"), values(two / "model")
    trained = values(two / "stages/04-arrive/1/train")
    for name, positions in region(two / "stages/04-arrive/1/identify").items():
        at = torch.from_numpy(positions.astype(np.int64))
        assert torch.equal(last[name][at], first[name][at]), name
        assert torch.equal(first[name][at], trained[name][at].to(torch.bfloat16)), name  # transplanted


def test_all_else_is_the_weighted_mean_of_both_models(place: Path, two: Path) -> None:
    before, trained = values(place / "mine"), values(two / "stages/04-arrive/1/train")
    fused = values(two / "stages/04-arrive/1/fuse")
    core, held = region(two / "stages/04-arrive/1/identify"), region(two / "stages/03-protect")
    for name, tensor in fused.items():
        free = np.ones(tensor.numel(), bool)
        for positions in (core.get(name), held.get(name)):
            if positions is not None:
                free[positions] = False
        expected = 0.25 * before[name].double() + 0.75 * trained[name].double()
        error = (tensor.double() - expected).abs()[torch.from_numpy(free)]
        assert (error <= 2**-8 * expected.abs()[torch.from_numpy(free)]).all(), name  # rounded to bf16 once


def test_the_result_has_the_models_dtype_and_carries_its_regions(two: Path) -> None:
    assert {tensor.dtype for tensor in values(two / "model").values()} == {torch.bfloat16}
    assert sorted(f.name for f in (two / "model/cpift_regions").iterdir()) == [
        "_protected.region.safetensors", "double.region.safetensors", "upper.region.safetensors",
    ]  # fmt: skip


def test_the_report_begins_with_what_was_gained_and_lost(two: Path) -> None:
    result = json.loads((two / "scores.json").read_text())
    guard = ["neutral text", "general questions"]
    assert [c["task"] for c in result["changes"]] == ["reverse", "upper", "double", *guard]
    assert [c["task"] for c in result["changes"] if c["guard"]] == guard
    drift = result["guard"]["models"]["arrival/2"]["drift"]["kl"]
    assert list(result["models"]) == ["before", "arrival/1", "arrival/2"]
    page = (two / "report.html").read_text()
    headline = page[page.index("<h1>") : page.index("</h1>")]
    for name in ("upper", "double", "reverse", "general ability", *guard, f"drift: {drift:.3f}"):
        assert name in headline
    assert f"drift: {drift:.3f} nats a token" in summary_lines(result)[0], "the first sentence on the terminal"
    assert f"drift: {drift:.3f} nats a token" in (two / "model/README.md").read_text()


def test_a_finished_run_is_not_made_again(place: Path, two: Path) -> None:
    watch = Listener()
    run(Recipe.parse(arrivals(place, ["upper", "double"], ["reverse"])), two, reporter=watch)
    assert not watch.made
    assert watch.kept


def test_the_status_lists_the_stages_of_arrivals(place: Path, two: Path) -> None:
    states = stage_states(Recipe.parse(arrivals(place, ["upper", "double"], ["reverse"])), two)
    assert {state.state for state in states} == {"done"}
    assert "04-arrive/2/fuse" in {state.name for state in states}


def test_the_next_addition_protects_what_the_model_carries(
    place: Path, two: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = tiny.jsonl(place / "first.jsonl", tiny.rows("first", 20, 0))
    options = [option for key, value in TRAINING.items() for option in ("--set", f"training.{key}={value}")]
    with one_thread():
        code, out, err = call(
            capsys, "add", "--model", two, "--task", f"first={rows}", "--out", place / "three", *options
        )
    assert code == 0, err
    assert "first" in out.splitlines()[-8] or "New: first" in out
    carried = [Region.load(f).positions for f in sorted((two / "model/cpift_regions").iterdir())]
    before, after = values(two / "model"), values(place / "three/model")
    for positions in carried:
        for name, where in positions.items():
            at = torch.from_numpy(where.astype(np.int64))
            assert torch.equal(after[name][at].view(torch.int16), before[name][at].view(torch.int16)), name
    assert "first.region.safetensors" in {f.name for f in (place / "three/model/cpift_regions").iterdir()}
    assert "upper.region.safetensors" in {f.name for f in (place / "three/model/cpift_regions").iterdir()}


def test_a_task_added_again_keeps_the_core_of_its_first_addition(place: Path, two: Path) -> None:
    recipe = arrivals(place, ["upper"], []) | {"model": str(two / "model"), "base": None}
    with one_thread():
        run(Recipe.parse(recipe), place / "twice")
    first = Region.load(two / "model/cpift_regions/upper.region.safetensors").positions
    second = region(place / "twice/stages/04-arrive/1/identify")
    carried = Region.load(place / "twice/model/cpift_regions/upper.region.safetensors").positions
    for part in (first, second):
        assert all(np.isin(at, carried[name]).all() for name, at in part.items())


def test_regions_of_another_model_are_refused_before_anything_is_written(two: Path, tmp_path: Path) -> None:
    tiny.base(tmp_path / "mine", hidden_size=64)
    shutil.copytree(two / "model/cpift_regions", tmp_path / "mine/cpift_regions")
    with pytest.raises(CpiftError, match="is of another model") as error:
        run(Recipe.parse(arrivals(tmp_path, ["upper"], []) | {"base": None}), tmp_path / "out")
    assert len(str(error.value).splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_until_ends_before_what_needs_a_later_stage(place: Path) -> None:
    watch = Listener()
    with one_thread():
        run(Recipe.parse(arrivals(place, ["upper"], [])), place / "until", until="identify", reporter=watch)
    assert watch.made == ["00-tasks/upper", "03-protect"]
    assert make_report(place / "until")


def test_no_old_row_at_all_is_a_case_like_any_other(place: Path) -> None:
    recipe = arrivals(place, ["upper", "double"], [], protect={"average": 1.0, "freeze": False})
    recipe["arrivals"]["examples_per_task"] = 0
    with one_thread():
        run(Recipe.parse(recipe), place / "none")
    trained = json.loads((place / "none/stages/04-arrive/2/train/stage.json").read_text())
    assert "replay" not in trained["settings"]
    assert trained["facts"]["rows"] == 12
    core = region(place / "none/stages/04-arrive/2/identify")
    assert sum(map(len, core.values()))
    fused, last = values(place / "none/model"), values(place / "none/stages/04-arrive/2/train")
    assert all(torch.equal(fused[n], last[n].to(torch.bfloat16)) for n in fused)  # average 1: the trained model
    first = region(
        place / "none/stages/04-arrive/1/identify"
    )  # nothing is frozen, so the next arrival changes the core
    assert changed(place / "none/stages/04-arrive/1/fuse", place / "none/model", first) > 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"arrivals": ["other"]}, "arrivals: 'other' is none of the tasks"),
        ({"arrivals": ["upper", "upper"]}, "listed twice"),
        ({"arrivals": []}, "arrivals.order"),
        ({"protect": {"replay": 1.0}}, "protect.replay"),
        ({"protect": {"average": 0}}, "protect.average"),
        ({"protect": {"forget": 1}}, "unknown key 'protect.forget'"),
        ({"arrivals": None}, "base: is for arrivals"),
        ({"tasks": {"neutral text": {"train": "a.jsonl", "eval": 1}}, "arrivals": ["neutral text"]}, "neutral text"),
    ],
)
def test_what_cannot_work_is_refused_by_name(place: Path, changes: dict[str, Any], message: str) -> None:
    recipe = arrivals(place, ["upper"], ["reverse"])
    with pytest.raises(CpiftError, match=message):
        Recipe.parse({**recipe, **changes})


def test_a_base_of_another_shape_is_refused_before_anything_is_written(place: Path, tmp_path: Path) -> None:
    tiny.base(tmp_path / "wide", hidden_size=64)
    with pytest.raises(CpiftError, match=r"^base: .*"):
        run(Recipe.parse({**arrivals(place, ["upper"], []), "base": str(tmp_path / "wide")}), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--task", "upper"], "--task upper: write it as NAME=PATH"),
        (["--task", "upper=missing.jsonl"], "missing.jsonl"),
        (["--task", "upper={upper}", "--keep", "upper={reverse}"], "is the name of the new task, too"),
        (["--task", "upper={upper}", "--eval", "other=3"], "--eval other: is none of the tasks"),
        (["--task", "upper={upper}", "--base", "missing-base"], "missing-base"),
        (["--task", "upper={upper}", "--keep", "{damaged}"], "line 1"),
    ],
)
def test_bad_options_are_one_line(
    place: Path, tmp_path: Path, options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    files = {task: tiny.jsonl(tmp_path / f"{task}.jsonl", tiny.rows(task, 12, 0)) for task in ("upper", "reverse")}
    files["damaged"] = tiny.jsonl(tmp_path / "damaged.jsonl", ['{"messages": 3}'])
    given = [option.format(**files) for option in options]
    code, _, err = call(capsys, "add", "--model", place / "mine", "--out", tmp_path / "out", *given)
    assert code == 2
    assert message in err
    assert len(err.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_the_plan_counts_the_steps_that_the_run_makes(place: Path, two: Path) -> None:
    planned = plan(Recipe.parse(arrivals(place, ["upper", "double"], ["reverse"])))
    made = [json.loads((two / f"stages/04-arrive/{k}/train/stage.json").read_text())["facts"] for k in (1, 2)]
    assert [part["steps"] for part in planned["stages"]] == [facts["steps"] for facts in made] == [6, 6]
    assert planned["evaluated_models"] == 3
    for part, facts in zip(planned["stages"], made, strict=True):
        assert part["tokens"] == pytest.approx(facts["tokens"], rel=0.05)


def test_half_of_the_rows_are_kept_rows_shared_out_among_the_tasks_at_hand() -> None:
    recipe = Recipe.parse(
        {
            "model": "m",
            "tasks": {name: {"train": "t.jsonl", "eval": 1} for name in ("old", "older", "new", "newer")},
            "arrivals": {"order": ["new", "newer"], "examples_per_task": 5},
        }
    )
    rows = {"old": 100, "older": 10, "new": 60, "newer": 60}
    assert replayed_rows(recipe, rows, 1) == {"old": 50, "older": 10}
    assert replayed_rows(recipe, rows, 2) == {"old": 45, "older": 10, "new": 5}
    assert arrival_steps(recipe, rows, 1) == 15  # 60 new rows and as many kept ones, by 8


def test_a_region_by_fisher_information_of_the_kept_rows_is_protected(place: Path) -> None:
    recipe = arrivals(place, ["upper"], ["reverse"], protect={"by": "fisher", "percent": 10.0}, base=None)
    with one_thread():
        run(Recipe.parse(recipe), place / "fisher")
    held = Region.load(place / "fisher/stages/03-protect/region.safetensors").positions
    model = AutoModelForCausalLM.from_pretrained(place / "mine", dtype=torch.float32).eval()
    tokenizer = load_tokenizer(place / "mine")
    squares = {name: torch.zeros_like(parameter) for name, parameter in model.named_parameters()}
    for row in (json.loads(line) for line in (place / "reverse.train.jsonl").read_text().splitlines()):
        encoded = encode(row, tokenizer, 64)
        model.zero_grad()
        logits = model(torch.tensor([encoded.input_ids])).logits[0, :-1]
        target = torch.tensor(encoded.labels[1:])
        torch.nn.functional.cross_entropy(logits, target, ignore_index=-100, reduction="sum").backward()
        for name, parameter in model.named_parameters():
            squares[name] += parameter.grad**2
    least = min(
        float(squares[name].flatten()[torch.from_numpy(at.astype(np.int64))].min()) for name, at in held.items()
    )
    count = int(0.1 * sum(values.numel() for values in squares.values()))
    assert sum(map(len, held.values())) == count
    expected = torch.cat([values.flatten() for values in squares.values()]).sort(descending=True).values[count - 1]
    assert least == pytest.approx(float(expected), rel=1e-3)
    carried = Region.load(place / "fisher/model/cpift_regions/_protected.region.safetensors").positions
    assert all(np.array_equal(carried[name], at) for name, at in held.items())
    before, after = values(place / "mine"), values(place / "fisher/model")
    for name, where in held.items():
        at = torch.from_numpy(where.astype(np.int64))
        assert torch.equal(after[name][at].view(torch.int16), before[name][at].view(torch.int16)), name


def test_other_ways_see_the_same_tokens_and_those_ahead_stand_first(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = Recipe.parse(arrivals(place, ["upper"], ["reverse"]))
    with one_thread():
        run(recipe, place / "compared")
        rows = compare_additions(recipe, place / "compared", Listener())
    assert {row.name for row in rows} == {"add", *(other.name for other in ALTERNATIVES)}
    ours = next(row for row in rows if row.name == "add")
    for row in rows:
        assert row.tokens == pytest.approx(ours.tokens, rel=0.1)  # to half a step of 4 rows, of 24 rows in all
    assert [row.net_wins for row in rows] == sorted((row.net_wins for row in rows), reverse=True)
    settings = json.loads((place / "compared/compare/sft_half_rate/stages/04-arrive/1/train/stage.json").read_text())
    assert settings["settings"]["training"]["learning_rate"] == pytest.approx(TRAINING["learning_rate"] / 2)
    assert "replay" not in settings["settings"]
    make_report(place / "compared")
    page = (place / "compared/report.html").read_text()
    assert all(other.label in page for other in ALTERNATIVES)
    watch = Listener()
    compare_additions(recipe, place / "compared", watch)
    assert not watch.made


def test_an_addition_by_lora_keeps_protected_bits(place: Path) -> None:
    recipe = arrivals(place, ["upper"], ["reverse"], protect={"percent": 20.0})
    recipe["arrivals"]["adapter"] = {"type": "lora", "r": 4}
    with one_thread():
        run(Recipe.parse(recipe), place / "lora")
    before, after = values(place / "mine"), values(place / "lora/model")
    for name, where in region(place / "lora/stages/03-protect").items():
        at = torch.from_numpy(where.astype(np.int64))
        assert torch.equal(after[name][at].view(torch.int16), before[name][at].view(torch.int16)), name
    changed = {name for name in before if not torch.equal(after[name], before[name])}
    assert changed
    assert all(name.endswith("proj.weight") for name in changed)  # all-linear: no embedding, no norm


def test_an_addition_as_a_patch_changes_its_core_alone_and_comes_off_again(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = tiny.jsonl(place / "patch.jsonl", tiny.rows("first", 20, 0))
    options = [option for key, value in TRAINING.items() for option in ("--set", f"training.{key}={value}")]
    given = ["--task", f"first={rows}", "--base", place / "base", "--as-patch", "--set", "region.percent=5"]
    with one_thread():
        code, out, err = call(capsys, "add", "--model", place / "mine", "--out", place / "patch", *given, *options)
    assert code == 0, err
    assert "first.patch.safetensors" in out
    before, after = values(place / "mine"), values(place / "patch/model")
    core = region(place / "patch/stages/04-arrive/1/identify")
    assert sum(map(len, core.values())) <= int(0.05 * sum(v.numel() for v in before.values()))
    changed = 0
    for name, tensor in after.items():
        different = np.flatnonzero((tensor.view(torch.int16) != before[name].view(torch.int16)).numpy())
        assert set(different) <= set(core.get(name, [])), name
        changed += len(different)
    assert changed
    held = region(place / "patch/stages/03-protect")
    assert not any(len(np.intersect1d(held[name], core[name])) for name in held.keys() & core.keys())
    patch = Patch.load(place / "patch/first.patch.safetensors")
    assert patch.count == changed
    apply_patches(place / "mine", [patch.path], place / "on")
    on = values(place / "on")
    assert all(torch.equal(on[name], after[name]) for name in after)
    remove_patches(place / "on", ["first"], place / "off")
    assert all(torch.equal(off, before[name]) for name, off in values(place / "off").items())


def test_the_recipes_chat_template_decides_about_a_region_by_rows(place: Path) -> None:
    template = tiny.CHATML.replace("assistant\n", "assistant\n> ").replace("['role'] }}\n", "['role'] }}\n> ")
    assert template.count("> ") == 2
    changes = {"protect": {"by": "fisher", "percent": 10.0}, "base": None}
    keys, regions = set(), []
    for name, more in (("plain", {}), ("template", {"chat_template": template})):
        recipe = Recipe.parse({**arrivals(place, ["upper"], ["reverse"], **json.loads(json.dumps(changes))), **more})
        current = Run(recipe, place / f"chat-{name}", Reporter())
        for stage in first_stages(current):
            make(current, [stage])
        stage = arrival_stages(current)[0]
        make(current, [stage])
        keys.add(manifest.key_of(stage.made_of, {}))
        regions.append(region(current.folder(stage.name)))
    assert len(keys) == 2
    assert any(not np.array_equal(regions[0].get(name), regions[1].get(name)) for name in regions[0])


def test_an_anchor_beside_a_routers_loss_is_refused_before_training(place: Path, tmp_path: Path) -> None:
    zoo.base(tmp_path / "moe", "mixtral")
    recipe = {**arrivals(place, ["upper"], [], protect={"anchor": 1.0}), "base": None, "model": str(tmp_path / "moe")}
    with pytest.raises(CpiftError, match=r"protect\.anchor: .*router_aux_loss_coef to 0"):
        run(Recipe.parse(recipe), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("average", [0.75, pytest.param(1.0, marks=pytest.mark.long)])
def test_three_arrivals_keep_what_was_protected_and_the_cores_of_all_before(place: Path, average: float) -> None:
    out = place / f"in-a-row-{average}"
    with one_thread():
        run(Recipe.parse(arrivals(place, ["upper", "double", "first"], [], protect={"average": average})), out)
    assert changed(place / "mine", out / "model", region(out / "stages/03-protect")) == 0
    for number in (1, 2):
        core = region(out / f"stages/04-arrive/{number}/identify")
        then = out / f"stages/04-arrive/{number}/fuse"
        assert changed(then, out / "model", core) == 0
        assert changed(place / "mine", then, core) > 0
        assert changed(then, out / "model", {name: np.arange(t.numel()) for name, t in values(then).items()}) > 0
