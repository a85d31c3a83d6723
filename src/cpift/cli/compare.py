"""``cpift compare``: parse, call, print."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from cpift.cli.options import Address, EngineName, GpusPerJob, RecipePath, Sets, load_recipe, terminal
from cpift.cli.tables import list_entries


class Lists(TyperCommand):
    """Lets ``--seeds 0 1 2`` stand for ``--seeds 0 --seeds 1 --seeds 2``, as people write it."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write the options, and under them the methods of each budget."""
        from cpift.compare.methods import METHODS

        super().format_options(ctx, formatter)
        list_entries(formatter, "--methods", {name: method for name, method in METHODS.items() if method.run})
        arriving = {name: method for name, method in METHODS.items() if method.arrive}
        list_entries(formatter, "--methods under --budget incremental", arriving)

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Repeat a list's option before each of its values."""
        lists = {"--methods", "--seeds", "--budget"}
        spread: list[str] = []
        option, given = "", 0
        for arg in args:
            if arg.startswith("-") and not arg.lstrip("-").isdigit():
                option, given = (arg, 0) if arg in lists else ("", 0)
                spread.append(arg)
                continue
            if option and given:
                spread.append(option)
            given += 1
            spread.append(arg)
        return super().parse_args(ctx, spread)


def compare(
    recipe: RecipePath,
    out: Annotated[
        Path, typer.Option(help="Folder of the comparison. Called again with the same one, it makes what is missing.")
    ],
    methods: Annotated[
        list[str],
        typer.Option(metavar="METHOD...", help="Such as multi_task cpi_ft cpi_ft:fuse.space=updates; see below."),
    ],
    seeds: Annotated[list[int] | None, typer.Option(metavar="SEED...", help="By default 0.")] = None,
    budget: Annotated[
        list[str] | None,
        typer.Option(metavar="BUDGET...", help="equal_tokens (the default), paper, incremental."),
    ] = None,
    reference: Annotated[
        str | None, typer.Option(help="The method that all others are set against; by default cpi_ft.")
    ] = None,
    engine: EngineName = "local",
    jobs: Annotated[
        int | None,
        typer.Option(metavar="N", help="Seeds side by side; by default 1, under Ray as many as it has room for."),
    ] = None,
    address: Address = None,
    gpus_per_job: GpusPerJob = None,
    tune: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="First try N learning rates for each method (3: a third, the recipe's, three times), on rows held out "
            "from training; no evaluation row is looked at.",
        ),
    ] = None,
    keep_models: Annotated[bool, typer.Option("--keep-models", help="Keep the weights of what is scored.")] = False,
    sets: Sets = None,
) -> None:
    """Train and score methods side by side on the recipe's tasks: is it worth it?

    Write the recipe's path before the lists. Any method may have settings: cpi_ft:KEY=VALUE.
    """
    loaded = load_recipe(recipe, sets)
    from cpift.compare import FILE
    from cpift.compare import compare as run_all
    from cpift.compare.methods import REFERENCE
    from cpift.compare.table import markdown
    from cpift.console.terminal import say
    from cpift.distributed.engine import make_engine

    workers = make_engine(engine, jobs, address, gpus_per_job, say)
    with terminal() as shown:
        result = run_all(
            loaded,
            out,
            methods,
            seeds or [0],
            budget or ["equal_tokens"],  # type: ignore[arg-type]
            reference=reference or REFERENCE,
            engine=workers,
            keep_models=keep_models,
            tune=tune,
            reporter=shown,
        )
    say(markdown(result))
    say(f"\nevery item's outcome is in {out / FILE}")
