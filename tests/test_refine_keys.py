"""Newer keys of refining, fusion and protection: what they do, what they cost, and that recipes without them stay as they were."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import plain
import pytest
import tiny
import torch
from safetensors.numpy import load_file
from tiny_run import one_thread
from transformers import TrainerControl, TrainerState

from cpift.compare.methods.cpi_ft import CPI_FT
from cpift.compare.workbench import Work
from cpift.data.encoding import encode
from cpift.errors import CpiftError
from cpift.files import layout
from cpift.method.region import Region
from cpift.planning.plan import _trainings
from cpift.recipe.identity import identity
from cpift.recipe.recipe import Recipe
from cpift.runs.refine_rows import replayed, replayed_pass
from cpift.runs.stage import ModelRef, Run, Stage
from cpift.runs.stages import train as train_stages
from cpift.runs.stages.arrivals import _averaging
from cpift.runs.stages.fuse import fuse_stage
from cpift.runs.stages.refine import refine_stages
from cpift.train.average import AverageCallback, interpolated
from cpift.train.averaging import Averaging
from cpift.train.fine_tune import fine_tune
from cpift.train.spec import TrainSpec

NAME = "model.layers.0.mlp.up_proj.weight"
TASKS = {t: {"train": f"{t}.jsonl", "eval": 1} for t in "abc"}
ROWS = {"a": 10, "b": 40, "c": 100}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.base(tmp_path_factory.mktemp("refine") / "base")


def recipe(model: str | Path = "m", **parts: Any) -> Recipe:
    return Recipe.parse({"model": str(model), "tasks": TASKS, **parts})


def stages(base: Path, monkeypatch: pytest.MonkeyPatch, **parts: Any) -> list[Stage]:
    """The refine stages of a recipe with groups (a, b) and (c)."""
    monkeypatch.setattr(Run, "train_rows", lambda self, task: ROWS[task])
    run = Run(recipe(base, **parts), base.parent / "out")
    return refine_stages(run, [["a", "b"], ["c"]], ModelRef(base))


def test_stage_keys_of_recipes_without_newer_keys_are_what_they_were(
    base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The settings and needs written out by hand, as version 0.1 has them; no newer key among them."""
    first, second = stages(base, monkeypatch, refine={"examples_per_task": 16, "epochs": 2})
    assert {k: first.settings[k] for k in ("steps", "seed", "tasks", "examples")} == {
        "steps": math.ceil(2 * (10 + 16) / 8),
        "seed": 0,
        "tasks": ["a", "b"],
        "examples": 16,
    }
    assert set(first.settings) == {"training", "steps", "seed", "tasks", "examples", "base"}
    for key in ("inside", "replay", "replay_share", "anchor", "average"):
        assert key not in second.settings
    assert set(second.needs) == {"00-tasks/c", "06-refine/1", "02-identify/a", "02-identify/b"}
    run = Run(recipe(base), base.parent / "out")
    fusion = fuse_stage(run, run.base).settings
    assert {k: fusion[k] for k in ("overlap", "interpolation", "space", "vector", "weight", "transplant", "tasks")} == {
        "overlap": "largest",
        "interpolation": "slerp",
        "space": "weights",
        "vector": "tensor",
        "weight": "equal",
        "transplant": True,
        "tasks": ["a", "b", "c"],
    }
    assert "every" not in fusion
    values = identity(recipe())
    assert set(values["refine"]) == {
        "training", "examples_per_task", "epochs", "data", "resample", "freeze", "adapter"
    }  # fmt: skip
    assert "every" not in values["fuse"]
    assert "every" not in values["protect"]
    assert identity(recipe(refine={"replay": 0.5}))["refine"]["replay"] == 0.5


def test_inside_trains_the_cores_of_the_stage_s_own_tasks(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All else is frozen, and so is what an earlier group has of them."""
    first, second = stages(base, monkeypatch, refine={"train": "inside"})
    assert first.settings["inside"]
    assert {"02-identify/a", "02-identify/b"} <= set(first.needs)
    assert {"02-identify/a", "02-identify/b", "02-identify/c"} <= set(second.needs)
    run = Run(recipe(base), tmp_path)
    shape = load_file(base / "model.safetensors")[NAME].shape
    for task, positions in {"a": [1, 3], "b": [3, 5], "c": [5, 7, 9]}.items():
        file = run.layout.region(task)
        file.parent.mkdir(parents=True)
        Region({NAME: np.array(positions, np.int32)}, 100, shapes={NAME: shape}).save(file)

    def frozen(inside: str, before: str) -> set[int]:
        spec = TrainSpec({}, 1, 0, frozen=tuple(map(layout.region, before)), inside=tuple(map(layout.region, inside)))
        region = train_stages._frozen(run, ModelRef(base), spec)
        assert region is not None
        sizes = {n: w.size for n, w in plain.load(base).items()}
        assert all(len(region.positions[n]) == size for n, size in sizes.items() if n != NAME)
        return set(range(math.prod(shape))) - set(region.positions[NAME].tolist())

    assert frozen("ab", "") == {1, 3, 5}
    assert frozen("c", "ab") == {7, 9}
    with pytest.raises(CpiftError, match="leaves no position to train"):
        frozen("a", "a")


def test_replay_is_a_share_of_the_rows_of_later_groups(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A quarter of all: 16 new rows need 16 · 0.25 / 0.75 ≈ 5 old ones, 3 and 2 of the two earlier tasks."""
    asked = recipe(refine={"examples_per_task": 16, "replay": 0.25})
    groups = [["a", "b"], ["c"]]
    assert replayed(asked, ROWS, groups, 1) == {}
    assert replayed(asked, ROWS, groups, 2) == {"a": 3, "b": 2}
    count, tokens = replayed_pass(asked, ROWS, {"a": 2.0, "b": 7.0, "c": 1.0}, groups, 2)
    assert (count, tokens) == (5, 5 * (3 * 2 + 2 * 7) / 5)
    first, second = stages(base, monkeypatch, refine={"examples_per_task": 16, "replay": 0.25})
    assert "replay" not in first.settings
    assert (second.settings["replay"], second.settings["replay_share"]) == ({"a": 3, "b": 2}, 0.25)
    assert second.settings["steps"] == math.ceil((16 + 5) / 8)
    assert {"00-tasks/a", "00-tasks/b"} <= set(second.needs)
    many = recipe(refine={"examples_per_task": 16, "replay": 0.9})
    assert replayed(many, ROWS, groups, 2) == {"a": 10, "b": 16}  # all that is at hand; then repeated to the share
    part = next(p for p in _trainings(asked, ROWS, {"a": 8.0, "b": 8.0, "c": 8.0}) if p["stage"] == "refine")
    assert part["steps"] == math.ceil(10 / 8) + math.ceil((16 + 5) / 8) + math.ceil((16 + 5) / 8)


def test_the_anchor_and_averages_reach_the_training(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Own cores are left out of averages where they are transplanted and the rest is trained."""
    every = {"every": 5, "weight": 0.8, "interpolation": "linear"}
    _, second = stages(base, monkeypatch, refine={"anchor": {"kl": 0.3}}, fuse=every)
    assert second.settings["anchor"] == 0.3
    assert second.settings["average"] == {"weight": 0.8, "interpolation": "linear", "every": 5, "at_end": True}
    assert "02-identify/c" in second.needs
    for changes in ({"fuse": {**every, "transplant": False}}, {"fuse": every, "refine": {"freeze": False}}):
        _, second = stages(base, monkeypatch, **changes)
        assert ("02-identify/c" in second.needs) == ("refine" in changes)
    assert _averaging(recipe(protect={"every": 3, "average": 0.6}).protect) == Averaging(0.6, "slerp", 3, at_end=False)
    assert _averaging(recipe().protect) is None


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        ({"refine": {"replay": 0.5, "data": "mixed"}}, "leave one of them out"),
        ({"fuse": {"every": 3, "interpolation": "karcher"}}, "karcher is neither"),
        ({"fuse": {"every": 3, "space": "updates"}}, "leave space and vector"),
        ({"fuse": {"every": 3}, "refine": {"adapter": {"r": 2}}}, "not combined with refine.adapter"),
        ({"arrivals": ["c"], "protect": {"every": 3, "average": 1}}, "averages nothing"),
        (
            {"arrivals": {"order": ["c"], "train": "inside"}, "protect": {"every": 3, "average": 0.75}},
            "nothing is averaged",
        ),
        ({"refine": {"anchor": {"kll": 1}}}, "did you mean 'kl'"),
    ],
)
def test_what_cannot_be_is_refused(parts: dict[str, Any], words: str) -> None:
    with pytest.raises(CpiftError, match=words):
        recipe(**parts)


@pytest.mark.parametrize("interpolation", ["slerp", "linear"])
@pytest.mark.parametrize("masked", [False, True])
def test_an_average_is_the_interpolation_of_the_free_entries(interpolation: Any, masked: bool) -> None:
    """In plain numpy; kept entries stay, bit for bit, and are no part of the vectors."""
    rng = np.random.default_rng(0)
    before, now = rng.standard_normal((2, 5, 7)).astype(np.float32)
    free = rng.random((5, 7)) < 0.6 if masked else np.ones((5, 7), bool)
    a, b = before[free].astype(np.float64), now[free].astype(np.float64)
    expected = now.copy()
    expected[free] = plain.slerp(a, b, 0.7) if interpolation == "slerp" else 0.3 * a + 0.7 * b
    mask = torch.from_numpy(free) if masked else None
    found = interpolated(torch.from_numpy(before), torch.from_numpy(now), Averaging(0.7, interpolation), mask).numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    assert np.array_equal(found[~free], now[~free])


def test_averages_fall_on_every_mth_step_and_the_end() -> None:
    model = torch.nn.Linear(3, 2, bias=False)
    start = model.weight.detach().clone()
    callback = AverageCallback(model, Averaging(0.5, "linear", 2), None)
    moved = []
    for step in range(1, 6):
        with torch.no_grad():
            model.weight += 1
        ahead = model.weight.detach().clone()
        callback.on_step_end(None, TrainerState(global_step=step, max_steps=5), TrainerControl())  # type: ignore[arg-type]
        moved.append(not torch.equal(model.weight, ahead))
        if moved[-1]:
            torch.testing.assert_close(model.weight.detach(), (start + ahead) / 2)
    assert moved == [False, True, False, True, True]
    assert [Averaging(0.5, every=2, at_end=False).falls_on(step, 4) for step in range(1, 5)] == [
        False,
        True,
        False,
        False,
    ]
    assert [Averaging(0.5).falls_on(step, 4) for step in range(1, 5)] == [False, False, False, True]


def test_averaging_in_a_training_keeps_frozen_bits_and_is_the_same_once_resumed(base: Path, tmp_path: Path) -> None:
    """Cut off after an average, resumed to the same bits; a frozen and a left-out position are not averaged."""
    size = load_file(base / "model.safetensors")[NAME].size
    frozen, left_out = (Region({NAME: np.arange(i, size, 3, dtype=np.int32)}, size) for i in (0, 1))
    training = {"per_device_train_batch_size": 4, "bf16": False, "learning_rate": 1e-2, "save_steps": 1}
    rows = [encode(row, tiny.tokenizer()) for row in tiny.rows("reverse", 8, 0)]
    spec = TrainSpec(training, 4, 0, average=Averaging(0.1, "linear", 2))

    def train(name: str, **more: Any) -> dict[str, np.ndarray]:
        with one_thread():
            fine_tune(base, rows, tmp_path / name, spec, frozen=frozen, unaveraged=left_out, **more)
        return load_file(tmp_path / name / "model.safetensors")

    whole, before = train("whole"), load_file(base / "model.safetensors")[NAME].ravel()
    assert np.array_equal(whole[NAME].ravel()[0::3], before[0::3])
    moved = [np.abs(whole[NAME].ravel()[i::3] - before[i::3]).mean() for i in (1, 2)]
    assert moved[1] < 0.3 * moved[0]  # averaged with a weight of 0.1, at the end too

    def cut(event: Any) -> None:
        if event["step"] == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train("cut", work=tmp_path / "work", tick=cut)
    again = train("cut", work=tmp_path / "work")
    assert all(np.array_equal(again[name], weights) for name, weights in whole.items())


def test_a_comparison_with_arrivals_reads_the_refine_keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Under --budget incremental no key is dropped in silence."""
    asked = {"refine": {"train": "inside", "anchor": {"kl": 0.3}, "replay": 0.2}, "fuse": {"every": 4}}
    bench = object.__new__(Work)
    bench.run = Run(recipe(tmp_path, **asked), tmp_path)
    bench.trained, bench._lengths, given = [], dict.fromkeys("abc", 2.0), list[dict[str, Any]]()
    bench.rows = ROWS.__getitem__  # type: ignore[method-assign]
    monkeypatch.setattr(Work, "paper_tokens", lambda self, tasks: 100.0)
    monkeypatch.setattr(Work, "spent", lambda self, prefix="": 0)
    monkeypatch.setattr(Work, "identify", lambda self, task: ModelRef(tmp_path, layout.region(task)))
    monkeypatch.setattr(Work, "add", lambda self, *more: ModelRef(tmp_path))
    monkeypatch.setattr(Work, "score", lambda self, *more: {})
    monkeypatch.setattr(Work, "train", lambda self, *more, **options: given.append(options) or ModelRef(tmp_path))
    assert CPI_FT.arrive is not None
    CPI_FT.arrive(bench)
    last = given[-1]
    assert (last["inside"], last["anchor"], last["replay_share"]) == (["02-identify/c"], 0.3, 0.2)
    assert last["average"] == Averaging(0.5, "slerp", 4)
    assert last["unaveraged"] == []
    steps = bench.steps(1000, ["c"], {"a": 10}, {"per_device_train_batch_size": 10}, 0.2)
    assert steps == round(1000 / (125 * 2) * math.ceil(125 / 10))
