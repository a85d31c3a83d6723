"""Methods of other papers in a comparison: what each trains, what stays, and that tokens are counted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
from checkpoints import CONFIGS, family
from tiny_run import one_thread

from cpift.checkpoint.reader import open_checkpoint
from cpift.compare import compare
from cpift.compare.draws import half
from cpift.compare.jobs import jobs_of, overrides_of
from cpift.compare.methods import METHODS
from cpift.compare.workbench import Work
from cpift.errors import CpiftError
from cpift.method.region import Region
from cpift.recipe.recipe import Recipe
from cpift.runs.stage import ModelRef, Run
from cpift.train import orthogonal
from cpift.train.averaging import Averaging

TASKS = {t: {"train": f"{t}.jsonl", "eval": 1} for t in "abc"}


def trainings(method: str, base: Path, monkeypatch: pytest.MonkeyPatch, arrive: bool = True) -> list[dict[str, Any]]:
    """The options of each training of a method; nothing is trained, regions are made."""
    given: list[dict[str, Any]] = []

    def train(self: Work, name: str, start: ModelRef, tasks: list[str], tokens: float, **options: Any) -> ModelRef:
        given.append({"name": name, "tasks": tasks, "tokens": tokens, **options})
        return ModelRef(base, name)

    monkeypatch.setattr(Work, "train", train)
    monkeypatch.setattr(Work, "paper_tokens", lambda self, tasks: 100.0 * len(tasks))
    monkeypatch.setattr(Work, "spent", lambda self, prefix="": 0)
    monkeypatch.setattr(Work, "score", lambda self, *more: {})
    bench = object.__new__(Work)
    recipe = Recipe.parse({"model": str(base), "tasks": TASKS}).changed(overrides_of(method))
    bench.run, bench.tokens = Run(recipe, base.parent / method), None
    entry = METHODS[method.partition(":")[0]]
    act = entry.arrive if arrive else entry.run
    assert act is not None
    monkeypatch.setattr(Work, "make", lambda self, stage: made(bench, stage))
    act(bench)
    return given


def made(bench: Work, stage: Any) -> ModelRef:
    folder = bench.run.folder(stage.name)
    folder.mkdir(parents=True)
    stage.action({stage.name: folder})
    return ModelRef(folder, stage.name)


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return family(tmp_path, "llama", tasks=0)[0]


def test_sfa_averages_from_the_second_task_on(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = trainings("sfa", base, monkeypatch)
    assert [one.get("average") for one in found] == [None, *[Averaging(0.5, "linear", None)] * 2]
    assert [one["tokens"] for one in found] == [150.0] * 3
    (_, second, _) = trainings("sfa:fuse.weight=0.75,fuse.every=4", base, monkeypatch)
    assert second["average"] == Averaging(0.75, "linear", 4)
    assert second["replay"] is None


def test_an_anchored_sequence_and_osf(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert [one["anchor"] for one in trainings("sequential_anchor", base, monkeypatch)] == [1.0] * 3
    other = trainings("sequential_anchor:refine.anchor.kl=0.3", base, monkeypatch)
    assert [one["anchor"] for one in other] == [0.3] * 3
    assert [one["osf"] for one in trainings("osf", base, monkeypatch)] == [0.5] * 3


@pytest.mark.parametrize("arrive", [False, True])
def test_random_sparse_trains_a_share_of_the_model(base: Path, monkeypatch: pytest.MonkeyPatch, arrive: bool) -> None:
    """Other positions at each arrival."""
    method = "random_sparse:region.percent=3"
    found = trainings(method, base, monkeypatch, arrive)
    stages = [f"{one['name'].removesuffix('/trained')}/region" for one in found]
    assert [one["inside"] for one in found] == [[stage] for stage in stages]
    regions = [Region.load(base.parent / method / "stages" / stage) for stage in stages]
    assert [region.count for region in regions] == [int(open_checkpoint(base).total * 0.03)] * len(found)
    if arrive:
        first, second = (set(region.positions["lm_head.weight"].tolist()) for region in regions[:2])
        assert first != second


@pytest.mark.parametrize("architecture", CONFIGS)
def test_half_of_each_layer_is_frozen(tmp_path: Path, architecture: str) -> None:
    """Whole tensors, a bias with its matrix; two of four attention matrices, one or two of three of the MLP."""
    (folder,) = family(tmp_path, architecture, tasks=0)
    shapes = {name: tensor.shape for name, tensor in open_checkpoint(folder).tensors.items()}
    drawn = half(shapes, "0/x")
    assert all(len(positions) == np.prod(shapes[name]) for name, positions in drawn.positions.items())
    modules = {name.removesuffix(".weight").removesuffix(".bias") for name in shapes}
    frozen = {name.removesuffix(".weight").removesuffix(".bias") for name in drawn.positions}
    assert all((name in drawn.positions) == (name.rpartition(".")[0] in frozen) for name in shapes)
    assert not any("embed" in name or "wte" in name or "lm_head" in name for name in frozen)
    for number in (0, 1):
        inside = {name for name in modules if f".{number}." in f".{name}."}
        attention = {name for name in inside if "attn" in name and "norm" not in name}
        assert len(attention & frozen) == len(attention) // 2
        mlp = {name for name in inside if "mlp" in name}
        assert len(mlp & frozen) == len(mlp) // 2 + len(mlp) % 2 * number
    assert half(shapes, "0/x").counts() == drawn.counts()
    assert any(half(shapes, f"{seed}/x").counts() != drawn.counts() for seed in range(1, 5))


def test_half_fine_tuning_keeps_the_drawn_half(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The stage holds the region; another one at each arrival."""
    found = trainings("half_fine_tuning", base, monkeypatch)
    assert [one["kept"] for one in found] == [[f"half_fine_tuning/{i}/region"] for i in (1, 2, 3)]
    files = [base.parent / "half_fine_tuning/stages" / one["kept"][0] / "region.safetensors" for one in found]
    assert len({file.read_bytes() for file in files}) > 1


def test_without_peft_a_comparison_with_osf_does_not_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(orthogonal, "find_spec", lambda name: None)
    with pytest.raises(CpiftError, match="--methods osf: OSF needs PEFT"):
        compare(Recipe.parse({"model": "m", "tasks": TASKS}), tmp_path / "c", ["osf"], [0], ["incremental"])
    assert not (tmp_path / "c").exists()


def test_conflict_needs_all_probes_at_once(tmp_path: Path) -> None:
    recipe = Recipe.parse({"model": "m", "tasks": TASKS})
    with pytest.raises(CpiftError, match="arrive one by one; choose another"):
        compare(recipe, tmp_path / "c", ["cpi_ft:region.by=conflict"], [0], ["incremental"])


def test_variants_by_settings_are_read() -> None:
    """Several settings of one variant, a table as a value among them."""
    (job,) = jobs_of(["cpi_ft:region.by=fisher,region.unit=column,refine.anchor={kl: 0.2}"], [0], ["paper"])
    changed = Recipe.parse({"model": "m", "tasks": TASKS}).changed(overrides_of(job.method))
    assert (changed.region.by, changed.region.unit, changed.refine.anchor.kl) == ("fisher", "column", 0.2)


@pytest.mark.long
def test_they_train_at_equal_tokens(tmp_path: Path) -> None:
    """Under both budgets, on a tiny model; tokens of a pass over rows are counted."""
    made = tiny.recipe(tmp_path, probe={"steps": 40}, region={"percent": 5})
    made["training"]["per_device_train_batch_size"] = 2
    methods = [
        "cpi_ft", "cpi_ft:region.by=fisher", "cpi_ft:region.by=conflict", "cpi_ft_inside", "cpi_ft_random_model",
        "cpi_ft:refine.replay=0.5,refine.anchor={kl: 0.1},fuse.every=3", "random_sparse", "half_fine_tuning", "sfa",
        "sequential_anchor", "osf", "sequential",
    ]  # fmt: skip
    with one_thread():
        found = compare(Recipe.parse(made), tmp_path / "c", methods, [0], ["equal_tokens"])
        arriving = [method for method in methods if "conflict" not in method]
        found = compare(Recipe.parse(made), tmp_path / "c", arriving, [0], ["incremental"]) | {"equal": found}
    tokens = {m: r["0"]["tokens"] for m, r in found["equal"]["budgets"]["equal_tokens"].items()}
    assert {m: t for m, t in tokens.items() if abs(t / tokens["cpi_ft"] - 1) > 0.03} == {}
    arrived = {m: r["0"]["tokens"] for m, r in found["budgets"]["incremental"].items()}
    assert {"sfa", "osf", "sequential_anchor", "random_sparse", "half_fine_tuning"} <= set(arrived)
    assert {m: t for m, t in arrived.items() if abs(t / arrived["sequential"] - 1) > 0.05} == {}
