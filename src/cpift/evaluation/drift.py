"""How far a model's predictions on the neutral text have drifted from those of another: KL(before ‖ after) a token.

The model before leaves its logits in a file; the model after is compared with them as it reads the text anyway.
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from cpift.evaluation.neutral import Part

_TOKENS = 64  # whose distributions are in memory at once


def divergences(before: torch.Tensor, after: torch.Tensor) -> torch.Tensor:
    """KL(before ‖ after) of each token, in nats, float64 (tokens,).

    Args:
        before: logits of the model before, (tokens, vocabulary).
        after: those of the model after.
    """
    found = []
    for start in range(0, len(after), _TOKENS):
        some = slice(start, start + _TOKENS)
        p, q = (logits[some].to(after.device).float().log_softmax(-1) for logits in (before, after))
        found.append(torch.nn.functional.kl_div(q, p, reduction="none", log_target=True).double().sum(-1))
    return torch.cat(found)


class Recorder:
    """Keeps the logits of the model before."""

    def __init__(self) -> None:
        self._seen: list[tuple[Part, torch.Tensor]] = []

    def see(self, part: Part, logits: torch.Tensor) -> None:
        """Keep those of a part."""
        self._seen.append((part, logits.detach().cpu().clone()))

    def save(self, file: Path) -> None:
        """Write the logits (tokens, vocabulary), in the order of the text, and the ids of its tokens."""
        seen = sorted(self._seen, key=lambda pair: pair[0].first)
        ids = torch.tensor([token for part, _ in seen for token in part.ids])
        save_file({"logits": torch.cat([logits for _, logits in seen]).contiguous(), "ids": ids}, file)


class Comparison:
    """Compares the model after with the logits of the model before.

    Args:
        file: what :meth:`Recorder.save` has written.
        read: the parts of the text, as the model after reads them.
    """

    def __init__(self, file: Path, read: list[Part]) -> None:
        ids = torch.tensor([token for part in read for token in part.ids])
        held = load_file(file)
        self._logits = held["logits"]
        self._same = torch.equal(held["ids"], ids)
        paragraphs = 1 + max(part.paragraph for part in read)
        self._totals, self._counts = [0.0] * paragraphs, [0] * paragraphs

    def see(self, part: Part, logits: torch.Tensor) -> None:
        """Compare the logits of a part; nothing where the two models have other tokens or another vocabulary."""
        self._same = self._same and logits.shape[-1] == self._logits.shape[-1]
        if self._same:
            before = self._logits[part.first : part.first + len(logits)]
            self._totals[part.paragraph] += float(divergences(before, logits).sum())
            self._counts[part.paragraph] += len(logits)

    def result(self) -> tuple[list[float], list[int]] | None:
        """Mean of each paragraph in nats, and its tokens; None where the two models cannot be compared."""
        if not self._same or not all(self._counts):
            return None
        return [total / count for total, count in zip(self._totals, self._counts, strict=True)], self._counts
