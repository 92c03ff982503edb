"""Puts the JSON of fits, predictions, budgets and correlations into sentences.

A fact is a list of sentences without capital and full stop. The first sentence states the finding, the others its
basis. The console prints facts as lines (`as_lines`); the report's page shows them as prose (`as_prose`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from rfjax.console import printable
from rfjax.report.formats import (
    count,
    estimate,
    interval,
    loss,
    minus,
    p_value,
    parameter,
    percent,
    power,
    sentence,
)
from rfjax.results.many_runs import ANCHORS, are_many

Fact = Sequence[str]


def as_lines(facts: Iterable[Fact]) -> list[str]:
    """Formats facts for the console: each fact's first sentence as a line, and its other sentences as indented lines
    below."""
    return ["    " * bool(place) + printable(line) for fact in facts for place, line in enumerate(fact)]


def as_prose(fact: Fact) -> str:
    """Returns a fact as sentences with capital and full stop, safe for HTML."""
    return " ".join(map(sentence, fact))


def fit_fact(fit: Mapping, rule: str = "") -> list[str]:
    """States a fit, given as `Fit.to_json()`: the law and its parameters, the `rule` that chose its runs, its errors
    and its warnings. If there is no fit, says why."""
    if not fit["identifiable"]:
        return [f"{fit['law']} law: not fitted: {fit['reason']}"]
    parameters = ", ".join(f"{name} = {parameter(name, found)}" for name, found in fit["parameters"].items())
    fact = [f"{fit['law']} law: loss = {fit['formula']} over {fit['n']} runs: {parameters}"]
    fact += [rule] if rule else []
    errors = _held_out_errors(fit)
    fact += [errors] if errors else []
    fact += [_scatter_sentence(fit["scatter"])] if "scatter" in fit else []
    fact += exclusion_sentences(fit["excluded"])
    examples = {name: found.get("examples_stderr") for name, found in fit["parameters"].items()}
    moves = ", ".join(f"{name} ± {power(value)}" for name, value in examples.items() if value is not None)
    by_way = f" (approximated from the covariances with {ANCHORS} runs)" if are_many(fit["n"]) else ""
    fact += [f"standard errors due to the choice of validation examples: {moves}{by_way}"] if moves else []
    return fact + list(fit["warnings"])


def _scatter_sentence(scatter):
    """States the noise between trunks and within a trunk, and how this noise was estimated."""
    parts = ", ".join(
        f"{name} {interval(100 * found['value'], 100 * found['low'], 100 * found['high'], '.1f')} %"
        for name, found in ((name, scatter[name]) for name in ("between", "within"))
    )
    several = scatter["sizes_with_several_seeds"]
    known = f"{several} size{'s'[: several != 1]} with several seeds" if several else "no size with two seeds"
    assumed = ", ".join(percent(scatter[f"assumed_{name}"], signed=False) for name in ("between", "within"))
    return f"noise of the {scatter['trunks']} trunks: {parts}; from {known}, and assumed scales of {assumed}"


def _held_out_errors(fit):
    """States the prediction errors of a fit with each trunk, each run and the largest run left out, or why there are
    none; "" if none were requested."""
    parts = []
    largest, of_trunks = fit.get("leave_largest_out"), fit.get("leave_trunk_out")
    left_out = [("trunk", of_trunks, ""), ("run", fit.get("leave_one_out"), ", optimistic" if of_trunks else "")]
    for unit, left, remark in left_out:
        if left and left["reason"]:
            parts.append(f"no error of {_left_out_how(left, unit)}: {left['reason']}")
        elif left:
            rms = percent(left["rms_relative_error"], signed=False)
            parts.append(f"{_left_out_how(left, unit)}: rms error {rms}{remark}")
    if largest:
        runs = f"({', '.join(largest['runs'])})"
        parts.append(
            f"the largest {runs} is not predicted: {largest['reason']}"
            if largest["reason"]
            else f"largest {runs} from the others: error {percent(largest['relative_error'])}, {_where(largest, 'its')}"
        )
    return "; ".join(parts)


def _left_out_how(left, unit):
    return f"{unit}s left out in {left['folds']} folds" if "folds" in left else f"each {unit} left out in turn"


def exclusion_sentences(excluded: Sequence[Mapping]) -> list[str]:
    """States how many rows were left out before a fit, and by which rules, given the `Exclusion`s as JSON; empty if no
    row was left out."""
    rules = "; ".join(dict.fromkeys(exclusion["rule"] for exclusion in excluded))
    rows = f"{len(excluded)} row{'s'[: len(excluded) != 1]}"
    return [f"left out before fitting: {rows} ({rules})"] if excluded else []


def comparison_facts(comparison: Mapping) -> list[Fact]:
    """States which law predicts held-out runs best, over the runs that all laws were fitted to, or why laws are not
    compared; empty for a single law."""
    laws, best, runs = comparison["laws"], comparison["preferred"], len(comparison["shared_runs"])
    if len(laws) < 2:
        return []
    without = [f"not compared: the {name} law: {row['reason']}" for name, row in laws.items() if row["reason"]]
    if not best:
        return [[f"laws are not compared: {comparison['reason']}"]]
    errors = {name: row["shared_runs_rms"] for name, row in laws.items()}
    rows = ", ".join(f"{name} {percent(rms, signed=False)}" for name, rms in errors.items() if rms is not None)
    share = comparison["preferred_share"]
    often = "" if share is None else "more than 99 %" if share > 0.99 else f"{100 * share:.0f} %"
    sure = f"; best in {often} of resamples of these runs" if often else ""
    folds = comparison.get("folds")
    by = f"the error of runs left out in {folds} folds" if folds else "leave-one-out error"
    return [[f"by {by} the {best} law predicts best over the same {runs} runs ({rows}{sure})", *without]]


def optimal_frontier_facts(found: Mapping) -> list[Fact]:
    """States the compute-optimal frontier in `found["optimal_frontier"]`, or the reason why there is none."""
    frontier = found["optimal_frontier"]
    if frontier is None:
        return [[f"no compute-optimal frontier of the parametric law: {found['optimal_frontier_reason']}"]]
    powers = [f"{name} = {_power_of_compute(frontier[name])}" for name in ("params", "images")]
    loss = f"loss = {parameter('E', frontier['loss']['E'])} + {_power_of_compute(frontier['loss'], '-')}"
    fact = [f"compute-optimal frontier of the parametric law, for C FLOPs: {', '.join([*powers, loss])}"]
    places = ("the least of the runs", "the most of the runs", "beyond the runs")
    for place, at in zip(places, frontier["points"], strict=True):
        fact.append(
            f"at {power(at['flops'])} FLOPs ({place}): {estimate(at['params'], count)} parameters, "
            f"{estimate(at['images'], count)} images ({estimate(at['images_per_param'], power)} a parameter), "
            f"loss {estimate(at['loss'], '.4f')}"
        )
    return [[*fact, cost_sentence(frontier["cost"]), frontier["convention"]]]


def _power_of_compute(found, sign=""):
    return f"{power(found['coefficient'])}·C^{sign}{estimate(found['exponent'], '.3f')}"


def cost_sentence(cost: Mapping) -> str:
    """States the formula of training FLOPs, given a `Cost` as JSON, with the formula's source and its largest error
    over the runs."""
    off = f", off by up to {percent(cost['worst'], signed=False)}" if cost["worst"] >= 5e-5 else ""
    return f"cost: {power(cost['kappa'])} · params^{cost['eta']:.3f} · images FLOPs ({cost['source']}{off})"


def headline_fact(analysis: Mapping) -> list[str]:
    """States the law of compute that the report shows, given `Analysis.to_json()`, or why there is none."""
    reason = analysis["headline_reason"]
    if not analysis["headline"]:
        return [f"no law of compute was fitted: {reason}"]
    return fit_fact(analysis["fits"][analysis["headline"]]) + ([reason] if reason else [])


def held_out_facts(analysis: Mapping) -> list[Fact]:
    """States how well laws that are fitted to the other depths predict the runs of the largest depth: a fact for each
    run. `analysis` is `Analysis.to_json()`.

    For a run off the frontier, the parametric law's prediction comes first, because the law of compute holds on the
    frontier only.
    """
    held = analysis["held_out"]
    if not held:
        return [[f"nothing was held out: {analysis['held_out_reason']}"]]
    runs = dict.fromkeys(p["run"] for p in held["predictions"])
    return [_held_out_fact(held, [p for p in held["predictions"] if p["run"] == run]) for run in runs]


def _held_out_fact(held, predictions):
    run, on_frontier = predictions[0]["run"], predictions[0]["on_frontier"]
    said = [
        f"the {p['law']} law predicted {interval(p['predicted'], p['low'], p['high'], '.4f')}, "
        f"got {loss(p['actual'])}: error {percent(p['relative_error'])}, {_where(p)}"
        for p in predictions
    ]
    said[0] = f"held out depth {held['depth']} ({run}): {said[0]}"
    if on_frontier:
        return said
    better = predictions[0]["better"]
    than = f"{better} got a lower loss for no more FLOPs" if better else "runs of no more FLOPs have a lower mean loss"
    said[-1] += ", but a law of compute predicts frontier runs only"
    if predictions[0]["counts"]:
        return [said[0], f"this prediction counts, as the run is off the frontier: {than}", *said[1:]]
    reason = held["parametric_reason"]
    return [*said, f"the run is off the frontier: {than}", f"no prediction counts: no parametric law: {reason}"]


def allocation_fact(found: Mapping) -> list[str]:
    """States how to divide a budget, given `Allocation.to_json()`: the optimum, the design that trains every size
    on the same number of images, the cost, and warnings."""
    best, fixed, cost, beyond = found["optimal"], found["fixed_steps"], found["cost"], found["beyond"]
    return [
        f"budget {power(found['budget_flops'])} FLOPs: {estimate(best['params'], count)} parameters, "
        f"{estimate(best['images'], count)} images, loss {estimate(best['loss'], '.4f')}; "
        f"the size grows as C^{estimate(found['exponent_a'], '.3f')}"
        + _beyond(beyond["budget"], "the FLOPs of the largest run"),
        f"fixed steps ({count(fixed['images_of_every_run'])} images for every size): "
        f"{count(fixed['params']['value'])} parameters, loss {estimate(fixed['loss'], '.4f')}, "
        f"{percent(found['excess_loss_of_fixed_steps']['value'])} against the optimum's"
        + _beyond(beyond["fixed_params"], "the largest size")
        + _beyond(beyond["fixed_images"], "the most images"),
        cost_sentence(cost),
        *found["warnings"],
    ]


def plan_fact(analysis: Mapping) -> list[str]:
    """States how best to divide a budget larger than any run's between parameters and images, given
    `Analysis.to_json()`, or why that is not known."""
    if analysis["plan"] is None:
        return [f"how to divide a larger budget is not known: {analysis['plan_reason']}"]
    return allocation_fact(analysis["plan"])


def budget_fact(found: Mapping) -> list[str]:
    """States the loss that a law of compute predicts for a budget, with its intervals."""
    return [
        f"budget {power(found['budget_flops'])} FLOPs: loss "
        f"{interval(found['loss'], found['low'], found['high'], '.4f')} by the {found['law']} law; a new run "
        f"{interval(found['loss'], found['new_run_low'], found['new_run_high'], '.4f')}"
        + _beyond(found["beyond"], "the largest run")
    ]


def approach_fact(found: Mapping) -> list[str]:
    """States the line of optimal sizes of approach 1 or 2, given `Line.to_json()`: its exponents, its bias, and notes
    on what was left out. If there is no line, says why."""
    notes = [f"left out: {note}" for note in found["notes"]]
    if found["a"] is None:
        return [f"{found['approach']}: no line: {found['reason']}", *notes]
    fact = [
        f"{found['approach']}: N grows as C^{estimate(found['a'], '.3f')}, images as "
        f"C^{estimate(found['b'], '.3f')}, from the best sizes at {len(found['optima'])} budgets"
    ]
    bias = found["bias_on_fitted_parametric_law"]
    if bias and bias["reason"]:
        fact.append(f"its bias is unknown: {bias['reason']}")
    elif bias:
        fact.append(
            f"its bias, on the parametric law fitted to these runs: exponent {minus(format(bias['exponent'], '+.4f'))}"
            f", N up to {percent(max(bias['params_relative'], key=abs))}"
        )
    return fact + notes


def approach_budget_fact(found: Mapping) -> list[str]:
    """States the size and the number of images that the line of approach 1 or 2 gives for a budget."""
    return [
        f"budget {power(found['budget_flops'])} FLOPs by {found['approach']}: {estimate(found['params'], count)} "
        f"parameters, {estimate(found['images'], count)} images"
        + _beyond(found["beyond"], "the largest budget with a best size")
    ]


def profile_facts(profiles: Mapping[str, Mapping[str, Mapping]]) -> list[Fact]:
    """States the profile-likelihood interval of each parameter that has one, given the `Profile`s as JSON; an interval
    may have no end on one side."""
    facts = []
    for law, found in profiles.items():
        for name, p in found.items():
            ends = zip(("lower", "upper"), ("low", "high"), p["at_bound"], strict=True)
            open_ends = "".join(
                f"; no {word} end: {p[end]:.4g} is not excluded either" for word, end, at_bound in ends if at_bound
            )
            facts.append([f"{law} law, {p['method']}: {name} = {parameter(name, p)}{open_ends}"])
    return facts


def correlation_fact(name: str, found: Mapping, only: str = "") -> list[str]:
    """States the correlation of the loss with a score, given a `Correlation` as JSON: all coefficients, or those with
    `only` in their name."""
    if not found["coefficients"]:
        return [f"no correlation of loss with {name}: {found['reason']}"]
    coefficients = "; ".join(
        f"{c['name']} {estimate(c)} p = {p_value(c['p'])}" for c in found["coefficients"] if only in c["name"]
    )
    return [f"loss against {name} over {found['n']} runs ({found['p_method']}): {coefficients}"]


def largest_score_facts(name: str, predicted: Sequence[Mapping]) -> list[Fact]:
    """States which score each link (a curve from loss to score), fitted to the other runs, predicts for the largest
    run. `predicted` are `ScorePrediction`s as JSON."""
    return [
        [
            f"{name} of {p['run']} from its loss, by the {p['link']} link over the {p['n']} others: "
            f"{interval(p['predicted'], p['low'], p['high'])}, got {interval(p['actual'], None, None)}, {_where(p)}"
            + (" (along the curve's tangent)" if are_many(p["n"]) else "")
            + (f" ({p['method']})" if "trunks" in p["method"] else "")
            if p["predicted"] is not None
            else f"{name} of {p['run']} is not predicted by the {p['link']} link: {p['reason']}"
        ]
        for p in predicted
    ]


def overall_scores(numbers: Mapping) -> list[tuple[str, Mapping]]:
    """Returns (name, `Correlation` with the overall score as JSON) for each kind of score in the report's numbers."""
    kinds = [("GenEval", numbers["correlation"])]
    kinds += [(kind["title"], kind["correlation"]) for kind in numbers["folder_scores"]]
    return [(name, items["overall"]) for name, items in kinds if "overall" in items]


def _where(predicted, whose="the"):
    return f"{'inside' if predicted['covered'] else 'OUTSIDE'} {whose} 95 % interval"


def _beyond(factor, what):
    return f"; {factor:.3g} times {what}" if factor > 1.005 else ""
