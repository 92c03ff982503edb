"""Profile intervals: the textbook's where there is a textbook, and coverage elsewhere."""

import numpy as np
import pytest
from scipy import stats
from test_fitting import frame, planted

from rfjax.errors import ConfigError
from rfjax.laws.fitting import fit
from rfjax.laws.laws import POWER, SATURATING
from rfjax.laws.misfits import HUBER, LOSSES
from rfjax.laws.profile_likelihood import profile

SQUARES = LOSSES["squares-log"]


def test_a_straight_line_has_its_textbook_interval():
    """In log-log a pure power law is linear regression, whose interval of the slope is exact.
    A wrong count of degrees of freedom, or a profile that holds the other parameter, would show."""
    rng = np.random.default_rng(0)
    flops = np.geomspace(1e12, 1e15, 7)
    table = frame(2e3 * flops**-0.3 * np.exp(0.05 * rng.standard_normal(7)), flops=flops)
    line = stats.linregress(np.log(flops), np.log(table["loss"]))
    reach = stats.t.ppf(0.975, 5) * line.stderr
    found = profile(fit(table, POWER, loss=SQUARES, resamples=200, held_out=False), "b")
    assert found.method == "profile likelihood, F(1, 5)"
    assert (found.low, found.high) == pytest.approx((-line.slope - reach, -line.slope + reach), rel=1e-5)


def test_an_offset_that_is_not_there_reaches_zero():
    table = planted(7, 0.01, np.random.default_rng(0), offset=0.0)
    for loss in (HUBER, SQUARES):
        found = profile(fit(table, loss=loss, resamples=200, held_out=False), "E", simulations=200)
        assert found.low == 0.0 and found.at_bound[0] and 0 < found.high < 0.1


@pytest.mark.parametrize("n", [6, 10])
def test_the_interval_is_where_the_statistic_is_critical(n):
    fitted = fit(planted(n, 0.004, np.random.default_rng(1)), resamples=200, held_out=False)
    found = profile(fitted, "E", simulations=200)
    assert ("normal noise" in found.method) == (n < 8) and ("resampled" in found.method) == (n >= 8)
    at = np.interp([found.low, found.value, found.high], found.grid, found.statistic)
    assert at == pytest.approx([found.critical, 0.0, found.critical], rel=0.02, abs=1e-6)
    assert found.low < 0.045 < found.high  # planted


def test_a_coefficient_has_no_profile():
    fitted = fit(planted(6, 0.01, np.random.default_rng(0)), SATURATING, resamples=20, held_out=False)
    with pytest.raises(ConfigError, match="a profile for E, b, not for 'a'"):
        profile(fitted, "a")
