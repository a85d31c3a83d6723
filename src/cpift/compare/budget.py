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
from cpift.train.config import batch_rows

TOLERANCE = 0.02  # relative deviation from the token budget above which a warning is raised


def equal_tokens(recipe: Recipe, own: Recipe, out: Path, job: Job, reporter: Reporter) -> tuple[Recipe, float]:
    """Lengthen or cut a method's probes, and so its backbone, so that it trains on as many tokens as CPI-FT.

    Args:
        recipe: of the comparison; its tokens under CPI-FT are the budget.
        own: the recipe with the method's own settings and seed.
        out: folder of the comparison.
        job: the method, its budget and its seed.
        reporter: receives progress.

    Returns:
        The changed recipe, and the budget in tokens.

    Raises:
        CpiftError: the refine stage alone takes more than the budget.
    """
    seed, place = recipe.changed({"seed": job.seed}), out / "seeds" / Job("paper", REFERENCE, job.seed).folder
    plain = Work(seed, place, siblings(out, job), reporter, None)
    plain.cpi_ft()
    total = plain.spent()
    method = METHODS[job.name]
    if method.budgeting is Budgeting.OWN:
        return own, total
    batches = [batch_rows(r.training_of("probe")) for r in (own, plain.run.recipe)]
    steps = probe_steps(plain.run) if own.probe.steps == "auto" else int(own.probe.steps)
    longer = steps * batches[0] / (probe_steps(plain.run) * batches[1])  # than the probes of cpi_ft
    stretched, fixed, epochs = longer * plain.spent(Kind.PROBE), 0.0, own.backbone.epochs
    pipeline = method.budgeting is Budgeting.PIPELINE
    backbone = pipeline and own.backbone.trained
    if backbone:
        passes = longer * probe_epochs(plain.run) if epochs == "auto" else float(epochs)
        stretched += passes * plain.pooled_tokens(_trained_together(plain, own))
    if pipeline:
        groups = plain.run.groups() or []
        part = own.refine
        mixed = part.data == "mixed"
        one_pass = plain.pooled_tokens([plain.tasks] if mixed else groups, part.examples_per_task)
        times = len(groups) if mixed else 1
        fixed = 0.0 if not method.refines else part.epochs * times * one_pass
        fixed += plain.region_tokens(plain.tasks, own)
        if method.refines:
            fixed += part.epochs * plain.replayed_tokens(groups, own)
    factor = (total - fixed) / stretched
    if factor <= 0:
        raise CpiftError(
            f"{job.method}: what it sees beside probes and backbone is more than all of {REFERENCE}; "
            "lower refine.epochs or region.rows"
        )
    if abs(factor - 1) < TOLERANCE / 2:
        return own, total
    own = own.changed({"probe.steps": max(1, round(factor * steps))})
    if backbone:
        # A few steps see more or fewer tokens than the mean row's: the backbone gets what is left.
        probed = Work(own, out / "seeds" / job.folder, siblings(out, job), reporter, None)
        probed.probe()
        left = total - fixed - probed.spent(Kind.PROBE)
        own = own.changed({"backbone.epochs": max(left, 1.0) / plain.pooled_tokens(_trained_together(plain, own))})
    return own, total


def _trained_together(plain: Work, recipe: Recipe) -> list[list[str]]:
    """The groups of tasks that the backbone trains on one after the other."""
    groups = plain.run.groups()
    return recipe.backbone.stages(groups, plain.tasks) if groups else [plain.tasks]
