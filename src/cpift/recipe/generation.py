"""By what answers are generated: a new backend is an entry of this table and the file that it names."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import AfterValidator

from cpift.recipe.part import Part
from cpift.table import Table


@dataclass(frozen=True)
class GenerationBackend:
    """What generates answers.

    Attributes:
        name: as the recipe writes it.
        summary: one phrase for help and docs.
        module: its file; ``open_backend`` there is an :class:`cpift.evaluation.backends.OpenBackend`. Empty: the built-in
            batches.
        package: that must be installed.
        reads_folder: does it load the checkpoint by itself, so that an adapter is no model to it?
        one_process: is it for runs of a single process?
    """

    name: str
    summary: str
    module: str = ""
    package: str = ""
    reads_folder: bool = False
    one_process: bool = False


GENERATION = Table[GenerationBackend](
    "generation backend",
    [
        GenerationBackend("transformers", "batches of like length, by model.generate"),
        GenerationBackend(
            "continuous",
            "transformers' continuous batching: a finished row makes room for the next",
            "cpift.evaluation.backends.continuous",
        ),
        GenerationBackend(
            "vllm",
            "vLLM's engine, which loads each model by itself",
            "cpift.evaluation.backends.vllm",
            package="vllm",
            reads_folder=True,
            one_process=True,
        ),
    ],
)
GenerationName = Annotated[str, AfterValidator(GENERATION.check)]


class Evaluate(Part):
    """How models are scored."""

    dtype: Literal["auto", "float32"] = "auto"
    """auto: bf16 autocast on a device that multiplies bf16 fast, else float32."""
    generation: GenerationName = "transformers"
    """By what answers are generated: transformers, continuous or vllm (docs/cluster.md)."""

    @property
    def backend(self) -> GenerationBackend:
        """Its entry in the table of backends."""
        return GENERATION[self.generation]

    def identity(self, generates: bool) -> dict[str, str]:
        """What decides about scores, for the key of a stage; defaults are left out.

        Args:
            generates: may answers be generated?
        """
        chosen = self.model_dump(exclude_defaults=True)
        return {name: value for name, value in chosen.items() if generates or name != "generation"}
