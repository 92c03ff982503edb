"""The shift that is read from a scheduler, against diffusers' own."""

import numpy as np
from diffusers.schedulers import FlowMatchEulerDiscreteScheduler

from helpers.schedulers import scheduler
from rfjax.interop.scheduler import read_scheduler


def test_a_dynamic_shift_is_that_of_the_pictures_size(tmp_path):
    """Catches the constant shift taken where the pipeline ignores it; the values are diffusers' own."""
    for kind in ("exponential", "linear"):
        settings = {"use_dynamic_shifting": True, "base_shift": 0.5, "max_shift": 1.15, "time_shift_type": kind}
        found = read_scheduler(scheduler(tmp_path, **settings))
        theirs = FlowMatchEulerDiscreteScheduler(**settings)
        mu = 0.5 + (1.15 - 0.5) * (1024 - 256) / (4096 - 256)
        alpha = found.shift_at(1024)
        shifted = theirs.time_shift(mu, 1.0, np.array([0.3, 0.8]))
        np.testing.assert_allclose(shifted, [alpha * t / (1 + (alpha - 1) * t) for t in (0.3, 0.8)], rtol=1e-6)
