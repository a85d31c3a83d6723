"""Elastic weight consolidation (EWC, arXiv:1612.00796): what matters for kept rows is held where it was.

Beside the loss stands λ/2 Σ Fᵢ (θᵢ − θᵢ⁰)². θ⁰ is the model before, F its empirical Fisher information on the kept rows:
the mean over rows of the squared gradient of the row's summed loss (:func:`cpift.train.importance.squared_gradients`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from cpift.errors import CpiftError
from cpift.train.importance import squared_gradients
from cpift.train.models import is_sharded

if TYPE_CHECKING:
    from cpift.data.encoding import Encoded
    from cpift.train.spec import TrainSpec


@dataclass(frozen=True)
class Elastic:
    """The model before and what matters of it.

    Memory: two copies of the trained parameters, in fp32.

    Attributes:
        strength: λ.
        held: of each trained parameter the parameter itself, θ⁰ and F.
    """

    strength: float
    held: list[tuple[torch.nn.Parameter, torch.Tensor, torch.Tensor]]

    @classmethod
    def of(cls, model: Any, rows: Sequence[Encoded], strength: float) -> Elastic:
        """Measure F on a model that is not trained yet; it is left as it was.

        Args:
            model: whole, in fp32, on the device of the training.
            rows: kept rows, each with at least one trained token.
            strength: λ, above 0.
        """
        training = model.training
        model.eval()
        information = squared_gradients(model, rows)
        model.train(training)
        held = [(p, p.detach().clone(), information[n]) for n, p in model.named_parameters() if p.requires_grad]
        return cls(strength, held)

    def penalty(self) -> torch.Tensor:
        """λ/2 Σ F (θ − θ⁰)², a scalar in fp32."""
        parts = [_pull(now, before, information) for now, before, information in self.held]
        return self.strength / 2 * torch.stack([part.to(parts[0].device) for part in parts]).sum()


def _pull(now: torch.Tensor, before: torch.Tensor, information: torch.Tensor) -> torch.Tensor:
    found: torch.Tensor = _Pull.apply(now, before, information)  # type: ignore[no-untyped-call]
    return found


class _Pull(torch.autograd.Function):
    """Σ F (θ − θ⁰)² of one parameter. Between the passes nothing is kept but these three, which are there anyway."""

    @staticmethod
    def forward(ctx: Any, now: torch.Tensor, before: torch.Tensor, information: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(now, before, information)
        return (information * (now - before).square()).sum()

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        now, before, information = ctx.saved_tensors
        return gradient * 2 * information * (now - before), None, None


def check_elastic(spec: TrainSpec, rows: Sequence[Encoded], trainer: Any) -> None:
    """Raise :class:`CpiftError` where F cannot be measured, or the weights in memory are not the model's own."""
    if not rows:
        raise CpiftError("protect.ewc: no kept row has a trained part left; raise training.max_length")
    if spec.adapter is not None or spec.osf is not None:
        raise CpiftError("protect.ewc: is for training all parameters; leave out arrivals.adapter and arrivals.osf")
    if spec.dtype != "float32":
        raise CpiftError("protect.ewc: needs weights in float32; leave model.dtype out")
    if is_sharded(trainer.model) or trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled:
        raise CpiftError("protect.ewc: is not trained sharded; leave FSDP or DeepSpeed out")
