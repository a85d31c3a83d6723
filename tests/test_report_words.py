"""Intervals, verdicts, falls and numbers for people."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from report_folders import made_run

from cpift.checkpoint import layers
from cpift.metrics import intervals
from cpift.metrics.metric import NATS, PER_CENT
from cpift.report import wording
from cpift.report.facts import read_run
from cpift.report.forgetting import drops
from cpift.report.html import Html, table
from cpift.report.verdicts import Gap, mean_gap, verdicts


def entry(items: list[float], metric: str = "exact_match", tokens: list[int] | None = None) -> dict[str, object]:
    return {"metric": metric, "score": sum(items) / len(items), "items": items, "tokens": tokens or [1] * len(items)}


def test_wilson_is_the_textbook_value() -> None:
    """10 of 20, and the ends: nothing right is not certainly nothing."""
    assert intervals.wilson(10, 20) == pytest.approx((0.299, 0.701), abs=5e-4)
    assert intervals.wilson(0, 20) == pytest.approx((0.0, 0.161), abs=5e-4)


def test_intervals_of_differences_hold_the_truth_as_often_as_they_say() -> None:
    """Simulated: two models of true scores 0.4 and 0.5 on the same 60 rows; about 95 of 100 intervals hold −0.1."""
    rng, held, times = random.Random(1), 0, 600
    for _ in range(times):
        hard = [rng.random() for _ in range(60)]
        a = [float(0.7 * h + 0.3 * rng.random() < 0.4) for h in hard]
        b = [float(0.7 * h + 0.3 * rng.random() < 0.5) for h in hard]
        found = intervals.of_difference(entry(a), entry(b))
        assert found is not None
        truth = _area(0.4) - _area(0.5)
        held += found[1] <= truth <= found[2]
    assert 0.925 <= held / times <= 0.985


def _area(level: float) -> float:
    """P(0.7 U + 0.3 V < level) for uniform U, V, where 0.3 <= level <= 0.7."""
    return (level - 0.15) / 0.7


def test_rows_that_do_not_pair_have_no_interval() -> None:
    """Other rows, one row."""
    assert intervals.of_difference(entry([1.0, 0.0]), entry([1.0])) is None
    assert intervals.of_score(entry([1.0])) is None
    assert intervals.of_mean([0.5]) is None


def test_student_is_wider_for_few_seeds() -> None:
    """Three seeds: 4.303 standard errors."""
    mean, low, high = intervals.of_mean([0.1, 0.2, 0.3]) or (0, 0, 0)
    assert mean == pytest.approx(0.2)
    assert high - mean == pytest.approx(4.303 * 0.1 / 3**0.5)
    assert mean - low == pytest.approx(high - mean)


def test_a_lower_loss_is_a_gain(tmp_path: Path) -> None:
    """The sign of a loss is turned, so that up is better everywhere."""
    run = read_run(made_run(tmp_path / "run", ["a", "b"], metrics={"b": "loss"}))
    gap = verdicts(run)[1].gaps["base"]
    assert run.models["refine/2"]["b"]["score"] < run.models["base"]["b"]["score"]
    assert gap.value > 0
    assert gap.way == "up"


def test_a_mean_over_tasks_is_narrower_than_one_task() -> None:
    """And zero within it is no difference."""
    mean = mean_gap([Gap(0.1, 0.0, 0.2), Gap(-0.1, -0.2, 0.0)])
    assert mean is not None
    assert mean.value == pytest.approx(0.0)
    assert mean.high == pytest.approx(0.1 / 2**0.5)
    assert mean.way == "same"


def test_a_task_that_was_forgotten_is_told_with_the_reason(tmp_path: Path) -> None:
    """The earliest group's task, which the fixture forgets: where, and who came after it."""
    run = read_run(made_run(tmp_path / "run", ["a", "b", "c"]))
    first = run.order[0][0]
    told = {drop.task: drop for drop in drops(run)}
    assert first in told
    assert not told[first].recovered
    later = [t for group in run.order[1:] for t in group]
    assert f"which trained {wording.names(later, 3)} after it" in told[first].text
    assert told[first].text.endswith(" now")


@pytest.mark.parametrize(("right", "now"), [(5, "still lost"), (30, "partly won back"), (58, "won back")])
def test_how_much_of_a_task_came_back(tmp_path: Path, right: int, now: str) -> None:
    """59 of 100 in its specialist, 5 in the backbone, so many in the last model."""
    run = read_run(made_run(tmp_path / "run", ["a", "b", "c"]))
    task = run.order[0][0]
    counts = {f"probe/{task}": 59, "backbone": 5}
    for model in ("base", f"probe/{task}", "backbone", "fused", *(f"refine/{k}" for k in range(1, 4))):
        if task in run.models.get(model, {}):
            items = [1.0] * counts.get(model, right) + [0.0] * (100 - counts.get(model, right))
            run.models[model][task] |= {"score": sum(items) / 100, "items": items}
    assert [(drop.task, drop.outcome, drop.recovered) for drop in drops(run) if drop.task == task] == [
        (task, now, now == "won back")
    ]


@pytest.mark.parametrize(
    ("found", "wanted"),
    [
        (wording.score(0.3333, PER_CENT), "33.3 %"),
        (wording.score(1.23456, NATS), "1.235 nats"),
        (wording.gap(-0.0333, PER_CENT), "−3.3 points"),
        (wording.gap(0.0001, PER_CENT), "0.0 points"),
        (wording.count(1_345_150), "1.35 million"),
        (wording.count(1234), "1,234"),
        (wording.percent(0.00001), "under 0.1 %"),
        (wording.percent(0.0), "0.0 %"),
        (wording.names(["a"]), "a"),
        (wording.names(["a", "b", "c"]), "a, b and c"),
        (wording.names(list("abcdef")), "a, b, c and 3 more"),
        (wording.names([]), "none"),
    ],
)
def test_numbers_for_people(found: str, wanted: str) -> None:
    assert found == wanted


@pytest.mark.parametrize(
    ("name", "layer", "module", "kind"),
    [
        ("model.layers.12.self_attn.q_proj.weight", 12, "q_proj", layers.ATTENTION),
        ("model.layers.0.mlp.down_proj.weight", 0, "down_proj", layers.MLP),
        ("model.layers.3.post_attention_layernorm.weight", 3, "post_attention_layernorm", layers.NORM),
        ("model.embed_tokens.weight", None, "embed_tokens", layers.EMBEDDING),
        ("transformer.h.7.attn.c_attn.bias", 7, "c_attn", layers.ATTENTION),
        ("transformer.h.7.ln_1.weight", 7, "ln_1", layers.NORM),
        ("model.norm.weight", None, "norm", layers.NORM),
        ("head.something", None, "something", layers.OTHER),
    ],
)
def test_parameters_are_told_apart(name: str, layer: int | None, module: str, kind: str) -> None:
    assert (layers.layer(name), layers.module(name), layers.kind(name)) == (layer, module, kind)


def test_cells_are_escaped_unless_they_are_markup() -> None:
    shown = table(["<b>", "x"], [["<i>", Html("<u>1</u>")]])
    assert "&lt;b&gt;" in shown
    assert "&lt;i&gt;" in shown
    assert "<u>1</u>" in shown
