"""What watches a training: the losses, and a loss that is no number."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from typing import Any, TypedDict

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from trl import SFTConfig

from cpift.data.encoding import Encoded
from cpift.distributed import ranks
from cpift.errors import CpiftError

_REMEDY = "lower training.learning_rate, or look at the data"


class Step(TypedDict):
    """What a training reports after each optimizer step.

    Attributes:
        step: steps made.
        steps: steps to make.
        loss: the last that was logged, in nats; None before.
        tokens: seen since this process began, padding not counted.
        tokens_per_second: since this process began.
    """

    step: int
    steps: int
    loss: float | None
    tokens: int
    tokens_per_second: float


Tick = Callable[[Step], None]


class Watch(TrainerCallback):  # type: ignore[misc]
    """Collects the losses, tells how it goes, and stops at a loss that is no number."""

    def __init__(self, steps: int, tick: Tick, penalised: str = "") -> None:
        self._remedy = f"lower {penalised}, or {_REMEDY}" if penalised else _REMEDY
        self.losses: list[tuple[int, float, float]] = []
        self._steps, self._tick, self._began = steps, tick, time.perf_counter()
        self._first_tokens: int | None = None
        self._worse_than_guessing = math.inf

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Note where the training starts."""
        vocabulary = getattr(kwargs["model"].config, "vocab_size", None)
        self._worse_than_guessing = 2 * math.log(vocabulary) if vocabulary else math.inf
        self._began, self._first_tokens = time.perf_counter(), int(state.num_input_tokens_seen)
        self.losses = [
            (int(entry["step"]), float(entry["loss"]), float(entry.get("learning_rate", 0.0)))
            for entry in state.log_history
            if "loss" in entry
        ]

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Report progress."""
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

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Switch schedule-free optimizers to the weights to be saved."""
        if callable(getattr(kwargs["optimizer"], "eval", None)):
            kwargs["optimizer"].eval()  # schedule-free optimizers train on other weights than those to be saved

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: Any = None, **kwargs: Any
    ) -> None:
        """Keep the loss; stop a training that diverges."""
        if not logs or "loss" not in logs:
            return
        loss = float(logs["loss"])
        self.losses.append((state.global_step, loss, float(logs.get("learning_rate", 0.0))))
        for name, value in (("loss", loss), ("gradient's norm", float(logs.get("grad_norm") or 0.0))):
            if not math.isfinite(value):
                raise CpiftError(f"the {name} is {value} at step {state.global_step}; {self._remedy}")
        if loss > max(self._worse_than_guessing, 2 * self.losses[0][1]):
            raise CpiftError(
                f"the training diverges: the loss is {loss:.1f} at step {state.global_step}; {self._remedy}"
            )

    def trained_tokens(self, rows: Sequence[Encoded], config: SFTConfig) -> int:
        """Tokens the loss was taken on, from the mean row."""
        each: int = config.per_device_train_batch_size * config.gradient_accumulation_steps
        seen: int = config.max_steps * each * ranks.size()
        return round(seen * sum(row.trained for row in rows) / len(rows))
