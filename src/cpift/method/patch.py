"""A skill as a sparse patch: the positions at which a model differs from its base, and both values (``cpift.patch/1``).

One safetensors file. For each parameter that differs it holds ``positions:NAME`` (sorted, row-major), ``values:NAME`` and
``before:NAME``, the last two in the base's type. The base's values let a patch be taken off again, bit for bit.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import xxhash

from cpift.checkpoint.align import align
from cpift.checkpoint.compatibility import check_compatible
from cpift.checkpoint.convert import converted
from cpift.checkpoint.reader import open_checkpoint
from cpift.checkpoint.safetensors import StoredTensor, read_header_and_metadata
from cpift.checkpoint.stream import BLOCK, Block, Checkpoint, blocks
from cpift.checkpoint.tensor import Tensor, itemsize
from cpift.checkpoint.writer import Layout, Shard
from cpift.errors import CpiftError
from cpift.kernels.threads import ordered_map
from cpift.method.region import Region
from cpift.method.transplant import core_positions

FORMAT = "cpift.patch/1"
MAX_SHARE = 0.25  # from here on a patch of a bf16 model is as large as the model
_NAME = re.compile(r"[^./\\\0][^/\\\0]{0,99}")


@dataclass(frozen=True)
class Patch:
    """A patch file, opened; its arrays are read by memory map.

    Attributes:
        path: of the file.
        name: what it is called where it is applied.
        base: fingerprint of the model it fits.
        tuned: fingerprint of that model with this patch alone.
        count: number of positions.
        total: elements of the model.
        shapes: of the parameters it changes.
        tensors: of the file: positions, values, and the values before, by parameter.
    """

    path: Path
    name: str
    base: str
    tuned: str
    count: int
    total: int
    shapes: Mapping[str, tuple[int, ...]]
    tensors: Mapping[str, Tensor]

    @property
    def region(self) -> Region:
        """Its positions."""
        positions = {name: self.positions(name) for name in self.shapes}
        return Region(positions, self.total, shapes=self.shapes, base=self.base)

    def positions(self, name: str) -> np.ndarray:
        """Sorted row-major positions in the parameter ``name``: (n,), int32 or int64."""
        return self._read("positions", name)

    def values(self, name: str) -> np.ndarray:
        """What the patch puts in place, as stored: (n,) beside the positions of ``name``."""
        return self._read("values", name)

    def before(self, name: str) -> np.ndarray:
        """The base's values there, as stored."""
        return self._read("before", name)

    def _read(self, part: str, name: str) -> np.ndarray:
        tensor = self.tensors[f"{part}:{name}"]
        return tensor.read(0, tensor.size)

    @classmethod
    def load(cls, path: str | Path) -> Patch:
        """Open a patch file. Raises :class:`CpiftError` where it is damaged or of another format."""
        path = Path(path)
        if not path.exists():
            raise CpiftError(f"{path}: no such patch; cpift patch make writes one")
        tensors, metadata = read_header_and_metadata(path)
        if metadata.get("format") != FORMAT:
            raise CpiftError(f"{path}: is no patch (format {FORMAT}); cpift patch make writes one")
        try:
            shapes = {name: tuple(int(d) for d in shape) for name, shape in json.loads(metadata["shapes"]).items()}
            patch = cls(
                path,
                check_name(metadata["name"], path),
                metadata["base"],
                metadata["tuned"],
                int(metadata["count"]),
                int(metadata["total"]),
                shapes,
                tensors,
            )
        except (KeyError, ValueError, TypeError, AttributeError, RecursionError) as error:
            raise CpiftError(f"{path}: damaged metadata ({error})") from error
        _check_tensors(patch, tensors)
        return patch


def check_name(name: str, where: object) -> str:
    """The name of a patch, if a file can be called so. Raises :class:`CpiftError` otherwise."""
    if not _NAME.fullmatch(name):
        raise CpiftError(f"{where}: {name!r} is no name of a patch; use a short one without slashes or a leading dot")
    return name


def _check_tensors(patch: Patch, tensors: Mapping[str, StoredTensor]) -> None:
    """Every part is there, of one length, and positions are sorted positions of their parameter."""
    expected = {f"{part}:{name}" for name in patch.shapes for part in ("positions", "values", "before")}
    lengths = Counter[str]()
    for name, tensor in tensors.items():
        lengths[name.partition(":")[2]] += tensor.size
    sound = set(tensors) == expected and all(len(t.shape) == 1 for t in tensors.values())
    for name in patch.shapes if sound else ():
        places, after, before = (tensors[f"{part}:{name}"] for part in ("positions", "values", "before"))
        sound = sound and places.dtype in ("I32", "I64") and after.floating and after.dtype == before.dtype
        sound = sound and places.size == after.size == before.size > 0
    count = sum(tensors[f"positions:{name}"].size for name in patch.shapes) if sound else -1
    if not sound or count != patch.count:
        raise CpiftError(f"{patch.path}: damaged patch (its parts do not fit together)")
    for name in patch.shapes:
        positions = patch.positions(name)
        limit = math.prod(patch.shapes[name])
        ordered = positions[0] >= 0 and positions[-1] < limit
        for start in range(0, len(positions), BLOCK):
            part = positions[start : start + BLOCK + 1]
            ordered = ordered and bool(np.all(part[1:] > part[:-1]))
        if not ordered:
            raise CpiftError(f"{patch.path}: damaged patch (positions of {name})")


@dataclass(frozen=True)
class PatchReport:
    """What :func:`make_patch` wrote.

    Attributes:
        name: of the patch.
        count: number of positions.
        total: elements of the model.
        nbytes: size of the file.
        warnings: what a user should know of the two checkpoints.
    """

    name: str
    count: int
    total: int
    nbytes: int
    warnings: list[str]


class _Changes(NamedTuple):
    """What differs in a block: positions in it, both values, checksums of the two, and how many lie outside the region."""

    at: np.ndarray
    values: np.ndarray
    before: np.ndarray
    checksums: tuple[bytes, bytes]
    outside: int


def make_patch(
    base: str | Path,
    tuned: str | Path,
    out: str | Path,
    *,
    name: str | None = None,
    region: Region | None = None,
    max_share: float = MAX_SHARE,
    rounded: bool = False,
    threads: int | None = None,
    progress: Callable[[int], None] = lambda nbytes: None,
) -> PatchReport:
    """Write what differs between a model and its base as a patch. Reads both twice, block by block.

    Args:
        base: the model that the patch will fit.
        tuned: the model that was trained from it, inside a region.
        out: the file to write.
        name: of the patch; by default the file's, without its ending.
        region: where the two may differ.
        max_share: largest share of positions that may differ, 0 to 1.
        rounded: round the tuned values to the base's types, where these are others.
        threads: worker threads, by default one a core; changes speed only.
        progress: called with the number of bytes read since the last call.

    Raises:
        CpiftError: the models differ outside the region, at too many positions or nowhere; other types or buffers.
    """
    out = Path(out)
    name = check_name(out.name.removesuffix(".safetensors") if name is None else name, "--name")
    origin = open_checkpoint(base)
    opened = open_checkpoint(tuned, origin)
    warnings = check_compatible(origin, {name: opened})
    model = align(origin, opened)
    _check_types(origin, model, rounded)
    _check_buffers(origin, model)
    if region is not None:
        _check_region(origin, region)

    def compare(block: Block) -> _Changes:
        return _compared(origin, model, block, region)

    hashes, counts, outside = (origin.hasher(), origin.hasher()), Counter[str](), Counter[str]()
    for block, changes in ordered_map(compare, blocks(origin), threads):
        for hashed, checksum in zip(hashes, changes.checksums, strict=True):
            hashed.add(checksum)
        counts[block.name] += len(changes.at)
        outside[block.name] += changes.outside
        progress(2 * (block.stop - block.start) * origin.tensors[block.name].itemsize)
    own, count = hashes[0].hexdigest(), sum(counts.values())
    if region is not None and region.base and region.base != own:
        raise CpiftError(f"--region: was selected against another base ({region.base[:12]}, not {own[:12]})")
    _check_counts(opened, counts, outside, origin.total, max_share)
    layout: dict[str, tuple[str, tuple[int, ...]]] = {}
    for parameter, n in counts.items():
        tensor = origin.tensors[parameter]
        if n:
            layout[f"positions:{parameter}"] = ("I32" if tensor.size < 2**31 else "I64"), (n,)
            layout[f"values:{parameter}"] = layout[f"before:{parameter}"] = tensor.dtype, (n,)
    shapes = {parameter: list(origin.tensors[parameter].shape) for parameter, n in counts.items() if n}
    metadata = {
        "format": FORMAT,
        "name": name,
        "base": own,
        "tuned": hashes[1].hexdigest(),
        "count": str(count),
        "total": str(origin.total),
        "shapes": json.dumps(shapes),
    }
    _write(out, layout, metadata, origin, compare, threads, progress)
    return PatchReport(name, count, origin.total, os.path.getsize(out), warnings)


def _compared(origin: Checkpoint, model: Checkpoint, block: Block, region: Region | None) -> _Changes:
    tensor = origin.tensors[block.name]
    before = origin.raw(*block, ahead=True)
    after = converted(model.raw(*block, ahead=True), model.tensors[block.name].dtype, tensor.dtype, block.name)
    kind = np.dtype(f"u{tensor.itemsize}")
    at = np.flatnonzero(before.view(kind) != after.view(kind))
    outside = 0
    if region is not None:
        (allowed,) = core_positions({"": region}, [""], block)
        outside = len(at) - (0 if allowed is None else int(np.isin(at, allowed, assume_unique=True).sum()))
    sums = (xxhash.xxh3_64_digest(before.data), xxhash.xxh3_64_digest(np.ascontiguousarray(after).data))
    return _Changes(at, after[at], before[at], sums, outside)


def _write(
    out: Path,
    layout: Layout,
    metadata: Mapping[str, str],
    origin: Checkpoint,
    compare: Callable[[Block], _Changes],
    threads: int | None,
    progress: Callable[[int], None],
) -> None:
    """The second read, to the file; it appears whole or not at all."""
    out.parent.mkdir(parents=True, exist_ok=True)
    changed = Checkpoint(origin.path, {n: t for n, t in origin.tensors.items() if f"values:{n}" in layout}, {}, {})
    wide_first = dict(sorted(layout.items(), key=lambda item: (-itemsize(item[1][0]), item[0])))  # aligned, all of them
    shard = Shard(out, wide_first, metadata)
    try:
        shard.open()
        done = Counter[str]()
        for block, changes in ordered_map(compare, blocks(changed), threads):
            kind = np.int32 if layout[f"positions:{block.name}"][0] == "I32" else np.int64
            shard.write(f"positions:{block.name}", done[block.name], (changes.at + block.start).astype(kind).data)
            shard.write(f"values:{block.name}", done[block.name], np.ascontiguousarray(changes.values).data)
            shard.write(f"before:{block.name}", done[block.name], np.ascontiguousarray(changes.before).data)
            done[block.name] += len(changes.at)
            progress(2 * (block.stop - block.start) * origin.tensors[block.name].itemsize)
        shard.close()
    finally:
        out.with_name(f".{out.name}.partial").unlink(missing_ok=True)


def _check_types(origin: Checkpoint, model: Checkpoint, rounded: bool) -> None:
    other = next((n for n, t in origin.tensors.items() if model.tensors[n].dtype != t.dtype), None)
    if other is not None and not rounded:
        raise CpiftError(
            f"{model.path}: {other} is stored as {model.tensors[other].dtype}, in the base as {origin.tensors[other].dtype}; "
            "a patch puts values in place as they are. Save both in one type, or round to the base's with --round"
        )


def _check_buffers(origin: Checkpoint, model: Checkpoint) -> None:
    """A patch holds parameters alone; a buffer that differs would be lost without a word."""
    for name in origin.others.keys() & model.others.keys() - origin.aliases.keys():
        ours, theirs = origin.others[name], model.others[name]
        if (ours.dtype, ours.shape) != (theirs.dtype, theirs.shape) or (
            ours.read(0, ours.size).tobytes() != theirs.read(0, theirs.size).tobytes()
        ):
            raise CpiftError(
                f"{model.path}: the buffer {name} is another than the base's, and a patch holds no buffers"
            )


def _check_region(origin: Checkpoint, region: Region) -> None:
    for name, positions in region.positions.items():
        tensor = origin.tensors.get(name)
        if tensor is None or positions[-1] >= tensor.size or region.shapes.get(name, tensor.shape) != tensor.shape:
            raise CpiftError(f"--region: {name} does not fit {origin.path}; it is a region of another base")


def _check_counts(
    tuned: Checkpoint, counts: Mapping[str, int], outside: Mapping[str, int], total: int, max_share: float
) -> None:
    count, strangers = sum(counts.values()), sum(outside.values())
    if not count:
        raise CpiftError(f"{tuned.path}: does not differ from the base; there is nothing to patch")
    if strangers:
        first = next(name for name, n in outside.items() if n)
        raise CpiftError(
            f"{tuned.path}: differs from the base at {strangers} positions outside the region, {outside[first]} of them in "
            f"{first}; train inside the region, or leave --region out"
        )
    if count > max_share * total:
        raise CpiftError(
            f"{tuned.path}: differs from the base at {count / total:.1%} of all positions, more than {max_share:.0%}: such a "
            "patch is as large as a model. Train inside a region, or allow it by --max-share"
        )
