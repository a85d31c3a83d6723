"""One forward pass over rows with their answers: the loss, and exact match where a pass decides it."""

from __future__ import annotations

import inspect
from collections.abc import Callable

import torch

from cpift.data.encoding import IGNORED, Encoded
from cpift.distributed.sharing import ALONE, Share
from cpift.evaluation.batching import forced_room, in_batches
from cpift.evaluation.task import EvalTask, Score
from cpift.metrics.metric import Scoring
from cpift.typing import Network, Tokenizer


def teacher_forced(
    network: Network,
    tokenizer: Tokenizer,
    task: EvalTask,
    encoded: list[Encoded],
    progress: Callable[[int], None],
    share: Share = ALONE,
) -> Score:
    """Scores of rows by one forward pass over each, for metrics whose outcome it gives.

    Args:
        network: the model.
        tokenizer: its tokenizer.
        task: its metric is the loss, or an exact match that one forward decides.
        encoded: its rows.
        progress: called with the number of rows done.
        share: of this process.
    """
    items, tokens = [0.0] * len(encoded), [0] * len(encoded)
    exact = task.kind.scoring is Scoring.EXACT

    def work(batch: list[int]) -> None:
        ids, mask, labels = padded([encoded[i] for i in batch], tokenizer.pad_token_id or 0, network.device)
        logits, first = predictions(network, ids, mask, labels)
        target = labels[:, first + 1 :]
        counted = target != IGNORED
        if exact:
            right = ((logits.argmax(-1) == target) | ~counted).all(-1) & counted.any(-1)
            values = right.double()
        else:
            values = torch.stack([mean_loss(*row) for row in zip(logits, target, counted, strict=True)])
        for row, value, count in zip(batch, values.tolist(), counted.sum(-1).tolist(), strict=True):
            items[row], tokens[row] = value, count
        progress(len(batch))

    done = in_batches([len(e.input_ids) for e in encoded], forced_room(network), work, share)
    share.fill(done, items, tokens)
    if exact:
        return Score(task.metric, sum(items) / len(items), items, tokens)
    kept = [i for i, count in enumerate(tokens) if count]
    items, tokens, rows = [items[i] for i in kept], [tokens[i] for i in kept], len(items)
    mean = sum(i * t for i, t in zip(items, tokens, strict=True)) / sum(tokens) if kept else float("nan")
    return Score(task.metric, mean, items, tokens, rows - len(kept), rows=kept if len(kept) < rows else None)


def predictions(
    network: Network, ids: torch.Tensor, mask: torch.Tensor, labels: torch.Tensor
) -> tuple[torch.Tensor, int]:
    """Logits of the tokens that predict, from the first that predicts a label in any row; and its position.

    What stands before are the prompts: the head, a fifth of a small model, need not be applied to them.
    """
    labelled = (labels[:, 1:] != IGNORED).any(0).nonzero()
    first = int(labelled[0]) if len(labelled) else ids.shape[1] - 1
    if "logits_to_keep" in inspect.signature(network.forward).parameters:
        keep = ids.shape[1] - first
        return network(input_ids=ids, attention_mask=mask, logits_to_keep=keep).logits[:, :-1], first
    return network(input_ids=ids, attention_mask=mask).logits[:, first:-1], first


def mean_loss(logits: torch.Tensor, target: torch.Tensor, counted: torch.Tensor) -> torch.Tensor:
    """Of one row's counted tokens; only these logits are made fp32. 0 where none is counted."""
    losses = torch.nn.functional.cross_entropy(logits[counted].float(), target[counted], reduction="none")
    return losses.double().sum() / counted.sum().clamp(min=1)


def padded(rows: list[Encoded], pad: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Ids, attention mask and labels of rows, int64 (rows, longest), padded on the right.

    Args:
        rows: encoded rows.
        pad: the id that pads.
        device: where the tensors go.
    """
    width = max(len(row.input_ids) for row in rows)
    ids = torch.tensor([row.input_ids + [pad] * (width - len(row.input_ids)) for row in rows])
    mask = torch.tensor([[1] * len(row.input_ids) + [0] * (width - len(row.input_ids)) for row in rows])
    labels = torch.tensor([row.labels + [IGNORED] * (width - len(row.labels)) for row in rows])
    return ids.to(device), mask.to(device), labels.to(device)
