"""The recipe's settings of tasks that arrive, and of what they must not harm."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from cpift.recipe.adapter import MergedAdapter
from cpift.recipe.part import Part, Trained

OSF_SHARE = 0.5  # of each matrix's directions that stay, where OSF is one method among others: PEFT's default


class Arrivals(Trained):
    """Tasks that are added to the model one after the other. A bare list is short for its ``order``."""

    order: list[str] = Field(min_length=1)
    """The tasks to add, first to last. Tasks of the recipe that are not listed are kept: replayed and scored."""
    epochs: float = Field(default=1.0, gt=0, le=1e6, allow_inf_nan=False)
    """Passes over the rows of the task that arrives."""
    train: Literal["all", "inside"] = "all"
    """all: whatever is not frozen. inside: find the core so, then train again from the model before, the core alone; the
    rest keeps every bit, and nothing is averaged."""
    examples_per_task: int = Field(default=64, ge=0)
    """Rows of each earlier arrival that stay at hand for replay; 0: none."""
    adapter: MergedAdapter = None
    """Train an adapter, merged at the end, in place of all parameters: {type: lora, r: 16}; docs/adapters.md."""
    osf: float | None = Field(default=None, gt=0, lt=1)
    """Train by PEFT's OSF, orthogonal to this share of each matrix's main directions, in place of all parameters."""


class Protect(Part):
    """What keeps the abilities of the model to which tasks are added."""

    by: Literal["auto", "none", "update", "fisher", "magnitude_gradient", "magnitude"] = "auto"
    """How the protected region is chosen: by \\|model − base\\|, or on the kept rows by Fisher information or \\|θ·g\\|.
    auto: update where base is given, otherwise none. Regions that the model carries are protected in any case."""
    percent: float = Field(default=1.0, gt=0, lt=100)
    """Share of all parameters that is protected, in per cent."""
    unit: Literal["element", "column"] = "element"
    """What is protected: single parameters, or whole columns of weights."""
    freeze: bool = True
    """Keep protected regions, and the cores of earlier arrivals, bit-identical."""
    replay: float = Field(default=0.5, ge=0, lt=1)
    """Share of the training rows that are kept rows, where there are any; 0: none."""
    anchor: float = Field(default=0.0, ge=0, le=1e4)
    """Factor β of the divergence from the model before on the prompts of the training rows; 0: off. Needs no old rows,
    and memory for a second model."""
    ewc: float = Field(default=0.0, ge=0, le=1e15, allow_inf_nan=False)
    """Strength λ of EWC: what matters for the kept rows is pulled back to the model before; 0: off. Needs kept rows, and
    memory for two copies of the model."""
    average: float = Field(default=1.0, gt=0, le=1)
    """Weight of the trained model in its average with the model before, such as 0.75; 1: no averaging. Try the
    learning rate first (docs/results/e1.md)."""
    every: int | None = Field(default=None, gt=0)
    """Optimizer steps after which the model is averaged so while it is trained, beside the end; null: at the end alone."""
    interpolation: Literal["slerp", "linear"] = "slerp"
    """How the two are averaged."""
    transplant: bool = True
    """Put the core of the new task back unchanged after averaging."""
