"""Fits links from validation loss to score over runs, and predicts the largest run's score by them.

    exponential   score = eps - k exp(gamma loss)        k, gamma >= 0
    logistic      score = 1 / (1 + exp((loss - middle) / width))

Fits are by least squares in units of the score. Both links fall with the loss. An isotonic fit (any falling curve)
shows the scatter that no falling curve can follow. Intervals of a predicted score are parametric: normal noise of the
residual scatter, which is itself drawn with its n - k degrees of freedom.
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
from rfjax.results.plain import plain

RESAMPLES = 1000
FINE, COARSE = 400, 120  # number of values tried for a link's nonlinear parameter
CHUNK = 4_000_000
# Bounds of the inner parameters, in units where the losses range from 0 to 1: from a straight line to a step.
GAMMAS = (0.02, 60.0)
MIDDLES, LOG_STEEPS = (-4.0, 5.0), (float(np.log(0.05)), float(np.log(200.0)))


@dataclass(frozen=True, kw_only=True)
class Link:
    """A curve of score against loss. Its functions take x, the loss rescaled: 0 is the lowest loss, 1 the highest."""

    name: str
    formula: str
    parameters: tuple[str, ...]
    curve: Callable  # (inner parameters [..., k], x [n]) -> [..., n]
    solve: Callable  # (x [n], scores [b, n]) -> inner parameters [b, k], by a grid
    bounds: tuple[tuple[float, float], ...]  # of each inner parameter
    natural: Callable  # (inner parameters [k], lowest loss, range of loss) -> parameters by name


def _exponential(theta, x):
    # eps - k exp(gamma (x - 1)): k is the drop at the largest loss, so that nothing overflows.
    return theta[..., 0:1] - theta[..., 1:2] * np.exp(theta[..., 2:3] * (x - 1))


def _solve_exponential(x, scores):
    gammas = np.geomspace(*GAMMAS, FINE)
    basis = np.exp(gammas[:, None] * (x - 1))
    centred = basis - basis.mean(axis=1, keepdims=True)
    y = scores - scores.mean(axis=1, keepdims=True)
    norm = (centred**2).sum(axis=1)
    slope = np.minimum(y @ centred.T / norm, 0.0)  # -k, which never rises with the loss
    best = (slope**2 * norm).argmax(axis=1)
    k = -slope[np.arange(len(y)), best]
    return np.stack([scores.mean(axis=1) + k * basis[best].mean(axis=1), k, gammas[best]], axis=1)


def _natural_exponential(theta, low, span):
    gamma = theta[2] / span
    return {"eps": float(theta[0]), "k": float(theta[1] * np.exp(-theta[2] - gamma * low)), "gamma": float(gamma)}


def _logistic(theta, x):
    return 0.5 * (1.0 - np.tanh(0.5 * np.exp(theta[..., 1:2]) * (x - theta[..., 0:1])))


def _solve_logistic(x, scores):
    middles, steeps = np.meshgrid(np.linspace(*MIDDLES, COARSE), np.linspace(*LOG_STEEPS, COARSE))
    grid = np.stack([middles.ravel(), steeps.ravel()], axis=1)
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
    """A link fitted to n runs; `reason` says why it could not be fitted, or ""."""

    link: Link
    n: int
    parameters: Mapping[str, float] = field(default_factory=dict)
    rms: float | None = None  # of score, with n - k degrees of freedom
    isotonic_rms: float | None = None  # of the best falling curve of any form, mean over n
    reason: str = ""
    inner: Float[np.ndarray, " k"] | None = None
    draws: Float[np.ndarray, "draws k"] | None = None
    noise_draws: Float[np.ndarray, " draws"] | None = None
    low: float = 0.0  # smallest loss, and the range of the losses
    span: float = 1.0

    def predict(self, loss: ArrayLike) -> Float[np.ndarray, " m"]:
        """The score at these losses, within [0, 1]. Raises `ConfigError` if there is no fit."""
        if self.inner is None:
            raise ConfigError(f"the {self.link.name} link was not fitted ({self.reason}); it cannot predict")
        return np.clip(self.link.curve(self.inner, self._scale(loss)), 0, 1)

    def interval(self, loss: ArrayLike, *, new_run: bool) -> tuple[Float[np.ndarray, " m"], Float[np.ndarray, " m"]]:
        """The ends of the 95 % interval at these losses, of the curve or of a new run's score; within [0, 1]."""
        self.predict(loss)
        scores = self.link.curve(self.draws, self._scale(loss))
        if new_run:
            normal = np.random.default_rng(1).standard_normal(len(self.draws))
            scores = scores + (normal * self.noise_draws)[:, None]
        low, high = np.quantile(scores, ENDS, axis=0)
        return np.clip(low, 0, 1), np.clip(high, 0, 1)

    def _scale(self, loss):
        return (np.atleast_1d(np.asarray(loss, float)) - self.low) / self.span

    def to_json(self) -> dict:
        names = ("n", "parameters", "rms", "isotonic_rms", "reason")
        link = {"link": self.link.name, "formula": self.link.formula}
        return plain(link | {name: getattr(self, name) for name in names})


def fit_link(
    loss: ArrayLike, score: ArrayLike, link: Link = LINKS["exponential"], *, resamples: int = RESAMPLES, seed: int = 0
) -> LinkFit:
    """Fits `link` to one loss and one score (a fraction) per run.

    Raises `ConfigError` for arrays of different length or values that are not finite. With too few runs,
    or runs that are all alike, the result has no fit, and says why.
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
    rng = np.random.default_rng(seed)
    noise = np.minimum(rms * np.sqrt((n - k) / rng.chisquare(n - k, resamples)), 1.0)
    drawn = fitted + noise[:, None] * rng.standard_normal((resamples, n))
    draws, parameters = _polish(link, link.solve(x, drawn), x, drawn), link.natural(inner, low, span)
    return LinkFit(parameters=parameters, inner=inner, draws=draws, noise_draws=noise, low=low, span=span, **known)


def _polish(link, theta, x, scores, iterations=100):
    """Minimises from the grid's best parameters within the link's bounds, all rows at once. Returns them as [b, k].

    The steps are Levenberg and Marquardt's. A parameter at a bound stays there if its gradient points beyond.
    Both fit and draws are refined in this way: draws on the grid would make intervals as coarse as the grid.
    """
    lower, upper = (np.array(ends) for ends in zip(*link.bounds, strict=True))
    theta, damping = np.clip(theta, lower, upper), np.full(len(theta), 1e-3)
    residual = link.curve(theta, x) - scores
    cost = (residual**2).sum(axis=1)
    unit = np.eye(theta.shape[1])
    for _ in range(iterations):
        # Derivatives by a complex step (Squire and Trapp 1998), exact to rounding.
        slopes = np.stack([link.curve(theta + 1e-30j * row, x).imag / 1e-30 for row in unit], axis=2)
        gradient = np.einsum("bnk,bn->bk", slopes, residual)
        free = ~(((theta <= lower) & (gradient > 0)) | ((theta >= upper) & (gradient < 0)))
        normal = np.einsum("bnk,bnl->bkl", slopes, slopes) * (free[:, :, None] & free[:, None, :])
        scale = np.einsum("bkk->bk", normal)
        normal = normal + unit * np.where(free, damping[:, None] * scale + 1e-14, 1.0)[:, None, :]
        step = -np.linalg.solve(normal, (gradient * free)[..., None])[..., 0]
        trial = np.clip(theta + step, lower, upper)
        left = link.curve(trial, x) - scores
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
    order = np.argsort(loss, kind="stable")
    fitted = optimize.isotonic_regression(score[order], increasing=False).x
    return float(np.sqrt(((fitted - score[order]) ** 2).mean()))


@dataclass(frozen=True, kw_only=True)
class ScorePrediction:
    """The largest run's score, predicted from its loss by a link fitted to the others."""

    link: str
    run: str
    n: int
    predicted: float | None
    low: float | None = None
    high: float | None = None
    actual: float | None = None
    error: float | None = None  # predicted - actual, in units of the score
    covered: bool | None = None
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
    """The score of the run of largest `size` as each link predicts it from the runs of other trunks.

    Of several runs of that size the one with the most `flops` is taken, then the last by name. `trunks` are the numbers
    of the runs' trunks (`rfjax.laws.trunks`): a branch shares most of its training with the others of its trunk, so
    these are left out too. Raises `ConfigError` for a size that is not finite: it could be the largest.
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
        fitted = fit_link(loss[rest], score[rest], link, resamples=resamples, seed=seed)
        said = {"link": link.name, "run": name, "n": fitted.n, "actual": actual, "reason": fitted.reason}
        if fitted.reason:
            found.append(ScorePrediction(predicted=None, **said))
            continue
        value = float(fitted.predict(loss[largest])[0])
        low, high = (float(end[0]) for end in fitted.interval(loss[largest], new_run=True))
        ends = {"low": low, "high": high, "covered": low <= actual <= high}
        found.append(ScorePrediction(predicted=value, error=value - actual, **ends, **said))
    return tuple(found)


def predict_by_links(loss: ArrayLike, score: ArrayLike, size: ArrayLike, runs: ArrayLike, **options) -> dict:
    """Every link fitted to all runs, and the largest run's score as each predicts it from the others, as JSON.

    `options` are those of `predict_largest`.
    """
    predicted = predict_largest(loss, score, size, runs, **options)
    return {
        "links": [fit_link(loss, score, link, resamples=2).to_json() for link in LINKS.values()],
        "largest_predicted": plain(predicted),
    }


def left_out_rms(
    loss: ArrayLike, score: ArrayLike, link: Link = LINKS["logistic"], trunks: ArrayLike | None = None
) -> float | None:
    """Root mean square error of each run's score predicted from all runs of other trunks; None for too few."""
    loss, score = np.asarray(loss, float), np.asarray(score, float)
    trunks = np.arange(len(loss)) if trunks is None else np.asarray(trunks)
    errors = []
    for i in range(len(loss)):
        rest = trunks != trunks[i]
        fitted = fit_link(loss[rest], score[rest], link, resamples=2)
        if fitted.reason:
            return None
        errors.append(fitted.predict(loss[i])[0] - score[i])
    return float(np.sqrt(np.mean(np.square(errors)))) if errors else None
