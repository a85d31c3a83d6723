"""The entry point: the program, and what becomes of its errors."""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

from cpift import __version__
from cpift.cli.commands import Commands
from cpift.console import stopping
from cpift.errors import CpiftError, OutOfMemory, is_disk_full
from cpift.extras import remedy

app = typer.Typer(
    cls=Commands,
    help="Fine-tune one language model on several unlike tasks without the seesaw (CPI-FT, arXiv:2508.21741).\n\n"
    "Start with: cpift init, then cpift plan recipe.yaml, then cpift run recipe.yaml --out runs/mine.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(asked: bool) -> None:
    if asked:
        print(f"cpift {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and stop.")
    ] = False,
) -> None:
    pass


def main() -> None:
    """Entry point: a user's mistake is one line on stderr and exit code 2."""
    os.environ.setdefault("TQDM_DISABLE", "1")  # the libraries' own bars would tear ours
    stopping.listen()
    try:
        app()
    except CpiftError as error:
        from cpift.console.terminal import clean
        from cpift.distributed import ranks

        if not ranks.leads() and not isinstance(error, OutOfMemory):
            sys.exit(2)  # the first process says it
        said = " ".join(clean(str(error)).split())
        print(f"cpift: {said if len(said) < 2500 else said[:1200] + ' … ' + said[-1200:]}", file=sys.stderr)
        sys.exit(2)
    except Exception as error:
        if isinstance(error, ImportError) and (line := remedy(error)) is not None:
            print(f"cpift: {line}", file=sys.stderr)
            sys.exit(2)
        if not is_disk_full(error):
            raise
        where = getattr(error, "filename", None) or "while writing"
        print(f"cpift: the disk is full ({where}); make room and run again", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
