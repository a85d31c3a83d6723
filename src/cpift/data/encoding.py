"""Rows to token ids, with the assistant's part marked: the same tokens are trained on and scored.

Ids and marks are those of TRL: its training templates with ``assistant_masks`` for conversations, its prompt and
completion for the rest. A token is learnt where it holds a character of the answer, also if it begins before it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from cpift.data.marks import mark_completion, mark_turns
from cpift.data.row_checks import Row
from cpift.data.templates import conversation_of, render_asked
from cpift.data.turns import REASONING_KEYS, common_length, end_of_turn, stop_ids, turn_of
from cpift.metrics.answers import AnswerPattern, may_be_forced, response
from cpift.typing import Tokenizer

IGNORED = -100

SPANS_BORDER = (
    "a token holds both the end of the prompt and the beginning of the answer; it is learnt whole, so that the model "
    "sees other tokens than those of the prompt alone; end the prompt without a blank, and begin the completion with it"
)


@dataclass(frozen=True)
class Encoded:
    """A row as token ids.

    Attributes:
        input_ids: of the whole row.
        labels: the same, with everything but the assistant's part replaced by ``IGNORED``.
        notes: what the user should know about the row.
    """

    input_ids: list[int]
    labels: list[int]
    notes: tuple[str, ...] = ()

    @property
    def trained(self) -> int:
        """Number of tokens that the loss is taken on: the first token of a sequence is never predicted."""
        return sum(label != IGNORED for label in self.labels[1:])


def encode(row: Row, tokenizer: Tokenizer, max_length: int | None = None) -> Encoded:
    """Tokenize a row by the tokenizer's chat template, or prompt and completion of plain text as they are.

    Raises:
        CpiftError: the template is missing, refuses the row, rewrites earlier turns, or leaves out what it should render.
    """
    notes: tuple[str, ...] = ()
    if "messages" not in row and isinstance(row["prompt"], str):
        prompt, whole = row["prompt"], row["prompt"] + row["completion"]
        ids, labels, spanned = _mark(whole, [(len(prompt), len(whole))], tokenizer, True, prompt)
        end = tokenizer.eos_token_id
        if end is not None:  # learnt once, whether the tokenizer adds it by itself or not
            without = slice(None, -1) if ids[-1:] == [end] else slice(None)
            ids, labels = [*ids[without], end], [*labels[without], end]
    else:
        conversation = conversation_of(row, tokenizer)
        if "messages" not in row and len(row["completion"]) == 1:
            marked = mark_completion(conversation, tokenizer)
        else:
            first = 0 if "messages" in row else len(row["prompt"])
            marked = mark_turns(conversation, tokenizer, lambda text: _tokens(text, tokenizer), first)
        ids, labels, spanned = _mark(marked.text, marked.spans, tokenizer, False, marked.prompt)
        notes = marked.notes
    if spanned:
        notes = (*notes, SPANS_BORDER)
    return Encoded(ids[:max_length], labels[:max_length], notes)


def encode_all(rows: Sequence[Row], tokenizer: Tokenizer, max_length: int | None) -> tuple[list[Encoded], int]:
    """All rows that still have a trained part after truncation, and how many were left out for having none."""
    encoded = [encode(row, tokenizer, max_length) for row in rows]
    kept = [e for e in encoded if e.trained]
    return kept, len(encoded) - len(kept)


def notes_of(encoded: Sequence[Encoded]) -> list[str]:
    """One line for each kind of note, with the number of rows that have it."""
    counts = Counter(note for row in encoded for note in row.notes)
    return [f"{count} of {len(encoded)} rows: {note}" for note, count in counts.items()]


def encode_forced(row: Row, tokenizer: Tokenizer, ends: Sequence[int]) -> Encoded | None:
    """The row as it is asked and answered, labels on the answer up to its end: for one teacher-forced forward.

    None where only generation can tell whether the answer comes: the prompt alone has other tokens than the prompt
    with its answer, or reasoning may come between.
    """
    ends = ends or stop_ids(tokenizer)
    if any(token in response(row) for token in tokenizer.convert_ids_to_tokens(list(ends))):
        return None  # the answer itself holds what ends an answer: it cannot be generated whole
    prompt = prompt_ids(row, tokenizer)
    if "messages" not in row and isinstance(row["prompt"], str):
        ids = encode(row, tokenizer).input_ids
        end = tokenizer.eos_token_id
    else:
        conversation = conversation_of(row, tokenizer)
        message = conversation.messages[-1]
        turn = turn_of(tokenizer, conversation.kwargs)
        if turn.may_reason or any(message.get(key) for key in REASONING_KEYS):
            return None
        text = render_asked(conversation, tokenizer)
        if not conversation.messages[:-1]:  # nothing is asked: the template's header is all that comes before
            own = encode(row, tokenizer)
            prompt = own.input_ids[: next(i for i, label in enumerate(own.labels) if label != IGNORED)]
        ids, end = _tokens(text, tokenizer)[0], end_of_turn(tokenizer)
    if ids[: len(prompt)] != prompt or len(ids) == len(prompt):
        return None
    stop = next((i for i in range(len(prompt), len(ids)) if ids[i] in ends), None)
    if stop is None:  # a template that leaves the end of the last turn to what comes next
        ids = ids if end is None else [*ids, end]
        stop = len(ids) - 1
    return Encoded(ids[: stop + 1], [IGNORED] * len(prompt) + ids[len(prompt) : stop + 1])


def forced_rows(
    rows: Sequence[Row], pattern: AnswerPattern | None, tokenizer: Tokenizer, ends: Sequence[int] = ()
) -> list[Encoded] | None:
    """All rows as :func:`encode_forced` gives them, where one forward a row gives exact match; else None.

    The one rule for whether answers are judged by a forward pass or generated: scores and the checks before a run
    both ask here.

    Args:
        rows: evaluation rows of a task whose metric is exact_match.
        pattern: of the task.
        tokenizer: the model's.
        ends: ids that end an answer; none: those of the tokenizer and its chat template.

    Raises:
        CpiftError: the chat template refuses a row.
    """
    if not may_be_forced(rows, pattern):
        return None
    encoded = []
    for row in rows:
        forced = encode_forced(row, tokenizer, ends)
        if forced is None:
            return None
        encoded.append(forced)
    return encoded


def _mark(
    text: str, spans: list[tuple[int, int]], tokenizer: Tokenizer, add_special_tokens: bool, prompt: str | None
) -> tuple[list[int], list[int], bool]:
    """Token ids of ``text``; labels are the ids of tokens that hold a character of a span; does one begin before it?

    Behind a ``prompt`` all is labelled where its own ids and those of the text part, as TRL does.
    """
    encoded = tokenizer(
        text, add_special_tokens=add_special_tokens, return_offsets_mapping=True, return_special_tokens_mask=True
    )
    ids, labels, spanned = list(encoded["input_ids"]), list[int](), False
    for token, (start, end), added in zip(ids, encoded["offset_mapping"], encoded["special_tokens_mask"], strict=True):
        if start == end:  # blanks, of a tokenizer that trims its offsets: known by where they end
            start = end - 1
        inside = not added and any(start < last and end > first for first, last in spans)
        spanned |= inside and any(start < border < end for border, _ in spans)
        labels.append(token if inside else IGNORED)
    if prompt is not None:
        parted = common_length(ids, list(tokenizer(prompt, add_special_tokens=add_special_tokens)["input_ids"]))
        first = next((i for i, label in enumerate(labels) if label != IGNORED), 0)
        labels[parted:first] = ids[parted:first]
        spanned |= parted < first
    return ids, labels, spanned


def _tokens(text: str, tokenizer: Tokenizer) -> tuple[list[int], list[tuple[int, int]]]:
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    return list(encoded["input_ids"]), list(encoded["offset_mapping"])


def prompt_text(row: Row, tokenizer: Tokenizer) -> str:
    """All that stands before the last assistant turn, as the model is asked."""
    if "messages" not in row and isinstance(row["prompt"], str):
        return str(row["prompt"])
    conversation = conversation_of(row, tokenizer)
    return render_asked(conversation.part(conversation.messages[:-1]), tokenizer, add_generation_prompt=True)


def prompt_ids(row: Row, tokenizer: Tokenizer) -> list[int]:
    """Token ids of all that stands before the last assistant turn: what an answer is generated from."""
    text = prompt_text(row, tokenizer)
    if "messages" in row or not isinstance(row["prompt"], str):
        return _tokens(text, tokenizer)[0]
    ids = list(tokenizer(text)["input_ids"])
    return ids[:-1] if ids and ids[-1] == tokenizer.eos_token_id else ids
