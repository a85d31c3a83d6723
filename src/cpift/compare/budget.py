"""Equal tokens: every method sees as many training tokens in all as CPI-FT does."""

from __future__ import annotations

from pathlib import Path

from cpift.compare.jobs import Job, siblings
from cpift.compare.methods import METHODS, REFERENCE
from cpift.compare.methods.method import Budgeting
from cpift.compare.workbench import Work
from cpift.console.reporter import Reporter
from cpift.errors import CpiftError
from cpift.files.layout import Kind
from cpift.recipe.recipe import Recipe
from cpift.runs.steps import probe_epochs, probe_steps

TOLERANCE = 0.02  # relative deviation from the token budget above which a warning is raised


def equal_tokens(recipe: Recipe, mine: Recipe, out: Path, job: Job, reporter: Reporter) -> tuple[Recipe, float]:
    """The recipe with its probes (and so its backbone) lengthened or cut so that all its training sees the tokens of
    CPI-FT as ``recipe`` has it; and how many these are."""
    from cpift.train.config import batch_rows

    seed, place = recipe.changed({"seed": job.seed}), out / "seeds" / Job("paper", REFERENCE, job.seed).folder
    plain = Work(seed, place, siblings(out, job), reporter, None)
    plain.cpi_ft()
    total = plain.spent()
    method = METHODS[job.name]
    if method.budgeting is Budgeting.OWN:
        return mine, total
    batches = [batch_rows(r.training_of("probe")) for r in (mine, plain.run.recipe)]
    steps = probe_steps(plain.run) if mine.probe.steps == "auto" else int(mine.probe.steps)
    longer = steps * batches[0] / (probe_steps(plain.run) * batches[1])  # than the probes of cpi_ft
    stretched, fixed, epochs = longer * plain.spent(Kind.PROBE), 0.0, mine.backbone.epochs
    pipeline = method.budgeting is Budgeting.PIPELINE
    backbone = pipeline and mine.backbone.trained
    if backbone:
        passes = longer * probe_epochs(plain.run) if epochs == "auto" else float(epochs)
        stretched += passes * plain.pooled_tokens(_trained_together(plain, mine))
    if pipeline:
        groups = plain.run.groups() or []
        part = mine.refine
        mixed = part.data == "mixed"
        one_pass = plain.pooled_tokens([plain.tasks] if mixed else groups, part.examples_per_task)
        times = len(groups) if mixed else 1
        fixed = 0.0 if not method.refines else part.epochs * times * one_pass
    factor = (total - fixed) / stretched
    if factor <= 0:
        raise CpiftError(
            f"{job.method}: its refine stage alone sees more tokens than all of {REFERENCE}; lower refine.epochs"
        )
    if abs(factor - 1) < TOLERANCE / 2:
        return mine, total
    mine = mine.changed({"probe.steps": max(1, round(factor * steps))})
    if backbone:
        # A few steps see more or fewer tokens than the mean row's: the backbone gets what is left.
        probed = Work(mine, out / "seeds" / job.folder, siblings(out, job), reporter, None)
        probed.probe()
        left = total - fixed - probed.spent(Kind.PROBE)
        mine = mine.changed({"backbone.epochs": max(left, 1.0) / plain.pooled_tokens(_trained_together(plain, mine))})
    return mine, total


def _trained_together(plain: Work, recipe: Recipe) -> list[list[str]]:
    """The groups of tasks that the backbone trains on one after the other."""
    groups = plain.run.groups()
    return recipe.backbone.stages(groups, plain.tasks) if groups else [plain.tasks]
