"""Padding of batches: a stage that shuffles tasks of unlike length computes more than one whose batches are of a length."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence

from cpift.data.encoding import Encoded
from cpift.data.mixture import drawn

ROWS = 4096  # of a pool that are looked at


def padding(lengths: Sequence[int], batch: int) -> float:
    """Tokens that are computed for each token of the rows, where each batch is as wide as its longest row.

    Args:
        lengths: of rows in the order of training, in tokens.
        batch: rows of one forward pass.
    """
    chunks = [lengths[i : i + batch] for i in range(0, len(lengths), batch)]
    return sum(len(chunk) * max(chunk) for chunk in chunks) / sum(lengths)


def shuffled_padding(encoded: Mapping[str, Sequence[Encoded]], counts: Mapping[str, int], batch: int) -> float:
    """The padding of a stage that trains on several tasks, whose rows are shuffled.

    Args:
        encoded: rows by task.
        counts: rows that each task gives.
        batch: rows of one forward pass.
    """
    share = min(1.0, ROWS / sum(counts.values()))
    lengths = [
        len(encoded[task][i].input_ids)
        for task, count in counts.items()
        for i in drawn(max(1, round(count * share)), len(encoded[task]), 0, task)
    ]
    random.Random(0).shuffle(lengths)
    return padding(lengths, batch)
