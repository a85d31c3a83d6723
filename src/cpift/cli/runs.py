"""Runs and their recipes: ``cpift run``, ``plan``, ``status``, ``report``, ``init``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from cpift.cli.options import (
    Address,
    EngineName,
    GpusPerJob,
    Mirror,
    RecipePath,
    Sets,
    load_recipe,
    overrides,
    terminal,
    write_text,
)
from cpift.errors import CpiftError
from cpift.files.layout import RunLayout

if TYPE_CHECKING:
    from cpift.metrics.score import ScoresRecord
    from cpift.recipe.recipe import Recipe


def run(
    recipe: RecipePath,
    out: Annotated[Path, typer.Option(help="The run folder. Called again with the same folder, the run resumes.")],
    sets: Sets = None,
    until: Annotated[
        str | None,
        typer.Option(metavar="STAGE", help="Stop after probe, identify, group, backbone, fuse, refine or evaluate."),
    ] = None,
    mirror: Mirror = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show what is done and what would be done, and stop.")
    ] = False,
    engine: EngineName = "local",
    jobs: Annotated[
        int | None,
        typer.Option(
            metavar="N", help="Probes or scores in parallel; by default 1, under Ray what the cluster has room for."
        ),
    ] = None,
    address: Address = None,
    gpus_per_job: GpusPerJob = None,
) -> None:
    """Run the whole method: from a base model and several data sets to one model.

    Probes each task alone, identifies their core regions, groups the tasks, trains a backbone, fuses, refines, and scores
    every model on every task. Finished stages that are unchanged are skipped. Interrupted and started again, it resumes.
    """
    from cpift.console.scores import scores_table
    from cpift.console.terminal import say
    from cpift.recipe.yaml import origins

    loaded = load_recipe(recipe, sets)
    from cpift.distributed.engine import make_engine
    from cpift.runs.mirror import Mirror as Copy
    from cpift.runs.pipeline import check
    from cpift.runs.pipeline import run as run_all

    workers = make_engine(engine, jobs, address, gpus_per_job, say)
    if dry_run:
        check(loaded, out)
        if mirror is not None:
            held = Copy(mirror, loaded, out).held
            say(f"the mirror holds {len(held)} finished stages; those that fit are copied back instead of computed")
        _show_status(loaded, out)
        return
    with terminal() as shown:
        given = origins(recipe, overrides(sets))
        result = run_all(loaded, out, until=until, reporter=shown, given=given, engine=workers, mirror=mirror)
    if result:
        scores_table(cast("ScoresRecord", result))
        if RunLayout(out).report.is_file():
            say(f"\nwhat happened to each task: {out / 'report.html'}")
        say(f"\nthe model is in {out / 'model'}; this line loads it:")
        say(f'from transformers import AutoModelForCausalLM as A; model = A.from_pretrained("{RunLayout(out).model}")')


def plan(
    recipe: RecipePath,
    sets: Sets = None,
    measure: Annotated[
        bool, typer.Option("--measure", help="Time a few steps on this machine, and predict the rest.")
    ] = False,
    gpus: Annotated[
        int | None,
        typer.Option(metavar="N", help="Also the memory of each of N GPUs, by sharding, and which cards have it."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    out: Annotated[
        Path | None,
        typer.Option(help="A run folder: keep the plan there, and the report compares it with the actual cost."),
    ] = None,
) -> None:
    """Predict what a run costs: parameters, steps, tokens, memory, disk, and with --measure the time.

    Writes nothing without --out. Rows are loaded and tokenized to count them.
    """
    loaded = load_recipe(recipe, sets)
    from cpift.console.terminal import say
    from cpift.planning.plan import plan as make_plan
    from cpift.planning.show import show

    result = make_plan(loaded, measure=measure, gpus=gpus)
    if out is not None:
        write_text(RunLayout(out).plan, json.dumps(result) + "\n")
    if as_json:
        print(json.dumps(result, indent=1))
    else:
        show(result, say)


def status(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A run folder.")],
) -> None:
    """Show a run's stages: done, running, missing or stale, and why."""
    from cpift.recipe.recipe import Recipe

    if not RunLayout(folder).recipe.is_file():
        raise CpiftError(f"{folder}: holds no run; cpift run RECIPE --out {folder} starts one")
    _show_status(Recipe.load(RunLayout(folder).recipe), folder)


def report(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A run folder, or the folder of a comparison.")],
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The page to write; by default report.html in the folder.")
    ] = None,
) -> None:
    """Write one HTML page that shows what happened to each task, whether the run is finished, running or failed.

    The page is self-contained: it loads nothing from a network. It is drawn from the JSON files of the folder.
    """
    from cpift.console.terminal import say
    from cpift.report import make_report

    say(f"wrote {make_report(folder, out)}")


def init(
    out: Annotated[Path, typer.Argument(metavar="FILE", help="The recipe to write.")] = Path("recipe.yaml"),
) -> None:
    """Write a commented recipe to start from."""
    from cpift.recipe.template import template

    if out.exists():
        raise CpiftError(f"{out}: exists; name another file, or remove it")
    write_text(out, template())
    print(f"wrote {out}; edit it, then: cpift plan {out}")


def _show_status(recipe: Recipe, folder: Path) -> None:
    from cpift.console.terminal import say
    from cpift.runs.status import stage_states

    for state in stage_states(recipe, folder):
        say(f"{state.state:8} {state.name}" + (f"  ({state.why})" if state.why else ""))
