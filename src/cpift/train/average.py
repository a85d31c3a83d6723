"""Averaging with the model before while it is trained (SFA, arXiv:2501.05559): every few optimizer steps, and at the end.

θ ← interpolation of θ_before and θ, tensor by tensor, over the entries that are not kept apart. The optimizer's state
stays as it is.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from transformers import TrainerCallback

from cpift.errors import CpiftError
from cpift.method.freeze import match_parameters
from cpift.method.interpolations.slerp import slerp_factors
from cpift.method.memory_names import region_in_memory
from cpift.train.averaging import Averaging
from cpift.train.models import is_sharded

if TYPE_CHECKING:
    from transformers import TrainerControl, TrainerState, TrainingArguments

    from cpift.method.region import Region
    from cpift.train.spec import TrainSpec


def interpolated(
    before: torch.Tensor, now: torch.Tensor, averaging: Averaging, free: torch.Tensor | None = None
) -> torch.Tensor:
    """The average of one tensor, computed in float64.

    Args:
        before: of the model before, any shape.
        now: of the trained model, the same shape and dtype.
        averaging: weight and interpolation.
        free: bool, the same shape; entries where it is False keep ``now`` and are no part of the vectors. None: all.
    """
    a, b = before.double(), now.double()
    if free is not None:
        a, b = a[free], b[free]
    factors = 1 - averaging.weight, averaging.weight
    if averaging.interpolation == "slerp":
        lengths = torch.linalg.vector_norm(a), torch.linalg.vector_norm(b)
        angle = None
        if all(lengths):
            a_unit, b_unit = a / lengths[0], b / lengths[1]  # exact at small angles too (Kahan's form)
            apart = torch.linalg.vector_norm(a_unit - b_unit), torch.linalg.vector_norm(a_unit + b_unit)
            angle = 2 * float(np.arctan2(float(apart[0]), float(apart[1])))
        factors = slerp_factors(angle, averaging.weight, a.numel())
    mixed = (factors[0] * a + factors[1] * b).to(now.dtype)
    if free is None:
        return mixed
    result = now.clone()
    result[free] = mixed
    return result


class AverageCallback(TrainerCallback):  # type: ignore[misc]
    """Averages a ``Trainer``'s model with what it was when this was made.

    Memory: a copy of each trained parameter, and a byte for each element of one that has positions kept apart.

    Args:
        model: whole, with the weights of the model before.
        averaging: when and how.
        kept: positions that are not averaged, by the names of the checkpoint's files; None: none.
    """

    def __init__(self, model: Any, averaging: Averaging, kept: Region | None) -> None:
        self._averaging = averaging
        self._parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self._before = {name: p.detach().clone() for name, p in self._parameters.items()}
        self._free: Mapping[int, torch.Tensor] = {} if kept is None else _free(model, kept)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Average where it is due; the trainer's own checkpoint is written after it."""
        if not self._averaging.falls_on(state.global_step, state.max_steps):
            return
        with torch.no_grad():
            for name, parameter in self._parameters.items():
                free = self._free.get(id(parameter))
                before = self._before[name] = self._before[name].to(parameter.device)
                mask = None if free is None else free.to(parameter.device)
                parameter.copy_(interpolated(before, parameter.data, self._averaging, mask))


def check_averaging(spec: TrainSpec, trainer: Any) -> None:
    """Raise :class:`CpiftError` where the weights in memory are not the model's own."""
    if is_sharded(trainer.model) or trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled:
        raise CpiftError("every: averaging while training is not done sharded; leave FSDP or DeepSpeed out")
    if str(spec.training.get("optim", "")).startswith("schedule_free"):
        raise CpiftError(
            "every: schedule-free optimizers average weights of their own; choose another training.optim, or leave it out"
        )


def _free(model: Any, kept: Region) -> dict[int, torch.Tensor]:
    """Entries that are averaged, of each parameter that has others."""
    region, masks = region_in_memory(model, kept), {}
    for name, parameter in match_parameters(model, region).items():
        mask = torch.ones(parameter.numel(), dtype=torch.bool)
        mask[torch.as_tensor(np.asarray(region.positions[name], np.int64))] = False
        masks[id(parameter)] = mask.view(parameter.shape)
    return masks
