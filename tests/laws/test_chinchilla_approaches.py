"""Approaches 1 and 2 on surfaces whose optimum is known."""

import numpy as np
import pandas as pd
import pytest

from helpers.planted_tables import HOFFMANN, curves, isoflop, loss_at
from rfjax.errors import ConfigError
from rfjax.laws.budgets import Cost, optimum
from rfjax.laws.chinchilla_approaches import approach1, approach2

A = 0.28 / 0.62


@pytest.mark.parametrize(("half_width", "bias"), [(2, 0.003), (4, 0.014), (16, 0.056)])
def test_parabolas_have_their_known_bias(half_width, bias):
    """On a noise-free surface with centred sizes the exponent is exact and N is off by +0.3, 1.4 and
    5.6 % for half-widths of 2, 4 and 16 (11 sizes). A parabola in N, or of log loss, has others."""
    found = approach2(isoflop(half_width), resamples=20)
    assert found.a.value == pytest.approx(A, abs=1e-9)
    off = [one.params / optimum(HOFFMANN, one.flops, Cost())[0] - 1 for one in found.optima]
    assert off == pytest.approx([bias] * 4, abs=0.0006)
    assert found.bias["params_relative"] == pytest.approx(off, abs=1e-6)  # and it knows its bias
    assert found.bias["exponent"] == pytest.approx(0, abs=1e-6)


def test_intervals_hold_the_exponent_and_a_budget_is_divided():
    found = approach2(isoflop(4, sizes=9, noise=0.002), resamples=200)
    assert found.a.low < A < found.a.high and "parametric bootstrap" in found.method
    assert "optimistic" not in found.method
    runs = isoflop(4, sizes=9, noise=0.002)
    with_trunks = runs.assign(trunk=np.arange(len(runs)) // 2)
    assert "optimistic, as the runs are branches of 18 trunks" in approach2(with_trunks, resamples=20).method
    params, images = found.at(1e22)
    assert params.low < optimum(HOFFMANN, 1e22, Cost())[0] < params.high
    assert 6 * params.value * images.value == pytest.approx(1e22, rel=0.02)


def test_budgets_without_a_minimum_among_their_sizes_are_left_out_by_name():
    table = isoflop(3, sizes=5)
    wrong = isoflop(3, sizes=5, off_centre=10.0)
    wrong = wrong[wrong["flops"] == wrong["flops"].max()].assign(run=lambda t: "off-" + t["run"])
    both = pd.concat([table[table["flops"] < 5e20], wrong])
    found = approach2(both, resamples=20, bias=False)
    assert len(found.optima) == 3 and "1e+21 FLOPs (5 runs): the minimum" in found.notes[0]
    assert found.a.value == pytest.approx(A, abs=1e-9)
    refused = approach2(wrong, resamples=20)
    assert refused.a is None and "0 budgets with a minimum" in refused.reason
    with pytest.raises(ConfigError, match="found no line"):
        refused.at(1e22)


def test_the_envelope_follows_the_best_size():
    """Many sizes: the winner at each budget is the nearest to the optimum, and the line its own."""
    table = curves(sizes=120)
    table = table[(table["flops"] > 1e19) & (table["flops"] < 1e22)]
    found = approach1(table, resamples=20)
    assert found.a.value == pytest.approx(A, abs=0.005)
    for one in found.optima[10:-10:20]:
        assert abs(np.log(one.params / optimum(HOFFMANN, one.flops, Cost())[0])) < np.log(1000) / 119
    assert found.a.low <= found.a.value <= found.a.high


@pytest.mark.parametrize("least", [1e8, 1e10])
def test_the_envelope_of_few_sizes_is_not_drawn_from_its_edges_or_steps(least):
    """Without noise, five sizes give the exponent exactly and N to 0.7 %, and the bias says so. A line
    through all winners puts N off by 11 % (35 % with images from 1e10 on) and the exponent by 0.014
    (0.067); through those between the smallest and the largest, whose steps begin where the next
    size's curve does, by 0.2."""
    table = curves(sizes=5)
    found = approach1(table[table["images"] >= least], resamples=20)
    off = [one.params / optimum(HOFFMANN, one.flops, Cost())[0] - 1 for one in found.optima]
    assert found.a.value == pytest.approx(A, abs=1e-3) and len(off) >= 2 and max(map(abs, off)) < 0.01
    assert found.bias["params_relative"] == pytest.approx(off, abs=1e-3) and max(found.bias["params_relative"]) > 0.005
    assert found.bias["exponent"] == pytest.approx(0, abs=1e-4)
    sizes = np.unique(table["params"])
    assert all(sizes[0] < one.params < sizes[-1] for one in found.optima)


def test_an_envelope_needs_curves_that_cross():
    assert "needs training curves" in approach1(isoflop(4)).reason
    table = curves(sizes=2)
    assert "cross nowhere" in approach1(table[table["images"] > 1e12]).reason
    assert "between two sizes only" in approach1(table).reason
    with pytest.raises(ConfigError, match=r"loss of run 'size0' \(row 1\) is -1"):
        approach1(table.assign(loss=-1.0))


def test_close_budgets_do_not_chain_and_many_left_out_are_one_line():
    """Budgets 1 % apart, one run each: 87 lines said so before; chained, they were one budget of 2.4 times."""
    flops = 1e18 * 1.01 ** np.arange(88)
    params = np.geomspace(1e7, 1e9, 88)
    chain = pd.DataFrame(
        {
            "run": [f"r{i}" for i in range(88)],
            "flops": flops,
            "params": params,
            "images": flops / 6 / params,
            "loss": loss_at(params, flops / 6 / params),
        }
    )
    found = approach2(chain, resamples=20, bias=False)
    assert all(one.runs <= 3 for one in found.optima) and len(found.notes) < 10
    apart = chain.assign(flops=flops**2 / 1e18)
    (note,) = approach2(apart, resamples=20, bias=False).notes
    assert note == "88 budgets of 1e+18 to 5.65e+18 FLOPs: fewer than the 3 sizes that a parabola needs"


def test_a_run_of_two_sizes_is_no_curve():
    table = curves(3, 5)
    table["run"] = table["run"].replace("size1", "size0")
    with pytest.raises(ConfigError, match=r"run 'size0' has rows with params 3e\+07 and .*name each run by itself"):
        approach1(table, resamples=10)
