"""``cpift evaluate``: scores of any models, on a recipe's tasks or on files."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cpift.cli.diff import named_models
from cpift.cli.options import Sets, named_paths, overrides, write_text
from cpift.errors import CpiftError

if TYPE_CHECKING:
    from cpift.evaluation.side_by_side import SideBySide
    from cpift.recipe.recipe import Recipe

_MODEL_FILES = (".gguf", ".safetensors")


def evaluate(
    models: Annotated[
        list[str],
        typer.Argument(
            metavar="MODEL... [RECIPE]",
            help="Checkpoint folders, folders of adapters, or hub ids with or without @revision; NAME=MODEL gives a name. "
            "A recipe at the end gives the tasks.",
        ),
    ],
    task: Annotated[
        list[str] | None,
        typer.Option(
            "--task",
            metavar="NAME=ROWS",
            help="In place of a recipe: a file of evaluation rows, a hub id, or a benchmark as lm_eval:TASK.",
        ),
    ] = None,
    metric: Annotated[
        list[str] | None,
        typer.Option(
            "--metric", metavar="[NAME=]METRIC", help="Of all tasks, or of one; see below. By default by the rows."
        ),
    ] = None,
    rows: Annotated[
        int | None, typer.Option(min=1, help="Score only this number of rows a task, drawn by seed.")
    ] = None,
    base: Annotated[
        str | None, typer.Option(metavar="BASE", help="Of an adapter; by default the one that it names.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Where to write the scores, JSON; by default scores.json, with --json nowhere.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON in place of the tables.")] = False,
    cache: Annotated[
        Path | None,
        typer.Option(
            help="Folder of answers and outcomes scored before; by default scores in CPIFT_CACHE or ~/.cache/cpift."
        ),
    ] = None,
    no_cache: Annotated[bool, typer.Option("--no-cache", help="Score every row anew, and keep nothing.")] = False,
    sets: Sets = None,
) -> None:
    """Score models on tasks, several side by side.

    \b
    cpift evaluate runs/mine/model recipe.yaml
    cpift evaluate org/base ./tuned --task maths=test.jsonl --metric exact_match
    cpift evaluate ./lora --task maths=test.jsonl --set "tasks.maths.pattern='#### (.+)'"

    Each score has its 95 % interval. Of several models, each is compared with the first, row by row: a difference whose
    interval holds zero is noise. What was scored before is not scored again, as long as model, row and settings stay.
    Under torchrun the rows are shared out.
    """  # noqa: D301 - the help is made of it: its first lines stay apart
    from cpift.cache import cache_folder
    from cpift.checkpoint.hub import checkpoint_place
    from cpift.console.reporter import Reporter
    from cpift.console.terminal import BesideJson, Terminal
    from cpift.distributed import ranks
    from cpift.evaluation.recipe import eval_tasks, score_model
    from cpift.evaluation.side_by_side import SideBySide
    from cpift.metrics.store import Store
    from cpift.train.config import join

    given, recipe = _recipe(models, task or [], metric or [], overrides(sets))
    places = {name: checkpoint_place(path, recipe.trust_remote_code) for name, path in named_models(given).items()}
    origin = None if base is None else checkpoint_place(base, recipe.trust_remote_code)
    store = None if no_cache else Store(cache or cache_folder() / "scores")
    join()
    shown = Terminal()
    reporter: Reporter = (BesideJson() if as_json else shown) if ranks.leads() else Reporter()
    try:
        tasks = eval_tasks(recipe, reporter, rows, of_files=bool(task))
        scores = {name: score_model(place, tasks, recipe, reporter, origin, store) for name, place in places.items()}
    finally:
        shown.close()
    if not ranks.leads():
        return
    result = SideBySide(dict(zip(scores, given, strict=True)), scores)
    if out is not None or not as_json:
        write_text(out or Path("scores.json"), json.dumps(result.to_dict()) + "\n")
    if as_json:
        print(json.dumps(result.to_dict(), indent=1))
    else:
        _show(result)


def _recipe(
    values: Sequence[str], tasks: Sequence[str], metrics: Sequence[str], changes: dict[str, object]
) -> tuple[list[str], Recipe]:
    """The models of the command line, and the recipe: the file at the end, or one made of ``--task`` and ``--metric``."""
    from cpift.metrics import brings_rows
    from cpift.recipe.recipe import Recipe

    last = Path(values[-1])
    is_recipe = last.suffix in (".yaml", ".yml") or (
        len(values) > 1 and os.path.isfile(last) and last.suffix not in _MODEL_FILES
    )
    models = list(values[:-1] if is_recipe else values)
    if not models:
        raise CpiftError("no model is given: cpift evaluate MODEL recipe.yaml")
    if is_recipe and tasks:
        raise CpiftError(f"--task: {last} gives the tasks already; leave one of the two out")
    if not is_recipe and not tasks:
        raise CpiftError("no task is given: add --task NAME=FILE, or a recipe after the models")
    files = named_paths(tasks, "--task")
    if is_recipe:
        names = dict.fromkeys(Recipe.load(last, changes).tasks, "") if metrics else {}
        return models, Recipe.load(last, {**changes, **_metrics(metrics, names)})
    parts = {name: {"train": rows, "metric" if brings_rows(rows) else "eval": rows} for name, rows in files.items()}
    data = {"model": models[0].rpartition("=")[2], "tasks": parts}
    return models, Recipe.from_data(data, Path(), {**changes, **_metrics(metrics, files)}, "--task")


def _metrics(values: Sequence[str], tasks: Mapping[str, str]) -> dict[str, object]:
    """Dotted keys of the tasks' metrics.

    Args:
        values: of ``--metric``.
        tasks: by name what ``--task`` gives; one that is a benchmark has its metric already.

    Raises:
        CpiftError: a task that is not there, or one with a metric already.
    """
    from cpift.metrics import brings_rows

    found: dict[str, object] = {}
    for value in sorted(values, key=lambda value: "=" in value):  # that of one task comes on top
        name, sign, metric = value.rpartition("=")
        if sign and name not in tasks:
            raise CpiftError(f"--metric {value}: {name} is none of the tasks ({', '.join(tasks)})")
        if sign and brings_rows(tasks[name]):
            raise CpiftError(f"--metric {value}: {name} is scored by {tasks[name]}; leave it out")
        chosen = [name] if sign else [task for task, rows in tasks.items() if not brings_rows(rows)]
        found |= {f"tasks.{task}.metric": metric for task in chosen}
    return found


def _show(result: SideBySide) -> None:
    from cpift.console.tables import numbers_table
    from cpift.console.terminal import say

    if len(result.scores) == 1:
        for line in result.lines():
            say(line)
        return
    header, *body = result.table()
    numbers_table(header, body)
    for line in result.difference_lines():
        say(line)
