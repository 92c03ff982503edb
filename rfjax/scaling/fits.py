"""Fit a law to a table: point estimate, intervals, bands, and a verdict on whether to believe it.

`fit(table, law)` takes any table with one row per run and named columns (`run`, `loss` and the
law's variables) and needs no JAX. Conventions, all from the literature on how such fits go wrong
(Hoffmann et al. 2022, section 3.3; Besiroglu et al. 2024):

* residuals are of log loss, under Huber's loss with delta = 1e-3, summed;
* log x is centred before fitting; many starts, and the count of those that agree is reported;
* n <= k points, a variable with too few distinct values, or parameters the data cannot tell
  apart: the fit says so, and refuses to predict;
* intervals are over runs. With 8 runs or more, runs are resampled. Below that a resample has too
  few distinct points, and the bootstrap is parametric: the law plus normal noise of the residual
  scatter, whose own uncertainty at n - k degrees of freedom is drawn along (a t distribution).
  The standard error of a validation loss over its examples is not that noise: examples are
  shared by all runs, so most of it moves every run alike.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Float

from rfjax.errors import ConfigError
from rfjax.scaling import optimise
from rfjax.scaling.laws import SATURATING, Law

DELTA = 1e-3
LEVEL = 0.95
RESAMPLES = 1000
MIN_RUNS_TO_RESAMPLE = 8
UNITS = {"flops": "FLOP", "params": "parameters", "images": "images"}
# Two starts agree when their objectives do to this relative (or, near 0, absolute) tolerance.
AGREEMENT = 1e-6
# Of log loss. With one degree of freedom the t distribution has no mean; a factor of e either way
# is already no knowledge at all, and more of it would only overflow.
MAX_NOISE = 1.0
# Condition number of the scaled Jacobian beyond which digits are noise.
MAX_CONDITION = 1e7


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A number with its interval at `LEVEL`; `low` and `high` are None where there is none."""

    value: float
    low: float | None = None
    high: float | None = None
    stderr: float | None = None


@dataclass(frozen=True, kw_only=True)
class Fit:
    """What `fit` found. Only an `identifiable` fit has parameters and predicts."""

    law: Law
    runs: tuple[str, ...]
    identifiable: bool
    reason: str  # why not identifiable, or ""
    warnings: tuple[str, ...] = ()
    delta: float = DELTA
    objective: float | None = None  # sum of Huber's rho over log residuals
    residual_sd: float | None = None  # of log loss, with n - k degrees of freedom
    starts: int = 0
    starts_agreeing: int = 0
    converged: bool = False
    method: str = ""  # how the intervals were made
    seed: int = 0
    estimates: Mapping[str, Estimate] | None = None
    residuals: tuple[float, ...] = ()  # log fitted loss minus log loss, in the order of `runs`
    parameters: Float[np.ndarray, " k"] | None = None  # the law's own array (log coefficients)
    draws: Float[np.ndarray, "draws k"] | None = None
    noise_draws: Float[np.ndarray, " draws"] | None = None  # residual sd of each draw

    @property
    def n(self) -> int:
        return len(self.runs)

    def predict(self, x: Mapping[str, object]) -> Float[np.ndarray, " m"]:
        """The law's loss at `x`, a mapping from variable to an array of m values in its unit.

        Raises `ConfigError` when the fit is not identifiable: there is nothing to extrapolate.
        """
        if not self.identifiable:
            raise ConfigError(f"the {self.law.name} law was not fitted ({self.reason}); it cannot predict")
        return np.exp(self.law.log_loss(self.parameters, _log_columns(self.law, x)))

    def interval(
        self, x: Mapping[str, object], *, new_run: bool, level: float = LEVEL
    ) -> tuple[Float[np.ndarray, " m"], Float[np.ndarray, " m"]]:
        """Lower and upper end at each `x`: of the law itself, or of the loss a new run would get."""
        self.predict(x)  # refuses when it must
        log_x = np.broadcast_to(_log_columns(self.law, x), (len(self.draws), *_log_columns(self.law, x).shape))
        log_loss = self.law.log_loss(self.draws, log_x)
        if new_run:
            noise = np.random.default_rng(self.seed + 1).standard_normal(len(self.draws))
            log_loss = log_loss + (noise * self.noise_draws)[:, None]
        low, high = np.quantile(np.exp(log_loss), [(1 - level) / 2, (1 + level) / 2], axis=0)
        return low, high

    def to_json(self) -> dict:
        """Every number of the fit but the draws, as plain values."""
        estimates = self.estimates or {}
        return {
            "law": self.law.name,
            "formula": self.law.formula,
            "source": self.law.source,
            "units": {name: UNITS[name] for name in self.law.variables},
            "runs": list(self.runs),
            "n": self.n,
            "k": len(self.law.parameters),
            "identifiable": self.identifiable,
            "reason": self.reason,
            "warnings": list(self.warnings),
            "loss_function": f"sum of Huber(delta={self.delta:g}) of log residuals",
            "objective": self.objective,
            "residual_sd_of_log_loss": self.residual_sd,
            "residuals_of_log_loss": dict(zip(self.runs, self.residuals, strict=False)),
            "starts": self.starts,
            "starts_agreeing": self.starts_agreeing,
            "converged": self.converged,
            "interval_level": LEVEL,
            "interval_method": self.method,
            "seed": self.seed,
            "parameters": {name: vars(estimate) for name, estimate in estimates.items()},
        }


def fit(
    table: pd.DataFrame,
    law: Law = SATURATING,
    *,
    loss: str = "loss",
    delta: float = DELTA,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Fit:
    """Fit `law` to a table with one row per run.

    Columns: `run` (distinct names), `loss` (positive; the name can be changed) and each of
    `law.variables` (positive, in `UNITS`). The order of rows does not matter.

    Raises `ConfigError` for a missing column, a missing or non-positive value, or a run that
    occurs twice (checkpoints of one run are not independent points). Under-identified data are no
    error: the result says `identifiable=False` and why.
    """
    _check(table, law, loss)
    table = table.sort_values("run", kind="stable")  # so that draws do not depend on row order
    runs = tuple(str(run) for run in table["run"])
    log_x = _log_columns(law, {name: table[name].to_numpy(float) for name in law.variables})
    log_loss = np.log(table[loss].to_numpy(float))
    reason = _refusal(law, log_x, log_loss)
    if reason:
        return Fit(law=law, runs=runs, identifiable=False, reason=reason, delta=delta, seed=seed)

    centre = log_x.mean(axis=0)
    z = log_x - centre
    start = optimise.starts(law, z, log_loss)
    minimum = optimise.minimise(law, start, z[None], log_loss[None], delta)
    best = int(np.argmin(minimum.objective))
    objective = float(minimum.objective[best])
    agreeing = int((minimum.objective <= objective * (1 + AGREEMENT) + 1e-14 * len(runs)).sum())
    inner = minimum.parameters[best]
    residuals = law.log_loss(inner, z) - log_loss
    freedom = len(runs) - len(law.parameters)
    residual_sd = float(np.sqrt((residuals**2).sum() / freedom))
    reason, warnings = _verdict(law, minimum, best, z, inner, freedom)
    common = dict(
        law=law, runs=runs, delta=delta, seed=seed, objective=objective, residual_sd=residual_sd,
        starts=len(start), starts_agreeing=agreeing, converged=bool(minimum.converged[best]),
        residuals=tuple(float(r) for r in residuals), warnings=warnings,
    )  # fmt: skip
    if reason:
        return Fit(identifiable=False, reason=reason, **common)

    draws, noise, method = _draw(law, inner, z, log_loss, residual_sd, delta, resamples, seed)
    parameters = law.recentred(inner, centre)
    draws = law.recentred(draws, centre)
    return Fit(
        identifiable=True, reason="", method=method, parameters=parameters, draws=draws,
        noise_draws=noise, estimates=_estimates(law, parameters, draws, len(runs)), **common,
    )  # fmt: skip


def _draw(law, inner, z, log_loss, residual_sd, delta, resamples, seed):
    """Refits of resampled data: parameters [draws, k], residual sd [draws], the method's name."""
    rng = np.random.default_rng(seed)
    n, k = len(log_loss), len(law.parameters)
    freedom = n - k
    # The scatter is itself known only to `freedom` degrees of freedom.
    noise = np.minimum(residual_sd * np.sqrt(freedom / rng.chisquare(freedom, resamples)), MAX_NOISE)
    if n >= MIN_RUNS_TO_RESAMPLE:
        weights = _resampled_counts(rng, law, z, resamples)
        data = np.broadcast_to(log_loss, (resamples, n))
        method = f"bootstrap over runs, {resamples:,} resamples (those that cannot decide the law drawn again)"
    else:
        weights = np.ones((resamples, n))
        data = law.log_loss(inner, z)[None] + noise[:, None] * rng.standard_normal((resamples, n))
        method = (
            f"parametric bootstrap, {resamples:,} resamples (fewer than {MIN_RUNS_TO_RESAMPLE} runs are too few to resample): "
            "normal noise of the residual scatter, itself drawn with its n − k degrees of freedom"
        )
    # A second start besides the optimum: with it about 1 % of resamples end above their minimum,
    # which moves no quantile that is reported.
    mean = float(np.log(np.mean(np.exp(log_loss))))
    share = 0.5 * law.offset
    term = [mean + np.log1p(-share) - np.log(len(law.terms)), 0.3]
    middle = np.array([share * np.exp(log_loss.min())] * law.offset + term * len(law.terms))
    refits = [
        optimise.minimise(law, np.tile(start, (resamples, 1)), z[None], data, delta, weights=weights)
        for start in (inner, middle)
    ]
    choice = np.argmin([refit.objective for refit in refits], axis=0)
    draws = np.stack([refit.parameters for refit in refits])[choice, np.arange(resamples)]
    return draws, noise, method


def _resampled_counts(rng, law, z, resamples):
    """How often each point occurs in each resample [resamples, n]; only such as decide the law."""
    n, k = len(z), len(law.parameters)
    # Which rows hold each distinct value, of every variable and of all of them together.
    columns = [z[:, [column]] for column in range(z.shape[1])] + [z]
    groups = [np.unique(np.round(values, 9), axis=0, return_inverse=True)[1].ravel() for values in columns]
    members = [np.eye(group.max() + 1)[group] for group in groups]
    needed = [_distinct_needed(law)] * z.shape[1] + [k]
    counts = np.empty((0, n))
    while len(counts) < resamples:
        drawn = rng.multinomial(n, np.full(n, 1 / n), resamples)
        enough = [((drawn @ m) > 0).sum(axis=1) >= least for m, least in zip(members, needed, strict=True)]
        counts = np.concatenate([counts, drawn[np.all([*enough, (drawn > 0).sum(axis=1) > k], axis=0)]])
    return counts[:resamples]


def _estimates(law, parameters, draws, n):
    """Intervals by percentile. Draws with t-distributed noise may have no standard deviation."""
    low, high = np.quantile(draws, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0)
    estimates = {}
    for index, name in enumerate(law.parameters):
        with np.errstate(over="ignore"):
            natural = np.exp if law.is_coefficient(index) else np.asarray
            sample = natural(draws[:, index])
            values = [float(natural(v[index])) for v in (parameters, low, high)]
        estimates[name] = Estimate(
            value=values[0], low=values[1], high=values[2],
            stderr=float(np.std(sample, ddof=1)) if n >= MIN_RUNS_TO_RESAMPLE else None,
        )  # fmt: skip
    return estimates


def _refusal(law, log_x, log_loss):
    """Why these points cannot decide the law, before fitting; "" if they may."""
    n, k = len(log_x), len(law.parameters)
    if n <= k:
        return f"{n} run{'s'[: n != 1]} cannot decide {k} parameters; at least {k + 1} are needed"
    if np.ptp(log_loss) == 0 and n > 1:
        return "the loss is the same for every run"
    needed = _distinct_needed(law)
    for column, name in enumerate(law.variables):
        distinct = len(np.unique(np.round(log_x[:, column], 9)))
        if distinct < needed:
            return f"{name} takes {distinct} distinct value{'s'[: distinct != 1]}; the law needs at least {needed}"
    distinct = len(np.unique(np.round(log_x, 9), axis=0))
    if distinct < k:
        return f"the runs have {distinct} distinct settings of {', '.join(law.variables)}; {k} parameters need {k}"
    return ""


def _distinct_needed(law):
    """Values of each variable that pin its A and e down: one more where something is added to them."""
    return 3 if law.offset or len(law.terms) > 1 else 2


def _verdict(law, minimum, best, z, inner, freedom):
    """(why the fitted parameters mean nothing, or ""; warnings)."""
    lower, upper = minimum.at_lower[best], minimum.at_upper[best]
    warnings = []
    if not minimum.converged[best]:
        return "the optimiser did not converge", ()
    for index, name in enumerate(law.parameters):
        exponent = index >= law.offset and not law.is_coefficient(index)
        if exponent and lower[index]:
            variable = law.variables[(index - law.offset) // 2]
            return f"the loss does not fall with {variable}: {name} is at its bound 0", ()
        if exponent and upper[index]:
            return f"{name} is at its bound {optimise.MAX_EXPONENT:g}", ()
    if law.offset and upper[0]:
        return "E is at its upper bound, the smallest loss", ()
    if law.offset and lower[0]:
        warnings.append("E is at its bound 0: the data do not ask for an offset, and the law is a pure power")
    if freedom == 1:
        warnings.append("one degree of freedom: the scatter, and so every interval, rests on a single residual")
    condition = _condition(law, z, inner, held=law.offset and lower[0])
    if condition > MAX_CONDITION:
        return f"the data cannot tell the parameters apart (condition number {condition:.1e})", ()
    return "", tuple(warnings)


def _condition(law, z, inner, held):
    """Condition number of the Jacobian of log loss with unit columns, without a held offset."""
    log_loss = law.log_loss(inner, z)
    shares = np.exp(law.log_terms(inner, z) - log_loss[:, None])
    columns = [inner[0] / np.exp(log_loss)] if law.offset and not held else []
    for term in range(len(law.terms)):
        columns += [shares[:, term], shares[:, term] * z[:, term]]
    jacobian = np.stack(columns, axis=1)
    norms = np.linalg.norm(jacobian, axis=0)
    return np.inf if (norms == 0).any() else float(np.linalg.cond(jacobian / norms))


def _log_columns(law, x):
    columns = [np.log(np.atleast_1d(np.asarray(x[name], dtype=float))) for name in law.variables]
    return np.stack(columns, axis=-1)


def _check(table, law, loss):
    for name in ("run", loss, *law.variables):
        if name not in table.columns:
            raise ConfigError(
                f"the {law.name} law needs the column {name!r}; the table has {', '.join(map(str, table.columns))}"
            )
    repeated = table["run"][table["run"].duplicated()].unique()
    if len(repeated):
        raise ConfigError(
            f"run {repeated[0]!r} occurs more than once; a fit takes one row per run (its final checkpoint)"
        )
    for name in (loss, *law.variables):
        values = pd.to_numeric(table[name], errors="coerce").to_numpy(float)
        bad = ~(np.isfinite(values) & (values > 0))
        if bad.any():
            row = int(np.argmax(bad))
            raise ConfigError(
                f"{name} of run {table['run'].iloc[row]!r} is {table[name].iloc[row]}; it must be positive and "
                "finite (drop the row, or mend it)"
            )
