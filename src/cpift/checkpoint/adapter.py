"""A PEFT adapter and its base as one checkpoint: base + scale · B·A, block by block.

Agrees with ``merge_and_unload()`` of PEFT on the base in float32, to rounding. What cannot be merged, or does not
belong to the base, is refused by name.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from cpift.checkpoint.adapter_config import FILE, WEIGHTS, AdapterConfig
from cpift.checkpoint.files import INDEX, SINGLE
from cpift.checkpoint.merged import LowRankSum, ShiftedBias, Widened, wide_dtype
from cpift.checkpoint.names import match_names, plain_name
from cpift.checkpoint.safetensors import StoredTensor, read_header
from cpift.checkpoint.stream import Checkpoint
from cpift.checkpoint.tensor import Tensor
from cpift.checkpoint.ties import TIED, same_elements, says_tied
from cpift.errors import CpiftError

_PARTS = {
    "lora_A.weight": "a",
    "lora_B.weight": "b",
    "lora_B.bias": "bias",
    "lora_embedding_A": "a",
    "lora_embedding_B": "b",
    "lora_magnitude_vector": "magnitude",
    "lora_magnitude_vector.weight": "magnitude",
}
# Models whose layers keep their weights with the inputs as rows (transformers' Conv1D).
_CONV1D = {"gpt2", "openai-gpt", "imagegpt", "decision_transformer", "clvp"}


@dataclass
class _Module:
    """What the adapter's file holds of one module."""

    name: str  # as in the adapter's file, without wrappers
    parts: dict[str, StoredTensor] = field(default_factory=dict)
    embedding: bool = False


def is_adapter(folder: Path) -> bool:
    """Is this the folder of a PEFT adapter, without the weights of a whole model beside it?"""
    whole = any((folder / name).is_file() for name in (SINGLE, INDEX))
    return (folder / FILE).is_file() and not whole


def apply_adapter(base: Checkpoint, folder: Path, config: AdapterConfig) -> Checkpoint:
    """The base with the adapter merged in, in float32, computed as it is read.

    Args:
        base: a plain checkpoint.
        folder: of the adapter.
        config: read from there.

    Returns:
        A checkpoint whose path is ``folder``. It has the names and buffers of the base.

    Raises:
        CpiftError: the file is missing or damaged, holds what is not supported, or fits another base.
    """
    modules, whole = _read(folder)
    named = _Names(base, folder)
    tensors: dict[str, Tensor] = {
        name: Widened(wide_dtype(tensor), tensor.shape, tensor) for name, tensor in base.tensors.items()
    }
    for name, stored in named.whole(whole).items():
        _check_whole(folder, name, stored, base.tensors[name])
        tensors[name] = Widened(wide_dtype(stored), stored.shape, stored)
    targets = named.of_modules([module.name for module in modules])
    for module in modules:
        weight = tensors[targets[module.name]]
        assert isinstance(weight, Widened)
        tensors[targets[module.name]] = _merged(weight, module, config, base)
        if "bias" in module.parts:
            name = named.bias(targets[module.name])
            shift = module.parts["bias"]
            if shift.shape != tensors[name].shape:
                raise _misfit(folder, module.name, f"its bias has shape {list(shift.shape)}", base, tensors[name])
            tensors[name] = ShiftedBias(
                tensors[name].dtype, shift.shape, tensors[name], shift, config.scale(module.name)
            )
    others = dict(base.others)
    for second, first in base.aliases.items():  # the second name of a tied pair has the same elements
        others[second] = tensors[first]
    return Checkpoint(folder, tensors, others, _resized(base, tensors), base.aliases, base)


def _read(folder: Path) -> tuple[list[_Module], dict[str, StoredTensor]]:
    """The modules with a low-rank update, and the tensors that replace those of the base."""
    file = folder / WEIGHTS
    if not file.is_file():
        pickle = (folder / "adapter_model.bin").is_file()
        raise CpiftError(
            f"{folder}: lacks {WEIGHTS}"
            + ("; adapter_model.bin is a pickle, which can run code: load and save it with PEFT" if pickle else "")
        )
    modules: dict[str, _Module] = {}
    whole: dict[str, StoredTensor] = {}
    for stored_name, tensor in read_header(file).items():
        name = plain_name(stored_name)
        end = next((end for end in _PARTS if name.endswith("." + end)), None)
        if end is not None:
            module = modules.setdefault(name.removesuffix("." + end), _Module(name.removesuffix("." + end)))
            module.parts[_PARTS[end]] = tensor
            module.embedding |= end.startswith("lora_embedding")
        elif re.search(r"\.(lora_|token_adapter|trainable_tokens|ia3_|vera_)", name):
            raise CpiftError(f"{file}: {stored_name} is a part of an adapter that is not supported; merge it with PEFT")
        elif ".original_module." not in name:  # what modules_to_save replaces; saved along with resized embeddings
            own = name.replace(".base_layer.", ".").replace(".modules_to_save.", ".")
            if not same_elements(whole.setdefault(own, tensor), tensor):
                raise CpiftError(f"{file}: holds {own} twice, with other values; save the adapter again")
        if not tensor.floating:
            raise CpiftError(
                f"{file}: {stored_name} is of type {tensor.dtype}; an adapter is of floating-point numbers"
            )
    if not modules and not whole:
        raise CpiftError(f"{file}: holds no tensor of an adapter")
    return list(modules.values()), whole


class _Names:
    """Names in the adapter's file to names of the base's tensors."""

    def __init__(self, base: Checkpoint, folder: Path) -> None:
        self.base, self.folder = base, folder
        self._tied = bool(base.config) and says_tied(base.config)

    def of_modules(self, modules: list[str]) -> dict[str, str]:
        """Module to the name of its weight. Raises :class:`CpiftError` for one that the base lacks, or shares."""
        wanted = {f"{module}.weight": module for module in modules}
        matched = match_names(list(wanted), list(self.base.tensors))
        self._refuse_missing([name for name in wanted if name not in matched])
        for name in matched.values():
            if self._is_tied(name):
                raise CpiftError(
                    f"{self.folder}: adapts {name}, which the base shares between input and output embedding; merged, "
                    "it would change both, unlike in training. Train it on an untied base, or leave the embeddings out"
                )
        return {wanted[name]: target for name, target in matched.items()}

    def whole(self, stored: Mapping[str, StoredTensor]) -> dict[str, StoredTensor]:
        """Tensors that replace the base's, by its names; of a tied pair both must be there, and equal."""
        matched = match_names(list(stored), [*self.base.tensors, *self.base.aliases])
        missing = [name for name in stored if name not in matched]
        replaced = {target: stored[name] for name, target in matched.items() if target in self.base.tensors}
        inputs = {name for name in replaced if self._is_tied(name)}
        heads = [
            name
            for name in (*missing, *(n for n, t in matched.items() if t in self.base.aliases))
            if self._is_head(name)
        ]
        for name in inputs:
            if not heads or not all(same_elements(stored[head], replaced[name]) for head in heads):
                raise self._split_pair(name)
        if heads and not inputs:
            raise self._split_pair(heads[0])
        self._refuse_missing([name for name in missing if name not in heads])
        return replaced

    def bias(self, weight: str) -> str:
        """The name of the bias beside a weight. Raises :class:`CpiftError` where the base has none."""
        name = weight.removesuffix("weight") + "bias"
        if name not in self.base.tensors:
            raise CpiftError(f"{self.folder}: has a bias for {weight} (lora_bias), and {self.base.path} has none there")
        return name

    def _is_tied(self, name: str) -> bool:
        ends = [source for _, source in TIED] + [output for output, _ in TIED]
        if not any(name == end or name.endswith("." + end) for end in ends):
            return False
        untied = any(self._is_head(other) for other in self.base.tensors)
        return name in self.base.aliases.values() or (self._tied and not untied)

    def _is_head(self, name: str) -> bool:
        return any(name == output or name.endswith("." + output) for output, _ in TIED)

    def _split_pair(self, name: str) -> CpiftError:
        return CpiftError(
            f"{self.folder}: replaces {name}, one half of a pair that the base ties; the two would differ then. Merge "
            "it with PEFT, and save it with tie_word_embeddings: false"
        )

    def _refuse_missing(self, names: list[str]) -> None:
        if names:
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            raise CpiftError(
                f"{self.folder}: was trained on another model than {self.base.path}, which lacks "
                f"{', '.join(names[:3])}{more}; give the base that {FILE} names"
            )


def _merged(weight: Widened, module: _Module, config: AdapterConfig, base: Checkpoint) -> LowRankSum:
    folder, parts = config.file.parent, module.parts
    if "a" not in parts or "b" not in parts:
        raise CpiftError(f"{folder / WEIGHTS}: {module.name} has a {'B' if 'b' in parts else 'A'} alone; save it again")
    a, b = parts["a"], parts["b"]
    if len(weight.shape) != 2 or len(a.shape) != 2 or len(b.shape) != 2:
        raise CpiftError(
            f"{folder}: {module.name} is no linear layer or embedding (its weight has shape {list(weight.shape)}), and "
            "is not supported; merge it with PEFT"
        )
    rank = config.rank_of(module.name)
    if a.shape[0] != rank or b.shape[1] != rank:
        raise CpiftError(
            f"{folder}: {module.name} has rank {a.shape[0]} (A) and {b.shape[1]} (B), yet {FILE} says {rank}; the "
            "two files do not belong together"
        )
    outputs, inputs = b.shape[0], a.shape[1]
    transposed = module.embedding or _inputs_first(module.name, (outputs, inputs), weight.shape, config, base)
    if weight.shape != ((inputs, outputs) if transposed else (outputs, inputs)):
        raise _misfit(folder, module.name, f"it is for {inputs} inputs and {outputs} outputs", base, weight)
    if config.dora != ("magnitude" in parts):
        raise CpiftError(
            f"{folder}: use_dora is {config.dora}, and {module.name} has {'a' if 'magnitude' in parts else 'no'} "
            "lora_magnitude_vector; the two files do not belong together"
        )
    magnitude = parts.get("magnitude")
    if magnitude is not None and magnitude.size != outputs:
        raise _misfit(folder, module.name, f"its lora_magnitude_vector has {magnitude.size} elements", base, weight)
    return LowRankSum(weight.dtype, weight.shape, weight, a, b, config.scale(module.name), transposed, magnitude)


def _inputs_first(
    module: str, size: tuple[int, int], shape: tuple[int, ...], config: AdapterConfig, base: Checkpoint
) -> bool:
    """Has the weight its inputs as rows? The shape tells, but for a square one."""
    if size[0] != size[1] or shape[0] != shape[1]:
        return shape == size[::-1]
    return has_inputs_first(module, base.config) if "model_type" in base.config else config.inputs_first


def has_inputs_first(module: str, config: Mapping[str, object]) -> bool:
    """Does this module's class keep its weight with the inputs as rows, by the model's configuration?"""
    return config.get("model_type") in _CONV1D and not module.endswith("lm_head")


def _check_whole(folder: Path, name: str, stored: Tensor, own: Tensor) -> None:
    grows = any(name == end or name.endswith("." + end) for pair in TIED for end in pair)
    if stored.shape != own.shape and not (grows and stored.shape[1:] == own.shape[1:]):
        raise CpiftError(
            f"{folder}: replaces {name} by a tensor of shape {list(stored.shape)}, the base has {list(own.shape)}; it "
            "was trained on another model"
        )


def _misfit(folder: Path, module: str, what: str, base: Checkpoint, weight: Tensor) -> CpiftError:
    vocabulary = any(module.endswith(word) for word in ("embed_tokens", "wte", "lm_head", "embed_in", "embed_out"))
    why = "another vocabulary than" if vocabulary else "another model than"
    return CpiftError(
        f"{folder}: was trained on {why} {base.path}: {module}: {what}, the base's has shape {list(weight.shape)}"
    )


def _resized(base: Checkpoint, tensors: Mapping[str, Tensor]) -> dict[str, object]:
    """The base's configuration; where the adapter brings embeddings with more or fewer rows, with their number."""
    rows = next(_rows_changed(base, tensors), None)
    if rows is None:
        return base.config
    config = dict(base.config)
    for part in ("text_config", None):
        table = config if part is None else config.get(part)
        if isinstance(table, dict) and "vocab_size" in table:
            resized = {**table, "vocab_size": rows}
            config = resized if part is None else {**config, part: resized}
    return config


def _rows_changed(base: Checkpoint, tensors: Mapping[str, Tensor]) -> Iterator[int]:
    for name, tensor in tensors.items():
        if tensor.shape != base.tensors[name].shape:
            yield tensor.shape[0]
