"""Tests claims about the compute-optimal size N*: the power of compute with which N* grows, the tokens per parameter at
N*, and how much the loss rises at other sizes of equal FLOPs (the bowl).

Each public function takes the numbers that a claim states, and returns the claim's test: a pure function of `Evidence`.
"""

from __future__ import annotations

from collections.abc import Callable

from rfjax.laws import bowl
from rfjax.laws.claim_evidence import Evidence
from rfjax.laws.fitting import Estimate
from rfjax.laws.laws import PARAMETRIC
from rfjax.laws.published_laws import ABRA, COUNTS, PublishedLaw
from rfjax.laws.verdicts import UNDECIDED, Judgement, if_enough_runs, judge_bound, judge_value, untested

NARROW_RATIO = 2.0  # tokens per parameter count as known if the interval's high / low is at most this
SAME_SLOPE = 0.01  # a paper's slope stands for all slopes this near to it, because papers give no intervals
FAR = 10.0  # a published law is not evaluated at FLOPs more than this factor outside its range
Test = Callable[[Evidence], Judgement]
_DECIDES = "runs that decide the optimum: three sizes or more with several numbers of images each, over a wide range"
_BY_RESOLUTION = "by resolution Abra gives 165, 202, 235 and 247 at 256, 384, 512 and 768 px"


def slope_is(law: PublishedLaw, rival: PublishedLaw) -> Test:
    """Tests whether the optimal size grows as the power of compute in `law`, and not as the power in `rival`.

    The table's power comes from the parametric law, with C counted as in the paper of `law`. The parabolas of approach
    2, corrected for their bias, give a second estimate, with the table's own FLOPs as C. If the second estimate
    disagrees with the parametric law's estimate in the same FLOPs, the claim is undecided. If the parametric law has no
    optimum, the parabolas are the only estimate, without a correction.
    """
    six_nd = COUNTS[law.count].six_nd
    counts = ("C = 6 N D", "the table's own FLOPs")
    count, other = counts if six_nd else counts[::-1]
    claimed, against = ((one.params.exponent - SAME_SLOPE, one.params.exponent + SAME_SLOPE) for one in (law, rival))

    def test(evidence):
        common = {"quantity": "a of N* ~ C^a"}
        line = evidence.parabolas
        if evidence.frontier is None:
            stop = _no_optimum(evidence)
            if line is None or stop.verdict != UNDECIDED:
                return stop
            notes = (*stop.notes, "parabolas count C as the table does")
            common |= {"method": f"approach 2: parabolas at {len(line.optima)} budgets", "notes": notes}
            return judge_value(line.a, claimed, rival=against, **common)
        own = evidence.frontier.exponent("params")
        found, told = evidence.frontier_6nd.exponent("params"), own
        if not six_nd:
            found, told = told, found
        notes = [f"in {other} the same fit gives {told.value:.3f} [{told.low:.3f}, {told.high:.3f}]"]
        common["method"] = f"parametric law of {evidence.fits[PARAMETRIC.name].n} runs, {count}"
        if line is not None:
            low, high = line.a.low - evidence.parabolas_bias, line.a.high - evidence.parabolas_bias
            bias = f"{low:.3f} to {high:.3f}, after subtracting their bias of {evidence.parabolas_bias:+.3f}"
            notes.append(f"parabolas at {len(line.optima)} budgets (approach 2, the table's FLOPs) give {bias}")
            if high < own.low or low > own.high:
                decide = "the parametric law and the parabolas disagree: more sizes about the optimum at each budget"
                return Judgement(verdict=UNDECIDED, decide=decide, found=found, notes=tuple(notes), **common)
        judged = judge_value(found, claimed, rival=against, notes=tuple(notes), **common)
        return if_enough_runs(judged, evidence.fits[PARAMETRIC.name])

    return test


def tokens_per_param_is(claimed: tuple[float, float]) -> Test:
    """Tests whether the image tokens per parameter at the optimal size are in the range `claimed`. The optimal size is
    that for the geometric mean of the runs' FLOPs."""

    def test(evidence):
        if (stop := _no_tokens(evidence, evidence.tokens.image)) is not None:
            return stop
        notes = (*_range_note(evidence.frontier.flops, ABRA.range), _BY_RESOLUTION)
        return _judge_tokens(evidence, evidence.frontier, evidence.tokens.image, claimed, "image tokens", notes)

    return test


def tokens_follow(law: PublishedLaw) -> Test:
    """Tests whether the optimum has as many tokens per parameter as `law` says.

    Optimum and law are compared at the geometric mean of the runs' FLOPs. If that is further than a factor `FAR`
    outside the law's range, the claim is not tested. Compute and tokens are counted as in the law's paper.
    """

    def test(evidence):
        if (stop := _no_tokens(evidence, evidence.tokens.all)) is not None:
            return stop
        frontier = evidence.frontier_6nd
        middle, (least, most) = frontier.reference, law.range
        if not least / FAR <= middle <= most * FAR:
            found = _tokens_estimate(frontier, evidence.tokens.all)
            needs = (
                f"runs of {least / FAR:.0e} to {most * FAR:.0e} FLOP, within a factor {FAR:g} of the law's own; these "
                f"are of {frontier.flops[0]:.2g} to {frontier.flops[1]:.2g}"
            )
            return untested(needs, found=found, quantity=_tokens_quantity("image and text tokens", frontier))
        claimed, notes = law.tokens_per_param(middle), _range_note(frontier.flops, law.range)
        notes = (f"the law has {claimed:.3g} there", *notes)
        return _judge_tokens(evidence, frontier, evidence.tokens.all, claimed, "image and text tokens", notes)

    return test


def _no_tokens(evidence, tokens):
    """The judgement if the optimum's tokens per parameter are not known; else None."""
    if tokens is None and PARAMETRIC.name in evidence.fits:
        which = evidence.tokens.reason or "the table has no column tokens_per_param, or its text is not in the sequence"
        return untested(f"tokens of an image ({which})")
    return _no_optimum(evidence)


def _no_optimum(evidence):
    """The judgement if the table determines no optimal size; else None."""
    if (lack := evidence.lack(PARAMETRIC.name)).startswith("columns"):
        return untested(lack)
    if evidence.frontier is not None:
        return None
    found = evidence.fits[PARAMETRIC.name].estimates or {}
    known = ((name, found[name]) for name in ("alpha", "beta") if name in found)
    notes = [evidence.frontier_reason, ", ".join(f"{n} = {e.value:.3f} [{e.low:.3f}, {e.high:.3f}]" for n, e in known)]
    return Judgement(verdict=UNDECIDED, decide=_DECIDES, notes=tuple(filter(None, notes)))


def _tokens_estimate(frontier, tokens):
    found = frontier.at(frontier.reference).images_per_param
    return Estimate(**{name: v and v * tokens for name, v in vars(found).items() if name in ("value", "low", "high")})


def _tokens_quantity(what, frontier):
    return f"{what} per parameter at the optimum of {frontier.reference:.2g} FLOP"


def _judge_tokens(evidence, frontier, tokens, claimed, what, notes):
    found = _tokens_estimate(frontier, tokens)
    method = f"parametric law of {evidence.fits[PARAMETRIC.name].n} runs, {tokens:g} {what} an image"
    quantity = _tokens_quantity(what, frontier)
    common = {"quantity": quantity, "method": method, "notes": tuple(notes)}
    judged = judge_value(found, claimed, narrow=NARROW_RATIO, ratio=True, **common)
    return if_enough_runs(judged, evidence.fits[PARAMETRIC.name])


def _range_note(own, published):
    """A note, in a tuple, that the runs' compute lies outside the range of a published law; empty if it lies inside."""
    if own[1] < published[0] or own[0] > published[1]:
        lies = (
            f"{published[0] / own[1]:.1g} times below"
            if own[1] < published[0]
            else f"{own[0] / published[1]:.1g} times above"
        )
        return (f"the runs' compute lies {lies} the range in which the law was found",)
    return ()


def over_training_costs_below(factor: float, bound: float) -> Test:
    """Tests whether `factor` times the optimal images per parameter, at equal FLOPs, raise the loss by less than the
    share `bound`."""

    def test(evidence):
        if (stop := _no_optimum(evidence)) is not None:
            return stop
        frontier = evidence.frontier
        size = bowl.size_at(frontier, factor)
        notes = (f"over-trained by {factor:g}: a size of {size:.2f} N*, at equal FLOPs",)
        quantity = f"excess loss at {frontier.reference:.2g} FLOP, as a fraction"
        found = bowl.excess_at(frontier, size)
        return _judge_bowl(evidence, found, bound, above=False, quantity=quantity, notes=notes)

    return test


def size_off_costs_below(sizes: tuple[float, ...], bound: float) -> Test:
    """Tests whether each of `sizes` (in units of N*) raises the loss by less than the share `bound`, at equal FLOPs."""

    def test(evidence):
        if (stop := _no_optimum(evidence)) is not None:
            return stop
        found = {size: bowl.excess_at(evidence.frontier, size) for size in sizes}
        worst = max(found, key=lambda size: found[size].value)
        quantity = f"excess loss at {worst:g} N*, the worse of {' and '.join(f'{s:g}' for s in sizes)}, as a fraction"
        return _judge_bowl(evidence, found[worst], bound, above=False, quantity=quantity)

    return test


def under_training_is_worse(factor: float) -> Test:
    """Tests whether under-training by `factor` costs more than over-training by the same factor."""

    def test(evidence):
        if (stop := _no_optimum(evidence)) is not None:
            return stop
        found = bowl.asymmetry(evidence.frontier, factor)
        quantity = f"cost of {factor:g} times fewer images per parameter over that of {factor:g} times more"
        form = "the law's form makes the ratio above 1 exactly where a·eta > 1/2, so the slope a alone decides it"
        return _judge_bowl(evidence, found, 1.0, above=True, quantity=quantity, notes=(form,))

    return test


def _judge_bowl(evidence, found, bound, *, above, quantity, notes=()):
    """Judges a claim about the cost of missing the optimum. The cost is computed from the parametric law and
    FLOPs = κ·N^η·D; a note is added if the runs' FLOPs deviate from that by more than 10 %."""
    fitted, worst = evidence.fits[PARAMETRIC.name], evidence.frontier.cost.worst
    off = (f"FLOPs are off κ·N^η·D by up to {worst:.0%}",) if worst > 0.1 else ()
    said = {"quantity": quantity, "method": f"parametric law of {fitted.n} runs", "notes": (*notes, *off)}
    return if_enough_runs(judge_bound(found, bound, above=above, **said), fitted)
