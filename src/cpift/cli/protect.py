"""``cpift protect``: the region of a model that is worth protecting, as a file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cpift.errors import CpiftError


def protect(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="The checkpoint to protect: a folder or a hub id.")],
    out: Annotated[Path, typer.Option(help="The region file to write: region.safetensors.")],
    base: Annotated[
        str | None, typer.Option(metavar="B", help="What it was fine-tuned from: protect what moved most since.")
    ] = None,
    rows: Annotated[
        str | None, typer.Option(metavar="FILE", help="Rows that it is good at: protect what matters for them.")
    ] = None,
    by: Annotated[
        str | None,
        typer.Option(
            metavar="CRITERION", help="update (with --base), fisher or magnitude_gradient (with --rows), magnitude."
        ),
    ] = None,
    percent: Annotated[str, typer.Option(help="Share of the counted parameters in the region, in per cent.")] = "1",
    unit: Annotated[
        str, typer.Option(metavar="element|column", help="Single parameters, or whole columns.")
    ] = "element",
    only: Annotated[
        list[str] | None, typer.Option(help="Count these parameters only, as a shell-style pattern: '*mlp*'.")
    ] = None,
    exclude: Annotated[
        list[str] | None, typer.Option("--except", help="Parameters that do not count: '*embed*'.")
    ] = None,
    max_length: Annotated[int, typer.Option(help="Tokens after which a row is cut.")] = 1024,
    threads: Annotated[int | None, typer.Option(help="Worker threads; by default one a core.")] = None,
) -> None:
    """Write the region of a model that is worth protecting, for freeze in any trainer.

    By --base it needs no training and no GPU. By --rows it makes one forward and one backward pass a row, in fp32.
    """
    from cpift.checkpoint.hub import checkpoint_place
    from cpift.console.terminal import Terminal, say, size
    from cpift.train.protect import CRITERIA
    from cpift.train.protect import protect as choose

    if out.is_dir():
        raise CpiftError(f"{out}: is a folder; --out names a file")
    place, origin = checkpoint_place(model), None if base is None else checkpoint_place(base)
    terminal = Terminal()
    try:
        found = choose(
            place,
            base=origin,
            rows=rows,
            by=by,
            percent=percent,
            unit=unit,
            only=only or [],
            exclude=exclude or [],
            max_length=max_length,
            threads=threads,
            tick=lambda done, all_rows: terminal.progress(done, all_rows, f"{done} of {all_rows} rows"),
        )
    finally:
        terminal.close()
    region = found.region
    out.parent.mkdir(parents=True, exist_ok=True)
    region.save(out)
    for text in found.warnings:
        terminal.warning(text)
    facts = region.statistics
    seen = f" over {facts['rows']} rows ({facts['tokens']} trained tokens)" if "rows" in facts else ""
    say(f"{facts['by']}: {CRITERIA[facts['by']].about}{seen}")
    share = region.count / region.total
    least = "" if region.threshold is None else f", score >= {region.threshold:.3g}"
    say(f"{out}: {region.count} of {region.total} parameters ({share:.2%}){least}; {size(out.stat().st_size)}")
