"""Checkpoints that are there already: ``cpift identify``, ``group``; what ``fuse`` shares with them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import typer

from cpift.cli.options import named_paths, write_text
from cpift.errors import CpiftError
from cpift.files.layout import REGION_FILE

Tuned = Annotated[
    list[str],
    typer.Option("--tuned", metavar="NAME=CKPT", help="A fine-tuned checkpoint, with a name. One for each task."),
]
Base = Annotated[
    str,
    typer.Option(
        "--base",
        metavar="B",
        help="The checkpoint that all were fine-tuned from: a folder, or a hub id with or without @revision.",
    ),
]
RowsOf = Annotated[
    str,
    typer.Option("--vocabulary", metavar="same|union", help="union: a tuned vocabulary may be larger than the base's."),
]
Threads = Annotated[int | None, typer.Option(help="Worker threads; by default one a core. Changes speed only.")]


def identify(
    base: Base,
    tuned: Tuned,
    out: Annotated[Path, typer.Option(help="Folder for NAME.region.safetensors.")],
    percent: Annotated[str, typer.Option(help="Share of all parameters that is core, in per cent.")] = "1",
    include: Annotated[
        list[str] | None,
        typer.Option(metavar="PATTERN", help="Count these parameters only, as a shell-style pattern: '*mlp*'."),
    ] = None,
    exclude: Annotated[
        list[str] | None, typer.Option(metavar="PATTERN", help="Parameters that do not count: '*embed*'.")
    ] = None,
    max_memory: Annotated[
        str | None, typer.Option(help="Above this size, candidates go to a scratch file: 4GB.")
    ] = None,
    vocabulary: RowsOf = "same",
    threads: Threads = None,
) -> None:
    """Find the core region of each fine-tuned checkpoint: the parameters that it moved most.

    Reads every checkpoint once, the base included, tensor by tensor. Needs no GPU and no training.
    """
    from cpift.checkpoint.compatibility import check_compatible
    from cpift.checkpoint.hub import checkpoint_place
    from cpift.checkpoint.reader import open_checkpoint
    from cpift.checkpoint.writer import parse_size
    from cpift.console.terminal import Terminal, byte_progress, say, size
    from cpift.method.identify import identify as select
    from cpift.method.region_findings import region_warnings

    if out.exists() and not out.is_dir():
        raise CpiftError(f"{out}: is a file; --out names a folder")
    rows = vocabulary_of(vocabulary)
    origin, models = checkpoint_place(base), tuned_folders(tuned)
    first = open_checkpoint(origin)
    opened = {name: open_checkpoint(path, first) for name, path in models.items()}
    for text in check_compatible(first, opened, union=rows == "union"):
        Terminal().warning(text)
    total = first.nbytes + sum(model.nbytes for model in opened.values())
    limit = None if max_memory is None else parse_size(max_memory)
    regions = select(
        origin,
        models,
        percent,
        include=include or [],
        exclude=exclude or [],
        max_memory=limit,
        threads=threads,
        vocabulary=rows,
        progress=byte_progress(total),
    )
    out.mkdir(parents=True, exist_ok=True)
    for name, region in regions.items():
        region.save(out / f"{name}.region.safetensors")
        stats = region.statistics
        ratio = f"{region.threshold / stats['median']:.1f} × the median" if stats["median"] else "no median"
        say(
            f"{name}: {region.count} of {region.total} parameters, |Δ| >= {region.threshold or 0:.3g} "
            f"({ratio if region.threshold else 'no median'}); zero updates {stats['zero_share']:.1%}; "
            f"candidates {size(stats['candidate_bytes'])} in {stats['candidates_in']}"
            + (", read twice" if stats["reads"] > 1 else "")
        )
        for warning in region_warnings(name, region):
            Terminal().warning(warning.text)


def group(
    regions: Annotated[
        list[Path],
        typer.Argument(metavar="REGION...", help="Region files, or folders of them; the name is the task's."),
    ],
    threshold: Annotated[float, typer.Option(help="Jaccard overlap from which two tasks are grouped (τ).")] = 0.1,
    out: Annotated[Path, typer.Option(help="Where to write the result, JSON.")] = Path("groups.json"),
    seed: Annotated[int, typer.Option(help="Of the shuffled order of the groups.")] = 0,
) -> None:
    """Compare core regions, and group the tasks whose regions overlap.

    Shows the overlaps, and how often updates agree in sign where they overlap: which tasks interfere?
    """
    from cpift.console.terminal import say
    from cpift.method.group import group as compare
    from cpift.method.region import Region

    files = _region_files(regions)
    names = list(files)
    grouping = compare({name: Region.load(file) for name, file in files.items()}, threshold, seed=seed)
    write_text(out, json.dumps(grouping.to_dict(), indent=1) + "\n")
    for i, a in enumerate(names):
        for j in range(i):
            agreement = grouping.sign_agreement[i][j]
            same = "unknown" if agreement is None else f"{agreement:.0%}"
            say(f"{names[j]} – {a}: overlap {grouping.jaccard[i][j]:.4f}, same sign {same}")
    for number, members in enumerate(grouping.stages, start=1):
        say(f"stage {number}: {', '.join(members)}")


def _region_files(places: Sequence[Path]) -> dict[str, Path]:
    """Region files by task: those given, and those in folders that ``identify`` or a run has written."""
    files: dict[str, Path] = {}
    for place in places:
        inside = sorted(place.glob("*.region.safetensors")) if place.is_dir() else []
        if place.is_dir() and not inside and not (place / REGION_FILE).is_file():
            inside = sorted(place.glob(f"*/{REGION_FILE}"))  # the regions of a run
            if not inside:
                raise CpiftError(f"{place}: holds no {REGION_FILE} and no NAME.region.safetensors")
        for file in inside or [place / REGION_FILE if place.is_dir() else place]:
            name = file.parent.resolve().name if file.name == REGION_FILE else file.name
            name = name.removesuffix(".safetensors").removesuffix(".region")
            if name in files:
                raise CpiftError(f"two region files are named {name}; each task needs a name of its own")
            files[name] = file
    return files


def tuned_folders(values: Sequence[str]) -> dict[str, Path]:
    """Folders of ``--tuned`` by name; hub ids are fetched."""
    from cpift.checkpoint.hub import checkpoint_place

    return {name: checkpoint_place(path) for name, path in named_paths(values, "--tuned").items()}


def vocabulary_of(value: str) -> Literal["same", "union"]:
    """The value of ``--vocabulary``, checked."""
    if value == "same":
        return "same"
    if value == "union":
        return "union"
    raise CpiftError(f"--vocabulary {value}: write same or union")
