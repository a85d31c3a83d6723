"""The fused values of a block: Σ cⱼ·θⱼ in float64, core values transplanted, rounded once."""

from __future__ import annotations

import numpy as np

from cpift.checkpoint.stream import Block, native
from cpift.errors import CpiftError
from cpift.kernels.loops import combine, rounded
from cpift.kernels.threads import thread_local_scratch
from cpift.method.fusion.coefficients import addresses
from cpift.method.fusion.inputs import Inputs
from cpift.method.fusion.options import DTYPES
from cpift.method.overlap_rules import OverlapRule
from cpift.method.transplant import transplant

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
        models = [(c, m) for c, m in zip(coefficients.tolist(), inputs.models, strict=True) if c != 0]
        if not models:
            out[:] = 0
        else:
            stored = [native(model.raw(*block, ahead=True)) for _, model in models]
            combine(*addresses(stored), np.array([c for c, _ in models]), out)
        positions, values, counts = transplant(inputs.base, inputs.tasks, inputs.regions, block, rule)
        core = np.empty(len(positions), out.dtype)
        rounded(values, core)
        out[positions] = core
    for start, values in inputs.rows.parts(block, inputs.base):
        copied = np.empty(len(values), out.dtype)
        rounded(values, copied)
        out[start : start + len(values)] = copied
    with np.errstate(over="ignore"):
        data = out.astype(np.float16) if dtype == "F16" else out
    if not _finite(data):
        raise CpiftError(f"{block.name}: holds a value that {_TORCH_NAME[dtype]} cannot hold; choose a wider --dtype")
    return data, counts


def _finite(data: np.ndarray) -> bool:
    """Are all values finite? Stored as bf16 they come as uint16, of which eight bits are the exponent."""
    if data.dtype == np.uint16:
        return not ((data & 0x7F80) == 0x7F80).any()
    return bool(np.isfinite(data).all())
