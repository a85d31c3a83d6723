"""Stage 3, fuse: one model from a backbone and several fine-tuned checkpoints, without training (paper section 3.3).

Tensor by tensor, a Gram matrix is accumulated over the entries that belong to no core region; from it come coefficients,
and Σ cⱼ·θⱼ is written in float64, core values transplanted, rounded once. No whole tensor is ever held.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal

from cpift.checkpoint.completeness import check_complete
from cpift.checkpoint.vocabulary import Vocabulary
from cpift.checkpoint.writer import CheckpointWriter, parse_size
from cpift.errors import CpiftError
from cpift.kernels.threads import check_threads
from cpift.method.fusion.inputs import open_inputs
from cpift.method.fusion.options import FusionOptions, WeightOfTasks, in_order
from cpift.method.fusion.report import FusionReport, fusion_report
from cpift.method.fusion.stream import FusionStream
from cpift.method.interpolations import Space
from cpift.method.region import Region


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
    weight: WeightOfTasks = "equal",
    vocabulary: Vocabulary = "same",
    max_shard_size: str | int = "5GB",
    dtype: str | None = None,
    stored_as: str | Path | None = None,
    threads: int | None = None,
    progress: Callable[[int], None] = lambda nbytes: None,
) -> FusionReport:
    """Fuse checkpoints and write a Hugging Face checkpoint to ``out``; interrupted and called again, it resumes.

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
        vector: what one SLERP is taken over, each "tensor" or the whole "model"; the latter reads the files twice.
        weight: "equal", or a number from 0 to 1, whose meaning is the interpolation's; or, of "linear" and "sum", a number
            for each task: Σ wᵢ·θᵢ and the rest of 1 of the backbone, or the backbone and Σ wᵢ·Δᵢ.
        vocabulary: "same" refuses embeddings with other numbers of rows; "union" fuses the rows that all have and
            copies those of added tokens from the model that added them.
        max_shard_size: largest file of the output.
        dtype: of the output; "base": as the base has each tensor; by default the widest of the inputs, tensor by
            tensor.
        stored_as: with the dtype "base", the checkpoint whose types are taken in place of the base's.
        threads: worker threads, by default one a core; changes speed only.
        progress: called with the number of bytes read or written since the last call.

    Returns:
        What ``fusion.json`` holds: see :class:`cpift.method.fusion.report.FusionReport`.

    Raises:
        CpiftError: checkpoints that do not match, a region of another base, NaN, a value that the output's type
            cannot hold, ``out`` in use, a full disk.
    """
    out = Path(out)
    check_threads(threads)
    options = FusionOptions(
        overlap,
        interpolation,
        space,
        vector,
        in_order(weight, list(tuned)),
        vocabulary,
        dtype,
        parse_size(max_shard_size),
    )
    inputs = open_inputs(base, backbone, tuned, regions or {}, vocabulary == "union", stored_as)
    parameters = inputs.layout(dtype)
    layout = {**parameters, **inputs.layout_of_copies(parameters)}
    writer = CheckpointWriter(out, layout, options.max_shard_size, inputs.key(options))
    if writer.finished:
        report: FusionReport = json.loads((out / "fusion.json").read_text())
        return report
    try:
        # transformers takes seconds to import, and nothing of its answer is needed before the end
        with ThreadPoolExecutor(1) as beside:
            check = beside.submit(check_complete, inputs.base)
            tensors, fingerprints = FusionStream(inputs, options, layout, writer, threads, progress).run()
            check.result()
        report = fusion_report(inputs, options, tensors, fingerprints)
        writer.finish(report, inputs.write_companions, {kind for kind, _ in parameters.values()})
    except CpiftError:
        writer.discard()  # nothing half-written stays
        raise
    return report
