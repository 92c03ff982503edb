"""Where the points of `rfjax fit` come from: anybody's table, or a results folder of ours."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd

from rfjax.errors import ConfigError
from rfjax.laws import folder_scores, study_fits
from rfjax.laws.correlation import redrawn_scores
from rfjax.laws.fit_points import Exclusion, check, exclude
from rfjax.laws.laws import Law
from rfjax.results import foreign_table, results_folder


@dataclass(frozen=True, kw_only=True, eq=False)
class FitSource:
    """`final` has one row per run, `curves` every checkpoint; `study` is (results, settings) of ours."""

    final: pd.DataFrame
    curves: pd.DataFrame
    described: dict  # for the record of the fits
    study: tuple | None = None
    folder_scores: tuple = ()  # of a study: what `rfjax score` attached to its runs
    excluded: tuple[Exclusion, ...] = field(default=())

    @property
    def pairs(self) -> pd.DataFrame | None:
        """Covariances of the runs' losses over the examples they share; None for another's table."""
        return None if self.study is None else study_fits.pairs_of(*self.study)

    def redrawn(self, metric: str, rows: pd.DataFrame, *, resamples: int, seed: int):
        """A score [resamples, runs] under redraws of its prompts, which only our results keep; None without."""
        if self.study is None:
            return None
        for score in self.folder_scores:
            if metric.startswith(f"{score.evaluation}_"):
                own = redrawn_scores(self.study[0].prompts, rows, score.settings, resamples, seed, score.evaluation)
                return own.get(metric.removeprefix(f"{score.evaluation}_"))
        return redrawn_scores(self.study[0].prompts, rows, self.study[1], resamples, seed).get(
            metric.removeprefix("geneval_")
        )

    def of(self, law: Law) -> pd.DataFrame:
        """The rows that a law is fitted to: a study's compute laws follow its frontier."""
        if self.study is None:
            return self.final
        return self.final[self.final["best_rate" if "params" in law.variables else "frontier"]]

    def chosen_line(self) -> str:
        """What of a study is fitted, in words; "" for another's table."""
        if self.study is None:
            return ""
        on, best = (int(self.final[name].sum()) for name in ("frontier", "best_rate"))
        return (
            f"of {len(self.final)} finished runs{' that are left' if self.excluded else ''}, laws of compute are "
            f"fitted to the {on} on "
            f"the frontier, those of size and images to the {best} at the best rate of their size and images"
        )


def read_source(
    path: Path,
    *,
    rename: dict[str, str],
    flops_per_param_image: float | None,
    curves: bool,
    largest_losses: int,
    max_loss: float | None,
) -> FitSource:
    """The points of a table or folder, without outliers by rule. `curves`: several rows a run are wanted.

    Of another's curves single rows are left out, of a study whole runs, by their final loss; its
    frontier and best rates are then those of the runs that are left.

    Raises `ConfigError` for what cannot be read or is no loss, and for options that do not go together.
    """
    folder = results_folder.find(path) if path.is_dir() else path
    if path.name in ("wide.csv", "long.csv") and (path.parent / "table.json").exists():
        folder = path.parent
    rules = {"largest_losses": largest_losses, "max_loss": max_loss} if largest_losses or max_loss is not None else {}
    if not path.is_dir() and folder != path.parent:
        rows = foreign_table.read_table(path, rename=rename, flops_per_param_image=flops_per_param_image)
        described = {
            "table": path.name,
            "sha256": foreign_table.sha256(path),
            "rows": len(rows),
            "renamed": rename,
            "flops_per_param_image": flops_per_param_image,
        }
        check(rows, ("loss",), one_row_per_run=not curves)
        rows, excluded = exclude(rows, **rules) if rules else (rows, ())
        return FitSource(final=rows, curves=rows, described=described | _recorded(excluded), excluded=excluded)
    given = [
        name for name, value in (("--rename", rename), ("--flops-per-param-image", flops_per_param_image)) if value
    ]
    if given:
        raise ConfigError(f"{given[0]} is for tables of other sources; {folder} has its own columns")
    table = results_folder.read(folder)
    settings = study_fits.primary_settings(table)
    rows = study_fits.checkpoints(table, settings)
    final, excluded = study_fits.final_points(rows), ()
    scored = tuple(folder_scores.find(table, final, settings))
    for score in scored:  # under another corpus than the loss, so not among its columns yet
        final = score.points.assign(**{name: final[name] for name in final.columns if name not in score.points})
    rows = rows[rows["loss"].notna()]
    if rules:
        final, excluded = exclude(final, **rules)
        final = study_fits.marked(final.reset_index(drop=True))
        rows = rows[~rows["run"].astype(str).isin({one.run for one in excluded})]
    described = {
        "results": folder.name,
        "settings": vars(settings),
        "frontier_runs": final.loc[final["frontier"], "run"].tolist(),
        "best_rate_runs": final.loc[final["best_rate"], "run"].tolist(),
    }
    return FitSource(
        final=final,
        curves=rows,
        described=described | _recorded(excluded),
        study=(table, settings),
        folder_scores=scored,
        excluded=excluded,
    )


def _recorded(excluded):
    return {"excluded": [vars(one) for one in excluded]} if excluded else {}
