"""``cpift add``: one more skill for a model that is already fine-tuned."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

import typer

from cpift.cli.options import Mirror, Sets, named_paths, overrides, terminal
from cpift.errors import CpiftError

EVAL_ROWS, EVAL_SHARE = 200, 5  # held out by default: number of rows, or a fifth of fewer


def add(
    model: Annotated[
        str,
        typer.Option(
            "--model", metavar="M", help="The model to add to: a folder, a hub id, an adapter, or an earlier run."
        ),
    ],
    task: Annotated[
        list[str],
        typer.Option("--task", metavar="NAME=ROWS", help="The new task and its rows. Several are added in this order."),
    ],
    out: Annotated[Path, typer.Option(help="The run folder. Called again with the same one, it resumes.")],
    keep: Annotated[
        list[str] | None,
        typer.Option("--keep", metavar="[NAME=]ROWS", help="Rows of what the model can do: replayed, and scored."),
    ] = None,
    base: Annotated[
        str | None,
        typer.Option(
            "--base",
            metavar="B",
            help="What the model was fine-tuned from: its update is then protected. An adapter names its own.",
        ),
    ] = None,
    evaluation: Annotated[
        list[str] | None,
        typer.Option(
            "--eval",
            metavar="NAME=ROWS",
            help="Evaluation rows of a task, or how many to split off; by default a fifth, 200 at most.",
        ),
    ] = None,
    metric: Annotated[
        list[str] | None, typer.Option("--metric", metavar="NAME=METRIC", help="How a task is scored.")
    ] = None,
    compare: Annotated[
        bool,
        typer.Option("--compare", help="Also make it by plain SFT, LoRA, OSF and replay, at equal tokens."),
    ] = False,
    as_patch: Annotated[
        bool,
        typer.Option("--as-patch", help="Train inside the task's core alone, and write a patch that comes off again."),
    ] = False,
    mirror: Mirror = None,
    sets: Sets = None,
    recipe: Annotated[
        Path | None, typer.Option("--write-recipe", metavar="FILE", help="Write the recipe, to edit it, and stop.")
    ] = None,
) -> None:
    """Add a new task to a fine-tuned model, and keep what it can do.

    The model is trained on the new rows, with kept rows replayed, while a protected region and the cores of earlier
    additions stay frozen bit for bit. Each of these is a key of the recipe: --set protect.replay=0.3,
    --set protect.by=fisher (of kept rows), --set protect.freeze=false; --set protect.average=0.75 also averages the
    result with the model before. The report compares the model before and after on the new task, on the kept rows,
    and on the guard set.

    The result is OUT/model. It carries its regions, so that the next cpift add --model OUT protects them, too.
    """
    from cpift.data.presence import check_presence
    from cpift.recipe.recipe import Recipe

    if as_patch and len(task) > 1:
        raise CpiftError("--as-patch: takes one --task; a patch fits the model that it was made on")
    changes = overrides(sets)
    data = _recipe(_place(model), task, keep or [], base, evaluation or [], metric or [], changes)
    loaded = Recipe.from_data(data, Path.cwd(), changes, "cpift add")
    if as_patch:
        loaded = loaded.changed({"arrivals.train": "inside"})
    check_presence(loaded)
    if recipe is not None:
        if recipe.exists():
            raise CpiftError(f"{recipe}: exists; name another file, or remove it")
        recipe.write_text(loaded.dump(), encoding="utf-8")
        copy = f" --mirror {mirror}" if mirror is not None else ""
        print(f"wrote {recipe}; edit it, then: cpift run {recipe} --out {out}{copy}")
        return
    from cpift.console.tables import numbers_table
    from cpift.console.terminal import say
    from cpift.metrics.addition import addition_table
    from cpift.report.arrivals import summary_lines
    from cpift.runs.alternatives import check_alternatives, compare_additions
    from cpift.runs.pipeline import run as run_all

    if compare:
        check_alternatives()
    with terminal() as shown:
        result = run_all(loaded, out, reporter=shown, mirror=mirror)
        table = addition_table(compare_additions(loaded, out, shown)) if compare else []
    if not result:  # of a process that does not lead
        return
    for line in summary_lines(result):
        say(line)
    if table:
        say("\nother ways at equal tokens, those ahead first (▲ ahead of cpift add, ▼ behind, beyond noise)")
        numbers_table(table[0], table[1:])
    if as_patch:
        say(
            f"\nthe patch is {out / next(iter(loaded.tasks))}.patch.safetensors; cpift patch apply puts it on the model"
        )
    say(f"\nthe model is in {out / 'model'}; the report is {out / 'report.html'}")


def _place(model: str) -> str:
    """The model itself, where the folder of a run is given."""
    folder = Path(model)
    if (folder / "recipe.yaml").is_file() and not (folder / "config.json").is_file():
        if not (folder / "model" / "config.json").is_file():
            raise CpiftError(f"{model}: is a run that has not finished; cpift status {model} shows what is missing")
        return str(folder / "model")
    return model


def _recipe(
    model: str,
    tasks: Sequence[str],
    keep: Sequence[str],
    base: str | None,
    evaluation: Sequence[str],
    metric: Sequence[str],
    changes: Mapping[str, object],
) -> dict[str, object]:
    """The recipe that the options stand for."""
    arriving = named_paths(tasks, "--task")
    kept = named_paths([rows if "=" in rows else f"{Path(rows).name.split('.')[0]}={rows}" for rows in keep], "--keep")
    held_out, metrics = named_paths(evaluation, "--eval"), named_paths(metric, "--metric")
    if twice := sorted(set(arriving) & set(kept)):
        raise CpiftError(
            f"--keep: {twice[0]} is the name of the new task, too; write --keep NAME=ROWS with another name"
        )
    files = {os.path.realpath(rows): name for name, rows in arriving.items()}
    for name, rows in kept.items():
        if other := files.get(os.path.realpath(rows)):
            raise CpiftError(f"--keep {name}: {rows} holds the rows of the new task {other}; give rows of what is kept")
    for option, given in (("--eval", held_out), ("--metric", metrics)):
        for name in given:
            if name not in arriving and name not in kept:
                raise CpiftError(f"{option} {name}: is none of the tasks ({', '.join([*arriving, *kept])})")
    parts = {name: _task(name, rows, held_out, metrics, changes) for name, rows in {**kept, **arriving}.items()}
    return {"model": model, "base": base, "tasks": parts, "arrivals": list(arriving)}


def _task(
    name: str, rows: str, held_out: Mapping[str, str], metrics: Mapping[str, str], changes: Mapping[str, object]
) -> dict[str, object]:
    from cpift.metrics import brings_rows

    given, metric = held_out.get(name), metrics.get(name)
    scored: dict[str, object] = {} if metric is None else {"metric": metric}
    if given is not None:
        scored["eval"] = int(given) if given.isdigit() else given
    elif not brings_rows(metric) and f"tasks.{name}.eval" not in changes:
        scored["eval"] = _held_out(name, rows, changes)
    return {"train": rows, **scored}


def _held_out(name: str, rows: str, changes: Mapping[str, object]) -> int:
    """Rows to split off for evaluation: a fifth, 200 at most. What --set changes of the task, its columns, counts."""
    from cpift.data.row_checks import check_row
    from cpift.data.sources import SourceFacts, source_rows
    from cpift.recipe.recipe import Recipe

    own = {key: value for key, value in changes.items() if key.startswith(f"tasks.{name}.")}
    data = {"model": "any", "tasks": {name: {"train": rows, "eval": 1}}}
    (source,) = Recipe.from_data(data, Path.cwd(), own, "cpift add").tasks[name].sources("train")
    try:
        count = sum(bool(check_row(row, where)) for where, row in source_rows(source, SourceFacts(rows)))
    except CpiftError as error:
        raise CpiftError(f"tasks.{name}: {error}") from error
    if count < EVAL_SHARE:
        raise CpiftError(f"{rows}: has {count} rows, too few to hold some out; give --eval {name}=FILE")
    return min(EVAL_ROWS, count // EVAL_SHARE)
