"""Joins the scores that `rfjax score` attached to runs with the runs' validation losses.

The prompts of these scores are not from the training corpus. So the table gives the scores another corpus than the
losses, and the two are joined by run and step. Protocols are kept apart, because scores by different detectors cannot
be compared.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import pandas as pd

from rfjax.laws import study_fits
from rfjax.laws.study_fits import Settings
from rfjax.results.columns import STATISTICS, Measure, measure_columns, protocols
from rfjax.results.results_folder import Results, rows_where

PREFERRED = {"corpus": ("geneval",)}  # official prompts; taken if several corpora cover equally many runs


@dataclass(frozen=True, kw_only=True, eq=False)
class FolderScore:
    """The scores of one protocol (detector, prompts and options) at final checkpoints. `points` has a row for each
    finished run of the study, with columns for these scores and their statistics. These columns are empty for a run
    without a score under `settings`."""

    evaluation: str
    metric: str
    title: str
    settings: Settings  # with the corpus, sampler and seed of the images
    points: pd.DataFrame
    items: tuple[str, ...]
    others: tuple[str, ...]  # runs scored only under other settings or at other steps

    @property
    def scored(self) -> pd.DataFrame:
        """The points that have the overall score."""
        return self.points[self.points[self.column("overall")].notna()]

    def column(self, item: str) -> str:
        return Measure(self.evaluation, self.metric, item).format()


def find(results: Results, points: pd.DataFrame, settings: Settings) -> list[FolderScore]:
    """Finds each protocol's scores of final checkpoints, under the settings that cover most runs."""
    found = []
    for evaluation, (metric, title) in protocols(results.long["evaluation"].unique()).items():
        long = rows_where(results.long, evaluation=evaluation, metric=metric)
        every = [run for run in points["run"] if run in set(long["run"])]  # scored under any settings, at any step
        rows = rows_where(long, weights=settings.weights).merge(points[["run", "step"]], on=["run", "step"])
        if not (rows["item"] == "overall").any():
            continue
        chosen = {}
        for column in ("corpus", "sampler", "evaluation_seed"):
            chosen[column] = study_fits.most_common(rows, column, PREFERRED.get(column, ()))
            rows = rows[rows[column] == chosen[column]]
        measures = {name: Measure.parse(name) for name in points.columns}
        own = [name for name, measure in measures.items() if measure and measure.evaluation == evaluation]
        wide = {
            Measure(evaluation, metric, item).format() + suffix: of.set_index("run")[statistic]
            for item, of in rows.groupby("item", sort=False)
            for statistic, suffix in STATISTICS
        }
        kept = points.drop(columns=[c.name for name in own for c in measure_columns(name)], errors="ignore")
        scores = pd.DataFrame({name: kept["run"].map(values) for name, values in wide.items()}, kept.index)
        score = FolderScore(
            evaluation=evaluation,
            metric=metric,
            title=title,
            settings=replace(settings, sampler_seed=chosen.pop("evaluation_seed"), **chosen),
            points=pd.concat([kept, scores], axis=1),
            items=tuple(rows["item"].drop_duplicates()),
            others=tuple(run for run in every if run not in set(rows["run"])),
        )
        found.append(score)
    return found


def missing_prompts(prompts: pd.DataFrame, score: FolderScore) -> str:
    """Returns the reason why `correlation.redrawn_scores` returned no scores under redraws of the prompts."""
    own = prompts[prompts["evaluation"] == score.evaluation]
    lacking = [run for run in score.scored["run"] if run not in set(own["run"])]
    if lacking:
        return (
            f"prompts.csv has no results by prompt of {', '.join(map(str, lacking))}, so intervals are over runs "
            "alone; score their images again with rfjax score"
        )
    return "the runs were not scored on the same prompts, so intervals are over runs alone"
