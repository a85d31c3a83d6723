"""Values of ``training:`` that SFTConfig takes and that could not work here: refused before anything is trained."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Mapping
from typing import Any

import torch
from accelerate.utils import DynamoBackend
from torch._inductor import list_mode_options
from transformers import Trainer, get_scheduler

from cpift.errors import CpiftError
from cpift.typing import Settings

_LAYERWISE = "it steps within the backward pass, where no frozen region can be held; use the one without layerwise"
_FUSED = (
    "it steps within the backward pass, where no frozen region can be held; use adafactor, which takes little memory"
)
_SWAPS = "outside of a step its weights are not those to be saved, and TRL saves them all the same; use adamw_torch"
# Field to value to why.
REFUSED_VALUES: dict[str, dict[str, str]] = {
    "optim": {
        "galore_adamw_layerwise": _LAYERWISE,
        "galore_adamw_8bit_layerwise": _LAYERWISE,
        "galore_adafactor_layerwise": _LAYERWISE,
        "apollo_adamw_layerwise": _LAYERWISE,
        "lomo": _FUSED,
        "adalomo": _FUSED,
        "schedule_free_radam": _SWAPS,
        "schedule_free_adamw": _SWAPS,
        "schedule_free_sgd": _SWAPS,
    },
    "lr_scheduler_type": {
        "reduce_lr_on_plateau": "it needs an evaluation within the training; use linear or cosine",
        "greedy": "it needs an evaluation within the training; use linear or cosine",
    },
    "save_strategy": {"best": "it needs an evaluation within the training; use steps, epoch or 'no'"},
    "logging_strategy": {"no": "a loss that is NaN or infinite must be seen; raise logging_steps instead"},
    "train_sampling_strategy": {
        "batch_rebalance": "its batches differ with the number of processes; use random or group_by_length"
    },
}
# Field to lowest and highest value.
RANGES: dict[str, tuple[float, float]] = {
    "max_length": (1, math.inf),
    "weight_decay": (0, math.inf),
    "max_grad_norm": (0, math.inf),
    "label_smoothing_factor": (0, 1),
    "neftune_noise_alpha": (0, math.inf),
    "save_total_limit": (1, math.inf),
    "dataloader_num_workers": (0, math.inf),
}
CHOICES = {"loss_type": ("nll", "dft")}  # those that SFTConfig itself does not check
# Beginning of an optimizer's name to (module, package).
OPTIMIZER_PACKAGES = {
    "adamw_torch_xla": ("torch_xla", "torch_xla"),
    "adamw_torch_npu_fused": ("torch_npu", "torch_npu"),
    "adamw_torch_4bit": ("torchao", "torchao"),
    "adamw_torch_8bit": ("torchao", "torchao"),
    "adamw_anyprecision": ("torchdistx", "torchdistx"),
    "adamw_bnb_8bit": ("bitsandbytes", "bitsandbytes"),
    "adamw_8bit": ("bitsandbytes", "bitsandbytes"),
    "ademamix": ("bitsandbytes", "bitsandbytes"),
    "lion_": ("bitsandbytes", "bitsandbytes"),
    "paged_": ("bitsandbytes", "bitsandbytes"),
    "rmsprop_bnb": ("bitsandbytes", "bitsandbytes"),
    "galore_": ("galore_torch", "galore-torch"),
    "apollo_": ("apollo_torch", "apollo-torch"),
    "grokadamw": ("grokadamw", "grokadamw"),
    "stable_adamw": ("optimi", "torch-optimi"),
}
# Optimizer to what transformers reads of optim_args; it passes over all else without a word.
OPTIMIZER_ARGUMENTS = {
    "adamw_torch": (),
    "adamw_torch_fused": (),
    "adafactor": (),
    "sgd": ("momentum", "dampening", "weight_decay", "nesterov"),
    "adagrad": ("lr_decay", "weight_decay", "eps"),
    "rmsprop": ("momentum", "alpha", "eps", "weight_decay", "centered"),
}
# Service of report_to to (modules of which one is enough, package).
REPORT_PACKAGES = {
    "azure_ml": (("azureml.core",), "azureml-mlflow"),
    "clearml": (("clearml",), "clearml"),
    "codecarbon": (("codecarbon",), "codecarbon"),
    "comet_ml": (("comet_ml",), "comet-ml"),
    "dagshub": (("dagshub",), "dagshub"),
    "dvclive": (("dvclive",), "dvclive"),
    "flyte": (("flytekit",), "flytekit"),
    "kubeflow": (("kubeflow",), "kubeflow"),
    "mlflow": (("mlflow",), "mlflow"),
    "neptune": (("neptune",), "neptune"),
    "swanlab": (("swanlab",), "swanlab"),
    "tensorboard": (("tensorboard", "tensorboardX"), "tensorboard"),
    "trackio": (("trackio",), "trackio"),
    "wandb": (("wandb",), "wandb"),
}


def check_values(training: Settings, where: str) -> None:
    """Check single values, and the packages that some of them need.

    Args:
        training: settings in the types that SFTConfig declares.
        where: their place in the recipe, for the message.

    Raises:
        CpiftError: names the key, why its value cannot work, and what to do.
    """
    for key, values in REFUSED_VALUES.items():
        value = str(getattr(training.get(key), "value", training.get(key)))
        if value in values:
            raise CpiftError(f"{where}.{key}: {value} is not supported; {values[value]}")
    for key, (low, high) in RANGES.items():
        number = training.get(key)
        if number is not None and not low <= number <= high:
            raise CpiftError(f"{where}.{key}: {number} is not in {low} … {high}")
    for key, choices in CHOICES.items():
        if key in training and training[key] not in choices:
            raise CpiftError(f"{where}.{key}: {training[key]!r} is not one of {', '.join(choices)}")
    if training.get("dataloader_persistent_workers") and not training.get("dataloader_num_workers"):
        raise CpiftError(f"{where}.dataloader_persistent_workers: needs dataloader_num_workers of 1 or more")
    _check_optimizer_name(training, where)
    _check_report(training.get("report_to"), where)
    if training.get("use_liger_kernel") and not _is_installed("liger_kernel"):
        raise CpiftError(f"{where}.use_liger_kernel: needs the package liger-kernel; pip install liger-kernel")
    _check_accelerator(training.get("accelerator_config"), where)


def check_optimizer(config: Any, where: str) -> None:
    """Make the optimizer and the schedule of an SFTConfig for one weight, as the trainer will for the model.

    Args:
        config: the SFTConfig.
        where: its place in the recipe, for the message.

    Raises:
        CpiftError: PyTorch or transformers refuse their arguments.
    """
    name = str(config.optim.value)
    if any(name.startswith(beginning) for beginning in OPTIMIZER_PACKAGES):
        return  # some of these need the model itself, or its device
    model = torch.nn.Linear(1, 1)
    try:
        kind, options = Trainer.get_optimizer_cls_and_kwargs(config, model)
        optimizer = kind(model.parameters(), **options)
    except Exception as error:  # whatever an optimizer raises is about its arguments
        raise CpiftError(f"{where}.optim: {name} refuses its arguments ({_line(error)})") from error
    schedule = str(config.lr_scheduler_type.value)
    try:
        get_scheduler(
            schedule,
            optimizer,
            num_warmup_steps=config.get_warmup_steps(10),
            num_training_steps=10,
            scheduler_specific_kwargs=config.lr_scheduler_kwargs,
        )
    except Exception as error:
        raise CpiftError(
            f"{where}.lr_scheduler_kwargs: {schedule} refuses them, or needs some ({_line(error)})"
        ) from error


def check_device(training: Settings, where: str) -> None:
    """Check what depends on this machine. Raises :class:`CpiftError` that names the key."""
    for key in ("fp16", "activation_offloading"):
        if training.get(key) and (training.get("use_cpu") or not torch.accelerator.is_available()):
            raise CpiftError(f"{where}.{key}: needs a GPU, and there is none here; leave it out")
    backend, mode = training.get("torch_compile_backend"), training.get("torch_compile_mode")
    if backend is not None and backend.upper() not in DynamoBackend.__members__:
        raise CpiftError(f"{where}.torch_compile_backend: {backend!r} is not a backend of torch.compile")
    if mode is not None and mode not in list_mode_options():
        raise CpiftError(f"{where}.torch_compile_mode: {mode!r} is not one of {', '.join(list_mode_options())}")


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]


def _check_optimizer_name(training: Settings, where: str) -> None:
    name = str(getattr(training.get("optim"), "value", training.get("optim", "adamw_torch_fused")))
    given = [part.split("=")[0].strip() for part in (training.get("optim_args") or "").split(",") if part.strip()]
    read = OPTIMIZER_ARGUMENTS.get(name, given)
    if unread := [argument for argument in given if argument not in read]:
        known = f"it has {', '.join(read)}" if read else "use adam_beta1, adam_beta2, adam_epsilon and weight_decay"
        raise CpiftError(f"{where}.optim_args: {name} does not read {', '.join(unread)}; {known}")
    for beginning, (module, package) in OPTIMIZER_PACKAGES.items():
        if name.startswith(beginning) and not _is_installed(module):
            raise CpiftError(
                f"{where}.optim: {name} needs the package {package}; pip install {package}, or use adamw_torch"
            )
    if name.startswith(("galore_", "apollo_")) and not training.get("optim_target_modules"):
        raise CpiftError(f"{where}.optim: {name} needs optim_target_modules as well, such as [attn, mlp]")
    if training.get("optim_target_modules") and not name.startswith(("galore_", "apollo_")):
        raise CpiftError(f"{where}.optim_target_modules: only galore and apollo optimizers read it; leave it out")


def _check_report(services: Any, where: str) -> None:
    for service in [services] if isinstance(services, str) else services or []:
        if service in ("none", "all"):
            continue
        if service not in REPORT_PACKAGES:
            raise CpiftError(f"{where}.report_to: {service!r} is not one of none, all, {', '.join(REPORT_PACKAGES)}")
        modules, package = REPORT_PACKAGES[service]
        if not any(_is_installed(module) for module in modules):
            raise CpiftError(
                f"{where}.report_to: {service} needs the package {package}; pip install {package}, or report_to: none"
            )


def _check_accelerator(config: Any, where: str) -> None:
    if config is None:
        return
    given = dict(config) if isinstance(config, Mapping) else {"file": config}
    inner = dict(given.pop("gradient_accumulation_kwargs", None) or {})
    unknown = [*given, *(f"gradient_accumulation_kwargs.{key}" for key in inner if key != "sync_each_batch")]
    if unknown:
        raise CpiftError(
            f"{where}.accelerator_config: {', '.join(unknown)} would change the rows of a step or their order; "
            "only gradient_accumulation_kwargs: {sync_each_batch: true} is supported"
        )


def _is_installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except (ModuleNotFoundError, ValueError):
        return False


def as_table() -> str:
    """The refused values as a Markdown table: what docs/training.md holds."""
    rows: dict[tuple[str, str], list[str]] = {}
    for field, values in REFUSED_VALUES.items():
        for value, why in values.items():
            rows.setdefault((field, why), []).append(f"`{value}`")
    lines = [f"| `{field}` | {', '.join(values)} | {why} |" for (field, why), values in rows.items()]
    return "\n".join(["| field | value | why |", "|---|---|---|", *lines])
