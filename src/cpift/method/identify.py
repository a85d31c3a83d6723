"""Stage 1, identify: the top p % of all updates of a checkpoint, exactly, in one read (paper section 3.1).

The bit pattern of a non-negative float orders as the float does. While blocks stream by in the order of flat
positions, candidates above a lower bound are appended to a buffer of 2k. A histogram of all candidates gives the
bound: at least k values seen lie at or above it. A full buffer is compacted to what is still above the bound, or, where
ties are too many for that, to the best k. The bound begins at a guess from a sample; should it have been too high, and only
then, the checkpoint is read again. One base serves all checkpoints in the same pass.
"""

from __future__ import annotations

import tempfile
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import xxhash

from cpift.checkpoint.align import align
from cpift.checkpoint.chunks import chunks
from cpift.checkpoint.compatibility import check_compatible
from cpift.checkpoint.reader import open_checkpoint
from cpift.checkpoint.stream import BLOCK, Block, Checkpoint, blocks
from cpift.checkpoint.tensor import widen
from cpift.checkpoint.vocabulary import Vocabulary, base_rows, has_rows_of_tokens, union
from cpift.errors import CpiftError
from cpift.kernels.loops import Loops, loops_for
from cpift.kernels.threads import check_threads, ordered_map, thread_local_scratch
from cpift.method.candidates import INFINITE, SEGMENT, Candidates, cut, has_infinite, value_of
from cpift.method.region import Region
from cpift.method.scores import counted
from cpift.method.zero_updates import reasons

SAMPLE = 64  # every 64th update goes into the estimate of the median
_WINDOW, _SAMPLED = 2**12, 2**21  # elements read together, and in all, to guess the first bound


class Observer(Protocol):
    """Measures each block of all checkpoints in the same read; of counted parameters only."""

    def measure(self, stored: Sequence[np.ndarray], before: np.ndarray | None) -> np.ndarray:
        """Look at a chunk of the base and of each tuned checkpoint, as the kernels take it; called by worker threads.

        ``before``: what it returned for the chunk before in the same block, to be added to; None for the first one.
        """

    def add(self, measured: np.ndarray) -> None:
        """Take what :meth:`measure` returned for the last chunk of a block; called in the order of blocks."""


def core_count(percent: str | float | int, total: int) -> int:
    """Number of core positions, k = ⌊p·D/100⌋, with p taken as the exact decimal written (paper section 3.1).

    Args:
        percent: p, 0 < p <= 100.
        total: number of counted elements (D).

    Raises:
        CpiftError: a percent out of range.
    """
    try:
        exact = Fraction(str(percent))
    except (ValueError, ZeroDivisionError):
        exact = Fraction(0)
    if not 0 < exact <= 100:
        raise CpiftError(f"percent: {percent} is not in (0, 100]")
    return int(exact * total / 100)


def identify(
    base: str | Path,
    tuned: Mapping[str, str | Path],
    percent: str | float | int = 1,
    *,
    include: Iterable[str] = (),
    exclude: Iterable[str] = (),
    chunk: int | None = None,
    threads: int | None = None,
    max_memory: int | None = None,
    vocabulary: Vocabulary = "same",
    progress: Callable[[int], None] = lambda nbytes: None,
    observer: Observer | None = None,
) -> dict[str, Region]:
    """Core region of each tuned checkpoint against ``base``.

    Args:
        base: a checkpoint, as a folder or a ``.safetensors`` file.
        tuned: checkpoints by task name. An adapter is applied to ``base``.
        percent: share of the counted elements, 0 < percent <= 100.
        include: shell-style patterns; with any, only parameters that match one count.
        exclude: shell-style patterns of parameters that do not count.
        chunk: elements in work at a time, 1 to 2**20, by default what the cache holds; changes speed only.
        threads: worker threads, by default one a core; changes speed only.
        max_memory: bytes that candidates may take in memory (16·k a task); above, they go to a scratch file.
        vocabulary: "union" takes embeddings with more rows than the base's; regions lie in the base's rows.
        progress: called with the number of bytes read since the last call.
        observer: measures the blocks as they are read.

    Returns:
        Task name to :class:`Region`; ``Region.statistics`` holds the share of zero updates, the estimated median
        of |Δ|, and where the candidates were held.

    Raises:
        CpiftError: checkpoints that do not match, NaN or infinite weights, a percent out of range.
    """
    check_threads(threads)
    if chunk is not None and not 1 <= chunk <= BLOCK:
        raise CpiftError(f"chunk: {chunk} is not in 1 … {BLOCK}")
    origin = open_checkpoint(base)
    opened = {name: open_checkpoint(path, origin) for name, path in tuned.items()}
    check_compatible(origin, opened, union=vocabulary == "union")
    grows = has_rows_of_tokens if vocabulary == "union" else lambda name: False
    models = {name: align(origin, model, grows) for name, model in opened.items()}
    if vocabulary == "union":  # a region lies in the rows that the base has
        union(origin, models)
        models = {name: base_rows(model, origin) for name, model in models.items()}
    skipped = set(origin.tensors) - counted(origin.tensors, include, exclude)
    total = sum(t.size for name, t in origin.tensors.items() if name not in skipped)
    count = core_count(percent, total)
    spill = max_memory is not None and 16 * count * len(models) > max_memory
    loops = loops_for(total * len(models))
    job = _Job(origin, models, skipped, count, chunk, threads, progress, observer, loops)
    with tempfile.TemporaryDirectory(prefix="cpift-") if spill else nullcontext() as scratch:
        folder = Path(scratch) if scratch else None
        done = job.read(_first_bounds(job, total), folder)
        short = [name for name, held in done.candidates.items() if held.filled < count]
        if short:  # the bound guessed from a sample was too high: rare, and only then is anything read twice
            again = replace(job, models={name: models[name] for name in short}, observer=None)
            done.candidates.update(again.read(dict.fromkeys(short, -1), folder).candidates)
        shapes = {name: t.shape for name, t in origin.tensors.items()}

        def region(i: int) -> Region:
            name, held = names[i], done.candidates[names[i]]
            statistics = {
                "zero_share": sum(done.zeros[name].values()) / total if total else 0.0,
                **reasons(origin, models[name], done.zeros[name], total, loops),
                "median": _median(done.sample[i]),  # of every 64th |Δ|, to 2**-8 of its size
                "candidate_bytes": held.nbytes,
                "candidates_in": "scratch file" if spill else "memory",
                "reads": 2 if name in short else 1,
            }
            taken = held.take(job.segments, shapes)
            return Region(
                taken.positions,
                total,
                taken.negative,
                {n: shapes[n] for n in taken.positions},
                percent=str(percent),
                threshold=taken.threshold,
                base=done.base,
                tuned=done.tuned[name],
                statistics=statistics,
            )

        names = list(done.candidates)
        return {names[i]: made for i, made in ordered_map(region, range(len(names)), threads)}


@dataclass(frozen=True)
class _Done:
    """What one read brought: candidates, zero updates, a sample of sizes, fingerprints."""

    candidates: dict[str, Candidates]
    zeros: dict[str, Counter[str]]  # by parameter
    sample: np.ndarray
    base: str
    tuned: dict[str, str]


@dataclass(frozen=True)
class _Job:
    origin: Checkpoint
    models: dict[str, Checkpoint]
    skipped: set[str]
    count: int
    chunk: int | None
    threads: int | None
    progress: Callable[[int], None]
    observer: Observer | None
    loops: Loops

    @property
    def segments(self) -> list[tuple[str, int]]:
        """Pieces of the parameters whose positions fit in 32 bits: name and first element."""
        return [(name, start) for name, t in self.origin.tensors.items() for start in range(0, t.size, SEGMENT)]

    def read(self, bounds: Mapping[str, int], folder: Path | None) -> _Done:
        """Read base and models once."""
        names, models = list(self.models), list(self.models.values())
        number = {segment: i for i, segment in enumerate(self.segments)}
        held = {
            name: Candidates(
                self.count,
                len(number),
                bounds[name],
                folder / f"{name}.candidates" if folder else None,
                self.loops,
            )
            for name in names
        }
        samples: dict[int, np.ndarray] = {}
        zeros = {name: Counter[str]() for name in names}
        base_hash, hashes = self.origin.hasher(), {name: model.hasher() for name, model in self.models.items()}

        def work(block: Block) -> tuple[bytes, list[_Scanned], np.ndarray | None]:
            now = [held[name].bound for name in names] if block.name not in self.skipped else None
            thread_samples = samples.setdefault(threading.get_ident(), np.zeros((len(names), 2**16), np.int64))
            return _scan(self.loops, self.origin, models, block, now, thread_samples, self.chunk, self.observer)

        for block, (checksum, results, measured) in ordered_map(work, blocks(self.origin), self.threads):
            base_hash.add(checksum)
            segment = number[block.name, block.start // SEGMENT * SEGMENT]
            for name, result in zip(names, results, strict=True):
                hashes[name].add(result.checksum)
                if result.zeros:
                    zeros[name][block.name] += result.zeros
                if not result.finite:
                    _blame(self.origin, self.models[name], block)
                held[name].add(segment, result.entries, result.bound)
            if self.observer is not None and measured is not None:
                self.observer.add(measured)
            self.progress((block.stop - block.start) * self.origin.tensors[block.name].itemsize * (1 + len(names)))
        prints = {name: hashed.hexdigest() for name, hashed in hashes.items()}
        sample = sum(samples.values(), np.zeros((len(names), 2**16), np.int64))
        return _Done(held, zeros, sample, base_hash.hexdigest(), prints)


def _first_bounds(job: _Job, total: int) -> dict[str, int]:
    """A bound to begin with, guessed from a sample so low that more than k updates are all but sure to lie above it.

    It saves taking in, and throwing out again, four times k candidates while the bound is still rising.
    """
    counted = [b for b in blocks(job.origin) if b.name not in job.skipped]
    if not job.count or total < _SAMPLED * 16:
        return dict.fromkeys(job.models, -1 if job.count else INFINITE - 1)
    step = max(1, len(counted) * _WINDOW // _SAMPLED)
    windows = [Block(b.name, b.start, min(b.start + _WINDOW, b.stop)) for b in counted[::step]]
    seen = sum(w.stop - w.start for w in windows)
    models = [job.origin, *job.models.values()]
    tasks = len(job.models)
    histograms, nothing = np.zeros((tasks, 2**16), np.int64), np.full(tasks, np.iinfo(np.int32).max)
    none, unused = np.empty((tasks, 0), np.uint64), np.zeros((2, tasks), np.int64)
    for window in windows:
        for part in chunks(models, window, None, job.loops):
            job.loops.scan(
                part.addresses, part.itemsizes, part.stop - part.start, 0, nothing, none, *unused, histograms, 1
            )
    rank = int(1.3 * job.count * seen / total) + 2000
    return {name: (cut(histograms[i], min(rank, seen))[0] << 15) - 1 for i, name in enumerate(job.models)}


def _median(sample: np.ndarray) -> float | None:
    half = (int(sample.sum()) + 1) // 2
    return value_of(int(np.searchsorted(np.cumsum(sample), half)) << 15) if half else None


class _Scanned(NamedTuple):
    checksum: bytes
    entries: np.ndarray  # candidates
    bound: int  # that they lie above
    zeros: int
    finite: bool


def _scan(
    loops: Loops,
    base: Checkpoint,
    models: list[Checkpoint],
    block: Block,
    bounds: list[int] | None,
    samples: np.ndarray,
    chunk: int | None,
    observer: Observer | None = None,
) -> tuple[bytes, list[_Scanned], np.ndarray | None]:
    """One block of all checkpoints, chunk by chunk; ``bounds`` is None where the parameter does not count."""
    size, both, tasks = block.stop - block.start, (base, *models), len(models)
    hashes = [xxhash.xxh3_64() for _ in both]
    candidates = thread_local_scratch("candidates", tasks * size, np.uint64).reshape(tasks, size)
    found, zeros = np.zeros((2, tasks), np.int64)
    limits = np.array(bounds if bounds is not None else [], np.int64)
    first, measured = block.start % SEGMENT, None
    for part in chunks(both, block, chunk, loops):
        for hashed, raw in zip(hashes, part.raw, strict=True):
            hashed.update(raw.data)
        if bounds is None:
            continue
        place, n = first + part.start, part.stop - part.start
        loops.scan(part.addresses, part.itemsizes, n, place, limits, candidates, found, zeros, samples, SAMPLE)
        if observer is not None:  # while the chunk is in the cache
            measured = observer.measure(part.stored, measured)
    result = []
    for i, hashed in enumerate(hashes[1:]):
        entries = candidates[i, : found[i]].copy()
        bound = bounds[i] if bounds is not None else 0
        result.append(_Scanned(hashed.digest(), entries, bound, int(zeros[i]), not has_infinite(entries)))
    return hashes[0].digest(), result, measured


def _blame(base: Checkpoint, model: Checkpoint, block: Block) -> None:
    for checkpoint in (base, model):
        scratch = np.empty(block.stop - block.start, np.float32)
        values = widen(checkpoint.raw(*block), checkpoint.tensors[block.name].dtype, scratch)
        if not np.isfinite(values).all():
            raise CpiftError(f"{checkpoint.path}: {block.name} holds NaN or infinite weights; training diverged")
    raise CpiftError(f"{model.path}: the update of {block.name} overflows float32")
