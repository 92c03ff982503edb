"""Kendall's tau of many rows at once, beside SciPy's of one row and a count of every pair."""

import numpy as np
import pytest
from scipy import stats

from rfjax.laws import rank_correlation
from rfjax.laws.rank_correlation import inversions, kendall, kendall_p


def rows(kind, count, n, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(count, n)) if kind is None else rng.integers(kind, size=(count, n)).astype(float)


@pytest.mark.parametrize("levels", [2, 7, None])
@pytest.mark.parametrize("n", [2, 3, 8, 9, 33, 120])
def test_tau_is_scipys_with_ties_in_either_and_in_both(n, levels):
    """A tie counted as concordant, or a pair tied in both taken off twice, moves tau-b."""
    x, y = rows(levels, 12, n, 1), rows(3 if levels == 7 else levels, 12, n, 2)
    expected = [stats.kendalltau(a, b).statistic for a, b in zip(x, y, strict=True)]
    np.testing.assert_allclose(kendall(x, y), expected, rtol=0, atol=1e-14)


def test_one_row_meets_many_and_chunks_leave_no_row_out(monkeypatch):
    """Rows of the last, shorter chunk were lost, or met the wrong row of x."""
    x, y = rows(None, 1, 40), rows(5, 23, 40, 3)
    whole = kendall(x, y)
    monkeypatch.setattr(rank_correlation, "CHUNK", 200)  # five rows at a time
    np.testing.assert_array_equal(kendall(x, y), whole)
    assert whole.shape == (23,)
    assert float(kendall(x[0], y[4])) == whole[4]


def test_constant_rows_and_rows_with_nan_have_no_tau():
    """A constant row would be 0 / 0, and NaN sorts as the largest number and would count as one."""
    x = rows(None, 3, 20)
    y = x.copy()
    y[0], y[1, 4] = 0.5, np.nan
    assert np.isnan(kendall(x, y)[:2]).all() and kendall(x, y)[2] == 1.0


@pytest.mark.parametrize("n", [1, 7, 8, 64, 65])
def test_inversions_are_those_of_every_pair(n):
    """A block's width, or a merge of two halves of which the right one is padding, off by one."""
    found = rows(max(2, n // 2), 9, n, n).astype(int) % n
    every = [sum(int((row[:i] > row[i]).sum()) for i in range(n)) for row in found]
    np.testing.assert_array_equal(inversions(found), every)


def test_numbers_too_large_for_16_bits_are_counted():
    """Keys of 16 bits overflow from 16,383 runs on, and a reversed row then has too few inversions."""
    n = 20_000
    assert inversions(np.arange(n)[None, ::-1]) == n * (n - 1) // 2


@pytest.mark.parametrize("levels", [4, None])
def test_p_of_tau_is_scipys_limit(levels):
    """The variance without the ties' terms gives another p."""
    x, y = rows(levels, 1, 150, 5)[0], rows(6 if levels else None, 1, 150, 6)[0] + 0.3 * rows(levels, 1, 150, 5)[0]
    expected = stats.kendalltau(x, y, method="asymptotic")
    assert kendall_p(expected.statistic, x, y) == pytest.approx(expected.pvalue, rel=1e-9)
