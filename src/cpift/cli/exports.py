"""``cpift export`` and ``cpift apply``: a model as a whole checkpoint, as a LoRA adapter, or as a delta; and back."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cpift.errors import CpiftError, did_you_mean

_FORMATS = ("whole", "lora", "delta", "gguf")
Base = Annotated[str | None, typer.Option("--base", metavar="BASE", help="What the model was made from.")]


def export(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A checkpoint or an adapter: a folder or a hub id.")],
    out: Annotated[Path, typer.Option(help="A new folder; of gguf a file.")],
    form: Annotated[
        str,
        typer.Option(
            "--format",
            metavar="FORMAT",
            help="whole: a plain checkpoint, adapters merged. lora: an adapter of PEFT on the base, with loss. "
            "delta: what differs from the base, put back bit for bit by cpift apply. gguf: one file, by llama.cpp's converter.",
        ),
    ] = "whole",
    base: Base = None,
    rank: Annotated[int, typer.Option(help="Of the LoRA adapter.")] = 16,
    dtype: Annotated[
        str | None, typer.Option(help="Of a whole checkpoint: float32, bfloat16 or float16; by default as it is.")
    ] = None,
    max_shard_size: Annotated[str, typer.Option(help="Largest file of a whole checkpoint.")] = "5GB",
) -> None:
    """Write a model for others: merged, as a LoRA adapter with its loss stated, or as a small exact delta."""
    from cpift.checkpoint.delta import write_delta
    from cpift.checkpoint.gguf import write_gguf
    from cpift.checkpoint.hub import checkpoint_place
    from cpift.checkpoint.low_rank import write_low_rank
    from cpift.checkpoint.reader import open_checkpoint
    from cpift.checkpoint.whole import write_whole
    from cpift.console.terminal import byte_progress, say, size

    if form not in _FORMATS:
        raise CpiftError(f"--format {form}: is none of {', '.join(_FORMATS)}{did_you_mean(form, _FORMATS)}")
    if form == "gguf":
        if base is not None or dtype is not None:
            raise CpiftError("--format gguf: takes a whole checkpoint as it is; write it first with --format whole")
        write_gguf(checkpoint_place(model), out)
        say(f"wrote {out}")
        return
    if form != "whole" and base is None:
        raise CpiftError(f"--format {form}: is written against a base; add --base BASE")
    if form != "whole" and dtype is not None:
        raise CpiftError("--dtype: is of a whole checkpoint; a delta keeps the model's type, an adapter is float32")
    origin = None if base is None else open_checkpoint(checkpoint_place(base))
    opened = open_checkpoint(checkpoint_place(model), origin)
    if origin is None or form == "whole":
        write_whole(opened, out, dtype=dtype, max_shard_size=max_shard_size, progress=byte_progress(opened.nbytes))
        say(f"{out}: {opened.total} parameters")
    elif form == "lora":
        lost = write_low_rank(origin, opened, out, rank, str(base), byte_progress(origin.nbytes + opened.nbytes))
        say(
            f"{out}: rank {rank}, {size(lost.nbytes)}; {lost.lost_share:.2%} of the update's squared norm is lost: "
            f"{_share(lost.lost_by_rank, lost.update)} by the rank, {_share(lost.left_out, lost.update)} in tensors left out"
        )
        if lost.names_left_out:
            names = lost.names_left_out
            more = f" and {len(names) - 4} more" if len(names) > 4 else ""
            say(f"left out: {', '.join(names[:4])}{more}")
    else:
        report = write_delta(origin, opened, out, byte_progress(2 * opened.nbytes))
        say(f"{out}: {report.changed} of {report.total} elements differ; {size(report.nbytes)}")


def apply(
    delta: Annotated[Path, typer.Argument(metavar="DELTA", help="A folder that cpift export --format delta wrote.")],
    base: Annotated[str, typer.Option(metavar="BASE", help="The base that it was made from.")],
    out: Annotated[Path, typer.Option(help="The checkpoint, a new folder.")],
    max_shard_size: Annotated[str, typer.Option(help="Largest file.")] = "5GB",
) -> None:
    """Put a delta back on its base: the same model, bit for bit, which is checked."""
    from cpift.checkpoint.delta import open_delta
    from cpift.checkpoint.hub import checkpoint_place
    from cpift.checkpoint.reader import open_checkpoint
    from cpift.checkpoint.stream import fingerprint
    from cpift.checkpoint.whole import write_whole
    from cpift.console.terminal import byte_progress, say

    model, expected = open_delta(open_checkpoint(checkpoint_place(base)), delta)

    def check(folder: Path) -> None:
        if fingerprint(open_checkpoint(folder)) != expected:
            raise CpiftError(f"{delta}: gives other weights than those that it was made from; the file is damaged")

    write_whole(model, out, max_shard_size=max_shard_size, check=check, progress=byte_progress(model.nbytes))
    say(f"{out}: {model.total} parameters, fingerprint {expected[:12]}")


def _share(part: float, whole: float) -> str:
    return f"{part / whole if whole else 0.0:.2%}"
