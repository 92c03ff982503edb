"""Gathers what claims are tested on: a table's runs, its fits, and its compute-optimal frontier in two counts of C.

Fits are those of `rfjax fit` and of a study's report. The frontier is derived twice from the one parametric law: with
the table's own FLOPs, and with C = 6 N D, which some papers count.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import pandas as pd

from rfjax.errors import ConfigError
from rfjax.laws.chinchilla_approaches import Line, approach2
from rfjax.laws.collapse import Collapse, collapse
from rfjax.laws.fitting import DEFAULTS, Fit, FitOptions, fit
from rfjax.laws.laws import PARAMETRIC, POWER, SATURATING
from rfjax.laws.level_exponents import LevelExponents, level_exponents
from rfjax.laws.optimal_frontier import OptimalFrontier, derive
from rfjax.laws.run_frontier import choose_runs
from rfjax.laws.study_fits import Analysis, Settings
from rfjax.results.results_folder import Results

SAME_TOKENS = 0.01  # tokens per image that differ by more than this, relative, are several
WITNESS_RESAMPLES = 200  # of the parabolas, whose interval is compared with the law's and decides nothing finely
LAWS_TESTED = (SATURATING, POWER, PARAMETRIC)


@dataclass(frozen=True, kw_only=True)
class TokensPerImage:
    """The numbers of image tokens and of text tokens per example; None if the table does not tell them. `reason` says
    why."""

    image: float | None = None
    text: float | None = None
    reason: str = ""

    @property
    def all(self) -> float | None:
        """Image and text tokens of an example together."""
        return None if self.image is None or self.text is None else self.image + self.text


@dataclass(frozen=True, kw_only=True, eq=False)
class Evidence:
    """What the claims of `rfjax.laws.claims` are tested on.

    `points` has a row for each run, `curves` one for each checkpoint. `lacking` has, for each law that was not fitted,
    the columns that the table lacks. `results` and `settings` are those of a study; they are None for a foreign table.
    """

    points: pd.DataFrame
    curves: pd.DataFrame
    fits: Mapping[str, Fit]
    rows: Mapping[str, pd.DataFrame]  # that each law was fitted to
    lacking: Mapping[str, str]
    rules: Mapping[str, str] = field(default_factory=dict)  # which runs each law took, in words
    frontier: OptimalFrontier | None  # in the table's own FLOPs
    frontier_6nd: OptimalFrontier | None  # in C = 6 N D: with tokens per image where they are known, else of images
    frontier_reason: str
    parabolas: Line | None  # approach 2's line in the table's FLOPs; None if there is none with an interval
    parabolas_bias: float  # of its exponent, by the parametric law; 0 where it is not known
    tokens: TokensPerImage
    options: FitOptions
    results: Results | None = None
    settings: Settings | None = None

    def lack(self, law: str) -> str:
        """Why a law was not fitted: the columns that the table lacks, or the reason of a refusal; "" if it was
        fitted."""
        if law in self.lacking:
            return f"columns {self.lacking[law]}"
        return "" if self.fits[law].identifiable else f"a fit of the {law} law: {self.fits[law].reason}"

    @cached_property
    def levels(self) -> LevelExponents:
        """The exponent of the loss at each level of t, over the runs that the power law takes."""
        return level_exponents(self.rows.get(POWER.name, self.points), self.options)

    @cached_property
    def collapse(self) -> Collapse:
        """The collapsed training curves, with the E of the parametric law or, without one, of the saturating law."""
        if not {"loss", "params", "images"} <= set(self.curves.columns) or self.curves["run"].is_unique:
            return Collapse(notes=(), reason="the table has none")
        name = self.floor_law
        if not name:
            return Collapse(notes=(), reason=f"the floor E is not known: {self.lack(PARAMETRIC.name)}")
        return collapse(self.points, self.curves, self.fits[name], self.frontier)

    @property
    def floor_law(self) -> str:
        """The law whose E is taken; "" if neither was fitted."""
        return next((law.name for law in (PARAMETRIC, SATURATING) if not self.lack(law.name)), "")


def of_study(
    analysis: Analysis,
    curves: pd.DataFrame,
    results: Results,
    settings: Settings,
    options: FitOptions,
    tokens: float | None = None,
) -> Evidence:
    """The evidence of a study, whose `analysis` has all fits; `curves` are its checkpoints.

    `tokens` are as in `of_table`.
    """
    points = analysis.points
    frontier = points[points["frontier"]]
    rows = {SATURATING.name: frontier, POWER.name: frontier, PARAMETRIC.name: points[points["best_rate"]]}
    found = _tokens(points, tokens)
    optimal, reason = analysis.optimal_frontier, analysis.optimal_frontier_reason
    return Evidence(
        points=points,
        curves=curves,
        fits=analysis.fits,
        rows=rows,
        lacking={},
        frontier=optimal,
        frontier_6nd=_recount(analysis.fits[PARAMETRIC.name], rows[PARAMETRIC.name], found) if optimal else None,
        frontier_reason=reason,
        **_parabolas(points, options),
        tokens=found,
        options=options,
        results=results,
        settings=settings,
    )


def of_table(table: pd.DataFrame, options: FitOptions = DEFAULTS, tokens: float | None = None) -> Evidence:
    """The evidence of a foreign table (`foreign_table.read_table`) with a row for each run or for each checkpoint. The
    last checkpoint is the run's end.

    `tokens` is the number of image tokens per image (1 if the column `images` counts tokens), for a table without a
    column `image_tokens`. Raises `ConfigError` if both are given.
    """
    points, told = last_rows(table)
    fits, rows, lacking, rules = {}, {}, {}, {"checkpoints": told}
    for law in LAWS_TESTED:
        missing = [name for name in law.variables if name not in points]
        if missing:
            lacking[law.name] = ", ".join(missing)
            continue
        chosen = choose_runs(points, law)
        rows[law.name], rules[law.name] = chosen.rows, chosen.rule
        fits[law.name] = fit(chosen.rows, law, options)
    found = _tokens(points, tokens)
    optimal = optimal_6nd = None
    reason = f"the table has no column {lacking.get(PARAMETRIC.name)}"
    if PARAMETRIC.name in fits:
        optimal, reason = derive(fits[PARAMETRIC.name], points)
        optimal_6nd = _recount(fits[PARAMETRIC.name], points, found) if optimal else None
    return Evidence(
        points=points,
        curves=table,
        fits=fits,
        rows=rows,
        lacking=lacking,
        rules={name: rule for name, rule in rules.items() if rule},
        frontier=optimal,
        frontier_6nd=optimal_6nd,
        frontier_reason=reason,
        **_parabolas(points, options),
        tokens=found,
        options=options,
    )


def last_rows(rows: pd.DataFrame) -> tuple[pd.DataFrame, str]:
    """(the last checkpoint of each run, by `images` or `flops`; a sentence that says so, "" if each run has one row).

    Raises `ConfigError` if two rows of a run cannot be ordered.
    """
    if rows["run"].is_unique:
        return rows, ""
    by = next((name for name in ("images", "flops") if name in rows), None)
    again = rows.duplicated(["run"] + ([by] if by else []), keep=False)
    if again.any():
        run = rows.loc[again, "run"].iloc[0]
        same = f"with the same {by}" if by else "and no column images or flops to order them"
        raise ConfigError(f"run {run!r} has several rows {same}; give a row for each checkpoint, or distinct names")
    last = rows.sort_values(by, kind="stable").drop_duplicates("run", keep="last").sort_index()
    return last, f"{len(rows)} rows of {len(last)} runs: the one with the most {by} is a run's end, others checkpoints"


def tokens_per_image(points: pd.DataFrame) -> TokensPerImage:
    """The tokens per example, if the table has them and they are the same in all runs."""
    if "image_tokens" not in points or "images" not in points:
        return TokensPerImage(reason="the table has no column image_tokens")
    images, params = (points[name].to_numpy(float) if name in points else np.nan for name in ("images", "params"))
    image = pd.to_numeric(points["image_tokens"], errors="coerce").to_numpy(float) / images
    if not np.isfinite(image).all():
        return TokensPerImage(reason="image_tokens is empty for some runs")
    if image.max() > image.min() * (1 + SAME_TOKENS):
        return TokensPerImage(
            reason=f"images have {image.min():g} to {image.max():g} tokens; runs are of several sizes"
        )
    text = None
    if "tokens_per_param" in points:
        every = pd.to_numeric(points["tokens_per_param"], errors="coerce").to_numpy(float) * params / images
        if np.isfinite(every).all() and np.ptp(every - image) <= SAME_TOKENS * every.max():
            text = float(np.median(every - image))
    return TokensPerImage(image=float(np.median(image)), text=text)


def _parabolas(points, options):
    """Approach 2's line and its bias, if some budgets have three sizes."""
    none = {"parabolas": None, "parabolas_bias": 0.0}
    if not {"flops", "params", "images"} <= set(points.columns):
        return none
    line = approach2(points, resamples=min(options.resamples, WITNESS_RESAMPLES), seed=options.seed)
    if line.a is None or line.a.low is None:
        return none
    return {"parabolas": line, "parabolas_bias": (line.bias or {}).get("exponent", 0.0)}


def _tokens(points, given):
    """The tokens per example: as given, else from the table."""
    found = tokens_per_image(points)
    if given is None:
        return found
    if found.image is not None:
        raise ConfigError("--tokens-per-image is given, and the table has a column image_tokens; leave one out")
    return TokensPerImage(image=given, reason="only image tokens are given")


def _recount(fitted, rows, tokens):
    """The frontier of the same fit in C = 6 N D. D counts image and text tokens, image tokens, or images, whichever is
    known."""
    per_image = 6.0 * (tokens.all or tokens.image or 1.0)
    recounted = rows.assign(flops=per_image * rows["params"].astype(float) * rows["images"].astype(float))
    return derive(fitted, recounted, per_image)[0]
