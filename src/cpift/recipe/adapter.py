"""The adapter that a stage trains in place of all parameters, and the table of its types."""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, field_validator

from cpift.recipe.part import Part
from cpift.table import Table


@dataclass(frozen=True)
class AdapterType:
    """A type of adapter.

    Attributes:
        name: as the recipe writes it.
        summary: one phrase for help and docs.
        options: what it sets of PEFT's ``LoraConfig``.
        four_bit: is it trained on a base that is quantised to 4 bit?
    """

    name: str
    summary: str
    options: Mapping[str, bool] = field(default_factory=dict)
    four_bit: bool = False


ADAPTERS = Table[AdapterType](
    "adapter",
    [
        AdapterType("lora", "base + α/r · B·A"),
        AdapterType("rslora", "base + α/√r · B·A", {"use_rslora": True}),
        AdapterType("dora", "LoRA whose outputs have a learnt length", {"use_dora": True}),
        AdapterType("qlora", "LoRA on a base in 4 bit, by bitsandbytes", four_bit=True),
    ],
)
AdapterName = Annotated[str, AfterValidator(ADAPTERS.check)]


class Adapter(Part):
    """A LoRA adapter of PEFT."""

    type: AdapterName = "lora"
    """lora, rslora, dora or qlora: docs/adapters.md."""
    r: int = Field(default=16, gt=0, le=100_000)
    """Rank of the update of each adapted layer."""
    alpha: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    """Scale of the update, divided by r (rslora: √r); by default twice r."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Share of the inputs of A that is dropped in training."""
    target_modules: Literal["all-linear"] | list[str] = "all-linear"
    """Ends of the names of adapted modules, such as [q_proj, v_proj]; all-linear: every linear layer but the head."""
    modules_to_save: list[str] = []
    """Ends of the names of modules that are trained as a whole, such as [norm]."""

    @field_validator("target_modules")
    @classmethod
    def _some(cls, value: Literal["all-linear"] | list[str]) -> Literal["all-linear"] | list[str]:
        if value == [] or (
            isinstance(value, list) and any(not name or fnmatch.filter([name], "*[*?]*") for name in value)
        ):
            raise ValueError("is a list of ends of names without wildcards, such as [q_proj, v_proj], or all-linear")
        return value

    @property
    def kind(self) -> AdapterType:
        """Its entry in the table of types."""
        return ADAPTERS[self.type]

    @property
    def scaled(self) -> float:
        """α, the default filled in."""
        return 2.0 * self.r if self.alpha is None else self.alpha

    @property
    def scale(self) -> float:
        """The factor of B·A."""
        return self.scaled / (math.sqrt(self.r) if self.type == "rslora" else self.r)

    def describe(self) -> str:
        """For people: "lora, rank 16"."""
        return f"{self.type}, rank {self.r}"

    def parameters(self, shapes: Mapping[str, tuple[int, ...]]) -> int:
        """Elements that are trained, estimated from the shapes of the base's parameters.

        Args:
            shapes: by parameter.
        """
        total = 0
        for name, shape in shapes.items():
            module = name.removesuffix(".weight")
            if any(_ends(module, end) for end in self.modules_to_save):
                size = 1
                for length in shape:
                    size *= length
                total += size
            elif len(shape) == 2 and name.endswith(".weight") and self.adapts(module):
                total += self.r * sum(shape) + (shape[0] if self.type == "dora" else 0)
        return total

    def adapts(self, module: str) -> bool:
        """Is a linear layer of this name adapted?"""
        if self.target_modules == "all-linear":
            return not any(word in module for word in ("embed", "wte", "wpe", "lm_head"))
        return any(_ends(module, end) for end in self.target_modules)


def mergeable(adapter: Adapter | None) -> Adapter | None:
    """A validator: an adapter whose update is merged, frozen positions left out."""
    if adapter is not None and adapter.type not in ("lora", "rslora", "qlora"):
        raise ValueError(
            f"type {adapter.type} is for probes; here take lora, rslora or qlora, whose update can be masked"
        )
    if adapter is not None and adapter.modules_to_save:
        raise ValueError("modules_to_save is for probes; leave it out")
    return adapter


MergedAdapter = Annotated[Adapter | None, AfterValidator(mergeable)]


def _ends(module: str, end: str) -> bool:
    return module == end or module.endswith("." + end)
