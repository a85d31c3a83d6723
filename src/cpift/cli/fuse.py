"""``cpift fuse``: fine-tuned checkpoints into one, by its own options or by a merge in mergekit's YAML."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, cast

import typer

from cpift.cli.checkpoints import RowsOf, Threads, vocabulary_of
from cpift.cli.options import named_paths, write_text
from cpift.errors import CpiftError

if TYPE_CHECKING:
    from cpift.method.interpolations import Space


def fuse(
    out: Annotated[Path, typer.Option(help="The fused checkpoint, a new folder.")],
    base: Annotated[
        str | None,
        typer.Option(
            metavar="B",
            help="The checkpoint that all were fine-tuned from: a folder, or a hub id with or without @revision.",
        ),
    ] = None,
    tuned: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=CKPT", help="A fine-tuned checkpoint, with a name. One for each task."),
    ] = None,
    backbone: Annotated[
        str | None, typer.Option(metavar="K", help="The model to fuse into; by default the base.")
    ] = None,
    region: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=FILE", help="Core region of a tuned checkpoint. Without any, nothing is transplanted."
        ),
    ] = None,
    overlap: Annotated[
        str, typer.Option(metavar="RULE", help="Which task's value a position in several regions takes; see below.")
    ] = "largest",
    interpolation: Annotated[
        str, typer.Option(metavar="NAME", help="How the rest is interpolated; see below.")
    ] = "slerp",
    space: Annotated[str, typer.Option(help="What is interpolated: weights or updates.")] = "weights",
    vector: Annotated[str, typer.Option(help="What one interpolation runs over: tensor or model.")] = "tensor",
    weight: Annotated[
        str, typer.Option(help="equal, a number from 0 to 1, or NAME=NUMBER,NAME=NUMBER (docs/fusion.md).")
    ] = "equal",
    from_mergekit: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Do the merge of this YAML of mergekit: linear, slerp or task_arithmetic."),
    ] = None,
    write_mergekit: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write what is done as mergekit's YAML, where it can be said so."),
    ] = None,
    vocabulary: RowsOf = "same",
    max_shard_size: Annotated[str, typer.Option(help="Largest file of the output.")] = "5GB",
    dtype: Annotated[
        str | None, typer.Option(help="float32, bfloat16 or float16; by default the widest of the inputs.")
    ] = None,
    threads: Threads = None,
) -> None:
    """Fuse fine-tuned checkpoints into one, without training.

    Writes a plain Hugging Face checkpoint and fusion.json with angles, coefficients and counts per tensor. Reads
    every checkpoint once, tensor by tensor; with --vector model twice. Interrupted and started again, it resumes.
    """
    from cpift.checkpoint.hub import checkpoint_place
    from cpift.checkpoint.reader import open_checkpoint
    from cpift.checkpoint.writer import parse_size
    from cpift.console.terminal import Terminal, byte_progress, say
    from cpift.method.fuse import fuse as combine
    from cpift.method.fusion.options import FusionOptions, in_order

    rows = vocabulary_of(vocabulary)
    if from_mergekit is not None:
        given: dict[str, object] = {"--base": base, "--tuned": tuned, "--backbone": backbone, "--region": region}
        given |= {
            "--interpolation": interpolation != "slerp",
            "--weight": weight != "equal",
            "--space": space != "weights",
        }
        if beside := [name for name, value in given.items() if value]:
            raise CpiftError(f"--from-mergekit: {from_mergekit} says what {beside[0]} would; leave one of them out")
        from cpift.method.mergekit import read_merge

        merge = read_merge(from_mergekit)
        base, named, interpolation, share = merge.base, merge.tuned, merge.interpolation, merge.weight
        dtype = dtype or merge.dtype
    else:
        if base is None or not tuned:
            raise CpiftError("fuse: needs --base and --tuned, or --from-mergekit")
        named, share = named_paths(tuned, "--tuned"), _weight(weight)
    origin = checkpoint_place(base)
    models = {name: checkpoint_place(path) for name, path in named.items()}
    start = None if backbone is None else checkpoint_place(backbone)
    options = FusionOptions(
        overlap,
        interpolation,
        cast("Space", space),
        cast("Literal['tensor', 'model']", vector),
        in_order(share, list(named)),
        rows,
        dtype,
        parse_size(max_shard_size),
    )
    if write_mergekit is not None:
        from cpift.method.mergekit_writing import write_merge

        text = write_merge(
            base,
            named,
            backbone=backbone,
            regions=bool(region),
            interpolation=interpolation,
            space=options.space,
            vector=options.vector,
            weight=share,
            dtype=dtype,
        )
        write_text(write_mergekit, text)
    reads, first = [origin, start or origin, *models.values()], open_checkpoint(origin)
    report = combine(
        origin,
        models,
        out,
        backbone=start,
        regions=named_paths(region or [], "--region"),
        overlap=options.overlap,
        interpolation=options.interpolation,
        space=options.space,
        vector=options.vector,
        weight=share,
        vocabulary=rows,
        max_shard_size=max_shard_size,
        dtype=dtype,
        threads=threads,
        progress=byte_progress(2 * sum(open_checkpoint(p, first).nbytes for p in reads)),
    )
    won = ", ".join(f"{task} {count}" for task, count in report["won"].items())
    for text in report.get("warnings", []):
        Terminal().warning(text)
    for group, source in report.get("companions", {}).items():
        say(f"{group}: {source}")
    for copied in report.get("vocabulary", {}).get("copied", []):
        first, end = copied["rows"]
        say(f"rows {first} to {end - 1} of the embedding: copied from {', '.join(copied['from'])}")
    say(f"{out}: {report['total']} parameters, {report['core']} transplanted ({won}), {report['contested']} contested")


def _weight(text: str) -> Literal["equal"] | float | dict[str, float]:
    """``equal``, a number, or a number for each task."""
    if text == "equal":
        return "equal"
    try:
        if "=" not in text:
            return float(text)
        return {name: float(value) for name, value in named_paths(text.split(","), "--weight").items()}
    except ValueError:
        raise CpiftError(f"--weight {text}: write equal or a number from 0 to 1, or NAME=NUMBER,NAME=NUMBER") from None
