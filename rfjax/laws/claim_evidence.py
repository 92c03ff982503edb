"""Gathers the evidence on which claims are tested: a table's runs, the fits, and the compute-optimal frontier.

Fits are those that `rfjax fit` and a study's report make. The frontier follows from the parametric law. It is derived
twice: once with the table's own FLOPs as C, and once with C = 6 N D, since some papers count C so.
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

SAME_TOKENS = 0.01  # if tokens per image differ over runs by more than this share, the runs differ in image size
WITNESS_RESAMPLES = 200  # for the parabolas; few suffice, since their interval is only compared with the law's
LAWS_TESTED = (SATURATING, POWER, PARAMETRIC)


@dataclass(frozen=True, kw_only=True)
class TokensPerImage:
    """The numbers of image tokens and of text tokens of an example.

    A number is None if the table does not give it, or if it differs between runs. If the number of image tokens is
    None, `reason` says why.
    """

    image: float | None = None
    text: float | None = None
    reason: str = ""

    @property
    def all(self) -> float | None:
        """The sum of an example's image and text tokens; None if either is unknown."""
        return None if self.image is None or self.text is None else self.image + self.text


@dataclass(frozen=True, kw_only=True, eq=False)
class Evidence:
    """Everything that the tests of `rfjax.laws.claims` may use.

    `points` has a row for each run, `curves` a row for each checkpoint. `lacking` names, for each law that was not
    fitted for want of columns, these columns. `results` and `settings` are a study's; for a foreign table they are
    None.
    """

    points: pd.DataFrame
    curves: pd.DataFrame
    fits: Mapping[str, Fit]
    rows: Mapping[str, pd.DataFrame]  # law -> the runs that it was fitted to
    lacking: Mapping[str, str]
    rules: Mapping[str, str] = field(default_factory=dict)  # law -> which runs it took; "checkpoints" -> which rows
    frontier: OptimalFrontier | None  # with the table's own FLOPs as C
    frontier_6nd: OptimalFrontier | None  # with C = 6 N D; D counts tokens if tokens per image are known, else images
    frontier_reason: str  # why there is no frontier, or ""
    parabolas: Line | None  # approach 2's line in the table's FLOPs; None if there is none or it has no interval
    parabolas_bias: float  # bias of that line's exponent, computed from the parametric law; 0 if it is unknown
    tokens: TokensPerImage
    options: FitOptions
    results: Results | None = None
    settings: Settings | None = None

    def lack(self, law: str) -> str:
        """Says why a law was not fitted (missing columns, or the reason of the fit's refusal); "" if it was fitted."""
        if law in self.lacking:
            return f"columns {self.lacking[law]}"
        return "" if self.fits[law].identifiable else f"a fit of the {law} law: {self.fits[law].reason}"

    @cached_property
    def levels(self) -> LevelExponents:
        """For each level of t, the exponent with which the loss at that level falls with compute. The exponents are
        fitted to the runs that the power law of compute takes."""
        return level_exponents(self.rows.get(POWER.name, self.points), self.options)

    @cached_property
    def collapse(self) -> Collapse:
        """The collapsed training curves. E is taken from the parametric law or, if that was not fitted, from the
        saturating law."""
        if not {"loss", "params", "images"} <= set(self.curves.columns) or self.curves["run"].is_unique:
            return Collapse(notes=(), reason="the table has none")
        name = self.floor_law
        if not name:
            return Collapse(notes=(), reason=f"the floor E is not known: {self.lack(PARAMETRIC.name)}")
        return collapse(self.points, self.curves, self.fits[name], self.frontier)

    @property
    def floor_law(self) -> str:
        """The name of the law whose E is used to normalise training curves: the parametric law, or else the saturating
        law; "" if neither was fitted."""
        return next((law.name for law in (PARAMETRIC, SATURATING) if not self.lack(law.name)), "")


def of_study(
    analysis: Analysis,
    curves: pd.DataFrame,
    results: Results,
    settings: Settings,
    options: FitOptions,
    tokens: float | None = None,
) -> Evidence:
    """Makes the evidence of a study. `analysis` has its fits, `curves` its checkpoints.

    `tokens` is the number of image tokens per image, for a table without the column `image_tokens`.
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
    """Fits a foreign table (`foreign_table.read_table`) and makes its evidence.

    A row is a run or a checkpoint; a run's last checkpoint is its end. `tokens` is the number of image tokens per
    image, for a table without the column `image_tokens`; give 1 if the column `images` counts tokens. Raises
    `ConfigError` if both the column `image_tokens` and `tokens` are given, or if `last_rows` cannot order a run's rows.
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
    """Selects each run's last checkpoint, by `images` or `flops`.

    Returns (these rows, note). The note says which rows were taken; it is "" if each run has one row. Raises
    `ConfigError` if two rows of a run cannot be ordered.
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
    """Returns the tokens per example. Numbers that the table lacks, or that differ between runs, are None."""
    if lacking := next((name for name in ("image_tokens", "images") if name not in points), ""):
        return TokensPerImage(reason=f"the table has no column {lacking}")
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
    """Returns the fields `parabolas` and `parabolas_bias` of `Evidence`, as a dictionary: approach 2's line and the
    bias of its exponent, or None and 0 if there is no line with an interval."""
    none = {"parabolas": None, "parabolas_bias": 0.0}
    if not {"flops", "params", "images"} <= set(points.columns):
        return none
    line = approach2(points, resamples=min(options.resamples, WITNESS_RESAMPLES), seed=options.seed)
    if line.a is None or line.a.low is None:
        return none
    return {"parabolas": line, "parabolas_bias": (line.bias or {}).get("exponent", 0.0)}


def _tokens(points, given):
    """Returns the tokens per example: the given number of image tokens, or else the table's numbers. Raises
    `ConfigError` if both are there."""
    found = tokens_per_image(points)
    if given is None:
        return found
    if found.image is not None:
        raise ConfigError("--tokens-per-image is given, and the table has a column image_tokens; leave one out")
    return TokensPerImage(image=given, reason="only image tokens are given")


def _recount(fitted, rows, tokens):
    """Derives the compute-optimal frontier of the fit `fitted` once more, with C = 6 N D in place of the table's FLOPs.

    D counts image and text tokens. If text tokens are unknown, D counts image tokens; if those are unknown too, it
    counts images.
    """
    per_image = 6.0 * (tokens.all or tokens.image or 1.0)
    recounted = rows.assign(flops=per_image * rows["params"].astype(float) * rows["images"].astype(float))
    return derive(fitted, recounted, per_image)[0]
