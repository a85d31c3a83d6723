"""Criteria of core positions against plain numpy, and what of them counts in keys and tokens."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import plain
import pytest
import tiny
import torch
from checkpoints import family, write

from cpift.compare.methods import arriving
from cpift.compare.workbench import Work
from cpift.data.encoding import encode
from cpift.errors import CpiftError
from cpift.method.criteria import CRITERIA
from cpift.method.criteria.choice import Choice
from cpift.method.criteria.random import distinct
from cpift.method.region import Region
from cpift.method.region_findings import region_warnings
from cpift.recipe.identity import identity
from cpift.recipe.recipe import Recipe
from cpift.recipe.stages import RegionPart
from cpift.recipe.yaml import origins
from cpift.runs.stage import Run
from cpift.runs.stages.identify import identify_stage, select_regions
from cpift.train.models import load_model, load_tokenizer

SHAPES = {"layer.bias": (11,), "layer.weight": (6, 11), "head.weight": (8, 5), "stack": (2, 3, 4)}


def three(folder: Path) -> tuple[Path, dict[str, Path], plain.Weights, dict[str, plain.Weights]]:
    """A base and three tasks that move it by multiples of a quantum, zero among them: ties and zero updates."""
    rng = np.random.default_rng(0)
    base = {name: rng.integers(-5, 6, shape).astype(np.float32) for name, shape in SHAPES.items()}
    moved = {task: {n: w + rng.integers(-3, 4, w.shape).astype(np.float32) for n, w in base.items()} for task in "abc"}
    return write(folder / "base", base), {t: write(folder / t, w) for t, w in moved.items()}, base, moved


def same(region: Region, expected: plain.Positions) -> bool:
    return sorted(region.positions) == sorted(expected) and all(
        np.array_equal(region.positions[name], expected[name]) for name in expected
    )


def top_columns(scores: plain.Weights, count: int) -> plain.Positions:
    """Whole columns by their mean score, in plain numpy, until the next would exceed ``count`` elements."""
    columns = []
    for name in sorted(scores):
        size = np.abs(scores[name])
        matrices = size.reshape(-1, *size.shape[-2:]) if size.ndim > 1 else size.reshape(1, 1, -1)
        flat = np.arange(size.size).reshape(matrices.shape)
        columns += [(m[:, j].mean(), name, flat[i, :, j]) for i, m in enumerate(matrices) for j in range(m.shape[1])]
    taken: dict[str, list[int]] = {}
    for _, name, positions in sorted(columns, key=lambda column: -column[0]):
        if sum(map(len, taken.values())) + len(positions) > count:
            break
        taken.setdefault(name, []).extend(positions)
    return {name: np.sort(found) for name, found in taken.items()}


def opposed(base: plain.Weights, moved: dict[str, plain.Weights], task: str) -> plain.Weights:
    """The task's update, where another task's has the other sign; zero elsewhere."""
    scores = {}
    for name, own in moved[task].items():
        signs = {t: np.sign(w[name] - base[name]) for t, w in moved.items()}
        clash = np.any([signs[t] * signs[task] == -1 for t in moved if t != task], axis=0)
        scores[name] = np.where(clash, own - base[name], 0)
    return scores


def test_conflict_is_the_largest_update_where_another_has_the_other_sign(tmp_path: Path) -> None:
    base, tuned, weights, moved = three(tmp_path)
    found = CRITERIA["conflict"].choose(Choice(base, {"b": tuned["b"]}, "20", others={t: tuned[t] for t in "ac"}))
    zero = {n: np.zeros_like(w) for n, w in weights.items()}
    scores = opposed(weights, moved, "b")
    assert same(found["b"], plain.core(zero, scores, "20"))
    assert not same(found["b"], plain.core(weights, moved["b"], "20"))
    negative = found["b"].negative
    assert negative is not None
    for name, positions in found["b"].positions.items():
        assert np.array_equal(negative[name], scores[name].ravel()[positions] < 0)
    with pytest.raises(CpiftError, match="several tasks, and there is one"):
        CRITERIA["conflict"].choose(Choice(base, {"b": tuned["b"]}, "20"))


@pytest.mark.parametrize("by", ["update", "conflict"])
def test_whole_columns_by_their_mean(tmp_path: Path, by: str) -> None:
    base, tuned, weights, moved = three(tmp_path)
    count = int(0.3 * sum(math.prod(shape) for shape in SHAPES.values()))
    found = CRITERIA[by].choose(Choice(base, tuned, "30", unit="column"))
    for task in tuned:
        updates = {n: moved[task][n] - w for n, w in weights.items()}
        scores = updates if by == "update" else opposed(weights, moved, task)
        assert same(found[task], top_columns(scores, count))


@pytest.mark.parametrize("by", CRITERIA)
def test_patterns_say_what_counts(tmp_path: Path, by: str) -> None:
    """include and exclude together, for every criterion; the percentage is of what counts."""
    base, tuned, *_ = three(tmp_path)

    def measure(task: str, score: str, folder: Path) -> dict[str, Any]:
        write(folder, {n: np.ones(shape, np.float32) for n, shape in SHAPES.items()})
        return {}

    choice = Choice(base, tuned, "25", ["layer.*", "head.*"], ["*.bias"], measure=measure)
    for region in CRITERIA[by].choose(choice).values():
        assert region.total == 6 * 11 + 8 * 5
        assert region.count == region.total // 4
        assert set(region.positions) <= {"layer.weight", "head.weight"}
    with pytest.raises(CpiftError, match="include: 'nothing\\*' matches no parameter"):
        CRITERIA[by].choose(Choice(base, tuned, "25", ["nothing*"], measure=measure))


def test_random_keeps_each_tensor_s_share_and_random_model_does_not(tmp_path: Path) -> None:
    """Over many seeds each position of the model is drawn as often as any other."""
    base, tuned, *_ = three(tmp_path)
    largest = CRITERIA["update"].choose(Choice(base, tuned, "20"))["a"]
    counts, every, tensors = 0.0, [], set()
    for seed in range(60):
        assert CRITERIA["random"].choose(Choice(base, tuned, "20", seed=seed))["a"].counts() == largest.counts()
        drawn = CRITERIA["random_model"].choose(Choice(base, tuned, "20", seed=seed))
        assert drawn["a"].count == largest.count
        assert not same(drawn["a"], dict(drawn["b"].positions))
        tensors.add(tuple(drawn["a"].counts().items()))
        counts += drawn["a"].counts().get("head.weight", 0)
        every.append(drawn["a"])
    assert len(tensors) > 30
    assert counts / 60 == pytest.approx(largest.count * 40 / largest.total, abs=0.8)
    again = CRITERIA["random_model"].choose(Choice(base, tuned, "20", seed=7))["a"]
    assert same(again, dict(every[7].positions))
    assert not region_warnings("a", again)


@pytest.mark.parametrize("by", ["random", "random_model"])
def test_random_columns_are_whole(tmp_path: Path, by: str) -> None:
    base, tuned, *_ = three(tmp_path)
    region = CRITERIA[by].choose(Choice(base, tuned, "30", unit="column", seed=3))["a"]
    assert 0 < region.count <= int(0.3 * region.total)
    for name, positions in region.positions.items():
        shape = SHAPES[name]
        mask = np.zeros(shape, np.bool_)
        mask.ravel()[positions] = True
        if len(shape) > 1:
            assert np.array_equal(mask.all(axis=-2), mask.any(axis=-2))
    assert region.positions


@pytest.mark.parametrize(("total", "count"), [(50, 0), (50, 3), (50, 25), (50, 26), (50, 50)])
def test_distinct_numbers(total: int, count: int) -> None:
    drawn = distinct(np.random.default_rng(0), total, count)
    assert len(set(drawn.tolist())) == count
    assert drawn.tolist() == sorted(drawn.tolist())
    assert all(0 <= number < total for number in drawn)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("criteria")
    tiny.recipe(folder)
    return folder


@pytest.mark.parametrize("by", ["fisher", "magnitude_gradient"])
@pytest.mark.parametrize("unit", ["element", "column"])
def test_scores_are_of_the_probe_on_the_task_s_own_rows(
    place: Path, monkeypatch: pytest.MonkeyPatch, by: str, unit: str
) -> None:
    """By torch's own autograd, row by row; the base plays the base, another model the probe."""
    rows = {"reverse": tiny.rows("reverse", 4, 0), "double": tiny.rows("double", 3, 1)}
    monkeypatch.setattr(Run, "rows", lambda self, task, part: rows[task])
    probe = tiny.base(place / f"probe-{by}-{unit}", seed=1)
    network, tokenizer = load_model(probe), load_tokenizer(probe)
    parameters = dict(network.named_parameters())
    gradients, trained, seen = [], 0, 0
    for row in rows["double"]:
        encoded = encode(row, tokenizer)
        ids, labels = torch.tensor([encoded.input_ids]), torch.tensor([encoded.labels])
        tokens = int((labels[:, 1:] != -100).sum())
        loss = network(input_ids=ids, labels=labels).loss * tokens
        gradients.append(torch.autograd.grad(loss, list(parameters.values())))
        trained, seen = trained + tokens, seen + ids.numel()
    scores = {}
    for i, (name, parameter) in enumerate(parameters.items()):
        if by == "fisher":
            scores[name] = torch.stack([g[i] ** 2 for g in gradients]).mean(0).numpy()
        else:
            scores[name] = (parameter * sum(g[i] for g in gradients) / trained).abs().detach().numpy()
    recipe = Recipe.parse(tiny.recipe(place, region={"percent": 7, "by": by, "unit": unit}))
    found = select_regions(Run(recipe, place / "out"), place / "base", {"double": probe}, "probe")["double"]
    zero = {n: np.zeros_like(s) for n, s in scores.items()}
    expected = plain.core(zero, scores, "7") if unit == "element" else top_columns(scores, int(0.07 * found.total))
    assert plain.jaccard(dict(found.positions), expected) > 0.97  # sums in another order may swap neighbours
    assert found.statistics["tokens"] == seen
    assert found.statistics["rows"] == 3


def test_the_former_key_is_read_and_one_of_the_two_is_enough(tmp_path: Path) -> None:
    assert RegionPart.model_validate({"select": "largest"}).by == "update"
    assert RegionPart.model_validate({"select": "random"}).by == "random"
    assert "select" not in RegionPart().model_dump()
    tasks = {t: {"train": f"{t}.jsonl", "eval": 1} for t in "ab"}
    recipe = Recipe.parse({"model": "m", "tasks": tasks, "region": {"select": "largest"}})
    assert recipe.changed({"region.select": "random"}).region.by == "random"
    file = tmp_path / "r.yaml"
    file.write_text("model: m\nregion: {select: largest}\ntasks: {a: {train: a.jsonl, eval: 1}}\n")
    assert Recipe.load(file, {"region.by": "random"}).region.by == "random"
    assert origins(file)["region.by"] == "recipe"
    with pytest.raises(CpiftError, match="select is the former name of by, and both are given"):
        Recipe.parse({"model": "m", "tasks": tasks, "region": {"select": "largest", "by": "fisher"}})
    with pytest.raises(CpiftError, match=r"region\.by: is none of update, fisher"):
        Recipe.parse({"model": "m", "tasks": tasks, "region": {"by": "fischer"}})


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"region": {"by": "conflict"}, "arrivals": ["a"]}, "arrivals have none"),
        ({"region": {"by": "fisher"}, "probe": {"adapter": {"r": 2}}}, "leave probe.adapter out"),
        ({"region": {"rows": 3}}, "rows is not read by update"),
    ],
)
def test_what_cannot_be_is_refused(changes: dict[str, Any], words: str) -> None:
    tasks = {t: {"train": f"{t}.jsonl", "eval": 1} for t in "ab"}
    with pytest.raises(CpiftError, match=words):
        Recipe.parse({"model": "m", "tasks": tasks, **changes})


def test_stage_keys_of_recipes_without_newer_keys_are_what_they_were(place: Path) -> None:
    """Written out by hand as version 0.1 has them; a newer key adds itself."""

    def settings(**region: Any) -> dict[str, Any]:
        recipe = Recipe.parse(tiny.recipe(place, region={"percent": 2, **region}))
        stage = identify_stage(Run(recipe, place / "out"), "reverse")
        return {key: value for key, value in stage.settings.items() if key in ("percent", "exclude", "select", "seed")}

    assert settings() == {"percent": "2.0", "exclude": []}
    assert settings(select="random") == {"percent": "2.0", "exclude": [], "select": "random", "seed": 0}
    assert settings(by="fisher")["select"] == "fisher"
    recipe = Recipe.parse(tiny.recipe(place, region={"percent": 2}))
    assert identity(recipe)["region"] == {"percent": 2.0, "exclude": [], "select": "largest"}
    fisher = recipe.changed({"region.by": "fisher", "region.rows": 5})
    assert identity(fisher)["region"] == {"percent": 2.0, "exclude": [], "select": "fisher", "rows": 5}


def test_a_pass_over_rows_counts_as_tokens(tmp_path: Path) -> None:
    """Of a comparison: the rows that the criterion reads, or none; an arrival with too few left is refused."""

    def work(**region: Any) -> Work:
        tasks = {t: {"train": f"{t}.jsonl", "eval": 1} for t in "ab"}
        bench = object.__new__(Work)
        bench.run = Run(Recipe.parse({"model": "m", "tasks": tasks, "region": region}), tmp_path)
        bench._lengths = {"a": 3.0, "b": 5.0}
        bench.rows = lambda task: {"a": 10, "b": 20}[task]  # type: ignore[method-assign]
        return bench

    assert work().region_tokens(["a", "b"]) == 0
    assert work(by="fisher").region_tokens(["a", "b"]) == 10 * 3 + 20 * 5
    assert work(by="fisher", rows=15).region_tokens(["a", "b"]) == 10 * 3 + 15 * 5
    assert arriving.left_of(work(by="fisher"), "a", 31) == 1
    with pytest.raises(CpiftError, match=r"lower region\.rows"):
        arriving.left_of(work(by="fisher"), "a", 30)


def test_identify_includes(tmp_path: Path) -> None:
    """On a model of an architecture, as plain numpy on what is left."""
    base, task = family(tmp_path, "llama", tasks=1)
    region = CRITERIA["update"].choose(Choice(base, {"t": task}, "3", ["*mlp*"]))["t"]
    left, right = ({n: w for n, w in plain.load(p).items() if "mlp" in n} for p in (base, task))
    assert same(region, plain.core(left, right, "3"))
