"""Does a checkpoint hold every weight of the model that its configuration describes? Asked of transformers itself.

transformers initialises a missing weight at random and continues. Here that is an error.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np

from cpift.cache import cache_folder
from cpift.checkpoint.buffers import is_parameter
from cpift.checkpoint.library import Untyped, library, optional_library, silent
from cpift.checkpoint.names import plain_name, plain_names
from cpift.checkpoint.reader import open_checkpoint
from cpift.checkpoint.stream import Checkpoint
from cpift.errors import CpiftError
from cpift.metrics.store import Store, digest

_RULES = 1  # number of what is refused; a change makes kept verdicts void
_LIMIT = 10**6  # bytes of kept verdicts
_PASSED: set[str] = set()  # what decided about each check of this process that passed
_TORCH_NAME = {"F32": "float32", "BF16": "bfloat16", "F16": "float16", "F64": "float64"}


def check_complete(checkpoint: Checkpoint, trust_remote_code: bool = False) -> None:
    """Let transformers load the checkpoint's names and shapes without their data, in milliseconds.

    Nothing is checked where there is no configuration that the installed transformers knows, or no transformers.
    Configurations and tensors that have passed before, such as those of a run's earlier stages, pass at once; also in
    another process, by the same version of transformers, which is then not imported. Failures are not kept.

    Args:
        checkpoint: opened.
        trust_remote_code: may code that lies in the folder be run?

    Raises:
        CpiftError: names the weights that would be filled in at random, or would be left out.
    """
    if "model_type" not in checkpoint.config or not checkpoint.path.is_dir() or checkpoint.beneath is not None:
        return
    stored = {**checkpoint.tensors, **checkpoint.others}
    headers = {name: (tensor.dtype, tensor.shape) for name, tensor in stored.items()}
    facts = repr((checkpoint.config, headers, sorted(checkpoint.aliases)))
    if facts in _PASSED and not trust_remote_code:  # code in the folder decides as well
        return
    verdicts, key = Store(cache_folder() / "complete", _LIMIT), _key(facts, trust_remote_code, checkpoint)
    if key is not None and verdicts.get(key) is True:
        _PASSED.add(facts)
        return
    torch = optional_library("torch")
    if torch is None:  # the method alone needs no transformers
        return
    shapes: dict[str, Untyped] = {}
    for name, tensor in stored.items():
        kind = getattr(torch, _TORCH_NAME.get(tensor.dtype, "int64"))
        shapes[name] = torch.empty(tensor.shape, dtype=kind, device="meta")
    try:
        loaded = _load(checkpoint.path, shapes, trust_remote_code, device_map={"": "meta"})[1]
    except Exception:  # a model that cannot be built without data; loading it will say what is wrong
        return
    refuse_incomplete(loaded, checkpoint)
    _PASSED.add(facts)
    if key is not None:
        verdicts.put(key, True)
        verdicts.prune()


def _key(facts: str, trust_remote_code: bool, checkpoint: Checkpoint) -> str | None:
    """What a verdict of another process is kept under; None where code decides that may have changed since."""
    if trust_remote_code or "auto_map" in checkpoint.config:
        return None
    try:
        return digest([_RULES, version("transformers"), facts])
    except PackageNotFoundError:
        return None


def refuse_incomplete(loaded: Mapping[str, Untyped], checkpoint: Checkpoint) -> None:
    """Raise :class:`CpiftError` where transformers' report of a loading has weights missing, too many or misshapen.

    Args:
        loaded: what ``output_loading_info=True`` gives. The heads of tied pairs, and what the model's class
            ignores, are not in it.
        checkpoint: what was loaded.
    """
    missing = sorted(loaded.get("missing_keys", ()))
    stored = {**checkpoint.tensors, **checkpoint.others}
    surplus = sorted(
        name
        for name in loaded.get("unexpected_keys", ())
        if (is_parameter(name, stored[name]) if name in stored else is_parameter(name))
        and name not in checkpoint.aliases
    )
    misshapen = sorted(
        f"{name} {list(theirs)} for {list(ours)}" for name, theirs, ours in loaded.get("mismatched_keys", ())
    )
    if missing:
        raise CpiftError(
            f"{checkpoint.path}: lacks weights of the model that its config.json describes, which would be filled in "
            f"at random: {_listed(missing)}; save the whole model again"
            + (f" (it holds others in their place: {_listed(surplus)})" if surplus else "")
        )
    if misshapen:
        raise CpiftError(
            f"{checkpoint.path}: shapes are not those that its config.json describes: {_listed(misshapen)}"
        )
    if surplus:
        raise CpiftError(
            f"{checkpoint.path}: holds weights for which the model of its config.json has no place, and which would be "
            f"left out: {_listed(surplus)}; mend config.json, or save the model again without them"
        )


def wrapped_weights(folder: Path) -> dict[str, Untyped] | None:
    """The weights under plain names, still on disk, where a wrapper is in a stored name; else None."""
    checkpoint = open_checkpoint(folder)
    slices: dict[str, Untyped] = {}
    for file in sorted({f for t in (*checkpoint.tensors.values(), *checkpoint.others.values()) for f in t.files}):
        opened = library("safetensors").safe_open(file, framework="pt")
        slices |= {name: opened.get_slice(name) for name in opened.keys()}  # noqa: SIM118
    if all(plain_name(name) == name for name in slices):
        return None
    return plain_names(slices, folder)


def load_by_plain_names(
    folder: Path, weights: dict[str, Untyped], trust_remote_code: bool, options: Mapping[str, str]
) -> tuple[Untyped, dict[str, Untyped]]:
    """The fp32 model with these weights, and transformers' report of the loading; ``options``: of from_pretrained."""
    model, loaded = _load(folder, weights, trust_remote_code, None, **options)
    if (folder / "generation_config.json").is_file():
        model.generation_config = library("transformers").GenerationConfig.from_pretrained(folder)
    return model, loaded


class _ComputedSlice:
    """A tensor as transformers expects it of the safetensors library: read when it is indexed."""

    def __init__(self, checkpoint: Checkpoint, name: str) -> None:
        self._checkpoint, self._name = checkpoint, name
        self._tensor = checkpoint.tensors.get(name) or checkpoint.others[name]

    def get_shape(self) -> list[int]:
        return list(self._tensor.shape)

    def get_dtype(self) -> str:
        return self._tensor.dtype

    def __getitem__(self, index: object) -> Untyped:
        torch = library("torch")
        bits = torch.from_numpy(np.array(self._checkpoint.raw(self._name)))
        values = bits.view(torch.bfloat16) if self._tensor.dtype == "BF16" else bits
        return values.view(self._tensor.shape)[index]


def load_computed(
    checkpoint: Checkpoint, trust_remote_code: bool, options: Mapping[str, str]
) -> tuple[Untyped, dict[str, Untyped]]:
    """The fp32 model of an adapter and its base, and transformers' report of the loading.

    Args:
        checkpoint: of an adapter.
        trust_remote_code: may code that lies in the base's folder be run?
        options: of from_pretrained.
    """
    weights: dict[str, Untyped] = {
        name: _ComputedSlice(checkpoint, name) for name in (*checkpoint.tensors, *checkpoint.others)
    }
    model, loaded = _load(checkpoint.folders[0], weights, trust_remote_code, checkpoint.resized, **options)
    folder = next((f for f in reversed(checkpoint.folders) if (f / "generation_config.json").is_file()), None)
    if folder is not None:
        model.generation_config = library("transformers").GenerationConfig.from_pretrained(folder)
    return model, loaded


def _load(
    folder: Path,
    weights: dict[str, Untyped],
    trust_remote_code: bool,
    changes: Mapping[str, Untyped] | None = None,
    **options: Untyped,
) -> tuple[Untyped, dict[str, Untyped]]:
    """Load ``weights`` into the class that the folder's configuration names; ``changes`` to that come first."""
    torch, transformers = library("torch"), library("transformers")
    with silent():
        config = transformers.AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code, **(changes or {}))
        with torch.device("meta"):
            kind = type(transformers.AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code))
        loaded: tuple[Untyped, dict[str, Untyped]] = kind.from_pretrained(
            None,
            config=config,
            state_dict=weights,
            output_loading_info=True,
            dtype=torch.float32,
            ignore_mismatched_sizes=True,
            **options,
        )
    return loaded


def _listed(names: list[str]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
