"""Open a Hugging Face checkpoint: headers only. Only safetensors is read; pickle is refused."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from cpift.checkpoint.adapter import apply_adapter, is_adapter
from cpift.checkpoint.adapter_base import check_base, named_base
from cpift.checkpoint.adapter_config import WEIGHTS, AdapterConfig
from cpift.checkpoint.buffers import buffers_of_class, is_buffer, is_parameter
from cpift.checkpoint.files import INDEX, SINGLE, gguf_message, read_folder, read_json, zero_command
from cpift.checkpoint.names import plain_name, plain_names
from cpift.checkpoint.quantized import refuse_packed, refuse_quantized_config
from cpift.checkpoint.safetensors import StoredTensor, read_header
from cpift.checkpoint.stream import Checkpoint
from cpift.checkpoint.ties import is_output, says_tied, tied_aliases
from cpift.checkpoint.updates import is_updates, open_updates
from cpift.errors import CpiftError


def open_checkpoint(path: str | Path, base: Checkpoint | None = None) -> Checkpoint:
    """Open a whole model, or a PEFT adapter as the model that it makes of its base.

    Reads the headers only. Names come without what wrappers put into them.

    Args:
        path: a folder with ``model.safetensors``, with shards and an index, or with an adapter; or one ``.safetensors``
            file.
        base: what an adapter is applied to; by default the base that its ``adapter_config.json`` names.

    Raises:
        CpiftError: no checkpoint that can be read (pickle, GGUF, a training state, quantised weights), with what makes
            one of it; a missing shard, a damaged header, a parameter stored twice or without elements; an adapter that
            cannot be merged, or that belongs to another base.
    """
    path = Path(path)
    folder = path.parent if path.name == WEIGHTS else path
    if path.is_dir() and is_updates(path):
        if base is None:
            raise CpiftError(f"{path}: holds updates in place of weights; give the base that they were made from")
        return open_updates(path, base.beneath or base)
    if not folder.is_dir() or not is_adapter(folder):
        return open_plain(path)
    config = AdapterConfig.read(folder)
    if base is None:
        base = open_plain(named_base(config))
    else:
        base = base.beneath or base
        check_base(config, base, open_plain)
    return apply_adapter(base, folder, config)


def weight_bytes(base: Path, *others: Path) -> int:
    """Bytes of the weights of checkpoints, as they are read.

    Args:
        base: a checkpoint, which adapters among the others are applied to.
        others: more checkpoints.
    """
    origin = open_checkpoint(base)
    return origin.nbytes + sum(open_checkpoint(path, origin).nbytes for path in others)


def open_plain(path: Path) -> Checkpoint:
    """As :func:`open_checkpoint`, for a whole model alone."""
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
        return is_buffer(plain_name(name)) or (is_output(plain_name(name)) and says_tied(config))

    stored = read_header(path) if path.is_file() else read_folder(folder, config, dispensable)
    stored = plain_names(stored, path)
    refuse_packed(stored, path)
    _refuse_adapter_weights(stored, path)
    aliases = tied_aliases(stored, config, path)
    parameters: dict[str, StoredTensor] = {}
    others: dict[str, StoredTensor] = {}
    buffers = buffers_of_class(folder, stored, config)
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
            f"{path}: {lora[0]} belongs to an adapter, beside the weights of its base; save the adapter alone "
            "(PEFT: save_pretrained), or call merge_and_unload() and save the result"
        )
