"""``output``: what a finished run leaves, in which type, and what is made again where it is needed after all."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from safetensors.torch import load_file, save_file
from tiny_run import Listener, copy, finished_run, one_thread, stamps
from transformers import AutoModelForCausalLM

from cpift.errors import CpiftError
from cpift.files.layout import RunLayout
from cpift.recipe.recipe import Recipe
from cpift.runs.pipeline import run
from cpift.runs.status import stage_states


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return finished_run(tmp_path_factory)


def again(out: Path, **output: Any) -> Listener:
    """Run the recipe in the folder again, with another ``output``."""
    watch = Listener()
    recipe = Recipe.load(RunLayout(out).recipe).changed({f"output.{key}": value for key, value in output.items()})
    with one_thread():
        run(recipe, out, reporter=watch)
    return watch


def weights(out: Path) -> set[str]:
    return {
        str(file.parent.relative_to(out / "stages"))
        for file in out.glob("stages/**/*.safetensors")
        if file.name not in ("region.safetensors", "logits.safetensors")
    }


def test_only_the_final_model_regions_and_scores_stay(whole: Path, tmp_path: Path) -> None:
    out = copy(whole, tmp_path / "run")
    before, made = load_file(out / "model/model.safetensors"), stamps(out)
    watch = again(out, keep="final")
    assert not watch.made
    assert not weights(out)
    assert len(list(out.glob("stages/02-identify/*/region.safetensors"))) == 3
    after = load_file(out / "model/model.safetensors")
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert not again(out, keep="final").made  # resumes
    assert stamps(out) == made
    assert (out / "report.html").is_file()


def test_what_a_later_stage_needs_is_made_again_with_the_same_bits(whole: Path, tmp_path: Path) -> None:
    out = copy(whole, tmp_path / "run")
    again(out, keep="final")
    shutil.rmtree(out / "stages/05-fuse")
    states = {
        state.name: state.why
        for state in stage_states(Recipe.load(out / "recipe.yaml"), out)
        if state.state == "missing"
    }
    listed = [state.name for state in stage_states(Recipe.load(out / "recipe.yaml"), out) if "needs them" in state.why]
    assert len(listed) == len(set(listed))
    assert "needs them" in states["01-probe/reverse"]
    watch = again(out, keep="final")
    assert {name for name in watch.made if name.startswith("01-probe/")} == {
        f"01-probe/{task}" for task in ("reverse", "upper", "double")
    }
    assert "05-fuse" in watch.made
    # A refine stage's key holds the digest of what it starts from: it stands only if the fused model has the same bits.
    assert not [name for name in watch.made if name.startswith(("06-refine", "07-"))]
    assert any("is made again" in line for line in watch.said)
    assert not weights(out)


def test_a_task_added_where_only_the_final_model_is_left(whole: Path, tmp_path: Path) -> None:
    """Each probe that is made again is named, and the bits are those of a folder that had kept them."""
    data = tmp_path / "first.jsonl"
    task = {"train": str(tiny.jsonl(data, tiny.rows("first", 16, 0))), "eval": str(data)}
    models = []
    for keep in ("all", "final"):
        out = copy(whole, tmp_path / keep)
        again(out, keep=keep)
        recipe = Recipe.load(RunLayout(out).recipe)
        longer = Recipe.parse(
            {**recipe.model_dump(by_alias=True), "tasks": {**recipe.model_dump()["tasks"], "first": task}}
        )
        watch = Listener()
        with one_thread():
            run(longer, out, reporter=watch)
        probes = {f"01-probe/{name}" for name in ("reverse", "upper", "double")}
        assert probes & {*watch.made} == (probes if keep == "final" else set())
        said = [line for line in watch.said if "is made again" in line]
        assert all(any(probe in line for line in said) == (keep == "final") for probe in probes)
        models.append(load_file(out / "model/model.safetensors"))
        if keep == "final":
            assert not weights(out)
    assert all(torch.equal(models[0][name], models[1][name]) for name in models[0])


def test_a_final_model_that_is_another_ones_is_put_there_anew(whole: Path, tmp_path: Path) -> None:
    out = copy(whole, tmp_path / "run")
    before = load_file(out / "model/model.safetensors")
    again(out, keep="final")
    watch = again(out, keep="final", dtype="bfloat16")
    after = load_file(out / "model/model.safetensors")
    assert all(torch.equal(after[name], before[name].to(torch.bfloat16)) for name in before)
    assert any("model/ needs its weights" in line for line in watch.said)
    assert not weights(out)


def test_a_removal_that_was_cut_off_is_finished(whole: Path, tmp_path: Path) -> None:
    out = copy(whole, tmp_path / "run")
    left = load_file(out / "stages/01-probe/upper/model.safetensors")
    again(out, keep="final")
    save_file(left, out / "stages/01-probe/upper/model.safetensors")
    again(out, keep="final")
    assert not weights(out)


def test_the_final_model_in_another_type(whole: Path, tmp_path: Path) -> None:
    out = copy(whole, tmp_path / "run")
    before = load_file(out / "model/model.safetensors")
    again(out, dtype="bfloat16")
    after = load_file(out / "model/model.safetensors")
    assert all(torch.equal(after[name], before[name].to(torch.bfloat16)) for name in before)
    assert AutoModelForCausalLM.from_pretrained(out / "model", dtype="auto").dtype == torch.bfloat16
    assert "CPI-FT" in (out / "model/README.md").read_text()
    again(out, dtype="base")
    assert {tensor.dtype for tensor in load_file(out / "model/model.safetensors").values()} == {torch.float32}


def test_an_unknown_type_is_refused() -> None:
    with pytest.raises(CpiftError, match=r"output\.dtype"):
        Recipe.parse({"model": "m", "tasks": {"a": {"train": "a.jsonl", "eval": 1}}, "output": {"dtype": "int8"}})
