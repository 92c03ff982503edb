"""The section on loss against compute: laws, how well they predict, and the plan they give."""

from __future__ import annotations

from rfjax.report.findings import formula
from rfjax.report.formats import count, interval, loss, minus, parameter, percent, power, sentence, text
from rfjax.report.terminal import comparison_line


def compute_section(numbers, drawn, sheets, captions):
    analysis = numbers["analysis"]
    parts = []
    if "loss_against_compute" in drawn:
        caption = "Validation loss of final checkpoints against training compute."
        if analysis["headline"]:
            fit = analysis["fits"][analysis["headline"]]
            caption += (
                f" Line: <i>L</i> = {formula(fit)}; bands: 95 % intervals of the law, and of the loss of a new run."
            )
            caption += " Below: the same in per cent of the law."
        parts.append(captions.figure(drawn["loss_against_compute"], caption))
    if analysis["headline"] and analysis["headline_reason"]:
        parts.append(f"<p class=warn>{sentence(analysis['headline_reason'])}.</p>")
    rows = []
    for fit in analysis["fits"].values():
        name = f"{text(fit['law'])}: {formula(fit)}"
        if fit["identifiable"]:
            profiles = analysis["profiles"].get(fit["law"], {})
            shown = "<br>".join(
                f"<i>{_greek(n)}</i> = {_shown(n, e, profiles.get(n))}" for n, e in fit["parameters"].items()
            )
            agree = f"{fit['starts_agreeing']}/{fit['starts']}"
            scatter = percent(fit["residual_sd"], signed=False)
            gaps = [
                fit[name]["reason"]
                for name in ("leave_one_out", "leave_largest_out")
                if fit[name] and fit[name]["reason"]
            ]
            remarks = "; ".join(map(text, [*fit["warnings"], *gaps])) or "–"
            rows.append([name, shown, str(fit["n"]), scatter, _left_out(fit), agree, remarks])
        else:
            rows.append([name, "not fitted", str(fit["n"]), "–", "–", "–", text(fit["reason"])])
    parts.append(
        captions.table(
            ["law", "parameters, 95 % intervals", "n", "scatter", "left out", "starts", "remarks"],
            rows,
            "Fits. C: training FLOPs, N: parameters, D: images seen. Scatter: standard deviation of log residuals "
            "with n − k "
            "degrees of freedom. Left out: rms relative error of each run predicted from all others, and the error "
            "of the largest. "
            "In braces: the profile likelihood's interval. ± after a semicolon: what other validation examples, as "
            "many, would "
            "change. Starts: how many of the optimiser's starts reach the same minimum. Laws of C are fitted on "
            "the frontier, the law of N and D on every run at its best learning rate.",
            words=(0, 1, 6),
        )
    )
    parts.append(f"<p>{_comparison(analysis['comparison'])}{_plan(analysis)}</p>")
    held = analysis["held_out"]
    if held:
        rows = [
            [
                text(p["run"]),
                power(p["flops"]),
                interval(p["predicted"], p["low"], p["high"], ".4f"),
                loss(p["actual"]),
                percent(p["relative_error"]),
                "yes" if p["covered"] else "<b>no</b>",
            ]
            for p in held["predictions"]
        ]
        parts.append(
            captions.table(
                ["run", "FLOPs", "predicted, 95 % interval", "measured", "error", "inside"],
                rows,
                f"Depth {held['depth']} held out and predicted by the {text(held['fit']['law'])} law of the other "
                f"{held['fit']['n']} runs on their own frontier. The interval is for the loss of a new run.",
            )
        )
    else:
        parts.append(f"<p class=warn>Nothing was held out and predicted: {text(analysis['held_out_reason'])}.</p>")
    return "".join(parts)


def _shown(name, estimate, profile):
    """A parameter with its interval, its profile's, and what other validation examples would change."""
    shown = parameter(name, estimate)
    if profile:
        shown += f" <small>{{{minus(format(profile['low'], '.3f'))}, {minus(format(profile['high'], '.3f'))}}}</small>"
    if estimate["examples_stderr"] is not None:
        shown += f"<small>; ± {power(estimate['examples_stderr'], 2)}</small>"
    return shown


def _left_out(fit):
    left, largest = fit["leave_one_out"], fit["leave_largest_out"]
    rms = percent(left["rms_relative_error"], signed=False) if left else "–"
    return f"{rms}<br><small>{percent(largest['relative_error']) if largest else '–'}</small>"


def _comparison(comparison):
    line = comparison_line(comparison)
    return f"{sentence(line)}. " if line else ""


def _plan(analysis):
    plan = analysis["plan"]
    if plan is None:
        return f"How to divide a larger budget is not said: {text(analysis['plan_reason'])}."
    best, fixed = plan["optimal"], plan["fixed_steps"]
    return (
        f"For {power(plan['budget_flops'])} FLOPs the parametric law would train {_sized(best['params'])} "
        "parameters on "
        f"{_sized(best['images'])} images, for a loss of "
        f"{interval(*(best['loss'][k] for k in ('value', 'low', 'high')), '.4f')}; "
        f"with the images fixed at {count(fixed['images_of_every_run'])} for every size, "
        f"{count(fixed['params']['value'])} parameters "
        f"and {percent(plan['excess_loss_of_fixed_steps']['value'])} of that loss. "
        f"{'. '.join(map(sentence, plan['warnings']))}"
    )


def _sized(estimate):
    return f"{count(estimate['value'])} [{count(estimate['low'])}, {count(estimate['high'])}]"


def _greek(name):
    return {"alpha": "α", "beta": "β"}.get(name, text(name))
