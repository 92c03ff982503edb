"""The report's findings, one sentence each, and what a reader must be warned of."""

from __future__ import annotations

from collections.abc import Mapping

from rfjax.report.formats import (
    count,
    duration,
    interval,
    loss,
    minus,
    p_value,
    parameter,
    percent,
    power,
    score,
    sentence,
    text,
)
from rfjax.report.ranking_section import ranking_sentence


def subtitle(numbers: Mapping) -> str:
    totals, environment = numbers["totals"], numbers["environment"]
    corpora = environment["train_corpus"] or [numbers["settings"]["corpus"]]
    kinds = ", ".join(map(str, environment["device_kind"]))
    where = f" on {text(kinds)}" if kinds else ""
    return (
        f"{totals['finished']} of {totals['runs']} runs finished on the {'corpus' if len(corpora) == 1 else 'corpora'} "
        f"<i>{text(', '.join(corpora))}</i>{where}; "
        f"{duration(totals['train_seconds'])} of training, {duration(totals['evaluation_seconds'])} of evaluation, "
        f"{power(totals['flops'])} training FLOPs"
    )


def findings(numbers: Mapping, *_) -> str:
    """The findings, one sentence each."""
    points = _of_variants(numbers) if numbers["compares"] == "variants" else _of_sizes(numbers)
    points += [f"<b>{text(warning)}</b>" for warning in warnings(numbers)]
    return "<ul class=findings>" + "".join(f"<li>{point}</li>" for point in points) + "</ul>"


def _of_variants(numbers):
    """What came first in the ranking, and which had the lowest loss on each corpus."""
    points = [ranking_sentence(numbers["ranking"])]
    for corpus in numbers["environment"]["train_corpus"]:
        ended = [run for run in numbers["runs"] if run["corpus"] == corpus and run["loss"] is not None]
        if ended:
            best = min(ended, key=lambda run: run["loss"])
            points.append(
                f"On {text(corpus)} the lowest validation loss of {len(ended)} runs is "
                f"{loss(best['loss'], best['loss_stderr'])}, of "
                f"{text(best['run'])}."
            )
    return points


def _of_sizes(numbers):
    points = []
    depths, trends = numbers["depths"], numbers["trends"]
    if len(depths) == 1:
        shown = f", overall GenEval {score(depths[0])}" if depths[0]["score"] is not None else ""
        points.append(
            f"Depth {depths[0]['depth']}: validation loss {loss(depths[0]['loss'], depths[0]['loss_stderr'])}{shown}."
        )
    if len(depths) > 1:
        first, last = depths[0], depths[-1]
        line = (
            f"Validation loss goes from {loss(first['loss'])} at depth {first['depth']} to {loss(last['loss'])} "
            "at depth "
            f"{last['depth']} (Spearman with depth over the best run of each: "
            f"{_signed(trends['loss']['best_per_depth'])}"
        )
        points.append(line + f"; over all {trends['loss']['n']} runs: {_signed(trends['loss']['all_runs'])}).")
        if first["score"] is not None and last["score"] is not None:
            points.append(
                f"Overall GenEval goes from {score(first)} to {score(last)} "
                f"(Spearman with depth: {_signed(trends['score']['best_per_depth'])}). {_standing(numbers)}"
            )
        points += _pairs_sentence(numbers)
    analysis = numbers["analysis"]
    if analysis["headline"]:
        points.append(_law_sentence(analysis["fits"][analysis["headline"]]))
    else:
        points.append(f"No law of compute was fitted: {text(analysis['headline_reason'])}.")
    points += _held_out_sentences(numbers) or [f"Nothing was held out: {text(analysis['held_out_reason'])}."]
    measured = [("overall GenEval", numbers["correlation"])]
    measured += [(f"{one['title']}, overall", one["correlation"]) for one in numbers["folder_scores"]]
    for name, items in measured:
        found = items.get("overall")
        if not found or not found["coefficients"]:
            continue
        rank = next(c for c in found["coefficients"] if c["name"] == "Spearman")
        points.append(
            f"Validation loss and {text(name)}: Spearman {interval(rank['value'], rank['low'], rank['high'])}, "
            f"p = {p_value(rank['p'])} over {found['n']} runs."
        )
    if numbers["ranking"]:
        points.append(ranking_sentence(numbers["ranking"]))
    return points


def warnings(numbers: Mapping) -> list[str]:
    """What a reader must know before trusting the rest, as plain sentences."""
    lines = [
        f"The best learning rate of depth {sweep['depth']} ({count(sweep['images'])} images) is the "
        f"{sweep['edge']} of its "
        f"grid, {sweep['best']:g}: widen the grid."
        for sweep in numbers["learning_rates"]
        if sweep["at_edge"]
    ]
    if numbers["failures"]:
        lines.append(
            f"{len(numbers['failures'])} of {numbers['totals']['runs']} runs failed: "
            f"{', '.join(r['run'] for r in numbers['failures'])}."
        )
    if numbers["unfinished"]:
        lines.append(f"Not finished when the table was made: {', '.join(r['run'] for r in numbers['unfinished'])}.")
    if len(numbers["environment"]["code_hash"]) > 1:
        lines.append(f"The runs were trained by {len(numbers['environment']['code_hash'])} versions of the code.")
    return lines + [
        f"The runs on {corpus} were trained on {versions} versions of the data."
        for corpus, versions in numbers["environment"]["corpora_that_changed"].items()
    ]


def _signed(value):
    return "not defined" if value is None else minus(f"{value:.2f}")


def _standing(numbers):
    """Where the largest depth's score stands between floor and ceiling."""
    runs = [run for run in numbers["geneval"]["runs"] if run["best_of_depth"]]
    if not runs:
        return ""
    above = {item: flag for item, flag in runs[-1]["above_floor"].items() if item != "overall" and flag is not None}
    overall = runs[-1]["above_floor"].get("overall")
    if overall is None:
        return "No floor was measured."
    where = "above" if overall else "not clear of"
    return (
        f"At depth {runs[-1]['depth']} its interval is {where} the intervals of both floors overall, and above them in "
        f"{sum(above.values())} of {len(above)} tasks."
    )


def _pairs_sentence(numbers):
    """How the largest depth does on pairs it has never seen."""
    runs = [run for run in numbers["geneval"]["runs"] if run["best_of_depth"]]
    pairs = [runs[-1][kind].get("overall") for kind in ("held_out", "seen")] if runs else [None]
    if any(pair is None or pair["value"] is None for pair in pairs):
        return []
    new, old = (interval(pair["value"], pair["low"], pair["high"]) for pair in pairs)
    return [
        f"On prompts with (colour, shape) pairs never trained on, depth {runs[-1]['depth']} scores {new}; on the "
        f"others {old}."
    ]


def _law_sentence(fit):
    shown = [f"<i>{name}</i> = {parameter(name, e)}" for name, e in fit["parameters"].items()]
    tail = "".join(f" {sentence(warning)}." for warning in fit["warnings"])
    return (
        f"Loss against compute C (in FLOPs) over {fit['n']} runs: <i>L</i> = {formula(fit)}, with "
        f"{', '.join(shown)} (95 % intervals).{tail}"
    )


def formula(fit):
    shown = {
        "power": "a·C<sup>−b</sup>",
        "saturating": "E + a·C<sup>−b</sup>",
        "parametric": "E + A·N<sup>−α</sup> + B·D<sup>−β</sup>",
    }
    return f"<i>{shown.get(fit['law'], text(fit['formula']))}</i>"


def _held_out_sentences(numbers):
    held = numbers["analysis"]["held_out"]
    return [
        f"Depth {held['depth']} held out: from the {held['fit']['n']} other runs the {held['fit']['law']} law predicts "
        f"{interval(p['predicted'], p['low'], p['high'], '.4f')} for {text(p['run'])} at {power(p['flops'])} "
        "FLOPs; it got "
        f"{loss(p['actual'])}: an error of {percent(p['relative_error'])}, {'inside' if p['covered'] else 'outside'} "
        "the 95 % interval."
        for p in (held or {"predictions": ()})["predictions"]
    ]
