"""Losses of fine-tuned checkpoints on the rows of one another's skills: what predicts which of them collide.

All models read the rows of a skill by the tokenizer and chat template of that skill's own model: their losses are over
the same tokens, and a base without a chat template can be scored.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from cpift.checkpoint.reader import open_checkpoint
from cpift.console.format import size
from cpift.console.progress import Counter
from cpift.console.reporter import Reporter
from cpift.data.encoding import Encoded, encode_all
from cpift.data.row_checks import Row
from cpift.data.rows import sample
from cpift.data.sources import SourceFacts, source_rows
from cpift.data.store import RowWriter
from cpift.errors import CpiftError, OutOfMemory, did_you_mean
from cpift.evaluation.forced import teacher_forced
from cpift.evaluation.opened import Opened
from cpift.evaluation.task import EvalTask
from cpift.metrics import brings_rows
from cpift.metrics.collision import Prediction, not_learnt, predicted
from cpift.metrics.loss import LOSS
from cpift.metrics.score import ScoreEntry
from cpift.recipe.task import Task
from cpift.train.accelerator import frees_memory
from cpift.train.limits import check_encoded, limits_of
from cpift.train.models import load_tokenizer
from cpift.typing import Tokenizer

BASE = "base"  # in messages; the base has no name of its own among the models


@dataclass(frozen=True)
class Skill:
    """Rows of what one of the models has learnt.

    Attributes:
        name: of the model.
        encoded: its rows, by that model's tokenizer.
        tokenizer: of that model.
        notes: what a user should know of the rows.
    """

    name: str
    encoded: list[Encoded]
    tokenizer: Tokenizer
    notes: list[str]


def read_skills(
    base: Path,
    models: Mapping[str, Path],
    files: Mapping[str, str],
    *,
    rows: int = 64,
    seed: int = 0,
    max_length: int = 1024,
) -> list[Skill]:
    """Read and tokenize the rows of skills. No weights are read.

    Args:
        base: the checkpoint that all models were fine-tuned from.
        models: the fine-tuned checkpoints by name.
        files: rows by the name of a model: a file, a folder or a data set id.
        rows: rows drawn of each, at most.
        seed: of the draw.
        max_length: tokens after which a row is cut.

    Raises:
        CpiftError: a name that is none of the models, rows that cannot be read or have nothing to score, no tokenizer or
            chat template.
    """
    for name in files:
        if name not in models:
            hint = did_you_mean(name, models)
            raise CpiftError(f"--rows {name}: is none of the checkpoints ({', '.join(models)}){hint}")
    if len(models) < 2:
        raise CpiftError(
            "--rows: a collision takes two fine-tuned checkpoints; write cpift diff BASE A B --rows A=FILE"
        )
    given = {name: _read(name, path, rows, seed) for name, path in files.items()}
    tokenizers = {name: _tokenizer(path, base, name in files) for name, path in models.items()}
    skills = []
    for name, read in given.items():
        own = tokenizers[name]
        assert own is not None
        encoded, notes = _encoded(name, read, own, max_length)
        others = {other: tokenizer for other, tokenizer in tokenizers.items() if other != name}
        unlike = [other for other, theirs in others.items() if not _reads_alike(theirs, read, encoded, max_length)]
        if unlike:
            notes.append(
                f"--rows {name}: {', '.join(unlike)} would read these rows by another tokenizer or chat template than {name}; "
                f"all read them by {name}'s, and nothing is measured of such a case"
            )
        skills.append(Skill(name, encoded, own, notes))
    return skills


def predict_collisions(
    base: Path, models: Mapping[str, Path], skills: Sequence[Skill], reporter: Reporter
) -> list[Prediction]:
    """Score all models on the rows of the skills, one model after the other, and predict who harms whom most.

    Memory: one model in fp32, and the logits of a batch.

    Args:
        base: the checkpoint that all models were fine-tuned from.
        models: the fine-tuned checkpoints by name.
        skills: what :func:`read_skills` gave.
        reporter: receives warnings and progress.

    Raises:
        CpiftError: a checkpoint that cannot be loaded; tokens that it has no embedding for.
        OutOfMemory: there is no room for a model, or for one row.
    """
    origin = open_checkpoint(base)
    checkpoints = [origin, *(open_checkpoint(path, origin) for path in models.values())]
    largest = max(sum(tensor.size for tensor in checkpoint.tensors.values()) for checkpoint in checkpoints)
    rows = sum(len(skill.encoded) for skill in skills)
    reporter.message(
        f"{len(checkpoints)} models are scored on {rows} rows, one at a time: {size(4 * largest)} each in fp32, and some for a batch"
    )
    for skill in skills:
        for note in skill.notes:
            reporter.warning(note)
    counter = Counter(reporter, len(checkpoints) * rows, "rows")
    reference = _losses(BASE, base, None, skills, reporter, counter)
    entries = {name: _losses(name, path, base, skills, reporter, counter) for name, path in models.items()}
    found = [
        predicted(
            skill.name,
            reference[skill.name],
            entries[skill.name][skill.name],
            {name: entries[name][skill.name] for name in models if name != skill.name},
        )
        for skill in skills
    ]
    for text in not_learnt(found):
        reporter.warning(text)
    return found


@frees_memory
def _losses(
    name: str, model: Path, base: Path | None, skills: Sequence[Skill], reporter: Reporter, counter: Counter
) -> dict[str, ScoreEntry]:
    """The losses of one model, by skill; at the end it is let go of."""
    found: dict[str, ScoreEntry] = {}
    with Opened(model, base=base).scoring() as network:
        limits = limits_of(network.config, [parameter for parameter, _ in network.named_parameters()])
        for skill in skills:
            what = f"{name} on --rows {skill.name}: row"
            for warning in check_encoded(skill.encoded, limits, skill.tokenizer, what, cut=False):
                reporter.warning(warning.text)
            task = EvalTask([], LOSS.name)
            try:
                score = teacher_forced(network, skill.tokenizer, task, skill.encoded, counter)
            except OutOfMemory as error:
                raise OutOfMemory(f"{name} on --rows {skill.name}: {error}; lower --max-length") from error
            if not math.isfinite(score.score):
                raise CpiftError(f"{name} on --rows {skill.name}: its loss is not a finite number")
            found[skill.name] = score.to_dict()
    return found


def _read(name: str, path: str, count: int, seed: int) -> Sequence[Row]:
    """Rows drawn by seed, checked."""
    if brings_rows(path):
        raise CpiftError(f"--rows {name}: {path} is a benchmark, whose items have no loss; give a file of rows")
    (source,) = Task.model_validate({"train": path, "eval": path}).sources("eval")
    with RowWriter() as writer:
        try:
            for where, row in source_rows(source, SourceFacts(path)):  # rows without a response are no rows
                writer.add(row, where)
        except CpiftError as error:
            raise CpiftError(f"--rows {name}: {error}") from error
        return sample(writer.rows(), count, seed, name)


def _encoded(name: str, rows: Sequence[Row], tokenizer: Tokenizer, max_length: int) -> tuple[list[Encoded], list[str]]:
    """The rows that have a token to score, and what to know of them."""
    chats = any("messages" in row or not isinstance(row["prompt"], str) for row in rows)
    if chats and not tokenizer.chat_template:
        raise CpiftError(
            f"--rows {name}: these are conversations, and {name} has no chat template; give rows of prompt and completion"
        )
    try:
        encoded, left_out = encode_all(rows, tokenizer, max_length)
    except CpiftError as error:
        raise CpiftError(f"--rows {name}: {error}") from error
    if not encoded:
        raise CpiftError(f"--rows {name}: no row has a token to score within {max_length} tokens; raise --max-length")
    text = f"--rows {name}: {left_out} of {len(rows)} rows have nothing to score within {max_length} tokens and are left out"
    return encoded, [text] if left_out else []


def _tokenizer(model: Path, base: Path, needed: bool) -> Tokenizer | None:
    """A model's tokenizer; None where it has none that loads, and none is needed."""
    try:
        return load_tokenizer(model, base=base)
    except CpiftError:
        if needed:
            raise
        return None


def _reads_alike(tokenizer: Tokenizer | None, rows: Sequence[Row], encoded: Sequence[Encoded], max_length: int) -> bool:
    """Would a model read the rows by the same tokens? Of one that cannot read them, False."""
    if tokenizer is None:
        return False
    try:
        own, _ = encode_all(rows, tokenizer, max_length)
    except CpiftError:
        return False
    return [row.input_ids for row in own] == [row.input_ids for row in encoded]
