"""Lists the report's figures and sections, and writes the sections that have no file of their own.

A section is a function of the report's numbers and the page, and returns safe HTML: all text from outside (names of
runs, prompts, messages) passes through `text`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from matplotlib.figure import Figure

from rfjax.report.average_widths import average_widths_figure, averages_section
from rfjax.report.claims_figure import claimed_laws
from rfjax.report.claims_section import claims_section
from rfjax.report.crowds import drawn_curves, drawn_levels, names, shown_of
from rfjax.report.figures import loss_against_compute, loss_against_steps, loss_per_level
from rfjax.report.findings import findings
from rfjax.report.fit_sections import compute_section
from rfjax.report.formats import count, duration, loss, power, score, sentence, text
from rfjax.report.frontier_figure import optimal_frontier
from rfjax.report.html_parts import bullets, figure_section
from rfjax.report.preference_section import preference_against_scores, preference_section
from rfjax.report.ranking_figures import average_ranks, quality_against_steps
from rfjax.report.ranking_section import ranking_section
from rfjax.report.rates import learning_rate_figure, rates_section
from rfjax.report.score_figures import (
    draw_against,
    geneval_against_depth,
    held_out_pairs,
    loss_against_geneval,
    score_against_steps,
)
from rfjax.report.score_sections import correlation_section, geneval_section, samples_section, steps_section
from rfjax.report.shapes_of_loss import level_exponents_and_collapse
from rfjax.report.temporal_figures import loss_against_temporal, temporal_against_compute
from rfjax.report.temporal_section import temporal_section
from rfjax.report.tuned_section import before_and_after, tuned_section
from rfjax.results.columns import PROTOCOLS


def _runs_section(numbers, page):
    """Returns the HTML of the table of runs, and of their corpus, devices and versions."""
    scored = any(run["score"] is not None for run in numbers["runs"])
    variants = numbers["compares"] != "sizes"
    header = ["run", "depth", "width", "params", "rate", "steps", "images", "FLOPs", "training", "loss"]
    rows = []
    for run in numbers["runs"]:
        end = loss(run["loss"], run["loss_stderr"]) if run["loss"] is not None else f"<i>{text(run['state'])}</i>"
        mark = "" if variants or run["frontier"] is not False else "<sup>†</sup>"
        network = [count(run[name]) for name in ("depth", "hidden", "params")]
        spent = [count(run["steps"]), count(run["images"]), power(run["flops"]), duration(run["train_seconds"])]
        row = [text(run["run"]), *network, power(run["learning_rate"], 2), *spent, end + mark]
        rows.append(row + ([score(run)] if scored else []))
    caption = "Every run, at its final checkpoint. Loss ± standard error over validation examples"
    caption += "; overall GenEval with its 95 % interval, clustered by prompt." if scored else "."
    if not variants and any(run["frontier"] is False for run in numbers["runs"]):
        caption += " †: another run has as low a loss with as few FLOPs, so no law of compute is fitted to this run."
    lineage = [
        f"{run['run']} from {run['parent_run']} at step {count(run['parent_step'])}"
        for run in numbers["runs"]
        if run["parent_run"]
    ]
    started = " Runs that started from a checkpoint, with the images and FLOPs spent on it counted in: "
    caption += f"{started}{text(names(lineage, between='; '))}." if lineage else ""
    caption += _roles_sentence(numbers)
    table = page.table(header + (["GenEval"] if scored else []), rows, caption)
    labels = {
        "train_corpus": "corpus",
        "corpus_fingerprint": "data",
        "formulation": "formulation",
        "schedule": "schedule",
        "platform": "platform",
        "device_kind": "device",
        "devices": "devices",
        "jax_version": "JAX",
        "code_hash": "code",
    }
    facts = [
        f"<dt>{label}</dt><dd>{text(', '.join(_shorten_hash(value) for value in numbers['environment'][name]))}</dd>"
        for name, label in labels.items()
        if numbers["environment"][name]
    ]
    return table + f"<dl>{''.join(facts)}</dl>"


def _roles_sentence(numbers):
    """Names the trunks, sweeps and tuned runs, and says how much compute branches saved."""
    parts = [
        f" No law, correlation or ranking takes the {count(len(each['runs']))} run(s) of role {text(each['role'])} "
        f"({text(names(each['runs']))}): {text(each['why'])}."
        for each in numbers["left_out_by_role"]
    ]
    branches = [run for run in numbers["runs"] if run["role"] == "branch" and run["flops"] is not None]
    if branches:
        alone = sum(run["flops"] for run in branches)
        taken = sum(run["spent_flops"] or 0.0 for run in numbers["runs"] if run["role"] in ("trunk", "branch"))
        parts.append(
            f" FLOPs and time of a branch are those of the same run trained alone, its trunk's included. Alone, "
            f"{len(branches)} branches would take {power(alone)} FLOPs; with shared trunks they took {power(taken)} "
            f"({taken / alone:.0%})."
        )
    return "".join(parts)


def _shorten_hash(value, length=24):
    """Returns the start of a long hash, and a short value whole; report.json has the whole hash."""
    shown = str(value)
    return shown if len(shown) <= length else shown[:16] + "…"


_curves_section = figure_section(
    "loss_against_steps",
    "Training loss (lines, means over windows of steps, under the density of t in training) and validation loss "
    "(markers) of every run, against steps and against training FLOPs.",
    lambda numbers: shown_of(len(drawn_curves(numbers)), len(numbers["curves"]), "runs", "curves.csv and wide.csv"),
)
_levels_section = figure_section(
    "loss_per_level",
    "Validation loss at each level of t, final checkpoints; solid: the run of most compute at each depth. Bars: 95 % "
    "intervals over examples. Right: relative to the run of least compute.",
    lambda numbers: shown_of(len(drawn_levels(numbers)), len(numbers["levels"]["runs"]), "runs", "wide.csv"),
)
_pairs_section = figure_section(
    "held_out_pairs",
    "Composition: GenEval on prompts that name a (colour, shape) pair which never occurs in training, and on the "
    "other prompts. Best run of each depth; 95 % intervals clustered by prompt.",
)


def _failures_section(numbers, page):
    """Returns the HTML of the section on runs that failed or have not finished, and on runs that the merge of the
    results table left out."""
    runs = [*numbers["failures"], *numbers["unfinished"]]
    parts = ["<p>Every run finished.</p>"]
    if runs:
        rows = [
            [text(r["run"]), count(r["depth"]), text(r["state"]), count(r["last_step"]), text(r["message"] or "–")]
            for r in runs
        ]
        caption = "Runs that failed, or had not finished when the table was made."
        parts = [page.table(["run", "depth", "state", "step", "message"], rows, caption, words=range(5))]
    if numbers["notes"]:
        parts.append(f"<p>Left out when the table was merged:</p>{bullets(list(map(text, numbers['notes'])))}")
    return "".join(parts)


def _method_section(numbers, page):
    """Returns the HTML of the section on method: how losses, FLOPs, fits and scores were computed, and the losses under
    every evaluation setting if there are several."""
    settings = numbers["settings"]
    corpora = numbers["environment"]["train_corpus"]
    shown = f"corpora {text(', '.join(corpora))}" if len(corpora) > 1 else f"corpus {text(settings['corpus'])}"
    items = [
        "<b>Time</b> runs from t = 0 (data) to t = 1 (noise). <b>Loss</b> is the squared error of the velocity, "
        "unweighted, mean over elements, then over validation examples, then over the levels of the grid. Noise is "
        "keyed by example and level: every run sees the very same (image, t, noise), so the difference of two runs is "
        "known far better than the standard errors of their losses suggest.",
        f"<b>Shown</b>: {shown}, {text(settings['weights'])} weights, grid {text(settings['grid'])}"
        + (f", sampler {text(settings['sampler'])}" if settings["sampler"] else "")
        + ". The paper's grid has the levels i/K and leaves t = 1 out of the mean.",
        "<b>FLOPs</b> are counted by formula: 2 per multiply-accumulate of matrix products, training three times the "
        "forward pass. Recomputation is left out; the FLOPs of the checkpoint that a run started from are included.",
        *(_fit_methods(numbers["analysis"]) if numbers["compares"] == "sizes" else []),
        "<b>GenEval</b>: the official rules; a score is the fraction of images that are correct, overall is the "
        "unweighted mean of the tasks, and intervals keep the images of a prompt together. The detectors work from "
        "pixels and are not those of the official benchmark: scores compare runs of this study, not models elsewhere.",
    ]
    others = numbers["other_settings"]
    parts = ["<ul>" + "".join(f"<li>{item}</li>" for item in items) + "</ul>"]
    if len(others) > 1:
        runs = [run["run"] for run in numbers["runs"] if any(run["run"] in kind["losses"] for kind in others)]
        rows = [[text(run)] + [loss(kind["losses"].get(run)) for kind in others] for run in runs]
        kinds = (f"{text(k['weights'])}<br><small>{text(k['grid'])}, seed {k['seed']}</small>" for k in others)
        parts.append(page.table(["run", *kinds], rows, "The final validation loss under every setting in the table."))
    return "".join(parts)


def _fit_methods(analysis):
    fit, held = next(iter(analysis["fits"].values())), analysis["held_out"]
    fits = [*analysis["fits"].values(), *((held["fit"], held["parametric"]) if held else ())]
    methods = dict.fromkeys(fit["interval_method"] for fit in fits if fit and fit["interval_method"])
    return [
        f"<b>Fits</b>: {text(fit['loss_function'])}, log x centred, analytic gradients, many starts. Only final, "
        "annealed checkpoints of runs and branches are fitted, one point each. The frontier holds the runs that no "
        "other beats in both loss and FLOPs; runs that differ in the seed alone are judged by their mean.",
        "<b>Intervals</b> are at 95 %. " + " ".join(map(sentence, methods)),
    ]


@dataclass(frozen=True)
class Drawing:
    """A figure of the report. `draw` takes the report's numbers and the look of each depth; it returns None if the
    numbers allow no figure. `title` is the picture's alternative text."""

    draw: Callable[[Mapping, Mapping], Figure | None]
    title: str
    narrow: bool = False  # narrower than the page
    studies: tuple[str, ...] = ("sizes",)  # the keys of SECTIONS for which it is drawn


# docs/README.md lists what a new measure in the report needs.
FIGURES: dict[str, Drawing] = {
    "loss_against_compute": Drawing(loss_against_compute, "Validation loss against training FLOPs"),
    "optimal_frontier": Drawing(optimal_frontier, "Compute-optimal loss, size and images against training FLOPs"),
    "claimed_laws": Drawing(claimed_laws, "Published laws of the optimal size beside the table's own"),
    "level_exponents_and_collapse": Drawing(
        level_exponents_and_collapse, "Exponent of the loss per level of t, and collapsed training curves"
    ),
    "loss_against_steps": Drawing(loss_against_steps, "Loss against steps and FLOPs"),
    "loss_per_level": Drawing(loss_per_level, "Validation loss per level of t"),
    "geneval_against_depth": Drawing(geneval_against_depth, "GenEval per task against depth"),
    "held_out_pairs": Drawing(held_out_pairs, "GenEval on held-out and seen pairs"),
    "loss_against_geneval": Drawing(loss_against_geneval, "Validation loss against GenEval", narrow=True),
    **{
        f"loss_against_{name}": Drawing(draw_against(name), f"Validation loss against {title}", narrow=True)
        for name, title in PROTOCOLS.items()
    },
    "score_against_steps": Drawing(
        score_against_steps, "GenEval and path length against sampling steps", studies=("sizes", "variants")
    ),
    "average_ranks": Drawing(average_ranks, "Average rank of every variant", studies=("sizes", "variants")),
    "quality_against_steps": Drawing(
        quality_against_steps, "GenEval and distance against sampling steps", studies=("sizes", "variants")
    ),
    "learning_rates": Drawing(
        learning_rate_figure, "Validation loss against learning rate", studies=("sizes", "rates")
    ),
    "average_widths": Drawing(
        average_widths_figure, "Validation loss against the width of the average", studies=("sizes", "rates")
    ),
    "temporal_against_compute": Drawing(temporal_against_compute, "Temporal GenEval against training FLOPs"),
    "preference_against_scores": Drawing(
        preference_against_scores, "Human preference against validation loss and GenEval"
    ),
    "before_and_after_tuning": Drawing(before_and_after, "Measures before and after tuning"),
    "loss_against_temporal": Drawing(loss_against_temporal, "Validation loss against temporal scores"),
}

# The sections of a study, by what it compares, in the order of the page. A section that returns "" is left out. Runs of
# one size have no law of compute, and training losses of different formulations cannot be compared.
SECTIONS: dict[str, tuple[tuple[str, Callable], ...]] = {
    "sizes": (
        ("Findings", findings),
        ("What ran", _runs_section),
        ("Loss against compute", compute_section),
        ("Claims of published laws", claims_section),
        ("Loss against steps", _curves_section),
        ("Loss per level of t", _levels_section),
        ("GenEval against depth", geneval_section),
        ("Held-out pairs", _pairs_section),
        ("Loss against GenEval", correlation_section),
        ("Human preference", preference_section),
        ("After tuning", tuned_section),
        ("Motion against compute", temporal_section),
        ("Sampling steps", steps_section),
        ("Ranking of variants", ranking_section),
        ("Samples", samples_section),
        ("Learning rates", rates_section),
        ("Averages made after training", averages_section),
        ("What failed", _failures_section),
        ("Method", _method_section),
    ),
    "rates": (
        ("Findings", findings),
        ("Learning rates", rates_section),
        ("Averages made after training", averages_section),
        ("What ran", _runs_section),
        ("What failed", _failures_section),
        ("Method", _method_section),
    ),
    "variants": (
        ("Findings", findings),
        ("Ranking of variants", ranking_section),
        ("What ran", _runs_section),
        ("Sampling steps", steps_section),
        ("Samples", samples_section),
        ("What failed", _failures_section),
        ("Method", _method_section),
    ),
}
