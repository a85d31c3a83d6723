"""Models and tokenizers in and out of memory: the one place that loads or saves a whole model."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging

from cpift.checkpoint.adapter import is_adapter
from cpift.checkpoint.completeness import (
    check_complete,
    load_by_plain_names,
    load_computed,
    refuse_incomplete,
    wrapped_weights,
)
from cpift.checkpoint.reader import open_checkpoint
from cpift.checkpoint.stream import Checkpoint
from cpift.data.templates import ChatSettings
from cpift.data.turns import write_stop_ids
from cpift.errors import CpiftError
from cpift.recipe.model import Dtype
from cpift.train.accelerator import frees_memory


@frees_memory
def convert_gguf(file: Path, out: Path) -> None:
    """Write a GGUF file as a plain fp32 checkpoint with its tokenizer and chat template."""
    with quiet():
        try:
            tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
            model = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
        except Exception as error:  # damaged files raise whatever the reader trips over
            raise CpiftError(f"{file}: cannot be read as GGUF ({' '.join(str(error).split())})") from error
        # The weights are plain numbers now; these marks would make save_pretrained refuse.
        model.config.__dict__.pop("quantization_config", None)
        model.config._name_or_path = ""
        model.hf_quantizer = None
        model.is_quantized = False
        save(model, tokenizer, out)


def check_model(folder: Path, trust_remote_code: bool = False, base: Path | None = None) -> None:
    """Say in one line what is wrong with a checkpoint, as far as its files' headers tell.

    Args:
        folder: of the checkpoint.
        trust_remote_code: may code that lies in the folder be run?
        base: of an adapter; by default the one that it names.

    Raises:
        CpiftError: transformers does not know the configuration, or would fill weights in at random.
    """
    checkpoint = open_checkpoint(folder, None if base is None else open_checkpoint(base))
    if checkpoint.beneath is not None:
        checkpoint = checkpoint.beneath
        folder = checkpoint.folders[0]
    layers = checkpoint.config.get("num_hidden_layers", 0)
    if isinstance(layers, int) and layers > len(checkpoint.tensors):  # would be built before it is compared
        raise CpiftError(f"{folder}: its num_hidden_layers is {layers}, yet it holds {len(checkpoint.tensors)} tensors")
    with quiet():
        try:
            AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code)
        except Exception as error:  # a broken configuration raises whatever trips over it first
            raise CpiftError(f"{folder}: transformers cannot load it ({_why(error)})") from error
    check_complete(checkpoint, trust_remote_code)


def check_attention(folder: Path, attention: str, trust_remote_code: bool = False) -> None:
    """Make the model, without weights, with this attention.

    Args:
        folder: of the checkpoint.
        attention: transformers' name of it.
        trust_remote_code: may code that lies in the folder be run?

    Raises:
        CpiftError: transformers refuses it for this model, or a package that it needs is not installed.
    """
    with quiet():
        config = AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code)
        try:
            with torch.device("meta"):
                AutoModelForCausalLM.from_config(
                    config, attn_implementation=attention, trust_remote_code=trust_remote_code
                )
        except Exception as error:  # an unknown name, a package, a model without it: each has a class of its own
            raise CpiftError(f"attn_implementation: transformers refuses {attention!r} here ({_why(error)})") from error


def check_stored_as_bf16(checkpoint: Checkpoint) -> None:
    """Raise :class:`CpiftError` where bf16 weights would not be those of the checkpoint, but their rounding."""
    other = next((name for name, tensor in checkpoint.tensors.items() if tensor.dtype != "BF16"), None)
    if other is not None:
        raise CpiftError(
            f"model.dtype: bfloat16 needs a base whose every tensor is stored as BF16, and {checkpoint.path} has {other} as "
            f"{checkpoint.tensors[other].dtype}: Δ would be its rounding; leave model.dtype out"
        )


def load_model(
    folder: Path,
    trust_remote_code: bool = False,
    base: Path | None = None,
    attention: str | None = None,
    dtype: Dtype = "float32",
    device_map: str | None = None,
) -> Any:
    """A causal language model, all of whose weights come from the checkpoint.

    Args:
        folder: of the checkpoint, or of an adapter, which is merged into its base.
        trust_remote_code: may code that lies in the folder be run?
        base: of an adapter; by default the one that it names.
        attention: transformers' name of how attention is computed; None: its choice.
        dtype: of the weights; bfloat16 only where all of them are stored so.
        device_map: how transformers spreads the layers over several devices; None: the processor's memory.

    Raises:
        CpiftError: no plain checkpoint, a damaged one, one that lacks weights of the model, or other weights than bf16
            where these are asked for.
    """
    check_model(folder, trust_remote_code, base)
    checkpoint = open_checkpoint(folder, None if base is None else open_checkpoint(base))
    if dtype == "bfloat16":
        check_stored_as_bf16(checkpoint)
    given = {"attn_implementation": attention, "device_map": device_map}
    options = {name: value for name, value in given.items() if value is not None}
    with quiet():
        try:
            if checkpoint.beneath is not None:
                model, loaded = load_computed(checkpoint, trust_remote_code, options)
                refuse_incomplete(loaded, checkpoint)
                return model.to(getattr(torch, dtype)) if dtype != "float32" else model
            wrapped = wrapped_weights(folder)
            if wrapped is not None:  # names that transformers does not know
                model, loaded = load_by_plain_names(folder, wrapped, trust_remote_code, options)
                model = model.to(getattr(torch, dtype)) if dtype != "float32" else model
            else:
                model, loaded = AutoModelForCausalLM.from_pretrained(
                    folder,
                    dtype=getattr(torch, dtype),
                    use_safetensors=True,
                    trust_remote_code=trust_remote_code,
                    output_loading_info=True,
                    **options,
                )
        except Exception as error:  # a broken configuration raises whatever trips over it first
            raise CpiftError(f"{folder}: transformers cannot load it ({_why(error)})") from error
    refuse_incomplete(loaded, checkpoint)
    return model


def load_tokenizer(
    folder: Path, trust_remote_code: bool = False, chat: ChatSettings | None = None, base: Path | None = None
) -> Any:
    """The tokenizer that lies with a checkpoint, with the recipe's chat settings.

    Args:
        folder: of the checkpoint, or of an adapter, which may have a tokenizer of its own or its base's.
        trust_remote_code: may code that lies in the folder be run?
        chat: the recipe's chat settings.
        base: of an adapter; by default the one that it names.

    Raises:
        CpiftError: there is none, or the settings do not fit it.
    """
    if is_adapter(folder):
        folders = open_checkpoint(folder, None if base is None else open_checkpoint(base)).folders
        folder = next((f for f in reversed(folders) if (f / "tokenizer_config.json").is_file()), folders[0])
    return read_tokenizer(folder, trust_remote_code, chat)


def read_tokenizer(folder: Path, trust_remote_code: bool = False, chat: ChatSettings | None = None) -> Any:
    """The tokenizer whose files lie in this very folder; arguments and errors are those of :func:`load_tokenizer`."""
    with quiet():
        try:
            tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_remote_code)
        except Exception as error:  # broken files raise whatever trips over them first
            raise CpiftError(f"{folder}: has no tokenizer that loads ({_why(error)})") from error
    if not tokenizer.is_fast:
        raise CpiftError(f"{folder}: its tokenizer has no fast form, which is needed to mark the assistant's part")
    if chat is not None:
        chat.apply(tokenizer)
    return tokenizer


def is_sharded(model: Any) -> bool:
    """Does this process hold a part of the weights only (FSDP2)?"""
    return any(hasattr(parameter, "device_mesh") for parameter in model.parameters())


def gathered(model: Any) -> Any:
    """The whole weights of a sharded model, in the first process's main memory; None where nothing is sharded.

    All processes call it together.
    """
    if not is_sharded(model):
        return None
    # Not every torch has it; where a model is in shards it does.
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict  # noqa: PLC0415

    return get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))


def save(model: Any, tokenizer: Any, out: Path, weights: Any = None) -> None:
    """Write a plain Hugging Face checkpoint.

    Its generation configuration lists all that ends a turn, so that whoever loads it stops there.

    Args:
        model: as it was trained.
        tokenizer: as it was trained with.
        out: the folder.
        weights: gathered from all processes that hold a part of them; None: the model's own.
    """
    write_stop_ids(model, tokenizer)
    with quiet():
        model.save_pretrained(out, state_dict=weights)
        tokenizer.save_pretrained(out)


def _why(error: Exception) -> str:
    if "trust_remote_code" in str(error):
        return "it carries code of its own; with trust_remote_code: true that code is run"
    return " ".join(str(error).split())[:300]


@contextmanager
def quiet() -> Iterator[None]:
    """Without the library's own progress bars, which would tear ours."""
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
