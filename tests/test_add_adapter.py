"""``cpift add`` and ``cpift run`` from an adapter: merged as ``cpift export`` does, its update protected, written whole."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import adapters
import numpy as np
import pytest
import tiny
import tiny_run
import torch
from safetensors.torch import load_file, save_file
from tiny_add import arrivals, region, values
from tiny_run import Listener, call

from cpift.method.apply_patch import apply_patches
from cpift.method.region import Region
from cpift.planning.plan import plan
from cpift.recipe.recipe import Recipe
from cpift.runs.pipeline import run
from cpift.runs.status import stage_states

# PEFT asks transformers in an older way.
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning:peft")
NORM = "model.norm.weight"  # in float32, where all else of the base is bf16


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    with tiny_run.one_thread():
        yield


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``base`` in two types, ``lora`` on it."""
    folder = tmp_path_factory.mktemp("add-adapter")
    tiny.base(folder / "base")
    file = folder / "base/model.safetensors"
    tensors = {n: t if n == NORM else t.to(torch.bfloat16) for n, t in load_file(file).items()}
    save_file(tensors, file, metadata={"format": "pt"})
    adapters.adapter(folder / "lora", folder / "base")
    return folder


def recipe_of(place: Path, **changes: Any) -> Recipe:
    given = {"model": str(place / "lora"), "base": None, "guard": [], **changes}
    return Recipe.parse(arrivals(place, ["upper"], [], **given))


@pytest.fixture(scope="module")
def added(place: Path) -> Path:
    run(recipe_of(place), place / "both")
    return place / "both"


def test_the_model_before_has_the_bits_that_export_writes(
    place: Path, added: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(capsys, "export", place / "lora", "--out", place / "merged")[0] == 0
    for file in sorted((place / "merged").iterdir()):
        assert (added / "stages/00-base" / file.name).read_bytes() == file.read_bytes(), file.name
    by_peft = adapters.merged(place / "lora", place / "base").state_dict()
    for name, tensor in values(place / "merged").items():
        assert torch.allclose(tensor, by_peft[name].flatten().float(), rtol=1e-5, atol=1e-7), name


def test_what_the_adapter_changed_most_is_protected(place: Path, added: Path) -> None:
    before, base = values(added / "stages/00-base"), values(place / "base")
    update = {name: (before[name] - base[name].float()).abs().numpy() for name in before}
    held = region(added / "stages/03-protect")
    total = sum(part.size for part in update.values())
    assert sum(map(len, held.values())) == int(0.05 * total)
    inside = np.concatenate([update[name][positions] for name, positions in held.items()])
    outside = np.concatenate([np.delete(part, held.get(name, [])) for name, part in update.items()])
    assert inside.min() >= outside.max() > 0


def test_the_result_is_whole_in_the_types_of_the_base(place: Path, added: Path) -> None:
    before, base, after = values(added / "stages/00-base"), values(place / "base"), values(added / "model")
    assert {name: tensor.dtype for name, tensor in after.items()} == {n: t.dtype for n, t in base.items()}
    assert {tensor.dtype for tensor in base.values()} == {torch.bfloat16, torch.float32}
    assert not (added / "model/adapter_config.json").exists()
    for name, positions in region(added / "stages/03-protect").items():
        at = torch.from_numpy(positions.astype(np.int64))
        assert torch.equal(after[name][at], before[name][at].to(after[name].dtype)), name  # rounded once
    assert any(not torch.equal(after[n], before[n].to(after[n].dtype)) for n in after)
    assert sorted(file.name for file in (added / "model/cpift_regions").iterdir()) == [
        "_protected.region.safetensors",
        "upper.region.safetensors",
    ]


def test_the_command_needs_no_more_than_the_adapter(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = tiny.jsonl(tmp_path / "upper.jsonl", tiny.rows("upper", 12, 0))
    given = ["--model", place / "lora", "--task", f"upper={rows}", "--out", tmp_path / "out"]
    code, _, err = call(capsys, "add", *given, "--write-recipe", tmp_path / "recipe.yaml")
    assert code == 0, err
    recipe = Recipe.load(tmp_path / "recipe.yaml").changed({"guard": []})
    counted = plan(recipe)
    sizes = sum(tensor.numel() for tensor in values(place / "base").values())
    assert (counted["parameters"], counted["checkpoints"]) == (sizes, 3)  # merged, trained, averaged
    assert next(state.name for state in stage_states(recipe, tmp_path / "out")) == "00-base"


def test_cut_off_while_it_is_merged_the_addition_ends_with_the_same_bits(
    place: Path, added: Path, tmp_path: Path
) -> None:
    partial = tmp_path / "out/stages/.00-base.partial"
    for event in ("stage", "progress", "finished"):
        with pytest.raises(tiny_run.Cut):
            run(recipe_of(place), tmp_path / "out", reporter=Listener(event, "00-base"))
        if event == "progress":  # what SIGKILL leaves: a half-written folder, and one that was being emptied
            for name in (".model.partial/model.safetensors", "model/x.safetensors", "model/config.json"):
                tiny.jsonl(partial / name, ["half"])
    listener = Listener()
    run(recipe_of(place), tmp_path / "out", until="identify", reporter=listener)
    made, whole = tmp_path / "out/stages/00-base", added / "stages/00-base"
    assert "00-base" in listener.kept
    assert sorted(file.name for file in made.iterdir()) == sorted(file.name for file in whole.iterdir())
    assert (made / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()


def test_another_adapter_at_the_same_place_is_merged_again(place: Path, added: Path, tmp_path: Path) -> None:
    shutil.copytree(place / "lora", tmp_path / "lora")
    recipe = recipe_of(place, model=str(tmp_path / "lora"))
    run(recipe, tmp_path / "out", until="probe")
    first = (tmp_path / "out/stages/00-base/model.safetensors").read_bytes()
    adapters.adapter(tmp_path / "lora", place / "base", seed=2)
    watch = Listener()
    run(recipe, tmp_path / "out", until="probe", reporter=watch)
    assert watch.made == ["00-base"]
    assert (tmp_path / "out/stages/00-base/model.safetensors").read_bytes() != first


def test_a_patch_fits_the_adapter_as_it_is_exported(place: Path, added: Path, tmp_path: Path) -> None:
    run(recipe_of(place, arrivals={"train": "inside"}), tmp_path / "out")
    before = tmp_path / "out/stages/00-base"
    apply_patches(before, [tmp_path / "out/upper.patch.safetensors"], tmp_path / "on")
    assert {tensor.dtype for tensor in values(tmp_path / "out/model").values()} == {torch.float32}
    assert tiny_run.same(tmp_path / "on", tmp_path / "out/model")
    assert not tiny_run.same(tmp_path / "on", before)


def test_regions_of_the_base_come_along(place: Path, added: Path, tmp_path: Path) -> None:
    """An adapter on a model that ``cpift add`` made: its earlier additions stay protected."""
    adapters.adapter(tmp_path / "lora", added / "model")
    recipe = Recipe.parse(arrivals(place, ["double"], [], model=str(tmp_path / "lora"), base=None, guard=[]))
    run(recipe, tmp_path / "out", until="identify")
    held = region(tmp_path / "out/stages/03-protect")
    carried = Region.load(added / "model/cpift_regions/upper.region.safetensors").positions
    assert carried
    assert all(np.isin(positions, held[name]).all() for name, positions in carried.items())


def test_a_run_begins_with_the_merged_adapter(place: Path, added: Path, tmp_path: Path) -> None:
    data = tiny.recipe(tmp_path / "data")
    (tmp_path / "data").mkdir(exist_ok=True)
    recipe = Recipe.parse({**data, "model": str(place / "lora"), "guard": []})
    run(recipe, tmp_path / "out", until="probe")
    made = tmp_path / "out/stages/00-base/model.safetensors"
    assert made.read_bytes() == (added / "stages/00-base/model.safetensors").read_bytes()


def cut_short(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-40])


def base_named(name: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        config = json.loads((folder / "lora/adapter_config.json").read_text())
        (folder / "lora/adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": name}))

    return change


def another_base(**changes: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        tiny.base(folder / "other", **changes)

    return change


DAMAGE: list[tuple[Callable[[Path], None], list[str], str]] = [
    (lambda folder: cut_short(folder / "lora/adapter_model.safetensors"), [], "adapter_model.safetensors: truncated"),
    (lambda folder: (folder / "lora/adapter_config.json").write_text("{"), [], "adapter_config.json: cannot be read"),
    (lambda folder: (folder / "lora/adapter_model.safetensors").unlink(), [], "lacks adapter_model.safetensors"),
    (base_named(""), [], "base_model_name_or_path is empty"),
    (base_named("org/none"), [], "its base_model_name_or_path cannot be read"),
    (another_base(seed=5), ["--base", "other"], "lora/adapter_config.json: was trained on"),
    (another_base(hidden_size=64), ["--base", "other"], "lora/adapter_config.json: was trained on"),
    (lambda folder: None, ["--base", "lora"], "is a PEFT adapter where a whole model is needed"),
    (lambda folder: None, ["--base", "nowhere"], "nowhere: no such checkpoint"),
    (lambda folder: None, ["--set", "dtype=bfloat16"], "is converted to float32"),
]


@pytest.mark.parametrize(("damage", "options", "message"), DAMAGE)
def test_a_damaged_adapter_or_a_wrong_base_is_one_line_and_nothing_is_written(
    place: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    damage: Callable[[Path], None],
    options: list[str],
    message: str,
) -> None:
    shutil.copytree(place / "lora", tmp_path / "lora")
    rows = tiny.jsonl(tmp_path / "upper.jsonl", tiny.rows("upper", 12, 0))
    damage(tmp_path)
    monkeypatch.chdir(tmp_path)
    code, _, err = call(capsys, "add", "--model", "lora", "--task", f"upper={rows}", "--out", "out", *options)
    lines = [line for line in err.splitlines() if line.startswith("cpift: ")]
    assert (code, len(lines), err.splitlines()[-1:]) == (2, 1, lines), err
    assert message in lines[0]
    assert not (tmp_path / "out").exists()
