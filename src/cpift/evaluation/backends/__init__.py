"""What generates answers in place of batches by ``model.generate``: one interface, one file a backend.

The table is :data:`cpift.recipe.generation.GENERATION`; it can be read without any of the libraries.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, cast

from cpift.errors import CpiftError
from cpift.recipe.generation import GENERATION, GenerationBackend
from cpift.typing import Network


@dataclass(frozen=True)
class Loaded:
    """The model that is scored.

    Attributes:
        network: in memory, on its device.
        folder: of its checkpoint.
        precision: of the scoring, such as ``bf16 autocast``.
        trust_remote_code: may code that lies in the folder be run?
    """

    network: Network
    folder: Path
    precision: str
    trust_remote_code: bool = False


class Backend(Protocol):
    """Generates answers of one model."""

    @property
    def precision(self) -> str:
        """Of its passes, as :class:`cpift.evaluation.task.Score` has it."""

    def generate(
        self, prompts: Sequence[list[int]], max_new_tokens: int, ends: Sequence[int], pad: int
    ) -> list[list[int]]:
        """Greedy answers.

        Args:
            prompts: token ids of each.
            max_new_tokens: tokens of the longest answer.
            ends: ids that end an answer.
            pad: the id that pads.

        Returns:
            New ids of each prompt, in their order, with or without the one that ends it.

        Raises:
            CpiftError: it cannot generate with this model.
        """


class OpenBackend(Protocol):
    """What ``open_backend`` of a backend's file is."""

    def __call__(self, model: Loaded) -> AbstractContextManager[Backend]:
        """A backend for one model; what it holds is freed at the end of the context."""


def check_backend(entry: GenerationBackend, processes: int = 1, adapter: bool = False) -> None:
    """Check that a backend can be used here.

    Args:
        entry: the backend.
        processes: of the run.
        adapter: is a model that is scored an adapter?

    Raises:
        CpiftError: a package that is not installed, several processes, or an adapter.
    """
    where = f"evaluate.generation: {entry.name}"
    if entry.package and importlib.util.find_spec(entry.package) is None:
        raise CpiftError(f"{where} needs the package {entry.package}; pip install {entry.package}")
    if entry.one_process and processes > 1:
        raise CpiftError(f"{where} is for a run of one process; start it without a launcher, or take continuous")
    if entry.reads_folder and adapter:
        raise CpiftError(f"{where} loads whole checkpoints, and a probe.adapter is none; take continuous")


def precision_of(name: str, precision: str) -> str:
    """The precision of a backend's answers, where scores are made in ``precision``."""
    return "bf16 weights" if GENERATION[name].module and precision != "fp32" else precision


def open_backend(name: str, model: Loaded) -> AbstractContextManager[Backend | None]:
    """The backend of this name for a model; None in the context: the built-in batches."""
    entry = GENERATION[name]
    if not entry.module:
        return nullcontext()
    check_backend(entry)
    return cast(OpenBackend, importlib.import_module(entry.module).open_backend)(model)
