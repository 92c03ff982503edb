"""Fits links from validation loss to score over runs, and predicts the largest run's score by them.

    exponential   score = eps - k exp(gamma loss)        k, gamma >= 0
    logistic      score = 1 / (1 + exp((loss - middle) / width))

Fits are by least squares in units of the score. Both links fall with the loss. An isotonic fit (any falling curve)
shows the scatter that no falling curve can follow. Intervals of a predicted score come from simulated scores: the
fitted scores plus normal noise. The noise has the residuals' standard deviation, which is drawn anew for each
simulation, with n - k degrees of freedom (n runs, k parameters). Branches of one trunk are not independent, so where
runs share trunks the noise has two parts, between trunks and within (`rfjax.laws.trunks`). With few runs, the link is
refitted to each draw of noisy scores. With many runs (`rfjax.results.many_runs`), the parameters of a draw come from
the link linearised about its fit, and runs are left out in folds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float
from numpy.typing import ArrayLike
from scipy import optimize

from rfjax.errors import ConfigError
from rfjax.evaluation.intervals import ENDS
from rfjax.laws.correlation import check_pairs, constant_reason
from rfjax.laws.resampling import MIN_RUNS_TO_RESAMPLE
from rfjax.laws.trunks import are_shared, draw_noise, scatter
from rfjax.results.many_runs import MANY_RUNS, are_many, folds_of
from rfjax.results.plain import plain

RESAMPLES = 1000
FINE, COARSE = 400, 120  # values tried for the exponential's gamma, and for each parameter of the logistic
CHUNK = 4_000_000  # numbers at a time, to bound memory
# Medians of the priors of a score's noise between trunks and within them. They are wide, because the GenEval of 240
# images has a standard error of 3 % already.
ASSUMED_NOISE = (0.05, 0.03)
# Singular values below this share of the largest are raised to it. A nearly straight exponential has one of almost 0.
SINGULAR = 1e-9
# Bounds of the inner parameters, in units where the losses range from 0 to 1: from a straight line to a step.
GAMMAS = (0.02, 60.0)
MIDDLES, LOG_STEEPS = (-4.0, 5.0), (float(np.log(0.05)), float(np.log(200.0)))


@dataclass(frozen=True, kw_only=True)
class Link:
    """A curve of score against loss. `curve` and `solve` take x, the loss rescaled: 0 is the lowest loss, 1 the
    highest. The inner parameters are those of the curve as a function of x."""

    name: str
    formula: str
    parameters: tuple[str, ...]
    curve: Callable  # (inner parameters [..., k], x [n]) -> [..., n]
    solve: Callable  # (x [n], scores [b, n]) -> inner parameters [b, k], the best of a grid
    bounds: tuple[tuple[float, float], ...]  # of each inner parameter
    natural: Callable  # (inner parameters [k], lowest loss, highest - lowest loss) -> `formula`'s parameters by name


def _exponential(theta, x):
    # eps - k exp(gamma (x - 1)): k is the drop at the largest loss, so that nothing overflows.
    return theta[..., 0:1] - theta[..., 1:2] * np.exp(theta[..., 2:3] * (x - 1))


def _solve_exponential(x, scores):
    gammas = np.geomspace(*GAMMAS, FINE)
    basis = np.exp(gammas[:, None] * (x - 1))
    centred = basis - basis.mean(axis=1, keepdims=True)
    y = scores - scores.mean(axis=1, keepdims=True)
    norm = (centred**2).sum(axis=1)
    slope = np.minimum(y @ centred.T / norm, 0.0)  # -k, at most 0: the score never rises with the loss
    best = (slope**2 * norm).argmax(axis=1)
    k = -slope[np.arange(len(y)), best]
    return np.stack([scores.mean(axis=1) + k * basis[best].mean(axis=1), k, gammas[best]], axis=1)


def _natural_exponential(theta, low, span):
    gamma = theta[2] / span
    return {"eps": float(theta[0]), "k": float(theta[1] * np.exp(-theta[2] - gamma * low)), "gamma": float(gamma)}


def _logistic(theta, x):
    return 0.5 * (1.0 - np.tanh(0.5 * np.exp(theta[..., 1:2]) * (x - theta[..., 0:1])))


def _grouped(x, scores):
    """Returns x [m] and scores [b, m] for a fit. If there are many runs, these are the means of `MANY_RUNS` groups of
    runs with similar x."""
    if not are_many(len(x)):
        return x, scores
    groups = np.array_split(np.argsort(x, kind="stable"), MANY_RUNS)
    return tuple(np.stack([values[..., group].mean(axis=-1) for group in groups], axis=-1) for values in (x, scores))


def _solve_logistic(x, scores):
    middles, steeps = np.meshgrid(np.linspace(*MIDDLES, COARSE), np.linspace(*LOG_STEEPS, COARSE))
    grid = np.stack([middles.ravel(), steeps.ravel()], axis=1)
    x, scores = _grouped(x, scores)
    curves = _logistic(grid, x)
    norm = 0.5 * (curves**2).sum(axis=1)
    rows = max(1, CHUNK // len(grid))
    best = [(norm - scores[a : a + rows] @ curves.T).argmin(axis=1) for a in range(0, len(scores), rows)]
    return grid[np.concatenate(best)]


def _natural_logistic(theta, low, span):
    return {"middle": float(low + span * theta[0]), "width": float(span * np.exp(-theta[1]))}


LINKS = {
    link.name: link
    for link in (
        Link(
            name="exponential",
            formula="eps - k·exp(gamma·loss)",
            parameters=("eps", "k", "gamma"),
            curve=_exponential,
            solve=_solve_exponential,
            natural=_natural_exponential,
            bounds=((-np.inf, np.inf), (0.0, np.inf), GAMMAS),
        ),
        Link(
            name="logistic",
            formula="1 / (1 + exp((loss - middle)/width))",
            parameters=("middle", "width"),
            curve=_logistic,
            solve=_solve_logistic,
            natural=_natural_logistic,
            bounds=(MIDDLES, LOG_STEEPS),
        ),
    )
}


@dataclass(frozen=True, kw_only=True)
class LinkFit:
    """A link (a curve from loss to score) that was fitted to n runs; `reason` says why it could not be fitted, or is
    ""."""

    link: Link
    n: int
    parameters: Mapping[str, float] = field(default_factory=dict)
    rms: float | None = None  # of score, with n - k degrees of freedom
    isotonic_rms: float | None = None  # of the best falling curve of any form, with the divisor n
    reason: str = ""
    inner: Float[np.ndarray, " k"] | None = None
    draws: Float[np.ndarray, "draws k"] | None = None
    noise_draws: Float[np.ndarray, " draws"] | None = None  # standard deviation of a new run's score
    method: str = ""  # how the draws were made
    low: float = 0.0  # smallest loss
    span: float = 1.0  # largest loss - smallest loss

    def predict(self, loss: ArrayLike) -> Float[np.ndarray, " m"]:
        """Returns the link's score at each loss, cut to [0, 1]. Raises `ConfigError` if there is no fit."""
        if self.inner is None:
            raise ConfigError(f"the {self.link.name} link was not fitted ({self.reason}); it cannot predict")
        return np.clip(self.link.curve(self.inner, self._scale(loss)), 0, 1)

    def interval(self, loss: ArrayLike, *, new_run: bool) -> tuple[Float[np.ndarray, " m"], Float[np.ndarray, " m"]]:
        """Returns the low ends and the high ends of the 95 % intervals at each loss, cut to [0, 1]. They are intervals
        of the curve or, with `new_run`, of a new run's score. Raises `ConfigError` without a fit or without draws."""
        self.predict(loss)
        if self.draws is None:
            raise ConfigError(
                f"the {self.link.name} link was fitted without resamples; fit it with some for an interval"
            )
        scores = self._drawn_scores(self._scale(loss))
        if new_run:
            normal = np.random.default_rng(1).standard_normal(len(self.draws))
            scores = scores + (normal * self.noise_draws)[:, None]
        low, high = np.quantile(scores, ENDS, axis=0)
        return np.clip(low, 0, 1), np.clip(high, 0, 1)

    def _drawn_scores(self, x):
        """The scores that the link gives at `x` under each draw of its parameters, [draws, m]. With many runs the draws
        come from a linearised fit, so the link is linearised about the fit here, too."""
        if not are_many(self.n):
            return self.link.curve(self.draws, x)
        return self.link.curve(self.inner, x) + (self.draws - self.inner) @ _slopes(self.link, self.inner[None], x)[0].T

    def _scale(self, loss):
        return (np.atleast_1d(np.asarray(loss, float)) - self.low) / self.span

    def to_json(self) -> dict:
        names = ("n", "parameters", "rms", "isotonic_rms", "reason")
        link = {"link": self.link.name, "formula": self.link.formula}
        return plain(link | {name: getattr(self, name) for name in names})


def fit_link(
    loss: ArrayLike,
    score: ArrayLike,
    link: Link = LINKS["exponential"],
    *,
    trunks: ArrayLike | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> LinkFit:
    """Fits `link` to one loss and one score (a fraction) per run. Without `resamples` the fit has no intervals.

    `trunks` are the numbers of the runs' trunks (`rfjax.laws.trunks`); without them runs are taken as independent.
    Raises `ConfigError` for arrays of different length or values that are not finite. With too few runs, if all losses
    or all scores are equal, or if the score does not fall with the loss, the result has no fit; its `reason` says why.
    """
    loss, score = check_pairs(loss, score)
    n, k = len(loss), len(link.parameters)
    few = f"{n} run{'s'[: n != 1]} cannot decide {k} parameters; at least {k + 1} are needed"
    if reason := few if n <= k else constant_reason(loss, score):
        return LinkFit(link=link, n=n, reason=reason)
    low, span = float(loss.min()), float(np.ptp(loss))
    x = (loss - low) / span
    inner = _polish(link, link.solve(x, score[None]), x, score[None])[0]
    fitted = link.curve(inner, x)
    rms = float(np.sqrt(((fitted - score) ** 2).sum() / (n - k)))
    known = {"link": link, "n": n, "rms": rms, "isotonic_rms": _isotonic_rms(loss, score)}
    if np.ptp(fitted) < 1e-9:
        return LinkFit(reason="the score does not fall with the loss", **known)
    known |= {"parameters": link.natural(inner, low, span), "inner": inner, "low": low, "span": span}
    if not resamples:
        return LinkFit(**known)
    rng = np.random.default_rng(seed)
    new_run, noise, method = _noise(rng, link, inner, x, fitted - score, rms, trunks, resamples)
    if are_many(n):
        draws = _linear_draws(link, inner, x, score, noise)
    else:
        drawn = fitted + noise
        draws = _polish(link, link.solve(x, drawn), x, drawn)
    return LinkFit(draws=draws, noise_draws=new_run, method=method, **known)


def _noise(rng, link, inner, x, residuals, rms, trunks, resamples):
    """Returns (the standard deviation of a new run's score [b]; draws of the noise of the runs' scores [b, n]; the
    method in words). A new run is taken to be of a new trunk."""
    n, freedom = len(x), len(x) - len(inner)
    if trunks is None or not are_shared(np.asarray(trunks)):
        sd = np.minimum(rms * np.sqrt(freedom / rng.chisquare(freedom, resamples)), 1.0)
        return sd, sd[:, None] * rng.standard_normal((resamples, n)), "normal noise of the residual scatter"
    trunks = np.unique(np.asarray(trunks), return_inverse=True)[1].ravel()
    slopes = _slopes(link, inner[None], x)[0]
    found = scatter(rng, slopes, residuals, trunks, x[:, None], resamples, assumed=ASSUMED_NOISE)
    few = f"; fewer than {MIN_RUNS_TO_RESAMPLE} trunks say little of the noise between trunks, so its prior matters"
    said = f"of the score, {found.noise}{few if found.trunks < MIN_RUNS_TO_RESAMPLE else ''}"
    return np.minimum(np.hypot(found.between, found.within), 1.0), draw_noise(rng, found, trunks), said


def _linear_draws(link, inner, x, score, noise):
    """Returns, to first order, the parameters [b, k] that fits would give if each row of `noise` [b, n] were added to
    the scores. A parameter at its bound stays there if the squared error falls only beyond the bound."""
    lower, upper = (np.array(ends) for ends in zip(*link.bounds, strict=True))
    slopes = _slopes(link, inner[None], x)[0]
    gradient = slopes.T @ (link.curve(inner, x) - score)
    free = ~(((inner <= lower) & (gradient > 0)) | ((inner >= upper) & (gradient < 0)))
    left, values, vectors = np.linalg.svd(slopes[:, free], full_matrices=False)
    inverse = (vectors.T / np.maximum(values, SINGULAR * values.max())) @ left.T
    draws = np.tile(inner, (len(noise), 1))
    draws[:, free] += noise @ inverse.T
    return draws


def _slopes(link, theta, x):
    """Returns the curve's derivatives by its parameters, [b, n, k]. They are computed by a complex step (Squire and
    Trapp 1998), which is exact to rounding."""
    unit = np.eye(theta.shape[1])
    return np.stack([link.curve(theta + 1e-30j * row, x).imag / 1e-30 for row in unit], axis=2)


def _polish(link, theta, x, scores, weights=1.0, iterations=100):
    """Moves the parameters `theta` [b, k] from a start near the minimum of the squared errors to this minimum, within
    the link's bounds. Returns the parameters there.

    Steps are Levenberg and Marquardt's. A parameter at a bound stays there if a step downhill would cross the bound.
    Fit and draws are both polished: draws left on the grid would make intervals as coarse as the grid. `weights` [b, n]
    are 0 where a row leaves a run out, and 1 elsewhere.
    """
    lower, upper = (np.array(ends) for ends in zip(*link.bounds, strict=True))
    theta, damping = np.clip(theta, lower, upper), np.full(len(theta), 1e-3)
    residual = (link.curve(theta, x) - scores) * weights
    cost = (residual**2).sum(axis=1)
    unit = np.eye(theta.shape[1])
    for _ in range(iterations):
        slopes = _slopes(link, theta, x) * np.expand_dims(weights, -1)
        gradient = np.einsum("bnk,bn->bk", slopes, residual)
        free = ~(((theta <= lower) & (gradient > 0)) | ((theta >= upper) & (gradient < 0)))
        normal = np.einsum("bnk,bnl->bkl", slopes, slopes) * (free[:, :, None] & free[:, None, :])
        scale = np.einsum("bkk->bk", normal)
        normal = normal + unit * np.where(free, damping[:, None] * scale + 1e-14, 1.0)[:, None, :]
        step = -np.linalg.solve(normal, (gradient * free)[..., None])[..., 0]
        trial = np.clip(theta + step, lower, upper)
        left = (link.curve(trial, x) - scores) * weights
        tried = (left**2).sum(axis=1)
        better = tried <= cost
        theta = np.where(better[:, None], trial, theta)
        residual = np.where(better[:, None], left, residual)
        moved = np.abs(step).max(axis=1) * better
        cost = np.where(better, tried, cost)
        damping = np.clip(np.where(better, damping / 5, damping * 8), 1e-12, 1e12)
        if (moved[better] < 1e-12).all() and better.any():
            break
    return theta


def _isotonic_rms(loss, score):
    """Returns the root mean square residual of the least-squares fit by any curve that never rises with the loss."""
    order = np.argsort(loss, kind="stable")
    fitted = optimize.isotonic_regression(score[order], increasing=False).x
    return float(np.sqrt(((fitted - score[order]) ** 2).mean()))


@dataclass(frozen=True, kw_only=True)
class ScorePrediction:
    """The largest run's score, predicted from its loss by a link (a curve from loss to score) that was fitted to the
    `n` runs of other trunks."""

    link: str
    run: str
    n: int
    predicted: float | None
    low: float | None = None
    high: float | None = None
    actual: float | None = None
    error: float | None = None  # predicted - actual, in units of the score
    covered: bool | None = None
    method: str = ""  # of the interval
    reason: str = ""


def predict_largest(
    loss: ArrayLike,
    score: ArrayLike,
    size: ArrayLike,
    runs: ArrayLike,
    *,
    flops: ArrayLike | None = None,
    trunks: ArrayLike | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> tuple[ScorePrediction, ...]:
    """Predicts the score of the run of largest `size` by each link, fitted to the runs of other trunks.

    Returns one prediction for each link. If several runs have the largest size, the run with the most `flops` is
    predicted; if several of these have equal `flops`, the last by name. `trunks` are the numbers of the runs' trunks
    (`rfjax.laws.trunks`): a branch shares most of its training with the other branches of its trunk, so the fit leaves
    them out, too. Raises `ConfigError` for a size that is not finite: it could be the largest.
    """
    loss, score, size = (np.asarray(values, float) for values in (loss, score, size))
    if not len(loss):
        return ()
    if not np.isfinite(size).all():
        unknown = ", ".join(str(run) for run in np.asarray(runs)[~np.isfinite(size)])
        raise ConfigError(f"the size of {unknown} is not finite, so no run is known to be the largest")
    flops = np.zeros(len(loss)) if flops is None else np.asarray(flops, float)
    largest = int(np.lexsort((np.asarray(runs).astype(str), flops, size))[-1])
    trunks = np.arange(len(loss)) if trunks is None else np.asarray(trunks)
    rest = trunks != trunks[largest]
    found = []
    name, actual = str(np.asarray(runs)[largest]), float(score[largest])
    for link in LINKS.values():
        fitted = fit_link(loss[rest], score[rest], link, trunks=trunks[rest], resamples=resamples, seed=seed)
        said = {"link": link.name, "run": name, "n": fitted.n, "actual": actual, "reason": fitted.reason}
        if fitted.reason:
            found.append(ScorePrediction(predicted=None, **said))
            continue
        value = float(fitted.predict(loss[largest])[0])
        low, high = (float(end[0]) for end in fitted.interval(loss[largest], new_run=True))
        ends = {"low": low, "high": high, "covered": low <= actual <= high, "method": fitted.method}
        found.append(ScorePrediction(predicted=value, error=value - actual, **ends, **said))
    return tuple(found)


def predict_by_links(loss: ArrayLike, score: ArrayLike, size: ArrayLike, runs: ArrayLike, **options) -> dict:
    """Fits every link (curve from loss to score) to all runs, and predicts the largest run's score by each link fitted
    to the runs of other trunks. Returns fits and predictions as JSON.

    `options` are those of `predict_largest`.
    """
    predicted = predict_largest(loss, score, size, runs, **options)
    return {
        "links": [fit_link(loss, score, link, resamples=0).to_json() for link in LINKS.values()],
        "largest_predicted": plain(predicted),
    }


def left_out_rms(
    loss: ArrayLike, score: ArrayLike, link: Link = LINKS["logistic"], trunks: ArrayLike | None = None
) -> float | None:
    """Returns the root mean square error of predicting each run's score from the runs of other trunks or, if there are
    many runs, of other folds. Returns None if the link cannot be fitted, for example to too few runs."""
    loss, score = np.asarray(loss, float), np.asarray(score, float)
    trunks = np.arange(len(loss)) if trunks is None else np.asarray(trunks)
    if are_many(len(loss)):
        return _folds_rms(loss, score, link, trunks)
    errors = []
    for i in range(len(loss)):
        rest = trunks != trunks[i]
        fitted = fit_link(loss[rest], score[rest], link, resamples=0)
        if fitted.reason:
            return None
        errors.append(fitted.predict(loss[i])[0] - score[i])
    return float(np.sqrt(np.mean(np.square(errors)))) if errors else None


def _folds_rms(loss, score, link, trunks):
    """Returns the root mean square error of predicting each run's score; None if the link cannot be fitted. The runs of
    a fold are predicted by a fit to the other folds. This fit starts from the fit to all runs."""
    fitted = fit_link(loss, score, link, resamples=0)
    if fitted.reason:
        return None
    x, folds = (loss - fitted.low) / fitted.span, folds_of(trunks)
    out = np.arange(folds.max() + 1)[:, None] == folds[None]
    refitted = _polish(link, np.tile(fitted.inner, (len(out), 1)), x, score[None], weights=1.0 - out)
    errors = (np.clip(link.curve(refitted, x), 0, 1) - score)[out]
    return float(np.sqrt(np.mean(errors**2)))
