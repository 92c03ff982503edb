"""The sections on what the models draw: GenEval, its correlation with the loss, samples."""

from __future__ import annotations

from rfjax.report.formats import NONE, interval, loss, minus, p_value, percent, power, text
from rfjax.report.html_parts import picture
from rfjax.report.score_figures import task_title


def geneval_section(numbers, drawn, sheets, captions):
    geneval = numbers["geneval"]
    if "geneval_against_depth" not in drawn:
        return f"<p class=warn>Nothing to show: {text(geneval.get('reason') or 'no scores')}.</p>"
    best = [run for run in geneval["runs"] if run["best_of_depth"]]
    rows = [
        [f"depth {run['depth']}<br><small>{text(run['run'])}</small>"]
        + [
            _estimate(run["scores"][item], "<sup>*</sup>" if run["above_floor"].get(item) else "")
            for item in geneval["items"]
        ]
        for run in best
    ]
    for floor, label in (("shuffled", "floor: other prompts"), ("null", "floor: null condition")):
        rows.append(
            [f"{label}, depth {best[-1]['depth']}"]
            + [_estimate(best[-1]["floors"][floor].get(item)) for item in geneval["items"]]
        )
    rows.append(["detector's ceiling"] + [_estimate(geneval["ceiling"].get(item)) for item in geneval["items"]])
    return captions.figure(
        drawn["geneval_against_depth"],
        "GenEval per task against depth. Ceiling: the detector on rendered ground truth. Floors: the same "
        "images scored "
        "against other prompts of the same task, and samples of the null condition. Bars and shades: 95 % intervals "
        "clustered by prompt.",
    ) + captions.table(
        ["", *(text(task_title(item)) for item in geneval["items"])],
        rows,
        "GenEval of the best run of each depth, with 95 % intervals clustered by prompt. *: the interval lies above "
        "those of both floors.",
    )


def _estimate(estimate, mark=""):
    if not estimate or estimate["value"] is None:
        return "–"
    value, _, ends = interval(estimate["value"], estimate["low"], estimate["high"]).partition(" ")
    return f"{mark}{value}<br><small>{ends}</small>" if ends else mark + value


def pairs_section(numbers, drawn, sheets, captions):
    if "held_out_pairs" not in drawn:
        return ""
    return captions.figure(
        drawn["held_out_pairs"],
        "Composition: GenEval on prompts that name a (colour, shape) pair which never occurs in training, and on "
        "the other "
        "prompts. Best run of each depth; 95 % intervals clustered by prompt.",
    )


def correlation_section(numbers, drawn, sheets, captions):
    found = numbers["correlation"]
    parts = []
    if "loss_against_geneval" in drawn:
        parts.append(
            captions.figure(
                drawn["loss_against_geneval"],
                "Validation loss against overall GenEval, final checkpoints; 95 % intervals.",
            )
        )
    if found:
        parts += _correlation_tables(
            found, "GenEval" + (" by the corpus's own detector" if numbers["folder_scores"] else ""), captions
        )
        parts += [_predicted_table(found, "GenEval", captions), _levels_table(numbers["score_levels"], captions)]
    for one in numbers["folder_scores"]:
        parts += _folder_score(one, drawn, captions)
    return "".join(parts)


def _folder_score(one, drawn, captions):
    """What `rfjax score` measured of images in folders, against the loss."""
    parts = []
    if (figure := f"loss_against_{one['evaluation']}") in drawn:
        parts.append(
            captions.figure(
                drawn[figure],
                f"Validation loss against {text(one['title'])}, overall, final checkpoints; 95 % intervals. Prompts: "
                f"{text(one['corpus'])}; "
                f"images: sampler {text(one['sampler'])}, seed {one['sampler_seed']}.",
            )
        )
    for runs, why in (
        (one["without"], "were not scored by it"),
        (one["others"], "were scored with another sampler, seed or other prompts"),
    ):
        if runs:
            parts.append(f"<p class=warn>{text(one['title'])}: {text(', '.join(map(str, runs)))} {why}.</p>")
    if one["missing_prompts"]:
        parts.append(f"<p class=warn>{text(one['title'])}: {text(one['missing_prompts'])}.</p>")
    return (
        parts
        + _correlation_tables(one["correlation"], one["title"], captions)
        + [_predicted_table(one["correlation"], one["title"], captions)]
    )


def _correlation_tables(found, name, captions):
    parts, name = [], text(name)
    overall = found.get("overall")
    if overall and overall["coefficients"]:
        rows = [
            [text(c["name"]), interval(c["value"], c["low"], c["high"]), p_value(c["p"])]
            for c in overall["coefficients"]
        ]
        caption = (
            f"Validation loss and overall {name} over {overall['n']} runs. p: {text(overall['p_method'])}. Intervals: "
            f"{text(overall['interval_method'])}; where the order is perfect, an interval that ends at ±1 says "
            "little, and p "
            "says what can be said."
        )
        parts.append(captions.table(["coefficient", "value, 95 % interval", "p"], rows, caption))
    else:
        parts.append(
            f"<p class=warn>No correlation with {name}: {text((overall or {}).get('reason') or 'no scores')}.</p>"
        )
    rows = []
    for item, c in found.items():
        rank = next((x for x in c["coefficients"] if x["name"] == "Spearman"), None)
        if item != "overall" and rank:
            rows.append(
                [text(task_title(item)), interval(rank["value"], rank["low"], rank["high"]), p_value(rank["p"])]
            )
    if rows:
        parts.append(
            captions.table(
                ["task", "Spearman, 95 % interval", "p"],
                rows,
                f"Validation loss and {name}, task by task. The p-values are not corrected for there being several.",
            )
        )
    return parts


def _predicted_table(found, name, captions):
    """The largest run's scores as the links predict them from the other runs."""
    rows, caption = [], ""
    for item, c in found.items():
        for p in c["largest_predicted"]:
            if p["predicted"] is None:
                continue
            rows.append(
                [
                    f"{text(task_title(item))}",
                    p["link"],
                    interval(p["predicted"], p["low"], p["high"]),
                    interval(p["actual"], None, None),
                    minus(f"{p['error']:+.2f}"),
                    "inside" if p["covered"] else "outside",
                ]
            )
            caption = (
                f"{text(name)[0].upper()}{text(name)[1:]} of the largest run ({text(p['run'])}) predicted from its "
                "validation loss by links fitted to the "
                "others: exponential, ε − k·exp(γ·loss), and logistic. 95 % intervals of a new run's score, from the "
                "residual scatter with its own degrees of freedom."
            )
    return captions.table(["task", "link", "predicted", "got", "error", "interval"], rows, caption) if rows else ""


def _levels_table(levels, captions):
    """Which noise level's loss the overall score follows most closely."""
    levels = [level for level in levels if level["coefficients"]]
    if not levels:
        return ""
    rows = []
    for level in levels:
        shown = {c["name"]: interval(c["value"], c["low"], c["high"], ".3f") for c in level["coefficients"]}
        rows.append(
            [
                f"{level['t']:g}",
                shown["Pearson of arcsine √score"],
                shown["Spearman"],
                NONE if level["left_out_rms"] is None else f"{level['left_out_rms']:.3f}",
                NONE if level["share_first"] is None else percent(level["share_first"], signed=False),
            ]
        )
    return captions.table(
        ["t", "Pearson of arcsine √score", "Spearman", "rms error, each run left out", "first in"],
        rows,
        "Overall GenEval against the validation loss at each noise level. The error is of the score predicted by a "
        "logistic link from the other runs; the last column is how often the level follows the score most closely when "
        "runs and prompts are drawn again.",
    )


def steps_section(numbers, drawn, sheets, captions):
    """Scores at few sampling steps, as in the paper's table 6."""
    counts = numbers["sampling_steps"]
    if not counts:
        return ""
    parts = []
    if "score_against_steps" in drawn:
        parts.append(
            captions.figure(
                drawn["score_against_steps"],
                "Overall GenEval, its relative drop from the most steps, and the path length of the sampler against "
                "sampling "
                "steps; the same prompts and noise at every count. Bars: 95 % intervals over prompts, of the "
                "drop paired.",
            )
        )
    rows = [
        [
            _sampled(one),
            str(one["steps"]),
            interval(one["score"], one["score_low"], one["score_high"]),
            f"{one['path_length']:.2f}",
            f"{one['distance']:.4f}",
        ]
        for one in counts
    ]
    parts.append(_drops_table(numbers, captions))
    parts.append(
        captions.table(
            ["", "steps", "GenEval overall", "path length", "distance"],
            rows,
            "Every count of steps. Path length: sum over steps of the norm of a latent's move, mean over images. "
            "Distance: of the latents from those of the most steps, root mean square.",
        )
    )
    return "".join(parts)


def _drops_table(numbers, captions):
    """A row for each run, a column for each count of steps: the paper's table 6."""
    losses = {run["run"]: run["loss"] for run in numbers["runs"]}
    columns, lines = set(), {}
    for one in numbers["sampling_steps"]:
        line = lines.setdefault((one["run"], one["settings"], one["reference"]), {})
        line[one["steps"], one["reference"]] = one
        if one["steps"] != one["reference"]:
            columns.add((one["steps"], one["reference"]))
    columns = sorted(columns, key=lambda column: column[::-1])
    rows = []
    for (run, _, reference), line in lines.items():
        most = line.get((reference, reference))
        drops = [
            _drop(line[column]) if column in line and line[column]["drop"] is not None else NONE for column in columns
        ]
        rows.append(
            [
                _sampled(next(iter(line.values()))),
                loss(losses.get(run)),
                *drops,
                f"{most['path_length']:.2f}" if most else NONE,
            ]
        )
    return captions.table(
        ["", "validation loss", *(f"{steps}/{reference}" for steps, reference in columns), "path length"],
        rows,
        "Sampling with fewer steps: the relative drop of overall GenEval from the most steps (5/50: with 5 instead "
        "of 50), paired by "
        "prompt, with its 95 % interval; and the path length at the most. As table 6 of the Stable Diffusion 3 "
        "paper, there of the "
        "CLIP score.",
    )


def _sampled(one):
    return f"depth {one['depth']}<br><small>{text(one['run'])}<br>{text(one['settings'])}</small>"


def _drop(one):
    ends = "" if one["drop_low"] is None else f" [{percent(one['drop_low'])}, {percent(one['drop_high'])}]"
    return percent(one["drop"]) + ends


def samples_section(numbers, drawn, sheets, captions):
    samples = numbers["samples"]
    rows = [row for row in samples["rows"] if row["png"] in sheets]
    if not rows:
        return ""
    shared = f"Columns share prompt and initial noise (sampler {text(samples['sampler'])}, seed {samples['seed']})."
    across = [row for row in sorted(rows, key=lambda row: row["depth"]) if row["best_of_depth"]]
    parts = []
    if len(across) > 1:
        labels = [f"depth {row['depth']}<br><small>{text(row['run'])}</small>" for row in across]
        parts.append(
            captions.figure(
                _sheet(samples["prompts"], across, labels, sheets),
                f"Across depths: the best run of each. {shared}",
            )
        )
    if len(rows) > len(across) or not parts:
        labels = [
            f"{power(row['flops'], 2)}<br><small>{text(row['run'])}"
            + ("" if row["final"] else f", step {row['step']:,}")
            + "</small>"
            for row in rows
        ]
        parts.append(
            captions.figure(
                _sheet(samples["prompts"], rows, labels, sheets),
                f"Across compute: every sheet in order of training FLOPs. {shared}",
            )
        )
    return "".join(parts)


def _sheet(prompts, rows, labels, sheets):
    """Strips under one another; a strip's tiles are equally wide, so headings align with columns."""
    heads = "".join(f"<div>{text(prompt)}</div>" for prompt in prompts)
    lines = "".join(
        f"<div class=who>{label}</div>"
        f"<div class=strip>{picture(sheets[row['png']], 'image/png', 'samples of ' + row['run'])}</div>"
        for row, label in zip(rows, labels, strict=True)
    )
    return f'<div class=sheet style="--n:{max(len(prompts), 1)}"><div></div><div class=heads>{heads}</div>{lines}</div>'
