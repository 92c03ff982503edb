"""Writes the report's findings, and warns of what could mislead a reader."""

from __future__ import annotations

from collections.abc import Mapping

from rfjax.laws.left_out import LeftOut
from rfjax.report import rates
from rfjax.report.crowds import names
from rfjax.report.fit_facts import as_prose, correlation_fact, headline_fact, held_out_facts, overall_scores
from rfjax.report.formats import count, duration, estimate, loss, minus, power, score, text
from rfjax.report.html_parts import bullets
from rfjax.report.ranking_section import ranking_sentence
from rfjax.report.temporal_section import temporal_sentence
from rfjax.report.tuned_section import tuned_sentences


def subtitle(numbers: Mapping) -> str:
    """Returns a line of HTML on the runs, their devices and their cost."""
    totals, environment = numbers["totals"], numbers["environment"]
    corpora = environment["train_corpus"] or [numbers["settings"]["corpus"]]
    kinds = ", ".join(map(str, environment["device_kind"]))
    where = f" on {text(kinds)}" if kinds else ""
    spent = {"seconds": totals["train_seconds"], "flops": totals["flops"]}
    if any(run["role"] == "trunk" or run["trunk"] for run in numbers["runs"]):  # they share the cost of their trunk
        spent = {name: totals[f"spent_{name}"] for name in spent}
    return (
        f"{totals['finished']} of {totals['runs']} runs finished on the {'corpus' if len(corpora) == 1 else 'corpora'} "
        f"<i>{text(', '.join(corpora))}</i>{where}; "
        f"{duration(spent['seconds'])} of training, {duration(totals['evaluation_seconds'])} of evaluation, "
        f"{power(spent['flops'])} training FLOPs"
    )


def findings(numbers: Mapping, page: object) -> str:
    """Returns the list of findings and warnings, as HTML."""
    points = SENTENCES[numbers["compares"]](numbers)
    points += [f"<b>{text(warning)}</b>" for warning in warnings(numbers)]
    return bullets(points, "findings")


def _variants_sentences(numbers):
    """Returns sentences on the best variant, and on the run of lowest loss on each corpus."""
    points = [ranking_sentence(numbers["ranking"])]
    for corpus in numbers["environment"]["train_corpus"]:
        ended = [run for run in numbers["runs"] if run["corpus"] == corpus and run["loss"] is not None]
        if ended:
            best = min(ended, key=lambda run: run["loss"])
            points.append(
                f"On {text(corpus)} the lowest validation loss of {len(ended)} runs is "
                f"{loss(best['loss'], best['loss_stderr'])}, of {text(best['run'])}."
            )
    return points


def _sizes_sentences(numbers):
    """Returns sentences on loss and score by size, on the law of compute and its prediction errors and, if there are
    any, on clips, tuned runs and ranked variants."""
    analysis = numbers["analysis"]
    points = _depths_sentences(numbers) + [as_prose(headline_fact(analysis)), *map(as_prose, held_out_facts(analysis))]
    points += [
        as_prose(correlation_fact(name, found, only="Spearman"))
        for name, found in overall_scores(numbers)
        if found["coefficients"]
    ]
    points += [temporal_sentence(numbers["temporal"])] if numbers["temporal"] else []
    points += tuned_sentences(numbers["tuned"])
    return points + ([ranking_sentence(numbers["ranking"])] if numbers["ranking"] else [])


def _depths_sentences(numbers):
    """Returns sentences on loss and score at the smallest and the largest depth."""
    depths, trends = numbers["depths"], numbers["trends"]
    if not depths:
        return []
    first, last = depths[0], depths[-1]
    if len(depths) == 1:
        shown = f", overall GenEval {score(first)}" if first["score"] is not None else ""
        return [f"Depth {first['depth']}: validation loss {loss(first['loss'], first['loss_stderr'])}{shown}."]
    points = [
        f"Validation loss goes from {loss(first['loss'])} at depth {first['depth']} to {loss(last['loss'])} "
        f"at depth {last['depth']} (Spearman with depth over the best run of each: "
        f"{_coefficient(trends['loss']['best_per_depth'])}; over all {trends['loss']['n']} runs: "
        f"{_coefficient(trends['loss']['all_runs'])})."
    ]
    if first["score"] is not None and last["score"] is not None:
        points.append(
            f"Overall GenEval goes from {score(first)} to {score(last)} "
            f"(Spearman with depth: {_coefficient(trends['score']['best_per_depth'])}). {_floors_sentence(numbers)}"
        )
    return points + _pairs_sentences(numbers)


def _rates_sentences(numbers):
    """Returns sentences on the best learning rate of each size, and on whether the sizes agree on the best rate."""
    points = [
        f"The best learning rate of {text(rates.name_of(each))} is {text(rates.shown(each))}."
        for each in numbers["learning_rates"]
    ]
    return points + [text(sentence) for sentence in rates.sentences(numbers)]


# what a study compares -> the function that writes its findings
SENTENCES = {"sizes": _sizes_sentences, "variants": _variants_sentences, "rates": _rates_sentences}


def warnings(numbers: Mapping) -> list[str]:
    """Returns warnings that a reader needs before trusting the numbers, as plain sentences."""
    lines = []
    for sweep in (sweep for sweep in numbers["learning_rates"] if sweep["at_edge"]):
        edge, remedy = rates.edge_of(sweep)
        named, images = ", ".join([f"depth {sweep['depth']}", *sweep["named"]]), count(sweep["images"])
        lines.append(f"The best learning rate of {named} ({images} images) is {edge}, {sweep['best']:g}: {remedy}.")
    failed, unfinished = (names([run["run"] for run in numbers[name]]) for name in ("failures", "unfinished"))
    if failed:
        lines.append(f"{len(numbers['failures'])} of {numbers['totals']['runs']} runs failed: {failed}.")
    if unfinished:
        lines.append(f"Not finished when the table was made: {unfinished}.")
    lines += [
        f"Not among the points: {str(LeftOut(**each)).removeprefix('left out: ')}." for each in numbers["left_out"]
    ]
    lines += _in_no_sweep(numbers["in_no_sweep"])
    lines += [
        f"Not among the scores and their correlations: {str(LeftOut(**each)).removeprefix('left out: ')}."
        for each in numbers["without_score"]
    ]
    lines += [
        f"The averaged weights of {each['run']} have a loss of {each['ema']:.4g}, the raw weights {each['raw']:.4g}: "
        "the average lags. Judge the raw weights, or average over fewer steps (train.ema_decay, train.ema_every)."
        for each in numbers["lagging_averages"]
    ]
    for each in numbers["not_shown"]:
        lines.append(f"Not shown under {each['section']}: {names(each['runs'])}; {each['reason']}.")
    if len(numbers["environment"]["code_hash"]) > 1:
        lines.append(f"The runs were trained by {len(numbers['environment']['code_hash'])} versions of the code.")
    return lines + [
        f"The runs on {corpus} were trained on {versions} versions of the data."
        for corpus, versions in numbers["environment"]["corpora_that_changed"].items()
    ]


def _in_no_sweep(left_out):
    """Returns a line for each reason why finished runs are in no sweep of the learning rate, with the first run's
    command as an example."""
    reasons: dict[str, list] = {}
    for each in left_out:
        reasons.setdefault(each["why"], []).append(each)
    return [
        f"In no sweep of the learning rate: {names([each['run'] for each in found])}, as each {why}"
        + (f". For the first: {found[0]['command']}" if found[0]["command"] else ".")
        for why, found in reasons.items()
    ]


def _coefficient(value):
    return "not defined" if value is None else minus(f"{value:.2f}")


def _floors_sentence(numbers):
    """Returns a sentence on whether the score of the largest depth lies above both floors."""
    runs = [run for run in numbers["geneval"]["runs"] if run["best_of_depth"]]
    if not runs:
        return ""
    above = {item: flag for item, flag in runs[-1]["above_floor"].items() if item != "overall" and flag is not None}
    overall = runs[-1]["above_floor"].get("overall")
    if overall is None:
        return "No floor was measured."
    where = "above" if overall else "not clear of"
    return (
        f"At depth {runs[-1]['depth']} the score's interval is {where} the intervals of both floors overall, and above "
        f"them in {sum(above.values())} of {len(above)} tasks."
    )


def _pairs_sentences(numbers):
    """Returns a sentence on the score of the largest depth on (colour, shape) pairs that it was never trained on."""
    runs = [run for run in numbers["geneval"]["runs"] if run["best_of_depth"]]
    new, others = (runs[-1][kind].get("overall") for kind in ("held_out", "seen")) if runs else (None, None)
    if any(pair is None or pair["value"] is None for pair in (new, others)):
        return []
    return [
        f"On prompts with (colour, shape) pairs never trained on, depth {runs[-1]['depth']} scores {estimate(new)}; "
        f"on the others {estimate(others)}."
    ]
