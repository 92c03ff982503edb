"""Writes the report of a results folder: one HTML page, its figures, and a JSON of every number.

<out>/index.html        self-contained: no request leaves it
<out>/report.json       `rfjax.report.numbers`
<out>/figures/*.{svg,png}
<out>/tables/*.{csv,tex} `rfjax.ranking.tables`, of a study that ranks variants
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from rfjax.console import printable
from rfjax.files import write_whole
from rfjax.inputs.paths import local_path
from rfjax.laws.tuned import NONE_TUNED, Change
from rfjax.outputs import check_output_folder, is_json_with
from rfjax.ranking.tables import ranking_files
from rfjax.report import fit_facts, page, rates
from rfjax.report.axes import to_bytes
from rfjax.report.crowds import ROWS, shown_of, shown_sheets, spread
from rfjax.report.findings import warnings
from rfjax.report.formats import columns, count, estimate, loss, power, score
from rfjax.report.numbers import report_numbers
from rfjax.report.ranking_section import ranking_lines
from rfjax.report.sections import FIGURES
from rfjax.report.temporal_section import temporal_lines
from rfjax.report.tuned_section import tuned_lines
from rfjax.results import results_folder as results


def write_report(
    results_folder: str | Path,
    out: str | Path,
    *,
    resamples: int = 1000,
    seed: int = 0,
    tuned: Mapping[str, Sequence[Change]] = NONE_TUNED,
) -> dict:
    """Writes the report of a results folder into `out`, whole or not at all, and returns its numbers.

    `tuned` maps each method of tuning to the measures of the study's runs before and after tuning.
    `resamples` and `seed` are those of the fits' bootstraps; they affect the last digits of intervals.
    Raises `ConfigError` if the table is damaged (naming the file and the remedy) or has nothing to
    show, and `RfjaxError` if writing fails.
    """
    out = local_path(out, "the report's folder")
    check_report_folder(out)
    table = results.read(results_folder)
    numbers = report_numbers(table, resamples=resamples, seed=seed, tuned=tuned)
    drawn = page.draw(numbers)
    svgs = {name: to_bytes(figure, "svg") for name, figure in drawn.items()}
    shown = [*shown_sheets(numbers), *numbers["gallery"]]
    pictures = {row[kind] for row in shown for kind in ("png", "webp") if row.get(kind)}
    sheets = {name: (table.folder / name).read_bytes() for name in sorted(pictures)}
    contents: dict[Path, str | bytes] = {
        # First, because it identifies the folder.
        out / "report.json": json.dumps(numbers, indent=1, allow_nan=False) + "\n",
        out / "index.html": page.render(numbers, svgs, sheets),
    }
    for name, figure in drawn.items():
        contents[out / "figures" / f"{name}.svg"] = svgs[name]
        contents[out / "figures" / f"{name}.png"] = to_bytes(figure, "png")
    if numbers["ranking"]:
        contents |= {out / "tables" / name: content for name, content in ranking_files(numbers["ranking"]).items()}
    write_whole(contents)
    for name in FIGURES.keys() - drawn.keys():  # figures of an earlier report that this one lacks
        for kind in ("svg", "png"):
            (out / "figures" / f"{name}.{kind}").unlink(missing_ok=True)
    return numbers


def check_report_folder(out: Path) -> None:
    """Raises `ConfigError` if a report must not be written into `out`: if the folder has the results of another
    command, except a results table, or files with a report's names that no report of ours wrote."""
    figures = [f"figures/{name}.{kind}" for name in FIGURES for kind in ("svg", "png")]
    made_here = is_json_with("table_sha256", "runs")
    check_output_folder(
        out,
        "the report's folder",
        own=("table.json",),
        files=("index.html", "report.json", *figures),
        made_here=lambda folder: made_here(folder / "report.json"),
    )


def summary_lines(numbers: Mapping) -> list[str]:
    """Returns the report's lines for the console: runs, law, held-out errors, correlations, other results, warnings."""
    title, score_of = "GenEval overall", score
    if numbers["temporal"] and not any(run["score"] is not None for run in numbers["runs"]):
        clips = {run["run"]: run["scores"].get("direction_right") for run in numbers["temporal"]["runs"]}
        title, score_of = "direction right (soft)", lambda run: estimate(clips.get(run["run"]))
    rows = [("run", "depth", "params", "FLOPs", "loss", title)]
    runs = spread(numbers["runs"], ROWS, lambda run: run["flops"] or 0.0)
    for run in runs:
        end = loss(run["loss"], run["loss_stderr"]) if run["loss"] is not None else run["state"]
        rows.append((run["run"], count(run["depth"]), count(run["params"]), power(run["flops"]), end, score_of(run)))
    lines = [*columns(rows), shown_of(len(runs), len(numbers["runs"]), "runs", "report.json").strip()]
    if numbers["compares"] == "sizes":
        facts = [fit_facts.headline_fact(numbers["analysis"]), *fit_facts.held_out_facts(numbers["analysis"])]
        for name, found in fit_facts.overall_scores(numbers):
            predicted = fit_facts.largest_score_facts(name, found["largest_predicted"])
            facts += [fit_facts.correlation_fact(name, found), *predicted]
        notes = {kind["title"]: kind["missing_prompts"] for kind in numbers["folder_scores"]}
        lines += fit_facts.as_lines(facts + [[f"note: {title}: {note}"] for title, note in notes.items() if note])
    if numbers["learning_rates"]:
        lines += [f"best rate of {rates.name_of(each)}: {rates.shown(each)}" for each in numbers["learning_rates"]]
        lines += rates.sentences(numbers)
    lines += ranking_lines(numbers["ranking"]) if numbers["ranking"] else []
    lines += temporal_lines(numbers["temporal"]) if numbers["temporal"] else []
    lines += tuned_lines(numbers["tuned"])
    return list(map(printable, lines + warnings(numbers)))
