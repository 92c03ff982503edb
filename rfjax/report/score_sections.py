"""Writes the sections on the models' images: GenEval, its correlation with the loss, sampling steps, samples."""

from __future__ import annotations

from rfjax.report.crowds import SAMPLES, drawn_steps, names, shown_of
from rfjax.report.fit_facts import correlation_fact
from rfjax.report.formats import NONE, count, estimate, interval, loss, minus, p_value, percent, power, score, text
from rfjax.report.html_parts import picture, warning
from rfjax.report.score_figures import task_title
from rfjax.results.many_runs import MANY_RUNS, are_many


def geneval_section(numbers, page):
    """Returns the HTML of the section on GenEval: each task's scores, with the detector's ceiling and the floors. If
    nothing was scored, returns a warning, or "" for a study of clips."""
    geneval = numbers["geneval"]
    if not geneval["runs"] and numbers["temporal"]:
        return ""  # the study's samples are clips
    if not geneval["runs"]:
        return warning(f"Nothing to show: {geneval.get('reason') or 'no scores'}")
    items, best = geneval["items"], [run for run in geneval["runs"] if run["best_of_depth"]]
    rows = [
        [f"depth {run['depth']}<br><small>{text(run['run'])}</small>"]
        + [_score_cell(run["scores"][item], "<sup>*</sup>" if run["above_floor"].get(item) else "") for item in items]
        for run in best
    ]
    depth, floors = best[-1]["depth"], best[-1]["floors"]
    marks = {
        f"floor: other prompts, depth {depth}": floors["shuffled"],
        f"floor: null condition, depth {depth}": floors["null"],
        "detector's ceiling": geneval["ceiling"],
    }
    rows += [[label, *(_score_cell(scores.get(item)) for item in items)] for label, scores in marks.items()]
    drawn = page.drawing(
        "geneval_against_depth",
        "GenEval per task against depth. Ceiling: the detector on rendered ground truth. Floors: the same images "
        "scored against other prompts of the same task, and samples of the null condition. Bars and shades: 95 % "
        "intervals clustered by prompt.",
    )
    sampler = text(numbers["settings"]["sampler"])
    table = page.table(
        ["", *(text(task_title(item)) for item in items)],
        rows,
        "GenEval of the best run of each depth, with 95 % intervals clustered by prompt. *: the interval lies above "
        f"those of both floors. Sampler {sampler}, whose last two numbers are prompts of each task and images of each "
        "prompt.",
    )
    if not geneval["others"]:
        return drawn + table
    others = [[text(row["run"]), text(row["sampler"]), estimate(row), count(row["n"])] for row in geneval["others"]]
    caption = (
        "The same checkpoints with another sampler, seed or number of prompts. They enter no fit and no correlation."
    )
    return drawn + table + page.table(["run", "sampler", "GenEval, overall", "images"], others, caption, words=(0, 1))


def _score_cell(found, mark=""):
    value, _, ends = estimate(found).partition(" ")
    return f"{mark}{value}<br><small>{ends}</small>" if ends else mark + value


def correlation_section(numbers, page):
    """Returns the HTML of the section on loss against score: the correlation of the loss with GenEval by the corpus's
    own detector, and with each score that `rfjax score` attached."""
    found, scored = numbers["correlation"], numbers["folder_scores"]
    caption = "Validation loss against overall GenEval, final checkpoints; 95 % intervals."
    parts = [page.drawing("loss_against_geneval", caption)]
    if found:
        parts += _correlation_tables(found, "GenEval" + (" by the corpus's own detector" if scored else ""), page)
        parts += [_largest_table(found, "GenEval", page), _levels_table(numbers["score_levels"], page)]
    for kind in scored:
        parts += _folder_score(kind, page)
    return "".join(parts)


def _folder_score(found, page):
    """Returns the HTML, as a list, of the comparison of the loss with a score that `rfjax score` attached."""
    title = found["title"]
    caption = (
        f"Validation loss against {text(title)}, overall, final checkpoints; 95 % intervals. Prompts: "
        f"{text(found['corpus'])}; images: sampler {text(found['sampler'])}, seed {found['sampler_seed']}."
    )
    parts = [page.drawing(f"loss_against_{found['evaluation']}", caption)]
    unscored = {"without": "were not scored by it", "others": "were scored with another sampler, seed or other prompts"}
    for name, why in unscored.items():
        if found[name]:
            parts.append(warning(f"{title}: {names(found[name])} {why}"))
    if found["missing_prompts"]:
        parts.append(warning(f"{title}: {found['missing_prompts']}"))
    correlation = found["correlation"]
    return parts + _correlation_tables(correlation, title, page) + [_largest_table(correlation, title, page)]


def _correlation_tables(found, name, page):
    """Returns a list of HTML tables: the coefficients of the overall score with the loss, or why there are none; then
    the rank correlation of each task's score with the loss."""
    overall = found.get("overall")
    if overall and overall["coefficients"]:
        caption = (
            f"Validation loss and overall {text(name)} over {overall['n']} runs. p: {text(overall['p_method'])}. "
            f"Intervals: {text(overall['interval_method'])}; where the runs are in perfect order, an interval that "
            "ends at ±1 says little, and p is the number to judge by."
        )
        rows = [[text(c["name"]), estimate(c), p_value(c["p"])] for c in overall["coefficients"]]
        parts = [page.table(["coefficient", "value, 95 % interval", "p"], rows, caption)]
    else:
        parts = [warning(*correlation_fact(name, overall or {"coefficients": (), "reason": "no scores"}))]
    rows = [
        [text(task_title(item)), estimate(c), p_value(c["p"])]
        for item, correlation in found.items()
        for c in correlation["coefficients"]
        if item != "overall" and c["name"] == "Spearman"
    ]
    if rows:
        caption = f"Validation loss and {text(name)}, task by task. The p-values are not corrected for their number."
        parts.append(page.table(["task", "Spearman, 95 % interval", "p"], rows, caption))
    return parts


def _largest_table(found, name, page):
    """Returns the HTML table of the largest run's scores: the scores that each link (a curve from loss to score)
    predicts when it is fitted to the other runs, beside the actual scores. Returns "" if nothing is predicted."""
    many = any(are_many(p["n"]) for c in found.values() for p in c["largest_predicted"])
    predicted = [(item, p) for item, c in found.items() for p in c["largest_predicted"] if p["predicted"] is not None]
    if not predicted:
        return ""
    rows = [
        [
            text(task_title(item)),
            p["link"],
            interval(p["predicted"], p["low"], p["high"]),
            interval(p["actual"], None, None),
            minus(f"{p['error']:+.2f}"),
            "inside" if p["covered"] else "outside",
        ]
        for item, p in predicted
    ]
    return page.table(
        ["task", "link", "predicted", "got", "error", "interval"],
        rows,
        f"{text(name[:1].upper() + name[1:])} of the largest run ({text(predicted[-1][1]['run'])}) predicted from its "
        "validation loss by links fitted to the others: exponential, ε − k·exp(γ·loss), and logistic. 95 % intervals "
        "of a new run's score, from the residual scatter and its n − k degrees of freedom"
        + (f"; for more than {MANY_RUNS} runs, along the curve's tangent at the fit." if many else "."),
    )


def _levels_table(levels, page):
    """Returns the HTML table of the correlation of the overall score with the loss at each level of t."""
    rows = []
    for level in (level for level in levels if level["coefficients"]):
        found = {c["name"]: estimate(c, ".3f") for c in level["coefficients"]}
        closeness = [found["Pearson of arcsine √score"], found["Spearman"]]
        rms, first = interval(level["left_out_rms"], None, None, ".3f"), percent(level["share_first"], signed=False)
        rows.append([f"{level['t']:g}", *closeness, rms, first])
    if not rows:
        return ""
    folds = next((level["folds"] for level in levels if "folds" in level), None)
    left, others = (f"{folds} folds", "runs of the other folds") if folds else ("each run", "other runs")
    return page.table(
        ["t", "Pearson of arcsine √score", "Spearman", f"rms error, {left} left out", "first in"],
        rows,
        "Overall GenEval against the validation loss at each noise level. The error is of the score predicted by a "
        f"logistic link from the {others}; the last column is how often the level follows the score most closely when "
        "runs and prompts are drawn again.",
    )


def steps_section(numbers, page):
    """Returns the HTML of the section on scores at few sampling steps, as in SD3's table 6; "" if there are none."""
    counts = numbers["sampling_steps"]
    if not counts:
        return ""
    lines, every_line = drawn_steps([found for found in counts if found["depth"] is not None])
    figure = page.drawing(
        "score_against_steps",
        "Overall GenEval, its relative drop from the most steps, and the path length of the sampler against sampling "
        "steps; the same prompts and noise at every count. Bars: 95 % intervals over prompts; for the drop, paired."
        + shown_of(len(lines), every_line, "lines", "the tables"),
    )
    drops = _drops_table(numbers, page)
    rows = [
        [_run_cell(found), str(found["steps"]), score(found), f"{found['path_length']:.2f}", f"{found['distance']:.4f}"]
        for found in counts
    ]
    every = page.table(
        ["", "steps", "GenEval overall", "path length", "distance"],
        rows,
        "Every count of steps. Path length: sum over steps of the norm of a latent's move, mean over images. Distance: "
        "of the latents from those of the most steps, root mean square.",
    )
    return figure + drops + every


def _drops_table(numbers, page):
    """Returns the HTML of a table like SD3's table 6, the drop of the score with fewer sampling steps: a row for each
    run under one sampler, a column for each number of steps."""
    losses = {run["run"]: run["loss"] for run in numbers["runs"]}
    lines: dict[tuple, dict] = {}
    for found in numbers["sampling_steps"]:
        line = lines.setdefault((found["run"], found["settings"], found["reference"]), {})
        line[found["steps"], found["reference"]] = found
    columns = {(steps, reference) for line in lines.values() for steps, reference in line if steps != reference}
    columns = sorted(columns, key=lambda column: column[::-1])
    rows = []
    for (run, _, reference), line in lines.items():
        most, drops = line.get((reference, reference)), [_drop(line.get(column)) for column in columns]
        length = f"{most['path_length']:.2f}" if most else NONE
        rows.append([_run_cell(next(iter(line.values()))), loss(losses.get(run)), *drops, length])
    return page.table(
        ["", "validation loss", *(f"{steps}/{reference}" for steps, reference in columns), "path length"],
        rows,
        "Sampling with fewer steps: the relative drop of overall GenEval from the most steps (5/50: with 5 instead of "
        "50), paired by prompt, with its 95 % interval; and the path length at the most steps. Table 6 of the Stable "
        "Diffusion 3 paper has the drop of the CLIP score.",
    )


def _run_cell(found):
    return f"depth {found['depth']}<br><small>{text(found['run'])}<br>{text(found['settings'])}</small>"


def _drop(found):
    return interval(found["drop"], found["drop_low"], found["drop_high"], percent) if found else NONE


def samples_section(numbers, page):
    """Returns the HTML of the section with sample sheets, first of stills, then of clips."""
    return "".join(_samples(numbers[group], page) for group in SAMPLES)


def _samples(samples, page):
    """Returns the HTML of a group of sample sheets: those of the best run of each depth, then all shown sheets in order
    of compute."""
    rows = [row for row in samples["rows"] if row["png"] in page.sheets]
    if not rows:
        return ""
    shared = f"Columns share prompt and initial noise (sampler {text(samples['sampler'])}, seed {samples['seed']})."
    across = [row for row in sorted(rows, key=lambda row: row["depth"]) if row["best_of_depth"]]
    parts = []
    if len(across) > 1:
        labels = [f"depth {row['depth']}<br><small>{text(row['run'])}</small>" for row in across]
        sheet = sheet_of(samples["prompts"], across, labels, page.sheets)
        parts.append(page.figure(sheet, f"Across depths: the best run of each. {shared}"))
    if len(rows) > len(across) or not parts:
        steps = ["" if row["final"] else f", step {row['step']:,}" for row in rows]
        names = [f"<small>{text(row['run'])}{step}</small>" for row, step in zip(rows, steps, strict=True)]
        labels = [f"{power(row['flops'], 2)}<br>{name}" for row, name in zip(rows, names, strict=True)]
        sheet = sheet_of(samples["prompts"], rows, labels, page.sheets)
        which = shown_of(len(rows), len(samples["rows"]), "sheets", "samples/ of the results folder")
        every = "every sheet" if not which else "sheets spread over compute,"
        parts.append(page.figure(sheet, f"Across compute: {every} in order of training FLOPs. {shared}{which}"))
    return "".join(parts)


def sheet_of(prompts, rows, labels, sheets):
    """Returns the HTML of sample strips below each other, under one row of headings. All tiles have the same width, so
    each prompt stands above its tiles."""
    heads = "".join(f"<div>{text(prompt)}</div>" for prompt in prompts)
    lines = "".join(
        f"<div class=who>{label}</div><div class=strip>{_strip(row, sheets)}</div>"
        for row, label in zip(rows, labels, strict=True)
    )
    return f'<div class=sheet style="--n:{max(len(prompts), 1)}"><div></div><div class=heads>{heads}</div>{lines}</div>'


def _strip(row, sheets):
    """Returns the HTML of one row of a sample sheet. A row of clips has an animation for the screen, and a still
    picture for print."""
    alt, playing = f"samples of {row['run']}", row.get("webp")
    if playing not in sheets:
        return picture(sheets[row["png"]], "image/png", alt)
    moving = picture(sheets[playing], "image/webp", alt, " class=playing")
    return moving + picture(sheets[row["png"]], "image/png", alt, " class=printed")
