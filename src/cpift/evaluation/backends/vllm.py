"""vLLM: an engine of its own for each model, beside the one in memory. Not run in the tests, which have a stand-in."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from cpift.checkpoint.adapter import is_adapter
from cpift.checkpoint.library import Untyped, library
from cpift.errors import CpiftError
from cpift.evaluation.backends import Loaded
from cpift.train import accelerator


@dataclass(frozen=True)
class VLLM:
    """Generates with an engine."""

    engine: Untyped
    precision: str

    def generate(
        self, prompts: Sequence[list[int]], max_new_tokens: int, ends: Sequence[int], pad: int
    ) -> list[list[int]]:
        """See :class:`cpift.evaluation.backends.Backend`."""
        settings = library("vllm").SamplingParams(
            temperature=0.0,
            repetition_penalty=1.0,
            max_tokens=max_new_tokens,
            stop_token_ids=list(ends),
            detokenize=False,
        )
        asked = [{"prompt_token_ids": list(prompt)} for prompt in prompts]
        results = self.engine.generate(asked, settings, use_tqdm=False)
        return [list(result.outputs[0].token_ids) for result in results]


@contextmanager
def open_backend(model: Loaded) -> Iterator[VLLM]:
    """See :class:`cpift.evaluation.backends.OpenBackend`."""
    if is_adapter(model.folder):
        raise CpiftError(
            f"evaluate.generation: vllm loads whole checkpoints, and {model.folder} is an adapter; take continuous"
        )
    half = model.precision != "fp32"
    free = accelerator.free_share()
    engine = library("vllm").LLM(
        model=str(model.folder),
        tokenizer=str(model.folder),
        dtype="bfloat16" if half else "float32",
        seed=0,
        trust_remote_code=model.trust_remote_code,
        generation_config="vllm",  # what lies in the folder would change the sampling
        **({} if free is None else {"gpu_memory_utilization": free}),
    )
    try:
        yield VLLM(engine, "bf16 weights" if half else "fp32")
    finally:
        del engine
        accelerator.release()
