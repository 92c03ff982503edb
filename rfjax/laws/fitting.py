"""Fits a law to a table: parameters, intervals, held-out errors, and whether the data decide the law.

`fit(table, law)` takes any table with one row per run and named columns (`run`, `loss` and the
law's variables) and needs no JAX. Conventions, all from the literature on how such fits go wrong
(Hoffmann et al. 2022, section 3.3; Besiroglu et al. 2024):

* residuals are of log loss, under Huber's loss with delta = 1e-3, summed (`rfjax.laws.misfits` has the other misfits).
  Runs that share trunks are not independent points: up to 100 of them are fitted by generalised least squares
  (`rfjax.laws.trunk_likelihood`), unless the options name a misfit or intervals over runs;
* log x is centred before fitting; the minimiser begins at many starts, and the fit reports how many of them agree;
* with n <= k points (k is the number of parameters), a variable with too few distinct values, or parameters that the
  data cannot tell apart, the fit says so and refuses to predict (`rfjax.laws.identifiability`);
* intervals allow for the scatter of the loss over runs (`rfjax.laws.resampling`; by likelihood in
  `rfjax.laws.profile_likelihood`). The standard error over validation examples is a different noise: all runs share the
  examples, so this noise moves the losses of all runs almost alike. Its effect on a parameter is reported separately,
  as `examples_stderr`;
* the headline is the error on runs that the fit has not seen: each run left out in turn, and the largest run predicted
  from all others.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Float
from scipy import stats

from rfjax.errors import ConfigError
from rfjax.evaluation.intervals import ENDS, LEVEL
from rfjax.laws import fit_points, identifiability, minimiser
from rfjax.laws.fit_points import UNITS, Exclusion, log_columns
from rfjax.laws.held_out import LargestOut, LeftOut, leave_one_out
from rfjax.laws.laws import SATURATING, Law
from rfjax.laws.misfits import HUBER, Loss
from rfjax.laws.resampling import add_noise, draw
from rfjax.laws.trunk_likelihood import SQUARES, likelihood_ends, relative_covariance
from rfjax.laws.trunks import Scatter, are_shared, trunks_of
from rfjax.results.plain import plain

RESAMPLES = 1000
# Two starts agree when their objectives agree to this relative tolerance.
AGREEMENT = 1e-6
EXAMPLE_DRAWS = 400  # simulated choices of validation examples, for `examples_stderr`


@dataclass(frozen=True, kw_only=True)
class FitOptions:
    """How a law is fitted; the same options serve any table and law."""

    loss: Loss | None = None  # None: Huber's, and generalised least squares for runs that share trunks
    column: str = "loss"  # the table's column of losses
    resamples: int = RESAMPLES
    seed: int = 0
    intervals: str = "auto"  # or "runs" or "parametric"; `rfjax.laws.resampling` says what "auto" chooses
    held_out: bool = True  # also refit without each run, and without the largest
    excluded: tuple[Exclusion, ...] = ()  # recorded with the fit, and not used


DEFAULTS = FitOptions()


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A number with its interval at `LEVEL`. Fields are None where there is no interval or no standard error."""

    value: float
    low: float | None = None
    high: float | None = None
    stderr: float | None = None
    examples_stderr: float | None = None  # standard error due to the choice of validation examples

    @classmethod
    def from_draws(cls, value: float, draws: Float[np.ndarray, " draws"] | None, **errors) -> Estimate:
        """Makes an `Estimate` of `value` with the interval that `draws` of the quantity give; without an interval if
        `draws` is None."""
        low, high = (None, None) if draws is None else map(float, np.quantile(draws, ENDS))
        return cls(value=float(value), low=low, high=high, **errors)


@dataclass(frozen=True, kw_only=True)
class Fit:
    """A law fitted to runs. Only an `identifiable` fit has parameters and predicts."""

    law: Law
    loss: Loss  # squares of log residuals if `generalised`
    runs: tuple[str, ...]
    identifiable: bool
    reason: str  # why not identifiable, or ""
    warnings: tuple[str, ...] = ()
    excluded: tuple[Exclusion, ...] = ()
    objective: float | None = None
    residual_sd: float | None = None  # of log loss (of the loss, if the misfit takes it raw), n - k degrees of freedom
    starts: int = 0
    starts_agreeing: int = 0
    converged: bool = False
    method: str = ""  # how the intervals were made
    seed: int = 0
    estimates: Mapping[str, Estimate] | None = None
    residuals: tuple[float, ...] = ()  # log fitted loss minus log loss, in the order of `runs`
    parameters: Float[np.ndarray, " k"] | None = None  # the law's own array (logs of coefficients)
    draws: Float[np.ndarray, "draws k"] | None = None
    noise_draws: Float[np.ndarray, " draws"] | None = None  # standard deviation of a new run's noise, for each draw
    scatter: Scatter | None = None  # of runs that share trunks: the noise between trunks and within them
    generalised: bool = False  # fitted by generalised least squares, with the ratio of these two noises
    left_out: LeftOut | None = None
    trunk_out: LeftOut | None = None  # where runs share trunks: each run predicted without its whole trunk
    largest_out: LargestOut | None = None
    log_x: Float[np.ndarray, "n v"] | None = None  # what was fitted, in the order of `runs`
    log_loss: Float[np.ndarray, " n"] | None = None

    @property
    def n(self) -> int:
        return len(self.runs)

    @property
    def loss_function(self) -> str:
        """What was minimised, in words."""
        return "generalised least squares of log residuals" if self.generalised else str(self.loss)

    def predict(self, x: Mapping[str, object]) -> Float[np.ndarray, " m"]:
        """Returns the law's loss at `x`, a mapping from each variable to an array of m values in the variable's unit.

        Raises `ConfigError` when the fit is not identifiable: there is nothing to extrapolate.
        """
        if not self.identifiable:
            raise ConfigError(f"the {self.law.name} law was not fitted ({self.reason}); it cannot predict")
        return np.exp(self.law.log_loss(self.parameters, log_columns(self.law.variables, x)))

    def interval(
        self, x: Mapping[str, object], *, new_run: bool, level: float = LEVEL
    ) -> tuple[Float[np.ndarray, " m"], Float[np.ndarray, " m"]]:
        """Returns the lower and upper ends of the interval at each `x`: of the law's loss or, with `new_run`, of a new
        run's loss."""
        value = self.predict(x)  # raises for a fit that is not identifiable
        log_loss = self.law.log_loss(self.draws, log_columns(self.law.variables, x))
        if new_run:
            rng, count = np.random.default_rng(self.seed + 1), len(self.draws)
            normal = rng.standard_normal(count)
            if self.scatter is not None:  # evenly spread quantiles, so that a few hundred draws reach the tails
                normal = stats.norm.ppf((rng.permutation(count) + 0.5) / count)
            log_loss = add_noise(log_loss, self.noise_draws[:, None], normal[:, None], self.loss)
        low, high = np.quantile(np.exp(log_loss), [(1 - level) / 2, (1 + level) / 2], axis=0)
        if self.scatter is None:
            return low, high
        # If the user named a misfit, the draws were fitted by another misfit, so their interval may miss the value.
        return np.minimum(low, value), np.maximum(high, value)

    def bands(self, x: Mapping[str, object]) -> dict[str, Float[np.ndarray, " m"]]:
        """Returns the law's loss at each `x`, with the ends of two intervals: the interval of the law's loss, and the
        interval of a new run's loss."""
        low, high = self.interval(x, new_run=False)
        new_low, new_high = self.interval(x, new_run=True)
        return {"loss": self.predict(x), "low": low, "high": high, "new_run_low": new_low, "new_run_high": new_high}

    def to_json(self) -> dict:
        """Returns every number of the fit except the data and the draws, as plain values."""
        content = {
            "law": self.law.name,
            "formula": self.law.formula,
            "source": self.law.source,
            "units": {name: UNITS[name] for name in self.law.variables},
            "runs": self.runs,
            "excluded": self.excluded,
            "n": self.n,
            "k": len(self.law.parameters),
            "identifiable": self.identifiable,
            "reason": self.reason,
            "warnings": self.warnings,
            "loss_function": self.loss_function,
            "objective": self.objective,
            "residual_sd": self.residual_sd,
            "residuals_of_log_loss": dict(zip(self.runs, self.residuals, strict=False)),
            "starts": self.starts,
            "starts_agreeing": self.starts_agreeing,
            "converged": self.converged,
            "interval_level": LEVEL,
            "interval_method": self.method,
            "seed": self.seed,
            "parameters": self.estimates or {},
            "leave_one_out": self.left_out,
            "leave_largest_out": self.largest_out,
        }
        of_trunks = {"leave_trunk_out": self.trunk_out, "scatter": self.scatter and self.scatter.to_json()}
        return plain(content | {name: value for name, value in of_trunks.items() if value is not None})


def fit(
    table: pd.DataFrame,
    law: Law = SATURATING,
    options: FitOptions = DEFAULTS,
    *,
    examples_covariance: Float[np.ndarray, "runs runs"] | None = None,
    **changes,
) -> Fit:
    """Fits `law` to a table with one row per run.

    Columns: `run` (distinct names), `loss` (positive; `options.column` names another) and each of `law.variables`
    (positive, in `UNITS`). Runs with the same name in a column `trunk` are branches of one trunk, and not independent
    samples (`rfjax.laws.trunks`). The order of rows does not matter. `changes` replace options, for example `fit(table,
    law, resamples=200)`. `examples_covariance` is the covariance of the runs' mean losses over the validation examples
    they share, in the order of rows.

    Raises `ConfigError` for a missing column, a missing or non-positive value (also in `flops`, if the table has this
    column: it says which run is the largest), or a run that occurs twice (checkpoints of one run are not independent
    points). Under-identified data are not an error: the result says `identifiable=False` and why.
    """
    options = replace(options, **changes)
    loss, column, resamples, seed = options.loss or HUBER, options.column, options.resamples, options.seed
    fit_points.check(table, dict.fromkeys((column, *law.variables, *({"flops"} & set(table.columns)))))
    order = np.argsort(table["run"].astype(str).to_numpy(), kind="stable")  # draws do not depend on row order
    table = table.iloc[order]
    runs = tuple(str(run) for run in table["run"])
    log_x = log_columns(law.variables, {name: table[name].to_numpy(float) for name in law.variables})
    log_loss = np.log(table[column].to_numpy(float))
    common = dict(law=law, runs=runs, excluded=options.excluded, seed=seed, log_x=log_x, log_loss=log_loss)
    reason = identifiability.refusal(law, log_x, log_loss)
    if reason:
        return Fit(identifiable=False, reason=reason, loss=loss, **common)

    centre = log_x.mean(axis=0)
    z = log_x - centre
    start = minimiser.starts(law, z, log_loss)
    solved, trunks, covariance = _solve(law, start, z, log_loss, loss), trunks_of(table), None
    if not solved.reason:
        how = {"resamples": resamples, "seed": seed, "method": options.intervals, "trunks": trunks}
        drawn = draw(law, solved.parameters, z, log_loss, solved.residual_sd, loss, **how)
        if drawn.scatter is not None and options.loss is None:
            loss, covariance = SQUARES, relative_covariance(np.array(drawn.scatter.ratio), trunks)
            solved = _solve(law, start, z, log_loss, loss, covariance)
    inner, reason, warnings = solved.parameters, solved.reason, solved.warnings
    common |= dict(
        loss=loss,
        generalised=covariance is not None,
        objective=solved.objective,
        residual_sd=solved.residual_sd,
        starts=len(start),
        starts_agreeing=solved.starts_agreeing,
        converged=solved.converged,
        residuals=tuple((law.log_loss(inner, z) - log_loss).tolist()),
    )
    if reason:
        return Fit(identifiable=False, reason=reason, warnings=warnings, **common)

    if drawn.unconverged > resamples / 100:
        warnings += (f"{drawn.unconverged} of {resamples} refits of the bootstrap did not converge",)
    of_examples = None
    if examples_covariance is not None:
        of_means = np.asarray(examples_covariance, float)[np.ix_(order, order)]
        redrawn = _redraw_examples(law, inner, z, log_loss, of_means, loss, covariance, seed)
        of_examples = law.recentre(redrawn, centre)
    parameters, draws = law.recentre(inner, centre), law.recentre(drawn.parameters, centre)
    ends = {}
    if drawn.scatter is not None:
        of_data = (inner, drawn.parameters, z, log_loss, trunks, drawn.scatter)
        ends = {index: likelihood_ends(law, index, *of_data) for index in law.profiled}
    left_out = trunk_out = largest_out = None
    if options.held_out:
        of_refits = {"covariance": covariance}
        left_out = leave_one_out(law, loss, runs, z, log_loss, inner, **of_refits)
        if are_shared(trunks):
            trunk_out = leave_one_out(law, loss, runs, z, log_loss, inner, trunks, **of_refits)
        largest_out = _leave_largest_out(table, law, log_x, log_loss, options)
    return Fit(
        identifiable=True,
        reason="",
        warnings=warnings,
        method=drawn.method,
        parameters=parameters,
        draws=draws,
        noise_draws=drawn.noise,
        estimates=_estimates(law, parameters, draws, of_examples, drawn, ends),
        scatter=drawn.scatter,
        left_out=left_out,
        trunk_out=trunk_out,
        largest_out=largest_out,
        **common,
    )


class _Solution(NamedTuple):
    """The best solution over all starts, and whether the data decide the law. The parameters are those for centred log
    x."""

    parameters: Float[np.ndarray, " k"]
    objective: float
    starts_agreeing: int
    converged: bool
    residual_sd: float  # of the misfit's own residuals (log or raw loss), with n - k degrees of freedom
    reason: str  # why the data do not decide the law, or ""
    warnings: tuple[str, ...]


def _solve(law, start, z, log_loss, loss, covariance=None):
    """Minimises the misfit from all starts. With a `covariance`, the misfit is that of generalised least squares."""
    precision = None if covariance is None else np.linalg.inv(covariance)[None]
    minimum = minimiser.minimise(law, start, z, log_loss, loss, precision=precision, gradual=True)
    best = int(np.argmin(minimum.objective))
    objective, parameters = float(minimum.objective[best]), minimum.parameters[best]
    agreeing = int((minimum.objective <= objective * (1 + AGREEMENT) + 1e-14 * len(log_loss)).sum())
    log_model = law.log_loss(parameters, z)
    residuals = log_model - log_loss if loss.logarithmic else np.exp(log_model) - np.exp(log_loss)
    sd = float(np.sqrt((residuals**2).sum() / (len(log_loss) - len(law.parameters))))
    reason, warnings = identifiability.verdict(law, minimum, best, z, agreeing)
    return _Solution(parameters, objective, agreeing, bool(minimum.converged[best]), sd, reason, warnings)


def _estimates(law, parameters, draws, of_examples, drawn, ends):
    """Returns an `Estimate` of each of the law's parameters, by name, with the percentile interval of `draws`. `ends`
    maps the index of a parameter to the (low, high) that replace this interval.

    If `drawn` has a `scatter` (runs share trunks, and trunks were not resampled), an interval that misses the estimate
    is widened to reach it. It can miss if the user chose a misfit: the estimate minimises that misfit, but the draws
    are refitted by generalised least squares.

    `stderr` is given only by a bootstrap, because draws with t-distributed noise may have no finite variance.
    `examples_stderr` is given if `of_examples` is: the parameters refitted to other validation examples.
    """
    method = drawn.method
    low, high = np.quantile(draws, ENDS, axis=0)
    for index, (lower, upper) in ends.items():
        low[index], high[index] = lower, upper
    if drawn.scatter is not None:
        low, high = np.minimum(low, parameters), np.maximum(high, parameters)
    estimates = {}
    for index, name in enumerate(law.parameters):
        natural = np.exp if law.logarithmic[index] else np.asarray
        with np.errstate(over="ignore"):
            value, lower, upper = (float(natural(v[index])) for v in (parameters, low, high))
            spread = float(np.std(natural(draws[:, index]), ddof=1)) if method.startswith("bootstrap") else None
            examples = None if of_examples is None else float(np.std(natural(of_examples[:, index]), ddof=1))
        estimates[name] = Estimate(value=value, low=lower, high=upper, stderr=spread, examples_stderr=examples)
    return estimates


def _redraw_examples(law, inner, z, log_loss, of_means, loss, covariance, seed):
    """Refits the law to simulated mean losses, such as other validation examples might give: the runs' mean losses plus
    normal noise with the covariance `of_means`. Returns the parameters, [draws, k]."""
    mean = np.exp(log_loss)
    values, vectors = np.linalg.eigh(of_means / np.outer(mean, mean))
    root = vectors * np.sqrt(np.maximum(values, 0.0))
    moved = np.random.default_rng(seed + 2).standard_normal((EXAMPLE_DRAWS, len(mean))) @ root.T
    start = np.tile(inner, (EXAMPLE_DRAWS, 1))
    precision = None if covariance is None else np.linalg.inv(covariance)[None]
    return minimiser.minimise(law, start, z, log_loss + moved, loss, precision=precision).parameters


def _leave_largest_out(table, law, log_x, log_loss, options):
    """Predicts the run of most FLOPs by a fit to the other runs, without its trunk. If the table has no FLOPs, the run
    with the largest product of the variables is predicted. Several runs of this size are predicted together."""
    size = table["flops"].to_numpy(float) if "flops" in table else np.exp(log_x.sum(axis=1))
    largest = size >= size.max() * (1 - 1e-9)
    actual = {"runs": tuple(table["run"][largest].astype(str)), "actual": tuple(np.exp(log_loss[largest]).tolist())}
    if largest.all():
        return LargestOut(**actual, reason="without the largest: all runs are as large")
    trunks = trunks_of(table)
    others = ~np.isin(trunks, trunks[largest])
    if not others.any():
        return LargestOut(**actual, reason="without the largest: all runs are branches of its trunk")
    rest = fit(table[others], law, options, held_out=False)
    if not rest.identifiable:
        return LargestOut(**actual, reason=f"without the largest: {rest.reason}")
    x = {name: table[name].to_numpy(float)[largest] for name in law.variables}
    low, high = rest.interval(x, new_run=True)
    predicted = tuple(rest.predict(x).tolist())
    return LargestOut(**actual, predicted=predicted, low=tuple(low.tolist()), high=tuple(high.tolist()))
