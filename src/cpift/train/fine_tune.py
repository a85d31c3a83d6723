"""fine_tune(): the one call of TRL's SFTTrainer, used by every stage and baseline."""

from __future__ import annotations

import fnmatch
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from transformers.trainer_callback import PrinterCallback, ProgressCallback
from transformers.trainer_pt_utils import LengthGroupedSampler
from trl import SFTTrainer

from cpift.data.encoded import training_set
from cpift.data.encoding import Encoded
from cpift.distributed import ranks
from cpift.errors import CpiftError, OutOfMemory, is_out_of_memory
from cpift.method.region import Region
from cpift.train.accelerator import check_trainable, frees_memory, lacking
from cpift.train.adapters import load_four_bit, save_adapter, wrapped
from cpift.train.anchor import Anchor
from cpift.train.auto_batch import asked, describe, halved
from cpift.train.average import AverageCallback, check_averaging
from cpift.train.callbacks import Tick, Watch
from cpift.train.config import DEFAULTS, check_rows, sft_config, shared_rows, typed
from cpift.train.elastic import Elastic, check_elastic
from cpift.train.freeze_callback import FreezeCallback
from cpift.train.limits import check_encoded, limits_of
from cpift.train.malloc import kept_memory
from cpift.train.merged_adapters import MergedAdapter, put_in
from cpift.train.models import gathered, is_sharded, load_model, load_tokenizer, save
from cpift.train.orthogonal import with_osf, without_osf
from cpift.train.padding_free import check_rows_apart
from cpift.train.spec import TrainSpec


@dataclass(frozen=True)
class Trained:
    """What a training did.

    Attributes:
        steps: of the optimizer.
        tokens: seen in all steps, without padding.
        trained_tokens: those among them that the loss is taken on.
        train_seconds: time of the steps.
        load_seconds: time to load the model.
        save_seconds: time to save it.
        losses: (step, mean loss since the last entry, learning rate).
        frozen: number of frozen elements.
        frozen_changed: number of those that have changed: 0, unless something is wrong.
        precision: ``bf16 autocast`` or ``fp16 autocast`` over fp32 weights, ``bf16 weights``, or ``fp32``.
        device_batch: rows of a pass of one process.
        accumulation: passes in a step.
        penalty: of EWC at the end, in nats; None without it.
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
    device_batch: int = 0
    accumulation: int = 1
    penalty: float | None = None


def fine_tune(
    start: Path,
    rows: Sequence[Encoded],
    out: Path,
    spec: TrainSpec,
    *,
    frozen: Region | None = None,
    unaveraged: Region | None = None,
    kept: Sequence[Encoded] = (),
    work: Path | None = None,
    tick: Tick = lambda event: None,
    smaller: Callable[[str], None] = lambda text: None,
) -> Trained:
    """Fine-tune the checkpoint ``start`` on ``rows`` and save it in the dtype of the training to ``out``; of an adapter, the adapter alone.

    Args:
        start: a checkpoint folder.
        rows: encoded rows, already drawn and mixed as ``spec`` says.
        out: the folder to save to.
        spec: settings, steps, seed and what is trainable.
        frozen: region that stays bit-identical.
        unaveraged: region that ``spec.average`` leaves out; the frozen one is in any case.
        kept: encoded rows by which ``spec.ewc`` is measured.
        work: folder for the trainer's own checkpoints; the last one in it is resumed.
        tick: called with step, steps, loss and tokens per second as it goes.
        smaller: called with one line each time that ``auto_batch`` makes the batch smaller.

    Raises:
        CpiftError: no rows, or fewer than a batch where the last is dropped; settings that the trainer refuses for this
            model; a loss that is NaN or infinite, with the step and what to change; fewer steps made than asked; a
            frozen element that changed.
        OutOfMemory: names the batch, the longest row and the device, and what to change. With ``auto_batch`` at a batch
            of one row only.
    """
    while True:
        try:
            return _attempt(start, rows, out, spec, _Held(frozen, unaveraged, kept), work, tick)
        except OutOfMemory as error:
            training = halved(spec.training, DEFAULTS["per_device_train_batch_size"]) if asked(spec.training) else None
            if training is None:
                raise
            reason = str(error).partition(" (weights,")[0]
        smaller(f"{reason}; auto_batch goes to {describe(training)}, and the training starts again")
        spec = replace(spec, training=training)


@dataclass(frozen=True)
class _Held:
    """What a training leaves as it was, or near it: regions, and rows that tell what matters."""

    frozen: Region | None
    unaveraged: Region | None
    kept: Sequence[Encoded]


@frees_memory
def _attempt(
    start: Path,
    rows: Sequence[Encoded],
    out: Path,
    spec: TrainSpec,
    given: _Held,
    work: Path | None,
    tick: Tick,
) -> Trained:
    if not rows:
        raise CpiftError(f"{out.name}: no row to train on is left; raise training.max_length")
    check_rows(len(rows), spec.training)
    began = time.perf_counter()
    if spec.adapter is not None and spec.adapter.kind.four_bit and not spec.merge:
        model = load_four_bit(start, spec.trust_remote_code, spec.attention, spec.device_map)
    else:
        model = load_model(start, spec.trust_remote_code, None, spec.attention, spec.dtype, spec.device_map)
    check_trainable(model)
    tokenizer = load_tokenizer(start, spec.trust_remote_code, spec.chat)
    if spec.trainable is not None:
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(fnmatch.fnmatchcase(name, spec.trainable))
        if not any(parameter.requires_grad for parameter in model.parameters()):
            raise CpiftError(f"{start}: has no parameter {spec.trainable}; there is nothing to train")
    check_encoded(rows, limits_of(model.config, [name for name, _ in model.named_parameters()]), tokenizer, "row")
    masked = None
    if spec.adapter is not None and spec.merge:
        masked = put_in(model, spec.adapter, given.frozen, spec.seed)
    elif spec.adapter is not None:
        model = wrapped(model, spec.adapter, start, spec.seed)
    if spec.osf is not None:
        if given.frozen is not None and given.frozen.count:
            raise CpiftError("osf: changes every entry of a matrix, so none can be frozen; set protect.freeze false")
        model = with_osf(model, spec.osf)
    loaded = _Loaded(model, tokenizer, time.perf_counter() - began, start, masked)
    place = tempfile.TemporaryDirectory(prefix="cpift-") if work is None else nullcontext(work)
    try:
        with place as scratch, kept_memory():
            return _fine_tune(loaded, rows, out, spec, given, Path(scratch), tick)
    except Exception as error:
        if isinstance(error, CpiftError) or not is_out_of_memory(error):
            raise
        raise OutOfMemory(f"out of memory on {lacking(error)} {_batch_and_remedy(spec, rows, model)}") from error


def _batch_and_remedy(spec: TrainSpec, rows: Sequence[Encoded], model: Any) -> str:
    """Of a training that there is no memory for: what a pass holds, what the model itself takes, what to change."""
    settings = {**DEFAULTS, "gradient_accumulation_steps": 1, **typed(spec.training)}
    batch, passes = settings["per_device_train_batch_size"], settings["gradient_accumulation_steps"]
    each = shared_rows(settings)["per_device_train_batch_size"]
    longest = max(len(row.input_ids) for row in rows)
    state = sum(p.numel() * p.element_size() * (4 if p.requires_grad else 1) for p in model.parameters())
    remedies = []
    if batch > 1:
        half = -(-batch // 2)
        same = ", the same rows a step" if batch % 2 == 0 else ""
        same += "" if asked(spec.training) or ranks.size() > 1 else " (training.auto_batch true does that by itself)"
        remedies.append(
            f"training.per_device_train_batch_size {half} with gradient_accumulation_steps {passes * 2}{same}"
        )
    remedies.append(f"a training.max_length below {longest}")
    if not settings.get("gradient_checkpointing", settings.get("activation_checkpointing")):
        remedies.append("training.activation_checkpointing true")
    remedies.append("a training.optim that keeps less, such as adafactor")
    return (
        f"with batches of {each} rows, the longest of {longest} tokens "
        f"(weights, gradients and AdamW's moments alone take {state / 2**30:.1f} GiB); set {', or '.join(remedies)}"
    )


@dataclass(frozen=True)
class _Loaded:
    """A model in memory, its tokenizer, and the seconds that loading took."""

    model: Any
    tokenizer: Any
    seconds: float
    start: Path
    masked: MergedAdapter | None = None


def _fine_tune(
    loaded: _Loaded,
    rows: Sequence[Encoded],
    out: Path,
    spec: TrainSpec,
    given: _Held,
    work: Path,
    tick: Tick,
) -> Trained:
    frozen = given.frozen
    config = sft_config(spec.training, work, spec.steps, spec.seed)
    data = training_set(rows)
    watch = Watch(spec.steps, tick, "protect.ewc" if spec.ewc else "")
    try:
        trainer = _Trainer(
            loaded.model, config, train_dataset=data, processing_class=loaded.tokenizer, callbacks=[watch]
        )
    except (ValueError, ImportError) as error:  # what depends on the model, such as router_aux_loss_coef
        raise CpiftError(f"training: the trainer refuses it ({' '.join(str(error).split())[:300]})") from error
    if spec.dtype == "bfloat16" and trainer.is_fsdp_enabled:
        raise CpiftError(
            "model.dtype: bfloat16 is not trained under FSDP, which shards fp32 weights; leave one of them out"
        )
    if spec.anchor and config.padding_free:
        raise CpiftError("protect.anchor: is not combined with training.padding_free; leave one of them out")
    if spec.anchor and getattr(trainer, "aux_loss_enabled", False):
        raise CpiftError(
            "anchor: is not combined with a router's auxiliary loss; set training.router_aux_loss_coef to 0"
        )
    if config.padding_free:
        with trainer.compute_loss_context_manager():
            check_rows_apart(loaded.model)
    if spec.anchor:
        trainer.anchor = Anchor(_reference(loaded.start, spec, trainer.accelerator.device), spec.anchor)
    if spec.ewc:
        check_elastic(spec, given.kept, trainer)
        trainer.elastic = Elastic.of(loaded.model, given.kept, spec.ewc)
    _only_our_progress(trainer)
    if loaded.masked is not None:
        _prepare(trainer, loaded.model)
    if spec.average is not None:
        check_averaging(spec, trainer)
        regions = frozen, given.unaveraged
        kept = [region.detached() for region in regions if region is not None and region.count]
        trainer.add_callback(AverageCallback(loaded.model, spec.average, kept[0] | kept[-1] if kept else None))
    freezes = frozen is not None and frozen.count and loaded.masked is None
    guard = FreezeCallback(frozen) if frozen is not None and freezes else None
    if guard:
        trainer.add_callback(guard)
    began = time.perf_counter()
    with ExitStack() as stack:
        if guard:
            stack.callback(guard.release)
        trainer.train(resume_from_checkpoint=last_checkpoint(work))
    seconds = time.perf_counter() - began
    with torch.no_grad():
        penalty = None if trainer.elastic is None else float(trainer.elastic.penalty())
    made = trainer.state.global_step
    if made != spec.steps:
        raise CpiftError(f"{made} of {spec.steps} steps were made; a setting of training ended it early")
    if loaded.masked is not None:
        frozen_count, changed = loaded.masked.count, loaded.masked.merge()
    else:
        frozen_count, changed = _of_all(trainer, guard)
    if changed:
        raise CpiftError(f"{changed} frozen elements changed; this is a fault of cpift or of the optimizer used")
    began = time.perf_counter()
    weights = gathered(trainer.model)
    if trainer.accelerator.is_main_process:
        model = trainer.accelerator.unwrap_model(trainer.model)
        model = model if spec.osf is None else without_osf(model)
        if spec.adapter is not None and not spec.merge:
            save_adapter(model, loaded.tokenizer, out, loaded.start, weights)
        else:
            save(model, loaded.tokenizer, out, weights)
    trainer.accelerator.wait_for_everyone()
    return Trained(
        steps=trainer.state.global_step,
        tokens=int(trainer.state.num_input_tokens_seen),
        trained_tokens=watch.trained_tokens(rows, config),
        train_seconds=seconds,
        load_seconds=loaded.seconds,
        save_seconds=time.perf_counter() - began,
        losses=watch.losses,
        frozen=frozen_count,
        frozen_changed=changed,
        precision="bf16 weights"
        if spec.dtype == "bfloat16"
        else "bf16 autocast"
        if config.bf16
        else "fp16 autocast"
        if config.fp16
        else "fp32",
        device_batch=config.per_device_train_batch_size,
        accumulation=config.gradient_accumulation_steps,
        penalty=penalty,
    )


def _reference(start: Path, spec: TrainSpec, device: torch.device) -> Any:
    """The model before, in evaluation mode, on the device of the training."""
    reference = load_model(start, spec.trust_remote_code, None, spec.attention).to(device).eval()
    return reference.requires_grad_(False)


def _prepare(trainer: Any, model: Any) -> None:
    """What a training of merged adapters needs of the trainer. Raises :class:`CpiftError` where weights are sharded."""
    if trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled:
        raise CpiftError("adapter: of a backbone or a refine stage is not trained sharded; leave FSDP or DeepSpeed out")
    if trainer.args.gradient_checkpointing:
        model.enable_input_require_grads()


def _of_all(trainer: Any, guard: FreezeCallback | None) -> tuple[int, int]:
    """Frozen elements, and those that changed: of all processes, where each holds a part of the weights."""
    held = torch.tensor([guard.count, guard.changed] if guard else [0, 0], device=trainer.accelerator.device)
    if is_sharded(trainer.model):
        held = trainer.accelerator.reduce(held, "sum")
    return int(held[0]), int(held[1])


class _Trainer(SFTTrainer):  # type: ignore[misc]
    """Draws the rows of a step as one process would, so that they do not hang on how many share them."""

    anchor: Anchor | None = None
    elastic: Elastic | None = None

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """TRL's, or with an anchor that of :class:`Anchor`; with EWC its penalty besides."""
        found = self._loss(model, inputs, return_outputs, num_items_in_batch)
        if self.elastic is None:
            return found
        # With the number of items the Trainer leaves accumulation to the loss: each batch gives its share of the penalty.
        share = 1 if num_items_in_batch is None else self.current_gradient_accumulation_steps
        loss, outputs = found if return_outputs else (found, None)
        loss = loss + self.elastic.penalty() / share
        return (loss, outputs) if return_outputs else loss

    def _loss(self, model: Any, inputs: dict[str, Any], return_outputs: bool, num_items_in_batch: Any) -> Any:
        if self.anchor is None:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        steps = self.current_gradient_accumulation_steps
        loss = self.anchor.loss(model, inputs, num_items_in_batch, steps)
        if self.args.average_tokens_across_devices and num_items_in_batch is not None:
            loss = loss * self.accelerator.num_processes  # the gradients are averaged over the processes
        return (loss, None) if return_outputs else loss

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
    for kind in (PrinterCallback, ProgressCallback):
        trainer.remove_callback(kind)


def last_checkpoint(work: Path) -> str | None:
    """The trainer's own checkpoint that a training in this folder resumes; None: it begins."""
    states = list(work.glob("checkpoint-*/trainer_state.json"))
    return str(max(states, key=lambda f: int(f.parent.name.split("-")[1])).parent) if states else None
