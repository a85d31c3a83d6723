"""TRL's SFTConfig from a recipe's settings: our defaults, what is refused, and the rows of a step."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import MISSING
from pathlib import Path
from typing import Any, get_type_hints

import torch
from pydantic import TypeAdapter, ValidationError
from trl import SFTConfig

from cpift.distributed import ranks
from cpift.errors import CpiftError, did_you_mean
from cpift.train.accelerator import bf16_helps
from cpift.train.auto_batch import check_auto_batch
from cpift.train.settings import OLDER_NAMES, OWN_KEYS, SETTINGS
from cpift.train.values import check_device, check_optimizer, check_values

# Where these differ from SFTConfig's own defaults there is a reason.
DEFAULTS: dict[str, Any] = {
    "per_device_train_batch_size": 8,
    "learning_rate": 1e-4,
    "train_sampling_strategy": "group_by_length",  # batches of like length waste no padding
    "activation_checkpointing": False,  # memory for time: for those who lack memory
    "ddp_find_unused_parameters": False,  # a language model uses them all
    "report_to": "none",
    "save_total_limit": 1,
    "logging_nan_inf_filter": False,  # a loss that is no number must be seen
}
# Its name in the transformers that is installed: the older one before 5.23.
_CHECKPOINTING_NAMES = ("activation_checkpointing", "gradient_checkpointing")
_CHECKPOINTING = next(name for name in _CHECKPOINTING_NAMES if hasattr(SFTConfig, name))


def check_training(training: Mapping[str, Any], where: str = "training") -> None:
    """Check a stage's settings against :data:`cpift.train.settings.SETTINGS` and SFTConfig.

    Args:
        training: the recipe's settings.
        where: their place in the recipe, for the message.

    Raises:
        CpiftError: a key that SFTConfig does not know, one that cpift sets or refuses, or a value that cannot work.
    """
    for key in training:
        _check_key(key, where)
    check_auto_batch(training, where)
    settings = typed(training, where)
    for key, value in settings.items():
        setting = SETTINGS[key]
        if setting.kind == "refused" and value != _default_of(key):
            raise CpiftError(f"{where}.{key}: is not supported; {setting.note}")
    check_values(settings, where)
    check_device(settings, where)
    try:
        config = sft_config(training, Path("unused"), steps=1, seed=0, share=False)
    except Exception as error:  # dataclass and enums: whatever they raise is about the value given
        raise CpiftError(f"{where}: SFTConfig refuses it ({' '.join(str(error).split())[:300]})") from error
    if config.per_device_train_batch_size < 1 or config.gradient_accumulation_steps < 1:
        raise CpiftError(f"{where}: batch size and gradient_accumulation_steps must be at least 1")
    if not 0 <= config.learning_rate < math.inf:
        raise CpiftError(f"{where}.learning_rate: {config.learning_rate} is no rate")
    check_optimizer(config, where)
    shared_rows(settings, where)


def _check_key(key: str, where: str) -> None:
    fields = set(SFTConfig.__dataclass_fields__)
    setting = SETTINGS.get(key)
    if key in OWN_KEYS:
        return
    if setting and setting.kind == "set by cpift":
        raise CpiftError(f"{where}.{key}: is set by cpift; {setting.note}")
    if key in OLDER_NAMES:
        raise CpiftError(f"{where}.{key}: is an older name; the key today is {OLDER_NAMES[key]}")
    if key not in fields:
        settable = [name for name in fields if name in SETTINGS and SETTINGS[name].kind in ("works", "passed on")]
        raise CpiftError(f"{where}: unknown key {key!r}{did_you_mean(key, [*settable, *OWN_KEYS])}")
    if not setting:
        raise CpiftError(f"{where}.{key}: is newer than this cpift, which was not tried with it; leave it out")


def _default_of(key: str) -> Any:
    field = SFTConfig.__dataclass_fields__[key]
    return field.default if field.default_factory is MISSING else field.default_factory()


def typed(training: Mapping[str, Any], where: str = "training") -> dict[str, Any]:
    """SFTConfig's settings in the types that it declares. Raises :class:`CpiftError` that names one of another kind."""
    hints, settings = get_type_hints(SFTConfig), {}
    for key, value in training.items():
        if key in OWN_KEYS:
            continue
        if value is False and key.endswith("_strategy"):
            value = "no"  # YAML 1.1 reads a bare no as false
        try:
            read = TypeAdapter(hints[key], config={"arbitrary_types_allowed": True}).validate_python(value)
            settings[key] = read if isinstance(value, str) or type(read) is float else value
        except ValidationError as error:
            raise CpiftError(f"{where}.{key}: {error.errors()[0]['msg']} (got {value!r})") from None
    return settings


def batch_rows(training: Mapping[str, Any]) -> int:
    """Rows in one optimizer step."""
    each = int(training.get("per_device_train_batch_size", DEFAULTS["per_device_train_batch_size"]))
    return each * int(training.get("gradient_accumulation_steps", 1))


def check_rows(count: int, training: Mapping[str, Any], what: str = "there are") -> None:
    """Check that ``dataloader_drop_last`` leaves rows for at least one step.

    Args:
        count: number of rows.
        training: the recipe's settings.
        what: the beginning of the message.

    Raises:
        CpiftError: all rows would be dropped.
    """
    settings = typed(training)
    batch = shared_rows(settings)["per_device_train_batch_size"] * ranks.size()
    if settings.get("dataloader_drop_last") and count < batch:
        raise CpiftError(
            f"training.dataloader_drop_last: {what} {count} rows, fewer than the {batch} of a batch, and all of them would be "
            f"dropped; lower per_device_train_batch_size, or leave dataloader_drop_last out"
        )


def shared_rows(settings: Mapping[str, Any], where: str = "training") -> dict[str, int]:
    """The recipe's rows of a step, shared out among the processes of the run."""
    names = ("per_device_train_batch_size", "gradient_accumulation_steps")
    given = [int(settings.get(names[0], DEFAULTS[names[0]])), int(settings.get(names[1], 1))]
    return dict(zip(names, ranks.share(given[0], given[1], where), strict=True))


def max_length(training: Mapping[str, Any]) -> int | None:
    """Tokens after which a row is cut."""
    value = training.get("max_length", SFTConfig.__dataclass_fields__["max_length"].default)
    return None if value is None else int(value)


def sft_config(training: Mapping[str, Any], output: Path, steps: int, seed: int, share: bool = True) -> SFTConfig:
    """TRL's configuration of a training.

    Args:
        training: the recipe's settings, on top of :data:`DEFAULTS`.
        output: folder of the trainer's own checkpoints.
        steps: optimizer steps.
        seed: of the order of rows and of dropout.
        share: divide the rows of a step among the processes of the run.
    """
    given = typed(training)
    settings: dict[str, Any] = {
        **DEFAULTS,
        "bf16": bf16_helps(given.get("use_cpu")) and not training.get("fp16", False),
        "use_cpu": not torch.accelerator.is_available(),
        "logging_steps": max(1, steps // 100),
        "include_num_input_tokens_seen": "all" if given.get("padding_free") else "non_padding",
        **given,
        **({"max_length": None} if given.get("padding_free") else {}),  # rows are cut before TRL sees them
        **(shared_rows(given) if share else {}),
        "output_dir": str(output),
        "max_steps": steps,
        "seed": seed,
        "data_seed": seed,
        "disable_tqdm": True,
        "dataset_kwargs": {"skip_prepare_dataset": True},  # rows come as token ids with labels
    }
    checkpointing = settings.pop("activation_checkpointing")  # by either name, which many recipes have
    settings[_CHECKPOINTING] = settings.pop("gradient_checkpointing", checkpointing)
    options = [settings.pop(f"{name}_kwargs", None) for name in _CHECKPOINTING_NAMES]
    settings |= {f"{_CHECKPOINTING}_kwargs": given for given in options if given is not None}
    config = SFTConfig(**settings)
    if ranks.size() == 1 and config.n_gpu > 1:
        config._n_gpu = 1  # or the Trainer would spread over all GPUs by threads, with as many times the rows
    return config


def join() -> None:
    """Meet the other processes of the run; all of them call this before anything else, as each waits for the others."""
    if ranks.size() > 1:
        sft_config({}, Path("unused"), steps=1, seed=0, share=False)  # accelerate makes the process group in its making
