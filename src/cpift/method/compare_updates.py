"""Which fine-tuned checkpoints collide, and where: core regions, signs and cosines of the updates, in one read."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from cpift.checkpoint import layers
from cpift.checkpoint.align import align, excluded
from cpift.checkpoint.compatibility import check_compatible
from cpift.checkpoint.reader import open_checkpoint
from cpift.checkpoint.stream import Checkpoint, blocks
from cpift.errors import CpiftError
from cpift.kernels.loops import Loops, loops_for
from cpift.method.group import components
from cpift.method.identify import identify
from cpift.method.region import Region
from cpift.method.transplant import core_positions, values_at
from cpift.method.zero_updates import zero_warnings

SCHEMA = "cpift.diff/1"
OUTSIDE = "outside"  # of the layers: embeddings, the last norm, the head


@dataclass(frozen=True)
class Parts:
    """Numbers by part of the model, each part's name to its number.

    Attributes:
        kinds: embedding, attention, MLP, norm, other.
        modules: ``q_proj``, ``down_proj`` and so on.
        layers: number of the layer as text, or "outside".
    """

    kinds: dict[str, float]
    modules: dict[str, float]
    layers: dict[str, float]


@dataclass(frozen=True)
class Update:
    """The update of one fine-tuned checkpoint.

    Attributes:
        name: of the checkpoint.
        fingerprint: of its weights.
        count: number of core positions.
        threshold: smallest |Δ| among them; None where the region holds all that changed.
        zero_share: share of the counted elements that did not change.
        norm: of Δ (L2).
        share: share of the core region by part.
        core: number of core positions by parameter.
    """

    name: str
    fingerprint: str
    count: int
    threshold: float | None
    zero_share: float
    norm: float
    share: Parts
    core: dict[str, int]


@dataclass(frozen=True)
class Pair:
    """Two updates beside each other.

    Attributes:
        first: name of one checkpoint.
        second: name of the other.
        overlap: Jaccard of the core regions.
        chance: its expected value for two random regions of these sizes.
        chance_by_tensor: the same where each random region also has as many positions in each tensor as the real one.
        shared: number of common positions.
        same_sign: share of these at which both updates have one sign; None without any.
        cosine: of the whole updates; None where one is zero.
        shared_share: share of the common positions by part.
    """

    first: str
    second: str
    overlap: float
    chance: float
    chance_by_tensor: float
    shared: int
    same_sign: float | None
    cosine: float | None
    shared_share: Parts


@dataclass(frozen=True)
class Comparison:
    """What ``cpift diff --json`` prints.

    Attributes:
        base: fingerprint of the base's weights.
        total: number of counted elements (D).
        percent: p, as it was given.
        threshold: of the overlap, from which two checkpoints share a group.
        exclude: patterns of the parameters that do not count.
        size_share: share of the counted elements by part.
        models: the updates, in the order given.
        pairs: each two of them.
        groups: connected components of the pairs whose overlap is at or above ``threshold``.
        warnings: what a user should know before trusting the numbers.
        sizes: counted elements by parameter.
        schema: of this record.
    """

    base: str
    total: int
    percent: str
    threshold: float
    exclude: list[str]
    size_share: Parts
    models: list[Update]
    pairs: list[Pair]
    groups: list[list[str]]
    warnings: list[str]
    sizes: dict[str, int]
    schema: str = SCHEMA

    def to_dict(self) -> dict[str, Any]:
        """The record as JSON takes it."""
        return {"schema": self.schema, **asdict(self)}

    def overlaps(self) -> list[list[float]]:
        """Jaccard overlaps as a matrix in the order of ``models``, 1 on the diagonal."""
        names = [model.name for model in self.models]
        matrix = np.eye(len(names)).tolist()
        for pair in self.pairs:
            i, j = names.index(pair.first), names.index(pair.second)
            matrix[i][j] = matrix[j][i] = pair.overlap
        return [list(map(float, row)) for row in matrix]


def compare_updates(
    base: str | Path,
    tuned: Mapping[str, str | Path],
    percent: str | float | int = 1,
    threshold: float = 0.1,
    *,
    exclude: Iterable[str] = (),
    threads: int | None = None,
    max_memory: int | None = None,
    progress: Callable[[int], None] = lambda nbytes: None,
) -> Comparison:
    """Compare the updates of fine-tuned checkpoints of one base, two by two.

    Regions are those of :func:`cpift.method.identify.identify`, but for positions that did not change at all: where
    fewer than top ``percent`` % changed, the region holds only these. Everything is measured in one read.

    Args:
        base: the checkpoint that all were fine-tuned from.
        tuned: the fine-tuned checkpoints by name.
        percent: share of the counted elements in a core region, 0 < percent <= 100.
        threshold: τ, the Jaccard overlap from which two are grouped (paper section 3.2), 0 to 1.
        exclude: shell-style patterns of parameters that do not count.
        threads: worker threads, by default one a core; changes speed only.
        max_memory: bytes that candidates may take in memory; above, they go to a scratch file.
        progress: called with the number of bytes read since the last call.

    Raises:
        CpiftError: checkpoints that do not belong together, NaN or infinite weights, a value out of range.
    """
    if not tuned:
        raise CpiftError("diff: no fine-tuned checkpoint given; write cpift diff BASE A B")
    if not 0 <= threshold <= 1:
        raise CpiftError(f"threshold: {threshold} is not in 0 … 1")
    origin, patterns = open_checkpoint(base), list(exclude)
    opened = {name: open_checkpoint(path, origin) for name, path in tuned.items()}
    warnings = check_compatible(origin, opened)
    skipped = excluded(origin.tensors, patterns)
    sizes = {name: tensor.size for name, tensor in origin.tensors.items() if name not in skipped}
    loops = loops_for(sum(sizes.values()) * len(tuned))
    grams = _Grams(len(tuned), loops)
    regions = identify(
        base,
        tuned,
        percent,
        exclude=patterns,
        threads=threads,
        max_memory=max_memory,
        progress=progress,
        observer=grams,
    )
    for name, region in regions.items():
        warnings += [warning.text for warning in zero_warnings(name, region.statistics)]
        if region.count and not region.threshold:
            regions[name] = _changed_only(origin, align(origin, opened[name]), region)
            warnings.append(
                f"{name}: only {regions[name].count} of the {region.count} core positions changed; its region holds these"
            )
    names, gram = list(regions), grams.total()
    pairs = [
        _pair(names[i], names[j], regions, sizes, _cosine(gram, i, j), loops)
        for j in range(len(names))
        for i in range(j)
    ]
    comparison = Comparison(
        base=regions[names[0]].base,
        total=sum(sizes.values()),
        percent=str(percent),
        threshold=threshold,
        exclude=patterns,
        size_share=_shares(sizes),
        models=[_update(name, regions[name], math.sqrt(gram[i, i])) for i, name in enumerate(names)],
        pairs=pairs,
        groups=[],
        warnings=warnings,
        sizes=sizes,
    )
    return replace(comparison, groups=components(names, comparison.overlaps(), threshold))


class _Grams:
    """Inner products of all updates with one another, summed block by block in order, in float64."""

    def __init__(self, updates: int, loops: Loops) -> None:
        self._sum, self._loops = np.zeros((updates, updates)), loops

    def measure(self, stored: Sequence[np.ndarray], before: np.ndarray | None) -> np.ndarray:
        products = np.zeros_like(self._sum) if before is None else before
        addresses, itemsizes = np.array([s.ctypes.data for s in stored]), np.array([s.itemsize for s in stored])
        self._loops.add_update_gram(addresses, itemsizes, len(stored[0]), products)
        return products

    def add(self, measured: np.ndarray) -> None:
        self._sum += measured

    def total(self) -> np.ndarray:
        """Symmetric, (N, N): the updates in their order."""
        whole: np.ndarray = np.tril(self._sum) + np.tril(self._sum, -1).T
        return whole


def _cosine(gram: np.ndarray, i: int, j: int) -> float | None:
    norms = math.sqrt(gram[i, i]) * math.sqrt(gram[j, j])
    return float(gram[i, j] / norms) if norms else None


def _changed_only(base: Checkpoint, tuned: Checkpoint, region: Region) -> Region:
    """The region without the positions at which nothing changed: these were chosen by their place alone."""
    changed: dict[str, list[np.ndarray]] = {}
    for block in blocks(base):
        (at,) = core_positions({"": region}, [""], block)
        if at is not None:
            before, after = (values_at(model, block, at).astype(np.float32) for model in (base, tuned))  # as Δ is taken
            changed.setdefault(block.name, []).append(before != after)
    masks = {name: np.concatenate(parts) for name, parts in changed.items()}
    kept = [name for name, mask in masks.items() if mask.any()]
    negative = region.negative
    return replace(
        region,
        positions={name: region.positions[name][masks[name]] for name in kept},
        negative=None if negative is None else {name: negative[name][masks[name]] for name in kept},
        threshold=None,
    )


def _update(name: str, region: Region, norm: float) -> Update:
    counts = region.counts()
    return Update(
        name=name,
        fingerprint=region.tuned,
        count=region.count,
        threshold=region.threshold,
        zero_share=float(region.statistics["zero_share"]),
        norm=norm,
        share=_shares(counts),
        core=counts,
    )


def _pair(
    first: str,
    second: str,
    regions: Mapping[str, Region],
    sizes: Mapping[str, int],
    cosine: float | None,
    loops: Loops,
) -> Pair:
    a, b = regions[first], regions[second]
    common, agreeing = Counter[str](), 0
    assert a.negative is not None
    assert b.negative is not None
    for name in a.positions:
        if name in b.positions:
            signs = _read_only(a.negative[name]), _read_only(b.negative[name])
            shared, same = loops.count_common(_read_only(a.positions[name]), _read_only(b.positions[name]), *signs)
            common[name] = shared
            agreeing += same
    shared = sum(common.values())
    return Pair(
        first=first,
        second=second,
        overlap=_jaccard(shared, a.count, b.count),
        chance=_jaccard(a.count * b.count / max(1, sum(sizes.values())), a.count, b.count),
        chance_by_tensor=_jaccard(
            sum(len(p) * len(b.positions[n]) / sizes[n] for n, p in a.positions.items() if n in b.positions),
            a.count,
            b.count,
        ),
        shared=shared,
        same_sign=agreeing / shared if shared else None,
        cosine=cosine,
        shared_share=_shares(common),
    )


def _read_only(array: np.ndarray) -> np.ndarray:
    """A view: another kind of array would be compiled for anew."""
    view = array.view()
    view.flags.writeable = False
    return view


def _jaccard(common: float, first: int, second: int) -> float:
    union = first + second - common
    return common / union if union else 0.0


def _shares(counts: Mapping[str, int]) -> Parts:
    """Counts by parameter as shares of their sum, by part of the model."""
    total = sum(counts.values())
    kinds, modules, by_layer = Counter[str](), Counter[str](), Counter[str]()
    for name, count in counts.items():
        number = layers.layer(name)
        kinds[layers.kind(name)] += count
        modules[layers.module(name)] += count
        by_layer[OUTSIDE if number is None else str(number)] += count
    in_order = sorted(by_layer, key=lambda layer: -1 if layer == OUTSIDE else int(layer))

    def share(part: Counter[str], names: Iterable[str]) -> dict[str, float]:
        return {name: part[name] / total for name in names if part[name]}

    return Parts(share(kinds, layers.KINDS), share(modules, sorted(modules)), share(by_layer, in_order))
