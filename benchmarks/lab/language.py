"""A language model as one flat vector: trained on a task's rows, and tried by one forward over prompts with their answers.

What all rows of a batch begin with (the system prompt, an instruction) goes through the model once. Outcomes are those
of cpift's teacher-forced exact match: a row is right when every token of its answer, the end of the turn too, is the argmax.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional

from cpift.data.encoding import IGNORED, Encoded
from cpift.train.malloc import kept_memory
from cpift.train.models import load_model, load_tokenizer

BATCH = 16  # rows of a training batch
TRIED = 32  # rows of a batch that is tried
WARM_UP = 0.1  # share of the steps


@dataclass(frozen=True)
class Batch:
    """Rows, parted where they begin to differ.

    Attributes:
        rows: their numbers.
        prefix: token ids that all begin with, int64 (1, P).
        ids: what follows, padded at the end, int64 (rows, L).
        mask: one for each token of prefix and rest, zero for padding, int64 (rows, P + L).
        predicts: places in ``ids`` whose next token is of the answer, bool (rows, L).
        targets: these next tokens, int64.
    """

    rows: list[int]
    prefix: torch.Tensor
    ids: torch.Tensor
    mask: torch.Tensor
    predicts: torch.Tensor
    targets: torch.Tensor


def batch_of(encoded: Sequence[Encoded], rows: list[int]) -> Batch:
    """Some rows, by their numbers."""
    chosen = [encoded[i] for i in rows]
    answers = min(next(i for i, label in enumerate(row.labels) if label != IGNORED) for row in chosen)
    first = chosen[0].input_ids
    shared = 0  # the token before an answer stays with the rest: it predicts
    while shared < answers - 1 and all(row.input_ids[shared] == first[shared] for row in chosen):
        shared += 1
    length = max(len(row.input_ids) for row in chosen)
    ids, labels = torch.zeros(len(rows), length, dtype=torch.int64), torch.full((len(rows), length + 1), IGNORED)
    mask = torch.zeros_like(ids)
    for i, row in enumerate(chosen):
        ids[i, : len(row.input_ids)] = torch.tensor(row.input_ids)
        labels[i, : len(row.labels)] = torch.tensor(row.labels)
        mask[i, : len(row.input_ids)] = 1
    following = labels[:, shared + 1 :]
    predicts = following != IGNORED
    return Batch(rows, ids[:1, :shared], ids[:, shared:], mask, predicts, following[predicts])


class Language:
    """A checkpoint whose parameters lie in one vector.

    Attributes:
        names: of the parameters, sorted, as ``cpift.identify`` has them.
        sizes: number of elements of each.
        flat: the model's parameters, float32 (D,); writing to it changes the model.
    """

    def __init__(self, folder: Path) -> None:
        self.model, self.tokenizer = load_model(folder).eval(), load_tokenizer(folder)
        named = sorted(self.model.named_parameters())
        self.names, self.sizes = [name for name, _ in named], [p.numel() for _, p in named]
        self.flat = torch.cat([p.detach().reshape(-1) for _, p in named])
        for (_, parameter), part in zip(named, self.flat.split(self.sizes), strict=True):
            parameter.data = part.view(parameter.shape)

    def logits(self, batch: Batch) -> torch.Tensor:
        """Of the places that predict, (places, vocabulary)."""
        cache = None
        if batch.prefix.shape[1]:
            cache = self.model.model(input_ids=batch.prefix, use_cache=True).past_key_values
            cache.batch_repeat_interleave(len(batch.rows))
        hidden = self.model.model(
            input_ids=batch.ids, attention_mask=batch.mask, past_key_values=cache, use_cache=cache is not None
        ).last_hidden_state
        return torch.as_tensor(self.model.lm_head(hidden[batch.predicts]))

    def trained(
        self, start: torch.Tensor, rows: Sequence[Encoded], *, steps: int, rate: float, seed: int
    ) -> torch.Tensor:
        """Plain fine-tuning, weights and AdamW in fp32, matrix products in bf16: no decay.

        Epochs are shuffled by seed; the rate is warmed up, then falls linearly to zero.

        Args:
            start: parameters to start from, (D,).
            rows: of the task.
            steps: of ``BATCH`` rows.
            rate: highest learning rate.
            seed: of the shuffling.

        Returns:
            float32 (D,).
        """
        self.flat.copy_(start)
        optimizer = torch.optim.AdamW(self.model.parameters(), lr=rate, weight_decay=0.0, fused=True)
        rng, order = torch.Generator().manual_seed(seed), list[int]()
        for step in range(steps):
            while len(order) < BATCH:
                order += torch.randperm(len(rows), generator=rng).tolist()
            optimizer.param_groups[0]["lr"] = rate * min((step + 1) / (WARM_UP * steps), 1) * (1 - step / steps)
            batch, order = batch_of(rows, order[:BATCH]), order[BATCH:]
            with torch.autocast("cpu", torch.bfloat16):  # left at each step: it keeps its copies of the weights
                logits = self.logits(batch)
            loss = functional.cross_entropy(logits.float(), batch.targets)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            if step % 10 == 0 or step == steps - 1:
                print(f"step {step + 1} loss {loss.item():.3f}", flush=True)
        return self.flat.clone()

    @kept_memory()
    @torch.inference_mode()
    def tried(self, flat: torch.Tensor, rows: Sequence[Encoded]) -> tuple[np.ndarray, float]:
        """Which rows are right, bool (rows,), and the mean loss over the tokens of the answers."""
        self.flat.copy_(flat)
        right, total, tokens = np.ones(len(rows), bool), 0.0, 0
        order = sorted(range(len(rows)), key=lambda i: len(rows[i].input_ids))
        for begin in range(0, len(order), TRIED):
            batch = batch_of(rows, order[begin : begin + TRIED])
            logits = self.logits(batch)
            missed = batch.predicts.nonzero()[logits.argmax(-1) != batch.targets, 0]
            right[[batch.rows[i] for i in missed.tolist()]] = False
            total += float(functional.cross_entropy(logits, batch.targets, reduction="sum"))
            tokens += len(batch.targets)
        return right, total / tokens
