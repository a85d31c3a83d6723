"""Stages that train a LoRA adapter in place of all parameters."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
from safetensors.numpy import load_file

from cpift.checkpoint.reader import open_checkpoint
from cpift.compare.lab import compare
from cpift.data.encoding import encode
from cpift.errors import CpiftError
from cpift.method.region import Region
from cpift.planning.plan import plan
from cpift.recipe.adapter import Adapter
from cpift.recipe.recipe import Recipe
from cpift.runs.pipeline import run
from cpift.train.fine_tune import fine_tune
from cpift.train.spec import TrainSpec

SETTINGS: dict[str, Any] = {"per_device_train_batch_size": 4, "bf16": False, "learning_rate": 1e-2}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.base(tmp_path_factory.mktemp("adapter-training") / "base", attention_dropout=0.2)


def train(
    base: Path, out: Path, seed: int = 0, steps: int = 4, training: dict[str, Any] | None = None, **more: Any
) -> dict[str, Any]:
    given = {"adapter": Adapter(r=4, dropout=0.1), **more}
    spec = TrainSpec({**SETTINGS, **(training or {})}, steps, seed, adapter=given.pop("adapter"))
    rows = [encode(row, tiny.tokenizer()) for row in tiny.rows("reverse", 20, 0)]
    fine_tune(base, rows, out, spec, **given)
    return load_file(out / "adapter_model.safetensors")


def same(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> bool:
    return a.keys() == b.keys() and all(np.array_equal(a[n], b[n]) for n in a)


@pytest.mark.parametrize("kind", ["lora", "rslora", "dora"])
def test_the_adapter_alone_is_saved_and_read_on_its_base(kind: str, base: Path, tmp_path: Path) -> None:
    parts = train(base, tmp_path / "out", adapter=Adapter(type=kind, r=4))
    assert any(np.abs(value).max() > 0 for name, value in parts.items() if "lora_B" in name)
    assert not list((tmp_path / "out").glob("model*"))
    made, own = open_checkpoint(tmp_path / "out", open_checkpoint(base)), open_checkpoint(base)
    moved = {n for n in own.tensors if not np.array_equal(made.raw(n), own.raw(n))}
    assert moved == {n for n in own.tensors if "_proj" in n}  # every linear layer
    assert (tmp_path / "out/tokenizer.json").is_file()
    assert json.loads((tmp_path / "out/generation_config.json").read_text())["eos_token_id"]


def test_the_seed_decides_and_a_training_cut_off_resumes_to_the_same_bits(base: Path, tmp_path: Path) -> None:
    class Cut(Exception):
        pass

    def cut(event: Any) -> None:
        if event["step"] == 3:
            raise Cut

    more = {"training": {"save_steps": 2, "save_strategy": "steps"}}
    whole = train(base, tmp_path / "whole", work=tmp_path / "w1", **more)
    with pytest.raises(Cut):
        train(base, tmp_path / "cut", work=tmp_path / "w2", tick=cut, **more)
    steps: list[int] = []
    resumed = train(base, tmp_path / "cut", work=tmp_path / "w2", tick=lambda e: steps.append(e["step"]), **more)
    assert steps == [3, 4]
    assert same(whole, resumed)
    assert not same(whole, train(base, tmp_path / "other", seed=1))


def recipe(folder: Path, **changes: Any) -> Recipe:
    table = tiny.recipe(folder, ("reverse", "upper"), **changes)
    table["probe"] = {"steps": 6, "adapter": {"type": "lora", "r": 4}}
    table["refine"] = {"examples_per_task": 4}
    return Recipe.parse(table)


def test_a_run_with_adapters_as_probes(tmp_path: Path) -> None:
    """All stages, two groups, so that the second refines with the first one's region frozen."""
    asked = recipe(tmp_path)
    run(asked, tmp_path / "out")
    stages = tmp_path / "out/stages"
    origin = open_checkpoint(tmp_path / "base")
    for task in ("reverse", "upper"):
        folder = stages / "01-probe" / task
        assert (folder / "adapter_model.safetensors").stat().st_size < origin.nbytes / 2
        assert json.loads((folder / "stage.json").read_text())["facts"]["adapter"] == "lora, rank 4"
        region = Region.load(stages / "02-identify" / task / "region.safetensors")
        assert all("_proj" in name for name in region.positions)
    groups = json.loads((stages / "03-group/groups.json").read_text())
    first = groups["groups"][groups["order"][0]][0]
    region = Region.load(stages / "02-identify" / first / "region.safetensors")
    before, after = open_checkpoint(stages / "06-refine/1"), open_checkpoint(stages / "06-refine/2")
    assert len(groups["groups"]) == 2
    for name, positions in region.positions.items():
        assert np.array_equal(before.raw(name)[positions].view(np.int32), after.raw(name)[positions].view(np.int32))
    scores = json.loads((tmp_path / "out/scores.json").read_text())
    assert {"base", "probe/reverse", "probe/upper", "fused"} <= set(scores["models"])
    made = {p.parent.relative_to(stages): p.stat().st_mtime_ns for p in stages.rglob("stage.json")}
    run(asked, tmp_path / "out")
    assert made == {p.parent.relative_to(stages): p.stat().st_mtime_ns for p in stages.rglob("stage.json")}


@pytest.mark.parametrize(
    ("adapter", "message"),
    [
        ({"type": "lore"}, r"probe\.adapter\.type.*did you mean 'lora'"),
        ({"r": 0}, r"probe\.adapter\.r"),
        ({"rank": 4}, r"unknown key 'probe\.adapter\.rank'"),
        ({"target_modules": ["*proj"]}, "without wildcards"),
    ],
)
def test_an_adapter_that_is_none_is_named(adapter: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(CpiftError, match=message):
        Recipe.parse({**tiny.recipe(tmp_path), "probe": {"adapter": adapter}})


@pytest.mark.parametrize(
    ("adapter", "message"),
    [
        ({"target_modules": ["qq_proj"]}, r"probe\.adapter: adapter: PEFT refuses it.*qq_proj"),
        (
            {"target_modules": ["embed_tokens"]},
            r"probe\.adapter: adapts model\.embed_tokens\.weight, which the base shares",
        ),
        ({"modules_to_save": ["nrm"]}, r"modules_to_save: nrm is the end of no module's name"),
        pytest.param(
            {"type": "qlora"},
            r"probe\.adapter\.type: qlora needs bitsandbytes",
            marks=pytest.mark.skipif(find_spec("bitsandbytes") is not None, reason="it is installed"),
        ),
    ],
)
def test_an_adapter_that_does_not_fit_the_model_is_refused_before_anything_is_trained(
    adapter: dict[str, Any], message: str, tmp_path: Path
) -> None:
    table = {**tiny.recipe(tmp_path), "probe": {"adapter": adapter}}
    with pytest.raises(CpiftError, match=message):
        run(Recipe.parse(table), tmp_path / "out")
    assert not list((tmp_path / "out").rglob("01-probe"))


def test_the_plan_counts_the_adapter(tmp_path: Path) -> None:
    asked = recipe(tmp_path)
    with_adapters = plan(asked)
    without = plan(Recipe.parse({**tiny.recipe(tmp_path, ("reverse", "upper")), "probe": {"steps": 6}}))
    layer = 4 * (
        2 * (32 + 32) + 2 * (32 + 16) + 3 * (32 + 48)
    )  # r · (inputs + outputs): q and o, k and v, the three of the MLP
    assert with_adapters["adapter"]["parameters"] == 2 * layer
    total = open_checkpoint(tmp_path / "base").total
    assert without["disk"] - with_adapters["disk"] == 2 * 4 * (total - 2 * layer)


@pytest.mark.parametrize("stage", ["probe", "backbone", "refine"])
def test_comparisons_and_arrivals_take_no_adapters(stage: str, tmp_path: Path) -> None:
    table = {**tiny.recipe(tmp_path, ("reverse", "upper")), stage: {"adapter": {"r": 4}}}
    with pytest.raises(CpiftError, match=rf"{stage}\.adapter: cpift compare sets methods"):
        compare(Recipe.parse(table), tmp_path / "out", ["cpi_ft", "multi_task"])
    with pytest.raises(CpiftError, match=rf"{stage}\.adapter: arrivals train all parameters"):
        Recipe.parse({**table, "arrivals": ["upper"]})
