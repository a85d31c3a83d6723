"""Write any checkpoint that can be read, such as a base with an adapter, as a plain Hugging Face checkpoint."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from cpift.checkpoint.convert import NAMES, converted
from cpift.checkpoint.files import INDEX
from cpift.checkpoint.stream import BLOCK, Checkpoint
from cpift.checkpoint.tensor import Tensor
from cpift.checkpoint.writer import (
    Shard,
    check_room,
    copy_companions,
    layout_bytes,
    new_folder,
    parse_size,
    set_dtype,
    split_layout,
)
from cpift.errors import CpiftError


def write_whole(
    model: Checkpoint,
    out: Path,
    *,
    dtype: str | None = None,
    max_shard_size: str | int = "5GB",
    check: Callable[[Path], None] = lambda folder: None,
    progress: Callable[[int], None] = lambda nbytes: None,
) -> None:
    """Write the checkpoint with its configuration and tokenizer; the folder appears whole or not at all.

    Args:
        model: what is written.
        out: a new folder, or an empty one.
        dtype: of the floating-point tensors, such as "bfloat16"; by default as they are read.
        max_shard_size: largest file.
        check: called with the folder before it gets its name; raises where it is not right.
        progress: called with the number of bytes read since the last call.

    Raises:
        CpiftError: the folder exists, the disk is too small, or a value that the type cannot hold.
    """
    if dtype is not None and dtype not in NAMES:
        raise CpiftError(f"dtype: {dtype} is not one of {', '.join(NAMES)}")
    tensors = {**model.tensors, **model.others}
    layout = {name: (_type(tensor, dtype), tensor.shape) for name, tensor in tensors.items()}
    check_room(out, layout_bytes(layout))
    with new_folder(out) as partial:
        files = split_layout(layout, parse_size(max_shard_size))
        for file, part in files.items():
            shard = Shard(partial / file, part)
            shard.open()
            for name in part:
                _write(shard, name, tensors[name], layout[name][0], progress)
            shard.close()
        if len(files) > 1:
            weight_map = {name: file for file, part in files.items() for name in part}
            index = {"metadata": {"total_size": layout_bytes(layout)}, "weight_map": dict(sorted(weight_map.items()))}
            (partial / INDEX).write_text(json.dumps(index, indent=2))
        for folder in model.folders:
            copy_companions(folder, partial)
        if model.beneath is not None:  # an adapter may have embeddings with more rows than its base
            (partial / "config.json").write_text(json.dumps(model.config, indent=2) + "\n")
        set_dtype(partial / "config.json", {layout[name][0] for name in model.tensors})
        check(partial)


def _type(tensor: Tensor, dtype: str | None) -> str:
    return NAMES[dtype] if dtype is not None and tensor.floating else tensor.dtype


def _write(shard: Shard, name: str, tensor: Tensor, dtype: str, progress: Callable[[int], None]) -> None:
    for start in range(0, tensor.size, BLOCK):
        raw = tensor.read(start, min(start + BLOCK, tensor.size), ahead=True)
        data = converted(raw, tensor.dtype, dtype, name) if tensor.floating else raw
        shard.write(name, start, data.data)
        progress(raw.nbytes)
