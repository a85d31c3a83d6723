"""The inner loops of fusion, compiled by numba; they run without the interpreter's lock.

Each works on a strip of elements at a time, so that all that is done with a strip happens in the cache. Models come as
the addresses of their stored elements and the sizes of one: 2 is bf16, 4 float32, 8 float64. Core positions come as
``places``, ``widths`` and ``counts``, int64 (tasks,): addresses of each task's sorted positions, their item sizes (4 is
int32, 8 int64) and their numbers; ``start`` is the position of the first element of the block.
"""

from __future__ import annotations

import numba
import numpy as np

from cpift.kernels.intrinsics import fetch, number, pointer, stack
from cpift.kernels.stored import element, store, typed, widen_strip

SUM_STRIP = 512  # elements of the weighted sum at a time; its bits do not depend on it
GRAM_STRIP = 512  # of the Gram matrix, whose last bits do: five rows of float64 stay in the nearest cache
WALK = 4096  # elements whose core positions are looked at together
NONE = np.iinfo(np.int64).max

_jit = numba.njit(error_model="numpy")
_jit_sum = numba.njit(error_model="numpy", fastmath={"reassoc", "contract"})  # lets sums run in vector registers


@_jit
def _position(core, task, i):  # type: ignore[no-untyped-def]
    """Position ``i`` of a task; NONE behind the last."""
    addresses, itemsizes, counts = core
    if i >= counts[task]:
        return NONE
    if itemsizes[task] == 4:
        return np.int64(numba.carray(pointer(addresses[task] + 4 * i), (1,), np.int32)[0])
    return numba.carray(pointer(addresses[task] + 8 * i), (1,), np.int64)[0]


@_jit
def _differences(stored, origin, out):  # type: ignore[no-untyped-def]
    for j in range(out.size):
        out[j] = np.float64(number(stored[j])) - origin[j]


@_jit
def _update_strip(address, itemsize, low, n, origin, out):  # type: ignore[no-untyped-def]
    """Elements ``low`` to ``low + n`` of what is stored at ``address``, less ``origin``, as float64."""
    if itemsize == 2:
        _differences(typed(address, low, n, np.uint16), origin, out)
    elif itemsize == 4:
        _differences(typed(address, low, n, np.float32), origin, out)
    else:
        _differences(typed(address, low, n, np.float64), origin, out)


@_jit_sum
def _inner_1(x, a, n):  # type: ignore[no-untyped-def]
    p = 0.0
    for j in range(n):
        p += x[j] * a[j]
    return p


@_jit_sum
def _inner_2(x, a, b, n):  # type: ignore[no-untyped-def]
    p = q = 0.0
    for j in range(n):
        v = x[j]
        p += v * a[j]
        q += v * b[j]
    return p, q


@_jit_sum
def _inner_4(x, a, b, c, d, n):  # type: ignore[no-untyped-def]
    p = q = r = s = 0.0
    for j in range(n):
        v = x[j]
        p += v * a[j]
        q += v * b[j]
        r += v * c[j]
        s += v * d[j]
    return p, q, r, s


@_jit_sum
def _corner_4(a, b, c, d, n):  # type: ignore[no-untyped-def]
    """The ten inner products of four rows, in the order of the lower triangle: each element is loaded once."""
    aa = ba = bb = ca = cb = cc = da = db = dc = dd = 0.0
    for j in range(n):
        w, x, y, z = a[j], b[j], c[j], d[j]
        aa += w * w
        ba += x * w
        bb += x * x
        ca += y * w
        cb += y * x
        cc += y * y
        da += z * w
        db += z * x
        dc += z * y
        dd += z * z
    return aa, ba, bb, ca, cb, cc, da, db, dc, dd


@_jit_sum
def _tile_2_4(x, y, a, b, c, d, n):  # type: ignore[no-untyped-def]
    """The inner products of two rows with four others."""
    xa = xb = xc = xd = ya = yb = yc = yd = 0.0
    for j in range(n):
        v, w = x[j], y[j]
        xa += v * a[j]
        xb += v * b[j]
        xc += v * c[j]
        xd += v * d[j]
        ya += w * a[j]
        yb += w * b[j]
        yc += w * c[j]
        yd += w * d[j]
    return (xa, xb, xc, xd), (ya, yb, yc, yd)


@_jit
def add_gram(addresses, itemsizes, size, places, widths, counts, start, total):  # type: ignore[no-untyped-def]
    """Add to the lower triangle of ``total`` the inner products of θ⁰ and of all updates, outside the core positions.

    Products and sums are float64; sums are taken strip by strip, in order. Returns the number of core positions.

    addresses, itemsizes: int64 (m,), of θ⁰ and the m - 1 tuned models; ``size`` elements of each. places, widths, counts, start: see above.
    total: float64 (m, m); all NaN where a core value is no number.
    """
    models, tasks, core = addresses.size, counts.size, (places, widths, counts)
    rows = numba.carray(stack(8 * models * GRAM_STRIP), (models, GRAM_STRIP), np.float64)
    seen = numba.carray(stack(GRAM_STRIP), (GRAM_STRIP,), np.uint8)
    at = numba.carray(stack(8 * tasks), (tasks,), np.int64)
    seen[:] = 0
    at[:] = 0
    positions = 0
    for low in range(0, size, GRAM_STRIP):
        n = min(GRAM_STRIP, size - low)
        widen_strip(addresses[0], itemsizes[0], low, n, rows[0, :n])
        for a in range(1, models):
            _update_strip(addresses[a], itemsizes[a], low, n, rows[0], rows[a, :n])
        first = positions
        for task in range(tasks):
            here = _position(core, task, at[task]) - start
            while here < low + n:
                j = here - low
                positions += np.int64(seen[j] == 0)
                seen[j] = 1
                for a in range(models):
                    if not np.isfinite(rows[a, j]):
                        total[:] = np.nan
                    rows[a, j] = 0.0
                at[task] += 1
                here = _position(core, task, at[task]) - start
        if positions > first:
            seen[:] = 0
        _add_products(rows, models, n, total)
    return positions


@_jit
def _add_products(rows, count, n, total):  # type: ignore[no-untyped-def]
    """Add the inner products of the first ``count`` rows, n elements each, to the lower triangle of ``total``."""
    whole = count // 4 * 4
    for a in range(0, whole, 4):
        corner = _corner_4(rows[a], rows[a + 1], rows[a + 2], rows[a + 3], n)
        total[a, a] += corner[0]
        total[a + 1, a] += corner[1]
        total[a + 1, a + 1] += corner[2]
        total[a + 2, a] += corner[3]
        total[a + 2, a + 1] += corner[4]
        total[a + 2, a + 2] += corner[5]
        total[a + 3, a] += corner[6]
        total[a + 3, a + 1] += corner[7]
        total[a + 3, a + 2] += corner[8]
        total[a + 3, a + 3] += corner[9]
        for c in range(a, a + 4, 2):
            for b in range(0, a, 4):
                tile = _tile_2_4(rows[c], rows[c + 1], rows[b], rows[b + 1], rows[b + 2], rows[b + 3], n)
                for k in range(4):
                    total[c, b + k] += tile[0][k]
                    total[c + 1, b + k] += tile[1][k]
    for a in range(whole, count):
        for b in range(0, whole, 4):
            products = _inner_4(rows[a], rows[b], rows[b + 1], rows[b + 2], rows[b + 3], n)
            for k in range(4):
                total[a, b + k] += products[k]
        b = whole
        if b + 2 <= a + 1:
            p, q = _inner_2(rows[a], rows[b], rows[b + 1], n)
            total[a, b] += p
            total[a, b + 1] += q
            b += 2
        if b <= a:
            total[a, b] += _inner_1(rows[a], rows[b], n)


@_jit
def add_update_gram(addresses, itemsizes, size, total):  # type: ignore[no-untyped-def]
    """Add to the lower triangle of ``total`` the inner products of all updates; as :func:`add_gram`, without θ⁰'s own.

    addresses, itemsizes: int64 (1 + m,), of θ⁰ and the m tuned models; ``size`` elements of each. total: float64 (m, m).
    """
    updates = addresses.size - 1
    origin = numba.carray(stack(8 * GRAM_STRIP), (GRAM_STRIP,), np.float64)
    rows = numba.carray(stack(8 * updates * GRAM_STRIP), (updates, GRAM_STRIP), np.float64)
    for low in range(0, size, GRAM_STRIP):
        n = min(GRAM_STRIP, size - low)
        widen_strip(addresses[0], itemsizes[0], low, n, origin[:n])
        for a in range(updates):
            _update_strip(addresses[a + 1], itemsizes[a + 1], low, n, origin, rows[a, :n])
        _add_products(rows, updates, n, total)


@_jit
def _sum_4(w, x, y, z, factors, total):  # type: ignore[no-untyped-def]
    a, b, c, d = factors[0], factors[1], factors[2], factors[3]
    for j in range(total.size):
        first = a * np.float64(number(w[j])) + b * np.float64(number(x[j]))
        total[j] = (first + c * np.float64(number(y[j]))) + d * np.float64(number(z[j]))


@_jit
def _all_of_size(itemsizes, first, size):  # type: ignore[no-untyped-def]
    same = True
    for i in range(first):
        same &= itemsizes[i] == size
    return same


@_jit
def combine(addresses, itemsizes, coefficients, out):  # type: ignore[no-untyped-def]
    """``out`` (n,) becomes Σ coefficient · stored, summed in float64 in the order of models, rounded once.

    addresses, itemsizes, coefficients: (m,). out: uint16 (bf16), float32 or float64.
    """
    models = addresses.size
    total = numba.carray(stack(8 * SUM_STRIP), (SUM_STRIP,), np.float64)
    strip = numba.carray(stack(8 * SUM_STRIP), (SUM_STRIP,), np.float64)
    halves = models >= 4 and _all_of_size(itemsizes, 4, 2)
    singles = models >= 4 and _all_of_size(itemsizes, 4, 4)
    for low in range(0, out.size, SUM_STRIP):
        n = min(SUM_STRIP, out.size - low)
        done = 0
        if halves:
            _sum_4(
                typed(addresses[0], low, n, np.uint16),
                typed(addresses[1], low, n, np.uint16),
                typed(addresses[2], low, n, np.uint16),
                typed(addresses[3], low, n, np.uint16),
                coefficients,
                total[:n],
            )
            done = 4
        elif singles:
            _sum_4(
                typed(addresses[0], low, n, np.float32),
                typed(addresses[1], low, n, np.float32),
                typed(addresses[2], low, n, np.float32),
                typed(addresses[3], low, n, np.float32),
                coefficients,
                total[:n],
            )
            done = 4
        for a in range(done, models):
            widen_strip(addresses[a], itemsizes[a], low, n, strip[:n])
            factor = coefficients[a]
            if a == 0:  # not added to zero: that would lose the sign of -0.0
                for j in range(n):
                    total[j] = factor * strip[j]
            else:
                for j in range(n):
                    total[j] += factor * strip[j]
        store(total[:n], out[low : low + n])


@_jit
def gather_core(
    addresses, itemsizes, places, widths, counts, start, positions, values, won, contested, claimed, claims, sizes
):  # type: ignore[no-untyped-def]
    r"""Core positions of all tasks, and what would stand there, some of them at a time: who claims them, then who has them.

    addresses, itemsizes: int64 (1 + tasks,), of θ⁰ and each task. places, widths, counts, start: see above.
    Out, n positions and c of them of several tasks, near each other in work and in no order: positions: int64 (≥ n,),
    within the block. values: float64 (≥ n,), of the one task that claims it. won: int64 (tasks,), added to: positions of
    one task alone. contested: int64 (≥ c,), which of the positions several claim. claimed: bool (tasks, ≥ c). claims:
    float64 (tasks, ≥ c), the tasks' values. sizes: float32 (tasks, ≥ c), \|Δ\|; -1 where a task does not claim it.
    Returns n and c.
    """
    tasks, core = counts.size, (places, widths, counts)
    at = numba.carray(stack(8 * tasks), (tasks,), np.int64)
    claimants = numba.carray(stack(WALK), (WALK,), np.uint8)  # 0, 1, 2 for several, 3 for several that have a slot
    slots = numba.carray(stack(4 * WALK), (WALK,), np.int32)  # of contested positions
    at[:] = 0
    n = c = 0
    while True:
        low = NONE
        for task in range(tasks):
            low = min(low, _position(core, task, at[task]))
        if low == NONE:
            return n, c
        claimants[:] = 0
        for task in range(tasks):
            i = at[task]
            here = _position(core, task, i)
            while here < low + WALK:
                claimants[here - low] = 1 + np.uint8(claimants[here - low] > 0)
                fetch(addresses[task + 1] + itemsizes[task + 1] * (here - start))
                i += 1
                here = _position(core, task, i)
        for task in range(tasks):
            here = _position(core, task, at[task])
            while here < low + WALK:
                value = element(addresses[task + 1], itemsizes[task + 1], here - start)
                if claimants[here - low] == 1:
                    positions[n], values[n] = here - start, value
                    won[task] += 1
                    n += 1
                else:
                    if claimants[here - low] == 2:
                        claimants[here - low], slots[here - low] = 3, c
                        positions[n], contested[c] = here - start, n
                        for other in range(tasks):
                            claimed[other, c], claims[other, c], sizes[other, c] = False, 0.0, -1.0
                        n += 1
                        c += 1
                    slot = slots[here - low]
                    origin = np.float32(element(addresses[0], itemsizes[0], here - start))
                    claimed[task, slot], claims[task, slot] = True, value
                    sizes[task, slot] = abs(np.float32(value) - origin)
                at[task] += 1
                here = _position(core, task, at[task])


@_jit
def scatter(values, positions, out):  # type: ignore[no-untyped-def]
    """``out[positions]`` becomes ``values``, float64, each rounded once."""
    rounded = numba.carray(stack(8 * SUM_STRIP), (SUM_STRIP,), out.dtype)
    for low in range(0, values.size, SUM_STRIP):
        n = min(SUM_STRIP, values.size - low)
        store(values[low : low + n], rounded[:n])
        for i in range(n):
            out[positions[low + i]] = rounded[i]


@_jit
def all_finite(stored):  # type: ignore[no-untyped-def]
    """Are all elements finite?"""
    good = True
    for j in range(stored.size):
        good &= np.isfinite(number(stored[j]))
    return good
