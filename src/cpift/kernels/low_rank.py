"""The sum of a matrix and a product of two thin ones, compiled by numba: a LoRA adapter merged into a weight."""

from __future__ import annotations

import numba
import numpy as np

from cpift.kernels.intrinsics import stack

_STRIP = 512  # columns in work at a time: what is read of ``down`` for them stays in the cache


@numba.njit(error_model="numpy")
def add_low_rank(base, up, down, scale, rows, columns, first, out):  # type: ignore[no-untyped-def]
    """Compute out = rows · columns · (base + scale · up @ down), element by element, over a run of row-major elements.

    Each element is summed over the rank in order, in float64, and rounded once. Its value therefore depends on neither
    the place where the run begins nor the machine.

    base: float32 or float64, (n,). up: float64, (m, r), of the rows that the run touches. down: float64, (r, width).
    scale: float64, (1,). rows: float64, (m,), a factor for each row. columns: float64, (width,), a factor for each column.
    first: column of the run's first element. out: float32 or float64, (n,).
    """
    width, rank = down.shape[1], up.shape[1]
    update = numba.carray(stack(8 * _STRIP), (_STRIP,), np.float64)
    for low in range(0, width, _STRIP):
        for row in range(up.shape[0]):
            begin = row * width - first  # of the row, as an element of the run
            left, right = max(low, -begin), min(low + _STRIP, width, base.size - begin)
            n = right - left
            if n <= 0:
                continue
            sums = update[:n]
            sums[:] = 0.0
            k = 0
            while k + 4 <= rank:  # four at a time save loads and stores; the order of the sum is the same
                a, b, c, d = up[row, k], up[row, k + 1], up[row, k + 2], up[row, k + 3]
                w, x = down[k, left:right], down[k + 1, left:right]
                y, z = down[k + 2, left:right], down[k + 3, left:right]
                for j in range(n):
                    sums[j] = (((sums[j] + a * w[j]) + b * x[j]) + c * y[j]) + d * z[j]
                k += 4
            while k < rank:
                a, w = up[row, k], down[k, left:right]
                for j in range(n):
                    sums[j] += a * w[j]
                k += 1
            before, after, factors = (
                base[begin + left : begin + right],
                out[begin + left : begin + right],
                columns[left:right],
            )
            for j in range(n):
                after[j] = rows[row] * factors[j] * (np.float64(before[j]) + scale[0] * sums[j])
