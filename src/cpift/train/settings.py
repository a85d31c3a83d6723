"""Every field of TRL's SFTConfig, and what a recipe's ``training:`` makes of it: one list for checks, tests and docs.

Imports neither torch nor transformers. ``tests/test_training_settings.py`` compares the list with the installed SFTConfig.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Kind = Literal["works", "passed on", "set by cpift", "refused"]


@dataclass(frozen=True)
class Setting:
    """One field of SFTConfig.

    Attributes:
        name: its name there.
        kind: works (a test trains with it); passed on (to TRL as it is, for hardware, packages or several processes that
            the tests do without); set by cpift (the recipe cannot); refused (any value but TRL's default).
        note: what it does here, or why it is refused and what to use instead.
    """

    name: str
    kind: Kind
    note: str


def _all(kind: Kind, note: str, names: str) -> list[Setting]:
    return [Setting(name, kind, note) for name in names.split()]


_NO_EVALUATION = (
    "nothing is evaluated within a training; every model is scored on tasks.NAME.eval in stages of their own"
)
_NO_HUB = "a run's stages stay on this machine; push the folder model/ once the run is done"
_NO_BEST = "needs an evaluation within the training; a stage's model is that of its last step"
_MARKS = "rows are marked by cpift: the loss is on the assistant's turns, or on the completion"
_PACKING = "it would change the rows of a step; use padding_free: true, which keeps them and pads nothing"
_LAUNCHER = "sharding comes from the launcher: accelerate launch --use_fsdp --fsdp_version 2 (docs/cluster.md)"
_PROCESSES = "with several processes"

_LIST = [
    # The stage decides.
    *_all("set by cpift", "each stage has a folder of its own", "output_dir"),
    *_all("set by cpift", "use probe.steps, backbone.epochs and refine.epochs", "max_steps num_train_epochs"),
    *_all("set by cpift", "use the recipe's seed", "seed data_seed"),
    *_all("set by cpift", "cpift shows its own progress", "disable_tqdm"),
    *_all("set by cpift", "rows reach TRL as token ids with labels", "dataset_kwargs"),
    *_all("set by cpift", "run again with the same --out: a training resumes by itself", "resume_from_checkpoint"),
    *_all("set by cpift", "use the recipe's trust_remote_code", "trust_remote_code"),
    *_all("set by cpift", "the launcher sets it", "local_rank"),
    *_all("set by cpift", "tokens without padding are always counted", "include_num_input_tokens_seen"),
    *_all("set by cpift", "a loss that is NaN or infinite must be seen", "logging_nan_inf_filter"),
    # The optimizer and its steps.
    *_all("works", "rows of one pass; with gradient_accumulation_steps, rows of a step", "per_device_train_batch_size"),
    *_all("works", "", "gradient_accumulation_steps learning_rate max_grad_norm weight_decay"),
    *_all("works", "see the values that are refused", "lr_scheduler_type optim"),
    *_all("works", "", "lr_scheduler_kwargs optim_args adam_beta1 adam_beta2 adam_epsilon"),
    *_all("works", "steps, or below 1 a share of them", "warmup_steps"),
    *_all("works", "", "label_smoothing_factor loss_type neftune_noise_alpha"),
    *_all("passed on", "for galore and apollo", "optim_target_modules"),
    *_all("passed on", "for mixtures of experts; other models refuse it", "router_aux_loss_coef"),
    # Precision, memory, speed.
    *_all("works", "autocast over fp32 weights; by default where the device multiplies it faster", "bf16"),
    *_all("passed on", "on a GPU", "fp16 tf32"),
    *_all("works", "memory for time", "activation_checkpointing activation_checkpointing_kwargs"),
    *_all("works", "older names of the two above", "gradient_checkpointing gradient_checkpointing_kwargs"),
    *_all("passed on", "on a GPU", "activation_offloading"),
    *_all("passed on", "compiles for minutes first", "torch_compile torch_compile_backend torch_compile_mode"),
    *_all("works", "", "torch_empty_cache_steps"),
    *_all("passed on", "needs the package liger-kernel and a GPU", "use_liger_kernel liger_kernel_config"),
    *_all("refused", "it is for generation; no training reads the cache", "use_cache"),
    *_all(
        "refused",
        "it would change the rows of a step; use auto_batch: true, which keeps them",
        "auto_find_batch_size",
    ),
    *_all("works", "trains on the processor; scores still use the accelerator", "use_cpu"),
    *_all("works", "slower, and for the rest of the process", "full_determinism"),
    # Rows.
    *_all("works", "tokens after which a row is cut, at its end", "max_length"),
    *_all("works", "end of a turn, where the tokenizer's is another", "eos_token"),
    *_all("works", "pads rows; never part of the loss", "pad_token pad_to_multiple_of"),
    *_all(
        "works",
        "group_by_length for one task, random for several, sequential only where asked for",
        "train_sampling_strategy",
    ),
    *_all("works", "needs as many rows of each task as a pass has", "dataloader_drop_last"),
    *_all("works", "", "dataloader_num_workers dataloader_pin_memory dataloader_persistent_workers"),
    *_all("works", "", "dataloader_prefetch_factor dataloader_multiprocessing_context"),
    *_all("works", "rows have no other columns: it changes nothing", "remove_unused_columns"),
    *_all("refused", "the order of the rows would hang on the machine's load", "dataloader_in_order"),
    *_all("refused", "rows are cut at their end", "truncation_mode"),
    *_all("refused", "train_sampling_strategy decides about the order, anew in each epoch", "shuffle_dataset"),
    *_all("works", "no padding: the rows of a pass as one, where attention keeps them apart", "padding_free"),
    *_all("refused", _PACKING, "packing packing_strategy eval_packing"),
    *_all("refused", _MARKS, "completion_only_loss assistant_only_loss label_names"),
    *_all("refused", "the rows of tasks.NAME.train name their own columns", "dataset_text_field"),
    *_all("refused", "rows are tokenized by cpift before TRL sees them", "dataset_num_proc"),
    *_all("refused", "lengths are those of the rows as tokens", "length_column_name"),
    *_all(
        "refused", "use the recipe's chat_template, which scores and the saved model need as well", "chat_template_path"
    ),
    *_all(
        "refused",
        "models are loaded in fp32 by cpift; use the recipe's model and trust_remote_code",
        "model_init_kwargs",
    ),
    # What is written.
    *_all("works", "the loss is watched for NaN and infinity where it is logged", "logging_strategy logging_steps"),
    *_all("works", "", "logging_first_step log_level log_level_replica skip_memory_metrics"),
    *_all(
        "works", "the trainer's own checkpoints, from which an interrupted training resumes", "save_strategy save_steps"
    ),
    *_all("works", "1 by default", "save_total_limit"),
    *_all("refused", "a checkpoint without optimizer cannot be resumed; use save_strategy: 'no'", "save_only_model"),
    *_all("refused", "a resumed training sees the rows that an uninterrupted one sees", "ignore_data_skip"),
    *_all(
        "refused",
        "cpift resumes from the trainer's checkpoints by itself",
        "restore_callback_states_from_checkpoint enable_jit_checkpoint",
    ),
    *_all("passed on", "needs the package of each service", "report_to"),
    *_all("passed on", "for report_to", "run_name project trackio_space_id trackio_bucket_id trackio_static_space_id"),
    *_all("works", "underflow_overflow", "debug"),
    # Processes and machines.
    *_all("passed on", _PROCESSES, "average_tokens_across_devices log_on_each_node save_on_each_node"),
    *_all(
        "passed on", _PROCESSES, "ddp_find_unused_parameters ddp_bucket_cap_mb ddp_broadcast_buffers ddp_static_graph"
    ),
    *_all("passed on", _PROCESSES, "ddp_backend ddp_timeout"),
    *_all("passed on", "gradient_accumulation_kwargs: {sync_each_batch: true} only", "accelerator_config"),
    *_all("refused", _LAUNCHER, "fsdp fsdp_config deepspeed parallelism_config"),
    # What cpift does elsewhere.
    *_all("refused", _NO_EVALUATION, "eval_strategy eval_steps eval_delay per_device_eval_batch_size eval_on_start"),
    *_all("refused", _NO_EVALUATION, "prediction_loss_only eval_do_concat_batches eval_use_gather_object"),
    *_all("refused", _NO_EVALUATION, "eval_accumulation_steps include_for_metrics batch_eval_metrics"),
    *_all("refused", _NO_EVALUATION, "bf16_full_eval fp16_full_eval do_train do_eval do_predict"),
    *_all("refused", _NO_BEST, "load_best_model_at_end metric_for_best_model greater_is_better"),
    *_all("refused", _NO_HUB, "push_to_hub hub_token hub_private_repo hub_model_id hub_strategy hub_always_push"),
    *_all("refused", _NO_HUB, "hub_revision"),
]
SETTINGS: dict[str, Setting] = {setting.name: setting for setting in _LIST}

_SHOWN_AND_SAVED = (
    "report_to run_name project trackio_space_id trackio_bucket_id trackio_static_space_id "
    "logging_strategy logging_steps logging_first_step log_level log_level_replica log_on_each_node skip_memory_metrics "
    "save_strategy save_steps save_total_limit save_on_each_node debug"
)
_MEMORY_FOR_TIME = (
    "activation_checkpointing activation_checkpointing_kwargs gradient_checkpointing gradient_checkpointing_kwargs "
    "activation_offloading torch_empty_cache_steps"
)
_LOADING = (
    "dataloader_num_workers dataloader_pin_memory dataloader_persistent_workers dataloader_prefetch_factor "
    "dataloader_multiprocessing_context remove_unused_columns"
)
_BETWEEN_PROCESSES = (
    "ddp_find_unused_parameters ddp_bucket_cap_mb ddp_broadcast_buffers ddp_static_graph ddp_backend ddp_timeout"
)
OWN_KEYS = frozenset({"auto_batch"})
"""Keys of ``training:`` that are cpift's own, not SFTConfig's (:mod:`cpift.train.auto_batch`). They decide nothing."""

DECIDES_NOTHING = frozenset(f"{_SHOWN_AND_SAVED} {_MEMORY_FOR_TIME} {_LOADING} {_BETWEEN_PROCESSES}".split())
"""Settings that decide nothing about the weights: a change of them makes no stage again."""


def deciding(training: Mapping[str, object]) -> dict[str, object]:
    """The settings that decide about the weights of a training, for the key of its stage.

    Args:
        training: the recipe's settings.
    """
    return {name: value for name, value in training.items() if name not in DECIDES_NOTHING | OWN_KEYS}


# Names that TRL or transformers had before, in many a recipe, and what stands for them now.
OLDER_NAMES = {
    "max_seq_length": "max_length",
    "group_by_length": "train_sampling_strategy: group_by_length",
    "warmup_ratio": "warmup_steps: a number below 1",
    "evaluation_strategy": "nothing: every model is scored on tasks.NAME.eval",
    "no_cuda": "use_cpu",
    "use_liger": "use_liger_kernel",
    "per_gpu_train_batch_size": "per_device_train_batch_size",
    "include_tokens_per_second": "nothing: cpift shows it",
    "num_train_steps": "probe.steps",
    "logging_dir": "nothing: the folder of a report_to service is that service's own setting",
    "overwrite_output_dir": "nothing: --out names the run's folder",
    "save_safetensors": "nothing: safetensors are always written",
}


def as_table() -> str:
    """The list as a Markdown table: what docs/training.md holds."""
    order: tuple[Kind, ...] = ("works", "passed on", "set by cpift", "refused")
    lines = [f"| `{s.name}` | {s.kind} | {s.note} |" for kind in order for s in _LIST if s.kind == kind]
    return "\n".join(["| field | here | note |", "|---|---|---|", *lines])
