"""The sections of the report's page, each a function of the report's numbers.

Everything that comes from outside (names of runs, prompts, messages) passes `text` on its way in;
strings handed on are safe HTML.
"""

from __future__ import annotations

from collections.abc import Callable

from rfjax.scaling.report.findings import findings, formula
from rfjax.scaling.report.formats import (
    count,
    duration,
    interval,
    loss,
    p_value,
    parameter,
    percent,
    power,
    score,
    text,
)
from rfjax.scaling.report.html_parts import picture
from rfjax.scaling.report.score_figures import task_title

FIGURE_TITLES = {
    "loss_against_compute": "Validation loss against training FLOPs",
    "loss_against_steps": "Loss against steps and FLOPs",
    "loss_per_level": "Validation loss per level of t",
    "geneval_against_depth": "GenEval per task against depth",
    "held_out_pairs": "GenEval on held-out and seen pairs",
    "loss_against_geneval": "Validation loss against GenEval",
    "learning_rates": "Validation loss against learning rate",
}
NARROW = ("loss_against_geneval", "learning_rates")  # figures of less than the page's width


def _what_ran(numbers, drawn, sheets, captions):
    scored = any(run["score"] is not None for run in numbers["runs"])
    header = ["run", "depth", "width", "params", "rate", "steps", "images", "FLOPs", "training", "loss"]
    rows = []
    for run in numbers["runs"]:
        end = loss(run["loss"], run["loss_stderr"]) if run["loss"] is not None else f"<i>{text(run['state'])}</i>"
        mark = "" if run["frontier"] is not False else "<sup>†</sup>"
        row = [
            text(run["run"]), count(run["depth"]), count(run["hidden"]), count(run["params"]), power(run["learning_rate"], 2),
            count(run["steps"]), count(run["images"]), power(run["flops"]), duration(run["train_seconds"]), end + mark,
        ]  # fmt: skip
        rows.append(row + ([score(run)] if scored else []))
    caption = "Every run, at its final checkpoint. Loss ± standard error over validation examples"
    caption += "; overall GenEval with its 95 % interval, clustered by prompt." if scored else "."
    if any(run["frontier"] is False for run in numbers["runs"]):
        caption += " †: another run reaches as low a loss with as few FLOPs, so this one is off the frontier and not fitted."
    lineage = [run for run in numbers["runs"] if run["parent_run"]]
    if lineage:
        caption += " Started from a checkpoint, whose images and FLOPs are counted in: " + "; ".join(
            f"{text(run['run'])} from {text(run['parent_run'])} at step {count(run['parent_step'])}" for run in lineage
        ) + "."  # fmt: skip
    table = captions.table(header + (["GenEval"] if scored else []), rows, caption)
    labels = {
        "train_corpus": "corpus", "corpus_fingerprint": "data", "formulation": "formulation", "schedule": "schedule",
        "platform": "platform", "device_kind": "device", "devices": "devices", "jax_version": "JAX", "code_hash": "code",
    }  # fmt: skip
    facts = [
        f"<dt>{label}</dt><dd>{text(', '.join(map(str, numbers['environment'][name])))}</dd>"
        for name, label in labels.items()
        if numbers["environment"][name]
    ]
    return table + f"<dl>{''.join(facts)}</dl>"


def _compute(numbers, drawn, sheets, captions):
    analysis = numbers["analysis"]
    parts = []
    if "loss_against_compute" in drawn:
        caption = "Validation loss of final checkpoints against training compute."
        if analysis["headline"]:
            fit = analysis["fits"][analysis["headline"]]
            caption += f" Line: <i>L</i> = {formula(fit)}; bands: 95 % intervals of the law, and of the loss of a new run."
            caption += " Below: the same in per cent of the law."
        parts.append(captions.figure(drawn["loss_against_compute"], caption))
    if analysis["headline_reason"]:
        parts.append(f"<p class=warn>{text(analysis['headline_reason'].capitalize())}.</p>")
    rows = []
    for fit in analysis["fits"].values():
        name = f"{text(fit['law'])}: {formula(fit)}"
        if fit["identifiable"]:
            shown = "<br>".join(f"<i>{_greek(n)}</i> = {parameter(n, e)}" for n, e in fit["parameters"].items())
            agree = f"{fit['starts_agreeing']}/{fit['starts']}"
            rows.append(
                [
                    name,
                    shown,
                    str(fit["n"]),
                    percent_plain(fit["residual_sd_of_log_loss"]),
                    agree,
                    "; ".join(map(text, fit["warnings"])) or "–",
                ]
            )
        else:
            rows.append([name, "not fitted", str(fit["n"]), "–", "–", text(fit["reason"])])
    parts.append(
        captions.table(
            ["law", "parameters, 95 % intervals", "n", "scatter", "starts", "remarks"],
            rows,
            "Fits. C: training FLOPs, N: parameters, D: images seen. Scatter: standard deviation of log residuals with n − k "
            "degrees of freedom. Starts: how many of the optimiser's starts reach the same minimum. Laws of C are fitted on "
            "the frontier, the law of N and D on every run at its best learning rate.",
            left=2,
        )  # fmt: skip
    )
    held = analysis["held_out"]
    if held:
        rows = [
            [text(p["run"]), power(p["flops"]), interval(p["predicted"], p["low"], p["high"], ".4f"), loss(p["actual"]),
             percent(p["relative_error"]), "yes" if p["covered"] else "<b>no</b>"]
            for p in held["predictions"]
        ]  # fmt: skip
        parts.append(
            captions.table(
                ["run", "FLOPs", "predicted, 95 % interval", "measured", "error", "inside"],
                rows,
                f"Depth {held['depth']} held out and predicted by the {text(held['fit']['law'])} law of the other "
                f"{held['fit']['n']} runs on their own frontier. The interval is for the loss of a new run.",
            )  # fmt: skip
        )
    else:
        parts.append(f"<p class=warn>Nothing was held out and predicted: {text(analysis['held_out_reason'])}.</p>")
    return "".join(parts)


def percent_plain(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.2f} %"


def _greek(name):
    return {"alpha": "α", "beta": "β"}.get(name, text(name))


def _steps(numbers, drawn, sheets, captions):
    if "loss_against_steps" not in drawn:
        return ""
    return captions.figure(
        drawn["loss_against_steps"],
        "Training loss (lines, means over windows of steps; its mix of t is that of training) and validation loss "
        "(markers) of every run, against steps and against training FLOPs.",
    )


def _levels(numbers, drawn, sheets, captions):
    if "loss_per_level" not in drawn:
        return ""
    return captions.figure(
        drawn["loss_per_level"],
        "Validation loss at each level of t, final checkpoints; solid: the run of most compute at each depth. Bars: 95 % "
        "intervals over examples. Right: relative to the run of least compute.",
    )


def _geneval(numbers, drawn, sheets, captions):
    geneval = numbers["geneval"]
    if "geneval_against_depth" not in drawn:
        return f"<p class=warn>Nothing to show: {text(geneval.get('reason') or 'no scores')}.</p>"
    best = [run for run in geneval["runs"] if run["best_of_depth"]]
    rows = [
        [f"depth {run['depth']} ({text(run['run'])})"]
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
        "GenEval per task against depth. Ceiling: the detector on rendered ground truth. Floors: the same images scored "
        "against other prompts of the same task, and samples of the null condition. Bars and shades: 95 % intervals "
        "clustered by prompt.",
    ) + captions.table(
        ["", *(text(task_title(item)) for item in geneval["items"])], rows,
        "GenEval of the best run of each depth, with 95 % intervals clustered by prompt. *: the interval lies above those of both floors.",
    )  # fmt: skip


def _estimate(estimate, mark=""):
    if not estimate or estimate["value"] is None:
        return "–"
    value, _, ends = interval(estimate["value"], estimate["low"], estimate["high"]).partition(" ")
    return f"{mark}{value}<br><small>{ends}</small>" if ends else mark + value


def _pairs(numbers, drawn, sheets, captions):
    if "held_out_pairs" not in drawn:
        return ""
    return captions.figure(
        drawn["held_out_pairs"],
        "Composition: GenEval on prompts that name a (colour, shape) pair which never occurs in training, and on the other "
        "prompts. Best run of each depth; 95 % intervals clustered by prompt.",
    )


def _correlation(numbers, drawn, sheets, captions):
    found = {item: c for item, c in numbers["correlation"].items()}
    if not found:
        return ""
    parts = []
    if "loss_against_geneval" in drawn:
        parts.append(
            captions.figure(
                drawn["loss_against_geneval"],
                "Validation loss against overall GenEval, final checkpoints; 95 % intervals.",
            )
        )
    overall = found.get("overall")
    if overall and overall["coefficients"]:
        rows = [
            [text(c["name"]), interval(c["value"], c["low"], c["high"]), p_value(c["p"])]
            for c in overall["coefficients"]
        ]
        caption = (
            f"Validation loss and overall GenEval over {overall['n']} runs. p: {text(overall['p_method'])}. Intervals: "
            f"{text(overall['interval_method'])}; where the order is perfect, an interval that ends at ±1 says little, and p "
            "says what can be said."
        )
        parts.append(captions.table(["coefficient", "value, 95 % interval", "p"], rows, caption))
    else:
        parts.append(f"<p class=warn>No correlation: {text((overall or {}).get('reason') or 'no scores')}.</p>")
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
                "Validation loss and GenEval, task by task. The p-values are not corrected for there being several.",
            )
        )
    return "".join(parts)


def _samples(numbers, drawn, sheets, captions):
    samples = numbers["samples"]
    rows = [row for row in samples["rows"] if row["png"] in sheets]
    if not rows:
        return ""
    shared = (
        f"Columns share prompt and initial noise (sampler {text(samples['sampler'])}, seed {samples['seed']})."
    )
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
        f"<div class=who>{label}</div>{picture(sheets[row['png']], 'image/png', 'samples of ' + row['run'])}"
        for row, label in zip(rows, labels, strict=True)
    )
    return f'<div class=sheet style="--n:{max(len(prompts), 1)}"><div></div><div class=heads>{heads}</div>{lines}</div>'


def _rates(numbers, drawn, sheets, captions):
    if "learning_rates" not in drawn:
        return ""
    rows = []
    for sweep in numbers["learning_rates"]:
        tried = ", ".join(f"{run['learning_rate']:g}: {loss(run['loss'])}" for run in sweep["runs"])
        verdict = f"<b>at the edge ({text(sweep['edge'])})</b>" if sweep["at_edge"] else "inside"
        rows.append(
            [f"depth {sweep['depth']}, {count(sweep['images'])} images", tried, f"{sweep['best']:g}", verdict]
        )
    return captions.figure(
        drawn["learning_rates"],
        "Validation loss against peak learning rate. An optimum at the edge of its grid is no optimum.",
    ) + captions.table(
        ["", "rate: loss", "best", "in the grid"], rows, "The learning rates tried and the best of each.", left=2
    )


def _failed(numbers, drawn, sheets, captions):
    rows = [
        [
            text(run["run"]),
            count(run["depth"]),
            text(run["state"]),
            count(run["last_step"]),
            text(run["message"] or "–"),
        ]
        for run in (*numbers["failures"], *numbers["unfinished"])
    ]
    parts = (
        [
            captions.table(
                ["run", "depth", "state", "step", "message"], rows, "Runs without a final checkpoint.", left=9
            )
        ]
        if rows
        else ["<p>Every run finished.</p>"]
    )
    if numbers["notes"]:
        parts.append(
            "<p>Left out when the table was merged:</p><ul>"
            + "".join(f"<li>{text(note)}</li>" for note in numbers["notes"])
            + "</ul>"
        )
    return "".join(parts)


def _methods(numbers, drawn, sheets, captions):
    settings = numbers["settings"]
    fit = next(iter(numbers["analysis"]["fits"].values()))
    held = numbers["analysis"]["held_out"]
    methods = [
        f["interval_method"]
        for f in [*numbers["analysis"]["fits"].values(), *([held["fit"]] if held else [])]
        if f["interval_method"]
    ]
    items = [
        "<b>Time</b> runs from t = 0 (data) to t = 1 (noise). <b>Loss</b> is the squared error of the velocity, unweighted, mean over "
        "elements, then over validation examples, then over the levels of the grid. Noise is keyed by example and level: every "
        "run sees the very same (image, t, noise), so differences between runs are far better known than the standard error of either.",
        f"<b>Shown</b>: corpus {text(settings['corpus'])}, {text(settings['weights'])} weights, grid {text(settings['grid'])}"
        + (f", sampler {text(settings['sampler'])}" if settings["sampler"] else "")
        + ". The paper's grid has the levels i/K and leaves t = 1 out of the mean.",
        "<b>FLOPs</b> are counted by formula: 2 per multiply-accumulate of matrix products, training three times the forward pass, "
        "recomputation left out, those of the checkpoints a run started from included.",
        f"<b>Fits</b>: {text(fit['loss_function'])}, log x centred, analytic gradients, many starts. Only final, annealed checkpoints are "
        "fitted, one point per run. The frontier holds the runs that no other beats in both loss and FLOPs; runs that differ in "
        "the seed alone are judged by their mean.",
        "<b>Intervals</b> are at 95 %. "
        + " ".join(text(m[0].upper() + m[1:]) + "." for m in dict.fromkeys(methods)),
        "<b>GenEval</b>: the official rules; a score is the fraction of images that are correct, overall is the unweighted mean of "
        "the tasks, and intervals keep the images of a prompt together. The detectors work from pixels and are not those of the "
        "official benchmark: scores compare runs of this study, not models elsewhere.",
    ]
    others = numbers["other_settings"]
    parts = ["<ul>" + "".join(f"<li>{item}</li>" for item in items) + "</ul>"]
    if len(others) > 1:
        runs = [run["run"] for run in numbers["runs"] if run["loss"] is not None]
        rows = [[text(run)] + [loss(kind["losses"].get(run)) for kind in others] for run in runs]
        header = ["run"] + [
            f"{text(kind['weights'])}<br><small>{text(kind['grid'])}, seed {kind['seed']}</small>"
            for kind in others
        ]
        parts.append(captions.table(header, rows, "The final validation loss under every setting in the table."))
    return "".join(parts)


# In the order of the page; a section that returns "" is left out.
SECTIONS: tuple[tuple[str, Callable], ...] = (
    ("Findings", findings),
    ("What ran", _what_ran),
    ("Loss against compute", _compute),
    ("Loss against steps", _steps),
    ("Loss per level of t", _levels),
    ("GenEval against depth", _geneval),
    ("Held-out pairs", _pairs),
    ("Loss against GenEval", _correlation),
    ("Samples", _samples),
    ("Learning rates", _rates),
    ("What failed", _failed),
    ("Method", _methods),
)
