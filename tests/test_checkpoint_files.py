"""Which files are read, under which names; what is no plain checkpoint is refused with what makes one of it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from checkpoints import CONFIGS, family, write
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from cpift.checkpoint.align import align
from cpift.checkpoint.names import match_names, plain_name
from cpift.checkpoint.reader import open_checkpoint
from cpift.checkpoint.stream import fingerprint
from cpift.errors import CpiftError
from cpift.method.identify import identify
from cpift.train.models import check_model, load_model

W = {"a.weight": np.arange(12, dtype=np.float32).reshape(3, 4), "b.weight": np.ones(5, np.float32)}
INDEX = "model.safetensors.index.json"


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """A base and a task."""
    return family(tmp_path_factory.mktemp("llama"), "llama", tasks=1)


def copied(source: Path, target: Path) -> Path:
    shutil.copytree(source, target)
    return target


def changed(folder: Path, change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> Path:
    """The checkpoint with other tensors in its file."""
    save_file(change(load_file(folder / "model.safetensors")), folder / "model.safetensors", metadata={"format": "pt"})
    return folder


# --- names ------------------------------------------------------------------------------------------------------------

NAMES = {
    "model.norm.weight": "model.norm.weight",
    "_orig_mod.model.norm.weight": "model.norm.weight",
    "module._orig_mod.model.norm.weight": "model.norm.weight",
    "_orig_mod.module.module.model.norm.weight": "model.norm.weight",
    "model.layers.0._orig_mod._checkpoint_wrapped_module.mlp._fsdp_wrapped_module.w": "model.layers.0.mlp.w",
    "base_model.model.model.norm.weight": "model.norm.weight",
    "module.base_model.model._orig_mod.model.norm.weight": "model.norm.weight",
    "model.layers.0._orig_mod.module.w": "model.layers.0.w",
    "model.vision.module.w": "model.vision.module.w",  # a layer of this name
    "model.base_model.model.w": "model.base_model.model.w",
}


@pytest.mark.parametrize("name", NAMES)
def test_wrappers_are_no_part_of_a_name(name: str) -> None:
    assert plain_name(name) == NAMES[name]


def test_names_are_matched_one_to_one() -> None:
    """Two names never share a partner: the second has none."""
    assert match_names(["a", "model.a"], ["a"]) == {"a": "a"}
    assert match_names(["x.a", "x.b"], ["a", "b"]) == {"x.a": "a", "x.b": "b"}


def wrapped(tensors: dict[str, Any]) -> dict[str, Any]:
    """As torch.compile, activation checkpointing and DistributedDataParallel would name them, one in the other."""
    named = {}
    for name, tensor in tensors.items():
        parts = name.split(".")
        named[".".join(["module", "_orig_mod", parts[0], "_checkpoint_wrapped_module", *parts[1:]])] = tensor
    return named


@pytest.mark.parametrize("kind", CONFIGS)
def test_wrapped_names_load_and_count_as_plain_ones(tmp_path: Path, kind: str) -> None:
    """The same fingerprint, region and weights in memory as of the checkpoint that has plain names."""
    base, task = family(tmp_path, kind, tasks=1)
    odd = changed(copied(base, tmp_path / "odd"), wrapped)
    assert fingerprint(open_checkpoint(odd)) == fingerprint(open_checkpoint(base))
    expected = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).state_dict()
    got = load_model(odd).state_dict()
    assert got.keys() == expected.keys()
    assert all(torch.equal(got[name], weight) for name, weight in expected.items())
    ours, theirs = identify(odd, {"t": task})["t"], identify(base, {"t": task})["t"]
    assert all(np.array_equal(ours.positions[name], places) for name, places in theirs.positions.items())


def test_a_parameter_under_two_names_is_refused(tmp_path: Path) -> None:
    folder = write(tmp_path / "twice", {**W, "_orig_mod.a.weight": W["a.weight"]})
    with pytest.raises(CpiftError, match="are one parameter, stored twice"):
        open_checkpoint(folder)


def test_buffers_are_renamed_with_the_parameters(tmp_path: Path) -> None:
    base = open_checkpoint(write(tmp_path / "base", {"model." + n: a for n, a in W.items()}))
    more = {**W, "a.position_ids": np.arange(3)}
    assert list(align(base, open_checkpoint(write(tmp_path / "other", more))).others) == ["model.a.position_ids"]


# --- every weight comes from the checkpoint --------------------------------------------------------------------------

LOSSES: dict[str, tuple[Callable[[str], bool], str]] = {
    "a layer": (lambda name: ".layers.1." in name, "lacks weights of the model.*layers.1"),
    "the norm": (lambda name: name == "model.norm.weight", r"model\.norm\.weight"),
    "the head": (lambda name: name == "lm_head.weight", r"lm_head\.weight"),
    "a projection": (lambda name: name.endswith("0.self_attn.k_proj.weight"), "k_proj"),
}


@pytest.mark.parametrize("name", LOSSES)
def test_missing_weights_are_an_error(tmp_path: Path, llama: list[Path], name: str) -> None:
    """transformers would draw them at random: neither the check before a run nor the loading lets that pass."""
    lost, words = LOSSES[name]
    check_model(llama[0])  # what has passed is remembered, and must not let these pass
    folder = changed(copied(llama[0], tmp_path / "less"), lambda w: {n: t for n, t in w.items() if not lost(n)})
    for call in (check_model, load_model):
        with pytest.raises(CpiftError, match=words):
            call(folder)


def test_weights_that_the_model_has_no_place_for_are_an_error(tmp_path: Path, llama: list[Path]) -> None:
    check_model(llama[0])
    folder = copied(llama[0], tmp_path / "more")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 1}))
    with pytest.raises(CpiftError, match=r"has no place.*model\.layers\.1\."):
        load_model(folder)


def test_buffers_and_tied_heads_may_lack_or_be_there(tmp_path: Path) -> None:
    """What transformers loads without is no reason to refuse."""
    base, _ = family(tmp_path, "gpt2", tasks=1)
    mask = {f"transformer.h.{i}.attn.bias": torch.ones(1, 1, 64, 64) for i in range(2)}
    folder = changed(base, lambda w: {**w, **mask, "lm_head.weight": w["transformer.wte.weight"].clone()})
    assert load_model(folder) is not None


# --- which files ------------------------------------------------------------------------------------------------------


def resharded(folder: Path) -> None:
    """The shards of an older save, and its index, beside a newer file."""
    other = AutoModelForCausalLM.from_config(CONFIGS["llama"])
    other.save_pretrained(folder / "old", max_shard_size="40KB")
    for file in (folder / "old").glob("model*"):
        file.rename(folder / file.name)
    shutil.rmtree(folder / "old")


def test_shards_of_an_older_save_are_not_read(tmp_path: Path, llama: list[Path]) -> None:
    """As transformers does: a model.safetensors goes before an index."""
    folder = copied(llama[0], tmp_path / "both")
    resharded(folder)
    assert (folder / INDEX).is_file()
    assert fingerprint(open_checkpoint(folder)) == fingerprint(open_checkpoint(llama[0]))
    loaded = AutoModelForCausalLM.from_pretrained(folder).state_dict()
    kept = open_checkpoint(folder)
    assert all(np.array_equal(kept.raw(n), loaded[n].numpy().ravel()) for n in kept.tensors)


def edited(folder: Path, **changes: str | None) -> None:
    index = json.loads((folder / INDEX).read_text())
    for name, file in changes.items():
        index["weight_map"].pop(name) if file is None else index["weight_map"].update({name: file})
    (folder / INDEX).write_text(json.dumps(index))


def test_an_index_that_is_not_quite_right_is_read(tmp_path: Path) -> None:
    """It lists a buffer that is nowhere, and lacks one that is there; it places a tensor in another of its files."""
    folder = write(
        tmp_path / "odd", {**W, "c.weight": np.ones(3, np.float32), "x.position_ids": np.arange(4)}, shards=2
    )
    first, second = (f"model-0000{i}-of-00002.safetensors" for i in (1, 2))
    edited(folder, **{"x.rotary_emb.inv_freq": first, "x.position_ids": None, "c.weight": second})
    found = open_checkpoint(folder)
    assert set(found.tensors) == {*W, "c.weight"}
    assert set(found.others) == {"x.position_ids"}


def test_a_file_named_by_the_configuration_is_read(tmp_path: Path, llama: list[Path]) -> None:
    folder = copied(llama[0], tmp_path / "named")
    (folder / "model.safetensors").rename(folder / "weights.safetensors")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "transformers_weights": "weights.safetensors"}))
    assert fingerprint(open_checkpoint(folder)) == fingerprint(open_checkpoint(llama[0]))
    load_model(folder)


# --- what is no plain checkpoint -------------------------------------------------------------------------------------


def files(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"{}")
    return folder


FOREIGN: dict[str, tuple[Callable[[Path], Any], str]] = {
    "DeepSpeed": (
        lambda f: files(f, "latest", "zero_to_fp32.py", "global_step10/mp_rank_00_model_states.pt", "config.json"),
        r"DeepSpeed.*python \S+zero_to_fp32\.py \S+ whole --safe_serialization",
    ),
    "a step of DeepSpeed": (
        lambda f: files(f, "bf16_zero_pp_rank_0_mp_rank_00_optim_states.pt"), "DeepSpeed.*zero_to_fp32",
    ),
    "ZeRO-3 stubs": (
        lambda f: write(f, {**W, "model.embed_tokens.weight": np.ones(0, np.float32)}),
        r"model\.embed_tokens\.weight.*ZeRO-3.*zero_to_fp32\.py",
    ),
    "FSDP": (
        lambda f: files(f, "pytorch_model_fsdp_0/__0_0.distcp", "pytorch_model_fsdp_0/.metadata", "config.json"),
        r"FSDP.*accelerate merge-weights \S+pytorch_model_fsdp_0 whole",
    ),
    "FSDP, the inner folder": (lambda f: files(f, "__0_0.distcp", ".metadata"), "accelerate merge-weights"),
    "a Trainer's folder": (
        lambda f: files(f, "checkpoint-90/model.safetensors", "checkpoint-100/model.safetensors", "runs/x"),
        "checkpoint-100$",
    ),
    "an adapter": (lambda f: files(f, "adapter_config.json", "adapter_model.safetensors"), "adapter_config.json: peft_type"),
    "an adapter beside a configuration": (
        lambda f: files(f, "adapter_config.json", "adapter_model.safetensors", "config.json"),
        "adapter_config.json: peft_type",
    ),
    "an adapter beside a model": (
        lambda f: (write(f, W), files(f, "adapter_config.json")), r"beside the weights.*remove adapter_config\.json",
    ),
    "an adapter that is not merged": (
        lambda f: write(f, {"base_model.model.q.base_layer.weight": W["a.weight"], "q.lora_A.default.weight": W["b.weight"]}),
        "belongs to an adapter, beside the weights of its base",
    ),
    "GGUF": (lambda f: files(f, "model-Q4.gguf"), "is a GGUF file.*gguf_file='model-Q4.gguf'"),
    "a variant": (lambda f: files(f, "model.fp16.safetensors", "config.json"), "variant='fp16'"),
    "sharded variant": (lambda f: files(f, "model.bf16.safetensors.index.json"), "variant='bf16'"),
    "Mistral's format": (lambda f: files(f, "consolidated.safetensors", "params.json"), "original format"),
    "Llama's format": (lambda f: files(f, "consolidated.00.pth", "params.json"), "original format"),
    "pickle": (lambda f: files(f, "pytorch_model.bin", "config.json"), "is a pickle.*use_safetensors=False"),
    "transformers' own shards": (
        lambda f: files(f, "shard-00000-model-00001-of-00001.safetensors", "config.json"), "distributed checkpoint",
    ),
    "another name": (lambda f: files(f, "weights.safetensors"), "holds neither.*weights.safetensors"),
}  # fmt: skip


@pytest.mark.parametrize("name", FOREIGN)
def test_what_is_no_plain_checkpoint_is_named_with_its_remedy(tmp_path: Path, name: str) -> None:
    make, words = FOREIGN[name]
    make(tmp_path / "given")
    with pytest.raises(CpiftError, match=words) as caught:
        open_checkpoint(tmp_path / "given")
    assert "\n" not in str(caught.value)


def test_a_gguf_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(CpiftError, match="is a GGUF file"):
        open_checkpoint(files(tmp_path, "m.gguf") / "m.gguf")


# --- quantised --------------------------------------------------------------------------------------------------------

CODES = np.ones((4, 2), np.int32)
QUANTIZED: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "bitsandbytes by its configuration": (
        {}, {"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}}, "quantised .bitsandbytes.",
    ),
    "within a text part": ({}, {"text_config": {"quantization_config": {"quant_method": "fp8"}}}, "quantised .fp8."),
    "bitsandbytes, 4 bits": ({"q.weight": np.ones((8, 1), np.uint8), "q.weight.absmax": W["b.weight"]}, {}, r"q\.weight"),
    "bitsandbytes, 8 bits": ({"q.weight": np.ones((4, 4), np.int8), "q.SCB": W["b.weight"]}, {}, r"q\.weight"),
    "GPTQ": ({"q.qweight": CODES, "q.qzeros": CODES, "q.scales": W["a.weight"], "q.g_idx": CODES[0]}, {}, "quantised"),
    "AWQ": ({"q.qweight": CODES, "q.qzeros": CODES, "q.scales": W["a.weight"]}, {}, r"q\.qweight"),
    "mxfp4": ({"e.gate_up_proj_blocks": CODES.astype(np.uint8), "e.gate_up_proj_scales": CODES.astype(np.uint8)}, {}, "_blocks"),
    "compressed tensors": ({"q.weight_packed": CODES, "q.weight_shape": np.array([4, 4])}, {}, "2 tensors of a quantised"),
    "fp8": ({"q.weight": torch.ones(3, 3).to(torch.float8_e4m3fn)}, {}, "F8_E4M3.*unquantised"),
    "codes under a name of their own": ({"q.table": CODES}, {}, r"q\.table"),
    "an integer weight": ({"q.weight": np.ones(3, np.int64)}, {}, r"q\.weight"),
}  # fmt: skip


@pytest.mark.parametrize("name", QUANTIZED)
def test_quantised_checkpoints_are_refused(tmp_path: Path, name: str) -> None:
    tensors, config, words = QUANTIZED[name]
    folder = write(tmp_path / "given", {**W, **tensors}, config={"tie_word_embeddings": False, **config})
    with pytest.raises(CpiftError, match=words):
        open_checkpoint(folder)


def test_integer_buffers_are_no_codes(tmp_path: Path) -> None:
    """Position ids, masks, counters, and a table of token ids to experts."""
    buffers = {
        "x.position_ids": np.arange(4)[None], "x.num_batches_tracked": np.array(3), "h.attn.bias": np.ones((1, 1, 2, 2), np.uint8),
        "r.tid2eid": np.ones((4, 2), np.int64), "x.relative_position_index": np.ones((2, 2), np.int64),
    }  # fmt: skip
    assert set(open_checkpoint(write(tmp_path / "given", {**W, **buffers})).others) == set(buffers)
