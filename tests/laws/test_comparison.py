"""Laws compared by one held-out error over the same runs."""

from dataclasses import replace

import pytest

from rfjax.laws.comparison import compare
from rfjax.laws.fitting import Fit
from rfjax.laws.held_out import LeftOut
from rfjax.laws.laws import PARAMETRIC, POWER, SATURATING
from rfjax.laws.misfits import HUBER
from rfjax.report.fit_facts import comparison_facts


def fitted(law, errors, reason=""):
    """A fit whose runs, when left out, are predicted with these relative errors."""
    left_out = LeftOut(runs=tuple(errors), relative_errors=tuple(errors.values()), reason=reason)
    runs = tuple(errors)
    return Fit(law=law, loss=HUBER, runs=runs, identifiable=True, reason="", left_out=left_out)


def test_the_error_is_over_the_runs_that_all_laws_have():
    """The law of compute has the less error over its own four runs, and the greater one over the same runs."""
    power = fitted(POWER, {"a": 0.02, "b": -0.02, "c": 0.02, "d": 0.02})
    parametric = fitted(PARAMETRIC, {"z": 0.5, "d": 0.01, "c": -0.01, "b": 0.01, "a": 0.01})
    found = compare({"power": power, "parametric": parametric})
    laws = found["laws"]
    assert laws["power"]["leave_one_out_rms"] < laws["parametric"]["leave_one_out_rms"]
    assert laws["power"]["shared_runs_rms"] == pytest.approx(0.02)
    assert laws["parametric"]["shared_runs_rms"] == pytest.approx(0.01)
    assert found["preferred"] == "parametric" and found["shared_runs"] == ["a", "b", "c", "d"]
    assert found["preferred_share"] == 1.0
    ((said,),) = comparison_facts(found)
    assert said.startswith("by leave-one-out error the parametric law predicts best over the same 4 runs (power 2.00 %")


def test_how_sure_the_best_is_comes_from_resamples_of_the_runs():
    """Two laws that are equally good but for one run: the best is best in the resamples that have the run."""
    power = fitted(POWER, dict.fromkeys("abcde", 0.01))
    saturating = fitted(SATURATING, {**dict.fromkeys("abcd", 0.01), "e": 0.02})
    found = compare({"saturating": saturating, "power": power})
    assert found["preferred"] == "power" and found["preferred_share"] == pytest.approx(1 - 0.8**5, abs=0.03)


def test_branches_of_a_trunk_are_left_out_together_and_are_no_resamples():
    """Catches the optimistic error of a branch whose sisters are fitted, and a share from runs that are no samples."""
    power, saturating = (fitted(law, dict.fromkeys("abc", 0.01)) for law in (POWER, SATURATING))
    trunk_out = LeftOut(runs=tuple("abc"), relative_errors=(0.3, 0.3, 0.3))
    found = compare({"power": replace(power, trunk_out=trunk_out), "saturating": saturating})
    assert found["preferred"] == "saturating" and found["preferred_share"] is None
    assert comparison_facts(found)[0][0].endswith("over the same 3 runs (power 30.00 %, saturating 1.00 %)")


def test_who_is_not_compared_is_named_with_the_reason():
    power, saturating = (fitted(law, dict.fromkeys("abc", 0.01)) for law in (POWER, SATURATING))
    open_ended = fitted(PARAMETRIC, {"a": None, "b": 0.1, "c": 0.1}, "1 of 3 runs cannot be predicted")
    refused = Fit(law=PARAMETRIC, loss=HUBER, runs=("a",), identifiable=False, reason="too few")
    for other, why in ((open_ended, "1 of 3 runs cannot be predicted"), (refused, "not fitted: too few")):
        found = compare({"power": power, "saturating": saturating, "parametric": other})
        assert found["preferred"] == "power" and found["laws"]["parametric"]["reason"] == why
        assert comparison_facts(found)[0][1] == f"not compared: the parametric law: {why}"
    alone = compare({"power": power, "parametric": refused})
    assert alone["preferred"] == "" and "only the power law can predict each run" in comparison_facts(alone)[0][0]
    apart = compare({"power": power, "saturating": fitted(SATURATING, dict.fromkeys("cdef", 0.01))})
    assert comparison_facts(apart) == [["laws are not compared: the laws have 1 runs in common; at least 3 are needed"]]
    assert comparison_facts(compare({"power": power})) == []
