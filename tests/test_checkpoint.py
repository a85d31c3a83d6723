"""Opening checkpoints: what is accepted, and every kind of damage refused in one line that names the file."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoints import family, write

from cpift.checkpoint.align import align
from cpift.checkpoint.reader import open_checkpoint
from cpift.checkpoint.stream import fingerprint
from cpift.errors import CpiftError

W = {"a.weight": np.arange(12, dtype=np.float32).reshape(3, 4), "b.weight": np.ones(5, np.float32)}


def raw(folder: Path, header: Any, data: bytes = b"", length: int | None = None) -> None:
    """A safetensors file with any header."""
    folder.mkdir(exist_ok=True)
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)


def entry(begin: int, end: int, shape: list[int], dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def index(folder: Path, weight_map: Any) -> None:
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


def truncated(folder: Path) -> None:
    file = write(folder, W) / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-3])


def missing_shard(folder: Path) -> None:
    (write(folder, W, shards=2) / "model-00002-of-00002.safetensors").unlink()


def outside(folder: Path) -> None:
    folder.mkdir()
    index(folder, {"a.weight": "../other/model.safetensors"})


def twice_across_shards(folder: Path) -> None:
    write(folder, W, shards=2)
    first, second = sorted(folder.glob("model-*"))
    second.write_bytes(first.read_bytes())


def promised(folder: Path) -> None:
    write(folder, W, shards=2)
    found = json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]
    index(folder, {**found, "c.weight": "model-00001-of-00002.safetensors"})


def adapter(folder: Path) -> None:
    folder.mkdir()
    (folder / "adapter_config.json").write_text("{}")
    (folder / "adapter_model.safetensors").write_bytes(b"")


def pickled(folder: Path) -> None:
    folder.mkdir()
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x04.")


DAMAGE: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no folder": (lambda f: None, "no such checkpoint"),
    "empty folder": (lambda f: f.mkdir(), "holds neither"),
    "pickle": (pickled, "pickle"),
    "adapter": (adapter, "peft_type is None"),
    "truncated": (truncated, "truncated"),
    "missing shard": (missing_shard, "shard is missing"),
    "outside": (outside, "leads out of the folder"),
    "twice across shards": (twice_across_shards, "a.weight|index"),
    "promised": (promised, "c.weight"),
    "index is no table": (lambda f: (f.mkdir(), index(f, [1])), "weight_map"),
    "index is no JSON": (lambda f: (f.mkdir(), (f / "model.safetensors.index.json").write_text("{")), "JSON"),
    "config is no JSON": (lambda f: (write(f, W), (f / "config.json").write_text("{")), "JSON"),
    "empty file": (lambda f: raw(f, b"", length=0), "damaged|truncated"),
    "seven bytes": (lambda f: (f.mkdir(), (f / "model.safetensors").write_bytes(b"1234567")), "truncated"),
    "huge header": (lambda f: raw(f, {}, length=2**62), "truncated or not safetensors"),
    "no JSON": (lambda f: raw(f, b"{nope"), "damaged header"),
    "deep JSON": (lambda f: raw(f, b"[" * 100_000), "damaged header"),
    "a list": (lambda f: raw(f, []), "damaged header"),
    "twice in a header": (
        lambda f: raw(f, b'{"w":%s,"w":%s}' % ((json.dumps(entry(0, 4, [1])).encode(),) * 2), b"1234"), "duplicate name 'w'",
    ),
    "overlap": (lambda f: raw(f, {"a": entry(0, 8, [2]), "b": entry(4, 12, [2])}, b"x" * 12), "overlaps"),
    "gap": (lambda f: raw(f, {"a": entry(0, 4, [1]), "b": entry(8, 12, [1])}, b"x" * 12), "gap"),
    "surplus": (lambda f: raw(f, {"a": entry(0, 4, [1])}, b"x" * 12), "no tensor"),
    "size lies": (lambda f: raw(f, {"a": entry(0, 8, [3])}, b"x" * 8), "does not take 8 bytes"),
    "shape overflows": (lambda f: raw(f, {"a": entry(0, 8, [2**62, 2**62])}, b"x" * 8), "does not take 8 bytes"),
    "negative": (lambda f: raw(f, {"a": entry(-4, 4, [2])}, b"x" * 8), "damaged header"),
    "not whole": (lambda f: raw(f, {"a": entry(0, 4, [1.0])}, b"x" * 4), "damaged header"),
    "no offsets": (lambda f: raw(f, {"a": {"dtype": "F32", "shape": [1]}}), "damaged header"),
    "unknown type": (lambda f: raw(f, {"a": entry(0, 1, [1], "F8_E4M3")}, b"x"), "F8_E4M3, which is not supported"),
    "no parameter": (lambda f: raw(f, {"a": entry(0, 8, [1], "I64")}, b"x" * 8), "no floating-point parameter"),
}  # fmt: skip


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_is_refused(tmp_path: Path, name: str) -> None:
    """One line, which names the place and what is wrong with it."""
    make, words = DAMAGE[name]
    make(tmp_path / "broken")
    with pytest.raises(CpiftError, match=words) as caught:
        open_checkpoint(tmp_path / "broken")
    assert "broken" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_fingerprint_is_of_the_content(tmp_path: Path) -> None:
    """The same in one file and in three; another one for one bit of difference, another name, shape or type."""
    whole = fingerprint(open_checkpoint(write(tmp_path / "whole", W)))
    assert fingerprint(open_checkpoint(write(tmp_path / "sharded", W, shards=2))) == whole
    bit = {**W, "b.weight": np.nextafter(W["b.weight"], np.float32(2))}
    renamed = {"a.weight": W["a.weight"], "c.weight": W["b.weight"]}
    for i, other in enumerate(
        (bit, renamed, {**W, "a.weight": W["a.weight"].reshape(4, 3)}, {**W, "b.weight": np.ones(5)})
    ):
        assert fingerprint(open_checkpoint(write(tmp_path / str(i), other))) != whole


def test_buffers_are_no_parameters(tmp_path: Path) -> None:
    """Masks, position ids and integers do not count."""
    more = {
        "h.0.attn.bias": np.ones((1, 1, 4, 4), np.float32),
        "h.0.attn.masked_bias": np.float32([0.0]),
        "x.position_ids": np.arange(4),
    }
    found = open_checkpoint(write(tmp_path, {**W, **more, "h.0.attn.c_attn.bias": np.ones(3, np.float32)}))
    assert set(found.tensors) == {*W, "h.0.attn.c_attn.bias"}


@pytest.mark.parametrize(
    ("base", "other"), [("", "transformer."), ("transformer.", ""), ("model.", ""), ("", "model.")]
)
def test_the_base_model_prefix_may_differ(tmp_path: Path, base: str, other: str) -> None:
    """Names are those of the base; what stands outside the prefix, such as lm_head, keeps its name."""

    def named(prefix: str) -> dict[str, np.ndarray]:
        return {**{prefix + n: a for n, a in W.items()}, "lm_head.weight": np.ones((2, 2), np.float32)}

    left, right = (open_checkpoint(write(tmp_path / str(i), named(p))) for i, p in enumerate((base, other)))
    assert list(align(left, right).tensors) == list(left.tensors)
    assert np.array_equal(align(left, right).raw(base + "a.weight"), W["a.weight"].ravel())


def test_checkpoints_that_do_not_match_are_refused(tmp_path: Path) -> None:
    """A tensor missing or too many, another shape, another vocabulary: named."""
    base = open_checkpoint(write(tmp_path / "base", {**W, "model.embed_tokens.weight": np.ones((9, 2), np.float32)}))
    more = {**W, "model.embed_tokens.weight": np.ones((9, 2), np.float32)}
    for name, arrays, words in [
        ("lacks", {n: a for n, a in more.items() if n != "b.weight"}, "lacks b.weight"),
        ("more", {**more, "z": np.ones(1, np.float32)}, "has z too many"),
        ("shape", {**more, "b.weight": np.ones(6, np.float32)}, r"b.weight has shape \[6\], the base has \[5\]"),
        ("vocabulary", {**more, "model.embed_tokens.weight": np.ones((8, 2), np.float32)}, "vocabularies differ"),
    ]:
        with pytest.raises(CpiftError, match=words):
            align(base, open_checkpoint(write(tmp_path / name, arrays)))


def test_a_pair_that_is_tied_by_default_only(tmp_path: Path) -> None:
    """A config that does not say whether the stored pair is tied: the architecture's default holds."""
    embedding = np.arange(12, dtype=np.float32).reshape(4, 3)
    pair = {"transformer.wte.weight": embedding, "lm_head.weight": embedding}
    assert set(open_checkpoint(write(tmp_path / "gpt2", pair, config={"model_type": "gpt2"})).tensors) == {
        "transformer.wte.weight"
    }
    pair = {"model.embed_tokens.weight": embedding, "lm_head.weight": embedding}
    assert len(open_checkpoint(write(tmp_path / "llama", pair, config={"model_type": "llama"})).tensors) == 2
    apart = {**pair, "lm_head.weight": embedding + 1}
    with pytest.raises(CpiftError, match=r"ties lm_head\.weight"):
        open_checkpoint(write(tmp_path / "apart", apart, config={"tie_word_embeddings": True}))


def test_real_architectures_have_all_their_parameters(tmp_path: Path) -> None:
    """As many elements as the model has parameters, tied ones counted once."""
    from checkpoints import CONFIGS, model

    for kind in CONFIGS:
        base, _ = family(tmp_path / kind, kind, tasks=1)
        assert open_checkpoint(base).total == sum(p.numel() for p in model(kind).parameters())
