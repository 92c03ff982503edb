"""Derives the compute-optimal frontier of the parametric law: size, images and loss as functions of compute.

Training costs C = kappa N^eta D FLOPs (`rfjax.laws.budgets.Cost`). The best size, the best number of images, and the
distance of the loss from E are powers of C:

    N*(C) = N0 (C / C0)^a         a = beta / (alpha + eta beta)
    D*(C) = D0 (C / C0)^b         b = alpha / (alpha + eta beta) = 1 - eta a
    L*(C) = E + K0 (C / C0)^-g    g = alpha beta / (alpha + eta beta)

N0 and D0 are the optimum for the budget C0 (`budgets.optimum`), and K0 = A N0^-alpha + B D0^-beta. C0 is the geometric
mean of the runs' FLOPs, where N*, D* and L* are known best. With kappa = 6 and eta = 1 these are eq. 4 of Hoffmann et
al. 2022. Intervals use the same draws as the parameters' intervals.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Float

from rfjax.evaluation.intervals import ENDS, LEVEL
from rfjax.laws import fit_points
from rfjax.laws.budgets import Cost, measure_cost, optimum, undecided
from rfjax.laws.fitting import Estimate, Fit
from rfjax.results.plain import plain

BEYOND = 10.0  # the frontier is also stated at this many times the largest run's FLOPs
CONVENTION = (
    "flops are training FLOPs as the table has them; rfjax counts 2 per multiply-accumulate, 3x the forward pass"
)
_LARGEST_LOG = 700.0  # exp of a larger number may overflow
_MOST_LOST = 0.1  # if more than this share of the draws has no optimum, there is no interval


@dataclass(frozen=True, kw_only=True)
class OptimalPoint:
    """The frontier at one budget."""

    flops: float
    params: Estimate
    images: Estimate
    images_per_param: Estimate
    loss: Estimate
    beyond: float  # the budget in units of the largest run's FLOPs


@dataclass(frozen=True, kw_only=True, eq=False)
class OptimalFrontier:
    """The frontier of a fitted law. In each array the first row is for the law, the others are for its draws."""

    cost: Cost
    reference: float  # C0, FLOPs
    flops: tuple[float, float]  # the least and the most of the runs
    log_params: Float[np.ndarray, " rows"]  # log N0
    log_images: Float[np.ndarray, " rows"]  # log D0
    log_reducible: Float[np.ndarray, " rows"]  # log K0
    offset: Float[np.ndarray, " rows"]  # E
    exponents: dict[str, Float[np.ndarray, " rows"]]  # a, b, g of `params`, `images` and `loss`
    held: bool = False  # whether an interval that leaves out its value is widened to reach it

    def bands(self, flops: Float[np.ndarray, " m"]) -> dict[str, dict[str, Float[np.ndarray, " m"]]]:
        """Returns `params`, `images`, `images_per_param` and `loss`, each with its `value`, `low` and `high` at each
        budget. `low` and `high` are NaN if too few draws have an optimum."""
        log_c = np.log(np.asarray(flops, float) / self.reference)[:, None]
        with np.errstate(invalid="ignore", over="ignore"):
            params = self.log_params + self.exponents["params"] * log_c
            images = self.log_images + self.exponents["images"] * log_c
            loss = np.log(self.offset + np.exp(self.log_reducible - self.exponents["loss"] * log_c))
            logs = {"params": params, "images": images, "images_per_param": images - params, "loss": loss}
        return {name: self._with_ends(values) for name, values in logs.items()}

    def _with_ends(
        self, values: Float[np.ndarray, "m rows"], *, natural: bool = False
    ) -> dict[str, Float[np.ndarray, " m"]]:
        """Turns logarithms into numbers (with `natural`, the values are not logarithms and stay as they are). The first
        column is the value, the others are draws for the interval.

        Quantiles are taken of the logarithms, so that an infinite draw (a size of 0) counts as just one extreme draw.
        """
        back = np.asarray if natural else np.exp
        finite = np.clip(values, -_LARGEST_LOG, _LARGEST_LOG)
        kept = ~np.isnan(finite).any(axis=0)
        low = high = np.full(len(values), np.nan)
        if kept.mean() >= 1 - _MOST_LOST:
            drawn = finite[:, 1:][:, kept[1:]]
            low, high = np.quantile(drawn, ENDS, axis=1)
            if self.held:
                low, high = np.minimum(low, finite[:, 0]), np.maximum(high, finite[:, 0])
        return {"value": back(finite[:, 0]), "low": back(low), "high": back(high)}

    def at(self, flops: float) -> OptimalPoint:
        """The frontier at one budget."""
        found = {name: _estimate(band) for name, band in self.bands(np.array([flops])).items()}
        return OptimalPoint(flops=float(flops), beyond=float(flops / self.flops[1]), **found)

    def estimate(self, logs: Float[np.ndarray, " rows"]) -> Estimate:
        """Makes an estimate of a positive quantity from its logarithms: the first is under the fitted law, the others
        under the draws of its parameters, which give the interval."""
        return _estimate(self._with_ends(logs[None]))

    def exponent(self, name: str) -> Estimate:
        """Returns the exponent of `params`, `images` or `loss` (the `name`), with its interval."""
        with np.errstate(divide="ignore"):  # a draw's exponent may be 0
            return self.estimate(np.log(self.exponents[name]))

    @property
    def points(self) -> tuple[OptimalPoint, ...]:
        """The frontier at the least and the most FLOPs of the runs, and at `BEYOND` times the most."""
        return tuple(self.at(flops) for flops in (*self.flops, BEYOND * self.flops[1]))

    def to_json(self) -> dict:
        log_c = np.log(self.reference)
        at_reference = self.at(self.reference)
        content = {
            "cost": self.cost,
            "convention": CONVENTION,
            "interval_level": LEVEL,
            "reference_flops": self.reference,
            "runs_flops": self.flops,
            "points": [vars(point) for point in self.points],
        }
        for name, logs in (("params", self.log_params), ("images", self.log_images), ("loss", self.log_reducible)):
            sign = -1 if name == "loss" else 1
            slope = self.exponents[name]
            content[name] = {
                "coefficient": float(np.exp(np.clip(logs[0] - sign * slope[0] * log_c, -_LARGEST_LOG, _LARGEST_LOG))),
                "exponent": self.exponent(name),
                "at_reference": getattr(at_reference, name),
            }
        content["loss"]["E"] = _estimate(self._with_ends(self.offset[None], natural=True))
        return plain(content)


def derive(fit: Fit, table: pd.DataFrame, given: float | None = None) -> tuple[OptimalFrontier | None, str]:
    """Returns (the frontier of a fit of the parametric law, ""), or (None, the reason).

    `table` has the rows that the law was fitted to. The cost is measured on its columns `flops`, `params` and `images`,
    unless the FLOPs per parameter and image are `given`. Raises `ConfigError` for a value in these columns that is not
    positive.
    """
    if not fit.identifiable:
        return None, f"the parametric law was not fitted: {fit.reason}"
    if "flops" not in table:
        remedy = "give --flops-per-param-image (6 where images are tokens)"
        return None, f"what training costs is not known, as the table has no column flops; {remedy}"
    names = undecided(fit)
    if names:
        return None, f"the runs do not decide it: the interval of {' and '.join(names)} reaches 0"
    fit_points.check(table, ("flops", "params", "images"))
    cost = Cost(kappa=given, source="as given") if given else measure_cost(table)
    flops = table["flops"].to_numpy(float)
    reference = float(np.exp(np.log(flops).mean()))
    every = np.concatenate([fit.parameters[None], fit.draws])
    offset, log_a, alpha, log_b, beta = every.T
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        log_params, log_images = (np.log(found) for found in optimum(every, reference, cost))
        total = alpha + cost.eta * beta
        frontier = OptimalFrontier(
            cost=cost,
            reference=reference,
            flops=(float(flops.min()), float(flops.max())),
            log_params=log_params,
            log_images=log_images,
            log_reducible=np.logaddexp(log_a - alpha * log_params, log_b - beta * log_images),
            offset=offset,
            exponents={"params": beta / total, "images": alpha / total, "loss": alpha * beta / total},
            held=fit.scatter is not None,
        )
    return frontier, ""


def _estimate(band) -> Estimate:
    """Makes an `Estimate` from a band (`value`, `low`, `high`) of a single budget."""
    numbers = {name: float(value[0]) for name, value in band.items()}
    return Estimate(**{name: None if np.isnan(number) else number for name, number in numbers.items()})
