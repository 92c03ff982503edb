"""Compute-optimal size without a law of the loss: Chinchilla's approaches 1 and 2.

Both find the best size at several budgets and draw a line through them in log-log, N = G C^a and
D = H C^b (Hoffmann et al. 2022, sections 3.1 and 3.2). Approach 1 takes the lower envelope of the
training curves; approach 2 the vertex of a parabola of the loss in log N at each budget (IsoFLOP).
A parabola is not the shape of the valley: its vertex is off where the sizes reach far to the sides
or stand off centre. `approach2` reports how far, by applying itself to the parametric law fitted
to the same runs, without noise, at the same sizes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Float

from rfjax.errors import ConfigError
from rfjax.scaling import points
from rfjax.scaling.allocation import measure_cost, optimum
from rfjax.scaling.fits import LEVEL, RESAMPLES, Estimate, fit
from rfjax.scaling.laws import PARAMETRIC

SAME_BUDGET = 0.02  # budgets this close (relative) are one IsoFLOP curve
ENVELOPE_POINTS = 200
COLUMNS = ("loss", "flops", "params", "images")


@dataclass(frozen=True, kw_only=True)
class Optimum:
    """The best size at one budget."""

    flops: float
    params: float
    images: float
    loss: float
    runs: int  # that compete at this budget


@dataclass(frozen=True, kw_only=True)
class Line:
    """N = G C^a and D = H C^b through the optima; `reason` says why there is none, or ""."""

    approach: str
    optima: tuple[Optimum, ...]
    a: Estimate | None = None
    b: Estimate | None = None
    log_g: float | None = None
    log_h: float | None = None
    method: str = ""  # how the intervals were made
    notes: tuple[str, ...] = ()
    reason: str = ""
    bias: dict | None = None  # approach 2: of the exponent and of N, on the fitted parametric law
    draws: Float[np.ndarray, "draws 4"] | None = None  # log G, a, log H, b

    def at(self, flops: float) -> tuple[Estimate, Estimate]:
        """(params, images) that the line gives a budget. Raises `ConfigError` where there is none."""
        if self.a is None:
            raise ConfigError(f"{self.approach} found no line ({self.reason}); it cannot divide a budget")
        result = []
        for log_c, exponent, column in ((self.log_g, self.a.value, 0), (self.log_h, self.b.value, 2)):
            value = float(np.exp(log_c + exponent * np.log(flops)))
            if self.draws is None:
                result.append(Estimate(value=value))
                continue
            drawn = np.exp(self.draws[:, column] + self.draws[:, column + 1] * np.log(flops))
            low, high = np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
            result.append(Estimate(value=value, low=float(low), high=float(high)))
        return result[0], result[1]

    def to_json(self) -> dict:
        return {
            "approach": self.approach, "optima": [vars(one) for one in self.optima],
            "a": None if self.a is None else vars(self.a), "b": None if self.b is None else vars(self.b),
            "log_G": self.log_g, "log_H": self.log_h, "interval_level": LEVEL, "interval_method": self.method,
            "notes": list(self.notes), "reason": self.reason, "bias_on_fitted_parametric_law": self.bias,
        }  # fmt: skip


def approach1(table: pd.DataFrame, *, resamples: int = RESAMPLES, seed: int = 0) -> Line:
    """The envelope of training curves: `table` has a row per checkpoint, several per run.

    At budgets between the smallest and the largest at which runs of two sizes compete, the run with
    the lowest loss (interpolated along its own curve in log-log) gives the best size. Intervals are
    over whole runs. Checkpoints before the learning rate's end stand above the curve that a run of
    their own length would give; the envelope inherits that.

    Raises `ConfigError` for a missing column or a value that is not positive.
    """
    points.check(table.assign(run=[f"{run}, checkpoint {i + 1}" for i, run in enumerate(table.get("run", []))])
                 if "run" in table else table, COLUMNS)  # fmt: skip
    curves = [group.sort_values("flops") for _, group in table.groupby("run", sort=True) if len(group) > 1]
    if len({float(curve["params"].iloc[0]) for curve in curves}) < 2:
        return Line(approach="approach1", optima=(), reason="an envelope needs training curves (several rows a run) of two sizes")
    log_c = np.log(pd.concat(curves)["flops"].to_numpy(float))
    grid = np.linspace(log_c.min(), log_c.max(), ENVELOPE_POINTS)
    sizes = np.array([float(curve["params"].iloc[0]) for curve in curves])
    on_grid = np.stack([_along(curve, grid, "loss") for curve in curves])
    images = np.stack([_along(curve, grid, "images") for curve in curves])
    optima = _envelope(np.arange(len(curves)), grid, sizes, on_grid, images)
    if len({one.params for one in optima}) < 2:
        return Line(approach="approach1", optima=optima, reason="one size is best at every budget: the curves cross nowhere")
    point = _line(optima)
    rng = np.random.default_rng(seed)
    draws = []
    for _ in range(resamples):
        drawn = _envelope(np.unique(rng.integers(len(curves), size=len(curves))), grid, sizes, on_grid, images)
        if len({one.params for one in drawn}) > 1:
            draws.append(_line(drawn))
    method = f"bootstrap over runs, {len(draws):,} resamples in which sizes cross"
    return _with_intervals("approach1", optima, point, np.array(draws) if len(draws) > resamples / 2 else None, method)


def approach2(
    table: pd.DataFrame, *, resamples: int = RESAMPLES, seed: int = 0, same_budget: float = SAME_BUDGET, bias: bool = True
) -> Line:
    """IsoFLOP parabolas: `table` has one row per run, several sizes at each budget.

    Intervals are parametric: normal noise of the parabolas' pooled residual scatter. Budgets with
    fewer than three sizes, a parabola without a minimum, or one outside the sizes tried are left
    out, with a note.

    Raises `ConfigError` for a missing column or a value that is not positive.
    """
    points.check(table, COLUMNS)
    groups = _budgets(table, same_budget)
    optima, notes, used = [], [], []
    for group in groups:
        one, why = _vertex(group, group["loss"].to_numpy(float))
        if one is None:
            notes.append(f"{group['flops'].mean():.3g} FLOPs ({len(group)} runs): {why}")
        else:
            optima.append(one)
            used.append(group)
    if len(optima) < 2:
        return Line(approach="approach2", optima=tuple(optima), notes=tuple(notes),
                    reason=f"{len(optima)} budget{'s'[: len(optima) != 1]} with a minimum among the sizes tried; at least 2 are needed")  # fmt: skip
    point = _line(optima)
    draws, method = _redrawn_parabolas(used, resamples, seed)
    found = _with_intervals("approach2", optima, point, draws, method, tuple(notes))
    return Line(**(vars(found) | {"bias": _bias(table, used, point) if bias else None}))


def _budgets(table, same_budget):
    """Rows by budget: neighbours closer than `same_budget` are one."""
    table = table.sort_values(["flops", "params", "run"], kind="stable")
    log_c = np.log(table["flops"].to_numpy(float))
    group = np.concatenate([[0], np.cumsum(np.diff(log_c) > np.log1p(same_budget))])
    return [rows for _, rows in table.groupby(group)]


def _design(group):
    """The parabola's columns in centred log N, and the centre."""
    x = np.log(group["params"].to_numpy(float))
    centre = x.mean()
    return np.stack([np.ones(len(x)), x - centre, (x - centre) ** 2], axis=1), centre


def _vertex(group, loss):
    """(optimum of one budget, why there is none)."""
    sizes = group["params"].nunique()
    if sizes < 3:
        return None, f"{sizes} size{'s'[: sizes != 1]}; a parabola needs 3"
    design, centre = _design(group)
    c, b, curvature = np.linalg.lstsq(design, loss, rcond=None)[0]
    if curvature <= 0:
        return None, "the parabola has no minimum"
    x = centre - b / (2 * curvature)
    params = np.log(group["params"].to_numpy(float))
    if not params.min() <= x <= params.max():
        return None, f"the minimum, {np.exp(x):.3g} parameters, is outside the sizes tried"
    order = np.argsort(params, kind="stable")
    images = np.exp(np.interp(x, params[order], np.log(group["images"].to_numpy(float))[order]))
    flops = float(np.exp(np.log(group["flops"].to_numpy(float)).mean()))
    return Optimum(flops=flops, params=float(np.exp(x)), images=float(images),
                   loss=float(c - b**2 / (4 * curvature)), runs=len(group)), ""  # fmt: skip


def _redrawn_parabolas(groups, resamples, seed):
    """Lines through the vertices of parabolas with noise of the pooled scatter: (draws, method)."""
    designs = [_design(group)[0] for group in groups]
    losses = [group["loss"].to_numpy(float) for group in groups]
    fitted = [d @ np.linalg.lstsq(d, y, rcond=None)[0] for d, y in zip(designs, losses, strict=True)]
    freedom = sum(len(y) - 3 for y in losses)
    if freedom < 1:
        return None, "none: three sizes at every budget leave no scatter to draw from"
    spread = np.sqrt(sum(((y / f - 1) ** 2).sum() for y, f in zip(losses, fitted, strict=True)) / freedom)
    rng = np.random.default_rng(seed)
    draws = []
    for _ in range(resamples):
        noise = spread * np.sqrt(freedom / rng.chisquare(freedom))
        found = [_vertex(group, f * (1 + noise * rng.standard_normal(len(f))))[0] for group, f in zip(groups, fitted, strict=True)]
        found = [one for one in found if one is not None]
        if len(found) > 1:
            draws.append(_line(found))
    method = f"parametric bootstrap, {len(draws):,} resamples: normal noise of the parabolas' pooled relative scatter ({freedom} degrees of freedom)"
    return (np.array(draws) if len(draws) > resamples / 2 else None), method


def _bias(table, groups, point):
    """The approach on the noise-free parametric law of the same runs, against that law's own optimum."""
    fitted = fit(table, PARAMETRIC, resamples=100, held_out=False)
    if not fitted.identifiable:
        return {"reason": f"the parametric law was not fitted: {fitted.reason}"}
    cost = measure_cost(table)
    optima = []
    for group in groups:
        x = {name: group[name].to_numpy(float) for name in ("params", "images")}
        one, _ = _vertex(group, fitted.predict(x))
        if one is not None:
            optima.append(one)
    if len(optima) < 2:
        return {"reason": "the fitted parametric law has no minimum among the sizes tried"}
    exact = np.array([optimum(fitted.parameters, one.flops, cost)[0] for one in optima])
    line = _line(optima)
    _, log_a, alpha, log_b, beta = fitted.parameters
    return {
        "exponent": float(line[1] - beta / (alpha + cost.eta * beta)),
        "params_relative": [float(one.params / n - 1) for one, n in zip(optima, exact, strict=True)],
        "flops": [one.flops for one in optima], "reason": "",
    }  # fmt: skip


def _along(curve, grid, column):
    """A run's column at the grid of log FLOPs, in log-log; NaN outside its curve."""
    log_c = np.log(curve["flops"].to_numpy(float))
    values = np.interp(grid, log_c, np.log(curve[column].to_numpy(float)))
    return np.where((grid >= log_c[0] - 1e-12) & (grid <= log_c[-1] + 1e-12), np.exp(values), np.nan)


def _envelope(chosen, grid, sizes, losses, images):
    optima = []
    for column in range(len(grid)):
        here = [i for i in chosen if np.isfinite(losses[i, column])]
        if len({sizes[i] for i in here}) < 2:
            continue
        best = min(here, key=lambda i: losses[i, column])
        optima.append(
            Optimum(flops=float(np.exp(grid[column])), params=float(sizes[best]), images=float(images[best, column]),
                    loss=float(losses[best, column]), runs=len(here))
        )  # fmt: skip
    return tuple(optima)


def _line(optima):
    """log G, a, log H, b: straight lines through the optima in log-log."""
    log_c, log_n, log_d = (np.log([getattr(one, name) for one in optima]) for name in ("flops", "params", "images"))
    centre = log_c.mean()
    result = []
    for y in (log_n, log_d):
        slope, level = np.polyfit(log_c - centre, y, 1)
        result += [level - slope * centre, slope]
    return result


def _with_intervals(approach, optima, point, draws, method, notes=()):
    def estimate(place):
        if draws is None:
            return Estimate(value=float(point[place]))
        low, high = np.quantile(draws[:, place], [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
        return Estimate(value=float(point[place]), low=float(low), high=float(high), stderr=float(draws[:, place].std(ddof=1)))

    return Line(
        approach=approach, optima=tuple(optima), a=estimate(1), b=estimate(3), log_g=float(point[0]), log_h=float(point[2]),
        method=method if draws is not None or method.startswith("none") else "none: too few resamples gave a line",
        notes=notes, draws=draws,
    )  # fmt: skip
