"""Adapters in training: PEFT's layers put into a model, checked against the base, and saved without the base."""

from __future__ import annotations

import os
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, set_seed

from cpift.checkpoint.adapter_base import hub_name
from cpift.checkpoint.adapter_config import WEIGHTS
from cpift.checkpoint.library import library
from cpift.checkpoint.reader import open_checkpoint
from cpift.checkpoint.safetensors import header_bytes
from cpift.checkpoint.writer import layout_bytes
from cpift.data.turns import write_stop_ids
from cpift.errors import CpiftError
from cpift.extras import install
from cpift.method.rehearsal import rehearse
from cpift.recipe.adapter import Adapter
from cpift.train.four_bit import KIND, check_four_bit
from cpift.train.models import quiet


def check_installed(adapter: Adapter, where: str) -> None:
    """Raise :class:`CpiftError` where a library that the adapter needs is not installed.

    Args:
        adapter: as the recipe has it.
        where: its place in the recipe, for the message.
    """
    if find_spec("peft") is None:
        raise CpiftError(f"{where}: needs PEFT; {install('adapters')}")
    check_four_bit(adapter, where)


def wrapped(model: Any, adapter: Adapter, base: Path, seed: int) -> Any:
    """The model with the adapter's layers, which alone are trained.

    Args:
        model: as it was loaded.
        adapter: what is put into it.
        base: the model's folder.
        seed: of the adapter's first values.

    Raises:
        CpiftError: no module of the names given, or an adapter that could not be merged into the base afterwards.
    """
    set_seed(seed)
    made = _put_in(model, adapter, base)
    check_mergeable(made, base)
    return made


def check_adapter(adapter: Adapter, base: Path, where: str, trust_remote_code: bool = False) -> None:
    """Put the adapter into a model without weights, and compare what it would save with the base.

    Args:
        adapter: as the recipe has it.
        base: the folder of a checkpoint.
        where: the adapter's place in the recipe, for the message.
        trust_remote_code: may code that lies in the folder be run?

    Raises:
        CpiftError: a library that is not installed, modules that the model does not have, or an adapter that could not
            be merged.
    """
    check_installed(adapter, where)
    checkpoint = open_checkpoint(base)
    shapes = {name: tensor.shape for name, tensor in {**checkpoint.tensors, **checkpoint.others}.items()}
    model = rehearse(base, shapes, trust_remote_code)
    try:
        check_mergeable(_put_in(model, adapter, base), base)
    except CpiftError as error:
        raise CpiftError(f"{where}: {error}") from error


def check_mergeable(model: Any, base: Path) -> None:
    """Raise :class:`CpiftError` where the adapter that the model would save does not fit its base.

    Args:
        model: with an adapter's layers.
        base: folder of the model beneath.
    """
    with tempfile.TemporaryDirectory(prefix="cpift-") as scratch, _without_warnings():
        parts = library("peft").get_peft_model_state_dict(model, save_embedding_layers=False)
        layout = {name: ("F32", tuple(tensor.shape)) for name, tensor in parts.items()}
        head, _ = header_bytes(layout)
        file = Path(scratch) / WEIGHTS
        file.write_bytes(head)
        os.truncate(file, len(head) + layout_bytes(layout))  # takes no room on the disk
        model.peft_config["default"].save_pretrained(scratch)
        try:
            open_checkpoint(scratch, open_checkpoint(base))
        except CpiftError as error:
            raise CpiftError(str(error).removeprefix(f"{scratch}: ").removeprefix(f"{scratch}/")) from error


def _put_in(model: Any, adapter: Adapter, base: Path) -> Any:
    peft = library("peft")  # an extra
    config = peft.LoraConfig(
        task_type="CAUSAL_LM",
        r=adapter.r,
        lora_alpha=adapter.scaled,
        lora_dropout=adapter.dropout,
        target_modules=adapter.target_modules,
        modules_to_save=adapter.modules_to_save or None,
        base_model_name_or_path=str(base),
        **adapter.kind.options,
    )
    with _without_warnings():
        try:
            made = peft.get_peft_model(model, config)
        except (ValueError, ImportError, RuntimeError) as error:
            raise CpiftError(f"adapter: PEFT refuses it ({' '.join(str(error).split())[:300]})") from error
    made.peft_config["default"].base_model_name_or_path = str(base)
    unmatched = [end for end in adapter.modules_to_save if not _has_module(made, end)]
    if unmatched:
        raise CpiftError(f"adapter.modules_to_save: {unmatched[0]} is the end of no module's name")
    return made


def save_adapter(model: Any, tokenizer: Any, out: Path, base: Path, weights: Any = None) -> None:
    """Write the adapter alone, with the tokenizer and the generation configuration beside it.

    Args:
        model: with the adapter's layers.
        tokenizer: as it was trained with.
        out: the folder.
        base: the folder of the model beneath. One of the hub's cache is named by repository and commit.
        weights: gathered from all processes that hold a part of them.
    """
    config = model.peft_config["default"]
    config.base_model_name_or_path, config.revision = hub_name(base) or (str(base.absolute()), None)
    config.inference_mode = True
    write_stop_ids(model.get_base_model(), tokenizer)
    with quiet(), _without_warnings():
        model.save_pretrained(out, state_dict=weights, save_embedding_layers=False)
        if model.get_base_model().generation_config is not None:
            model.get_base_model().generation_config.save_pretrained(out)
        tokenizer.save_pretrained(out)
    (out / "README.md").unlink(missing_ok=True)  # an empty model card


def load_four_bit(
    folder: Path, trust_remote_code: bool, attention: str | None = None, device_map: str | None = None
) -> Any:
    """A model quantised to 4 bit (NF4) as it is loaded, ready for an adapter.

    Args:
        folder: of a checkpoint of plain numbers.
        trust_remote_code: may code that lies in the folder be run?
        attention: transformers' name of how attention is computed; None: its choice.
        device_map: how transformers spreads the layers over several devices; None: one device.

    Raises:
        CpiftError: bitsandbytes cannot quantise it on this machine.
    """
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else torch.device("cpu")
    config = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=KIND,
        bnb_4bit_compute_dtype=torch.float32 if str(device) == "cpu" else torch.bfloat16,
    )
    with quiet(), _without_warnings():
        try:
            model = AutoModelForCausalLM.from_pretrained(
                folder,
                quantization_config=config,
                device_map=device_map or {"": device},
                use_safetensors=True,
                trust_remote_code=trust_remote_code,
                **({} if attention is None else {"attn_implementation": attention}),
            )
        except Exception as error:  # whatever trips over the device or the model
            raise CpiftError(f"{folder}: cannot be loaded in 4 bit ({' '.join(str(error).split())[:300]})") from error
        return library("peft").prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)


def _has_module(model: Any, end: str) -> bool:
    return any(f".{end}.modules_to_save." in f".{name}." for name, _ in model.named_modules())


@contextmanager
def _without_warnings() -> Iterator[None]:
    """PEFT warns of what is checked here, and uses older names of transformers."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        warnings.simplefilter("ignore", UserWarning)
        yield
