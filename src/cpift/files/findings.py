"""Findings: what a stage warns of, and what to do about it. One table of codes; a new one is one line."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields, replace

REMEDIES: Mapping[str, str] = {
    "answer-not-by-pattern": "Correct the pattern, or the answers: the score of these rows can only be 0.",
    "answers-longer": "Raise the task's max_new_tokens: an answer that is cut off is wrong.",
    "batch-made-smaller": "Set the batch that was used (device_batch in stage.json) in the recipe: the next run then starts with it.",
    "bf16-weights": "Leave model.dtype out where memory allows: fp32 weights keep small updates. Read overlaps of these regions with care.",
    "checkpoints-differ": "Compare the files that it names; fuse only checkpoints with one tokenizer and chat template.",
    "core-filled": "Probe for longer (probe.steps) or at a higher learning rate, or lower region.percent: the region is larger than what moved.",
    "date-in-template": "Set chat_template_kwargs, such as date_string, so that every day's model is asked in one context.",
    "empty-region": "Raise region.percent.",
    "empty-responses": "Nothing, if these rows are meant to have none; otherwise look at the column of the responses.",
    "evaluation-in-training": "Take these rows out of one of the two sets: the score flatters otherwise.",
    "evaluation-rows-cut": "Raise training.max_length, or shorten the rows: cpift data shows their lengths.",
    "few-rows": "Nothing, or give the task more rows: it was trained on fewer than the recipe asks for.",
    "few-rows-to-refine": "Nothing, if the task has no more rows; otherwise give more rows or lower refine.examples_per_task, so that the sample is balanced.",
    "kept-rows-repeated": "Keep more rows (--keep), or lower protect.replay: rows seen this often are memorised, and their loss in training says little.",
    "longer-than-model": "Set training.max_length to the model's length or less, or leave the rows out.",
    "marks": "Look at the rendered rows (cpift data): what the loss is taken on may not be what you mean.",
    "no-end-token": "Set training.eos_token, or answers in plain text never end.",
    "no-outcome": "Look at the judge's prompt and model: a reply must end with a line that can be read. Differences leave the same rows out of both.",
    "no-pad-token": "Nothing, or set training.pad_token to a token that ends no answer.",
    "nothing-to-score": "Raise training.max_length, or give these rows an answer: they are not part of the score.",
    "one-group": "Raise group.threshold (the overlap figure shows what each τ would give), or read the result as multi-task SFT with fusion: nothing was frozen.",
    "protected-region": "Raise protect.percent, keep more rows, or choose another protect.by (docs/add.md).",
    "rows-cut": "Raise training.max_length, or shorten the rows: cpift data shows their lengths. What is cut off is not learnt.",
    "rows-left-out": "Raise training.max_length, or shorten the prompts: these rows taught nothing.",
    "two-precisions": "Remove the scores that it names and run again on one machine, or read small differences as nothing.",
    "unseen-tokens": "Nothing: no core position can lie in these rows. To count them out of the region's size, add the embedding to region.exclude.",
    "untrained-parameters": "Nothing, if they were frozen on purpose; to count them out of the region's size, name them in region.exclude.",
    "zero-updates-fp32": "Train with fp32 weights (autocast over them, as cpift does): what was rounded away in the training is not in the checkpoint.",
    "zero-updates-half": "Train and save the checkpoints in fp32: half precision rounds small updates away, and the region is then not the true one.",
}
"""What to do, by code. A text names no local path: findings are in the model card, which is published."""

OLDER = "older"
_GENERAL = "Look at the stage it names before you trust the scores."


@dataclass(frozen=True)
class Finding:
    """Something that a user should know before trusting a result.

    Attributes:
        code: its kind, one of :data:`REMEDIES`; :data:`OLDER` for a warning that an earlier version wrote as text.
        stage: the stage that owns it; empty before a stage has taken it, and for what concerns the whole run.
        text: one line.
        remedy: what to do.
    """

    code: str
    stage: str
    text: str
    remedy: str

    def of(self, stage: str) -> Finding:
        """The same, owned by a stage."""
        return replace(self, stage=stage)

    def to_dict(self) -> dict[str, str]:
        """For JSON."""
        return asdict(self)


def finding(code: str, text: str, stage: str = "") -> Finding:
    """A finding with the remedy of its code.

    Args:
        code: one of :data:`REMEDIES`.
        text: one line.
        stage: the stage that owns it.
    """
    return Finding(code, stage, text, REMEDIES[code])


def read_findings(record: Mapping[str, object], stage: str = "") -> list[Finding]:
    """The findings in a stage's facts, or in ``scores.json``.

    Args:
        record: with ``findings``, or with ``warnings`` as earlier versions wrote them, one text each.
        stage: the stage that owns texts of earlier versions.
    """
    names = {field.name for field in fields(Finding)}
    records, texts = record.get("findings"), record.get("warnings")
    found = [
        Finding(**{name: str(entry[name]) for name in names})
        for entry in (records if isinstance(records, list) else [])
        if isinstance(entry, dict) and names <= entry.keys()
    ]
    older = texts if isinstance(texts, list) else []
    return found + [Finding(OLDER, stage, text, _GENERAL) for text in older if isinstance(text, str)]


def distinct(found: Iterable[Finding]) -> list[Finding]:
    """Each text once, in their order; several stages may own the same. One with a known code is kept."""
    by_text: dict[str, Finding] = {}
    for one in found:
        if one.text not in by_text or by_text[one.text].code == OLDER:
            by_text[one.text] = one
    return list(by_text.values())
