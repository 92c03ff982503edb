"""Computes what it costs to miss the compute-optimal size: the loss of other sizes at equal FLOPs, a bowl-shaped curve.

At fixed FLOPs C = kappa N^eta D, a network of s times the optimal size has N = s N* parameters and sees D = s^-eta D*
images. There the parametric law gives

    L(s) = E + K (eta a s^-alpha + b s^(eta beta))

where K = L(1) - E is the optimum's reducible loss, and a, b are the exponents of N* and D* (`optimal_frontier`). At the
optimum, the term of size makes up the share eta a of K, and the term of images the share b. So the two exponents alone
decide whether under-training (s > 1) costs more than over-training (s < 1) by the same factor. Under-training costs
more if eta beta > alpha (that is, eta a > 1/2), and less if eta beta < alpha.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from rfjax.laws.fitting import Estimate
from rfjax.laws.optimal_frontier import OptimalFrontier


def excess(frontier: OptimalFrontier, size: float, flops: float) -> Float[np.ndarray, " rows"]:
    """Returns by how much the loss of a network of `size` times the optimal number of parameters exceeds the least loss
    for the same `flops`, as a share of this least loss.

    The first entry of the result is for the fitted law, the others are for the draws of the law's parameters.
    """
    a, b, g = (frontier.exponents[name] for name in ("params", "images", "loss"))
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        alpha, beta = g / a, g / b
        reducible = np.exp(frontier.log_reducible - g * np.log(flops / frontier.reference))
        bowl = (1 - b) * size**-alpha + b * size ** (frontier.cost.eta * beta) - 1
        return reducible * bowl / (frontier.offset + reducible)


def size_at(frontier: OptimalFrontier, factor: float) -> float:
    """Returns the size, in units of N*, of the network that sees `factor` times as many images per parameter as the
    optimum of the same FLOPs."""
    return float(factor ** (-1 / (1 + frontier.cost.eta)))


def excess_at(frontier: OptimalFrontier, size: float) -> Estimate:
    """Returns the result of `excess` for `size` and the geometric mean of the runs' FLOPs, with its interval."""
    return _estimate(frontier, excess(frontier, size, frontier.reference))


def asymmetry(frontier: OptimalFrontier, factor: float) -> Estimate:
    """Returns the excess loss of under-training divided by the excess loss of over-training, both at the geometric mean
    of the runs' FLOPs. Under-trained means 1/`factor` times the optimum's images per parameter; over-trained means
    `factor` times the optimum's images per parameter."""
    under, over = (excess(frontier, size_at(frontier, f), frontier.reference) for f in (1 / factor, factor))
    with np.errstate(divide="ignore", invalid="ignore"):
        return _estimate(frontier, under / over)


def _estimate(frontier, values):
    """Makes an `Estimate` from positive `values`: the first is the fitted law's, the others are those of the draws."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return frontier.estimate(np.log(values))
