"""``cpift data``: what the model will see of a recipe's data."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated

import typer

from cpift.cli.options import RecipePath, Sets, load_recipe

if TYPE_CHECKING:
    from cpift.data.lengths import Lengths
    from cpift.runs.survey import Example, TaskData

BAR = 30  # signs of the longest bar
SHOWN = 1500  # characters of an example


def data(
    recipe: RecipePath,
    sets: Sets = None,
    examples: Annotated[int, typer.Option(min=0, help="Rendered training rows of each task.")] = 3,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show what the model will see: rows, lengths, what is cut, the mixture, and rendered examples.

    The part of an example that the loss is taken on is green on a terminal, and in brackets elsewhere or under
    NO_COLOR. Needs the model's tokenizer, not its weights. Changes no file; encoded sets of
    10,000 rows or more are cached, see docs/data.md.
    """
    loaded = load_recipe(recipe, sets)
    from cpift.runs.survey import mixture_lines, survey
    from cpift.train.config import max_length

    limit, tasks = max_length(loaded.training), survey(loaded, examples)
    if as_json:
        print(
            json.dumps(
                {
                    "max_length": limit,
                    "mix": loaded.mix,
                    "tasks": {name: task.to_dict() for name, task in tasks.items()},
                }
            )
        )
        return
    from cpift.console.terminal import Terminal, say

    for name, task in tasks.items():
        show_task(name, task, limit, say)
        for number, example in enumerate(task.examples, start=1):
            say(f"  example {number}, {example.tokens:,} tokens:")
            show_example(example)
        say("")
    for line in mixture_lines(tasks, loaded.mix):
        say(line)
    for task in tasks.values():
        for text in task.warnings:
            Terminal().warning(text)


def show_task(name: str, task: TaskData, limit: int | None, write: Callable[[str], None]) -> None:
    """Print the numbers of a task.

    Args:
        name: the task's name.
        task: its data.
        limit: training.max_length.
        write: prints a line.
    """
    from cpift.metrics import named

    shapes = ", ".join(f"{shape} ({rows:,} rows)" for shape, rows in task.shapes.items()) or "generated"
    write(f"{name}: {summary(task)}, scored by {task.metric}")
    scored = limit if named(task.metric).cuts_rows else None
    write(f"  shape      {shapes}")
    for source in task.sources if len(task.sources) > 1 or any(s.rows != s.used for s in task.sources) else ():
        write(f"  source     {source.path}: {source.rows:,} rows, used as {source.used:,}")
    parts = [("training", task.train), *([("evaluation", task.evaluation)] if task.evaluation.rows else [])]
    for kind, lengths in parts:
        write(f"  {kind:10} {_lengths(lengths, limit if kind == 'training' else scored)}")
    most = max((bar.rows for bar in task.train.histogram), default=1)
    for bar in task.train.histogram:
        sign = "█" if _writes("█") else "#"
        write(f"  {bar.first:>6,}-{bar.last:<6,} {bar.rows:>8,} {sign * max(bool(bar.rows), BAR * bar.rows // most)}")


def summary(task: TaskData) -> str:
    """A task's rows in one line."""
    scored = f"{task.evaluation.rows:,} evaluation rows" if task.evaluation.rows else "evaluation rows of the metric"
    return f"{task.train.rows:,} training rows, {task.train.tokens:,} tokens, {scored}"


def _lengths(lengths: Lengths, limit: int | None) -> str:
    mean = lengths.tokens / max(1, lengths.rows - lengths.left_out)
    cut = "" if limit is None else f", {lengths.cut:,} ({lengths.cut_share:.1%}) cut at max_length {limit:,}"
    gone = f", {lengths.left_out:,} left out" if lengths.left_out else ""
    return (
        f"{mean:,.0f} tokens a row, the longest {lengths.longest:,}; {lengths.trained:,} of {lengths.tokens:,} "
        f"with a loss{cut}{gone}"
    )


def show_example(example: Example) -> None:
    """Print a rendered row, the part with a loss in green or in brackets.

    Args:
        example: the row.
    """
    from rich.console import Console
    from rich.text import Text

    from cpift.console.terminal import clean, is_live

    console, colour = Console(highlight=False), is_live()
    opening, closing = ("", "") if colour else ("⟦", "⟧") if _writes("⟦⟧") else ("[[", "]]")
    shown = Text()
    for piece in example.pieces:
        text = clean(piece.text.replace("\t", "    "))
        if len(text) > SHOWN:
            text = f"{text[: SHOWN // 2]} … {text[-SHOWN // 2 :]}"
        text = f"{opening}{text}{closing}" if piece.trained else text
        shown.append(text, style="green" if piece.trained and colour else "")
    for line in shown.split("\n"):
        console.print(Text("    ") + line, soft_wrap=True)


def _writes(signs: str) -> bool:
    try:
        signs.encode(sys.stdout.encoding or "ascii")
    except (UnicodeEncodeError, LookupError):
        return False
    return True
