"""fine_tune(): the one call of TRL's SFTTrainer, used by every stage and baseline."""

from __future__ import annotations

import fnmatch
import math
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import MISSING, dataclass
from pathlib import Path
from typing import Any, get_type_hints

import torch
from datasets import Dataset
from pydantic import TypeAdapter, ValidationError
from transformers import TrainerCallback
from transformers.trainer_pt_utils import LengthGroupedSampler
from trl import SFTConfig, SFTTrainer

from cpift.data.encoding import Encoded
from cpift.data.templates import ChatSettings
from cpift.distributed import ranks
from cpift.errors import CpiftError, OutOfMemory, did_you_mean, is_out_of_memory
from cpift.method.freeze import freeze
from cpift.method.region import Region
from cpift.train.accelerator import bf16_helps, frees_memory, lacking
from cpift.train.limits import check_encoded, limits_of
from cpift.train.malloc import kept_memory
from cpift.train.models import gathered, is_sharded, load_model, load_tokenizer, save
from cpift.train.settings import OLDER_NAMES, SETTINGS
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

_REMEDY = "lower training.learning_rate, or look at the data"

Tick = Callable[[Mapping[str, Any]], None]


@dataclass(frozen=True)
class Trained:
    """What a training did.

    losses: (step, mean loss since the last entry, learning rate). precision: ``bf16 autocast`` or ``fp16 autocast``
    over fp32 weights, or ``fp32``.
    """

    steps: int
    tokens: int
    trained_tokens: int
    train_seconds: float
    load_seconds: float
    save_seconds: float
    losses: list[tuple[int, float, float]]
    frozen: int
    frozen_changed: int
    precision: str = "fp32"


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
    settings = typed(training, where)
    for key, value in settings.items():
        setting = SETTINGS[key]
        if setting.kind == "refused" and value != _default_of(key):
            raise CpiftError(f"{where}.{key}: is not supported; {setting.note}")
    check_values(settings, where)
    check_device(settings, where)
    try:
        config = _config(training, Path("unused"), steps=1, seed=0, share=False)
    except Exception as error:  # dataclass and enums: whatever they raise is about the value given
        raise CpiftError(f"{where}: SFTConfig refuses it ({' '.join(str(error).split())[:300]})") from error
    if config.per_device_train_batch_size < 1 or config.gradient_accumulation_steps < 1:
        raise CpiftError(f"{where}: batch size and gradient_accumulation_steps must be at least 1")
    if not 0 <= config.learning_rate < math.inf:
        raise CpiftError(f"{where}.learning_rate: {config.learning_rate} is no rate")
    check_optimizer(config, where)
    _shared(settings, where)


def _check_key(key: str, where: str) -> None:
    fields = set(SFTConfig.__dataclass_fields__)
    setting = SETTINGS.get(key)
    if setting and setting.kind == "set by cpift":
        raise CpiftError(f"{where}.{key}: is set by cpift; {setting.note}")
    if key in OLDER_NAMES:
        raise CpiftError(f"{where}.{key}: is an older name; the key today is {OLDER_NAMES[key]}")
    if key not in fields:
        settable = [name for name in fields if name in SETTINGS and SETTINGS[name].kind in ("works", "passed on")]
        raise CpiftError(f"{where}: unknown key {key!r}{did_you_mean(key, settable)}")
    if not setting:
        raise CpiftError(f"{where}.{key}: is newer than this cpift, which was not tried with it; leave it out")


def _default_of(key: str) -> Any:
    field = SFTConfig.__dataclass_fields__[key]
    return field.default if field.default_factory is MISSING else field.default_factory()


def typed(training: Mapping[str, Any], where: str = "training") -> dict[str, Any]:
    """The settings in the types that SFTConfig declares. Raises :class:`CpiftError` that names one of another kind."""
    hints, found = get_type_hints(SFTConfig), {}
    for key, value in training.items():
        if value is False and key.endswith("_strategy"):
            value = "no"  # YAML 1.1 reads a bare no as false
        try:
            read = TypeAdapter(hints[key], config={"arbitrary_types_allowed": True}).validate_python(value)
            found[key] = read if isinstance(value, str) else value
        except ValidationError as error:
            raise CpiftError(f"{where}.{key}: {error.errors()[0]['msg']} (got {value!r})") from None
    return found


def batch_rows(training: Mapping[str, Any]) -> int:
    """Rows in one optimizer step."""
    each = int(training.get("per_device_train_batch_size", DEFAULTS["per_device_train_batch_size"]))
    return each * int(training.get("gradient_accumulation_steps", 1))


def check_rows(count: int, training: Mapping[str, Any], what: str = "there are") -> None:
    """Raise :class:`CpiftError` where ``dataloader_drop_last`` would drop all of ``count`` rows, and no step were made."""
    settings = typed(training)
    batch = _shared(settings)["per_device_train_batch_size"] * ranks.size()
    if settings.get("dataloader_drop_last") and count < batch:
        raise CpiftError(
            f"training.dataloader_drop_last: {what} {count} rows, fewer than the {batch} of a batch, and all of them would be "
            f"dropped; lower per_device_train_batch_size, or leave dataloader_drop_last out"
        )


def _shared(settings: Mapping[str, Any], where: str = "training") -> dict[str, int]:
    """The recipe's rows of a step, shared out among the processes of the run."""
    names = ("per_device_train_batch_size", "gradient_accumulation_steps")
    given = [int(settings.get(names[0], DEFAULTS[names[0]])), int(settings.get(names[1], 1))]
    return dict(zip(names, ranks.share(given[0], given[1], where), strict=True))


def max_length(training: Mapping[str, Any]) -> int | None:
    """Tokens after which a row is cut."""
    value = training.get("max_length", SFTConfig.__dataclass_fields__["max_length"].default)
    return None if value is None else int(value)


@frees_memory
def fine_tune(
    start: Path,
    rows: Sequence[Encoded],
    out: Path,
    training: Mapping[str, Any],
    *,
    steps: int,
    seed: int,
    frozen: Region | None = None,
    work: Path | None = None,
    tick: Tick = lambda event: None,
    trust_remote_code: bool = False,
    trainable: str | None = None,
    chat: ChatSettings | None = None,
) -> Trained:
    """Fine-tune the checkpoint ``start`` on ``rows`` and save it, fp32, to ``out``.

    Args:
        training: fields of SFTConfig, on top of ``DEFAULTS``.
        steps: optimizer steps; rows are shuffled anew each epoch.
        frozen: region that stays bit-identical.
        work: folder for the trainer's own checkpoints; one found there is resumed.
        trainable: shell-style pattern of the only parameters that are trained, such as "*.bias".
        chat: the recipe's chat template and end token, saved with the model.
        tick: called with step, steps, loss and tokens per second as it goes.

    Raises:
        CpiftError: no rows, or fewer than a batch where the last is dropped; settings that the trainer refuses for this
            model; a loss that is NaN or infinite, with the step and what to change; fewer steps made than asked; a
            frozen element that changed.
        OutOfMemory: names the batch, the longest row and the device, and what to change.
    """
    if not rows:
        raise CpiftError(f"{out.name}: no row to train on is left; raise training.max_length")
    check_rows(len(rows), training)
    began = time.perf_counter()
    model, tokenizer = load_model(start, trust_remote_code), load_tokenizer(start, trust_remote_code, chat)
    if trainable is not None:
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(fnmatch.fnmatchcase(name, trainable))
        if not any(parameter.requires_grad for parameter in model.parameters()):
            raise CpiftError(f"{start}: has no parameter {trainable}; there is nothing to train")
    check_encoded(rows, limits_of(model.config, [name for name, _ in model.named_parameters()]), tokenizer, "row")
    loaded = time.perf_counter() - began
    place = tempfile.TemporaryDirectory(prefix="cpift-") if work is None else nullcontext(work)
    try:
        with place as scratch, kept_memory():
            return _fine_tune(model, tokenizer, rows, out, training, steps, seed, frozen, Path(scratch), tick, loaded)
    except Exception as error:
        if isinstance(error, CpiftError) or not is_out_of_memory(error):
            raise
        raise OutOfMemory(f"out of memory on {lacking(error)} {_batch_and_remedy(training, rows, model)}") from error


def _batch_and_remedy(training: Mapping[str, Any], rows: Sequence[Encoded], model: Any) -> str:
    """Of a training that there is no memory for: what a pass holds, what the model itself takes, what to change."""
    settings = {**DEFAULTS, "gradient_accumulation_steps": 1, **typed(training)}
    batch, passes = settings["per_device_train_batch_size"], settings["gradient_accumulation_steps"]
    each = _shared(settings)["per_device_train_batch_size"]
    longest = max(len(row.input_ids) for row in rows)
    state = sum(parameter.numel() * (16 if parameter.requires_grad else 4) for parameter in model.parameters())
    remedies = []
    if batch > 1:
        halved = -(-batch // 2)
        same = ", the same rows a step" if batch % 2 == 0 else ""
        remedies.append(
            f"training.per_device_train_batch_size {halved} with gradient_accumulation_steps {passes * 2}{same}"
        )
    remedies.append(f"a training.max_length below {longest}")
    if not settings.get("gradient_checkpointing", settings.get("activation_checkpointing")):
        remedies.append("training.activation_checkpointing true")
    remedies.append("a training.optim that keeps less, such as adafactor")
    return (
        f"with batches of {each} rows, the longest of {longest} tokens "
        f"(weights, gradients and AdamW's moments alone take {state / 2**30:.1f} GiB); set {', or '.join(remedies)}"
    )


def _fine_tune(
    model: Any,
    tokenizer: Any,
    rows: Sequence[Encoded],
    out: Path,
    training: Mapping[str, Any],
    steps: int,
    seed: int,
    frozen: Region | None,
    work: Path,
    tick: Tick,
    loaded: float,
) -> Trained:
    config = _config(training, work, steps, seed)
    data = Dataset.from_list([{"input_ids": row.input_ids, "labels": row.labels} for row in rows])
    watch = _Watch(steps, tick)
    try:
        trainer = _Trainer(model, config, train_dataset=data, processing_class=tokenizer, callbacks=[watch])
    except (ValueError, ImportError) as error:  # what hangs on the model, such as router_aux_loss_coef
        raise CpiftError(f"training: the trainer refuses it ({' '.join(str(error).split())[:300]})") from error
    _only_our_progress(trainer)
    guard = FreezeCallback(frozen) if frozen is not None and frozen.count else None
    if guard:
        trainer.add_callback(guard)
    began = time.perf_counter()
    with ExitStack() as stack:
        if guard:
            stack.callback(guard.release)
        trainer.train(resume_from_checkpoint=_last_checkpoint(work))
    seconds = time.perf_counter() - began
    made = trainer.state.global_step
    if made != steps:
        raise CpiftError(f"{made} of {steps} steps were made; a setting of training ended it early")
    frozen_count, changed = _of_all(trainer, guard)
    if changed:
        raise CpiftError(f"{changed} frozen elements changed; this is a fault of cpift or of the optimizer used")
    began = time.perf_counter()
    weights = gathered(trainer.model)
    if trainer.accelerator.is_main_process:
        save(trainer.accelerator.unwrap_model(trainer.model), tokenizer, out, weights)
    trainer.accelerator.wait_for_everyone()
    return Trained(
        steps=trainer.state.global_step,
        tokens=int(trainer.state.num_input_tokens_seen),
        trained_tokens=watch.trained_tokens(rows, config),
        train_seconds=seconds,
        load_seconds=loaded,
        save_seconds=time.perf_counter() - began,
        losses=watch.losses,
        frozen=frozen_count,
        frozen_changed=changed,
        precision="bf16 autocast" if config.bf16 else "fp16 autocast" if config.fp16 else "fp32",
    )


def _of_all(trainer: Any, guard: FreezeCallback | None) -> tuple[int, int]:
    """Frozen elements, and those that changed: of all processes, where each holds a part of the weights."""
    held = torch.tensor([guard.count, guard.changed] if guard else [0, 0], device=trainer.accelerator.device)
    if is_sharded(trainer.model):
        held = trainer.accelerator.reduce(held, "sum")
    return int(held[0]), int(held[1])


def _config(training: Mapping[str, Any], output: Path, steps: int, seed: int, share: bool = True) -> SFTConfig:
    given = typed(training)
    settings: dict[str, Any] = {
        **DEFAULTS,
        "bf16": bf16_helps(given.get("use_cpu")) and not training.get("fp16", False),
        "use_cpu": not torch.accelerator.is_available(),
        "logging_steps": max(1, steps // 100),
        "include_num_input_tokens_seen": "non_padding",
        **given,
        **(_shared(given) if share else {}),
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
        _config({}, Path("unused"), steps=1, seed=0, share=False)  # accelerate makes the process group in its making


class _Trainer(SFTTrainer):  # type: ignore[misc]
    """Draws the rows of a step as one process would, so that they do not hang on how many share them."""

    def _get_train_sampler(self, *given: Any) -> Any:
        sampler = super()._get_train_sampler(*given)
        if isinstance(sampler, LengthGroupedSampler):
            sampler.batch_size *= ranks.size()
        return sampler

    def _run_epoch(self, *given: Any, **named: Any) -> None:
        """Nothing where the checkpoint that is resumed has made all steps: the Trainer would make one more."""
        if self.state.global_step >= self.state.max_steps:
            self.control.should_training_stop = True
            return
        super()._run_epoch(*given, **named)


def _only_our_progress(trainer: SFTTrainer) -> None:
    from transformers.trainer_callback import PrinterCallback, ProgressCallback

    for kind in (PrinterCallback, ProgressCallback):
        trainer.remove_callback(kind)


def _last_checkpoint(work: Path) -> str | None:
    found = list(work.glob("checkpoint-*/trainer_state.json"))
    return str(max(found, key=lambda f: int(f.parent.name.split("-")[1])).parent) if found else None


class FreezeCallback(TrainerCallback):  # type: ignore[misc]
    """Keeps a region bit-identical during a ``Trainer``'s training: ``Trainer(..., callbacks=[FreezeCallback(region)])``.

    Raises :class:`CpiftError` at the end of the training where a frozen element changed all the same. Give it as the last
    of the callbacks, so that it sees what the others did.
    """

    def __init__(self, region: Region) -> None:
        self.region, self.count, self.changed = region, 0, 0
        self._stack = ExitStack()
        self._frozen: Any = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._frozen = self._stack.enter_context(freeze(kwargs["model"], self.region, kwargs["optimizer"]))
        self.count = self._frozen.count

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.changed = self._frozen.changed()
        self.release()
        if self.changed:
            raise CpiftError(
                f"{self.changed} of {self.count} frozen elements changed: the optimizer or a callback puts other weights "
                "in place, such as an average; train without it"
            )

    def release(self) -> None:
        """Remove the hooks, and drop the values kept; done by itself at the end of a training."""
        self._stack.close()
        self._frozen = None


class _Watch(TrainerCallback):  # type: ignore[misc]
    """Collects the losses, tells how it goes, and stops at a loss that is no number."""

    def __init__(self, steps: int, tick: Tick) -> None:
        self.losses: list[tuple[int, float, float]] = []
        self._steps, self._tick, self._began = steps, tick, time.perf_counter()
        self._first_tokens: int | None = None
        self._worse_than_guessing = math.inf

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        vocabulary = getattr(kwargs["model"].config, "vocab_size", None)
        self._worse_than_guessing = 2 * math.log(vocabulary) if vocabulary else math.inf
        self._began, self._first_tokens = time.perf_counter(), int(state.num_input_tokens_seen)
        self.losses = [
            (int(entry["step"]), float(entry["loss"]), float(entry.get("learning_rate", 0.0)))
            for entry in state.log_history
            if "loss" in entry
        ]

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        tokens = int(state.num_input_tokens_seen) - (self._first_tokens or 0)
        speed = tokens / max(time.perf_counter() - self._began, 1e-9)
        loss = self.losses[-1][1] if self.losses else None
        self._tick(
            {
                "step": state.global_step,
                "steps": self._steps,
                "loss": loss,
                "tokens": tokens,
                "tokens_per_second": speed,
            }
        )

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if callable(getattr(kwargs["optimizer"], "eval", None)):
            kwargs["optimizer"].eval()  # schedule-free optimizers train on other weights than those to be saved

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        if not logs or "loss" not in logs:
            return
        loss = float(logs["loss"])
        self.losses.append((state.global_step, loss, float(logs.get("learning_rate", 0.0))))
        for name, value in (("loss", loss), ("gradient's norm", float(logs.get("grad_norm") or 0.0))):
            if not math.isfinite(value):
                raise CpiftError(f"the {name} is {value} at step {state.global_step}; {_REMEDY}")
        if loss > max(self._worse_than_guessing, 2 * self.losses[0][1]):
            raise CpiftError(f"the training diverges: the loss is {loss:.1f} at step {state.global_step}; {_REMEDY}")

    def trained_tokens(self, rows: Sequence[Encoded], config: SFTConfig) -> int:
        """Tokens the loss was taken on, from the mean row."""
        each: int = config.per_device_train_batch_size * config.gradient_accumulation_steps
        seen: int = config.max_steps * each * ranks.size()
        return round(seen * sum(row.trained for row in rows) / len(rows))
