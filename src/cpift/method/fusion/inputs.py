"""The checkpoints and regions that are fused: opened, aligned and checked against one another."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
import xxhash

from cpift.checkpoint.align import align
from cpift.checkpoint.companions import Companions
from cpift.checkpoint.compatibility import check_compatible
from cpift.checkpoint.copies import Copies
from cpift.checkpoint.names import match_names
from cpift.checkpoint.reader import open_checkpoint
from cpift.checkpoint.stream import Checkpoint
from cpift.checkpoint.vocabulary import Rows, base_rows, has_rows_of_tokens, union, write_tokenizer
from cpift.checkpoint.writer import Layout, set_vocabulary
from cpift.errors import CpiftError
from cpift.method.fusion.options import BASE, DTYPES, FusionOptions
from cpift.method.region import Region


@dataclass(frozen=True)
class Inputs:
    """What is fused.

    Attributes:
        base: θ⁰.
        backbone: θ_base; the same object as ``base`` where none is given.
        tasks: the fine-tuned checkpoints by task, in the recipe's order, under the base's names.
        regions: core region of each task that has one.
        rows: rows of added tokens, which are copied.
        copies: buffers and second names of tied pairs, which are copied.
        companions: where configuration, tokenizer and the like come from.
        warnings: what a user should know.
        stored_as: type of a parameter, by its name, in an output "as the base", where it is another than the base's.
    """

    base: Checkpoint
    backbone: Checkpoint
    tasks: dict[str, Checkpoint]
    regions: dict[str, Region]
    rows: Rows
    copies: Copies
    companions: Companions
    warnings: list[str]
    stored_as: Mapping[str, str] = field(default_factory=dict)

    @property
    def models(self) -> list[Checkpoint]:
        """θ⁰, the backbone, each task: the order of coefficients."""
        return [self.base, self.backbone, *self.tasks.values()]

    @cached_property
    def distinct(self) -> list[Checkpoint]:
        """:attr:`models`, each once."""
        return [m for i, m in enumerate(self.models) if m not in self.models[:i]]

    @cached_property
    def places(self) -> list[int]:
        """Where each of :attr:`models` is in :attr:`distinct`."""
        return [self.distinct.index(model) for model in self.models]

    def layout(self, dtype: str | None) -> dict[str, tuple[str, tuple[int, ...]]]:
        """Type and shape of each parameter of the output.

        Args:
            dtype: of all parameters, as torch names it; "base": as the base has it; None: the widest of the inputs.
        """
        return {
            name: (self._stored_as(name, dtype), self.rows.shape(name, tensor.shape))
            for name, tensor in self.base.tensors.items()
        }

    def _stored_as(self, name: str, dtype: str | None) -> str:
        if dtype == BASE:
            return self.stored_as.get(name, self.base.tensors[name].dtype)
        return DTYPES[dtype] if dtype else _widest({model.tensors[name].dtype for model in self.models})

    def layout_of_copies(self, parameters: Layout) -> Layout:
        """Type and shape of what is copied: second names of tied pairs, and buffers."""
        tied = {name: parameters[source] for name, source in self.copies.aliases.items()}
        buffers = {name: self.copies.tensor(name) for name in self.copies.buffers}
        return tied | {name: (tensor.dtype, tensor.shape) for name, tensor in buffers.items()}

    def key(self, options: FusionOptions) -> str:
        """What a half-written output must agree on to be resumed: the options, files and regions."""
        state = xxhash.xxh3_128(json.dumps(options.to_dict(), sort_keys=True).encode())
        for model in self.models:
            for file in model.files:
                stat = file.stat()
                state.update(f"{file.resolve()} {stat.st_size} {stat.st_mtime_ns}".encode())
        state.update(json.dumps(self.stored_as).encode() if self.stored_as else b"")
        for task in self.tasks:
            state.update(task.encode())
            if task in self.regions:
                for name, positions in self.regions[task].positions.items():
                    state.update(name.encode())
                    state.update(np.ascontiguousarray(positions).data)
        return state.hexdigest()

    def check_regions(self, fingerprints: list[str]) -> None:
        """Was each region selected on these checkpoints?

        Args:
            fingerprints: of :attr:`models`.

        Raises:
            CpiftError: a region of another base or another fine-tuned checkpoint.
        """
        for task, region in self.regions.items():
            base, own = fingerprints[0], fingerprints[2 + list(self.tasks).index(task)]
            if region.base and region.base != base:
                raise CpiftError(
                    f"region of {task}: selected against another base ({region.base[:12]}, not {base[:12]})"
                )
            if region.tuned and region.tuned != own:
                raise CpiftError(
                    f"region of {task}: selected on another checkpoint ({region.tuned[:12]}, not {own[:12]})"
                )

    def write_companions(self, folder: Path) -> None:
        """Write configuration, tokenizer and the like into ``folder``."""
        self.companions.write(folder)
        if self.rows.counts:
            write_tokenizer(folder, [model.path for model in self.rows.models.values()])
            set_vocabulary(folder / "config.json", max(self.rows.counts.values()))


def open_inputs(
    base: str | Path,
    backbone: str | Path | None,
    tuned: Mapping[str, str | Path],
    regions: Mapping[str, Region | str | Path],
    union_of_rows: bool,
    stored_as: str | Path | None = None,
) -> Inputs:
    """Open what is fused. Reads headers, regions and companions, no weights.

    Whether the base is complete is for the caller to check: that takes seconds.

    Args:
        base: θ⁰.
        backbone: θ_base; None: θ⁰.
        tuned: the fine-tuned checkpoints by task. An adapter is applied to ``base``.
        regions: core region of each task that has one.
        union_of_rows: may a tuned vocabulary be larger than the base's?
        stored_as: the checkpoint whose types an output "as the base" has; None: the base.

    Raises:
        CpiftError: checkpoints that do not match, or a region of another model.
    """
    if not tuned:
        raise CpiftError("fuse: no tuned checkpoint given")
    unknown = sorted(set(regions) - set(tuned))
    if unknown:
        raise CpiftError(f"fuse: a region is given for {unknown[0]}, which is none of {', '.join(tuned)}")
    origin = open_checkpoint(base)
    loaded = {n: r if isinstance(r, Region) else Region.load(r) for n, r in regions.items()}
    _check_fit(origin, loaded)
    opened = {name: open_checkpoint(path, origin) for name, path in tuned.items()}
    start = None if backbone is None else open_checkpoint(backbone, origin)
    others = {**({} if start is None else {"the backbone": start}), **opened}
    warnings = check_compatible(origin, others, union=union_of_rows)
    grows = has_rows_of_tokens if union_of_rows else lambda name: False
    aligned = {name: align(origin, model, grows) for name, model in others.items()}
    rows = union(origin, aligned) if union_of_rows else Rows()
    cut_off = {name: base_rows(model, origin) for name, model in aligned.items()} if union_of_rows else aligned
    first = cut_off.get("the backbone", origin)
    copies = Copies.collect(
        {"the backbone": first, "the base": origin, **cut_off} if start else {"the base": origin, **cut_off}
    )
    folders = {name: model.folders for name, model in opened.items()}
    home = None if start is None or start.path == origin.path else start.folders
    companions = Companions.choose(origin.folders, home, folders)
    warnings += [*copies.warnings, *companions.warnings]
    models = {name: cut_off[name] for name in opened}
    types = {} if stored_as is None else _types(origin, open_checkpoint(stored_as))
    return Inputs(origin, first if start else origin, models, loaded, rows, copies, companions, warnings, types)


def _types(base: Checkpoint, other: Checkpoint) -> dict[str, str]:
    """Types of the other's parameters, under the names of the base."""
    names = match_names(list(base.tensors), list(other.tensors))
    return {ours: other.tensors[theirs].dtype for ours, theirs in names.items()}


def _check_fit(base: Checkpoint, regions: Mapping[str, Region]) -> None:
    first: tuple[str, str] | None = None
    for task, region in regions.items():
        for name, positions in region.positions.items():
            tensor = base.tensors.get(name)
            if tensor is None or positions[-1] >= tensor.size or region.shapes.get(name, tensor.shape) != tensor.shape:
                raise CpiftError(f"region of {task}: {name} does not fit {base.path}; it is a region of another base")
        if region.base:
            first = first or (task, region.base)
            if region.base != first[1]:
                raise CpiftError(f"region of {task}: selected against another base than the region of {first[0]}")


def _widest(kinds: set[str]) -> str:
    if len(kinds) == 1:
        return next(iter(kinds))
    return "F64" if "F64" in kinds else "F32"
