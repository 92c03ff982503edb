"""Reads the points of `rfjax fit` from a foreign table or from a results folder of rfjax."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from rfjax.console import printable
from rfjax.errors import ConfigError
from rfjax.laws import folder_scores, study_fits
from rfjax.laws.correlation import redrawn_scores
from rfjax.laws.fit_points import Exclusion, check, exclude
from rfjax.laws.laws import Law
from rfjax.laws.left_out import LeftOut, Role, left_out_by_role, left_out_runs, unfinished_runs
from rfjax.laws.run_frontier import ChosenRuns, choose_runs
from rfjax.laws.trunks import with_roots
from rfjax.limits import ROLES
from rfjax.results import foreign_table, merge, results_folder
from rfjax.results.columns import Measure
from rfjax.results.results_folder import rows_where


@dataclass(frozen=True, kw_only=True, eq=False)
class FitSource:
    """The points to fit. `final` has one row per run, `curves` one row per checkpoint. If a foreign table was read with
    `curves=True`, both hold all its rows. `study` is (results, settings) for a results folder, and None for a foreign
    table."""

    final: pd.DataFrame
    curves: pd.DataFrame
    description: dict  # the table and its runs, as the file of fits records them
    study: tuple | None = None
    folder_scores: tuple = ()  # of a study: the scores that `rfjax score` attached to its runs
    excluded: tuple[Exclusion, ...] = ()
    left_out: tuple[LeftOut, ...] = ()  # finished runs of a study that no fit uses, mostly for other settings
    by_role: tuple[Role, ...] = ()  # runs that are left out because of their role, such as trunks
    unfinished: tuple[dict, ...] = ()  # runs of a study that are not done, each with its state
    notes: tuple[str, ...] = ()  # how a foreign table was read, or the runs that the merge of a study left out

    @property
    def pairs(self) -> pd.DataFrame | None:
        """The rows of a study's pairs.csv, with the covariances of runs' mean losses over the validation examples that
        they share; None for a foreign table."""
        return None if self.study is None else study_fits.pairs_of(*self.study)

    def redraw_score(self, metric: str, rows: pd.DataFrame, *, resamples: int, seed: int):
        """Returns the score `metric` of the runs in `rows` under redraws of the prompts, [resamples, runs]. Returns
        None for a foreign table, for a metric that is no GenEval score, and without results by prompt."""
        if self.study is None:
            return None
        measure = Measure.parse(metric) or Measure("geneval", "geneval", metric)
        settings = {"geneval": self.study[1]} | {score.evaluation: score.settings for score in self.folder_scores}
        if measure.metric != "geneval" or measure.evaluation not in settings:
            return None
        evaluation = measure.evaluation
        redrawn = redrawn_scores(self.study[0].prompts, rows, settings[evaluation], resamples, seed, evaluation)
        return redrawn.get(measure.item)

    def choose_runs(self, law: Law) -> ChosenRuns:
        """Chooses the rows that a law is fitted to. A study's choice has no `rule`, because `chosen_line` states it
        once for all laws."""
        if self.study is None:
            return choose_runs(self.final, law)
        of_size = "params" in law.variables
        rows = self.final[self.final["best_rate" if of_size else "frontier"]]
        return ChosenRuns(rows=rows, on_frontier=not of_size)

    def rows_for(self, law: Law) -> pd.DataFrame:
        """Returns the rows that a law is fitted to."""
        return self.choose_runs(law).rows

    def left_out_lines(self) -> list[str]:
        """Says in lines which runs of the table no fit uses and why, and repeats the table's notes."""
        lines = list(map(str, (*self.left_out, *self.by_role)))
        if self.unfinished:
            named = ", ".join(f"{each['run']} ({each['state']})" for each in self.unfinished)
            lines.append(f"left out: not finished: {named}")
        return [*lines, *(f"note: {note}" for note in self.notes)]

    def chosen_line(self) -> str:
        """Says in words which runs of a study are fitted; "" for a foreign table."""
        if self.study is None:
            return ""
        on, best = (int(self.final[name].sum()) for name in ("frontier", "best_rate"))
        left = " that are left" if self.excluded else ""
        finished = len(self.final) + len(self.left_out) + sum(len(each.runs) for each in self.by_role)
        return (
            f"of {finished} finished runs{left}, laws of compute are fitted to the {on} on the frontier, "
            f"those of size and images to the {best} at the best rate of their size and images"
        )


def read_renames(words: Sequence[str]) -> dict[str, str]:
    """Reads the options `--rename OURS=THEIRS`. Returns {our name of a column: the file's name for it}. Raises
    `ConfigError` for a text of another form, and if one of our names is given twice."""
    rename: dict[str, str] = {}
    for word in words:
        ours, sign, theirs = word.partition("=")
        if not (ours and sign and theirs):
            raise ConfigError(f'--rename {word!r} must be OURS=THEIRS, as "params=Model Size"')
        if ours in rename:
            raise ConfigError(f"--rename gives {ours!r} twice, from {rename[ours]!r} and from {theirs!r}; give it once")
        rename[ours] = theirs
    return rename


def read_source(
    path: Path,
    *,
    rename: dict[str, str],
    flops_per_param_image: float | None,
    curves: bool,
    largest_losses: int,
    max_loss: float | None,
) -> FitSource:
    """Reads the points of a table or a results folder, without the outliers that `largest_losses` and `max_loss` name
    (`fit_points.exclude`). `curves` allows several rows per run.

    From a foreign table, single rows are dropped. From a study, whole runs are dropped by their final loss; the
    frontier and the best learning rates are those of the remaining runs.

    Raises `ConfigError` for a file that cannot be read, a loss that is not a positive number, and options that
    contradict each other.
    """
    folder = results_folder.find(path) if path.is_dir() else path
    if path.name in ("wide.csv", "long.csv") and (path.parent / "table.json").exists():
        folder = path.parent
    rules = {"largest_losses": largest_losses, "max_loss": max_loss}
    if not path.is_dir() and folder != path.parent:
        rows = foreign_table.read_table(path, rename=rename, flops_per_param_image=flops_per_param_image)
        description = {
            "table": path.name,
            "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
            "rows": len(rows),
            "renamed": rename,
            "flops_per_param_image": flops_per_param_image,
        }
        notes = tuple(rows.attrs.pop("notes"))
        description["notes"] = list(notes)
        if "role" in rows:
            rows = rows.assign(role=_roles(rows, path))
        by_role = tuple(left_out_by_role(rows)) if "role" in rows else ()
        description |= {"left_out_by_role": [vars(each) for each in by_role]} if by_role else {}
        rows = with_roots(rows, rows)
        rows = study_fits.counted(rows) if by_role else rows
        check(rows, ("loss",), one_row_per_run=not curves)
        rows, excluded = exclude(rows, **rules)
        left_out = {"excluded": excluded, "by_role": by_role}
        return FitSource(final=rows, curves=rows, description=description, notes=notes, **left_out)
    for option, value in (("--rename", rename or None), ("--flops-per-param-image", flops_per_param_image)):
        if value is not None:
            raise ConfigError(f"{option} is for tables of other sources; {folder} has its own columns")
    table = merge.up_to_date(
        path if path.is_dir() else folder,
        say=lambda line: print(printable(line), file=sys.stderr),
    )
    settings = study_fits.primary_settings(table)
    rows = study_fits.checkpoints(table, settings)
    final = points = study_fits.final_points(rows)
    scored = tuple(folder_scores.find(table, final, settings))
    for score in scored:  # from another corpus than the losses, so `final` lacks the score's columns
        final = score.points.assign(**{name: final[name] for name in final.columns if name not in score.points})
    rows = study_fits.of_one_size(study_fits.counted(rows[rows["loss"].notna()]), like=points)
    final, excluded = exclude(final, **rules)
    final = study_fits.mark_points(final.reset_index(drop=True))
    rows = rows[~rows["run"].astype(str).isin({exclusion.run for exclusion in excluded})]
    description = {
        "results": folder.name,
        "settings": vars(settings),
        "frontier_runs": final.loc[final["frontier"], "run"].tolist(),
        "best_rate_runs": final.loc[final["best_rate"], "run"].tolist(),
    }
    mixed = study_fits.mixed(final)
    notes = (*table.notes, mixed) if mixed else table.notes
    left_out, unfinished = tuple(left_out_runs(table, settings, points)), tuple(unfinished_runs(table, points))
    by_role = tuple(left_out_by_role(rows_where(table.runs, state="done")))
    description |= {
        "runs": len(table.runs),
        "fitted_runs": final["run"].tolist(),
        "left_out": [vars(each) for each in left_out],
        "left_out_by_role": [vars(each) for each in by_role],
        "unfinished": list(unfinished),
        "notes": list(notes),
    }
    study = {"study": (table, settings), "folder_scores": scored, "left_out": left_out}
    study |= {"by_role": by_role, "unfinished": unfinished, "notes": notes}
    return FitSource(final=final, curves=rows, description=description, excluded=excluded, **study)


def _roles(rows: pd.DataFrame, path: Path) -> list[str]:
    """Returns the column `role`, with `run` for an empty cell. Raises `ConfigError` for an unknown role."""
    roles = ["" if pd.isna(role) else str(role).strip().lower() for role in rows["role"]]
    for line, role in zip(rows.index, roles, strict=True):
        if role and role not in ROLES:
            where = f"role in {rows.index.name} {line} of {path} is {role!r}"
            raise ConfigError(f"{where}; it must be {', '.join(ROLES)}, or name the column otherwise")
    return [role or "run" for role in roles]
