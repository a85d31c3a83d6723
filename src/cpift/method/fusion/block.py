"""The fused values of a block: Σ cⱼ·θⱼ in float64, core values transplanted, rounded once."""

from __future__ import annotations

import numpy as np

from cpift.checkpoint.stream import Block, native
from cpift.errors import CpiftError
from cpift.kernels.lazy import compiled
from cpift.kernels.threads import thread_local_scratch
from cpift.method.fusion.coefficients import addresses
from cpift.method.fusion.inputs import Inputs
from cpift.method.fusion.options import DTYPES
from cpift.method.overlap_rules import OverlapRule
from cpift.method.transplant import Cores, transplant

_all_finite, _combine = compiled("all_finite"), compiled("combine")
_rounded, _scatter = compiled("rounded"), compiled("scatter")
_TORCH_NAME = {short: long for long, short in DTYPES.items()}
_KERNEL_TYPE = {"F32": np.float32, "BF16": np.uint16, "F16": np.float64, "F64": np.float64}  # numba has no float16


def fused_block(
    inputs: Inputs, block: Block, coefficients: np.ndarray, rule: OverlapRule, dtype: str
) -> tuple[np.ndarray, np.ndarray]:
    """Fuse one block.

    Args:
        inputs: what is fused.
        block: a part of one tensor; or rows of tokens that the base does not have.
        coefficients: float64 (N + 2,), of θ⁰, the backbone and each task.
        rule: decides about positions in several regions.
        dtype: of the output, as safetensors names it.

    Returns:
        The values as stored in ``dtype``, valid until this thread fuses the next block; and counts, int64 (N + 1,), as
        :func:`cpift.method.transplant.transplant` gives them.

    Raises:
        CpiftError: a value that ``dtype`` cannot hold.
    """
    out = thread_local_scratch(f"fused {dtype}", block.stop - block.start, _KERNEL_TYPE[dtype])
    counts = np.zeros(len(inputs.tasks) + 1, np.int64)
    if block.start < inputs.base.tensors[block.name].size:
        cores = Cores(inputs.regions, inputs.tasks, block)
        needed = coefficients != 0
        needed[2:] |= cores.table[2] > 0
        needed[0] |= cores.most > 0
        stored = {
            i: native(model.raw(*block, ahead=True))
            for i, (model, wanted) in enumerate(zip(inputs.models, needed.tolist(), strict=True))
            if wanted
        }
        summed = np.flatnonzero(coefficients).tolist()
        if summed:
            _combine(*addresses([stored[i] for i in summed]), coefficients[summed], out)
        else:
            out[:] = 0
        if cores.most:
            claimed = [stored.get(i, stored[0]) for i in (0, *range(2, len(inputs.models)))]
            positions, values, counts = transplant(cores, *addresses(claimed), rule)
            _scatter(values, positions, out)
    for start, values in inputs.rows.parts(block, inputs.base):
        copied = np.empty(len(values), out.dtype)
        _rounded(values, copied)
        out[start : start + len(values)] = copied
    with np.errstate(over="ignore"):
        data = out.astype(np.float16) if dtype == "F16" else out
    if not (np.isfinite(data).all() if dtype == "F16" else _all_finite(out)):
        raise CpiftError(f"{block.name}: holds a value that {_TORCH_NAME[dtype]} cannot hold; choose a wider --dtype")
    return data, counts
