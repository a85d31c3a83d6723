"""Stage 3, fuse: one model from a backbone and several fine-tuned checkpoints, without training (paper section 3.3).

One pass reads all checkpoints and accumulates a Gram matrix per tensor, over the entries that belong to no core
region; a second pass writes Σ cⱼ·θⱼ in float64, core values transplanted, rounded once. No whole tensor is ever held.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import xxhash

from cpift.checkpoint.align import align
from cpift.checkpoint.companions import Companions
from cpift.checkpoint.compatibility import check_compatible
from cpift.checkpoint.completeness import check_complete
from cpift.checkpoint.copies import Copies
from cpift.checkpoint.reader import open_checkpoint
from cpift.checkpoint.stream import Block, Checkpoint, blocks, native
from cpift.checkpoint.vocabulary import Rows, Vocabulary, base_rows, has_rows_of_tokens, union, write_tokenizer
from cpift.checkpoint.writer import CheckpointWriter, Layout, Shard, parse_size, set_vocabulary
from cpift.errors import CpiftError
from cpift.kernels.loops import add_gram, combine, rounded
from cpift.kernels.threads import check_threads, ordered_map, thread_local_scratch
from cpift.method.interpolations import INTERPOLATIONS, Combination, Space, Weight, check_weight, combination
from cpift.method.overlap_rules import OVERLAP_RULES, OverlapRule
from cpift.method.region import Region, merged
from cpift.method.transplant import core_positions, transplant

DTYPES = {"float32": "F32", "bfloat16": "BF16", "float16": "F16", "float64": "F64"}
_LONG = {short: long for long, short in DTYPES.items()}
_KERNEL_TYPE = {"F32": np.float32, "BF16": np.uint16, "F16": np.float64, "F64": np.float64}  # numba has no float16


@dataclass(frozen=True)
class _Inputs:
    base: Checkpoint
    backbone: Checkpoint
    tasks: dict[str, Checkpoint]
    regions: dict[str, Region]
    rows: Rows
    copies: Copies
    companions: Companions
    warnings: list[str]

    @property
    def models(self) -> list[Checkpoint]:
        """θ⁰, the backbone, each task: the order of coefficients."""
        return [self.base, self.backbone, *self.tasks.values()]


def fuse(
    base: str | Path,
    tuned: Mapping[str, str | Path],
    out: str | Path,
    *,
    backbone: str | Path | None = None,
    regions: Mapping[str, Region | str | Path] | None = None,
    overlap: str = "largest",
    interpolation: str = "slerp",
    space: Space = "weights",
    vector: Literal["tensor", "model"] = "tensor",
    weight: Weight = "equal",
    vocabulary: Vocabulary = "same",
    max_shard_size: str | int = "5GB",
    dtype: str | None = None,
    threads: int | None = None,
    progress: Callable[[int], None] = lambda nbytes: None,
) -> dict[str, Any]:
    """Fuse checkpoints and write a Hugging Face checkpoint to ``out``; killed and called again, it goes on.

    Every tensor of the inputs is fused, or copied (buffers, stated in the report); none is dropped.

    Args:
        base: θ⁰.
        tuned: θᵢ by task, in the recipe's order. An adapter is applied to ``base``.
        out: the folder to write.
        backbone: θ_base, by default θ⁰.
        regions: core region of each task that has one; elsewhere nothing is transplanted.
        overlap: which task's value a position in several regions takes: a name in
            :data:`cpift.method.overlap_rules.OVERLAP_RULES`.
        interpolation: of the rest: a name in :data:`cpift.method.interpolations.INTERPOLATIONS`.
        space: what is interpolated, the "weights" or the "updates".
        vector: what one SLERP is taken over, each "tensor" or the whole "model".
        weight: "equal", or a number from 0 to 1, whose meaning is the interpolation's.
        vocabulary: "same" refuses embeddings with other numbers of rows; "union" fuses the rows that all have and
            copies those of added tokens from the model that added them.
        max_shard_size: largest file of the output.
        dtype: of the output; "base": as the base has each tensor; by default the widest of the inputs, tensor by
            tensor.
        threads: worker threads, by default one a core; changes speed only.
        progress: called with the number of bytes read or written since the last call.

    Returns:
        What ``fusion.json`` holds: per tensor angles (radians), norms, coefficients of base, backbone and tasks, counts;
        what was copied; warnings.

    Raises:
        CpiftError: checkpoints that do not match, a region of another base, NaN, a value that the output's type
            cannot hold, ``out`` in use, a full disk.
    """
    out = Path(out)
    check_threads(threads)
    if vocabulary not in get_args(Vocabulary):
        raise CpiftError(f"vocabulary: {vocabulary} is not one of {', '.join(get_args(Vocabulary))}")
    rule = OVERLAP_RULES.choose(overlap, "overlap")
    INTERPOLATIONS.choose(interpolation, "interpolation")
    inputs = _open(base, backbone, tuned, regions or {}, vocabulary == "union")
    if weight != "equal" and not 0 <= weight <= 1:
        raise CpiftError(f"weight: {weight} is not in 0 … 1")
    try:
        check_weight(interpolation, weight)
    except ValueError as error:
        raise CpiftError(f"weight: {error}") from None
    if dtype not in (None, "base", *DTYPES):
        raise CpiftError(f"dtype: {dtype} is not one of {', '.join(DTYPES)}, base")
    options = {"overlap": overlap, "interpolation": interpolation, "space": space, "vector": vector, "weight": weight,
               "vocabulary": vocabulary, "dtype": dtype, "max_shard_size": parse_size(max_shard_size)}  # fmt: skip
    layout = {name: (_stored_as(dtype, name, inputs), t.shape) for name, t in inputs.base.tensors.items()}
    kinds = {kind for kind, _ in layout.values()}
    layout = {name: (kind, inputs.rows.shape(name, shape)) for name, (kind, shape) in layout.items()}
    layout |= {name: layout[source] for name, source in inputs.copies.aliases.items()}
    buffers = {name: inputs.copies.tensor(name) for name in inputs.copies.buffers}
    layout |= {name: (tensor.dtype, tensor.shape) for name, tensor in buffers.items()}
    writer = CheckpointWriter(out, layout, parse_size(max_shard_size), _key(inputs, options))
    if writer.finished:
        report: dict[str, Any] = json.loads((out / "fusion.json").read_text())
        return report
    try:
        plan = writer.load("plan.json")
        if plan is None:
            plan = _plan(inputs, options, threads, progress)
            writer.store("plan.json", plan)
        counts = _write(writer, inputs, plan, layout, rule, threads, progress)
        report = _report(plan, counts, options, inputs)
        writer.finish(report, lambda folder: _beside(inputs, folder), kinds)
    except CpiftError:
        writer.discard()  # nothing half-written stays
        raise
    return report


def _write(
    writer: CheckpointWriter,
    inputs: _Inputs,
    plan: Mapping[str, Any],
    layout: Layout,
    rule: OverlapRule,
    threads: int | None,
    progress: Callable[[int], None],
) -> dict[str, list[int]]:
    """Second pass: the shards that are not there yet. Gives the positions won by each task and those contested."""
    coefficients = {name: np.array(entry["coefficients"]) for name, entry in plan["tensors"].items()}
    counts: dict[str, list[int]] = writer.load("counts.json") or {}
    for shard in writer.missing_shards():
        won = {name: np.zeros(len(inputs.tasks) + 1, np.int64) for name in shard.names if name in inputs.base.tensors}
        for name in shard.names:
            if name in inputs.copies.buffers:
                for start, piece in inputs.copies.pieces(name):
                    shard.write(name, start, piece)
        for targets in _passes(shard.names, inputs):
            names = list(targets)

            def write(block: Block, shard: Shard = shard, targets: Mapping[str, str] = targets) -> np.ndarray:
                kind = layout[block.name][0]
                data, wins = _fused(inputs, block, coefficients[block.name], rule, kind)
                shard.write(targets[block.name], block.start, data.data)
                return wins

            todo = chain(_blocks_of(inputs.base, names), inputs.rows.beyond(inputs.base, names))
            for block, wins in ordered_map(write, todo, threads):
                if targets[block.name] == block.name:
                    won[block.name] += wins
                progress((block.stop - block.start) * sum(m.tensors[block.name].itemsize for m in inputs.models))
        counts |= {name: wins.tolist() for name, wins in won.items()}
        writer.store("counts.json", counts)
        shard.close()
    return counts


def _passes(names: list[str], inputs: _Inputs) -> Iterator[dict[str, str]]:
    """Parameter to the name it is written under: first its own, then the second names of tied pairs."""
    own = {name: name for name in names if name in inputs.base.tensors}
    second = {inputs.copies.aliases[name]: name for name in names if name in inputs.copies.aliases}
    yield from (targets for targets in (own, second) if targets)


def _beside(inputs: _Inputs, folder: Path) -> None:
    """Configuration, tokenizer and the like."""
    inputs.companions.write(folder)
    if inputs.rows.counts:
        write_tokenizer(folder, [model.path for model in inputs.rows.models.values()])
        set_vocabulary(folder / "config.json", max(inputs.rows.counts.values()))


def _open(
    base: str | Path,
    backbone: str | Path | None,
    tuned: Mapping[str, str | Path],
    regions: Mapping[str, Any],
    union_of_rows: bool,
) -> _Inputs:
    if not tuned:
        raise CpiftError("fuse: no tuned checkpoint given")
    stranger = sorted(set(regions) - set(tuned))
    if stranger:
        raise CpiftError(f"fuse: a region is given for {stranger[0]}, which is none of {', '.join(tuned)}")
    origin = open_checkpoint(base)
    loaded = {n: r if isinstance(r, Region) else Region.load(r) for n, r in regions.items()}
    for task, region in loaded.items():
        for name, positions in region.positions.items():
            tensor = origin.tensors.get(name)
            if tensor is None or positions[-1] >= tensor.size or region.shapes.get(name, tensor.shape) != tensor.shape:
                raise CpiftError(f"region of {task}: {name} does not fit {origin.path}; it is a region of another base")
    opened = {name: open_checkpoint(path, origin) for name, path in tuned.items()}
    start = None if backbone is None else open_checkpoint(backbone, origin)
    others = {**({} if start is None else {"the backbone": start}), **opened}
    warnings = check_compatible(origin, others, union=union_of_rows)
    grows = has_rows_of_tokens if union_of_rows else lambda name: False
    aligned = {name: align(origin, model, grows) for name, model in others.items()}
    check_complete(origin)
    rows = union(origin, aligned) if union_of_rows else Rows()
    cut_off = {name: base_rows(model, origin) for name, model in aligned.items()} if union_of_rows else aligned
    first = cut_off.get("the backbone", origin)
    copies = Copies.collect(
        {"the backbone": first, "the base": origin, **cut_off} if start else {"the base": origin, **cut_off}
    )
    places = {name: model.folders for name, model in opened.items()}
    home = None if start is None or start.path == origin.path else start.folders
    companions = Companions.choose(origin.folders, home, places)
    warnings += [*copies.warnings, *companions.warnings]
    models = {name: cut_off[name] for name in opened}
    return _Inputs(origin, first if start else origin, models, loaded, rows, copies, companions, warnings)


def _key(inputs: _Inputs, options: Mapping[str, Any]) -> str:
    """What a half-written output must agree on to be continued: the options, files and regions."""
    state = xxhash.xxh3_128(json.dumps(options, sort_keys=True).encode())
    for model in inputs.models:
        for file in model.files:
            stat = file.stat()
            state.update(f"{file.resolve()} {stat.st_size} {stat.st_mtime_ns}".encode())
    for task in inputs.tasks:
        state.update(task.encode())
        if task in inputs.regions:
            for name, positions in inputs.regions[task].positions.items():
                state.update(name.encode())
                state.update(np.ascontiguousarray(positions).data)
    return state.hexdigest()


def _stored_as(dtype: str | None, name: str, inputs: _Inputs) -> str:
    """The output type of a tensor."""
    if dtype == "base":
        return inputs.base.tensors[name].dtype
    return DTYPES[dtype] if dtype else _widest([model.tensors[name].dtype for model in inputs.models])


def _widest(dtypes: list[str]) -> str:
    kinds = set(dtypes)
    if len(kinds) == 1:
        return dtypes[0]
    return "F64" if "F64" in kinds else "F32"


def _blocks_of(base: Checkpoint, names: list[str]) -> Iterator[Block]:
    return blocks(Checkpoint(base.path, {n: base.tensors[n] for n in sorted(names)}, {}, {}))


def _plan(
    inputs: _Inputs, options: Mapping[str, Any], threads: int | None, progress: Callable[[int], None]
) -> dict[str, Any]:
    """First pass: Gram matrices, from them the coefficients; fingerprints on the way."""
    models = inputs.models
    distinct = [m for i, m in enumerate(models) if m not in models[:i]]
    hashes = [m.hasher() for m in distinct]

    def work(block: Block) -> tuple[list[bytes], np.ndarray, int]:
        gram, free = _block_gram(inputs, block)
        return [xxhash.xxh3_64_digest(m.raw(*block).data) for m in distinct], gram, free

    grams = {name: np.zeros((len(models), len(models))) for name in inputs.base.tensors}
    free = dict.fromkeys(inputs.base.tensors, 0)
    for block, (checksums, gram, count) in ordered_map(work, blocks(inputs.base), threads):
        for hashed, checksum in zip(hashes, checksums, strict=True):
            hashed.add(checksum)
        grams[block.name] += gram
        free[block.name] += count
        progress((block.stop - block.start) * sum(m.tensors[block.name].itemsize for m in models))
    prints = [hashes[distinct.index(m)].hexdigest() for m in models]
    _check_regions(inputs, prints)
    joint = sum(grams.values(), np.zeros((len(models), len(models))))
    tensors = {}
    shared: Combination | None = None
    for name, gram in grams.items():
        if not np.isfinite(gram).all():
            raise CpiftError(f"{name}: NaN or infinite weights in one of the checkpoints; training diverged")
        count = free[name]
        if options["vector"] == "model":
            gram, count = joint, sum(free.values())
        if shared is None or options["vector"] == "tensor":
            shared = combination(gram, count, options["interpolation"], options["space"], options["weight"])
        tensors[name] = {
            "coefficients": shared.coefficients.tolist(),
            "angles": shared.angles,
            "norms": np.sqrt(np.diag(grams[name])).tolist(),
            "update_angles": _update_angles(grams[name]),
            "free": free[name],
        }
    return {"tensors": tensors, "fingerprints": prints}


def _block_gram(inputs: _Inputs, block: Block) -> tuple[np.ndarray, int]:
    """Inner products of θ⁰ and all updates over the block's free entries, and how many these are."""
    models = inputs.models
    if inputs.backbone is inputs.base:  # its update is zero: no need to read it again to find that out
        models = [inputs.base, *inputs.tasks.values()]
    total = np.zeros((len(models), len(models)))
    cores = [c for c in core_positions(inputs.regions, inputs.tasks, block) if c is not None]
    core = merged(cores) if cores else np.empty(0, np.int64)
    stored = [native(m.raw(*block, ahead=True)) for m in models]
    add_gram(*_places(stored), block.stop - block.start, core, total)
    gram = np.tril(total) + np.tril(total, -1).T
    if inputs.backbone is inputs.base:
        gram = np.insert(np.insert(gram, 1, 0.0, axis=0), 1, 0.0, axis=1)
    return gram, block.stop - block.start - len(core)


def _update_angles(gram: np.ndarray) -> list[list[float | None]]:
    """Angle of the updates of backbone and tasks, pair by pair, in radians; None where one is zero."""
    norms = np.sqrt(np.diag(gram))[1:]
    result: list[list[float | None]] = []
    for i, a in enumerate(norms):
        row = [np.arccos(np.clip(gram[1 + i, 1 + j] / (a * b), -1, 1)) if a * b else None for j, b in enumerate(norms)]
        result.append([None if value is None else float(value) for value in row])
    return result


def _check_regions(inputs: _Inputs, prints: list[str]) -> None:
    for task, region in inputs.regions.items():
        if region.base and region.base != prints[0]:
            raise CpiftError(
                f"region of {task}: selected against another base ({region.base[:12]}, not {prints[0][:12]})"
            )
        own = prints[2 + list(inputs.tasks).index(task)]
        if region.tuned and region.tuned != own:
            raise CpiftError(f"region of {task}: selected on another checkpoint ({region.tuned[:12]}, not {own[:12]})")


def _fused(
    inputs: _Inputs, block: Block, coefficients: np.ndarray, rule: OverlapRule, dtype: str
) -> tuple[np.ndarray, np.ndarray]:
    """The block's fused values, as stored in ``dtype``; and the positions won by each task, and those contested.

    The values stay valid until this thread makes the next block.
    """
    out = thread_local_scratch(f"fused {dtype}", block.stop - block.start, _KERNEL_TYPE[dtype])
    wins = np.zeros(len(inputs.tasks) + 1, np.int64)
    if block.start < inputs.base.tensors[block.name].size:
        models = [(c, m) for c, m in zip(coefficients.tolist(), inputs.models, strict=True) if c != 0]
        if not models:
            out[:] = 0
        else:
            stored = [native(model.raw(*block, ahead=True)) for _, model in models]
            combine(*_places(stored), np.array([c for c, _ in models]), out)
        positions, values, wins = transplant(inputs.base, inputs.tasks, inputs.regions, block, rule)
        core = np.empty(len(positions), out.dtype)
        rounded(values, core)
        out[positions] = core
    for place, values in inputs.rows.parts(block, inputs.base):
        copied = np.empty(len(values), out.dtype)
        rounded(values, copied)
        out[place : place + len(values)] = copied
    with np.errstate(over="ignore"):
        data = out.astype(np.float16) if dtype == "F16" else out
    if not _finite(data):
        raise CpiftError(f"{block.name}: holds a value that {_LONG[dtype]} cannot hold; choose a wider --dtype")
    return data, wins


def _finite(data: np.ndarray) -> bool:
    """Are all values finite? Stored as bf16 they come as uint16, of which eight bits are the exponent."""
    if data.dtype == np.uint16:
        return not ((data & 0x7F80) == 0x7F80).any()
    return bool(np.isfinite(data).all())


def _places(stored: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Addresses and element sizes, as the kernels take them."""
    return np.array([s.ctypes.data for s in stored]), np.array([s.itemsize for s in stored])


def _report(
    plan: Mapping[str, Any], counts: Mapping[str, list[int]], options: Mapping[str, Any], inputs: _Inputs
) -> dict[str, Any]:
    tasks = list(inputs.tasks)
    tensors = {}
    for name, entry in plan["tensors"].items():
        core = inputs.base.tensors[name].size - entry["free"]
        wins = dict(zip(tasks, counts[name], strict=False))
        tensors[name] = {**entry, "core": core, "won": wins, "contested": counts[name][-1]}
    core = sum(t["core"] for t in tensors.values())
    return {
        "format": "cpift.fusion/1",
        "options": dict(options),
        "models": ["base", "backbone", *tasks],
        "fingerprints": plan["fingerprints"],
        "total": inputs.base.total,
        "core": core,
        "core_share": core / inputs.base.total,
        "contested": sum(t["contested"] for t in tensors.values()),
        "won": {task: sum(t["won"][task] for t in tensors.values()) for task in tasks},
        **inputs.copies.report(),
        **({"vocabulary": inputs.rows.report()} if inputs.rows.counts else {}),
        "companions": inputs.companions.notes,
        "warnings": inputs.warnings,
        "tensors": tensors,
    }
