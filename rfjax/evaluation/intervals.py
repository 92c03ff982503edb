"""The confidence level of every interval that rfjax prints or stores, and the ends of such an interval."""

from __future__ import annotations

LEVEL = 0.95
ENDS = ((1 - LEVEL) / 2, (1 + LEVEL) / 2)  # quantiles of draws between which the interval lies
PERCENTILES = (2.5, 97.5)  # ENDS in per cent; a constant, because 100 * ENDS differs in the last bit
STANDARD_ERRORS = 1.96  # half the width of the interval of a normally distributed estimate, in standard errors


def normal_interval(value: float, stderr: float) -> tuple[float, float]:
    """Returns the 95 % interval (low, high) of a normally distributed estimate with this standard error."""
    return value - STANDARD_ERRORS * stderr, value + STANDARD_ERRORS * stderr
