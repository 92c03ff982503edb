"""Finds compute-optimal sizes without a law of the loss: Chinchilla's approaches 1 and 2.

Both find the best size at several budgets C (FLOPs) and draw lines through these optima in log-log: N = G C^a for the
parameters, D = H C^b for the images (Hoffmann et al. 2022, sections 3.1 and 3.2). Approach 1 takes the lower envelope
of the training curves. Approach 2 takes, at each budget, the vertex of a parabola of the loss in log N (IsoFLOP).
Neither uses a budget at which the smallest or the largest size is best, since such a budget does not bracket its
optimum. Neither is exact: the loss over log N is not a parabola, and where two sizes are equally good, the optimum is
not exactly midway between them. So each approach is also applied to noiseless losses: those of the parametric law,
fitted to the same runs, at the same sizes and budgets. There the optimum is known, and the approach's error is its
bias.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from jaxtyping import Float

from rfjax.errors import ConfigError
from rfjax.evaluation.intervals import LEVEL
from rfjax.laws import fit_points
from rfjax.laws.budgets import measure_cost, optimum
from rfjax.laws.fitting import RESAMPLES, Estimate, fit
from rfjax.laws.laws import PARAMETRIC
from rfjax.laws.trunks import are_shared, trunks_of
from rfjax.results.plain import plain

SAME_BUDGET = 0.02  # budgets this close (relative) are one IsoFLOP curve
ENVELOPE_POINTS = 200  # budgets at which training curves are compared
BIAS_POINTS = 200  # checkpoints, at most, to which the law behind an envelope's bias is fitted
LISTED = 3  # up to this many budgets left out for one reason are named one by one
COLUMNS = ("loss", "flops", "params", "images")


@dataclass(frozen=True, kw_only=True)
class Optimum:
    """The best size at one budget."""

    flops: float
    params: float
    images: float
    loss: float
    runs: int  # number of runs at this budget (approach 1: number of sizes whose curves reach it)


@dataclass(frozen=True, kw_only=True)
class Line:
    """The lines N = G C^a and D = H C^b through the optima. If there are none, `reason` says why and `a`,
    `b`, `log_g` and `log_h` are None; otherwise `reason` is ""."""

    approach: str
    optima: tuple[Optimum, ...]
    a: Estimate | None = None
    b: Estimate | None = None
    log_g: float | None = None
    log_h: float | None = None
    method: str = ""  # how the intervals were made
    notes: tuple[str, ...] = ()
    reason: str = ""
    bias: dict | None = None  # the approach's errors in a and N on the fitted parametric law's losses, or a reason
    draws: Float[np.ndarray, "draws 4"] | None = None  # log G, a, log H, b

    def at(self, flops: float) -> tuple[Estimate, Estimate]:
        """Returns the (params, images) on the lines for a budget in FLOPs. Raises `ConfigError` if there is no line."""
        if self.a is None:
            raise ConfigError(f"{self.approach} found no line ({self.reason}); it cannot divide a budget")
        result = []
        for log_c, exponent, column in ((self.log_g, self.a.value, 0), (self.log_h, self.b.value, 2)):
            drawn = None
            if self.draws is not None:
                drawn = np.exp(self.draws[:, column] + self.draws[:, column + 1] * np.log(flops))
            result.append(Estimate.from_draws(np.exp(log_c + exponent * np.log(flops)), drawn))
        return result[0], result[1]

    def to_json(self) -> dict:
        content = {name: getattr(self, name) for name in ("approach", "optima", "a", "b")}
        content |= {"log_G": self.log_g, "log_H": self.log_h, "interval_level": LEVEL, "interval_method": self.method}
        content |= {"notes": self.notes, "reason": self.reason, "bias_on_fitted_parametric_law": self.bias}
        return plain(content)


def approach1(table: pd.DataFrame, *, resamples: int = RESAMPLES, seed: int = 0, bias: bool = True) -> Line:
    """Draws the lines through the optima on the envelope of training curves. `table` has a row per checkpoint, several
    per run.

    Where the envelope passes from one size to another, both are equally good, and their geometric mean is taken as the
    optimum. Hoffmann et al. take the best size at each budget instead. A line through the best sizes has a wrong slope
    and a wrong N: the best size changes only in jumps, and if it is the smallest or the largest, the optimum may lie
    beyond it. Curves are interpolated in log-log; intervals are by bootstrap over whole runs. A checkpoint before the
    end of its learning rate schedule has a higher loss than a run whose schedule ends there, so the envelope lies too
    high. With `bias`, the result has the approach's bias as well.

    Raises `ConfigError` for a missing column, a value that is not positive, and a run whose rows differ in params.
    """
    fit_points.check(table, COLUMNS, one_row_per_run=False)
    several = table.groupby("run", sort=False)["params"].unique()
    for run, sizes in several[several.map(len) > 1].items():
        shown = " and ".join(f"{size:g}" for size in sizes[:2])
        raise ConfigError(f"run {run!r} has rows with params {shown}; a curve has one size: name each run by itself")
    curves = [group.sort_values("flops") for _, group in table.groupby("run", sort=True) if len(group) > 1]
    if len({float(curve["params"].iloc[0]) for curve in curves}) < 2:
        reason = "an envelope needs training curves (several rows a run) of two sizes"
        return Line(approach="approach1", optima=(), reason=reason)
    log_c = np.log(pd.concat(curves)["flops"].to_numpy(float))
    grid = np.linspace(log_c.min(), log_c.max(), ENVELOPE_POINTS)
    sizes = np.array([float(curve["params"].iloc[0]) for curve in curves])
    on_grid = np.stack([_column_on_grid(curve, grid, "loss") for curve in curves])
    images = np.stack([_column_on_grid(curve, grid, "images") for curve in curves])
    optima, notes = _crossings(np.arange(len(curves)), grid, sizes, on_grid, images)
    if len(optima) < 2:
        where = ("nowhere", "between two sizes only")[len(optima)]
        reason = f"curves of different sizes cross {where} on the envelope; a line needs 2 crossings"
        return Line(approach="approach1", optima=optima, notes=notes, reason=reason)
    rng = np.random.default_rng(seed)
    drawn = (np.unique(rng.integers(len(curves), size=len(curves))) for _ in range(resamples))
    found = [crossings for chosen in drawn if len(crossings := _crossings(chosen, grid, sizes, on_grid, images)[0]) > 1]
    draws = np.array([_line(crossings) for crossings in found]) if len(found) > resamples / 2 else None
    method = f"bootstrap over runs, {len(found):,} resamples in which sizes cross"
    result = _line_with_intervals("approach1", optima, _line(optima), draws, method, notes)
    return replace(result, bias=_bias_of_envelope(pd.concat(curves), grid, sizes, images) if bias else None)


def approach2(
    table: pd.DataFrame,
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
    same_budget: float = SAME_BUDGET,
    bias: bool = True,
) -> Line:
    """Draws the lines through the minima of IsoFLOP parabolas. `table` has one row per run, several sizes per budget.

    Rows whose FLOPs differ by a share of at most `same_budget` are one budget. Intervals are by parametric bootstrap:
    normal noise, as large as the pooled scatter around the parabolas, is added to the parabolas' losses. A budget is
    left out, with a note, if it has fewer than three sizes, if its parabola has no minimum, or if the minimum is
    outside the sizes tried. With `bias`, the result has the approach's bias as well.

    Raises `ConfigError` for a missing column or a value that is not positive.
    """
    fit_points.check(table, COLUMNS)
    optima, left_out, used = [], [], []
    for group in _budgets(table, same_budget):
        best, why = _vertex(group, group["loss"].to_numpy(float))
        if best is None:
            left_out.append((float(group["flops"].mean()), len(group), why))
        else:
            optima.append(best)
            used.append(group)
    notes, n = _notes(left_out), len(optima)
    if n < 2:
        reason = f"{n} budget{'s'[: n != 1]} with a minimum among the sizes tried; at least 2 are needed"
        return Line(approach="approach2", optima=tuple(optima), notes=notes, reason=reason)
    draws, method = _redraw_parabolas(used, resamples, seed)
    trunks = trunks_of(pd.concat(used)) if "run" in table else np.arange(0)
    if are_shared(trunks):
        method += f"; optimistic, as the runs are branches of {len(np.unique(trunks))} trunks"
    found = _line_with_intervals("approach2", optima, _line(optima), draws, method, notes)
    return replace(found, bias=_bias_of_parabolas(table, used) if bias else None)


def _notes(left_out):
    """Returns notes on the budgets left out. `left_out` has (FLOPs, number of runs, reason) of each such budget. If
    more than `LISTED` budgets are left out for one reason, they share a note."""
    reasons: dict[str, list] = {}
    for flops, runs, why in left_out:
        reasons.setdefault(why, []).append((flops, runs))
    notes = []
    for why, budgets in reasons.items():
        if len(budgets) <= LISTED:
            notes += [f"{flops:.3g} FLOPs ({runs} run{'s'[: runs != 1]}): {why}" for flops, runs in budgets]
        else:
            ends = [end(flops for flops, _ in budgets) for end in (min, max)]
            notes.append(f"{len(budgets)} budgets of {ends[0]:.3g} to {ends[1]:.3g} FLOPs: {why}")
    return tuple(notes)


def _budgets(table, same_budget):
    """Returns the rows grouped by budget, a table for each group. A row belongs to a group if its FLOPs exceed the
    group's smallest by a share of at most `same_budget`."""
    table = table.sort_values(["flops", "params", "run"], kind="stable")
    group, first = np.zeros(len(table), int), 0
    flops = table["flops"].to_numpy(float)
    for row in range(1, len(table)):  # compared with the group's first row: neighbours would chain close budgets
        if flops[row] > flops[first] * (1 + same_budget):
            first = row
        group[row] = first
    return [rows for _, rows in table.groupby(group)]


def _design(group):
    """Returns the design matrix of a parabola in centred log N, and the centre."""
    x = np.log(group["params"].to_numpy(float))
    centre = x.mean()
    return np.stack([np.ones(len(x)), x - centre, (x - centre) ** 2], axis=1), centre


def _vertex(group, loss):
    """Returns (the optimum of one budget, ""), or (None, the reason)."""
    if group["params"].nunique() < 3:
        return None, "fewer than the 3 sizes that a parabola needs"
    design, centre = _design(group)
    c, b, curvature = np.linalg.lstsq(design, loss, rcond=None)[0]
    if curvature <= 0:
        return None, "the parabola has no minimum"
    x = centre - b / (2 * curvature)
    params = np.log(group["params"].to_numpy(float))
    if not params.min() <= x <= params.max():
        return None, f"the minimum lies {'below' if x < params.min() else 'above'} the sizes tried"
    order = np.argsort(params, kind="stable")
    images = np.exp(np.interp(x, params[order], np.log(group["images"].to_numpy(float))[order]))
    flops = float(np.exp(np.log(group["flops"].to_numpy(float)).mean()))
    loss = float(c - b**2 / (4 * curvature))
    return Optimum(flops=flops, params=float(np.exp(x)), images=float(images), loss=loss, runs=len(group)), ""


def _redraw_parabolas(groups, resamples, seed):
    """Simulates the losses again, as the fitted parabolas plus noise of the pooled scatter around them. Fits parabolas
    and the lines to each simulation. Returns (a row of `_line` for each simulation, or None if too few have lines; a
    description of the method)."""
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
        drawn = (f * (1 + noise * rng.standard_normal(len(f))) for f in fitted)
        found = [best for group, loss in zip(groups, drawn, strict=True) if (best := _vertex(group, loss)[0])]
        if len(found) > 1:
            draws.append(_line(found))
    method = f"parametric bootstrap, {len(draws):,} resamples: normal noise of the parabolas' pooled relative scatter "
    method += f"({freedom} degrees of freedom)"
    return (np.array(draws) if len(draws) > resamples / 2 else None), method


def _bias_of_parabolas(table, groups):
    """Returns the bias of approach 2: its errors on noiseless losses of the parametric law that is fitted to `table`.
    If the bias cannot be computed, the result has only the `reason`."""
    fitted, cost = _surface(table)
    if not fitted.identifiable:
        return {"reason": f"the parametric law was not fitted: {fitted.reason}"}
    optima = [best for group in groups if (best := _vertex(group, fitted.predict(dict(group)))[0])]
    if len(optima) < 2:
        return {"reason": "the fitted parametric law has no minimum among the sizes tried"}
    return _bias(fitted, cost, optima)


def _bias_of_envelope(table, grid, sizes, images):
    """Returns the bias of approach 1: its errors on noiseless losses of the parametric law. The law is fitted to
    checkpoints (`BIAS_POINTS` at most), since the envelope treats each checkpoint as a run. If the bias cannot be
    computed, the result has only the `reason`."""
    thin = table.assign(run=[f"checkpoint {i}" for i in range(len(table))]).iloc[:: -(-len(table) // BIAS_POINTS)]
    fitted, cost = _surface(thin)
    if not fitted.identifiable:
        return {"reason": f"the parametric law was not fitted: {fitted.reason}"}
    there = np.isfinite(images)
    losses = np.full(images.shape, np.nan)
    losses[there] = fitted.predict(
        {"params": np.broadcast_to(sizes[:, None], images.shape)[there], "images": images[there]}
    )
    optima, _ = _crossings(np.arange(len(sizes)), grid, sizes, losses, images)
    if len(optima) < 2:
        return {"reason": "the curves of the fitted parametric law do not cross twice"}
    return _bias(fitted, cost, optima)


def _surface(table):
    """Fits the parametric law to these rows and measures the cost of training. Returns (the fit, the `Cost`)."""
    return fit(table, PARAMETRIC, resamples=100, held_out=False), measure_cost(table)


def _bias(fitted, cost, optima):
    """Returns the errors of `optima`, which an approach found on noiseless losses of the fitted law, and the error of
    the exponent of the line through `optima`. The exact optima of the law are known."""
    exact = np.array([optimum(fitted.parameters, one.flops, cost)[0] for one in optima])
    _, _, alpha, _, beta = fitted.parameters
    return {
        "exponent": float(_line(optima)[1] - beta / (alpha + cost.eta * beta)),
        "params_relative": [float(one.params / n - 1) for one, n in zip(optima, exact, strict=True)],
        "flops": [one.flops for one in optima],
        "reason": "",
    }


def _column_on_grid(curve, grid, column):
    """Returns a run's column at the log FLOPs of `grid`, interpolated in log-log; NaN outside the run's curve."""
    log_c = np.log(curve["flops"].to_numpy(float))
    values = np.interp(grid, log_c, np.log(curve[column].to_numpy(float)))
    return np.where((grid >= log_c[0] - 1e-12) & (grid <= log_c[-1] + 1e-12), np.exp(values), np.nan)


def _crossings(chosen, grid, sizes, losses, images):
    """Finds where the lowest of the chosen curves passes from one size to another. Returns (optima there, notes).
    `losses` and `images` are [curves, grid]; `chosen` indexes the curves."""
    distinct, columns = np.unique(sizes[chosen]), np.arange(len(grid))
    loss, seen = np.full((2, len(distinct), len(grid)), np.inf)
    for row, size in enumerate(distinct):  # the best run of each size
        mine = chosen[sizes[chosen] == size]
        all_losses = np.where(np.isfinite(losses[mine]), losses[mine], np.inf)
        best = all_losses.argmin(axis=0)
        loss[row], seen[row] = all_losses[best, columns], images[mine[best], columns]
    best, competing = loss.argmin(axis=0), np.isfinite(loss)
    pairs: dict[tuple, list] = {}
    jumps = 0
    for left in np.flatnonzero(best[1:] != best[:-1]):
        i, k = sorted((best[left], best[left + 1]))
        ends = slice(left, left + 2)
        if not competing[[i, k], ends].all():
            jumps += bool(competing[:, ends].any(axis=0).all())
            continue
        gap = np.log(loss[i, ends] / loss[k, ends])
        share = gap[0] / (gap[0] - gap[1])
        size = np.full(2, np.log(distinct[[i, k]]).mean())
        means = (np.log(values[[i, k], ends]).mean(axis=0) for values in (seen, loss))
        logs = np.stack([grid[ends], size, *means])
        crossing = logs[:, 0] + share * (logs[:, 1] - logs[:, 0])
        pairs.setdefault((i, k), []).append([*crossing, competing[:, left].sum()])
    optima = []
    for crossings in pairs.values():  # noisy curves cross several times; each pair of sizes counts once
        *logs, runs = np.mean(crossings, axis=0)
        flops, params, at, low = (float(value) for value in np.exp(logs))
        optima.append(Optimum(flops=flops, params=params, images=at, loss=low, runs=int(runs)))
    note = f"{jumps} budget{'s'[: jumps != 1]} where a curve begins or ends below all others, which is no crossing"
    return tuple(sorted(optima, key=lambda one: one.flops)), (note,) if jumps else ()


def _line(optima):
    """Fits straight lines through the optima in log-log. Returns (log G, a, log H, b) of N = G C^a and D = H C^b."""
    log_c, log_n, log_d = (np.log([getattr(one, name) for one in optima]) for name in ("flops", "params", "images"))
    centre = log_c.mean()
    result = []
    for y in (log_n, log_d):
        slope, level = np.polyfit(log_c - centre, y, 1)
        result += [level - slope * centre, slope]
    return result


def _line_with_intervals(approach, optima, point, draws, method, notes=()):
    """Makes the `Line` from (log G, a, log H, b) in `point` and in each row of `draws`, which give the intervals."""

    def estimate(place):
        if draws is None:
            return Estimate(value=float(point[place]))
        return Estimate.from_draws(point[place], draws[:, place], stderr=float(draws[:, place].std(ddof=1)))

    return Line(
        approach=approach,
        optima=tuple(optima),
        a=estimate(1),
        b=estimate(3),
        log_g=float(point[0]),
        log_h=float(point[2]),
        method=method if draws is not None or method.startswith("none") else "none: too few resamples gave a line",
        notes=notes,
        draws=draws,
    )
