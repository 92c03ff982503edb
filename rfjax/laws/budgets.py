"""Divides a budget: the parameters and images that minimise the parametric law at fixed FLOPs.

Training costs C = kappa N^eta D FLOPs (N parameters, D images). Minimising E + A N^-alpha + B D^-beta
along this curve gives (Hoffmann et al. 2022, eq. 4, there with kappa = 6 and eta = 1)

    N = G (C / kappa)^a,   a = beta / (alpha + eta beta),   G = (alpha A / (eta beta B))^(1 / (alpha + eta beta))
    D = (C / kappa) N^-eta

The Stable Diffusion 3 paper fixed the number of steps instead: D is the same for every size, and the
whole budget goes into N. An `Allocation` also holds this fixed-steps design and its excess loss over the optimum.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Float

from rfjax.errors import ConfigError
from rfjax.evaluation.intervals import LEVEL
from rfjax.laws import fit_points
from rfjax.laws.fitting import Estimate, Fit
from rfjax.laws.laws import PARAMETRIC
from rfjax.results.plain import plain

SD3_IMAGES = 500_000.0 * 4096  # Esser et al. 2024, section 5.3.3: steps times batch, for every depth
UNDECIDED = 1e-6  # if an exponent's interval reaches below this, the runs do not determine the optimum
FAR = 10.0  # values more than this factor beyond the runs give a warning


@dataclass(frozen=True, kw_only=True)
class Cost:
    """FLOPs of a training run: kappa * params^eta * images."""

    kappa: float = 6.0
    eta: float = 1.0
    worst: float = 0.0  # largest relative error of these FLOPs, over the runs on which kappa and eta were measured
    source: str = "6 FLOPs per parameter and image"

    def params(self, flops: float, images: float) -> float:
        """Returns the number of parameters that can be trained on `images` images for `flops` FLOPs."""
        with np.errstate(over="ignore"):
            return float(np.exp((np.log(flops) - np.log(self.kappa) - np.log(images)) / self.eta))


@dataclass(frozen=True, kw_only=True)
class Design:
    """One way to spend a budget, as a number of parameters and of images, with the loss that the law predicts for
    it."""

    params: Estimate
    images: Estimate
    loss: Estimate


@dataclass(frozen=True, kw_only=True)
class Allocation:
    """How to divide a budget of FLOPs: the optimal numbers of parameters and images and, for comparison, the design
    with a fixed number of images."""

    budget: float
    cost: Cost
    exponent: Estimate  # a: the optimal size grows as budget^a
    optimal: Design
    fixed: Design  # spends the budget on size alone, at the fixed number of images
    fixed_images: float
    excess_loss: Estimate  # loss of the fixed design / loss of the optimum - 1
    beyond: Mapping[str, float]  # budget, sizes and images, each divided by the largest value among the runs
    warnings: tuple[str, ...]

    def to_json(self) -> dict:
        content = {
            "budget_flops": self.budget,
            "cost": self.cost,
            "interval_level": LEVEL,
            "exponent_a": self.exponent,
            "optimal": self.optimal,
            "fixed_steps": vars(self.fixed) | {"images_of_every_run": self.fixed_images},
            "excess_loss_of_fixed_steps": self.excess_loss,
            "beyond": self.beyond,
            "warnings": self.warnings,
        }
        return plain(content)


def measure_cost(table: pd.DataFrame) -> Cost:
    """Measures kappa and eta on a table's `flops`, `params` and `images`, by least squares in logs.

    With one size, eta is 1. Raises `ConfigError` if a column is missing or a value is not positive.
    """
    fit_points.check(table, ("flops", "params", "images"), one_row_per_run=False)
    params, per_image = table["params"].to_numpy(float), (table["flops"] / table["images"]).to_numpy(float)
    x, y = np.log(params), np.log(per_image)
    if np.ptp(x) < 1e-9:
        eta, log_kappa = 1.0, float((y - x).mean())
    else:
        eta, log_kappa = (float(v) for v in np.polyfit(x, y, 1))
    worst = float(np.abs(np.exp(log_kappa + eta * x - y) - 1).max())
    return Cost(kappa=float(np.exp(log_kappa)), eta=eta, worst=worst, source=f"measured on {len(table)} runs")


def optimum(
    parameters: Float[np.ndarray, "*batch 5"], budget: float, cost: Cost
) -> tuple[Float[np.ndarray, "*batch"], Float[np.ndarray, "*batch"]]:
    """Returns the (params, images) that minimise the parametric law's loss for `budget` FLOPs.

    `parameters` are in the law's order: E, log A, alpha, log B, beta.
    """
    _, log_a, alpha, log_b, beta = np.moveaxis(np.asarray(parameters, float), -1, 0)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        total = alpha + cost.eta * beta
        log_g = (np.log(alpha) + log_a - np.log(cost.eta * beta) - log_b) / total
        log_spent = np.log(budget / cost.kappa)
        log_n = log_g + beta / total * log_spent
        return np.asarray(np.exp(log_n)), np.asarray(np.exp(log_spent - cost.eta * log_n))


def undecided(fit: Fit) -> list[str]:
    """Returns the names of the parametric law's exponents whose intervals reach 0. If there are any, the runs do not
    decide the optimum."""
    return [name for name in ("alpha", "beta") if (fit.estimates[name].low or 0.0) < UNDECIDED]


def exponent_draws(fit: Fit, cost: Cost) -> Float[np.ndarray, " draws"]:
    """Returns a = beta / (alpha + eta beta) for each draw of the fit."""
    alpha, beta = fit.draws[:, 2], fit.draws[:, 4]
    with np.errstate(invalid="ignore"):  # a draw with both at 0 has no optimum
        return beta / (alpha + cost.eta * beta)


def allocate(fit: Fit, budget: float, cost: Cost, *, fixed_images: float = SD3_IMAGES) -> Allocation:
    """Divides `budget` FLOPs between parameters and images, as an identifiable fit of the parametric law says.

    `fixed_images` is the number of images in the design with a fixed number of steps. If the runs do not determine the
    optimum (`undecided`), a warning says so. Raises `ConfigError` for a fit of another law, for a fit that is not
    identifiable, and for a `budget` or `fixed_images` that is not positive.
    """
    if fit.law is not PARAMETRIC:
        raise ConfigError(f"an allocation needs the parametric law of params and images, not the {fit.law.name} law")
    if not fit.identifiable:
        raise ConfigError(f"the parametric law was not fitted ({fit.reason}); it cannot divide a budget")
    if not (np.isfinite(budget) and budget > 0):
        raise ConfigError(f"the budget is {budget:g} FLOPs; it must be positive")
    if not (np.isfinite(fixed_images) and fixed_images > 0):
        raise ConfigError(f"the fixed-steps design has {fixed_images:g} images; it must be positive")
    every = np.concatenate([fit.parameters[None], fit.draws])
    n, d = optimum(every, budget, cost)
    fixed_n = cost.params(budget, fixed_images)
    loss = np.exp(_loss(every, n, d))
    fixed_loss = np.exp(_loss(every, fixed_n, fixed_images))
    _, _, alpha, _, beta = fit.parameters
    exponent = np.append(beta / (alpha + cost.eta * beta), exponent_draws(fit, cost))
    seen = dict(zip(fit.law.variables, np.exp(fit.log_x).T, strict=True))
    spent = cost.kappa * seen["params"] ** cost.eta * seen["images"]
    asked = {
        "params": (n[0], seen["params"]),
        "images": (d[0], seen["images"]),
        "budget": (budget, spent),
        "fixed_params": (fixed_n, seen["params"]),
        "fixed_images": (fixed_images, seen["images"]),
    }
    warnings = [
        f"{name.replace('fixed_', 'fixed steps: ')} {value:.3g} is "
        f"{max(value / column.max(), column.min() / max(value, 1e-300)):.3g} "
        f"times beyond the runs ({column.min():.3g} to {column.max():.3g})"
        for name, (value, column) in asked.items()
        if name != "budget"
        and (value > FAR * column.max() or value < column.min() / FAR)  # the budget's factor is always reported
    ]
    open_ends = undecided(fit)
    if open_ends:
        warnings.append(
            f"the interval of {' and '.join(open_ends)} reaches 0: these runs do not decide how to divide a budget"
        )
    if cost.worst > 0.1:
        warnings.append(f"FLOPs are not kappa·params^eta·images: off by up to {100 * cost.worst:.0f} % over the runs")
    images = Estimate(value=float(fixed_images))
    fixed = Design(params=Estimate(value=fixed_n), images=images, loss=_estimate(fixed_loss))
    return Allocation(
        budget=float(budget),
        cost=cost,
        exponent=_estimate(exponent),
        fixed_images=float(fixed_images),
        optimal=Design(params=_estimate(n), images=_estimate(d), loss=_estimate(loss)),
        fixed=fixed,
        excess_loss=_estimate(fixed_loss / loss - 1),
        beyond={name: float(value / column.max()) for name, (value, column) in asked.items()},
        warnings=tuple(warnings),
    )


def _loss(parameters, params, images):
    """Returns the logarithms of the parametric law's losses, [rows]. Entry i is for row i of `parameters`, the model
    size `params[i]` and the number of images `images[i]`. If `params` or `images` is one number, all rows use it."""
    e, log_a, alpha, log_b, beta = parameters.T
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.logaddexp.reduce([np.log(e), log_a - alpha * np.log(params), log_b - beta * np.log(images)], axis=0)


def _estimate(values):
    """Makes an `Estimate`: the first of `values` is the value, and the interval is taken from the others, the draws.
    There is no interval if more than a tenth of the draws are not finite."""
    rest = values[1:][np.isfinite(values[1:])]
    enough = len(rest) >= 0.9 * len(values[1:])  # a draw without an optimum is not finite
    return Estimate.from_draws(values[0], rest if enough else None)
