"""Fits a study's laws to its results table: chooses points and laws, and holds out the largest depth.

Each run is one point: its final checkpoint, at which the learning rate has been annealed. Intermediate
checkpoints are neither annealed nor independent of the final one, so laws are never fitted to them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float

from rfjax.config import DataConfig
from rfjax.errors import ConfigError
from rfjax.evaluation.sampler_name import SamplerName
from rfjax.laws.budgets import Allocation, allocate, measure_cost, undecided
from rfjax.laws.comparison import compare
from rfjax.laws.fitting import DEFAULTS, Fit, FitOptions, fit
from rfjax.laws.held_out_size import HeldOut, choose_headline, hold_out_largest
from rfjax.laws.laws import PARAMETRIC, POWER, SATURATING
from rfjax.laws.optimal_frontier import OptimalFrontier, derive
from rfjax.laws.profile_likelihood import Profile, profile, profiled_parameters
from rfjax.laws.run_frontier import OF_SWEEP, on_frontier
from rfjax.laws.trunks import are_shared, trunks_of, with_roots
from rfjax.limits import ROLES
from rfjax.results.many_runs import are_many
from rfjax.results.merge import wide_frame
from rfjax.results.plain import plain
from rfjax.results.results_folder import Results, rows_where
from rfjax.weight_names import is_trained

# Preferred if several settings cover equally many runs: the weights that samples are drawn with, the paper's grid.
PREFERENCES = {"weights": ("ema", "raw"), "grid": ("paper",)}
POSITIVE = ("loss", "flops", "params", "images")  # a point of a law needs these, above 0 and finite
PLANNED = 10.0  # the plan's budget, in units of the largest run's FLOPs


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The evaluation settings whose results fits and figures use. The sampler is "" and its seed None if the table has
    no evaluation that samples."""

    corpus: str
    weights: str
    grid: str
    grid_seed: int | None
    sampler: str
    sampler_seed: int | None


@dataclass(frozen=True, kw_only=True, eq=False)
class Analysis:
    """All fits of a study. `headline` names the law of compute that the report shows; "" if none was fitted."""

    points: pd.DataFrame  # one row per finished run, with `frontier` and `best_rate` (bool)
    headline: str
    headline_reason: str  # why it is not the saturating law, or ""
    fits: Mapping[str, Fit]
    held_out: HeldOut | None
    held_out_reason: str  # why there is none, or ""
    comparison: dict  # of all laws, from `compare`
    profiles: Mapping[str, Mapping[str, Profile]] = field(default_factory=dict)  # by law and parameter
    plan: Allocation | None = None  # for a budget of ten times the largest run's FLOPs
    plan_reason: str = ""  # why there is none, or ""
    optimal_frontier: OptimalFrontier | None = None  # of the parametric law
    optimal_frontier_reason: str = ""  # why there is none, or ""

    def to_json(self) -> dict:
        content = {name: value for name, value in vars(self).items() if name != "points"}
        runs, frontier = self.points["run"], self.points["frontier"]
        return plain(content | {"frontier_runs": runs[frontier].tolist(), "dominated_runs": runs[~frontier].tolist()})


SCORED_BY = ("geneval", "temporal")  # evaluations that sample; the first of which a study has records gives its sampler


def primary_settings(results: Results) -> Settings:
    """Chooses the evaluation settings that cover most finished runs.

    Raises `ConfigError` if no run has a validation loss.
    """
    losses = results.long[(results.long["metric"] == "loss") & (results.long["step"] >= 0)]
    losses = of_trained(losses)
    if losses.empty:
        raise ConfigError(f"the results table at {results.folder} has no validation loss; evaluate a run first")
    of_laws = counted(losses)
    losses = losses if of_laws.empty else of_laws  # a table of nothing but a sweep has no run that laws use
    losses = losses[losses["final"] == 1] if (losses["final"] == 1).any() else losses
    chosen = {}
    for column in ("corpus", "weights", "grid", "evaluation_seed"):
        chosen[column] = most_common(losses, column, PREFERENCES.get(column, ()))
        losses = losses[losses[column] == chosen[column]]
    grid_seed = chosen.pop("evaluation_seed")
    same = rows_where(results.long, corpus=chosen["corpus"], weights=chosen["weights"])
    found = (counted(rows_where(same, evaluation=evaluation)) for evaluation in SCORED_BY)
    scores = next((rows for rows in found if len(rows)), same[:0])
    sampler, seed = most_common_sampler(scores)
    return Settings(grid_seed=grid_seed, sampler=sampler, sampler_seed=seed, **chosen)


def checkpoints(results: Results, settings: Settings) -> pd.DataFrame:
    """Returns the rows of wide.csv at these settings: one per evaluated checkpoint, ordered by depth and FLOPs. The
    column `trunk` has the run's first trunk (`trunks.roots_of`), and `image_size` the side of its latents."""
    long = results.long
    with_loss = (long["grid"] == settings.grid) & (long["evaluation_seed"] == settings.grid_seed)
    with_score = (
        (long["sampler"] == settings.sampler) & (long["evaluation_seed"] == settings.sampler_seed)
        if settings.sampler
        else with_loss
    )
    of_model = (long["weights"] == settings.weights) & (long["corpus"] == settings.corpus)
    wide = wide_frame(long[of_model & (with_loss | with_score).fillna(False).astype(bool)])
    wide = with_roots(wide, results.runs)
    wide = wide.assign(image_size=wide["run"].map(image_sizes(results.runs)).astype(float))
    return wide.sort_values(["depth", "flops", "run", "step"], kind="stable", ignore_index=True)


def final_points(rows: pd.DataFrame) -> pd.DataFrame:
    """Returns one row for each finished run or branch whose loss, FLOPs, parameters and images are positive numbers,
    with the added columns `frontier` and `best_rate`. If the pictures of the runs have several sizes, only the runs of
    the size that most have are returned (`of_one_size`).

    `rfjax.laws.left_out` names the other finished runs.
    """
    return mark_points(of_one_size(usable_ends(counted(rows))))


def image_sizes(runs: pd.DataFrame) -> dict[str, int]:
    """Returns {run: side of its latents, in latent pixels} from the rows of runs.csv; without the runs whose settings
    are not known. Corpora that are drawn, such as shapes, have one name at every size."""
    known = runs[runs["settings"].notna() & (runs["settings"] != "")]
    default = DataConfig().image_size  # `settings` leaves it out
    return {
        run: json.loads(settings).get("data.image_size", default)
        for run, settings in zip(known["run"], known["settings"], strict=True)
    }


def of_one_size(rows: pd.DataFrame, like: pd.DataFrame | None = None) -> pd.DataFrame:
    """Returns the rows whose `image_size` is the one that most rows of `like` (default: `rows`) have, the smallest of
    several, and the rows of unknown size. The losses of two sizes are losses on different data."""
    if "image_size" not in rows:
        return rows
    common = (rows if like is None else like)["image_size"].mode()
    return rows[rows["image_size"].isna() | rows["image_size"].isin(common[:1])].reset_index(drop=True)


def usable_ends(rows: pd.DataFrame) -> pd.DataFrame:
    """Returns the rows of final checkpoints whose loss, FLOPs, parameters and images are positive numbers."""
    numbers = rows[list(POSITIVE)].astype(float).to_numpy()
    usable = (np.isfinite(numbers) & (numbers > 0)).all(axis=1)
    return rows[(rows["final"] == 1) & usable].reset_index(drop=True)


def counted(rows: pd.DataFrame) -> pd.DataFrame:
    """Returns the rows whose role (`limits.ROLES`) laws, correlations and rankings use: "run" and "branch"."""
    return rows[~rows["role"].isin([role for role, reason in ROLES.items() if reason])]


def of_trained(rows: pd.DataFrame) -> pd.DataFrame:
    """Returns the rows about weights that come from training. Averages made afterwards are in no law or ranking."""
    return rows[np.array([is_trained(weights) for weights in rows["weights"]], bool)]


def mark_points(points: pd.DataFrame) -> pd.DataFrame:
    """Adds the columns `frontier` and `best_rate`, judged among these points."""
    marks = pd.DataFrame({"frontier": on_frontier(points), "best_rate": at_best_rate(points)}, points.index)
    return pd.concat([points.drop(columns=list(marks), errors="ignore"), marks], axis=1)


def at_best_rate(points: pd.DataFrame) -> Bool[np.ndarray, " runs"]:
    """Whether each run has the best learning rate among the runs of its size and number of images that also agree in
    `OF_SWEEP`: the rate of the least mean loss over seeds. In a table without a column of rates this is true for all
    runs."""
    if "learning_rate" not in points:
        return np.ones(len(points), bool)
    keys = ["params", "images", *(name for name in OF_SWEEP if name in points)]
    mean = points.groupby([*keys, "learning_rate"], dropna=False)["loss"].transform("mean")
    best = mean.groupby([points[key] for key in keys], dropna=False).transform("min")
    return (mean == best).to_numpy(bool)


def mixed(points: pd.DataFrame) -> str:
    """Says in a sentence in what the points differ, among `OF_SWEEP`; "" if they agree. A law through such points
    describes none of the kinds alone."""
    kinds = {name: points[name].fillna("-").astype(str).unique() for name in OF_SWEEP if name in points}
    told = [f"{name} ({', '.join(sorted(values))})" for name, values in kinds.items() if len(values) > 1]
    return f"the fitted runs differ in {' and '.join(told)}, and one law goes through all of them" if told else ""


def pairs_of(results: Results, settings: Settings) -> pd.DataFrame:
    """The rows of pairs.csv at these settings: the covariances of the runs' final validation losses."""
    wanted = {name: getattr(settings, name) for name in ("weights", "corpus", "grid")}
    return rows_where(results.pairs, evaluation_seed=settings.grid_seed, **wanted)


def examples_covariance(pairs: pd.DataFrame | None, runs: Sequence[str]) -> Float[np.ndarray, "runs runs"] | None:
    """Returns the covariance matrix of these runs' mean losses; None if `pairs` has too few of the covariances.

    If there are many runs, pairs.csv has each run's variance, but its covariances only with a few runs, the anchors.
    The covariance of two runs that are not anchors is then computed from their covariances with the anchors (Nystroem's
    approximation). The variances are exact.
    """
    if pairs is None or not len(runs):
        return None
    matrix = _known_covariances(pairs, runs, runs)
    if not np.isnan(matrix).any():
        return matrix
    distinct = pairs["run"] != pairs["other_run"]
    if not are_many(pairs["run"].nunique()) or not distinct.any():
        return None
    anchors = pairs["other_run"][distinct].unique().tolist()
    within, across = _known_covariances(pairs, anchors, anchors), _known_covariances(pairs, runs, anchors)
    if np.isnan(within).any() or np.isnan(across).any() or np.isnan(matrix.diagonal()).any():
        return None
    explained = across @ np.linalg.pinv(within, hermitian=True) @ across.T
    own = np.maximum(matrix.diagonal() - explained.diagonal(), 0.0)
    return explained + np.diag(own)


def _known_covariances(pairs, runs, others):
    """Returns the covariances of the mean losses of `runs` (rows) with the mean losses of `others` (columns), from the
    rows of pairs.csv. A pair that pairs.csv lacks is NaN."""
    places, columns = ({run: place for place, run in enumerate(names)} for names in (runs, others))
    matrix = np.full((len(places), len(columns)), np.nan)
    for one, other in (("run", "other_run"), ("other_run", "run")):
        i, j = pairs[one].map(places), pairs[other].map(columns)
        there = (i.notna() & j.notna()).to_numpy()
        matrix[i[there].to_numpy(int), j[there].to_numpy(int)] = pairs["covariance"].to_numpy(float)[there]
    return matrix


def analyse(
    points: pd.DataFrame,
    options: FitOptions = DEFAULTS,
    *,
    pairs: pd.DataFrame | None = None,
    profiles: bool = False,
    **changes,
) -> Analysis:
    """Fits every law of the study to its `final_points`.

    Laws of compute are fitted to the runs on the compute frontier. Laws of parameters and images are fitted to the runs
    whose learning rate was the best of those tried (`best_rate`). The headline is the saturating law. If the points do
    not determine it, the headline is the pure power law, and the reason is kept. `pairs` (the rows of pairs.csv) adds
    standard errors over validation examples. `profiles` adds profile likelihoods of the laws of compute, unless runs
    share trunks. `changes` replace fields of `options`.
    """
    options = replace(options, **changes)

    def fitted(rows, law):
        return fit(rows, law, options, examples_covariance=examples_covariance(pairs, rows["run"].tolist()))

    frontier, best = points[points["frontier"]], points[points["best_rate"]]
    fits = {law.name: fitted(frontier, law) for law in (SATURATING, POWER)}
    fits[PARAMETRIC.name] = fitted(best, PARAMETRIC)
    headline, reason = choose_headline(fits[SATURATING.name], fits[POWER.name])
    held_out, held_out_reason = hold_out_largest(points, options)
    plan, plan_reason = _plan_budget(fits[PARAMETRIC.name], best)
    optimal, optimal_reason = derive(fits[PARAMETRIC.name], best)
    profiled = {
        name: {
            p: profile(fits[name], p, simulations=options.resamples, seed=options.seed)
            for p in profiled_parameters(fits[name].law)
        }
        for name in (SATURATING.name, POWER.name)
        if profiles and fits[name].identifiable and not are_shared(trunks_of(points))  # profiles need independent runs
    }
    return Analysis(
        points=points,
        headline=headline,
        headline_reason=reason,
        fits=fits,
        held_out=held_out,
        held_out_reason=held_out_reason,
        comparison=compare(fits),
        profiles=profiled,
        plan=plan,
        plan_reason=plan_reason,
        optimal_frontier=optimal,
        optimal_frontier_reason=optimal_reason,
    )


def _plan_budget(parametric, rows):
    """Divides a budget of ten times the largest run's FLOPs between parameters and images. Returns (the allocation,
    ""), or (None, the reason). The allocation's `fixed_images` is the largest number of images of any run."""
    if not parametric.identifiable:
        return None, f"the parametric law was not fitted: {parametric.reason}"
    open_ends = undecided(parametric)
    if open_ends:
        return None, f"the runs do not decide it: the interval of {' and '.join(open_ends)} reaches 0"
    largest = rows["images"].to_numpy(float).max()
    return allocate(parametric, PLANNED * float(rows["flops"].max()), measure_cost(rows), fixed_images=largest), ""


def most_common_sampler(scores: pd.DataFrame) -> tuple[str, int | None]:
    """Returns the sampler and the seed that most runs have in these rows of long.csv: in the rows of final checkpoints,
    if there are any. Without rows, returns ("", None)."""
    if scores.empty:
        return "", None
    scores = scores[scores["final"] == 1] if (scores["final"] == 1).any() else scores
    sampler = most_common(scores, "sampler")
    return sampler, most_common(scores[scores["sampler"] == sampler], "evaluation_seed")


def most_common(rows, column, preferences=()):
    """The column's value that most runs have. Ties go to the preferred value, then to the sampler with most images,
    then to the first in order."""
    counts = rows.groupby(column)["run"].nunique()

    def rank(value):
        preferred = next((i for i, start in enumerate(preferences) if str(value).startswith(start)), len(preferences))
        name = SamplerName.parse(str(value))
        images = np.prod(name.images) if name and name.images else 0
        return -counts[value], preferred, -images, value

    value = min(counts.index, key=rank)
    return int(value) if column == "evaluation_seed" else str(value)
