"""Tests claims about the loss: its floor, its levels of t, its training curves.

Each test is a pure function of the `Evidence`, and returns a `Judgement`.
"""

from __future__ import annotations

import numpy as np
from scipy import stats

from rfjax.evaluation.intervals import LEVEL
from rfjax.laws.claim_evidence import Evidence
from rfjax.laws.collapse import FEWEST_CHECKPOINTS, FEWEST_SIZES, FROM
from rfjax.laws.comparison import compare
from rfjax.laws.fitting import Estimate
from rfjax.laws.laws import PARAMETRIC, POWER, SATURATING
from rfjax.laws.trunks import are_shared, trunk_means, trunks_of
from rfjax.laws.verdicts import AGREES, CONTRADICTS, UNDECIDED, Judgement, if_enough_runs, untested

SMALL_FLOOR = 0.10  # a floor below this share of the smallest loss counts as no floor
SURE = 0.975  # a law is better if it is so in at least this share of resamples
SAME_EXPONENT = 0.10  # a level's exponent that differs from the mean by less than this share counts as equal
COLLAPSED = 0.05  # curves whose relative spread is below this count as one curve


def no_floor(evidence: Evidence) -> Judgement:
    """Judges whether E is 0, by the parametric law or, if that was not fitted, by the saturating law."""
    if not evidence.floor_law:
        lacking = [evidence.lack(law.name) for law in (PARAMETRIC, SATURATING)]
        return untested(f"{lacking[0]}; or {lacking[1]}")
    fitted = evidence.fits[evidence.floor_law]
    found, least = fitted.estimates["E"], float(np.exp(fitted.log_loss.min()))
    share = Estimate(value=found.value / least, low=found.low / least, high=found.high / least)
    common = {
        "quantity": "E, in units of the smallest loss",
        "found": share,
        "method": f"{fitted.law.name} law of {fitted.n} runs",
        "notes": (f"E = {found.value:.4g} [{found.low:.4g}, {found.high:.4g}]; the smallest loss is {least:.4g}",),
    }
    if share.low > 0:
        return if_enough_runs(Judgement(verdict=CONTRADICTS, **common), fitted)
    if share.high < SMALL_FLOOR:
        return if_enough_runs(Judgement(verdict=AGREES, **common), fitted)
    decide = (
        f"runs at losses nearer the floor: the interval holds 0 and a floor of {share.high:.0%} of the smallest loss"
    )
    return Judgement(verdict=UNDECIDED, decide=decide, **common)


def power_predicts(evidence: Evidence) -> Judgement:
    """Judges whether the power law (without a floor) predicts runs as well as the saturating law does. Each law
    predicts a run by a fit to the other runs."""
    names = (SATURATING.name, POWER.name)
    if lacking := [evidence.lack(name) for name in names if evidence.lack(name).startswith("columns")]:
        return untested(lacking[0])
    fits = {name: evidence.fits[name] for name in names}
    found = compare(fits)
    rule = evidence.rules.get(POWER.name, "")
    rows = {name: row["shared_runs_rms"] for name, row in found["laws"].items()}
    if not found["preferred"]:
        return Judgement(verdict=UNDECIDED, decide=f"more runs: {found['reason']}", notes=(rule,) if rule else ())
    errors = ", ".join(f"{name} {rms:.2%}" for name, rms in rows.items())
    share = found["preferred_share"]
    often = "how often is not known, as runs share trunks" if share is None else f"in {share:.0%} of resamples"
    notes = (
        f"rms errors over the same {len(found['shared_runs'])} runs: {errors}; the {found['preferred']} law {often}",
    )
    common = {
        "quantity": "rms error of the power law over that of the saturating law",
        "found": Estimate(value=rows[POWER.name] / max(rows[SATURATING.name], 1e-300)),
        "method": "each run predicted from the others",
        "notes": (*notes, rule) if rule else notes,
    }
    if share is not None and share >= SURE:
        return Judgement(verdict=AGREES if found["preferred"] == POWER.name else CONTRADICTS, **common)
    return Judgement(verdict=UNDECIDED, decide="more runs on the frontier, over a wider range of compute", **common)


def levels_differ(evidence: Evidence) -> Judgement:
    """Judges whether losses at different levels of t fall with different powers of compute.

    Each loss of a run at a level is divided by the geometric mean of the run's losses over levels. The test asks
    whether the logarithm of this ratio has a slope against log C. A trunk with its branches is one point. The notes
    give each level's exponent by a power law without a floor.
    """
    rows = evidence.rows.get(POWER.name, evidence.points)
    levels = evidence.levels.columns
    if len(levels) < 2:
        return untested("columns flops and loss@t=T, with a loss at two levels of 0 < t < 1 for each run")
    log_c = np.log(rows["flops"].to_numpy(float))
    logs = np.log(np.stack([rows[name].to_numpy(float) for name in levels.values()], axis=1))
    trunks = trunks_of(rows)
    shared = are_shared(trunks)
    if shared:
        log_c, logs = trunk_means(log_c, trunks), trunk_means(logs, trunks)
    n = len(log_c)
    notes = [f"apparent exponents, without floors: {_exponents(evidence)}"]
    notes += ["a floor that differs by level cannot be told from an exponent that differs by level"]
    notes += ["a trunk with its branches is one point"] if shared else []
    left = [f"t = {t:g}" for t in evidence.levels.left_out]
    notes += [f"left out: {', '.join(left)} (an end of the path, or without a loss for some runs)"] if left else []
    quantity = "exponent of one level less the mean over levels, at the level where it is most standard errors from 0"
    if n < 4 or np.ptp(log_c) < 1e-9:
        return Judgement(verdict=UNDECIDED, decide=f"4 independent runs or more, not {n}", notes=tuple(notes))
    x = log_c - log_c.mean()
    contrast = logs - logs.mean(axis=1, keepdims=True)
    slopes = -(x @ contrast) / (x @ x)  # a falling loss has a positive exponent
    left_over = contrast - contrast.mean(axis=0) + x[:, None] * slopes
    errors = np.sqrt((left_over**2).sum(axis=0) / (n - 2) / (x @ x))
    reach = stats.t.ppf(1 - (1 - LEVEL) / 2 / len(slopes), n - 2) * errors  # Bonferroni's correction for several levels
    mean_exponent = -(x @ logs.mean(axis=1)) / (x @ x)
    place = int(np.argmax(np.abs(slopes) / np.maximum(errors, 1e-300)))
    t = list(levels)[place]
    value, off = float(slopes[place]), float(reach[place])
    found = Estimate(value=value, low=value - off, high=value + off)
    common = {"quantity": f"{quantity}: t = {t:g}", "found": found, "notes": tuple(notes)}
    common["method"] = f"paired over {n} {'trunks' if shared else 'runs'}, Bonferroni over {len(slopes)} levels"
    if (np.abs(slopes) > reach).any():
        return Judgement(verdict=AGREES, **common)
    widest = float((np.abs(slopes) + reach).max())
    if widest < SAME_EXPONENT * abs(mean_exponent):
        return Judgement(verdict=CONTRADICTS, **common)
    decide = (
        f"exponents known to within {SAME_EXPONENT * abs(mean_exponent):.2g} of their mean (now {widest:.2g}): "
        "more runs, or a wider range of compute"
    )
    return Judgement(verdict=UNDECIDED, decide=decide, **common)


def _exponents(evidence):
    """Returns the power law's exponent at each level, as text."""
    said = []
    for t, b in evidence.levels.exponents.items():
        said.append(f"t = {t:g}: {b.value:.3f} [{b.low:.3f}, {b.high:.3f}]" if b else f"t = {t:g}: not fitted")
    return ", ".join(said)


def collapses(evidence: Evidence) -> Judgement:
    """Judges whether the normalised training curves of compute-optimal runs collapse onto one curve for all sizes."""
    found = evidence.collapse
    if found.spread is None:
        needs = (
            f"training curves: {FEWEST_CHECKPOINTS} checkpoints or more with a loss after {FROM:.0%} of training, of "
            f"{FEWEST_SIZES} sizes (columns run, loss, params, images); {found.reason}"
        )
        return untested(needs, notes=found.notes)
    law, sizes = evidence.floor_law, len(set(found.params))
    common = {
        "quantity": "largest relative spread of the normalised curves",
        "found": found.spread,
        "method": (
            f"{len(found.runs)} runs of {sizes} sizes, from {found.shares[0]:.0%} of training; E by the {law} law"
        ),
        "notes": (*found.notes, f"the scatter of runs explains {found.noise:.1%}"),
    }
    if found.spread.high < COLLAPSED:
        return Judgement(verdict=AGREES, **common)
    if found.spread.low > COLLAPSED + 2 * found.noise:
        return Judgement(verdict=CONTRADICTS, **common)
    decide = "a narrower interval of E, less scatter (several seeds a size), or more sizes at their optimal length"
    return Judgement(verdict=UNDECIDED, decide=decide, **common)
