"""Which fine-tunes are predicted to harm which skill: the part of a page, for ``cpift diff`` and for a run."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from math import isfinite

from cpift.files import layout
from cpift.metrics import brings_rows
from cpift.metrics.collision import EVIDENCE, Prediction, predicted, sentence
from cpift.metrics.loss import LOSS
from cpift.report.facts import FINISHED, STOPPED, RunFacts
from cpift.report.html import Html, bullets, element, paragraph, table
from cpift.report.provenance import without_path

HOW = (
    "Overlap describes, and does not predict harm. What does is the loss of a task's probe on another's rows; tasks that are "
    "scored otherwise have none here. This measures it (docs/diff.md):"
)
"""For tasks that are not scored by their loss."""
REMOVED = "The probes' weights are removed at the end (output.keep: final); run it before, or with output.keep: all."


def run_predictions(run: RunFacts) -> list[Prediction]:
    """Of each task that is scored by its loss: which of the other tasks would harm it most, by their probes' losses.

    Args:
        run: of which every probe is scored on every task.
    """
    found = []
    for task in run.tasks:
        entries = {
            model: row[task] for model, row in run.models.items() if task in row and isfinite(row[task]["score"])
        }
        probes = {other: entries.get(layout.probe_model(other)) for other in run.tasks}
        base, own = entries.get(layout.BASE_MODEL), probes.pop(task)
        others = {name: entry for name, entry in probes.items() if entry is not None}
        if base is not None and own is not None and own["metric"] == LOSS.name and len(others) > 1:
            found.append(predicted(task, base, own, others))
    return found


def prediction_parts(found: Sequence[Prediction]) -> list[Html]:
    """The order for each old skill, the losses behind it, and the evidence behind both.

    Args:
        found: one prediction an old skill, at least one.
    """
    rows: list[list[object]] = []
    for one in found:
        ranks = {name: place for place, group in enumerate(one.order, start=1) for name in group}
        rows.append([one.old, one.rows, "the base", one.base.text, None])
        rows.append([one.old, one.rows, f"{one.own.model} itself", one.own.text, None])
        rows += [[one.old, one.rows, loss.model, loss.text, ranks.get(loss.model)] for loss in one.others]
    headers = ["rows of", "rows", "scored", "loss, nats a token (95 %)", "predicted harm, 1 is most"]
    return [
        bullets([_begun(sentence(one)) for one in found]),
        table(headers, rows, text=(2,)),
        *(paragraph(text, "soft") for text in EVIDENCE),
    ]


def run_parts(run: RunFacts) -> list[Html]:
    """The section of a run: its predictions, or how to get them. Nothing of fewer than three tasks."""
    if not run.groups or len(run.tasks) < 3 or run.state not in (FINISHED, STOPPED):
        return []
    found = run_predictions(run)
    known = {one.old for one in found}
    missing = [task for task in run.tasks if task not in known and not brings_rows(run.recipe.tasks[task].metric)]
    return [*(prediction_parts(found) if found else []), *(_how(run, missing) if missing else [])]


def _how(run: RunFacts, tasks: Sequence[str]) -> list[Html]:
    """The command that predicts for tasks of the run, as it is typed beside the run folder."""
    place = f"{run.name}/stages"
    base = f"{place}/{layout.BASE}" if layout.BASE in run.stages else without_path(run.recipe.model)
    probes = [f"{task}={place}/{layout.probe(task)}" for task in run.tasks]
    rows = [word for task in tasks for word in ("--rows", f"{task}={place}/{layout.rows(task)}/{layout.EVAL_ROWS}")]
    command = element("code", shlex.join(["cpift", "diff", base, *probes, *rows]))
    removed = [paragraph(REMOVED, "soft")] if run.recipe.output.keep == "final" else []
    return [paragraph(HOW), command, *removed]


def _begun(text: str) -> str:
    return text[:1].upper() + text[1:]
