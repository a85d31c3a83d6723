"""Rows to token ids, with the assistant's part marked: the same tokens are trained on and scored."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from cpift.errors import CpiftError
from cpift.tasks import Row

IGNORED = -100


@dataclass(frozen=True)
class Encoded:
    """Token ids of a row, and the same with everything but the assistant's part replaced by ``IGNORED``."""

    input_ids: list[int]
    labels: list[int]

    @property
    def trained(self) -> int:
        """Number of tokens that the loss is taken on: the first token of a sequence is never predicted."""
        return sum(label != IGNORED for label in self.labels[1:])


def encode(row: Row, tokenizer: Any, max_length: int | None = None) -> Encoded:
    """Tokenize a row by the tokenizer's chat template, or prompt and completion of plain text as they are.

    Raises :class:`CpiftError` where the template is missing or rewrites earlier turns.
    """
    if "messages" in row:
        ids, labels = _conversation(row["messages"], tokenizer)
    elif isinstance(row["prompt"], str):
        whole = row["prompt"] + row["completion"]
        ids, labels = _mark(whole, [(len(row["prompt"]), len(whole))], tokenizer, add_special_tokens=True)
        end = tokenizer.eos_token_id
        if end is not None:  # learnt once, whether the tokenizer adds it by itself or not
            without = slice(None, -1) if ids[-1:] == [end] else slice(None)
            ids, labels = [*ids[without], end], [*labels[without], end]
    else:
        ids, labels = _conversation([*row["prompt"], *row["completion"]], tokenizer, first=len(row["prompt"]))
    return Encoded(ids[:max_length], labels[:max_length])


def encode_all(rows: Sequence[Row], tokenizer: Any, max_length: int | None) -> tuple[list[Encoded], int]:
    """All rows that still have a trained part after truncation, and how many were left out for having none."""
    encoded = [encode(row, tokenizer, max_length) for row in rows]
    kept = [e for e in encoded if e.trained]
    return kept, len(encoded) - len(kept)


def _conversation(messages: list[Row], tokenizer: Any, first: int = 0) -> tuple[list[int], list[int]]:
    """Ids of the whole conversation; labels on each assistant turn from message ``first`` on, with its end of turn."""
    spans, whole = [], _render(messages, tokenizer)
    for i, message in enumerate(messages):
        if message["role"] != "assistant" or i < first:
            continue
        before = (
            _render(messages[:i], tokenizer, add_generation_prompt=True) if i else _opening(message, whole, tokenizer)
        )
        after = whole if i == len(messages) - 1 else _render(messages[: i + 1], tokenizer)
        if not whole.startswith(before) or not whole.startswith(after):
            raise CpiftError(
                "the chat template rewrites earlier turns, so that no turn can be marked as the assistant's; "
                "give the rows as prompt and completion, one turn each"
            )
        spans.append((len(before), len(after)))
    return _mark(whole, spans, tokenizer, add_special_tokens=False)


def _opening(message: Row, whole: str, tokenizer: Any) -> str:
    """All that stands before the words of an assistant turn that opens its conversation: templates refuse an empty one."""
    alone = _render([message], tokenizer)
    header = _render([message], tokenizer, add_generation_prompt=True)[len(alone) :]
    at = whole.find(header) if header else -1
    return whole[: at + len(header)] if 0 <= at <= whole.find(message["content"]) else ""


def _mark(
    text: str, spans: list[tuple[int, int]], tokenizer: Any, add_special_tokens: bool
) -> tuple[list[int], list[int]]:
    """Token ids of ``text``; labels are the ids of tokens that begin within one of the spans of characters."""
    encoded = tokenizer(
        text, add_special_tokens=add_special_tokens, return_offsets_mapping=True, return_special_tokens_mask=True
    )
    ids, labels = list(encoded["input_ids"]), []
    for token, (start, end), added in zip(ids, encoded["offset_mapping"], encoded["special_tokens_mask"], strict=True):
        if start == end:  # blanks, of a tokenizer that trims its offsets: known by where they end
            start = end - 1
        inside = not added and any(first <= start < last for first, last in spans)
        labels.append(token if inside else IGNORED)
    return ids, labels


def _render(messages: list[Row], tokenizer: Any, add_generation_prompt: bool = False) -> str:
    if not tokenizer.chat_template:
        raise CpiftError(
            "the tokenizer has no chat template; give the rows as prompt and completion, or set a template"
        )
    if not messages:
        return ""
    try:
        text: str = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=add_generation_prompt)
    except Exception as error:  # templates are programs: they refuse roles, or are broken in any way
        raise CpiftError(f"the chat template refuses a row ({' '.join(str(error).split())[:300]})") from error
    return text


def prompt_ids(row: Row, tokenizer: Any) -> list[int]:
    """Token ids of all that stands before the last assistant turn: what an answer is generated from."""
    if "messages" in row or not isinstance(row["prompt"], str):
        messages = row["messages"][:-1] if "messages" in row else row["prompt"]
        text = _render(messages, tokenizer, add_generation_prompt=True)
        ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids
    ids = tokenizer(row["prompt"])["input_ids"]
    return ids[:-1] if ids and ids[-1] == tokenizer.eos_token_id else ids
