"""A base with a LoRA adapter reads as the model that PEFT makes of the two."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path
from typing import Any

import adapters
import huggingface_hub
import numpy as np
import pytest
import tiny
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

from cpift.checkpoint.reader import open_checkpoint, open_plain
from cpift.checkpoint.stream import Checkpoint, fingerprint
from cpift.cli.main import app
from cpift.errors import CpiftError
from cpift.evaluation.recipe import evaluate_recipe
from cpift.method.fuse import fuse
from cpift.method.identify import identify
from cpift.method.region import Region
from cpift.recipe.recipe import Recipe
from cpift.train.models import load_model

# PEFT asks transformers in an older way, and warns of tied weights.
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning:peft")

KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "rank stabilised": {"use_rslora": True, "r": 4, "lora_alpha": 6},
    "DoRA": {"use_dora": True},
    "patterns": {"rank_pattern": {"layers.0.mlp.up_proj": 5, "k_proj": 2}, "alpha_pattern": {"layers.1.self_attn.q_proj": 3, ".*v_proj": 32}},
    "biases of B": {"lora_bias": True, "target_modules": ["q_proj", "v_proj"]},
    "trained biases": {"bias": "all"},
    "whole modules": {"modules_to_save": ["lm_head", "norm"], "target_modules": ["q_proj"]},
    "embeddings": {"target_modules": ["embed_tokens", "lm_head", "o_proj"]},
    "embeddings by DoRA": {"target_modules": ["embed_tokens", "q_proj"], "use_dora": True},
}  # fmt: skip


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("bases")
    return {kind: adapters.base(folder / kind, kind) for kind in adapters.CONFIGS}


def values(checkpoint: Checkpoint) -> dict[str, np.ndarray]:
    return {name: np.array(checkpoint.raw(name)).reshape(tensor.shape) for name, tensor in checkpoint.tensors.items()}


def check_against_peft(base: Path, adapter: Path, folder: Path) -> None:
    adapters.merged(adapter, base).save_pretrained(folder)
    expected, ours = values(open_checkpoint(folder)), values(open_checkpoint(adapter))
    assert list(ours) == list(expected)
    changed = 0
    for name, value in expected.items():
        assert ours[name].dtype == np.float32
        np.testing.assert_allclose(ours[name], value, rtol=3e-6, atol=3e-8, err_msg=name)
        changed += not np.array_equal(value, values(open_checkpoint(base))[name])
    assert changed > 1


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_agrees_with_peft(kind: str, bases: dict[str, Path], tmp_path: Path) -> None:
    made = adapters.adapter(tmp_path / "adapter", bases["llama"], **KINDS[kind])
    check_against_peft(bases["llama"], made, tmp_path / "merged")


@pytest.mark.parametrize("settings", [{}, {"use_dora": True}], ids=["plain", "DoRA"])
@pytest.mark.parametrize("architecture", ["qwen3", "gemma3", "gpt_neox", "gpt2"])
def test_each_architecture_agrees_with_peft(
    architecture: str, settings: dict[str, Any], bases: dict[str, Path], tmp_path: Path
) -> None:
    settings = {**settings, "fan_in_fan_out": architecture == "gpt2"}  # Conv1D, square weights among them
    made = adapters.adapter(tmp_path / "adapter", bases[architecture], **settings)
    check_against_peft(bases[architecture], made, tmp_path / "merged")


def test_values_are_base_and_scaled_product_rounded_once(bases: dict[str, Path], tmp_path: Path) -> None:
    made = adapters.adapter(tmp_path / "adapter", bases["llama"], r=3, lora_alpha=7)
    ours, own = values(open_checkpoint(made)), values(open_checkpoint(bases["llama"]))
    parts = load_file(made / "adapter_model.safetensors")
    start = "base_model.model.model.layers.1.self_attn.k_proj."
    b, a = (parts[f"{start}lora_{x}.weight"].double().numpy() for x in "BA")
    name = "model.layers.1.self_attn.k_proj.weight"
    exact = own[name].astype(np.float64) + 7 / 3 * (b[:, :1] * a[:1] + b[:, 1:2] * a[1:2] + b[:, 2:] * a[2:])
    assert np.array_equal(ours[name], exact.astype(np.float32))


def test_values_do_not_depend_on_where_a_read_begins(bases: dict[str, Path], tmp_path: Path) -> None:
    for settings in ({}, {"use_dora": True}):
        made = open_checkpoint(adapters.adapter(tmp_path / str(len(settings)), bases["gpt2"], **settings))
        for name, whole in values(made).items():
            flat = whole.ravel()
            pieces = [made.raw(name, i, min(i + 7, flat.size)) for i in range(0, flat.size, 7)]
            for start, stop in ((0, 1), (5, 23), (flat.size - 3, flat.size)):
                assert np.array_equal(made.raw(name, start, stop), flat[start:stop]), name
            assert np.array_equal(np.concatenate(pieces), flat)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_half_precision_base_gives_a_float32_result(dtype: torch.dtype, tmp_path: Path) -> None:
    base = adapters.base(tmp_path / "base", dtype=dtype)
    made = adapters.adapter(tmp_path / "adapter", base)
    check_against_peft(base, made, tmp_path / "merged")  # PEFT on the base in float32


def written(checkpoint: Checkpoint, base: Path, folder: Path) -> Path:
    """A plain checkpoint with the values as they are read."""
    folder.mkdir()
    save_file({n: torch.from_numpy(v) for n, v in values(checkpoint).items()}, folder / "model.safetensors")
    (folder / "config.json").write_text((base / "config.json").read_text())
    return folder


def test_regions_and_fusion_are_those_of_the_merged_checkpoints(tmp_path: Path) -> None:
    base = adapters.base(tmp_path / "base", dtype=torch.bfloat16)
    tuned = {f"task{i}": adapters.adapter(tmp_path / f"adapter{i}", base, seed=i, use_dora=i == 2) for i in range(3)}
    whole = {n: written(open_checkpoint(p), base, tmp_path / f"whole-{n}") for n, p in tuned.items()}
    ours, expected = identify(base, tuned, 3), identify(base, whole, 3)
    for name, region in expected.items():
        assert ours[name].tuned == region.tuned == fingerprint(open_checkpoint(whole[name]))
        assert ours[name].count == region.count > 0
        assert all(np.array_equal(p, ours[name].positions[n]) for n, p in region.positions.items())
    reports = [fuse(base, models, tmp_path / out, regions=ours) for out, models in (("a", tuned), ("b", whole))]
    assert (tmp_path / "a/model.safetensors").read_bytes() == (tmp_path / "b/model.safetensors").read_bytes()
    assert reports[0]["fingerprints"] == reports[1]["fingerprints"]
    assert json.loads((tmp_path / "a/config.json").read_text())["dtype"] == "float32"


def edit(folder: Path, **changes: Any) -> None:
    file = folder / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def stored(folder: Path, change: Any) -> None:
    file = folder / "adapter_model.safetensors"
    parts = load_file(file)
    change(parts)
    save_file(parts, file)


REFUSED: dict[str, tuple[Any, str]] = {
    "another kind": (lambda f: edit(f, peft_type="IA3"), "peft_type is IA3, which is not supported"),
    "prompts": (lambda f: edit(f, peft_type="PROMPT_TUNING"), "peft_type is PROMPT_TUNING"),
    "a changed base": (lambda f: edit(f, init_lora_weights="pissa_niter_4"), "pissa_niter_4.*changes the base"),
    "experts": (lambda f: edit(f, target_parameters=["experts.down"]), "target_parameters is not supported"),
    "rows of tokens": (lambda f: edit(f, trainable_token_indices=[1]), "trainable_token_indices is not supported"),
    "a newer key": (lambda f: edit(f, use_magic=True), "use_magic is newer"),
    "another rank": (lambda f: edit(f, r=4), "has rank 3 .* says 4"),
    "no rank": (lambda f: edit(f, r=0), "r is 0"),
    "a pattern that is none": (lambda f: edit(f, alpha_pattern={"(": 2}), "alpha_pattern.*is no pattern"),
    "text for a number": (lambda f: edit(f, lora_alpha="big"), "lora_alpha is 'big'"),
    "A alone": (lambda f: stored(f, lambda p: [p.pop(n) for n in list(p) if "lora_B" in n]), "has a A alone"),
    "a missing module": (
        lambda f: stored(f, lambda p: p.update({n.replace("layers.1", "layers.9"): p.pop(n) for n in list(p)})),
        r"was trained on another model than .*lacks model\.layers\.9",
    ),
    "another shape": (
        lambda f: stored(f, lambda p: p.update({n: t[:, :-1].contiguous() for n, t in p.items() if "lora_A" in n})),
        "another model than.*the base's has shape",
    ),
    "a strange part": (
        lambda f: stored(f, lambda p: p.update({"base_model.model.model.norm.lora_C.weight": torch.ones(2)})),
        "lora_C.weight is a part of an adapter that is not supported",
    ),
    "no magnitudes": (lambda f: edit(f, use_dora=True), "use_dora is True, and .* has no lora_magnitude_vector"),
    "no weights": (lambda f: (f / "adapter_model.safetensors").unlink(), "lacks adapter_model.safetensors"),
    "an unknown base": (lambda f: edit(f, base_model_name_or_path="./nowhere"), "base_model_name_or_path cannot be read.*nowhere"),
    "no base": (lambda f: edit(f, base_model_name_or_path=None), "base_model_name_or_path is empty"),
}  # fmt: skip


@pytest.fixture(scope="module")
def plain_adapter(bases: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return adapters.adapter(tmp_path_factory.mktemp("adapters") / "plain", bases["llama"])


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_merged_is_refused_by_name(case: str, plain_adapter: Path, tmp_path: Path) -> None:
    folder = tmp_path / "adapter"
    folder.mkdir()
    for file in plain_adapter.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    damage, message = REFUSED[case]
    damage(folder)
    with pytest.raises(CpiftError, match=message):
        open_checkpoint(folder)


def test_another_base_is_refused_where_it_can_be_known(
    bases: dict[str, Path], plain_adapter: Path, tmp_path: Path
) -> None:
    copied = open_checkpoint(written(open_checkpoint(bases["llama"]), bases["llama"], tmp_path / "copy"))
    assert open_checkpoint(plain_adapter, copied).total == copied.total
    half = adapters.base(tmp_path / "half", dtype=torch.bfloat16)
    assert open_checkpoint(plain_adapter, open_checkpoint(half)).total == copied.total
    other = values(copied)["model.norm.weight"] + 1
    copy = written(open_checkpoint(bases["llama"]), bases["llama"], tmp_path / "other")
    stored_tensors = load_file(copy / "model.safetensors")
    save_file({**stored_tensors, "model.norm.weight": torch.from_numpy(other)}, copy / "model.safetensors")
    with pytest.raises(CpiftError, match=r"was trained on .*llama, whose model\.norm\.weight is another"):
        open_checkpoint(plain_adapter, open_checkpoint(copy))
    with pytest.raises(CpiftError, match="was trained on another model than"):
        open_checkpoint(plain_adapter, open_checkpoint(adapters.base(tmp_path / "neox", "gpt_neox")))


def test_a_base_of_the_hub_is_known_by_repository_and_commit(
    bases: dict[str, Path], plain_adapter: Path, tmp_path: Path
) -> None:
    commit, folder = "a" * 40, tmp_path / "adapter"
    cache = tmp_path / "hub" / "models--org--Tiny-Llama" / "snapshots" / commit
    written(open_checkpoint(bases["llama"]), bases["llama"], tmp_path / "whole")
    cache.parent.mkdir(parents=True)
    (tmp_path / "whole").rename(cache)
    folder.mkdir()
    for file in plain_adapter.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    base = open_checkpoint(cache)
    for name in ("org/Tiny-Llama", "other/tiny-llama-bnb-4bit"):
        edit(folder, base_model_name_or_path=name)
        assert open_checkpoint(folder, base).beneath is base
    edit(folder, base_model_name_or_path="org/Tiny-Llama-Instruct")
    with pytest.raises(CpiftError, match="was trained on org/Tiny-Llama-Instruct, the base given is org/Tiny-Llama"):
        open_checkpoint(folder, base)
    edit(folder, base_model_name_or_path="org/Tiny-Llama", revision="b" * 40)
    with pytest.raises(CpiftError, match=f"was trained on revision {'b' * 40}"):
        open_checkpoint(folder, base)


@pytest.mark.parametrize(
    "settings", [{"target_modules": ["embed_tokens"]}, {"modules_to_save": ["lm_head"], "target_modules": ["q_proj"]}]
)
def test_one_half_of_a_tied_pair_is_refused(settings: dict[str, Any], tmp_path: Path) -> None:
    base = adapters.base(tmp_path / "base", tie_word_embeddings=True)
    with pytest.raises(CpiftError, match=r"shares between input and output|half of a pair"):
        open_checkpoint(adapters.adapter(tmp_path / "adapter", base, **settings))


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gemma3"])
def test_a_loaded_adapter_gives_the_logits_of_peft(architecture: str, bases: dict[str, Path], tmp_path: Path) -> None:
    made = adapters.adapter(tmp_path / "adapter", bases[architecture])
    rows = torch.arange(12).view(2, 6)
    with torch.inference_mode():
        ours = load_model(made)(rows).logits
        unmerged = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(bases[architecture]), made)(
            rows
        ).logits
        plain = load_model(bases[architecture])(rows).logits
    torch.testing.assert_close(ours, unmerged, rtol=1e-4, atol=1e-5)
    assert (ours - plain).abs().max() > 1e-3


def test_the_command_identifies_adapters_beside_models(tmp_path: Path) -> None:
    base = tiny.base(tmp_path / "base")
    made = adapters.adapter(tmp_path / "adapter", base, target_modules=["q_proj", "down_proj"])
    whole = tiny.base(tmp_path / "whole", seed=1)
    arguments = ["--tuned", f"a={made}", "--tuned", f"b={whole}", "--out", str(tmp_path / "regions")]
    result = CliRunner().invoke(app, ["identify", "--base", str(base), *arguments])
    assert result.exit_code == 0, result.output
    region = Region.load(tmp_path / "regions/a.region.safetensors")
    assert region.count > 0
    assert all("q_proj" in name or "down_proj" in name for name in region.positions)


def test_an_adapter_is_scored_as_its_merged_model(tmp_path: Path) -> None:
    table = tiny.recipe(tmp_path, ("upper",))
    table["tasks"]["upper"]["metric"] = "loss"
    recipe = Recipe.parse(table)
    made = adapters.adapter(tmp_path / "adapter", tmp_path / "base", size=0.5, target_modules=["q_proj", "up_proj"])
    merged = adapters.merged(made, tmp_path / "base")
    merged.save_pretrained(tmp_path / "merged")
    tiny.tokenizer().save_pretrained(tmp_path / "merged")
    ours, expected, plain = (evaluate_recipe(tmp_path / f, recipe) for f in ("adapter", "merged", "base"))
    assert ours["upper"]["score"] == pytest.approx(expected["upper"]["score"], rel=1e-5)
    assert abs(ours["upper"]["score"] - plain["upper"]["score"]) > 1e-3


def test_memory_does_not_grow_with_the_model(tmp_path: Path) -> None:
    base, folder = tmp_path / "base", tmp_path / "adapter"
    base.mkdir()
    save_file(
        {f"layers.{i}.weight": torch.zeros(4096, 4096, dtype=torch.bfloat16) for i in range(2)},
        base / "model.safetensors",
    )
    folder.mkdir()
    parts = {}
    for i in range(2):
        parts[f"base_model.model.layers.{i}.lora_A.weight"] = torch.ones(4, 4096)
        parts[f"base_model.model.layers.{i}.lora_B.weight"] = torch.ones(4096, 4)
        parts[f"base_model.model.layers.{i}.lora_magnitude_vector"] = torch.ones(4096)
    save_file(parts, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(
        json.dumps({"peft_type": "LORA", "r": 4, "lora_alpha": 4, "use_dora": True})
    )
    made = open_checkpoint(folder, open_checkpoint(base))
    made.raw("layers.0.weight", 0, 10)  # compiles
    tracemalloc.start()
    assert fingerprint(made)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert made.nbytes == 134_217_728
    assert peak < 50e6  # blocks of 4 MB in float32, tiles of 8 MB in float64
    assert made.raw("layers.1.weight", 5, 6)[0] == np.float32(4 / np.sqrt(4096 * 16))  # each row brought to length 1


def test_a_base_on_the_hub_is_fetched_at_the_adapter_s_revision(
    bases: dict[str, Path], plain_adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, str | None]] = []

    def snapshot_download(name: str, revision: str | None = None, **more: Any) -> str:
        asked.append((name, revision))
        return str(bases["llama"])

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    folder = tmp_path / "adapter"
    folder.mkdir()
    for file in plain_adapter.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    edit(folder, base_model_name_or_path="org/tiny", revision="v2")
    assert open_checkpoint(folder).total == open_checkpoint(bases["llama"]).total
    assert asked == [("org/tiny", "v2")]


def test_an_adapter_may_be_the_base_of_a_fusion(tmp_path: Path) -> None:
    """The other adapters are still applied to the plain model beneath, and the output has its files."""
    plain = tiny.base(tmp_path / "base")
    first, second = (
        adapters.adapter(tmp_path / f"adapter{i}", plain, seed=i, target_modules=["q_proj", "up_proj"]) for i in (1, 2)
    )
    whole = {i: written(open_checkpoint(p), plain, tmp_path / f"whole{i}") for i, p in ((1, first), (2, second))}
    regions = identify(first, {"b": second}, 2)
    expected = identify(whole[1], {"b": whole[2]}, 2)
    assert regions["b"].base == expected["b"].base
    assert regions["b"].tuned == expected["b"].tuned
    fuse(first, {"b": second}, tmp_path / "out", regions=regions)
    fuse(whole[1], {"b": whole[2]}, tmp_path / "expected", regions=expected)
    assert (tmp_path / "out/model.safetensors").read_bytes() == (tmp_path / "expected/model.safetensors").read_bytes()
    assert (tmp_path / "out/tokenizer.json").read_bytes() == (plain / "tokenizer.json").read_bytes()
    assert load_model(tmp_path / "out") is not None


def test_an_adapter_with_more_rows_of_tokens_than_its_base(bases: dict[str, Path], tmp_path: Path) -> None:
    torch.manual_seed(3)
    model = AutoModelForCausalLM.from_pretrained(bases["llama"])
    model.resize_token_embeddings(43)
    settings = LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["embed_tokens", "lm_head"])
    wrapped = get_peft_model(model, settings)
    adapters.noisy(p for p in wrapped.parameters() if p.requires_grad)
    wrapped.save_pretrained(tmp_path / "adapter")
    rows = torch.arange(37, 43).view(1, 6)
    ours = load_model(tmp_path / "adapter")
    assert ours.config.vocab_size == 43
    with torch.inference_mode():
        torch.testing.assert_close(ours(rows).logits, wrapped.eval()(rows).logits, rtol=1e-4, atol=1e-5)
    with pytest.raises(CpiftError, match=r"vocab_size is 43.*--vocabulary union|vocabularies differ"):
        identify(bases["llama"], {"a": tmp_path / "adapter"}, 1)
    region = identify(bases["llama"], {"a": tmp_path / "adapter"}, 1, vocabulary="union")["a"]
    assert region.count > 0


def test_an_adapter_where_a_whole_model_is_needed_is_refused_with_the_command_that_merges_it(tmp_path: Path) -> None:
    folder = tmp_path / "my lora"
    folder.mkdir()
    (folder / "adapter_config.json").write_text("{}")
    with pytest.raises(CpiftError, match=r"merge it first: cpift export '.*my lora' --out merged$"):
        open_plain(folder)
