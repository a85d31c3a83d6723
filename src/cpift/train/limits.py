"""Rows against the model's own limits, before anything is trained: its vocabulary, its positions, what ends an answer.

Rows are encoded here only where a limit could be passed at all: most runs look at configurations alone.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import AutoConfig

from cpift.checkpoint.library import library
from cpift.checkpoint.reader import open_checkpoint
from cpift.data.encoded import encode_rows
from cpift.data.encoding import IGNORED, Encoded, forced_rows, prompt_ids
from cpift.data.lengths import WARN_FROM
from cpift.data.row_checks import Row
from cpift.data.templates import template_kwargs
from cpift.data.turns import stop_ids
from cpift.errors import CpiftError
from cpift.files.findings import Finding, finding
from cpift.metrics import WITHOUT_ANSWERS
from cpift.metrics.answers import AnswerPattern
from cpift.metrics.metric import Metric, Scoring

# A learnt vector for each position, by the names that models give it; and models whose code makes such a table.
_POSITION_TABLE = re.compile(r"(^|\.)(wpe|positions?_embed\w*|position_embd|embed_positions|pos_emb\w*)\.weight$")
_TABLE_IN_CODE = {"gptj", "codegen", "ctrl"}


@dataclass(frozen=True)
class Limits:
    """What a model has room for.

    Attributes:
        vocabulary: rows of its embedding; None if unknown.
        positions: tokens of its longest row; None if unknown.
        absolute: no row can be longer, as each position has an entry in a table; otherwise it was trained to that length.
    """

    vocabulary: int | None
    positions: int | None
    absolute: bool


@dataclass(frozen=True)
class Rows:
    """The rows of a task, and how they are used."""

    task: str
    train: Sequence[Row]
    evaluation: Sequence[Row]
    metric: Metric
    max_new_tokens: int
    max_length: int | None
    pattern: AnswerPattern | None = None

    def generates(self, tokenizer: Any) -> bool:
        """Are answers generated, or judged by one forward pass? The rule of the scores.

        Args:
            tokenizer: of the base.

        Raises:
            CpiftError: the chat template refuses a row.
        """
        if self.metric.scoring is Scoring.EXACT:
            return forced_rows(self.evaluation, self.pattern, tokenizer) is None
        return self.metric.scoring is Scoring.GENERATED


def limits_of(config: Any, names: Sequence[str]) -> Limits:
    """The limits by a model's configuration and the names of its parameters."""
    text = config.get_text_config()
    absolute = str(text.model_type) in _TABLE_IN_CODE or any(_POSITION_TABLE.search(name) for name in names)
    vocabulary, positions = getattr(text, "vocab_size", None), getattr(text, "max_position_embeddings", None)
    return Limits(_number(vocabulary), _number(positions), absolute)


def limits_of_place(model: Path, trust_remote_code: bool = False, base: Path | None = None) -> Limits:
    """The limits of a checkpoint or a GGUF file that transformers can load. No weights are read.

    Args:
        model: a folder, or a GGUF file.
        trust_remote_code: may code that lies in the folder be run?
        base: where the folder is an adapter's, the checkpoint that it is applied to.
    """
    if model.suffix == ".gguf":
        names = [tensor.name for tensor in library("gguf").GGUFReader(model).tensors]  # an extra
        return limits_of(AutoConfig.from_pretrained(model.parent, gguf_file=model.name), names)
    checkpoint = open_checkpoint(model, None if base is None else open_checkpoint(base))
    config = AutoConfig.from_pretrained(base or model, trust_remote_code=trust_remote_code, **checkpoint.resized)
    return limits_of(config, list(checkpoint.tensors))


def check_tokenizer(tokenizer: Any, limits: Limits, training: Mapping[str, Any]) -> list[Finding]:
    """Check the tokens that every training needs.

    Args:
        tokenizer: of the base.
        limits: of the base.
        training: the recipe's common settings.

    Returns:
        Warnings: which token pads, and that none ends an answer.

    Raises:
        CpiftError: there is nothing to pad with, or its id lies beyond the model's embedding.
    """
    end = training.get("eos_token") or tokenizer.eos_token
    pad = training.get("pad_token") or tokenizer.pad_token or end
    warnings = list[Finding]()
    if "strftime_now" in str(tokenizer.chat_template or "") and "date_string" not in template_kwargs(tokenizer):
        text = (
            "model: its chat template writes the date of the day, so that a model is asked in another context than it was "
            "trained in; set chat_template_kwargs, such as date_string: 26 Jul 2024, or a chat_template without it"
        )
        warnings.append(finding("date-in-template", text))
    if pad is None:
        raise CpiftError(
            "model: its tokenizer has neither a pad token nor an end token; name one of its tokens as training.pad_token, "
            "and the one that ends an answer as training.eos_token"
        )
    vocabulary = tokenizer.get_vocab()
    if pad not in vocabulary:
        raise CpiftError(f"training.pad_token: {pad!r} is not in the tokenizer's vocabulary; name one that is")
    for what, token in (("pad", pad), ("end", end)):
        if limits.vocabulary and token in vocabulary and vocabulary[token] >= limits.vocabulary:
            raise CpiftError(
                f"model: its {what} token {token!r} has id {vocabulary[token]}, its embedding {limits.vocabulary} rows; {_LARGER}"
            )
    if end is None:
        text = "model: its tokenizer has no end token; set training.eos_token, or answers in plain text never end"
        warnings.append(finding("no-end-token", text))
    elif tokenizer.pad_token is None and not training.get("pad_token"):
        text = f"model: its tokenizer has no pad token; {pad!r}, its end token, pads (set training.pad_token)"
        warnings.append(finding("no-pad-token", text))
    return warnings


_LARGER = (
    "the tokenizer is larger than the model: take the model's own, or enlarge the model first, by "
    "model.resize_token_embeddings(len(tokenizer))"
)


def check_generation(folder: Path, tasks: Sequence[str]) -> None:
    """Raise :class:`CpiftError` where ``generation_config.json`` has stop strings and these tasks generate answers."""
    try:
        settings = json.loads((folder / "generation_config.json").read_text())
    except (OSError, ValueError):
        return
    if tasks and isinstance(settings, dict) and settings.get("stop_strings"):
        raise CpiftError(
            f"{folder / 'generation_config.json'}: stop_strings are not supported, and tasks.{tasks[0]} generates its answers; "
            "take stop_strings out: an answer ends at the end of its turn"
        )


def check_fits(rows: Rows, tokenizer: Any, limits: Limits, generates: bool) -> list[Finding]:
    """Check a task's rows against what the model has room for.

    Args:
        rows: of one task.
        tokenizer: of the base.
        limits: of the base.
        generates: are the task's answers generated (:meth:`Rows.generates`)?

    Returns:
        Warnings: rows longer than the model was trained for.

    Raises:
        CpiftError: names the task, the row and what to do: ids beyond the embedding, rows beyond the positions, an empty
            prompt of an answer that is generated.
    """
    larger = limits.vocabulary is not None and _highest(tokenizer) >= limits.vocabulary
    open_ended = limits.positions is not None and (rows.max_length is None or rows.max_length > limits.positions)
    warnings = list[Finding]()
    if larger or open_ended:
        encoded = encode_rows(rows.train, tokenizer, rows.max_length)
        warnings += check_encoded(encoded, limits, tokenizer, f"tasks.{rows.task}: training row")
    scored = None if rows.metric.reads_whole_rows else rows.max_length
    if larger or open_ended or (scored is None and limits.absolute):
        encoded = encode_rows(rows.evaluation, tokenizer, scored)
        warnings += check_encoded(
            encoded, limits, tokenizer, f"tasks.{rows.task}: evaluation row", cut=scored is not None
        )
    if generates:
        warnings += _check_room(rows, tokenizer)
        warnings += _check_prompts(rows, tokenizer, limits)
    return warnings


def check_encoded(
    encoded: Sequence[Encoded], limits: Limits, tokenizer: Any, what: str, cut: bool = True
) -> list[Finding]:
    """Check encoded rows.

    Args:
        encoded: rows, in the order of their numbers.
        limits: of the model.
        tokenizer: for the name of a token.
        what: the rows' name, before their number.
        cut: does ``training.max_length`` cut these rows?

    Returns:
        Warnings: rows longer than the model was trained for.

    Raises:
        CpiftError: an id beyond the embedding, a row beyond the positions.
    """
    longer = []
    for number, row in enumerate(encoded, start=1):
        if limits.vocabulary and row.input_ids and max(row.input_ids) >= limits.vocabulary:
            token = max(row.input_ids)
            raise CpiftError(
                f"{what} {number} has the token {tokenizer.convert_ids_to_tokens(token)!r} with id {token}, "
                f"the model's embedding {limits.vocabulary} rows; {_LARGER}"
            )
        if limits.positions and len(row.input_ids) > limits.positions:
            longer.append((number, len(row.input_ids)))
    if not longer:
        return []
    remedy = f"set training.max_length to {limits.positions} or less" if cut else "leave it out, or shorten it"
    if limits.absolute:
        number, length = longer[0]
        raise CpiftError(
            f"{what} {number} has {length} tokens, and the model positions for {limits.positions}; {remedy}"
        )
    text = (
        f"{what}s: {len(longer)} of {len(encoded)} are longer than the {limits.positions} tokens that the model was made for "
        f"(the first: {longer[0][0]}, {longer[0][1]} tokens); {remedy}"
    )
    return [finding("longer-than-model", text)]


def _check_room(rows: Rows, tokenizer: Any) -> list[Finding]:
    """A warning where answers are longer than what is generated, so that they are never whole."""
    if rows.metric.scoring is Scoring.EXACT and rows.pattern is None:
        return []  # as much is generated as the longest answer has
    ends = set(stop_ids(tokenizer))
    lengths = [_answer_tokens(row.labels, ends) for row in encode_rows(rows.evaluation, tokenizer, None)]
    longer = [length for length in lengths if length > rows.max_new_tokens]
    if len(longer) < WARN_FROM * len(rows.evaluation) or not longer:
        return []
    text = (
        f"tasks.{rows.task}: {len(longer)} of {len(rows.evaluation)} evaluation answers are longer than max_new_tokens "
        f"{rows.max_new_tokens}, after which generation stops; the longest has {max(longer)} tokens; raise "
        f"tasks.{rows.task}.max_new_tokens"
    )
    return [finding("answers-longer", text)]


def _answer_tokens(labels: Sequence[int], ends: set[int]) -> int:
    """Tokens of the last answer, without what ends it."""
    stop = next((i + 1 for i in reversed(range(len(labels))) if labels[i] != IGNORED), 0)
    start = next((i + 1 for i in reversed(range(stop)) if labels[i] == IGNORED), 0)
    return next((i for i, label in enumerate(labels[start:stop]) if label in ends), stop - start)


def _check_prompts(rows: Rows, tokenizer: Any, limits: Limits) -> list[Finding]:
    over = 0
    for number, row in enumerate(rows.evaluation, start=1):
        where, length = f"tasks.{rows.task}: evaluation row {number}", len(prompt_ids(row, tokenizer))
        if not length:
            raise CpiftError(
                f"{where} has an empty prompt, and its answer is to be generated; give it a prompt, leave it out, or set "
                f"tasks.{rows.task}.metric to {WITHOUT_ANSWERS.name}"
            )
        if not limits.positions or length + rows.max_new_tokens <= limits.positions:
            continue
        over += 1
        if limits.absolute:
            raise CpiftError(
                f"{where}: its prompt of {length} tokens and max_new_tokens {rows.max_new_tokens} are more than the model's "
                f"{limits.positions} positions; lower tasks.{rows.task}.max_new_tokens, or leave the row out"
            )
    if not over:
        return []
    text = (
        f"tasks.{rows.task}: {over} evaluation prompts with max_new_tokens {rows.max_new_tokens} are longer than the "
        f"{limits.positions} tokens that the model was made for"
    )
    return [finding("longer-than-model", text)]


def _highest(tokenizer: Any) -> int:
    return max(tokenizer.get_vocab().values(), default=-1)


def _number(value: Any) -> int | None:
    return value if isinstance(value, int) and value > 0 else None
