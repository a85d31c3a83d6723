"""Put patches on a model, and take them off again: the same bits in any order, and the base's bits once all are off.

A model that carries patches has their files in its folder ``patches/`` and a list of them, ``patches.json``.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import xxhash

from cpift.checkpoint.files import INDEX, SINGLE, read_json
from cpift.checkpoint.reader import open_checkpoint
from cpift.checkpoint.safetensors import StoredTensor
from cpift.checkpoint.stream import BLOCK, Block, Checkpoint, blocks
from cpift.checkpoint.writer import PATCHES, check_room, copy_companions, new_folder
from cpift.errors import CpiftError
from cpift.files.atomic import sync
from cpift.kernels.threads import ordered_map
from cpift.method.patch import Patch

FORMAT = "cpift.patches/1"
FOLDER = "patches"
# What is known of several patches on one model, shown where a second one is applied.
SEVERAL = (
    "patches that were trained apart from one another destroyed one another when applied together, in a pilot "
    "(docs/patch.md); score the model before you use it"
)


@dataclass(frozen=True)
class CarriedPatch:
    """A patch that a model carries.

    Attributes:
        name: of the patch.
        count: number of positions.
        tuned: fingerprint of the base with this patch alone.
    """

    name: str
    count: int
    tuned: str


@dataclass(frozen=True)
class Carried:
    """What a model's ``patches.json`` holds.

    Attributes:
        base: fingerprint of the model without any patch.
        model: fingerprint of the model as it is.
        patches: by name, sorted.
    """

    base: str
    model: str
    patches: list[CarriedPatch] = field(default_factory=list)

    @property
    def names(self) -> list[str]:
        """Of the patches, sorted."""
        return [patch.name for patch in self.patches]


def carried_patches(folder: str | Path) -> Carried | None:
    """The patches that a model's folder carries; None where it carries none.

    Raises:
        CpiftError: no such folder, or a damaged list.
    """
    folder = Path(folder)
    if not folder.exists():
        raise CpiftError(f"{folder}: no such checkpoint")
    file = folder / PATCHES
    if not file.is_file():
        return None
    data = read_json(file)
    try:
        if data["format"] != FORMAT:
            raise ValueError(f"format {data['format']!r}")
        patches = [CarriedPatch(str(p["name"]), int(p["count"]), str(p["tuned"])) for p in data["patches"]]
        return Carried(str(data["base"]), str(data["model"]), patches)
    except (KeyError, TypeError, ValueError) as error:
        raise CpiftError(f"{file}: is no list of patches ({error})") from error


def apply_patches(
    model: str | Path,
    patches: Sequence[str | Path],
    out: str | Path,
    *,
    threads: int | None = None,
    progress: Callable[[int], None] = lambda nbytes: None,
) -> Carried:
    """Write a model with patches on it; it may carry others already.

    Args:
        model: the base of the patches, or that with other patches on it.
        patches: their files.
        out: a new folder.
        threads: worker threads, by default one a core; changes speed only.
        progress: called with the number of bytes read since the last call.

    Raises:
        CpiftError: a patch of another base, one that overlaps another (both are named), one that is there already;
            a model that was changed since its patches were applied.
    """
    if not patches:
        raise CpiftError("patch apply: no patch given")
    opened, carried = _open(model)
    added = [Patch.load(path) for path in patches]
    held = _held(opened, carried)
    for i, patch in enumerate(added):
        for other in (*held, *added[:i]):
            if patch.name == other.name:
                raise CpiftError(f"{patch.path}: a patch named {patch.name} is there already")
            common = _common(patch, other)
            if common:
                raise CpiftError(
                    f"{patch.path}: overlaps the patch {other.name} at {common} positions; only one of the two can be applied"
                )
    return _rewritten(opened, carried, added, [], held, Path(out), threads, progress)


def remove_patches(
    model: str | Path,
    names: Sequence[str],
    out: str | Path,
    *,
    threads: int | None = None,
    progress: Callable[[int], None] = lambda nbytes: None,
) -> Carried:
    """Write a model without some of the patches that it carries; once all are off it has the base's bits.

    Args:
        model: a model that carries patches.
        names: of patches.
        out: a new folder.
        threads: worker threads, by default one a core; changes speed only.
        progress: called with the number of bytes read since the last call.

    Raises:
        CpiftError: no patch of that name; a model that was changed since its patches were applied.
    """
    opened, carried = _open(model)
    if carried is None:
        raise CpiftError(f"{opened.path}: carries no patches")
    strange = next((name for name in names if name not in carried.names), None)
    if strange is not None or not names:
        raise CpiftError(f"{opened.path}: carries no patch named {strange}; it has {', '.join(carried.names)}")
    held = _held(opened, carried)
    removed = [patch for patch in held if patch.name in names]
    kept = [patch for patch in held if patch.name not in names]
    return _rewritten(opened, carried, [], removed, kept, Path(out), threads, progress)


def _open(model: str | Path) -> tuple[Checkpoint, Carried | None]:
    opened = open_checkpoint(model)
    if not all(isinstance(tensor, StoredTensor) for tensor in opened.tensors.values()):
        raise CpiftError(
            f"{opened.path}: is an adapter; write it as a whole checkpoint first: cpift export --format whole"
        )
    return opened, carried_patches(opened.path) if opened.path.is_dir() else None


def _held(model: Checkpoint, carried: Carried | None) -> list[Patch]:
    """The patches that the model carries, opened."""
    return [Patch.load(model.path / FOLDER / f"{name}.safetensors") for name in (carried.names if carried else [])]


def _common(a: Patch, b: Patch) -> int:
    if a.base != b.base:
        return 0  # refused for that
    return a.region.overlap(b.region)[0]


@dataclass(frozen=True)
class _Change:
    """In one block: positions within it, and what stands there before and after, as stored."""

    at: np.ndarray
    before: np.ndarray
    after: np.ndarray


def _rewritten(
    model: Checkpoint,
    carried: Carried | None,
    added: list[Patch],
    removed: list[Patch],
    kept: list[Patch],
    out: Path,
    threads: int | None,
    progress: Callable[[int], None],
) -> Carried:
    """Check everything in one read, then copy the files and change them in place."""

    def checked(block: Block) -> tuple[bytes, bytes, str]:
        raw = model.raw(*block, ahead=True)
        own, wrong, new = xxhash.xxh3_64_digest(raw.data), "", raw
        for patch, change in _changes(block, added, removed):
            if change.before.dtype != raw.dtype or raw[change.at].tobytes() != change.before.tobytes():
                wrong = wrong or patch.name
                continue
            new = raw.copy() if new is raw else new
            new[change.at] = change.after
        return own, own if new is raw else xxhash.xxh3_64_digest(new.data), wrong

    _check_shapes(model, [*added, *removed])
    hashes, wrong = (model.hasher(), model.hasher()), ""
    for block, (before, after, name) in ordered_map(checked, blocks(model), threads):
        hashes[0].add(before)
        hashes[1].add(after)
        wrong = wrong or name
        progress((block.stop - block.start) * model.tensors[block.name].itemsize)
    own, made = (hashed.hexdigest() for hashed in hashes)
    base = own if carried is None else carried.base
    if carried is not None and own != carried.model:
        raise CpiftError(
            f"{model.path}: is not what its {PATCHES} describes: its weights were changed since; take the base, and apply the "
            "patches to that"
        )
    for patch in (*added, *removed):
        if patch.base != base:
            raise CpiftError(f"{patch.path}: fits another base ({patch.base[:12]}, {model.path} has {base[:12]})")
    if wrong:
        raise CpiftError(
            f"{model.path}: does not hold the values that the patch {wrong} was made from; the patch is damaged"
        )
    held = sorted((*kept, *added), key=lambda patch: patch.name)
    expected = base if not held else held[0].tuned if len(held) == 1 else made
    if made != expected:
        raise CpiftError(f"{model.path}: the result is not the model that the patches stand for; a patch is damaged")
    result = Carried(base, made, [CarriedPatch(patch.name, patch.count, patch.tuned) for patch in held])
    _write(model, added, removed, held, result, out)
    return result


def _changes(block: Block, added: Sequence[Patch], removed: Sequence[Patch]) -> Iterator[tuple[Patch, _Change]]:
    for patch, forward in [*((p, True) for p in added), *((p, False) for p in removed)]:
        if block.name not in patch.shapes:
            continue
        positions = patch.positions(block.name)
        first, last = np.searchsorted(positions, np.array([block.start, block.stop], positions.dtype))
        if first < last:
            parts = (patch.before(block.name)[first:last], patch.values(block.name)[first:last])
            yield (
                patch,
                _Change(positions[first:last].astype(np.int64) - block.start, *(parts if forward else parts[::-1])),
            )


def _check_shapes(model: Checkpoint, patches: Sequence[Patch]) -> None:
    for patch in patches:
        for name, shape in patch.shapes.items():
            if name not in model.tensors or model.tensors[name].shape != shape:
                raise CpiftError(f"{patch.path}: fits another base; {model.path} has no {name} of shape {list(shape)}")


def _write(
    model: Checkpoint,
    added: Sequence[Patch],
    removed: Sequence[Patch],
    held: Sequence[Patch],
    result: Carried,
    out: Path,
) -> None:
    """Copies of the model's files, changed in place; what lies beside the weights; the patches."""
    sources = sorted({file for tensor in (*model.tensors.values(), *model.others.values()) for file in tensor.files})
    check_room(out, sum(file.stat().st_size for file in (*sources, *(patch.path for patch in held))))
    home = model.path if model.path.is_dir() else model.path.parent
    with new_folder(out) as folder:
        names = {file: file.name if model.path.is_dir() else SINGLE for file in sources}
        for file, name in names.items():
            shutil.copyfile(file, folder / name)
            (folder / name).chmod(0o644)
        if model.path.is_dir():
            for index in {INDEX, str(model.config.get("transformers_weights", INDEX))}:
                if index.endswith(".index.json") and (home / index).is_file():
                    shutil.copyfile(home / index, folder / index)
        copy_companions(home, folder)
        for name, tensor in _written_tensors(model):
            for start in range(0, tensor.size, BLOCK):
                block = Block(name, start, min(start + BLOCK, tensor.size))
                changes = [change for _, change in _changes(block, added, removed)]
                if changes:
                    _put(folder / names[tensor.file], tensor, start, block.stop - start, changes)
        for name in names.values():
            sync(folder / name)
        if held:
            (folder / FOLDER).mkdir()
            for patch in held:
                shutil.copyfile(patch.path, folder / FOLDER / f"{patch.name}.safetensors")
            table = {"format": FORMAT, **asdict(result)}
            (folder / PATCHES).write_text(json.dumps(table, indent=1, sort_keys=True) + "\n")


def _written_tensors(model: Checkpoint) -> Iterator[tuple[str, StoredTensor]]:
    """Each place where a parameter is stored, with the parameter's name: the second copy of a tied pair is one more."""
    for name, tensor in (*model.tensors.items(), *((model.aliases[n], model.others[n]) for n in model.aliases)):
        assert isinstance(tensor, StoredTensor)
        yield name, tensor


def _put(file: Path, tensor: StoredTensor, start: int, size: int, changes: Sequence[_Change]) -> None:
    """Write the changed elements of one block into the file."""
    with file.open("r+b") as opened:
        first = tensor.begin + start * tensor.itemsize
        opened.seek(first)
        values = np.frombuffer(bytearray(opened.read(size * tensor.itemsize)), tensor.numpy_dtype)
        for change in changes:
            values[change.at] = change.after
        opened.seek(first)
        opened.write(values.tobytes())
