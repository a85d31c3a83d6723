"""Scores of a model on the tasks: exact match, generated answers, loss; one outcome an item."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from cpift.data.encoded import encode_rows
from cpift.data.encoding import Encoded, forced_rows
from cpift.data.healing import Start, starts
from cpift.data.turns import stop_ids
from cpift.distributed.sharing import ALONE, Share
from cpift.errors import CpiftError, OutOfMemory, is_out_of_memory
from cpift.evaluation.backends import Backend, Loaded, open_backend, precision_of
from cpift.evaluation.forced import teacher_forced
from cpift.evaluation.generation import generate
from cpift.evaluation.harness import score_lm_eval
from cpift.evaluation.known import Known, row_key, score_of, text_key
from cpift.evaluation.opened import Opened
from cpift.evaluation.options import score_options
from cpift.evaluation.task import EvalTask, Score, left_out_warning, notes_message, scoring_identity
from cpift.metrics.answers import references
from cpift.metrics.metric import Scoring
from cpift.train import accelerator
from cpift.train.accelerator import frees_memory
from cpift.typing import Network, Tokenizer

__all__ = [
    "EvalTask",
    "Score",
    "answers",
    "evaluate",
    "forwarded_rows",
    "generate",
    "left_out_warning",
    "notes_message",
    "score_task",
    "scoring_identity",
]


@frees_memory
def evaluate(
    model: str | Path | Opened,
    tasks: Mapping[str, EvalTask],
    *,
    max_length: int | None = None,
    progress: Callable[[int], None] = lambda rows: None,
    generation: str = "transformers",
    known: Known | None = None,
    share: Share = ALONE,
) -> dict[str, Score]:
    """Score a checkpoint, or an adapter merged into its base, on tasks by their metrics.

    On a processor in fp32; under bf16 autocast over fp32 weights on an accelerator that has it. Exact match without a
    pattern takes one teacher-forced forward, in which every token to the end of the turn must be the argmax. Where the
    prompt alone has other tokens than the prompt with its answer, or reasoning may come first, the answer is generated.

    Args:
        model: a checkpoint, or an adapter, loaded with all settings by default; or an open one.
        tasks: what to score, by name.
        max_length: tokens of a row that a loss is taken over; None: all. Rows without any are left out and counted.
        progress: called with the number of rows done.
        generation: by what answers are generated, a name in :data:`cpift.recipe.generation.GENERATION`.
        known: from earlier scoring of the same model; what is new is added to it. Where nothing is new, no model is loaded.
        share: of this process, where several score the model together. The first one's ``known`` counts, and it returns the
            scores, the others an empty table.

    Raises:
        CpiftError: no row of a task has a token to score.
        OutOfMemory: names the task, the row's length and the device, where there is no memory for one row.
    """
    known = known or Known()
    model = Opened.of(model)
    scores = _scored_before(model, tasks, max_length, known, precision_of(generation, model.precision))
    progress = _counted(progress, sum(len(task.rows) for task in tasks.values()), share)
    for name in scores:
        progress(len(tasks[name].rows))
    if due := {name: tasks[name] for name in share.gather([name for name in tasks if name not in scores])[0]}:
        loaded = Loaded(model.network, model.path, model.precision, model.trust_remote_code)
        with model.scoring() as network, open_backend(generation, loaded) as backend:
            for name, task in due.items():
                try:
                    scores[name] = score_task(
                        network, model.tokenizer, task, max_length, progress, known, share, backend
                    )
                except Exception as error:
                    if not is_out_of_memory(error):
                        raise
                    text = error if isinstance(error, OutOfMemory) else f"out of memory on {accelerator.lacking(error)}"
                    shorter = "training.max_length" if task.kind.cuts_rows else f"tasks.{name}.max_new_tokens"
                    raise OutOfMemory(f"{name}: {text}; leave out the longest rows, or lower {shorter}") from error
    if share.index:
        return {}
    for name, task in tasks.items():
        if not scores[name].items:
            raise CpiftError(f"tasks.{name}: {_nothing(task)}")
    if known.store is not None:
        known.store.prune()
    return {name: replace(scores[name], precision=scores[name].precision or model.precision) for name in tasks}


def _counted(progress: Callable[[int], None], total: int, share: Share) -> Callable[[int], None]:
    """Progress of all processes, taken to be as fast as this one."""
    done = 0

    def count(rows: int) -> None:
        nonlocal done
        more = min(rows * share.count, total - done)
        done += more
        progress(more)

    return progress if share.count == 1 else count


def _scored_before(
    model: Opened, tasks: Mapping[str, EvalTask], max_length: int | None, known: Known, generated: str
) -> dict[str, Score]:
    """Scores of the tasks of which every answer or outcome is known; the model is not needed."""
    scores: dict[str, Score] = {}
    if known.store is None:
        return scores
    for name, task in tasks.items():
        if task.kind.brings_rows:
            continue  # what its items are, lm-eval finds out beside the model
        if task.kind.scoring is not Scoring.GENERATED:
            section, keys = known.outcomes(task, max_length), [row_key(row) for row in task.rows]
            if not section.missing(keys):
                scores[name] = score_of(task, section.outcomes(keys, task.kind.cuts_rows), len(keys))
        elif (section := known.texts(task.max_new_tokens)).values:
            keys = _text_keys(task, starts(task.rows, model.tokenizer))
            if not section.missing(keys):
                scores[name] = _judged(task, [section.values[key] for key in keys], len(keys), generated)
    return scores


def _nothing(task: EvalTask) -> str:
    if task.kind.cuts_rows:
        return "no evaluation row has a token to score; raise training.max_length"
    return f"no reply of {task.metric} could be read; look at its prompt and its model"


def forwarded_rows(
    network: Network, tokenizer: Tokenizer, task: EvalTask, max_length: int | None
) -> list[Encoded] | None:
    """The rows where one teacher-forced forward gives the score of the task; None where it must be generated."""
    if task.kind.scoring is Scoring.LOSS:
        return list(encode_rows(task.rows, tokenizer, max_length))
    if task.kind.scoring is not Scoring.EXACT:
        return None
    return forced_rows(task.rows, task.answer_pattern, tokenizer, stop_ids(tokenizer, network))


def score_task(
    network: Network,
    tokenizer: Tokenizer,
    task: EvalTask,
    max_length: int | None,
    progress: Callable[[int], None] = lambda rows: None,
    known: Known | None = None,
    share: Share = ALONE,
    backend: Backend | None = None,
) -> Score:
    """The score of one task, of a model that is in memory; of rows that are not known yet, the others are as they were.

    Its precision is left empty, but of a backend's answers. In a process that does not lead it is empty.
    """
    if task.kind.brings_rows:
        return score_lm_eval(network, tokenizer, task, share, known)
    known = known or Known()
    encoded: list[Encoded] | None = None
    if task.kind.scoring is not Scoring.OPTIONS:
        encoded = forwarded_rows(network, tokenizer, task, max_length)
        if encoded is None:  # answers are generated
            texts, reused = answers(network, tokenizer, task, progress, known, share, backend)
            if share.index:  # answers are judged once: a judge may cost money
                return score_of(task, [])
            return _judged(task, texts, reused, "" if backend is None else backend.precision)
    section, keys = known.outcomes(task, max_length), [row_key(row) for row in task.rows]
    missing = share.gather(section.missing(keys))[0]
    progress(len(keys) - len(missing))
    if missing:
        some = replace(task, rows=[task.rows[i] for i in missing])
        if encoded is None:
            new = score_options(network, tokenizer, some, progress, share)
        else:
            new = teacher_forced(network, tokenizer, some, [encoded[i] for i in missing], progress, share)
        outcomes: dict[str, tuple[str | float, int]] = {keys[i]: (0.0, 0) for i in missing}  # without a token to score
        places = new.rows if new.rows is not None else range(len(missing))
        for place, item, count in zip(places, new.items, new.tokens, strict=True):
            outcomes[keys[missing[place]]] = item, count
        section.keep(outcomes)
    if share.index:
        return score_of(task, [])
    return score_of(task, section.outcomes(keys, task.kind.cuts_rows), len(keys) - len(missing))


def answers(
    network: Network,
    tokenizer: Tokenizer,
    task: EvalTask,
    progress: Callable[[int], None] = lambda rows: None,
    known: Known | None = None,
    share: Share = ALONE,
    backend: Backend | None = None,
) -> tuple[list[tuple[str | float, int]], int]:
    """What the model answers to each row of a task, with the number of tokens; and how many answers were known.

    Nothing in a process that does not lead.
    """
    longest = task.max_new_tokens
    if task.kind.scoring is Scoring.EXACT and not task.pattern:  # the whole answer counts, however long
        longest = max(longest, *(2 * len(tokenizer(a)["input_ids"]) for row in task.rows for a in references(row)))
    section, begun = (known or Known()).texts(longest), starts(task.rows, tokenizer)
    keys = _text_keys(task, begun)
    missing = share.gather(section.missing(keys))[0]
    progress(len(keys) - len(missing))
    texts = {i: section.values[key] for i, key in enumerate(keys) if key in section.values}
    if missing:
        rows = [task.rows[i] for i in missing]
        starts_of = [begun[i] for i in missing]
        new = generate(network, tokenizer, rows, longest, progress, starts_of, share, backend)
        texts |= zip(missing, new, strict=True)
        section.keep({keys[i]: text for i, text in zip(missing, new, strict=True)})
    if share.index:
        return [], 0
    return [texts[i] for i in range(len(keys))], len(keys) - len(missing)


def _text_keys(task: EvalTask, begun: Sequence[Start]) -> list[str]:
    return [text_key(start.ids, start.rest, row) for start, row in zip(begun, task.rows, strict=True)]


def _judged(task: EvalTask, texts: Sequence[tuple[str | float, int]], reused: int, precision: str) -> Score:
    judged = task.kind.judged(task.asked, [str(text) for text, _ in texts], task.rows)
    pairs = zip(judged.items, texts, strict=True)
    outcomes = [None if item is None else (item, count) for item, (_, count) in pairs]
    return replace(score_of(task, outcomes, reused), notes=judged.notes, precision=precision)
