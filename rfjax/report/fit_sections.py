"""Writes the section on loss against compute: laws, their prediction errors, and the plan that follows."""

from __future__ import annotations

from rfjax.report.crowds import drawn_curves, shown_of
from rfjax.report.fit_facts import as_prose, comparison_facts, held_out_facts, optimal_frontier_facts, plan_fact
from rfjax.report.formats import NONE, formula, interval, loss, minus, parameter, percent, power, text
from rfjax.report.html_parts import warning
from rfjax.results.many_runs import ANCHORS, MANY_RUNS


def compute_section(numbers, page):
    """Returns the HTML of the section: the figure of the laws of compute, the table of fits, the plan, the predictions
    of held-out runs, and the compute-optimal frontier."""
    analysis = numbers["analysis"]
    caption = "Validation loss of final checkpoints against training compute."
    caption += shown_of(len(drawn_curves(numbers)), len(numbers["curves"]), "curves before annealing", "wide.csv")
    if analysis["headline"]:
        law = formula(analysis["fits"][analysis["headline"]]["formula"])
        caption += f" Line: loss = {law}; bands: 95 % intervals of the law, and of the loss of a new run."
        caption += " Below: the same in per cent of the law."
    parts = [page.drawing("loss_against_compute", caption)]
    if analysis["headline"] and analysis["headline_reason"]:
        parts.append(warning(analysis["headline_reason"]))
    header = ["law", "parameters, 95 % intervals", "n", "scatter", "left out", "starts", "remarks"]
    rows = [_fit_row(fit, analysis["profiles"].get(fit["law"], {})) for fit in analysis["fits"].values()]
    caption = (
        "Fits; flops are training FLOPs. Scatter: standard deviation of log residuals with n − k degrees of freedom. "
        "Left out: rms relative error of each run predicted from all others (a branch: from all other trunks), and the "
        "error of the largest run. In braces: the profile likelihood's interval. ± after a semicolon: the standard "
        "error due to the choice of validation examples. Starts: how many of the optimiser's starts reach the same "
        "minimum. Laws of flops are fitted on the frontier, the law of params and images on every run at its best "
        "learning rate."
    )
    folds = [
        fit["leave_one_out"]["folds"] for fit in analysis["fits"].values() if "folds" in (fit["leave_one_out"] or {})
    ]
    if folds:
        caption += (
            f" For laws of more than {MANY_RUNS} runs, runs are left out in {folds[0]} folds, and the covariances over "
            f"validation examples are approximated from those with {ANCHORS} runs."
        )
    parts.append(page.table(header, rows, caption, words=(0, 1, 6)))
    facts = [*comparison_facts(analysis["comparison"]), plan_fact(analysis)]
    parts.append(f"<p>{' '.join(map(as_prose, facts))}</p>")
    return "".join(parts) + _held_out_table(analysis, page) + _optimal_part(analysis, page)


def _optimal_part(analysis, page):
    """Returns the HTML on the compute-optimal frontier: figure and formulas, or why there is no frontier."""
    caption = (
        "The compute-optimal frontier of the parametric law: the least loss that it gives each budget, and the size "
        "and images that give it. Bands: 95 % intervals over the draws of the parameters. Points: all runs."
    )
    drawn = page.drawing("optimal_frontier", caption) if analysis["optimal_frontier"] else ""
    return drawn + "".join(f"<p>{as_prose(fact)}</p>" for fact in optimal_frontier_facts(analysis))


def _fit_row(fit, profiles):
    name = f"{text(fit['law'])}: {formula(fit['formula'])}"
    if not fit["identifiable"]:
        return [name, "not fitted", str(fit["n"]), NONE, NONE, NONE, text(fit["reason"])]
    parameters = "<br>".join(_parameter(n, e, profiles.get(n)) for n, e in fit["parameters"].items())
    left, largest = fit.get("leave_trunk_out") or fit["leave_one_out"], fit["leave_largest_out"]
    each = percent(left["rms_relative_error"], signed=False) if left else NONE
    errors = f"{each}<br><small>{percent(largest['relative_error']) if largest else NONE}</small>"
    remarks = [*fit["warnings"], *(out["reason"] for out in (left, largest) if out and out["reason"])]
    quality = [percent(fit["residual_sd"], signed=False), errors, f"{fit['starts_agreeing']}/{fit['starts']}"]
    return [name, parameters, str(fit["n"]), *quality, "; ".join(map(text, remarks)) or NONE]


def _parameter(name, found, profile):
    """Returns the HTML of one parameter of a fit: its value and interval, the interval of its profile likelihood, and
    its standard error over validation examples."""
    shown = f"<i>{ {'alpha': 'α', 'beta': 'β'}.get(name, text(name)) }</i> = {parameter(name, found)}"
    if profile:
        shown += f" <small>{{{minus(format(profile['low'], '.3f'))}, {minus(format(profile['high'], '.3f'))}}}</small>"
    if found["examples_stderr"] is not None:
        shown += f"<small>; ± {power(found['examples_stderr'], 2)}</small>"
    return shown


def _held_out_table(analysis, page):
    """Returns the HTML table that compares predicted with actual losses for the largest depth, or the reason why
    nothing could be predicted."""
    held = analysis["held_out"]
    if not held:
        return warning(held_out_facts(analysis)[0][0])
    rows = [
        [
            text(p["run"]),
            power(p["flops"]),
            text(p["law"]) + ("" if p["counts"] else " <small>(does not count)</small>"),
            interval(p["predicted"], p["low"], p["high"], ".4f"),
            loss(p["actual"]),
            percent(p["relative_error"]),
            "yes" if p["covered"] else "<b>no</b>",
        ]
        for p in held["predictions"]
    ]
    fits = [held["fit"], *([held["parametric"]] if held["parametric"] else [])]
    laws = " and ".join(f"the {text(fit['law'])} law of {fit['n']} runs" for fit in fits if fit["identifiable"])
    caption = (
        f"Depth {held['depth']} held out and predicted by {laws} of the other depths. The interval is for the loss of "
        "a new run. The law of compute is fitted to runs on the frontier, and predicts frontier runs only."
    )
    if held["parametric"]:
        caption += " For a run off the frontier, the prediction of the parametric law counts."
    if held["parametric_reason"]:
        caption += f" There is no such prediction: {text(held['parametric_reason'])}."
    header = ["run", "FLOPs", "law", "predicted, 95 % interval", "measured", "error", "inside"]
    return page.table(header, rows, caption)
