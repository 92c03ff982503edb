"""Nominal 95 % intervals cover: simulated studies of the default study's own size and noise."""

import numpy as np
import pandas as pd
import pytest

from rfjax.laws.fitting import fit
from rfjax.laws.laws import PARAMETRIC

# The default study's six runs, the last held out, and its law; noise from that of seeds (0.5 %) to
# the scatter of runs that are off the optimal shape (5 %).
FLOPS = np.array([5.47e11, 1.31e12, 3.11e12, 6.23e12, 1.09e13, 2.12e13])
E, A, B = 0.1505, 1.33e5, 0.492


def studies(flops, held, noise, count, resamples, **options):
    """Per study whether E, b and the held-out run are covered; refused fits are left out."""
    rng = np.random.default_rng(0)
    covered = []
    for _ in range(count):
        x = np.append(flops, held)
        loss = (E + A * x**-B) * np.exp(noise * rng.standard_normal(len(x)))
        table = pd.DataFrame({"run": [f"r{i:02d}" for i in range(len(flops))], "flops": flops, "loss": loss[:-1]})
        found = fit(table, resamples=resamples, held_out=False, **options)
        if not found.identifiable:
            continue
        e, b = found.estimates["E"], found.estimates["b"]
        low, high = found.interval({"flops": [held]}, new_run=True)
        covered.append([e.low <= E <= e.high, b.low <= B <= b.high, low[0] <= loss[-1] <= high[0]])
    return np.array(covered)


@pytest.mark.full
def test_intervals_cover():
    """Catches a bootstrap with a fixed noise scale (normal instead of t), which covers four times
    in five with n - k = 2, and a held-out interval without the new run's own noise."""
    covered = studies(FLOPS[:5], FLOPS[5], 0.01, 60, 150)
    assert len(covered) == 60
    assert (covered.mean(axis=0) >= 0.85).all(), covered.mean(axis=0)


@pytest.mark.full
@pytest.mark.parametrize(
    ("flops", "held", "noise"),
    [
        (FLOPS[:5], FLOPS[5], 0.05),
        (FLOPS[:5], FLOPS[5], 0.005),
        (FLOPS, 6e13, 0.02),
        (np.geomspace(5e11, 4e13, 8), 8e13, 0.01),
        (np.geomspace(5e11, 4e13, 12), 8e13, 0.01),
    ],
    ids=["five-noisy", "five-precise", "six", "eight", "twelve"],
)
def test_intervals_cover_as_often_as_they_say(flops, held, noise):
    """200 studies each; both methods, over runs (8 and 12) and parametric."""
    covered = studies(flops, held, noise, 200, 400)
    assert len(covered) >= 180
    assert ((covered.mean(axis=0) >= 0.90) & (covered.mean(axis=0) <= 0.99)).all(), covered.mean(axis=0)


@pytest.mark.full
@pytest.mark.parametrize("sizes", [(3, 3), (4, 3), (5, 4)], ids=["nine", "twelve", "twenty"])
def test_intervals_of_the_parametric_law_cover_too(sizes):
    """E, alpha, beta and a larger run. Nine runs leave four degrees of freedom, where runs that are
    resampled cover beta 85 times in 100, and the parametric bootstrap takes over."""
    params, images = (
        v.ravel() for v in np.meshgrid(np.geomspace(1e7, 1e9, sizes[0]), np.geomspace(1e8, 1e10, sizes[1]))
    )
    rng, covered = np.random.default_rng(0), []

    def law(n, d):
        return 0.4 + 60 * n**-0.3 + 90 * d**-0.25

    for _ in range(200):
        loss = law(params, images) * np.exp(0.005 * rng.standard_normal(len(params)))
        table = pd.DataFrame(
            {"run": [f"r{i:02d}" for i in range(len(params))], "params": params, "images": images, "loss": loss}
        )
        found = fit(table, PARAMETRIC, resamples=400, held_out=False)
        if not found.identifiable:
            continue
        low, high = found.interval({"params": [3e9], "images": [2e10]}, new_run=True)
        actual = law(3e9, 2e10) * np.exp(0.005 * rng.standard_normal())
        e = found.estimates
        truths = ((e["E"], 0.4), (e["alpha"], 0.3), (e["beta"], 0.25))
        covered.append([one.low <= truth <= one.high for one, truth in truths] + [low[0] <= actual <= high[0]])
    share = np.mean(covered, axis=0)
    assert len(covered) >= 180 and (share >= 0.90).all() and (share <= 0.995).all(), share
