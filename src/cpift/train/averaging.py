"""When and how a model is averaged with the model before while it is trained; without torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from cpift.recipe.stages import Fuse


@dataclass(frozen=True)
class Averaging:
    """Averages with the model before.

    Attributes:
        weight: ω, of the trained model, 0 < ω <= 1.
        interpolation: one of ``slerp`` and ``linear``.
        every: optimizer steps from one average to the next; None: at the end alone.
        at_end: after the last step as well.
    """

    weight: float
    interpolation: Literal["slerp", "linear"] = "slerp"
    every: int | None = None
    at_end: bool = True

    def falls_on(self, step: int, steps: int) -> bool:
        """Is the model averaged after this step, the first being 1?

        Args:
            step: steps made.
            steps: steps to make.
        """
        return self.at_end if step == steps else self.every is not None and step % self.every == 0


def averaging(part: Fuse) -> Averaging | None:
    """Averages of a refine stage with the model before it: every few steps, and at the end; None where there are none."""
    if part.every is None:
        return None
    interpolation: Literal["slerp", "linear"] = "slerp" if part.interpolation == "slerp" else "linear"
    return Averaging(0.5 if part.weight == "equal" else float(part.weight), interpolation, part.every)
