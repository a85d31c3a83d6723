"""The sum of a matrix and a product of two thin ones, compiled by numba: a LoRA adapter merged into a weight."""

from __future__ import annotations

import numba
import numpy as np


@numba.njit(nogil=True, cache=True)
def add_low_rank(base, up, down, scale, rows, columns, first, out):  # type: ignore[no-untyped-def]
    """Out = rows · columns · (base + scale · up @ down), element by element, over a run of row-major elements.

    Each element is summed over the rank in order, in float64, and rounded once. Its value therefore depends on neither
    the place where the run begins nor the machine.

    base: float32 or float64, (n,). up: float64, (m, r), of the rows that the run touches. down: float64, (r, width).
    scale: float64. rows: float64, (m,), a factor for each row. columns: float64, (width,), a factor for each column.
    first: column of the run's first element. out: float32 or float64, (n,).
    """
    width = down.shape[1]
    update = np.empty(width)
    done = 0
    column = first
    for row in range(up.shape[0]):
        n = min(width - column, base.size - done)
        for j in range(n):
            update[j] = 0.0
        for k in range(up.shape[1]):
            factor = up[row, k]
            for j in range(n):
                update[j] += factor * down[k, column + j]
        for j in range(n):
            value = np.float64(base[done + j]) + scale * update[j]
            out[done + j] = rows[row] * columns[column + j] * value
        done += n
        column = 0
