"""A model's class asked without weights: what it would load from a checkpoint's files, and what it would save again."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import transformers

from cpift.checkpoint.library import silent
from cpift.checkpoint.names import plain_name
from cpift.checkpoint.stream import Checkpoint
from cpift.errors import CpiftError
from cpift.method.memory_names import Shape, check_shape, disk_names, prefixes_of, resolve


def rehearse(
    folder: Path, shapes: Mapping[str, Shape], trust_remote_code: bool = False, architecture: str | None = None
) -> Any:
    """The model that transformers would load from tensors of these names and shapes, without weights and memory.

    Args:
        folder: a checkpoint's folder, whose configuration is read.
        shapes: of all tensors on disk.
        trust_remote_code: may code that lies in the folder be run?
        architecture: class to build; by default the causal language model of the configuration.
    """
    with silent():
        config = transformers.AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code)
        kind = getattr(transformers, architecture, None) if architecture else None
        if kind is None:
            automatic = transformers.AutoModelForCausalLM
            with torch.device("meta"):
                kind = type(automatic.from_config(config, trust_remote_code=trust_remote_code))
        tensors = {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
        return kind.from_pretrained(
            None,
            config=config,
            state_dict=tensors,
            dtype=torch.float32,
            device_map={"": "meta"},
            ignore_mismatched_sizes=True,
        )


def check_names(checkpoint: Checkpoint, trust_remote_code: bool = False) -> None:
    """Before anything is trained: will a model of these files be saved under these names, each a parameter?

    Only what was trained and saved can be compared with the base, and only what has a name in memory can be frozen.

    Args:
        checkpoint: the base, known to load whole (see :func:`cpift.train.models.check_model`).
        trust_remote_code: may code that lies in the folder be run?

    Raises:
        CpiftError: tensors that the model's class does not load, or saves under other names or shapes.
    """
    folder = checkpoint.path if checkpoint.path.is_dir() else checkpoint.path.parent
    shapes = {name: t.shape for name, t in {**checkpoint.tensors, **checkpoint.others}.items()}
    try:
        network = rehearse(folder, shapes, trust_remote_code)
        names = disk_names(network)
    except Exception as error:  # a broken configuration raises whatever trips over it first
        raise CpiftError(f"{folder}: transformers cannot load it ({' '.join(str(error).split())[:300]})") from error
    assert names is not None
    kind = type(network).__name__
    prefixes = prefixes_of(network, names.shapes, checkpoint.tensors)
    meant = {name: resolve(name, names.shapes, prefixes) for name in checkpoint.tensors}
    lost = [name for name, on_disk in meant.items() if on_disk is None]
    if lost:
        raise CpiftError(
            f"{folder}: {kind} does not load {_some(lost)}, or saves it under another name, so that what is trained from "
            "this base could not be compared with it; save the base once by "
            "AutoModelForCausalLM.from_pretrained(…).save_pretrained(…), and use that copy"
        )
    for name, on_disk in meant.items():
        assert on_disk is not None
        check_shape(name, checkpoint.tensors[name].shape, names.shapes[on_disk], 0, str(folder))
    parameters = {plain_name(name) for name, _ in network.named_parameters()}
    untrained = sorted({here for name in meant.values() for here in names.in_memory(str(name))} - parameters)
    if untrained:
        raise CpiftError(f"{folder}: {_some(untrained)} of {kind} is a buffer, not a parameter; it is not supported")


def class_buffers(folder: Path, shapes: Mapping[str, Shape], config: Mapping[str, object]) -> dict[str, bool]:
    """For each name on disk that the model's class knows: is it no parameter, but a buffer or a weight that it ignores?

    Empty where the class cannot be built: no known ``model_type``, code of its own.

    Args:
        folder: of the checkpoint.
        shapes: of all tensors on disk.
        config: what its ``config.json`` holds.
    """
    key = json.dumps([dict(config), sorted(shapes)], sort_keys=True, default=str)
    if key not in _known_buffers:
        _known_buffers[key] = _class_buffers(folder, shapes, config)
    return _known_buffers[key]


_known_buffers: dict[str, dict[str, bool]] = {}  # a run opens the same checkpoint often


def _class_buffers(folder: Path, shapes: Mapping[str, Shape], config: Mapping[str, object]) -> dict[str, bool]:
    kinds = config.get("architectures")
    architecture = kinds[0] if isinstance(kinds, list) and kinds and isinstance(kinds[0], str) else None
    try:
        network = rehearse(folder, shapes, architecture=architecture)
        names = disk_names(network)
    except Exception:  # whatever the reason, the patterns of names are left to go by
        return {}
    assert names is not None
    parameters = {plain_name(name) for name, _ in network.named_parameters()}
    prefixes = prefixes_of(network, names.shapes, shapes)
    meant = {name: resolve(name, names.shapes, prefixes) for name in shapes}
    ignored = [re.compile(pattern) for pattern in network._keys_to_ignore_on_load_unexpected or ()]
    known = {
        name: not any(here in parameters for here in names.in_memory(on_disk))
        for name, on_disk in meant.items()
        if on_disk is not None
    }
    unknown = [name for name in shapes if name not in known]
    return known | {name: True for name in unknown if any(pattern.search(name) for pattern in ignored)}


def _some(names: list[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more
