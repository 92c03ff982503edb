"""Refits resampled data, for the intervals of a fit.

With at least 8 runs, and at least 5 runs more than parameters, runs are resampled. With fewer, a resample has too few
distinct points, and the bootstrap is parametric: the law plus normal noise of the residual scatter. The scatter is
itself drawn with n - k degrees of freedom (n runs, k parameters), so the noise has a t distribution. If runs share
trunks, the noise has two parts, between trunks and within (`rfjax.laws.trunks`), and refits are by generalised least
squares (`rfjax.laws.trunk_likelihood`). If the user asks to resample runs, or with more than 100 runs, whole trunks are
resampled, provided that there are at least 8 trunks, and at least 5 runs more than parameters. Tests measure the
coverage of each method.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from rfjax.errors import ConfigError
from rfjax.laws.identifiability import distinct_needed
from rfjax.laws.laws import Law
from rfjax.laws.minimiser import minimise
from rfjax.laws.misfits import Loss
from rfjax.laws.trunk_likelihood import generalised_refits
from rfjax.laws.trunks import Scatter, are_shared, scatter
from rfjax.results.many_runs import are_many

MIN_RUNS_TO_RESAMPLE = 8
# With nine runs and five parameters, resampling runs covers an exponent only 85 times in 100.
MIN_FREEDOM_TO_RESAMPLE = 5
# The largest noise, in log loss. With one degree of freedom the t distribution has no mean; a factor of e either way
# already says nothing about a run, and more would only overflow.
MAX_NOISE = 1.0
# With fewer points the misfit of a resample may have several minima, so a refit also begins at a second start.
FEW = 50
METHODS = ("auto", "runs", "parametric")


class Draws(NamedTuple):
    """The refits of resampled data."""

    parameters: Float[np.ndarray, "draws k"]
    noise: Float[np.ndarray, " draws"]  # standard deviation of the residuals in each draw, in the residuals' units
    method: str
    unconverged: int  # number of refits that did not converge
    scatter: Scatter | None = None  # if runs share trunks, and trunks were not resampled


def draw(
    law: Law,
    parameters: Float[np.ndarray, " k"],
    log_x: Float[np.ndarray, "n v"],
    log_loss: Float[np.ndarray, " n"],
    residual_sd: float,
    loss: Loss,
    *,
    resamples: int,
    seed: int,
    method: str = "auto",
    trunks: Int[np.ndarray, " n"] | None = None,
) -> Draws:
    """Resamples the data `resamples` times and refits the law to each resample, starting from the fitted `parameters`.
    `log_x` is centred, and the parameters are those for centred `log_x`.

    `trunks` are the numbers of the runs' trunks. Raises `ConfigError` for too few trunks to resample, and for an
    unknown method.
    """
    if method not in METHODS:
        raise ConfigError(f"intervals are by {', '.join(METHODS)}, not {method!r}")
    rng = np.random.default_rng(seed)
    n, k = len(log_loss), len(law.parameters)
    freedom = n - k
    # The scatter is itself an estimate with `freedom` degrees of freedom.
    noise = residual_sd * np.sqrt(freedom / rng.chisquare(freedom, resamples))
    trunks = np.arange(n) if trunks is None else trunks
    shared, units = are_shared(trunks), len(np.unique(trunks))
    many = units >= MIN_RUNS_TO_RESAMPLE and freedom >= MIN_FREEDOM_TO_RESAMPLE
    if method == "runs" and shared and not many:
        raise ConfigError(
            f"intervals over runs need {MIN_RUNS_TO_RESAMPLE} trunks and {k + MIN_FREEDOM_TO_RESAMPLE} runs, not "
            f"{units} trunks and {n} runs; leave them at auto"
        )
    if method == "runs" or (method == "auto" and many and (not shared or are_many(n))):
        weights, data = resampled_counts(rng, law, log_x, resamples, trunks), log_loss
        over = f"{units} trunks, whole" if shared else "runs"
        said = f"bootstrap over {over}, {resamples:,} resamples (those that cannot decide the law drawn again)"
    elif shared:
        residuals = law.log_loss(parameters, log_x) - log_loss
        found = scatter(rng, law.jacobian(parameters, log_x), residuals, trunks, log_x, resamples)
        noise = np.hypot(found.between, found.within)  # a new run is of a new trunk
        noise = noise if loss.logarithmic else noise * np.exp(log_loss.mean())
        said = (
            f"parametric bootstrap, {resamples:,} refits by generalised least squares, and for E and the exponents the "
            f"likelihood of runs that share trunks: {found.method}"
        )
        refits = generalised_refits(rng, law, parameters, log_x, log_loss, trunks, found)
        return Draws(refits.parameters, noise, said, int((~refits.converged).sum()), found)
    else:
        least = max(MIN_RUNS_TO_RESAMPLE, k + MIN_FREEDOM_TO_RESAMPLE)
        few = f" (fewer than {least} runs are too few to resample)" if method == "auto" else ""
        normal = rng.standard_normal((resamples, n))
        weights, data = None, add_noise(law.log_loss(parameters, log_x)[None], noise[:, None], normal, loss)
        said = (
            f"parametric bootstrap, {resamples:,} resamples{few}: normal noise of the residual scatter, "
            "itself drawn with its n − k degrees of freedom"
        )
    refits = [
        minimise(law, np.tile(start, (resamples, 1)), log_x, data, loss, weights=weights)
        for start in (parameters, *([_middle(law, log_x, log_loss)] if n < FEW else []))
    ]
    choice = np.argmin([refit.objective for refit in refits], axis=0)
    rows = np.arange(resamples)
    converged = np.stack([refit.converged for refit in refits])[choice, rows]
    parameters = np.stack([refit.parameters for refit in refits])[choice, rows]
    return Draws(parameters, noise, said, int((~converged).sum()))


def add_noise(
    log_loss: Float[np.ndarray, "*#shape"],
    noise: Float[np.ndarray, "*#shape"],
    normal: Float[np.ndarray, "*#shape"],
    loss: Loss,
) -> Float[np.ndarray, "*shape"]:
    """Adds noise * normal to the log loss, or to the loss if residuals are of the loss; returns the log loss."""
    if loss.logarithmic:
        return log_loss + np.minimum(noise, MAX_NOISE) * normal
    raw = np.exp(log_loss)
    return np.log(np.maximum(raw + noise * normal, 1e-3 * raw))


def _middle(law, log_x, log_loss):
    """Returns a second start for refits, besides the fitted parameters. E is half of the smallest loss, and exponents
    are 0.3."""
    share = 0.5 * law.offset
    level = float(np.log(np.mean(np.exp(log_loss)))) + np.log1p(-share) - np.log(len(law.terms))
    row = [share * np.exp(log_loss.min())] * law.offset
    for column, term in enumerate(law.terms):
        starts = list(term.starts(log_x[:, column], dense=False))
        middle = starts[len(starts) // 2]
        theta = np.array([0.0, 0.3, *middle[1:]])
        theta[0] = level - term.log_value(theta, log_x[:, column]).mean()
        row += theta.tolist()
    return np.array(row)


def resampled_counts(
    rng: np.random.Generator,
    law: Law,
    log_x: Float[np.ndarray, "n v"],
    resamples: int,
    trunks: Int[np.ndarray, " n"],
) -> Float[np.ndarray, "resamples n"]:
    """Draws resamples of whole trunks, and returns how often each point occurs in each resample. Resamples that cannot
    determine the law are drawn again."""
    n, k = len(log_x), len(law.parameters)
    # Which rows hold each distinct value, of every variable and of all of them together.
    columns = [log_x[:, [column]] for column in range(log_x.shape[1])] + [log_x]
    groups = [np.unique(np.round(values, 9), axis=0, return_inverse=True)[1].ravel() for values in columns]
    members = [np.eye(group.max() + 1)[group] for group in groups]
    needed = [distinct_needed(law)] * log_x.shape[1] + [k]
    counts, units = np.empty((0, n)), int(trunks.max()) + 1
    while len(counts) < resamples:
        drawn = rng.multinomial(units, np.full(units, 1 / units), resamples).astype(float)[:, trunks]
        enough = [((drawn @ m) > 0).sum(axis=1) >= least for m, least in zip(members, needed, strict=True)]
        counts = np.concatenate([counts, drawn[np.all([*enough, (drawn > 0).sum(axis=1) > k], axis=0)]])
    return counts[:resamples]
