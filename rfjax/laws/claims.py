"""The table of claims that papers make about scaling laws, and the board: the verdicts on them for a user's runs.

A claim is a row of `CLAIMS`: its statement, its source, the rule by which it is judged, and a pure function that judges
it from the `Evidence`. `rfjax claims` prints the board; the report shows it beside the published laws.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from rfjax.evaluation.intervals import LEVEL
from rfjax.laws import loss_claims, score_claims, size_claims
from rfjax.laws.claim_evidence import Evidence
from rfjax.laws.laws import PARAMETRIC
from rfjax.laws.published_laws import ABRA, COUNTS, LIANG, PUBLISHED, SOURCES
from rfjax.laws.verdicts import Judgement, Verdict
from rfjax.results.plain import plain

POINTS = 41  # number of points of a line in the figure


@dataclass(frozen=True, kw_only=True)
class Claim:
    """A claim, who makes it, the rule of its verdict, and its test."""

    name: str
    says: str
    source: str
    rule: str
    test: Callable[[Evidence], Judgement]


_SLOPE = (
    f"agrees: the interval holds this slope (within {size_claims.SAME_SLOPE:g}) and not the rival paper's; "
    "contradicts: it does not hold this slope; undecided if parabolas at equal FLOPs disagree with the law"
)
_BOUND = "agrees or contradicts: the whole interval is on one side of the bound"
CLAIMS = (
    Claim(
        name="slope_half",
        says=f"the optimal size grows as C^{ABRA.params.exponent} (size and data alike)",
        source=ABRA.source,
        rule=_SLOPE,
        test=size_claims.slope_is(ABRA, LIANG),
    ),
    Claim(
        name="slope_more",
        says=f"the optimal size grows as C^{LIANG.params.exponent} (size faster than data)",
        source=LIANG.source,
        rule=_SLOPE,
        test=size_claims.slope_is(LIANG, ABRA),
    ),
    Claim(
        name="no_floor",
        says="the loss has no floor: a power of compute falls to 0",
        source=f"{LIANG.source}; {ABRA.name} (E = {ABRA.offset:g} of a loss of about 0.6)",
        rule=f"contradicts: the interval of E is above 0; agrees: it holds 0 and ends below "
        f"{loss_claims.SMALL_FLOOR:.0%} of the smallest loss",
        test=loss_claims.no_floor,
    ),
    Claim(
        name="power_predicts",
        says="a power law without a floor predicts runs it has not seen as well as a law with one",
        source=LIANG.source,
        rule=f"each run predicted from the others by both laws; agrees or contradicts: one law is better in "
        f"{loss_claims.SURE:.1%} of resamples of these runs",
        test=loss_claims.power_predicts,
    ),
    Claim(
        name="tokens_constant",
        says="the optimum sees 199 [180, 270] image tokens per parameter (512 px)",
        source=ABRA.source,
        rule=f"contradicts: the intervals do not meet; agrees: they do, and the ends of the table's interval are "
        f"within a factor {size_claims.NARROW_RATIO:g}",
        test=size_claims.tokens_per_param_is((180.0, 270.0)),
    ),
    Claim(
        name="tokens_by_compute",
        says="image and text tokens per parameter at the optimum fall as C^-0.136 (286 at 1e21 FLOP)",
        source=LIANG.source,
        rule=f"at the runs' own compute; contradicts: the interval leaves the law out; agrees: the interval holds the "
        f"law, and its ends are within a factor {size_claims.NARROW_RATIO:g}",
        test=size_claims.tokens_follow(LIANG),
    ),
    Claim(
        name="levels",
        says="losses at different t fall with different powers of compute",
        source=SOURCES["Abra"],
        rule=f"agrees: at least one level's exponent differs from the mean over levels (paired over runs; {LEVEL:.0%} "
        f"for all levels together); contradicts: all exponents are within {loss_claims.SAME_EXPONENT:.0%} of the mean",
        test=loss_claims.levels_differ,
    ),
    Claim(
        name="collapse",
        says="(L - E) over its end value, against the share of training, is one curve for all sizes from 15 % on",
        source=SOURCES["Abra"],
        rule=f"the largest spread between sizes; agrees: its interval is below {loss_claims.COLLAPSED:.0%}; "
        "contradicts: its interval is above that plus twice what the scatter of runs explains",
        test=loss_claims.collapses,
    ),
    Claim(
        name="flat_bowl",
        says="over-training by 2 (twice the tokens per parameter at equal FLOPs) costs less than 0.5 % of the loss",
        source=SOURCES["Abra"],
        rule=_BOUND,
        test=size_claims.over_training_costs_below(2.0, 0.005),
    ),
    Claim(
        name="near_optimum",
        says="a size 30 % off the optimum costs less than 1 % of the loss",
        source=SOURCES["Yin"],
        rule=_BOUND,
        test=size_claims.size_off_costs_below((0.7, 1.3), 0.01),
    ),
    Claim(
        name="asymmetry",
        says="under-training costs more than over-training by the same factor (4)",
        source=SOURCES["Abra"],
        rule=f"{_BOUND} 1 of the ratio of the two costs",
        test=size_claims.under_training_is_worse(4.0),
    ),
    Claim(
        name="loss_ranks_geneval",
        says="the validation loss ranks GenEval: the lower, the better",
        source=SOURCES["Esser"],
        rule=f"Spearman's rank correlation; agrees: its interval is below 0 and p < {score_claims.P:g}; "
        f"contradicts: the interval is above {score_claims.WEAK:g}",
        test=score_claims.loss_ranks_geneval,
    ),
    Claim(
        name="guidance_falls",
        says="the best guidance scale falls with the size of the network",
        source=f"{SOURCES['Abra']}; {SOURCES['Mei']}",
        rule=f"Kendall's rank correlation of size and best scale; agrees or contradicts: p < {score_claims.P:g}",
        test=score_claims.guidance_falls,
    ),
    Claim(
        name="steps_fall",
        says="larger networks lose less when sampled in fewer steps",
        source=SOURCES["Esser"],
        rule="how far the score of the smallest and of the largest size drops at the number of steps that most sizes "
        "have; agrees or contradicts: the intervals of the two drops do not meet",
        test=score_claims.larger_need_fewer_steps,
    ),
)


def board(evidence: Evidence) -> dict:
    """Judges every claim.

    Returns a dictionary of plain values: the verdicts, the published laws, the frontier of the table's own law, the
    runs that each law took, the conventions, the exponents by level and the collapsed curves.
    """
    verdicts = [
        Verdict(name=claim.name, claim=claim.says, source=claim.source, rule=claim.rule, judgement=claim.test(evidence))
        for claim in CLAIMS
    ]
    return plain(
        {
            "verdicts": verdicts,
            "laws": {"published": list(map(_published, PUBLISHED)), "own": _own(evidence)},
            "own_reason": "" if evidence.frontier else evidence.frontier_reason,
            "which_runs": dict(evidence.rules),
            "conventions": conventions(evidence),
            "level_exponents": evidence.levels,
            "collapse": evidence.collapse,
        }
    )


def conventions(evidence: Evidence) -> list[str]:
    """Returns lines that say how the table and the papers count compute and data."""
    tokens = evidence.tokens
    known = f"{tokens.image:g} image tokens" if tokens.image is not None else ""
    known += f" and {tokens.text:g} text tokens" if tokens.text is not None else ""
    own = f"an image has {known}" if known else f"tokens per image are not known: {tokens.reason}"
    lines = ["figures of different counts of C do not meet: at the same C, their N*, D* and losses differ"]
    lines += [f"this table: C in its own FLOPs (rfjax: 2 per multiply-accumulate, 3x the forward pass); {own}"]
    if evidence.frontier is not None:
        kappa, eta = evidence.frontier.cost.kappa, evidence.frontier.cost.eta
        lines += [
            f"its FLOPs are {kappa:.3g} · params^{eta:.3f} · images; for papers with C = 6 N D, C is computed as 6 N D"
        ]
    for key, count in COUNTS.items():
        names = "; ".join(dict.fromkeys(law.name for law in PUBLISHED if law.count == key))
        lines += [f"{names}: {count.words}"]
    return lines + ["papers' losses are of other data, latents and weights of t: compare slopes, not values"]


def _published(law):
    """Returns a published law for the board: the numbers that the paper gives, and the line N*(C). The line is None
    unless the numbers determine it and C is in FLOPs."""
    content = {name: getattr(law, name) for name in ("name", "arxiv", "setting", "tokens_are", "offset", "note")}
    content |= {"count": COUNTS[law.count].words, "in_flops": COUNTS[law.count].in_flops, "range": law.range}
    for name in ("params", "tokens", "loss"):
        power = getattr(law, name)
        content |= {f"{name}_exponent": power and power.exponent, f"{name}_coefficient": power and power.coefficient}
    line = None
    if law.range is not None and law.params.coefficient is not None and COUNTS[law.count].in_flops:
        flops = np.geomspace(*law.range, POINTS)
        line = {"flops": flops, "params": law.params.at(flops)}
    return content | {"line": line}


def _own(evidence):
    """Returns the compute-optimal frontier of the user's own table for the board, as at most two dictionaries: one with
    the table's FLOPs as C, and one with C = 6 N D."""
    counted, told = tokens_counted(evidence)
    counts = {"its own FLOPs": (evidence.frontier, True), f"C = 6 N D, {counted}": (evidence.frontier_6nd, told)}
    found = []
    for count, (frontier, in_flops) in counts.items():
        if frontier is None:
            continue
        flops = np.geomspace(*frontier.flops, POINTS)
        line = {"flops": flops} | frontier.bands(flops)["params"] if in_flops else None
        exponents = {f"{name}_exponent": frontier.exponent(name) for name in ("params", "images", "loss")}
        at = vars(frontier.at(frontier.reference)) if in_flops else None
        row = {
            "count": count,
            "range": frontier.flops if in_flops else None,
            "offset": evidence.fits[PARAMETRIC.name].estimates["E"],
        }
        found.append(row | exponents | {"at": at, "line": line})
    return found


def tokens_counted(evidence: Evidence) -> tuple[str, bool]:
    """Returns (what D counts in C = 6 N D for this table, in words; whether this C is in FLOPs)."""
    if evidence.tokens.all:
        return "D of image and text tokens", True
    if evidence.tokens.image:
        return "D of image tokens", True
    return "D of images, so the slope alone", False
