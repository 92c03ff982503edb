"""Fits, allocations and links as lines in a terminal, from their JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rfjax.report.formats import count, interval, loss, minus, p_value, parameter, percent, power


def fit_lines(fit: Mapping) -> list[str]:
    """One fit, from `Fit.to_json`: the law with its parameters, then how well it predicts."""
    if not fit["identifiable"]:
        return [f"{fit['law']} law: not fitted: {fit['reason']}"]
    shown = ", ".join(f"{name} = {parameter(name, e)}" for name, e in fit["parameters"].items())
    lines = [f"{fit['law']} law: loss = {fit['formula']} over {fit['n']} runs: {shown}"]
    held = held_out_text(fit)
    lines += [f"    {held}"] if held else []
    lines += excluded_lines(fit["excluded"])
    examples = {n: e["examples_stderr"] for n, e in fit["parameters"].items() if e.get("examples_stderr") is not None}
    if examples:
        said = ", ".join(f"{name} ± {power(value)}" for name, value in examples.items())
        lines.append(f"    other validation examples, as many, would move: {said}")
    return lines + [f"    {warning}" for warning in fit["warnings"]]


def excluded_lines(excluded: Sequence[Mapping]) -> list[str]:
    """How many rows went before a fit, and by what rules, from `vars(Exclusion)`."""
    rules = dict.fromkeys(one["rule"] for one in excluded)
    return (
        [f"    left out before fitting: {len(excluded)} row{'s'[: len(excluded) != 1]} ({'; '.join(rules)})"]
        if excluded
        else []
    )


def held_out_text(fit: Mapping) -> str:
    """Leave-one-out and leave-largest-out error of a fit, or why there is none; "" where none was asked for."""
    parts = []
    left, largest = fit.get("leave_one_out"), fit.get("leave_largest_out")
    if left and left["reason"]:
        parts.append(f"no error of each run left out in turn: {left['reason']}")
    elif left:
        parts.append(f"each run left out in turn: rms error {percent(left['rms_relative_error'], signed=False)}")
    if largest and largest["reason"]:
        parts.append(f"the largest ({', '.join(largest['runs'])}) is not predicted: {largest['reason']}")
    elif largest:
        where = "inside" if largest["covered"] else "OUTSIDE"
        parts.append(
            f"largest ({', '.join(largest['runs'])}) from the others: error {percent(largest['relative_error'])}, "
            f"{where} "
            "its 95 % interval"
        )
    return "; ".join(parts)


def comparison_line(comparison: Mapping) -> str:
    """Which law predicts held-out runs best; "" where there is nothing to compare."""
    if not comparison["preferred"]:
        return ""
    rows = [
        f"{name} {percent(row['leave_one_out_rms'], signed=False)}"
        for name, row in comparison["laws"].items()
        if row["leave_one_out_rms"] is not None
    ]
    return f"by leave-one-out error the {comparison['preferred']} law predicts best ({', '.join(rows)})"


def allocation_lines(found: Mapping) -> list[str]:
    """One budget, from `Allocation.to_json`."""
    best, fixed = found["optimal"], found["fixed_steps"]
    lines = [
        f"budget {power(found['budget_flops'])} FLOPs: {_sized(best['params'])} parameters, {_sized(best['images'])} "
        "images, "
        f"loss {_estimate(best['loss'], '.4f')}; the size grows as C^{_estimate(found['exponent_a'], '.3f')}"
        + _beyond(found["beyond"]["budget"], "the FLOPs of the largest run"),
        f"    fixed steps ({count(fixed['images_of_every_run'])} images for every size): "
        f"{count(fixed['params']['value'])} "
        f"parameters, loss {_estimate(fixed['loss'], '.4f')}, {percent(found['excess_loss_of_fixed_steps']['value'])} "
        f"of the optimum's{_beyond(found['beyond']['fixed_params'], 'the largest size')}"
        f"{_beyond(found['beyond']['fixed_images'], 'the most images')}",
        f"    cost: {power(found['cost']['kappa'])} · params^{found['cost']['eta']:.3f} · images FLOPs "
        f"({found['cost']['source']})",
    ]
    return lines + [f"    {warning}" for warning in found["warnings"]]


def prediction_line(found: Mapping) -> str:
    """The loss that a law of compute gives a budget."""
    return (
        f"budget {power(found['budget_flops'])} FLOPs: loss "
        f"{interval(found['loss'], found['low'], found['high'], '.4f')} by the "
        f"{found['law']} law; a new run {interval(found['loss'], found['new_run_low'], found['new_run_high'], '.4f')}"
        + _beyond(found["beyond"], "the largest run")
    )


def approach_lines(found: Mapping) -> list[str]:
    """Approach 1 or 2, from `Line.to_json`."""
    notes = [f"    left out: {note}" for note in found["notes"]]
    if found["a"] is None:
        return [f"{found['approach']}: no line: {found['reason']}", *notes]
    lines = [
        f"{found['approach']}: N grows as C^{_estimate(found['a'], '.3f')}, images as "
        f"C^{_estimate(found['b'], '.3f')}, "
        f"from the best sizes at {len(found['optima'])} budgets"
    ]
    bias = found["bias_on_fitted_parametric_law"]
    if bias and not bias["reason"]:
        worst = max(bias["params_relative"], key=abs)
        lines.append(
            "    its bias, on the parametric law fitted to these runs: exponent "
            f"{minus(format(bias['exponent'], '+.4f'))}, "
            f"N up to {percent(worst)}"
        )
    elif bias:
        lines.append(f"    its bias is unknown: {bias['reason']}")
    return lines + notes


def approach_budget_line(found: Mapping) -> str:
    """What approach 1's or 2's line gives a budget."""
    return (
        f"budget {power(found['budget_flops'])} FLOPs by {found['approach']}: {_sized(found['params'])} parameters, "
        f"{_sized(found['images'])} images{_beyond(found['beyond'], 'the largest budget with a best size')}"
    )


def correlation_line(name: str, found: Mapping) -> str:
    """Loss against one score, from `Correlation.to_json`."""
    if not found["coefficients"]:
        return f"no correlation of loss with {name}: {found['reason']}"
    shown = "; ".join(
        f"{c['name']} {interval(c['value'], c['low'], c['high'])} p = {p_value(c['p'])}" for c in found["coefficients"]
    )
    return f"loss against {name} over {found['n']} runs ({found['p_method']}): {shown}"


def prediction_lines(name: str, predicted: Sequence[Mapping]) -> list[str]:
    """The largest run's score predicted by the links from the others, from `vars(ScorePrediction)`."""
    return [
        f"{name} of {p['run']} from its loss, by the {p['link']} link over the {p['n']} others: "
        f"{interval(p['predicted'], p['low'], p['high'])}, got {interval(p['actual'], None, None)}, "
        f"{'inside' if p['covered'] else 'OUTSIDE'} the 95 % interval"
        if p["predicted"] is not None
        else f"{name} of {p['run']} is not predicted by the {p['link']} link: {p['reason']}"
        for p in predicted
    ]


def analysis_lines(analysis: Mapping) -> list[str]:
    """The headline law and the held-out prediction in a terminal, from `Analysis.to_json`."""
    lines = fit_lines(analysis["fits"][analysis["headline"]]) if analysis["headline"] else []
    if analysis["headline_reason"]:
        lines.append(f"{'note' if analysis['headline'] else 'no law'}: {analysis['headline_reason']}")
    for p in (analysis["held_out"] or {"predictions": ()})["predictions"]:
        lines.append(
            f"held out depth {analysis['held_out']['depth']} ({p['run']}): the {analysis['held_out']['fit']['law']} "
            "law predicted "
            f"{interval(p['predicted'], p['low'], p['high'], '.4f')}, got {loss(p['actual'])}: error "
            f"{percent(p['relative_error'])}, "
            f"{'inside' if p['covered'] else 'OUTSIDE'} the 95 % interval"
        )
    if analysis["held_out_reason"]:
        lines.append(f"nothing held out: {analysis['held_out_reason']}")
    return lines


def _beyond(factor, what):
    return f"; {factor:.3g} times {what}" if factor > 1.005 else ""


def _estimate(estimate, form):
    return interval(estimate["value"], estimate["low"], estimate["high"], form)


def _sized(estimate):
    value, low, high = (estimate[key] for key in ("value", "low", "high"))
    return count(value) if low is None else f"{count(value)} [{count(low)}, {count(high)}]"
