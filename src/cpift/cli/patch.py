"""``cpift patch``: skills that come off again, as sparse patches of positions and values."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from cpift.method.apply_patch import Carried

Model = Annotated[str, typer.Argument(metavar="MODEL", help="A checkpoint, maybe with patches: a folder or a hub id.")]
Out = Annotated[Path, typer.Option(help="The checkpoint to write, a new folder.")]

patch = typer.Typer(
    help="Skills that come off again: what a model changed inside a region, as a file to apply and to remove.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@patch.command()
def make(
    base: Annotated[str, typer.Argument(metavar="BASE", help="The model that the patch will fit.")],
    tuned: Annotated[str, typer.Argument(metavar="TUNED", help="The model trained from it, inside a region.")],
    out: Annotated[Path, typer.Option(help="The patch to write: skill.safetensors.")],
    name: Annotated[str | None, typer.Option(help="Of the patch; by default the file's.")] = None,
    region: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Region file: refuse changes outside of it.")
    ] = None,
    max_share: Annotated[float, typer.Option(help="Largest share of positions that may differ.")] = 0.25,
    rounded: Annotated[
        bool, typer.Option("--round", help="Round the tuned values to the base's types, where these are others.")
    ] = False,
) -> None:
    """Write what differs between a model and its base as a patch."""
    from cpift.checkpoint.hub import checkpoint_place
    from cpift.checkpoint.reader import open_checkpoint
    from cpift.console.terminal import Terminal, byte_progress, say, size
    from cpift.method.patch import make_patch
    from cpift.method.region import Region

    places = checkpoint_place(base), checkpoint_place(tuned)
    made = make_patch(
        *places,
        out,
        name=name,
        region=None if region is None else Region.load(region),
        max_share=max_share,
        rounded=rounded,
        progress=byte_progress(4 * open_checkpoint(places[0]).nbytes),
    )
    for text in made.warnings:
        Terminal().warning(text)
    say(
        f"{out}: {made.name}, {made.count} of {made.total} positions ({made.count / made.total:.2%}), {size(made.nbytes)}"
    )


@patch.command()
def apply(
    model: Model,
    patches: Annotated[list[Path], typer.Argument(metavar="PATCH...", help="Patch files.")],
    out: Out,
) -> None:
    """Write a model with patches on it: the same bits in any order."""
    from cpift.checkpoint.hub import checkpoint_place
    from cpift.checkpoint.reader import open_checkpoint
    from cpift.console.terminal import Terminal, byte_progress
    from cpift.method.apply_patch import SEVERAL, apply_patches

    place = checkpoint_place(model)
    carried = apply_patches(place, patches, out, progress=byte_progress(open_checkpoint(place).nbytes))
    if len(carried.patches) > 1:
        Terminal().warning(SEVERAL)
    _show(out, carried)


@patch.command()
def remove(
    model: Model,
    names: Annotated[list[str], typer.Argument(metavar="NAME...", help="Names of patches that the model carries.")],
    out: Out,
) -> None:
    """Write a model without some of its patches; once all are off it has the base's bits."""
    from cpift.checkpoint.hub import checkpoint_place
    from cpift.checkpoint.reader import open_checkpoint
    from cpift.console.terminal import byte_progress
    from cpift.method.apply_patch import remove_patches

    place = checkpoint_place(model)
    _show(out, remove_patches(place, names, out, progress=byte_progress(open_checkpoint(place).nbytes)))


@patch.command(name="list")
def show(model: Model) -> None:
    """Show the patches that a model carries."""
    from cpift.checkpoint.hub import checkpoint_place
    from cpift.method.apply_patch import carried_patches

    place = checkpoint_place(model)
    _show(place, carried_patches(place))


def _show(folder: Path, carried: Carried | None) -> None:
    from cpift.console.terminal import say

    if carried is None or not carried.patches:
        say(f"{folder}: no patches")
        return
    say(f"{folder}: base {carried.base[:12]}")
    for one in carried.patches:
        say(f"  {one.name}: {one.count} positions")
