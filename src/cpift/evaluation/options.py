"""The likelihood of each option of a multiple-choice row."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch

from cpift.data.encoding import IGNORED, Encoded, encode
from cpift.data.row_checks import Row
from cpift.data.turns import stop_ids
from cpift.distributed.sharing import ALONE, Share
from cpift.errors import CpiftError
from cpift.evaluation.batching import forced_room, in_batches
from cpift.evaluation.forced import mean_loss, padded, predictions
from cpift.evaluation.task import EvalTask, Score
from cpift.metrics.multiple_choice import options_of, right_option
from cpift.typing import Network, Tokenizer

ROWS_ON_CPU = 16  # of a pass: options are short, and of one length they need no padding


def with_answer(row: Row, text: str) -> Row:
    """The row with another text in its last turn, after the same white space as its own.

    Args:
        row: a row whose last turn is the assistant's.
        text: the new answer.
    """
    if "messages" in row:
        *before, last = row["messages"]
        return {**row, "messages": [*before, {**last, "content": _lead(last.get("content")) + text}]}
    if isinstance(row["completion"], str):
        return {**row, "completion": _lead(row["completion"]) + text}
    *before, last = row["completion"]
    return {**row, "completion": [*before, {**last, "content": _lead(last.get("content")) + text}]}


def _lead(text: str | None) -> str:
    return (text or "")[: len(text or "") - len((text or "").lstrip())]


def encoded_option(row: Row, option: str, tokenizer: Tokenizer, ends: Sequence[int]) -> Encoded:
    """The row with one of its options, up to its last token; labels are on the option's tokens alone.

    Args:
        row: a row with options.
        option: the text of one.
        tokenizer: the model's.
        ends: ids that end an answer.

    Raises:
        CpiftError: the chat template refuses the row, or leaves the option out.
    """
    encoded = encode(with_answer(row, option), tokenizer)
    labels = encoded.labels
    end = max((i for i, label in enumerate(labels, start=1) if label != IGNORED), default=0)
    start = max((i for i, label in enumerate(labels[:end], start=1) if label == IGNORED), default=0)
    stop = next((i for i in range(start, end) if labels[i] in ends), end)
    if max(start, 1) >= stop:  # the first token of a sequence is never predicted
        raise CpiftError(f"the option {option!r} has no token to score")
    # What comes after the last token that counts, such as the end of the turn, has no effect on its likelihood.
    return replace(encoded, input_ids=encoded.input_ids[:stop], labels=[IGNORED] * start + labels[start:stop])


def shared_passes(encoded: Sequence[Encoded]) -> list[list[int]]:
    """Numbers of the options that one forward pass scores: those that differ in their last token alone.

    Args:
        encoded: options, each ending with the last token that counts.
    """
    groups: dict[tuple[tuple[int, ...], int], list[int]] = {}
    for number, option in enumerate(encoded):
        key = (tuple(option.input_ids[:-1]), sum(label == IGNORED for label in option.labels))
        groups.setdefault(key, []).append(number)
    return list(groups.values())


def score_options(
    network: Network, tokenizer: Tokenizer, task: EvalTask, progress: Callable[[int], None], share: Share = ALONE
) -> Score:
    """1 where the right option has the highest log-likelihood over its characters, the first of equals; else 0.

    Args:
        network: the model.
        tokenizer: its tokenizer.
        task: its rows have options.
        progress: called with the number of rows done.
        share: of this process.
    """
    ends = stop_ids(tokenizer, network)
    options = [options_of(row) for row in task.rows]
    encoded = [
        encoded_option(row, option, tokenizer, ends)
        for row, texts in zip(task.rows, options, strict=True)
        for option in texts
    ]
    owner = [i for i, texts in enumerate(options) for _ in texts]
    likelihoods, tokens = [0.0] * len(encoded), [0] * len(encoded)
    left = [len(texts) for texts in options]
    passes = shared_passes(encoded)

    def work(batch: list[int]) -> None:
        first_of = [encoded[passes[i][0]] for i in batch]
        ids, mask, labels = padded(first_of, tokenizer.pad_token_id or 0, network.device)
        logits, first = predictions(network, ids, mask, labels)
        target = labels[:, first + 1 :]
        counted = target != IGNORED
        places, members, targets = [], [], []
        for place, i in enumerate(batch):
            last = len(encoded[passes[i][0]].labels) - first - 2  # of the last token that counts
            for member in passes[i]:
                own = target[place].clone()
                own[last] = encoded[member].labels[-1]
                places.append(place)
                members.append(member)
                targets.append(own)
        losses = torch.stack(
            [mean_loss(logits[place], own, counted[place]) for place, own in zip(places, targets, strict=True)]
        )
        counts = counted.sum(-1).tolist()
        for place, member, loss in zip(places, members, losses.tolist(), strict=True):
            likelihoods[member], tokens[member] = -loss * counts[place], counts[place]
            left[owner[member]] -= 1
        progress(sum(not left[row] for row in {owner[member] for member in members}))

    room = forced_room(network)
    if network.device.type == "cpu":
        room = replace(room, rows=ROWS_ON_CPU)
    done = in_batches([len(encoded[members[0]].input_ids) for members in passes], room, work, share)
    share.fill([member for i in done for member in passes[i]], likelihoods, tokens)
    items, counts, at = [], [], 0
    for row, texts in zip(task.rows, options, strict=True):
        span = slice(at, at + len(texts))
        each = np.array(likelihoods[span]) / [len(text) for text in texts]
        items.append(float(each.argmax() == right_option(row)))
        counts.append(sum(tokens[span]))
        at += len(texts)
    return Score(task.metric, sum(items) / len(items), items, counts)
