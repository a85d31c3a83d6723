"""A language model that has memorised its sequences: the next token of each beginning, and nothing else."""

from __future__ import annotations

from typing import Any

import torch
from transformers import GenerationMixin, LlamaConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast


class Parrot(PreTrainedModel, GenerationMixin):  # type: ignore[misc]
    """Logits by looking up all tokens before; of what it has not learnt, it repeats the last token."""

    config_class = LlamaConfig
    _supports_cache_class = False

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__(config)
        self.known: dict[tuple[int, ...], int] = {}
        self.head = torch.nn.Linear(1, config.vocab_size)
        self.post_init()

    @classmethod
    def after(cls, sequences: list[list[int]], size: int) -> Parrot:
        """One that has learnt ``sequences``."""
        made = cls(LlamaConfig(vocab_size=size, bos_token_id=None, eos_token_id=None, pad_token_id=None))
        for ids in sequences:
            made.known |= {tuple(ids[:i]): ids[i] for i in range(1, len(ids))}
        return made.eval()

    def get_output_embeddings(self) -> Any:
        return self.head

    def get_input_embeddings(self) -> Any:
        return self.head

    def prepare_inputs_for_generation(self, input_ids: Any, attention_mask: Any = None, **rest: Any) -> dict[str, Any]:
        return {"input_ids": input_ids, "attention_mask": attention_mask}

    def forward(self, input_ids: Any, attention_mask: Any = None, **rest: Any) -> CausalLMOutputWithPast:
        logits = torch.zeros(*input_ids.shape, self.config.vocab_size)
        masks = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        for row, (ids, mask) in enumerate(zip(input_ids.tolist(), masks.tolist(), strict=True)):
            read: list[int] = []
            for i, (token, real) in enumerate(zip(ids, mask, strict=True)):
                read += [token] if real else []
                if real:
                    logits[row, i, self.known.get(tuple(read), token)] = 9.0
        return CausalLMOutputWithPast(logits=logits)
