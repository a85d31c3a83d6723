"""The loop of the Gram matrices beside numpy in extended precision: every number of models, strip and kind of element."""

from __future__ import annotations

import numpy as np
import pytest

from cpift.kernels import native


def stored(values: np.ndarray, kind: type) -> np.ndarray:
    """As elements are stored; uint16 is bf16, cut off."""
    return (values.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16) if kind is np.uint16 else values.astype(kind)  # fmt: skip


def exact(elements: np.ndarray) -> np.ndarray:
    """Their values."""
    single = (elements.astype(np.uint32) << 16).view(np.float32) if elements.dtype == np.uint16 else elements
    return single.astype(np.longdouble)


@pytest.mark.parametrize("models", [1, 2, 3, 4, 5, 6, 7, 8, 9, 13])
@pytest.mark.parametrize("kinds", [[np.uint16], [np.float32], [np.float64, np.uint16, np.float32]])
@pytest.mark.parametrize("loop", ["add_gram", "add_update_gram"])
def test_products_agree_with_the_sum_in_extended_precision(models: int, kinds: list[type], loop: str) -> None:
    """Within n · 2**-53 of the sum of absolute products, the bound of any order of summation; core positions left out."""
    rng, size = np.random.default_rng(models), 1300  # strips of 512, and a part of one
    base = rng.standard_normal(size)
    tuned = [base + rng.standard_normal(size) / 100 for _ in range(models)]
    elements = [stored(values, kinds[i % len(kinds)]) for i, values in enumerate([base, *tuned])]
    rows = np.array([exact(part) for part in elements])
    rows[1:] -= rows[0]
    places = np.array([part.ctypes.data for part in elements]), np.array([part.itemsize for part in elements])
    if loop == "add_gram":
        cores = [np.array([0, 511, 512, 900], np.int32) + 5000, np.array([511, 1299], np.int64) + 5000]
        core = [np.array(column) for column in zip(*((c.ctypes.data, c.itemsize, len(c)) for c in cores), strict=True)]
        found = np.zeros((models + 1, models + 1))
        assert native.loop(loop)(*places, size, *core, 5000, found) == 5
        rows[:, [0, 511, 512, 900, 1299]] = 0
    else:
        found, rows = np.zeros((models, models)), rows[1:]
        native.loop(loop)(*places, size, found)
    error = np.abs(found - np.tril(rows @ rows.T))
    assert (error <= size * 2.0**-53 * (np.abs(rows) @ np.abs(rows).T)).all()


def test_a_value_that_is_no_number_leaves_no_matrix() -> None:
    """Also at a core position, whose products are left out."""
    elements = [np.zeros(600, np.float32), np.zeros(600, np.float32)]
    elements[1][550] = np.inf
    core = np.array([550], np.int32)
    places = np.array([part.ctypes.data for part in elements]), np.array([4, 4])
    found = np.zeros((2, 2))
    native.loop("add_gram")(*places, 600, np.array([core.ctypes.data]), np.array([4]), np.array([1]), 0, found)
    assert np.isnan(found).all()
