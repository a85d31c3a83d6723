"""The base of an adapter: where it lies, and whether one that was given is the one that the adapter was trained on."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np

from cpift.checkpoint.adapter_config import FILE, AdapterConfig
from cpift.checkpoint.hub import locate
from cpift.checkpoint.names import match_names
from cpift.checkpoint.stream import Checkpoint
from cpift.checkpoint.tensor import Tensor, widen
from cpift.errors import CpiftError

Opener = Callable[[Path], Checkpoint]
_SAMPLE = 256  # elements of each tensor that are compared


def named_base(config: AdapterConfig, weights: bool = True) -> Path:
    """The folder of the base that ``adapter_config.json`` names; one on the hub is fetched.

    Args:
        config: of the adapter.
        weights: fetch the weights of one on the hub? Without them, configuration and tokenizer alone.

    Raises:
        CpiftError: it names none, or one that is neither here nor on the hub.
    """
    if not config.base:
        raise CpiftError(f"{config.file}: base_model_name_or_path is empty; write the base's folder or hub id there")
    place = _local(config)
    if place is not None:
        return place
    try:
        return locate(config.base, None if "@" in config.base else config.revision, weights=weights)
    except CpiftError as error:
        raise CpiftError(f"{config.file}: its base_model_name_or_path cannot be read: {error}") from error


def check_base(config: AdapterConfig, base: Checkpoint, opened: Opener) -> None:
    """Compare a base that was given with the one that the adapter names, as far as the two can be distinguished.

    A base that lies here under its name is compared by a sample of its weights. One of the hub is compared by repository
    and commit where the base given lies in the hub's cache.

    Args:
        config: of the adapter.
        base: what it shall be applied to.
        opened: opens a plain checkpoint.

    Raises:
        CpiftError: it is known to be another model or another revision.
    """
    remedy = f"give that one, or mend base_model_name_or_path in {FILE} where it is only another name"
    place = _local(config)
    if place is not None:
        if not os.path.samefile(place, base.path) and (place / "config.json").is_file():
            _compare(config, base, place, opened, remedy)
        return
    cached = _cached(base.path)
    if cached is None:
        return
    repository, commit, folder = cached
    if _model(repository) != _model(config.base):
        raise CpiftError(f"{config.file}: was trained on {config.base}, the base given is {repository}; {remedy}")
    wanted = _commit(config.revision, folder)
    if wanted is not None and wanted != commit and repository == config.base:
        raise CpiftError(
            f"{config.file}: was trained on revision {config.revision} of {config.base}, the base given is commit "
            f"{commit[:12]}; give {config.base}@{config.revision}"
        )


def hub_name(folder: Path) -> tuple[str, str] | None:
    """Repository and commit of a folder in the hub's cache; None for any other folder."""
    cached = _cached(folder)
    return None if cached is None else cached[:2]


def _local(config: AdapterConfig) -> Path | None:
    """The base as a folder here: from the working directory, or from the adapter's folder."""
    if not config.base or "\0" in config.base:
        return None
    for place in (Path(config.base), config.file.parent / config.base):
        if os.path.isdir(place):
            return place
    return None


def _cached(path: Path) -> tuple[str, str, Path] | None:
    """Repository, commit and folder of a snapshot in the hub's cache; None for any other place."""
    match = re.search(r"/models--([^/]+)/snapshots/([0-9a-f]{40})$", str(path.absolute()))
    return (match[1].replace("--", "/", 1), match[2], path.absolute().parents[1]) if match else None


def _commit(revision: str | None, folder: Path) -> str | None:
    """The commit of a revision, as far as the cache knows."""
    if revision is None or re.fullmatch(r"[0-9a-f]{40}", revision):
        return revision
    file = folder / "refs" / revision
    return file.read_text().strip() if revision == Path(revision).name and file.is_file() else None


def _model(name: str) -> str:
    """The model's name alone: adapters are often trained on a 4-bit copy of their base, under another owner."""
    return re.sub(r"(-unsloth)?-bnb-4bit$", "", name.partition("@")[0].rpartition("/")[2].lower())


def _compare(config: AdapterConfig, base: Checkpoint, place: Path, opened: Opener, remedy: str) -> None:
    try:
        named = opened(place)
    except CpiftError:  # quantised, most often: its numbers cannot be compared
        return
    for name, own in match_names(list(base.tensors), list(named.tensors)).items():
        if not _alike(base.tensors[name], named.tensors[own]):
            raise CpiftError(
                f"{config.file}: was trained on {config.base}, whose {own} is another than that of {base.path}; {remedy}"
            )


def _alike(left: Tensor, right: Tensor) -> bool:
    """Are the first elements the same numbers, once both are rounded to the narrower type?"""
    if left.shape != right.shape:
        return False
    count = min(_SAMPLE, left.size)
    a, b = (widen(t.read(0, count), t.dtype, np.empty(count, np.float32)) for t in (left, right))
    if left.dtype == right.dtype:
        return bool(np.array_equal(a, b))
    kind = min(left.dtype, right.dtype, key=lambda dtype: ["BF16", "F16", "F32", "F64"].index(dtype))
    return bool(np.array_equal(_rounded(a.astype(np.float32), kind), _rounded(b.astype(np.float32), kind)))


def _rounded(values: np.ndarray, dtype: str) -> np.ndarray:
    if dtype == "F16":
        with np.errstate(over="ignore"):
            return values.astype(np.float16).astype(np.float32)
    if dtype != "BF16":
        return values
    bits = values.view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) & np.uint32(0xFFFF0000)).view(np.float32)
