"""transformers' continuous batching: rows join and leave a running batch, so that none waits for the longest.

It generates in a thread of its own, where autocast does not reach. On a device whose scores are of bf16 autocast it
therefore takes a copy of the model with bf16 weights.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from transformers import GenerationConfig
from transformers.generation import ContinuousBatchingConfig

from cpift.errors import CpiftError, is_out_of_memory
from cpift.evaluation.backends import Loaded
from cpift.train import accelerator
from cpift.typing import Network

_PAGE = 64  # tokens of a page of the cache, on a processor
_ROWS = 8  # rows of longest length that the cache has room for, on a processor


@dataclass(frozen=True)
class Continuous:
    """Generates with a model that is in memory."""

    network: Network
    precision: str

    def generate(
        self, prompts: Sequence[list[int]], max_new_tokens: int, ends: Sequence[int], pad: int
    ) -> list[list[int]]:
        """See :class:`cpift.evaluation.backends.Backend`."""
        settings = GenerationConfig(
            max_new_tokens=max_new_tokens,
            do_sample=False,
            eos_token_id=list(ends) or -1,
            pad_token_id=pad,
        )
        longest = max(map(len, prompts)) + max_new_tokens
        try:
            results = self.network.generate_batch(
                [list(prompt) for prompt in prompts],
                generation_config=settings,
                continuous_batching_config=self._sizes(longest),
                progress_bar=False,
                warmup=self.network.device.type != "cpu",
            )
        except Exception as error:
            if is_out_of_memory(error):
                raise
            raise CpiftError(_refused(" ".join(str(error).split())[:300])) from error
        failed = next((result.error for result in results.values() if result.error is not None), None)
        if failed is not None or len(results) != len(prompts):
            raise CpiftError(_refused(failed or f"{len(prompts) - len(results)} rows have no answer"))
        return [list(result.generated_tokens) for result in results.values()]

    def _sizes(self, longest: int) -> ContinuousBatchingConfig:
        """Of the cache: on a device from its free memory; on a processor small, or it would take all of the machine's."""
        options: dict[str, Any] = {"auto_switch_to_flash": False}
        if self.network.device.type == "cpu":
            blocks = _ROWS * -(-longest // _PAGE)
            options |= {"page_size": _PAGE, "num_blocks": blocks, "max_batch_tokens": max(longest, 256)}
            options |= {"use_cuda_graph": False, "use_async_batching": False}
        return ContinuousBatchingConfig(**options)


@contextmanager
def open_backend(model: Loaded) -> Iterator[Continuous]:
    """See :class:`cpift.evaluation.backends.OpenBackend`."""
    if not hasattr(model.network, "generate_batch"):
        raise CpiftError(_refused("the model's class has no generate_batch"))
    if model.precision == "fp32":
        yield Continuous(model.network, "fp32")
        return
    network = copy.deepcopy(model.network).to(torch.bfloat16)
    try:
        yield Continuous(network, "bf16 weights")
    finally:
        del network
        accelerator.release()


def _refused(why: str) -> str:
    return f"evaluate.generation: continuous batching fails with this model ({why}); take transformers"
