"""The rules that turn an estimate with its 95 % interval into a verdict on a claim.

* A claimed value. The table agrees if the interval overlaps the claim and not its rival; without a rival, the interval
  must also be as narrow as the claim needs. It contradicts if the interval does not overlap the claim.
* A claimed bound. The table agrees if the whole interval is on the claim's side, and contradicts if the whole interval
  is on the other side.
* In all other cases the claim is undecided, and the verdict says what would decide it. A claim is also undecided if its
  verdict would rest on a fit with hardly more runs than parameters.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from rfjax.laws.fitting import Estimate, Fit

AGREES, CONTRADICTS, UNDECIDED, UNTESTED = VERDICTS = ("agrees", "contradicts", "undecided", "cannot be tested")
Range = tuple[float, float]
LEAST_FREEDOM = 3  # a verdict that rests on a law needs this many more runs than the law has parameters
MANY_TIMES = 1000.0  # a larger factor on the number of runs is written as "more than 1000 times"


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """A verdict, with the estimate `found` that it rests on.

    `decide` says what would decide an undecided claim; for an untested claim, it says what the test would need.
    """

    verdict: str
    decide: str = ""
    quantity: str = ""  # what was measured
    found: Estimate | None = None
    method: str = ""
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """A paper's claim together with its judgement on a table."""

    name: str
    claim: str
    source: str
    rule: str
    judgement: Judgement = field(default_factory=lambda: Judgement(verdict=UNTESTED))

    def to_json(self) -> dict:
        return {name: getattr(self, name) for name in ("name", "claim", "source", "rule")} | vars(self.judgement)


def untested(needs: str, **more) -> Judgement:
    """The judgement of a claim that the table cannot test. `needs` says what a test would need."""
    return Judgement(verdict=UNTESTED, decide=needs, **more)


def judge_value(
    found: Estimate,
    claimed: float | Range,
    *,
    rival: Range | None = None,
    narrow: float | None = None,
    ratio: bool = False,
    **more,
) -> Judgement:
    """Judges the claim that a quantity has a value: a number, or a range (low, high).

    The table contradicts the claim if the interval of `found` does not overlap `claimed`. With a `rival` range, the
    table agrees if the interval overlaps the claim and not the rival. Without a rival, the table agrees if the interval
    overlaps the claim and the interval's width (high - low, or with `ratio` high / low) is at most `narrow`. In all
    other cases, and without an interval, the claim is undecided.
    """
    low, high = found.low, found.high
    if low is None or high is None:
        return Judgement(verdict=UNDECIDED, decide="an interval: more runs", found=found, **more)
    least, most = claimed if isinstance(claimed, tuple) else (claimed, claimed)
    if high < least or low > most:
        return Judgement(verdict=CONTRADICTS, found=found, **more)
    if rival is not None:
        if high < rival[0] or low > rival[1]:
            return Judgement(verdict=AGREES, found=found, **more)
        # An interval narrower than the gap between claim and rival cannot overlap both.
        wanted = max(rival[0] - most, least - rival[1])
        return Judgement(verdict=UNDECIDED, decide=_narrower(high - low, wanted), found=found, **more)
    if ratio:
        wide, wanted = (high / low if low > 0 else float("inf")), narrow
    else:
        wide, wanted = high - low, narrow
    if wide <= wanted:
        return Judgement(verdict=AGREES, found=found, **more)
    said = f"an interval whose ends are no more than a factor {wanted:g} apart (now {wide:.3g})" if ratio else ""
    return Judgement(verdict=UNDECIDED, decide=said or _narrower(wide, wanted), found=found, **more)


def judge_bound(found: Estimate, bound: float, *, above: bool, **more) -> Judgement:
    """Judges the claim that a quantity lies above (or below) a bound."""
    if found.low is None or found.high is None:
        return Judgement(verdict=UNDECIDED, decide="an interval: more runs", found=found, **more)
    over, under = found.low > bound, found.high < bound
    if over or under:
        return Judgement(verdict=AGREES if over == above else CONTRADICTS, found=found, **more)
    side = found.value - found.low if found.value > bound else found.high - found.value
    gap = abs(found.value - bound)
    times = (side / gap) ** 2 if gap > 0 else float("inf")
    decide = f"an interval that leaves {bound:g} out: {_times(times)} as many independent runs over the same range"
    return Judgement(verdict=UNDECIDED, decide=decide, found=found, **more)


def if_enough_runs(judgement: Judgement, fitted: Fit) -> Judgement:
    """Returns the judgement, or "undecided" if the fit has hardly more runs than parameters.

    With so few runs the interval would rest on one or two residuals.
    """
    freedom = fitted.n - len(fitted.law.parameters)
    if freedom >= LEAST_FREEDOM or judgement.verdict not in (AGREES, CONTRADICTS):
        return judgement
    least = len(fitted.law.parameters) + LEAST_FREEDOM
    decide = f"{least} runs or more: the {fitted.law.name} law has {len(fitted.law.parameters)} "
    decide += f"parameters, and these are {fitted.n} runs"
    return replace(judgement, verdict=UNDECIDED, decide=decide)


def _narrower(wide, wanted):
    """Says how narrow an interval must become, and how many times as many runs that takes.

    The width of an interval falls with the square root of the number of runs.
    """
    said = f"an interval no wider than {wanted:.2g} (now {wide:.2g})"
    return f"{said}: {_times((wide / wanted) ** 2)} as many independent runs, or a wider range of compute"


def _times(times):
    """Writes a factor on the number of runs in words."""
    return (
        f"about {times:{'.0f' if times >= 10 else '.2g'}} times"
        if times < MANY_TIMES
        else f"more than {MANY_TIMES:.0f} times"
    )
