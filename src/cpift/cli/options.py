"""Options that several commands have."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cpift.errors import CpiftError, is_disk_full

if TYPE_CHECKING:
    from cpift.console.terminal import Terminal
    from cpift.recipe.recipe import Recipe

RecipePath = Annotated[Path, typer.Argument(metavar="RECIPE", help="The recipe, a YAML file; cpift init writes one.")]
Mirror = Annotated[
    str | None,
    typer.Option(
        metavar="URL", help="Copy finished stages to this URL (s3://…), and copy back those that the folder lacks."
    ),
]
Sets = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override a key of the recipe, dotted: probe.steps=50."),
]
EngineName = Annotated[
    str,
    typer.Option("--engine", metavar="local|ray", help="Where jobs run: processes of this machine, or a Ray cluster."),
]
Address = Annotated[
    str | None,
    typer.Option(help="Of the Ray cluster; by default RAY_ADDRESS, or one on this machine."),
]
GpusPerJob = Annotated[
    float | None,
    typer.Option(metavar="G", help="GPUs of a job under Ray, at most 1; by default 1 where there are any."),
]


def named_paths(values: Sequence[str], option: str) -> dict[str, str]:
    """The values of an option NAME=PATH, by name. Raises :class:`CpiftError` for one that is not, or given twice."""
    found: dict[str, str] = {}
    for value in values:
        name, sign, path = value.partition("=")
        if not sign or not path or not name or name != Path(name).name or name.startswith("."):
            raise CpiftError(f"{option} {value}: write it as NAME=PATH, the name without slashes")
        if name in found:
            raise CpiftError(f"{option}: the name {name} is given twice")
        found[name] = path
    return found


@contextmanager
def terminal() -> Iterator[Terminal]:
    """The output of a long command. An interrupt prints how to resume and ends with exit code 130."""
    from cpift.console.terminal import Terminal, say

    shown = Terminal()
    try:
        yield shown
    except KeyboardInterrupt:
        shown.close()
        say("stopped; run the same command again to resume")
        raise typer.Exit(130) from None
    finally:
        shown.close()


def overrides(values: Sequence[str] | None) -> dict[str, object]:
    """The values of ``--set``, by dotted key.

    Raises:
        CpiftError: one is not KEY=VALUE, or its value is not YAML.
    """
    import yaml

    from cpift.recipe.yaml import read_yaml

    keys: dict[str, object] = {}
    for value in values or []:
        key, sign, text = value.partition("=")
        if not sign or not key:
            raise CpiftError(f"--set {value}: write it as KEY=VALUE, such as probe.steps=50")
        try:
            keys[key] = read_yaml(text)
        except yaml.YAMLError as error:
            raise CpiftError(f"--set {value}: the value is not YAML") from error
    return keys


def load_recipe(path: Path, sets: Sequence[str] | None) -> Recipe:
    """A recipe and what it names, checked in seconds: call it before anything that imports torch.

    Args:
        path: the recipe.
        sets: the values of ``--set``.

    Raises:
        CpiftError: a mistake in the recipe, or a file or model that is not there.
    """
    from cpift.data.presence import check_presence
    from cpift.recipe.recipe import Recipe

    recipe = Recipe.load(path, overrides(sets))
    check_presence(recipe)
    return recipe


def write_text(path: Path, text: str) -> None:
    """Write a small file that a command was asked for, whole or not at all.

    Raises:
        CpiftError: the file cannot be written.
    """
    from cpift.files.manifest import write_whole

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, text)
    except OSError as error:
        if is_disk_full(error):
            raise
        raise CpiftError(f"{path}: cannot be written ({error.strerror})") from error
