"""Prompts whose end would be one token with the answer: generated from the token before, held to the prompt's text.

A model that has learnt ``Label: positive`` has learnt the token `` positive``; after the tokens of ``Label: `` with their
lone blank it has never answered. So the answer is generated from ``Label:``, and only tokens are allowed that continue with
the blank. What is cut off does not depend on the row's own answer, which would give it away: it is the least that the
prompt has in common with itself followed by any answer of the task.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from transformers import LogitsProcessor

from cpift.data.encoding import prompt_ids, prompt_text
from cpift.data.row_checks import Row
from cpift.data.templates import conversation_of, render_asked
from cpift.data.turns import common_length
from cpift.typing import Tokenizer

_BEGINNING = 24  # characters of an answer that can change the tokens of its prompt
_KINDS = 48  # beginnings of answers that are tried


@dataclass(frozen=True)
class Start:
    """Ids that an answer is generated from, and the text that its first tokens must begin with."""

    ids: list[int]
    rest: str = ""


def starts(rows: Sequence[Row], tokenizer: Tokenizer) -> list[Start]:
    """Where the answer of each row begins; cut back where tokens span the border of a prompt and its answer."""
    plain = [Start(prompt_ids(row, tokenizer)) for row in rows]
    texts = [prompt_text(row, tokenizer) for row in rows]
    answers = [_answer(row, text, tokenizer) for row, text in zip(rows, texts, strict=True)]
    chats = ["messages" in row or not isinstance(row["prompt"], str) for row in rows]

    def kept(i: int, answer: str) -> int:
        whole = tokenizer(texts[i] + answer, add_special_tokens=not chats[i])["input_ids"]
        return common_length(plain[i].ids, list(whole))

    if all(kept(i, answer) == len(start.ids) for i, (start, answer) in enumerate(zip(plain, answers, strict=True))):
        return plain
    kinds = sorted({answer[:_BEGINNING] for answer in answers if answer})
    if len(kinds) > _KINDS:
        kinds = list({kind[:2]: kind for kind in kinds}.values())[:_KINDS]
    return [
        _cut(start, texts[i], min(kept(i, kind) for kind in kinds), tokenizer, chats[i])
        for i, start in enumerate(plain)
    ]


def _answer(row: Row, prompt: str, tokenizer: Tokenizer) -> str:
    if "messages" not in row and isinstance(row["prompt"], str):
        return str(row["completion"])
    whole = render_asked(conversation_of(row, tokenizer), tokenizer)
    return whole[len(prompt) :] if whole.startswith(prompt) else ""


def _cut(start: Start, text: str, kept: int, tokenizer: Tokenizer, chat: bool) -> Start:
    if kept in (0, len(start.ids)):  # nothing can be generated from no token at all
        return start
    places = tokenizer(text, add_special_tokens=not chat, return_offsets_mapping=True)["offset_mapping"]
    return Start(start.ids[:kept], text[places[kept - 1][1] :])


class ContinueWith(LogitsProcessor):  # type: ignore[misc]
    """Allows only tokens that spell the rest of the prompt, until it is spelt."""

    def __init__(self, tokenizer: Tokenizer, rests: Sequence[str], width: int) -> None:
        self._tokenizer, self._rests, self._width = tokenizer, list(rests), width
        self._texts: list[str] | None = None

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """The scores, with minus infinity for tokens that do not continue the prompt's text.

        Args:
            input_ids: ids so far, of shape (rows, tokens).
            scores: of the next token, of shape (rows, vocabulary); changed in place.
        """
        for i, rest in enumerate(self._rests):
            left = rest[len(text_of(input_ids[i, self._width :].tolist(), self._tokenizer)) :] if rest else ""
            if left:
                allowed = self._allowed(left, scores.shape[-1]).to(scores.device)
                if allowed.any():  # part of a character may be left, which no token spells alone
                    scores[i] = scores[i].masked_fill(~allowed, -torch.inf)
        return scores

    def _allowed(self, left: str, size: int) -> torch.Tensor:
        if self._texts is None:
            self._texts = [text_of([i], self._tokenizer) for i in range(min(size, len(self._tokenizer)))]
        allowed = torch.zeros(size, dtype=torch.bool)
        fits = [i for i, text in enumerate(self._texts) if text and (text.startswith(left) or left.startswith(text))]
        allowed[fits] = True
        return allowed


def text_of(ids: list[int], tokenizer: Tokenizer) -> str:
    """The text of tokens within a sequence: decoders drop the blank of the first."""
    anchor = tokenizer("a", add_special_tokens=False)["input_ids"][-1:]
    before = tokenizer.decode(anchor, skip_special_tokens=True)
    return str(tokenizer.decode([*anchor, *ids], skip_special_tokens=True))[len(before) :]
