"""Tables of runs whose law is known: plain ones, isoFLOP profiles, and training curves."""

import numpy as np
import pandas as pd

from rfjax.laws.budgets import Cost, optimum
from rfjax.laws.laws import PARAMETRIC

HOFFMANN = np.array([1.69, np.log(406.4), 0.34, np.log(410.7), 0.28])


def loss_at(params, images):
    x = np.broadcast_arrays(params, images)
    return np.exp(PARAMETRIC.log_loss(HOFFMANN, np.log(np.stack(x, axis=-1))))


def parametric_study(noise=0.0, seed=0, kappa=3.0, eta=0.9):
    rng = np.random.default_rng(seed)
    params, images = (v.ravel() for v in np.meshgrid(np.geomspace(1e7, 1e9, 5), np.geomspace(1e8, 1e10, 4)))
    loss = (0.4 + 60 * params**-0.3 + 90 * images**-0.25) * np.exp(noise * rng.standard_normal(20))
    return pd.DataFrame(
        {
            "run": [f"r{i:02d}" for i in range(20)],
            "params": params,
            "images": images,
            "flops": kappa * params**eta * images,
            "loss": loss,
        }
    )


def isoflop(half_width, sizes=11, noise=0.0, off_centre=1.0):
    rng = np.random.default_rng(0)
    pieces = []
    for budget in np.geomspace(1e18, 1e21, 4):
        best, _ = optimum(HOFFMANN, budget, Cost())
        params = best * off_centre * np.geomspace(1 / half_width, half_width, sizes)
        images = budget / 6 / params
        loss = loss_at(params, images) * np.exp(noise * rng.standard_normal(sizes))
        pieces.append(pd.DataFrame({"flops": budget, "params": params, "images": images, "loss": loss}))
    table = pd.concat(pieces, ignore_index=True)
    return table.assign(run=[f"r{i:03d}" for i in range(len(table))])


def curves(sizes=9, points=60):
    """Training curves whose loss at D images is that of the law: the envelope is then exact."""
    rows = []
    for number, params in enumerate(np.geomspace(3e7, 3e10, sizes)):
        images = np.geomspace(1e8, 1e13, points)
        rows.append(
            pd.DataFrame(
                {
                    "run": f"size{number}",
                    "params": params,
                    "images": images,
                    "flops": 6 * params * images,
                    "loss": loss_at(params, images),
                }
            )
        )
    return pd.concat(rows, ignore_index=True)
