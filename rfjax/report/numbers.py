"""Computes every number of the report from the results table and, for tuned runs, from changes that the caller gives.

`report_numbers` returns the whole content of report.json. The figures and the page are made from these numbers; only
the pictures of the sample sheets are read from the results folder.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import pandas as pd
from scipy import stats

from rfjax.errors import ConfigError
from rfjax.evaluation.records import LAG
from rfjax.laws import claim_evidence, claims, study_fits
from rfjax.laws.fitting import FitOptions
from rfjax.laws.left_out import left_out_by_role, left_out_runs, scoreless_runs
from rfjax.laws.optimal_frontier import BEYOND
from rfjax.laws.step_efficiency import EVALUATION as STEPS_EVALUATION
from rfjax.laws.step_efficiency import step_counts
from rfjax.laws.study_fits import Analysis
from rfjax.laws.tuned import NONE_TUNED, Change
from rfjax.ranking.summary import ranking_numbers
from rfjax.report import preference_numbers, rates, scores, temporal_scores
from rfjax.report.average_widths import average_widths
from rfjax.report.sweep_points import in_no_sweep, lost_runs, sweep_points
from rfjax.report.tuned_section import tuned_numbers
from rfjax.results.columns import FILES, loss_levels, score_column
from rfjax.results.plain import plain
from rfjax.results.results_folder import Results, rows_where
from rfjax.weight_names import is_trained

# A run's batches differ in size if its FLOPs per step differ from flops_per_image * batch_size by more than this
# fraction.
BATCHES_DIFFER = 0.02
VALIDATED = ["step", "flops", "loss", "loss_stderr", "final"]  # what a run's curve has of each validation
REPORT_SCHEMA = 6
BAND_POINTS = 121
BAND_MARGIN = 1.6  # the law is drawn from the least compute over this factor to the most compute times this factor
# Columns of the results table that the report copies.
ENVIRONMENT_COLUMNS = (
    "train_corpus corpus_fingerprint formulation schedule platform device_kind devices processes jax_version code_hash"
).split()
RUN_COLUMNS = (
    "depth hidden heads params seed learning_rate batch_size steps flops_per_image train_seconds evaluation_seconds "
    "state last_step message parent_run parent_step role trunk trunk_step spent_flops spent_seconds"
).split()


def report_numbers(
    results: Results, *, resamples: int = 1000, seed: int = 0, tuned: Mapping[str, Sequence[Change]] = NONE_TUNED
) -> dict:
    """Computes the report's numbers as plain values, ready for JSON: no NaN, no arrays. `tuned` maps each method of
    tuning to the measures of the study's runs before and after tuning.

    Raises `ConfigError` if the table has no run, no run with a validation loss, or none but tuned runs.
    """
    if results.runs.empty:
        raise ConfigError(f"the results table at {results.folder} has no runs; train a point first")
    if set(results.runs["role"]) == {"tuned"}:
        raise ConfigError(
            f"all runs of the results table at {results.folder} are tuned, and no law takes them; name the folder of "
            "the study that was tuned, and this one with --tuned"
        )
    folder, ids = results.folder, results.runs["run"]
    results = _with_short_names(results)
    ids = dict(zip(results.runs["run"], ids, strict=True))
    settings = study_fits.primary_settings(results)
    rows = study_fits.checkpoints(results, settings)
    points = study_fits.final_points(rows)
    pairs = study_fits.pairs_of(results, settings)
    steps = step_counts(results.long, results.prompts, weights=settings.weights, seed=seed)
    validation = _lists_by_run(rows[rows["loss"].notna()].sort_values("step", kind="stable"), VALIDATED)
    sheets, playing = (_samples(results, settings, points, validation, clips=clips) for clips in (False, True))
    clips = temporal_scores.temporal(results, points, settings, resamples=2 * resamples, seed=seed)
    options = FitOptions(resamples=resamples, seed=seed)
    swept = sweep_points(rows, results, settings)
    alone = points.empty and not swept.empty  # a study that does nothing but sweep has no points of laws
    analysis = None if alone else study_fits.analyse(points, options, pairs=pairs, profiles=True)
    ends = _final_checkpoints(results, rows, swept if alone else points, settings)
    runs = _runs(results.runs, ends, ids)
    ranking = ranking_numbers(results, seed=seed)
    compares = "rates" if alone else "variants" if ranking and points["depth"].nunique() < 2 else "sizes"
    learning_rates = rates.learning_rates(points, swept, results.runs, lost_runs(results, settings))
    in_sweeps = {run["run"] for sweep in learning_rates for run in sweep["runs"]}
    in_sweeps |= {run for sweep in learning_rates for each in sweep["diverged"] for run in each["diverged"]}
    return plain(
        {
            "schema": REPORT_SCHEMA,
            "table_sha256": hashlib.sha256((folder / "table.json").read_bytes()).hexdigest(),
            "study": ", ".join(name for name in results.runs["study"].unique() if name),
            "compares": compares,
            "settings": settings,
            "environment": _environment(results.runs),
            "totals": _totals(results.runs, runs),
            "runs": runs,
            "depths": _depths(points),
            "trends": _trends(points),
            "analysis": analysis,
            "band": None if alone else _band(analysis),
            "optimal_band": None if alone else _optimal_band(analysis),
            "curves": _curves(results, validation),
            "levels": _levels(points, settings),
            "geneval": scores.geneval(results, points, settings),
            "correlation": scores.correlations(results, points, settings, resamples=2 * resamples, seed=seed),
            "folder_scores": scores.folder_correlations(results, points, settings, resamples=2 * resamples, seed=seed),
            "score_levels": scores.score_levels(results, points, settings, resamples=resamples, seed=seed),
            "sampling_steps": steps,
            "ranking": ranking,
            "claims": _claims(analysis, rows, results, settings, options) if compares == "sizes" else None,
            "learning_rates": learning_rates,
            "rate_agreement": rates.agreement(learning_rates),
            "average_widths": average_widths(
                results, rows_where(swept, corpus=settings.corpus) if alone else points, settings
            ),
            "other_settings": _other_settings(results, ends),
            "temporal": clips,
            "preference": preference_numbers.preference(results, points, settings, resamples=2 * resamples, seed=seed),
            "tuned": tuned_numbers(tuned),
            "samples": sheets,
            "samples_of_clips": playing,
            "gallery": _gallery(results.runs, playing),
            "failures": [run for run in runs if run["state"] in ("failed", "diverged")],
            "unfinished": [run for run in runs if run["state"] not in ("done", "failed", "diverged")],
            "left_out": [vars(each) for each in left_out_runs(results, settings, points)],
            "left_out_by_role": [vars(each) for each in left_out_by_role(rows_where(results.runs, state="done"))],
            "in_no_sweep": [vars(each) for each in in_no_sweep(results, settings, swept, in_sweeps)],
            "without_score": [vars(each) for each in scoreless_runs(results, settings, points, score_column())],
            "not_shown": _not_shown(results, points, (sheets, playing), steps, clips, settings),
            "lagging_averages": _lagging_averages(results),
            "notes": results.notes,
        }
    )


def _claims(analysis, rows, results, settings, options):
    """Returns the claims of published laws with their verdicts on a study that compares sizes."""
    curves = study_fits.counted(rows[rows["loss"].notna()])
    return claims.board(claim_evidence.of_study(analysis, curves, results, settings, options))


def _with_short_names(results):
    """Renames each run to its point, and trunks and branches to their folder, also where the column `trunk` names them.
    If two runs would share a name, also with a trunk that is not in the table, the table stays as it is."""
    runs = results.runs
    points = runs["point"].where(runs["point"] != "", runs["run"])
    points = points.where(~runs["role"].isin(["trunk", "branch"]), runs["run"].str.rsplit("/", n=1).str[-1])
    gone = set(runs["trunk"].dropna()) - set(runs["run"])
    if not points.is_unique or gone & set(points):
        return results
    shown = dict(zip(runs["run"], points, strict=True))

    def rename(frame, *columns):
        there = {name: frame[name] for name in columns if name in frame}
        return frame.assign(**{name: values.map(lambda run: shown.get(run, run)) for name, values in there.items()})

    samples = tuple(replace(sheet, run=shown.get(sheet.run, sheet.run)) for sheet in results.samples)
    frames = {file.removesuffix(".csv"): rename(results.frame(file), "run", "trunk") for file in FILES}
    return replace(results, **frames | {"pairs": rename(frames["pairs"], "other_run")}, samples=samples)


def _final_checkpoints(results, rows, points, settings):
    """Returns one row for each run, its final checkpoint: the rows of `points`, which are measured on the primary
    corpus and have one size of pictures, and a row for each other run, on other corpora or of other sizes. `rows` are
    the checkpoints measured on the primary corpus."""
    corpora = rows_where(results.long, metric="loss", final=1)["corpus"].unique()
    others = (replace(settings, corpus=corpus) for corpus in corpora if corpus != settings.corpus)
    parts = [points] + [study_fits.final_points(study_fits.checkpoints(results, other)) for other in others]
    own = study_fits.usable_ends(study_fits.counted(rows))
    parts.append(study_fits.mark_points(own[~own["run"].isin(points["run"])]))  # runs on pictures of another size
    return pd.concat([part for part in parts if len(part)] or parts, ignore_index=True).drop_duplicates("run")


def _environment(runs):
    """Lists what the runs were made with: the distinct devices, versions of libraries and hashes of code, and the
    corpora whose content changed between runs."""
    # A seed draws training data of its own, or its own order and captions, so only runs of one seed are compared.
    versions = runs.groupby(["train_corpus", "seed"])["corpus_fingerprint"].nunique().groupby(level=0).max()
    distinct = {name: [v for v in runs[name].dropna().unique().tolist() if v != ""] for name in ENVIRONMENT_COLUMNS}
    return distinct | {"corpora_that_changed": versions[versions > 1].to_dict()}


def _lagging_averages(results):
    """Returns a row for each run whose average lags behind the raw weights.

    At the last step and under the same settings, the average's validation loss exceeds that of the raw weights by more
    than the share `LAG`.
    """
    rows = rows_where(results.long, evaluation="validation", metric="loss", item="mean", final=1)
    settings = [name for name in ("run", "corpus", "sampler", "grid", "evaluation_seed") if name in rows]
    both = rows_where(rows, weights="ema").merge(rows_where(rows, weights="raw"), on=settings, suffixes=("", "_raw"))
    far = both[both["value"] > (1 + LAG) * both["value_raw"]].drop_duplicates("run")
    return [{"run": row["run"], "ema": row["value"], "raw": row["value_raw"]} for row in far.to_dict("records")]


def _totals(table, runs):
    return {
        "runs": len(runs),
        "finished": sum(run["loss"] is not None or run["state"] == "done" for run in runs),
        "flops": float(sum(run["flops"] for run in runs if run["flops"] is not None)),
        **{name: float(table[name].sum()) for name in ("train_seconds", "evaluation_seconds")},
        **{name: float(table[name].sum()) for name in ("spent_flops", "spent_seconds")},
    }


def _runs(table, ends, ids):
    """Returns one row per run, failed runs included. Loss and score are None for a run without a final checkpoint."""
    final = ends.set_index("run")
    rows = []
    for run in table.sort_values(["depth", "flops_per_image", "steps", "run"], kind="stable").to_dict("records"):
        end = final.loc[run["run"]] if run["run"] in final.index else {}
        rows.append(
            {"run": run["run"], "id": ids[run["run"]]}
            | {name: run[name] for name in RUN_COLUMNS}
            | {"corpus": run["train_corpus"]}
            | {name: end.get(name) for name in ("images", "flops", "frontier", "best_rate")}
            | scores.statistics(end, "loss")
            | scores.statistics(end, score_column(), "score")
        )
    # By compute within a depth; runs without a final checkpoint come last.
    return sorted(rows, key=lambda r: (_value_or(r["depth"], math.inf), _value_or(r["flops"], math.inf), r["run"]))


def _depths(points):
    """Returns a row for each depth: the run of lowest loss at this depth."""
    rows = []
    for _, group in points.groupby("depth"):
        best = group.loc[group["loss"].idxmin()]
        rows.append(
            {name: best[name] for name in ("depth", "run", "params", "flops")}
            | scores.statistics(best, "loss")
            | scores.statistics(best, score_column(), "score")
        )
    return rows


def _trends(points):
    """Computes Spearman's rank correlations of depth with loss and of depth with score, over all final checkpoints and
    over the runs of lowest loss at each depth. None stands for a correlation that is not defined."""
    trends = {}
    for name, column in (("loss", "loss"), ("score", score_column())):
        have = points[points[column].notna()] if column in points else points[:0]
        enough = len(have) >= 2 and have["depth"].nunique() > 1 and have[column].nunique() > 1
        best = have.loc[have.groupby("depth")["loss"].idxmin()] if enough else have
        trends[name] = {
            "n": len(have),
            "all_runs": float(stats.spearmanr(have["depth"].astype(float), have[column])[0]) if enough else None,
            "best_per_depth": float(stats.spearmanr(best["depth"].astype(float), best[column])[0]) if enough else None,
        }
    return trends


def _band(analysis: Analysis):
    """Returns the headline law and, under `held_out`, the law of compute fitted without the largest depth, each with
    intervals over a range of compute. Returns None if there is no headline."""
    if not analysis.headline:
        return None
    flops = analysis.points["flops"].to_numpy(float)
    grid = {"flops": np.geomspace(flops.min() / BAND_MARGIN, flops.max() * BAND_MARGIN, BAND_POINTS)}
    band = grid | {"law": analysis.fits[analysis.headline].bands(grid)}
    return band | ({"held_out": analysis.held_out.fit.bands(grid)} if analysis.held_out else {})


def _optimal_band(analysis: Analysis):
    """Returns the compute-optimal frontier and its intervals, from the least compute of a run divided by `BAND_MARGIN`
    to the most compute times `BEYOND`. Returns None if there is no frontier."""
    frontier = analysis.optimal_frontier
    if frontier is None:
        return None
    least, most = frontier.flops
    flops = np.geomspace(least / BAND_MARGIN, BEYOND * most, BAND_POINTS)
    return {"flops": flops, **frontier.bands(flops)}


def _curves(results, validation_by_run):
    """Returns each run's training and validation loss against steps and FLOPs."""
    curves = []
    train_by_run = _lists_by_run(results.curves, ["step", "train_loss"])
    for run in results.runs.sort_values(["depth", "steps", "run"], kind="stable").to_dict("records"):
        train, validation = (by_run.get(run["run"]) for by_run in (train_by_run, validation_by_run))
        if pd.isna(run["depth"]) or (train is None and validation is None):
            continue
        train = train or {"step": [], "train_loss": []}
        flops = _flops_at(run, np.array(train["step"], float), validation)
        training = {"step": train["step"], "flops": flops, "loss": train["train_loss"]}
        losses = {"train": training, "validation": validation or {name: [] for name in VALIDATED}}
        curves.append({"run": run["run"], "depth": run["depth"], **losses})
    return curves


def _lists_by_run(frame, columns):
    """Returns {run: {column: the column's values in the run's rows, in order}}."""
    found: dict[str, dict[str, list]] = {}
    for run, *values in zip(frame["run"], *(frame[name].tolist() for name in columns), strict=True):
        lists = found.setdefault(run, {name: [] for name in columns})
        for name, value in zip(columns, values, strict=True):
            lists[name].append(value)
    return found


def _flops_at(run, steps, validation):
    """Returns a run's training FLOPs at the given steps, including its parent's FLOPs.

    If batches differ in size (`train.tokens_per_batch`), every step counts as the mean step up to the last validation.
    """
    parent = _value_or(run["parent_flops"], 0.0)
    per_step = float(run["flops_per_image"]) * float(_value_or(run["batch_size"], math.nan))
    if validation and validation["step"][-1]:
        measured = (validation["flops"][-1] - parent) / validation["step"][-1]
        per_step = measured if abs(measured - per_step) > BATCHES_DIFFER * per_step else per_step
    return parent + steps * per_step


def _levels(points, settings):
    """Returns each finished run's losses at the levels of t, and which levels enter the mean."""
    levels = sorted((float(t), column) for t, column in loss_levels(points.columns).items())
    # The paper's grid leaves t = 1 out of its mean; the other grids have no such level.
    return {
        "t": [t for t, _ in levels],
        "averaged": [not (settings.grid.startswith("paper") and t == 1.0) for t, _ in levels],
        "runs": [
            {name: row[name] for name in ("run", "depth", "flops", "frontier")}
            | {"loss": [row[c] for _, c in levels], "stderr": [row[f"{c}_stderr"] for _, c in levels]}
            for row in points.to_dict("records")
        ],
    }


def _other_settings(results, ends):
    """Returns the final losses of the runs under every combination of weights, grid and validation seed that the table
    has, except for averages made after training, which have a section of their own."""
    rows = rows_where(results.long, metric="loss", item="mean", final=1)
    of_points = ends.set_index("run")["corpus"]  # a run that is no point: the first corpus it was evaluated on
    rows = rows[
        rows["corpus"] == rows["run"].map(rows.groupby("run")["corpus"].first().to_dict() | of_points.to_dict())
    ]
    return [
        {"weights": weights, "grid": grid, "seed": seed, "losses": dict(zip(kind["run"], kind["value"], strict=True))}
        for (grid, weights, seed), kind in rows.groupby(["grid", "weights", "evaluation_seed"])
        if is_trained(weights)
    ]


def _not_shown(results, points, shown, steps, temporal, settings):
    """Returns rows (section, runs, reason) on runs that the page omits although they have sample sheets, scores at
    several numbers of sampling steps, or scores of clips."""
    stills, playing = (
        {sheet.run for sheet in results.samples if bool(sheet.webp) == clips} - {row["run"] for row in group["rows"]}
        for group, clips in zip(shown, (False, True), strict=True)
    )
    stepped = set(rows_where(results.long, evaluation=STEPS_EVALUATION)["run"]) - {one.run for one in steps}
    moving = set(rows_where(results.long, evaluation=temporal_scores.METRIC)["run"]) & set(points["run"])
    moving -= {row["run"] for row in temporal["runs"]} if temporal else set()
    of_most = "the prompts, sampler, seed and weights of the most runs"
    found = (
        ("samples", stills, f"no sheet of theirs has {of_most}"),
        ("samples of clips", playing, f"no clips of theirs have {of_most}"),
        ("sampling steps", stepped, f"their final checkpoint was not measured with {settings.weights} weights"),
        ("motion", moving, f"the clips of their final checkpoint were not scored with {of_most}"),
    )
    return [{"section": name, "runs": sorted(runs), "reason": why} for name, runs, why in found if runs]


def _samples(results, settings, points, validation_by_run, *, clips):
    """Returns the largest group of sample sheets, of stills or of clips, that share prompts, sampler and noise, in
    order of compute."""
    facts = results.runs.set_index("run")
    sheets = [s for s in results.samples if s.weights == settings.weights and bool(s.webp) == clips]
    groups: dict[tuple, list] = {}
    for sheet in (sheet for sheet in sheets if sheet.run in facts.index):
        groups.setdefault((sheet.prompts, sheet.sampler, sheet.seed), []).append(sheet)
    if not groups:
        return {"prompts": [], "rows": []}
    prompts, chosen = max(groups.items(), key=lambda group: len(group[1]))
    best = {row["run"] for row in _depths(points)}
    rows = []
    for sheet in chosen:
        run = facts.loc[sheet.run]
        final = sheet.step == run["steps"]
        row = {"run": sheet.run, "depth": run["depth"], "step": sheet.step, "final": final}
        flops = _flops_at(run, sheet.step, validation_by_run.get(sheet.run))
        row |= {"best_of_depth": sheet.run in best and final, "flops": flops}
        rows.append(row | {"png": sheet.png, "tile": sheet.tile} | ({"webp": sheet.webp} if sheet.webp else {}))
    rows.sort(key=lambda row: (_value_or(row["flops"], math.inf), row["run"]))
    return {"prompts": list(prompts[0]), "sampler": prompts[1], "seed": prompts[2], "rows": rows}


def _gallery(runs, sheets):
    """Returns sample sheets of one size at several multiples of compute, from branches of one trunk or runs of one
    seed."""
    sizes = {run["run"]: (run["trunk"] or "", run["depth"], run["seed"]) for run in runs.to_dict("records")}
    return temporal_scores.gallery(sheets["rows"], sizes)


def _value_or(value, default):
    return default if value is None or pd.isna(value) else value
