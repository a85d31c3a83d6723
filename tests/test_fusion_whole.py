"""What fuse writes beside the fused values: no tensor is dropped, no value overflows, and the right companions."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from checkpoints import family, write
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from cpift.errors import CpiftError
from cpift.method.fuse import fuse
from cpift.method.identify import identify

W = {"a.weight": np.arange(12, dtype=np.float32).reshape(3, 4), "b.weight": np.ones(5, np.float32)}
BUFFERS: dict[str, Any] = {
    "n.running_mean": np.float32([1, 2]), "n.num_batches_tracked": np.array(7), "x.position_ids": np.arange(4)[None],
    "h.attn.bias": np.ones((1, 1, 2, 2), np.bool_), "r.tid2eid": np.ones((4, 2), np.int64), "h.attn.masked_bias": np.float16([-9]),
    "c.flags": np.array([1, 2, 3], np.uint8),
}  # fmt: skip


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    """All tensors of a checkpoint, in one file or in several."""
    return {name: tensor for file in sorted(folder.glob("*.safetensors")) for name, tensor in load_file(file).items()}


# --- every tensor ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", ["5GB", "40B"])
def test_as_many_tensors_come_out_as_went_in(tmp_path: Path, size: str) -> None:
    """Buffers of any type bit by bit, in one file and in many; fusion.json lists them."""
    base = write(tmp_path / "base", {**W, **BUFFERS})
    tuned = write(tmp_path / "tuned", {**{name: w + 1 for name, w in W.items()}, **BUFFERS})
    report = fuse(base, {"t": tuned}, tmp_path / "out", max_shard_size=size)
    out, given = tensors(tmp_path / "out"), tensors(base)
    assert out.keys() == given.keys()
    assert all(torch.equal(out[name], given[name]) and out[name].dtype == given[name].dtype for name in BUFFERS)
    assert set(report["copied"]) == set(BUFFERS)
    assert not report["warnings"]
    assert json.loads((tmp_path / "out/fusion.json").read_text())["copied"] == report["copied"]


def test_a_buffer_that_one_checkpoint_alone_has_is_copied(tmp_path: Path) -> None:
    base = write(tmp_path / "base", {f"model.{name}": w for name, w in W.items()})
    tuned = write(tmp_path / "tuned", {**W, "x.position_ids": np.arange(4)})  # without the base-model prefix
    report = fuse(base, {"t": tuned}, tmp_path / "out")
    assert report["copied"] == {"model.x.position_ids": "t"}
    assert "model.x.position_ids" in tensors(tmp_path / "out")


def test_buffers_that_differ_are_named(tmp_path: Path) -> None:
    base = write(tmp_path / "base", {**W, **BUFFERS})
    tuned = write(tmp_path / "tuned", {**W, **BUFFERS, "n.running_mean": np.float32([3, 4])})
    report = fuse(base, {"t": tuned}, tmp_path / "out")
    assert "n.running_mean" in report["warnings"][0]
    assert torch.equal(tensors(tmp_path / "out")["n.running_mean"], torch.tensor([1.0, 2.0]))
    fuse(base, {"t": tuned}, tmp_path / "other", backbone=tuned)
    assert torch.equal(tensors(tmp_path / "other")["n.running_mean"], torch.tensor([3.0, 4.0]))


@pytest.mark.parametrize("size", ["5GB", "9KB"])
def test_a_tied_pair_that_is_stored_twice_stays_so(tmp_path: Path, size: str) -> None:
    """Both names have the fused values, with the transplanted ones."""
    paths = family(tmp_path, "gpt2", tasks=2)
    for path in paths:
        stored = load_file(path / "model.safetensors")
        stored["lm_head.weight"] = stored["transformer.wte.weight"].clone()
        save_file(stored, path / "model.safetensors", metadata={"format": "pt"})
    tuned: dict[str, str | Path] = {"a": paths[1], "b": paths[2]}
    regions = identify(paths[0], tuned, "5")
    report = fuse(paths[0], tuned, tmp_path / "out", regions=regions, max_shard_size=size)
    out = tensors(tmp_path / "out")
    assert out.keys() == tensors(paths[0]).keys()
    assert torch.equal(out["lm_head.weight"], out["transformer.wte.weight"])
    assert report["tied"] == {"lm_head.weight": "transformer.wte.weight"}
    assert sum(report["won"].values()) == report["core"]
    AutoModelForCausalLM.from_pretrained(tmp_path / "out")


def test_a_model_that_no_one_can_load_is_not_written(tmp_path: Path) -> None:
    """A layer is missing in all inputs alike."""
    base, tuned = family(tmp_path, "llama", tasks=1)
    for path in (base, tuned):
        kept = {n: w for n, w in load_file(path / "model.safetensors").items() if ".layers.1." not in n}
        save_file(kept, path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CpiftError, match=r"lacks weights.*layers\.1"):
        fuse(base, {"t": tuned}, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_wrapped_names_are_written_plain(tmp_path: Path) -> None:
    base, tuned = family(tmp_path, "llama", tasks=1)
    stored = load_file(tuned / "model.safetensors")
    save_file(
        {f"module._orig_mod.{n}": w for n, w in stored.items()}, tuned / "model.safetensors", metadata={"format": "pt"}
    )
    fuse(base, {"t": tuned}, tmp_path / "out", backbone=tuned, weight=1.0)
    out = AutoModelForCausalLM.from_pretrained(tmp_path / "out").state_dict()
    assert all(torch.allclose(out[name], weight, atol=1e-6) for name, weight in stored.items())


# --- values the type cannot hold ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dtype", "value"),
    [("float16", 7e4), ("float16", -7e4), ("bfloat16", 3.4e38), ("float32", 1e39)],
)
def test_a_value_that_the_output_cannot_hold_is_an_error(tmp_path: Path, dtype: str, value: float) -> None:
    """It would be written as infinity. Nothing is left behind."""
    large = {**W, "b.weight": np.array([1, value, 1, 1, 1], np.float64)}
    base = write(tmp_path / "base", large)
    with pytest.raises(CpiftError, match=rf"b\.weight: holds a value that {dtype} cannot hold"):
        fuse(base, {"t": base}, tmp_path / "out", dtype=dtype)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base"]
    fuse(base, {"t": base}, tmp_path / "out", dtype="float64")
    assert float(tensors(tmp_path / "out")["b.weight"][1]) == pytest.approx(value)


# --- companions --------------------------------------------------------------------------------------------------------


@pytest.fixture
def models(tmp_path: Path) -> dict[str, Path]:
    """A base and two others that are all alike."""
    base = tiny.base(tmp_path / "base")
    return {"base": base, **{name: shutil.copytree(base, tmp_path / name) for name in "ab"}}


def trained(folder: Path, template: str = "{{ messages }}") -> None:
    """A chat template and a stop token of its own."""
    (folder / "chat_template.jinja").write_text(template)
    settings = json.loads((folder / "generation_config.json").read_text())
    (folder / "generation_config.json").write_text(json.dumps({**settings, "eos_token_id": [1, 2]}))
    words = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**words, "eos_token": "<|im_start|>"}))


def test_companions_come_from_where_the_models_were_trained(models: dict[str, Path], tmp_path: Path) -> None:
    for name in "ab":
        trained(models[name])
    report = fuse(models["base"], {n: models[n] for n in "ab"}, tmp_path / "out")
    out = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert out.chat_template == "{{ messages }}"
    assert out.eos_token == "<|im_start|>"
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "out").generation_config.eos_token_id == [1, 2]
    assert set(report["companions"]) == {"tokenizer", "chat template", "generation config"}
    assert all("a, b" in note for note in report["companions"].values())


def test_companions_on_which_the_models_disagree_are_the_base_s(models: dict[str, Path], tmp_path: Path) -> None:
    """Each group apart: they agree in the stop tokens, not in the template."""
    trained(models["a"], "one")
    trained(models["b"], "two")
    report = fuse(models["base"], {n: models[n] for n in "ab"}, tmp_path / "out")
    out = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert out.chat_template == tiny.CHATML
    assert out.eos_token == "<|im_start|>"
    (warning,) = [text for text in report["warnings"] if "chat template of a, b" in text]
    assert "chat_template.jinja" in warning


def test_a_template_in_the_tokenizer_s_settings_goes_along(models: dict[str, Path], tmp_path: Path) -> None:
    """As older versions wrote it."""
    for name in "ab":
        (models[name] / "chat_template.jinja").unlink()
        words = json.loads((models[name] / "tokenizer_config.json").read_text())
        (models[name] / "tokenizer_config.json").write_text(json.dumps({**words, "chat_template": "older"}))
    fuse(models["base"], {n: models[n] for n in "ab"}, tmp_path / "out")
    assert AutoTokenizer.from_pretrained(tmp_path / "out").chat_template == "older"


def test_one_that_was_not_trained_further_keeps_the_base_s(models: dict[str, Path], tmp_path: Path) -> None:
    """One of two has another stop token: the base's, with a warning that names it."""
    trained(models["a"], tiny.CHATML)
    report = fuse(models["base"], {n: models[n] for n in "ab"}, tmp_path / "out")
    assert AutoTokenizer.from_pretrained(tmp_path / "out").eos_token == "<|im_end|>"
    assert any("tokenizer of a is another" in text for text in report["warnings"])


def test_links_out_of_a_folder_whose_files_are_not_taken(models: dict[str, Path], tmp_path: Path) -> None:
    """A tuned model may share its tokenizer by a link, as long as no file is copied from there."""
    file = models["a"] / "tokenizer.json"
    file.unlink()
    file.symlink_to(models["base"] / "tokenizer.json")
    assert not fuse(models["base"], {"a": models["a"]}, tmp_path / "out")["warnings"]
    trained(models["a"])
    with pytest.raises(CpiftError, match="is a link that leads out"):
        fuse(models["base"], {"a": models["a"]}, tmp_path / "other")


# --- a larger vocabulary -----------------------------------------------------------------------------------------------


def grown(folder: Path, tokens: list[str], value: float) -> Path:
    """The model with tokens added as transformers does it; their rows hold ``value``."""
    words, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder)
    words.add_tokens(tokens, special_tokens=True)
    before = model.get_input_embeddings().weight.shape[0]
    model.resize_token_embeddings(max(len(words), before))
    with torch.no_grad():
        model.get_input_embeddings().weight[: before - 1] += 0.01
        for token in tokens:
            model.get_input_embeddings().weight[words.convert_tokens_to_ids(token)] = value
    model.save_pretrained(folder)
    words.save_pretrained(folder)
    return folder


def rows(folder: Path) -> np.ndarray:
    found: np.ndarray = AutoModelForCausalLM.from_pretrained(folder).get_input_embeddings().weight.detach().numpy()
    return found


def test_a_larger_vocabulary_is_refused_with_the_flag_named(models: dict[str, Path], tmp_path: Path) -> None:
    grown(models["a"], ["<call>"], 5.0)
    for call in (fuse, identify):
        with pytest.raises(CpiftError, match=r"vocab_size.*--vocabulary union"):
            call(models["base"], {"a": models["a"]}, *([tmp_path / "out"] if call is fuse else []))
    config = json.loads((models["base"] / "config.json").read_text())
    (models["a"] / "config.json").write_text(json.dumps(config))  # the shapes alone tell
    with pytest.raises(CpiftError, match="vocabularies differ; --vocabulary union"):
        fuse(models["base"], {"a": models["a"]}, tmp_path / "out")


def test_added_rows_are_copied_and_shared_ones_fused(models: dict[str, Path], tmp_path: Path) -> None:
    """Rows of the base as without the addition, and transplanted; the new one bit by bit; all files know the token."""
    start = rows(models["base"])
    grown(models["a"], ["<call>"], 5.0)
    tuned: dict[str, str | Path] = {"a": models["a"], "b": models["b"]}
    regions = identify(models["base"], tuned, "5", vocabulary="union")
    report = fuse(models["base"], tuned, tmp_path / "out", regions=regions, vocabulary="union")
    out, theirs = rows(tmp_path / "out"), rows(models["a"])
    assert out.shape == theirs.shape
    assert np.array_equal(out[len(start) :], theirs[len(start) :])
    assert np.isfinite(out).all()
    plain = shutil.copytree(models["a"], tmp_path / "plain")  # the same model without the addition
    model = AutoModelForCausalLM.from_pretrained(plain)
    model.resize_token_embeddings(len(start))
    model.save_pretrained(plain)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(models["base"] / name, plain / name)
    same: dict[str, str | Path] = {"a": plain, "b": models["b"]}
    fuse(models["base"], same, tmp_path / "less", regions=identify(models["base"], same, "5"))
    assert np.array_equal(out[: len(start)], rows(tmp_path / "less"))
    words = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert words.convert_tokens_to_ids("<call>") == len(start)
    assert report["vocabulary"]["tokens"] == {"<call>": len(start)}
    assert report["vocabulary"]["copied"] == [{"rows": [len(start), len(start) + 1], "from": ["a"]}]
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "out").config.vocab_size == len(start) + 1


def test_tokens_that_two_models_added(models: dict[str, Path], tmp_path: Path) -> None:
    """The same: the mean of their rows. Further ones: of whom has them. Different ones in one row: refused."""
    count = len(rows(models["base"]))
    grown(models["a"], ["<call>"], 5.0)
    grown(models["b"], ["<call>", "<end>"], 7.0)
    fuse(models["base"], {n: models[n] for n in "ab"}, tmp_path / "out", vocabulary="union")
    out = rows(tmp_path / "out")
    assert (out[count] == 6.0).all()
    assert (out[count + 1] == 7.0).all()
    words = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert words.convert_tokens_to_ids(["<call>", "<end>"]) == [count, count + 1]
    other = grown(shutil.copytree(models["base"], tmp_path / "c"), ["<think>"], 1.0)
    with pytest.raises(CpiftError, match=rf"added a token in row {count} .*'<call>' and '<think>'"):
        fuse(models["base"], {"a": models["a"], "c": other}, tmp_path / "no", vocabulary="union")


def test_a_token_in_a_row_that_the_base_keeps_free(models: dict[str, Path], tmp_path: Path) -> None:
    """Two models have taken a free row each: each row comes from its own, and the tokenizer has both tokens."""
    count = len(rows(models["base"]))
    for folder in models.values():
        model = AutoModelForCausalLM.from_pretrained(folder)
        model.resize_token_embeddings(count + 4)
        model.save_pretrained(folder)
    grown(models["a"], ["<call>"], 5.0)
    grown(models["b"], ["<call>", "<end>"], 7.0)
    table = json.loads((models["b"] / "tokenizer.json").read_text())
    table["added_tokens"] = [entry for entry in table["added_tokens"] if entry["content"] != "<call>"]
    (models["b"] / "tokenizer.json").write_text(json.dumps(table))
    report = fuse(models["base"], {n: models[n] for n in "ab"}, tmp_path / "out", vocabulary="union")
    out = rows(tmp_path / "out")
    assert out.shape[0] == count + 4
    assert (out[count] == 5.0).all()
    assert (out[count + 1] == 7.0).all()
    words = json.loads((tmp_path / "out/tokenizer.json").read_text())["added_tokens"]
    assert {"<call>", "<end>"} <= {entry["content"] for entry in words}
    assert report["vocabulary"]["tokens"] == {"<call>": count, "<end>": count + 1}


def test_a_smaller_vocabulary_is_refused_with_a_remedy(models: dict[str, Path], tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(models["a"])
    model.resize_token_embeddings(100)
    model.save_pretrained(models["a"])
    with pytest.raises(CpiftError, match=r"resize_token_embeddings\(\d+\)"):
        fuse(models["base"], {"a": models["a"]}, tmp_path / "out", vocabulary="union")
