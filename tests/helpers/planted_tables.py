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


def optimal_grid(*, alpha=0.3, beta=0.3, offset=0.3, noise=0.0, seed=0, tokens=256, tokens_per_param=200.0):
    """Runs of five sizes and five lengths on E + A N^-alpha + B D^-beta, with C = 6 N times `tokens` an image; no two
    sizes share a budget.

    At N = 3e8 the optimum sees `tokens_per_param` image tokens per parameter; with alpha = beta it does so at any size.
    """
    rng = np.random.default_rng(seed)
    middle = 3e8, 3e8 * tokens_per_param / tokens
    sizes, lengths = middle[0] * np.geomspace(1 / 16, 16, 5), middle[1] * np.geomspace(1 / 20, 20, 5)
    params, images = (v.ravel() for v in np.meshgrid(sizes, lengths))
    size, data = 0.2, 0.2 * alpha / beta  # at the optimum alpha A N^-alpha = beta B D^-beta
    loss = offset + size * (params / middle[0]) ** -alpha + data * (images / middle[1]) ** -beta
    loss *= np.exp(noise * rng.standard_normal(len(loss)))
    columns = {"params": params, "images": images, "flops": 6 * tokens * params * images, "loss": loss}
    columns |= {"image_tokens": tokens * images, "image_tokens_per_param": tokens * images / params}
    return pd.DataFrame({"run": [f"r{i:02d}" for i in range(len(loss))]} | columns)


def training_curves(table, shape):
    """The table's runs with ten checkpoints each: the loss at share x of training is E + (L - E) x^-shape(params)."""
    rows = []
    for share in np.linspace(0.1, 1.0, 10):
        loss = 0.3 + (table["loss"] - 0.3) * share ** -shape(table["params"])
        rows.append(table.assign(images=share * table["images"], flops=share * table["flops"], loss=loss))
    return pd.concat(rows, ignore_index=True)
