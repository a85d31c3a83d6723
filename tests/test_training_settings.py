"""The list of SFTConfig's fields: complete, what works trains, what cannot work is refused in one line before anything starts."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from safetensors.numpy import load_file
from trl import SFTConfig

from cpift.data.encoding import Encoded, encode
from cpift.errors import CpiftError
from cpift.train import settings as training_settings
from cpift.train import values as training_values
from cpift.train.config import check_training
from cpift.train.fine_tune import fine_tune
from cpift.train.settings import SETTINGS
from cpift.train.spec import TrainSpec
from cpift.train.values import OPTIMIZER_PACKAGES, REFUSED_VALUES, REPORT_PACKAGES

ROOT = Path(__file__).parents[1]
SMALL: dict[str, Any] = {"per_device_train_batch_size": 4, "bf16": False, "learning_rate": 1e-2}
FIELDS = SFTConfig.__dataclass_fields__


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.base(tmp_path_factory.mktemp("settings") / "base")


def rows(count: int = 20) -> list[Encoded]:
    return [encode(row, tiny.tokenizer()) for row in tiny.rows("reverse", count, 0)]


def test_the_list_has_every_field_of_sftconfig_once() -> None:
    """With a newer TRL this test names what is to be decided."""
    assert set(SETTINGS) == set(FIELDS)


def test_the_docs_hold_the_list() -> None:
    """docs/training.md has both tables as they are made from it."""
    text = (ROOT / "docs" / "training.md").read_text()
    assert training_settings.as_table() in text
    assert training_values.as_table() in text


# Settings that do not touch one another share a training. Every one of the list that works is in here, see below.
TRAININGS: dict[str, dict[str, Any]] = {
    "plain": {"gradient_accumulation_steps": 1, "use_cpu": True},
    "optimizer": {
        "optim": "adamw_torch", "adam_beta1": 0.8, "adam_beta2": 0.95, "adam_epsilon": 1e-6, "weight_decay": 0.1,
        "max_grad_norm": 0.5, "lr_scheduler_type": "cosine_with_min_lr", "lr_scheduler_kwargs": {"min_lr": 1e-4}, "warmup_steps": 0.5,
    },
    "sgd": {"optim": "sgd", "optim_args": "momentum=0.9, nesterov=true"},
    "adagrad": {"optim": "adagrad"},
    "rmsprop": {"optim": "rmsprop"},
    "smoothed": {"label_smoothing_factor": 0.1},
    "dft": {"loss_type": "dft"},
    "noise": {"neftune_noise_alpha": 5.0},
    "bf16": {"bf16": True},
    "checkpointing": {"activation_checkpointing": True, "activation_checkpointing_kwargs": {"use_reentrant": False}},
    "older names": {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": False}},
    "workers": {
        "dataloader_num_workers": 1, "dataloader_prefetch_factor": 1, "dataloader_persistent_workers": True,
        "dataloader_multiprocessing_context": "fork", "dataloader_pin_memory": False,
    },
    "rows": {
        "max_length": 64, "eos_token": "<|im_end|>", "pad_token": "<|im_end|>", "pad_to_multiple_of": 8, "remove_unused_columns": False,
        "dataloader_drop_last": True,
    },
    "padding free": {"padding_free": True},
    "random": {"train_sampling_strategy": "random"},
    "written": {
        "logging_strategy": "steps", "logging_steps": 2, "logging_first_step": True, "log_level": "error", "log_level_replica": "error",
        "skip_memory_metrics": False, "debug": "underflow_overflow", "torch_empty_cache_steps": 1, "save_strategy": "steps",
        "save_steps": 0.5, "save_total_limit": 2,
    },
    "epochs": {"logging_strategy": "epoch", "save_strategy": "epoch"},
    "none saved": {"save_strategy": False},
    "deterministic": {"full_determinism": True},
}  # fmt: skip
EITHER = {"padding free"}  # it depends on the processor; by SGD the weights agree: tests/test_padding_free.py
SAME = {"plain", "checkpointing", "older names", "workers", "rows", "written", "none saved", "epochs", "deterministic"}


def test_every_setting_that_works_is_trained_with() -> None:
    """One without a training would be a claim."""
    works = {name for name, setting in SETTINGS.items() if setting.kind == "works"}
    assert works == {key for training in TRAININGS.values() for key in training} | set(SMALL)


@pytest.mark.filterwarnings("ignore::FutureWarning")  # TRL's of label smoothing and of the pad token
@pytest.mark.parametrize("name", TRAININGS)
def test_what_works_trains(name: str, base: Path, tmp_path: Path) -> None:
    """Two steps; those that should change no weight change none, all others do."""
    training = {**SMALL, **TRAININGS[name]}
    check_training(training)
    try:
        trained = fine_tune(base, rows(), tmp_path / "o", TrainSpec(training, 2, 0))
    finally:
        torch.use_deterministic_algorithms(False)
    assert trained.steps == 2
    assert all(np.isfinite(loss) for _, loss, _ in trained.losses)
    assert trained.losses
    after = load_file(tmp_path / "o" / "model.safetensors")
    if not _PLAIN:
        fine_tune(base, rows(), tmp_path / "plain", TrainSpec(SMALL, 2, 0))
        _PLAIN.update(load_file(tmp_path / "plain" / "model.safetensors"))
    if name not in EITHER:
        assert all(np.allclose(after[n], _PLAIN[n], atol=1e-5) for n in _PLAIN) == (name in SAME)


_PLAIN: dict[str, np.ndarray] = {}

OTHER: dict[str, Any] = {  # a value that is not the default of a field that is refused
    "eval_strategy": "steps", "packing_strategy": "wrapped", "truncation_mode": "keep_end", "hub_strategy": "end",
    "label_names": ["labels"], "include_for_metrics": ["loss"], "fsdp": "full_shard", "deepspeed": {"stage": 3}, "hub_token": "x",
    "fsdp_config": {"version": 2}, "parallelism_config": None, "model_init_kwargs": {"dtype": "bfloat16"},
}  # fmt: skip


def other(name: str) -> Any:
    """A value of the field's own kind that is not its default."""
    if name in OTHER:
        return OTHER[name]
    default, kind = FIELDS[name].default, str(FIELDS[name].type)
    if isinstance(default, bool) or (default is None and "bool" in kind):
        return not default
    if isinstance(default, int | float) or "int" in kind or "float" in kind:
        return (default or 0) + 1
    return "x"


@pytest.mark.parametrize("name", [n for n, s in SETTINGS.items() if s.kind == "refused" and n != "parallelism_config"])
def test_what_is_refused_is_named_with_its_reason(name: str) -> None:
    """TRL's own default of it is no reason to stop: many recipes write it out."""
    with pytest.raises(CpiftError, match=re.escape(f"probe.training.{name}: is not supported; {SETTINGS[name].note}")):
        check_training({name: other(name)}, "probe.training")
    field = FIELDS[name]
    default = field.default if field.default is not dataclasses.MISSING else field.default_factory()  # type: ignore[misc]
    check_training({name: default})


def test_a_field_of_a_newer_trl_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """It could do anything; and what no TRL has is a misspelling."""
    monkeypatch.delitem(SETTINGS, "loss_type")
    with pytest.raises(CpiftError, match="loss_type: is newer than this cpift"):
        check_training({"loss_type": "dft"})


@pytest.mark.parametrize(
    ("training", "words"),
    [
        *[({key: value}, f"training.{key}: {value} is not supported") for key, v in REFUSED_VALUES.items() for value in v],
        *[({"optim": o}, f"optim: {o} needs the package ") for o in ("adamw_bnb_8bit", "paged_lion_8bit", "galore_adamw", "adamw_8bit", "ademamix", "grokadamw", "stable_adamw", "adamw_torch_4bit", "rmsprop_bnb", "lion_32bit")],
        *[({"report_to": s}, f"report_to: {s} needs the package") for s in ("wandb", "tensorboard", "mlflow")],
        ({"report_to": ["none", "nowhere"]}, "'nowhere' is not one of none, all, azure_ml"),
        ({"use_liger_kernel": True}, "needs the package liger-kernel"),
        ({"optim_target_modules": ["attn"]}, "only galore and apollo"),
        ({"optim_args": "nope=1"}, "optim_args: adamw_torch_fused does not read nope; use adam_beta1"),
        ({"optim": "adagrad", "optim_args": "eps=1e-3, momentum=0.9"}, "adagrad does not read momentum; it has lr_decay"),
        ({"optim": "sgd", "optim_args": "momentum"}, "optim: sgd refuses its arguments"),
        ({"lr_scheduler_type": "cosine_with_min_lr"}, "lr_scheduler_kwargs: cosine_with_min_lr refuses them, or needs some"),
        ({"lr_scheduler_kwargs": {"nope": 1}}, "lr_scheduler_kwargs: linear refuses"),
        ({"adam_beta1": 1.5}, "Invalid beta"),
        ({"dataloader_persistent_workers": True}, "needs dataloader_num_workers"),
        ({"loss_type": "x"}, "not one of nll, dft"),
        ({"max_length": 0}, "max_length: 0 is not in 1"),
        ({"torch_compile_backend": "nope"}, "no backend|not a backend"),
        ({"torch_compile_mode": "nope"}, "is not one of default"),
        ({"accelerator_config": {"split_batches": True}}, "split_batches would change the rows"),
        ({"accelerator_config": {"gradient_accumulation_kwargs": {"num_steps": 4}}}, "kwargs.num_steps would change"),
        ({"group_by_length": True}, "older name; the key today is train_sampling_strategy: group_by_length"),
        ({"max_seq_length": 9}, "the key today is max_length"),
        ({"resume_from_checkpoint": "x"}, "run again with the same --out"),
    ],
)  # fmt: skip
def test_values_that_cannot_work_are_refused(
    training: dict[str, Any], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In one line that names the key, before anything is trained, whatever packages the tests have."""
    monkeypatch.setattr(training_values, "_is_installed", lambda module: False)
    with pytest.raises(CpiftError, match=words) as caught:
        check_training(training)
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(torch.accelerator.is_available(), reason="for machines without a GPU")
@pytest.mark.parametrize("key", ["fp16", "activation_offloading"])
def test_what_needs_a_gpu_is_refused_without_one(key: str) -> None:
    """fp16 would train in fp32 without a word; offloading would fail within the first step."""
    with pytest.raises(CpiftError, match=f"{key}: needs a GPU"):
        check_training({key: True})


def test_packages_are_named_for_every_optimizer_and_service() -> None:
    """That transformers has: a new one is decided about here."""
    from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK
    from transformers.training_args import OptimizerNames

    assert set(REPORT_PACKAGES) == set(INTEGRATION_TO_CALLBACK)
    plain = {"adamw_torch", "adamw_torch_fused", "sgd", "adafactor", "adagrad", "rmsprop"}
    known = {n for n in (o.value for o in OptimizerNames) if any(n.startswith(b) for b in OPTIMIZER_PACKAGES)}
    assert {o.value for o in OptimizerNames} == plain | known | set(REFUSED_VALUES["optim"])


def test_three_rows_of_which_the_last_batch_is_dropped_are_too_few(base: Path, tmp_path: Path) -> None:
    """No step would be made, and the base saved as trained."""
    with pytest.raises(CpiftError, match=r"dataloader_drop_last: there are 3 rows, fewer than the 4 of a batch"):
        fine_tune(base, rows(3), tmp_path / "o", TrainSpec({**SMALL, "dataloader_drop_last": True}, 2, 0))
    assert not (tmp_path / "o").exists()


def test_fewer_steps_than_asked_are_an_error(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever ended the training early: nothing is saved."""
    from cpift.train import fine_tune as training

    def stop(self: Any, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        control.should_training_stop = True

    monkeypatch.setattr(training.Watch, "on_step_end", stop)
    with pytest.raises(CpiftError, match="1 of 3 steps were made"):
        fine_tune(base, rows(), tmp_path / "o", TrainSpec(SMALL, 3, 0))
    assert not (tmp_path / "o" / "model.safetensors").exists()


def test_a_setting_that_the_model_refuses_is_one_line(base: Path, tmp_path: Path) -> None:
    """The weight of a router's loss, for a model without a router."""
    with pytest.raises(CpiftError, match=r"the trainer refuses it .*router_aux_loss_coef"):
        fine_tune(base, rows(), tmp_path / "o", TrainSpec({**SMALL, "router_aux_loss_coef": 0.1}, 1, 0))
