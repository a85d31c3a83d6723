"""Hugging Face checkpoints as streams: open one, read any slice of any parameter by memory map.

Nothing here holds a whole tensor, let alone a model. Only safetensors is read; pickle is refused.
"""

from __future__ import annotations

import fnmatch
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import xxhash

from cpift.checkpoint.files import INDEX, SINGLE, gguf_message, read_folder, read_json, zero_command
from cpift.checkpoint.names import match_names, plain_name, plain_names
from cpift.checkpoint.quantized import refuse_packed, refuse_quantized_config
from cpift.checkpoint.safetensors import StoredTensor, read_header
from cpift.errors import CpiftError
from cpift.kernels.prefault import map_ahead

# A checksum covers BLOCK elements, whatever the size of the chunks that a caller reads in.
BLOCK = 2**20

# (output embedding, input embedding) by the end of their names. A tied pair counts once, under the input's name.
_TIED = [
    ("lm_head.weight", "embed_tokens.weight"),
    ("lm_head.weight", "wte.weight"),
    ("lm_head.weight", "word_embeddings.weight"),
    ("lm_head.weight", "decoder.embed_tokens.weight"),
    ("embed_out.weight", "embed_in.weight"),
    ("output.weight", "tok_embeddings.weight"),
]
# What checkpoints store although no optimizer ever moves it.
_BUFFERS = (
    "*.attn.masked_bias",
    "*.attention.masked_bias",
    "*inv_freq",
    "*position_ids",
    "*token_type_ids",
    "*running_mean",
    "*running_var",
    "*num_batches_tracked",
    "*cos_cached",
    "*sin_cached",
    "*freqs_cis",
    "*.rope.freqs",
    "*.embed_positions.weights",  # sinusoidal
    "*e_score_correction_bias",  # of DeepSeek-V3's router and its like
    "*.expert_bias",
    "*final_logits_bias",
)


class Block(NamedTuple):
    """Elements ``start`` to ``stop`` (row-major) of the parameter ``name``; at most ``BLOCK`` of them."""

    name: str
    start: int
    stop: int


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint on disk: parameters by name in plain string order, and what else the files hold.

    ``tensors`` are the parameters (floating point, a tied pair once); ``others`` are buffers and the second
    name of a tied pair, kept so that they can be copied; ``aliases`` gives for the latter the first name.
    """

    path: Path
    tensors: dict[str, StoredTensor]
    others: dict[str, StoredTensor]
    config: dict[str, Any]
    aliases: dict[str, str] = field(default_factory=dict)

    @property
    def total(self) -> int:
        """Number of elements of all parameters (D of the paper)."""
        return sum(t.size for t in self.tensors.values())

    @property
    def nbytes(self) -> int:
        """Bytes of all parameters as stored."""
        return sum(t.nbytes for t in self.tensors.values())

    @cached_property
    def _maps(self) -> dict[Path, np.ndarray]:
        files = {t.file for t in (*self.tensors.values(), *self.others.values())}
        return {f: np.asarray(np.memmap(f, mode="r", dtype=np.uint8)) for f in files}

    def raw(self, name: str, start: int = 0, stop: int | None = None, ahead: bool = False) -> np.ndarray:
        """A read-only view of the stored elements ``start:stop`` of ``name``; bf16 comes as uint16.

        ahead: map its pages in at once, where all of them will be read.
        """
        t = self.tensors.get(name) or self.others[name]
        stop = t.size if stop is None else stop
        item = t.itemsize
        stored = self._maps[t.file][t.begin + start * item : t.begin + stop * item]
        if ahead:
            map_ahead(stored)
        return stored.view(t.numpy_dtype)

    def hasher(self) -> Fingerprint:
        """A fingerprint to be fed with the checksums of this checkpoint's blocks, in order."""
        return Fingerprint(self)


def native(raw: np.ndarray) -> np.ndarray:
    """Stored elements in a type that the kernels know, read-only as all else: numba has no float16."""
    raw = raw.astype(np.float32) if raw.dtype == np.float16 else raw
    raw.flags.writeable = False  # another kind of array would be compiled for anew
    return raw


def widen(raw: np.ndarray, dtype: str, out: np.ndarray) -> np.ndarray:
    """Stored elements as float32 values; ``out`` is the float32 scratch used where the storage is narrower."""
    if dtype in ("F32", "F64"):
        return raw
    target = out[: raw.size]
    if dtype == "BF16":  # bf16 is the upper half of a float32
        bits = target.view(np.uint32)
        bits[:] = raw
        np.left_shift(bits, 16, out=bits)
    else:
        target[:] = raw
    return target


class Fingerprint:
    """A fast hash of names, shapes, dtypes and block checksums; not of paths, shards or other files.

    Equal for a checkpoint in one file or in many, and whether or not a tied pair is stored twice.
    """

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._hash = xxhash.xxh3_128()
        for name, t in checkpoint.tensors.items():
            self._hash.update(json.dumps([name, t.dtype, list(t.shape)]).encode())

    def add(self, block_checksum: bytes) -> None:
        """Add the xxh3 digest of the next block's stored bytes."""
        self._hash.update(block_checksum)

    def hexdigest(self) -> str:
        return self._hash.hexdigest()


def fingerprint(checkpoint: Checkpoint) -> str:
    """Read the checkpoint once and return its fingerprint (32 hex digits)."""
    result = checkpoint.hasher()
    for name, start, stop in blocks(checkpoint):
        result.add(xxhash.xxh3_64_digest(checkpoint.raw(name, start, stop).data))
    return result.hexdigest()


def check_finite(checkpoint: Checkpoint) -> None:
    """Read the checkpoint once. Raises :class:`CpiftError` that names a tensor with NaN or infinite weights."""
    scratch = np.empty(BLOCK, np.float32)
    for block in blocks(checkpoint):
        if not np.isfinite(widen(checkpoint.raw(*block), checkpoint.tensors[block.name].dtype, scratch)).all():
            raise CpiftError(f"{checkpoint.path}: {block.name} holds NaN or infinite weights; training diverged")


def blocks(checkpoint: Checkpoint, size: int = BLOCK) -> Iterator[Block]:
    """All parameters in the order of flat positions: by name (plain string order), row-major within a tensor."""
    for name, t in checkpoint.tensors.items():
        for start in range(0, t.size, size):
            yield Block(name, start, min(start + size, t.size))


def open_checkpoint(path: str | Path) -> Checkpoint:
    """Open a folder with ``model.safetensors`` or shards and an index, or one ``.safetensors`` file.

    Reads the headers only. Names come without what wrappers put into them.

    Args:
        path: the folder or file.

    Raises:
        CpiftError: no plain checkpoint (pickle, GGUF, an adapter, a training state, quantised weights), with what
            makes one of it; a missing shard, a damaged header, a parameter stored twice or without elements.
    """
    path = Path(path)
    folder = path.parent if path.is_file() else path
    if not path.exists():
        raise CpiftError(f"{path}: no such checkpoint; give a folder with {SINGLE} or {INDEX}")
    if path.suffix == ".gguf":
        raise CpiftError(gguf_message(path))
    if path.is_file() and path.suffix != ".safetensors":
        raise CpiftError(f"{path}: only safetensors checkpoints are read (pickle can run code); convert it first")
    if not path.is_file() and not path.is_dir():
        raise CpiftError(f"{path}: no such checkpoint; give a folder with {SINGLE} or {INDEX}")
    config_file = folder / "config.json"
    config = read_json(config_file) if config_file.is_file() else {}
    if not isinstance(config, dict) or not isinstance(config.get("model_type", ""), str):
        raise CpiftError(f"{config_file}: is no configuration (a table, whose model_type is text)")
    refuse_quantized_config(config, config_file)

    def dispensable(name: str) -> bool:
        """Loads without it: a buffer, or the second name of a tied pair."""
        return _is_buffer(plain_name(name)) or (_is_output(plain_name(name)) and _says_tied(config))

    stored = read_header(path) if path.is_file() else read_folder(folder, config, dispensable)
    stored = plain_names(stored, path)
    refuse_packed(stored, path)
    _refuse_adapter_weights(stored, path)
    aliases = _tied_aliases(stored, config, path)
    parameters: dict[str, StoredTensor] = {}
    others: dict[str, StoredTensor] = {}
    buffers = _buffers_of_class(folder, stored, config)
    for name in sorted(stored):
        kept = name not in aliases and is_parameter(name, stored[name]) and not buffers.get(name, False)
        (parameters if kept else others)[name] = stored[name]
    if not parameters:
        raise CpiftError(f"{path}: holds no floating-point parameter")
    empty = [name for name, tensor in parameters.items() if not tensor.size]
    if empty:
        raise CpiftError(
            f"{path}: {empty[0]} and {len(empty) - 1} more tensors hold no element: DeepSpeed's ZeRO-3 leaves these "
            f"stubs in the place of weights; write the weights as a checkpoint first: {zero_command(folder)}"
        )
    return Checkpoint(path, parameters, others, config, aliases)


def _refuse_adapter_weights(stored: Iterable[str], path: Path) -> None:
    lora = [name for name in stored if ".lora_" in name or ".base_layer." in name]
    if lora:
        raise CpiftError(
            f"{path}: {lora[0]} belongs to an adapter that is not merged; load it with peft, call merge_and_unload() "
            "and save the result"
        )


def is_parameter(name: str, tensor: StoredTensor | None = None) -> bool:
    """Does an optimizer move this tensor? It is a buffer otherwise; without ``tensor`` the name alone is looked at."""
    if tensor is not None and not tensor.floating:
        return False
    if name.endswith((".attn.bias", ".attention.bias")) and (tensor is None or len(tensor.shape) == 4):
        return False  # GPT-2's and GPT-Neo's causal mask
    return not _is_buffer(name)


def _buffers_of_class(folder: Path, stored: dict[str, StoredTensor], config: dict[str, Any]) -> dict[str, bool]:
    """What the model's class says: name to whether it is a buffer, or unknown to the class, which then never trains it.

    Only where a name leaves a doubt, for building the class takes seconds: one that ends in neither ".weight" nor ".bias"
    and is none of the known buffers.
    """
    doubtful = [n for n, t in stored.items() if is_parameter(n, t) and n.rsplit(".", 1)[-1] not in ("weight", "bias")]
    if not doubtful or not config.get("model_type"):
        return {}
    try:
        from cpift.method.rehearsal import class_buffers
    except ImportError:  # torch and transformers are not needed to read checkpoints
        return {}
    known = class_buffers(folder, {name: t.shape for name, t in stored.items()}, config)
    return {**dict.fromkeys(doubtful, True), **known} if known else {}


def _is_buffer(name: str) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in _BUFFERS)


def _is_output(name: str) -> bool:
    return any(name == output or name.endswith("." + output) for output, _ in _TIED)


def _tied_aliases(stored: dict[str, StoredTensor], config: Any, path: Path) -> dict[str, str]:
    """Output embeddings that are stored beside the input embedding that they are tied to, and this one's name."""
    found: dict[str, str] = {}
    for name in stored:
        for output, source in _TIED:
            if not (name == output or name.endswith("." + output)):
                continue
            partners = [n for n in stored if n == source or n.endswith("." + source)]
            if len(partners) == 1 and stored[partners[0]].shape == stored[name].shape and _says_tied(config):
                if not _same_bytes(stored[name], stored[partners[0]]):
                    raise CpiftError(
                        f"{path}: config.json ties {name} to {partners[0]}, yet the two differ; "
                        "set tie_word_embeddings to false, or save the checkpoint again"
                    )
                found[name] = partners[0]
    return found


def _says_tied(config: Any) -> bool:
    if not isinstance(config, dict):
        return False
    for part in (config, config.get("text_config")):
        if isinstance(part, dict) and "tie_word_embeddings" in part:
            return bool(part["tie_word_embeddings"])
    if "model_type" not in config:
        return False
    # Left out where it is the class's default, and only transformers knows that; asked in this rare case alone.
    from transformers import CONFIG_MAPPING

    kind = config["model_type"]
    return bool(kind in CONFIG_MAPPING and getattr(CONFIG_MAPPING[kind](), "tie_word_embeddings", False))


def _same_bytes(a: StoredTensor, b: StoredTensor) -> bool:
    if a.dtype != b.dtype:
        return False
    left, right = np.memmap(a.file, mode="r"), np.memmap(b.file, mode="r")
    step = 2**24
    return all(
        np.array_equal(
            left[a.begin + i : min(a.begin + i + step, a.end)], right[b.begin + i : min(b.begin + i + step, b.end)]
        )
        for i in range(0, a.nbytes, step)
    )


def align(base: Checkpoint, other: Checkpoint, larger: Callable[[str], bool] = lambda name: False) -> Checkpoint:
    """``other`` with its tensors under the names of ``base``, the base-model prefix added or removed.

    Args:
        base: gives the names.
        other: a checkpoint of the same model.
        larger: may the parameter of this name have more or fewer rows than the base's?

    Raises:
        CpiftError: lists what differs: a tensor missing or too many, or another shape.
    """
    renamed = match_names(list(base.tensors), list(other.tensors))
    missing = [n for n in base.tensors if n not in renamed]
    surplus = sorted(set(other.tensors) - set(renamed.values()))
    if missing or surplus:
        lines = [f"lacks {n}" for n in missing[:3]] + [f"has {n} too many" for n in surplus[:3]]
        more = len(missing) + len(surplus) - len(lines)
        raise CpiftError(
            f"{other.path}: not a checkpoint of {base.path}: {', '.join(lines)}"
            + (f", and {more} more" if more else "")
        )
    for name, theirs in renamed.items():
        if base.tensors[name].shape != other.tensors[theirs].shape:
            if larger(name) and base.tensors[name].shape[1:] == other.tensors[theirs].shape[1:]:
                continue
            expected, shape = base.tensors[name].shape, other.tensors[theirs].shape
            kind = ""
            if "embed" in name or "wte" in name or "lm_head" in name:
                kind = " (vocabularies differ"
                kind += "; --vocabulary union fuses the rows that both have)" if shape[0] > expected[0] else ")"
            raise CpiftError(f"{other.path}: {theirs} has shape {list(shape)}, the base has {list(expected)}{kind}")
    tensors = {name: other.tensors[renamed[name]] for name in base.tensors}
    ours = {theirs: name for name, theirs in renamed.items()}
    added, removed = _prefixes(renamed)

    def renamed_too(name: str) -> str:
        return added + name.removeprefix(removed) if name.startswith(removed) else name

    others = {renamed_too(name): tensor for name, tensor in other.others.items()}
    aliases = {renamed_too(name): ours[source] for name, source in other.aliases.items()}
    return Checkpoint(other.path, tensors, others, other.config, aliases)


def _prefixes(renamed: dict[str, str]) -> tuple[str, str]:
    """What to add to, and what to take from the start of the other's names to have the base's."""
    for ours, theirs in renamed.items():
        if ours != theirs:
            longer = ours.endswith(theirs)
            return (ours.removesuffix(theirs), "") if longer else ("", theirs.removesuffix(ours))
    return "", ""


def excluded(names: Iterable[str], patterns: Iterable[str]) -> set[str]:
    """The names that match one of the shell-style ``patterns``; a pattern that matches none is refused."""
    names, found = list(names), set()
    for pattern in patterns:
        hit = set(fnmatch.filter(names, pattern))
        if not hit:
            raise CpiftError(f"exclude: {pattern!r} matches no parameter; names look like {names[0]}")
        found |= hit
    return found
