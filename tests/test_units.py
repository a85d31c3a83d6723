"""Intervals over units of replication: their coverage by simulation, and Holm's adjustment by hand."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from cpift.compare.units import holm, over_units

REPEATS = 2000


def coverage(values: np.ndarray, models: list[int] | None = None) -> float:
    """How often the interval of a mean that is zero holds zero, in per cent."""
    estimates = [over_units(row, models) for row in values.tolist()]
    return 100 * float(np.mean([e is not None and e.low <= 0 <= e.high for e in estimates]))


@pytest.mark.parametrize("n", [3, 5, 10])
def test_an_interval_over_units_covers_what_it_says(n: int) -> None:
    assert 93 < coverage(np.random.default_rng(n).normal(size=(REPEATS, n))) < 97


def test_units_that_share_a_model_count_once() -> None:
    """Three models, four units each: as independent units they would cover far less than 95 %."""
    rng = np.random.default_rng(0)
    values = (rng.normal(size=(REPEATS, 3, 1)) + 0.5 * rng.normal(size=(REPEATS, 3, 4))).reshape(REPEATS, 12)
    models = [0] * 4 + [1] * 4 + [2] * 4
    assert 93 < coverage(values, models) < 97
    assert coverage(values) < 75


def test_mean_interval_and_p_value_are_those_of_scipy() -> None:
    values = [0.3, -0.1, 0.4, 0.2]
    found, expected = over_units(values), stats.ttest_1samp(values, 0)
    assert found is not None
    interval = expected.confidence_interval()
    assert (found.low, found.high, found.p) == pytest.approx((interval.low, interval.high, expected.pvalue))
    assert over_units([1.0]) is None
    assert over_units([1.0, 2.0], ["a", "a"]) is None


def test_holm_by_hand() -> None:
    """0.01 · 3; 0.02 · 2, not below the one before; 0.3 · 1."""
    assert holm({"b": 0.02, "a": 0.01, "c": 0.3}) == pytest.approx({"a": 0.03, "b": 0.04, "c": 0.3})
    assert holm({"a": 0.01, "b": 0.011}) == pytest.approx({"a": 0.02, "b": 0.02})
