"""Which runs of anybody's table a law of compute takes: the frontier, where sizes compete."""

import numpy as np
import pandas as pd
import pytest

from helpers.planted_tables import isoflop, parametric_study
from rfjax.laws.laws import BROKEN, PARAMETRIC, POWER, SATURATING
from rfjax.laws.run_frontier import choose_runs, on_frontier, sizes_compete


def on_frontier_by_pairs(flops, loss):
    """The definition, pair by pair: no other run has as low a loss for as few FLOPs."""
    points = list(zip(flops, loss, strict=True))
    return [not any(c <= f and x <= y and (c < f or x < y) for c, x in points) for f, y in points]


@pytest.mark.parametrize("seed", range(4))
def test_the_frontier_is_that_of_its_definition(seed):
    """Catches ties in compute or in loss that are decided by the order of rows."""
    rng = np.random.default_rng(seed)
    flops, loss = rng.integers(1, 12, 40).astype(float), rng.integers(1, 12, 40).astype(float)
    table = pd.DataFrame({"flops": flops, "loss": loss, "params": np.arange(40.0)})
    assert on_frontier(table).tolist() == on_frontier_by_pairs(flops, loss)
    shuffled = table.sample(frac=1, random_state=seed)
    assert on_frontier(shuffled).tolist() == on_frontier_by_pairs(*shuffled[["flops", "loss"]].to_numpy().T)


def test_seeds_are_on_the_frontier_together():
    """Catches the luckiest seed alone, which bends the frontier down."""
    table = pd.DataFrame({"flops": [1.0, 1.0, 2.0], "params": [5.0, 5.0, 5.0], "loss": [0.8, 1.2, 0.9]})
    assert on_frontier(table).tolist() == [True, True, True]


def test_a_table_of_sizes_and_durations_has_its_laws_of_compute_on_the_frontier():
    """A law of compute went through all 20 runs, which no design has."""
    table = parametric_study()
    for law in (POWER, SATURATING):
        found = choose_runs(table, law)
        assert found.on_frontier and len(found.rows) == 13 and "r19" in set(found.rows["run"])
        assert f"the {law.name} law is fitted to the 13 of 20 runs on the frontier" in found.rule
    assert choose_runs(table, PARAMETRIC).rows is table and choose_runs(table, PARAMETRIC).rule == ""


def test_what_goes_through_all_runs_says_so():
    """Of four budgets with many sizes each the frontier has four runs: a power can be held out there, no more."""
    table = isoflop(4)
    assert len(choose_runs(table, POWER).rows) == 4
    for law, needed in ((SATURATING, 5), (BROKEN, 8)):
        found = choose_runs(table, law)
        assert len(found.rows) == 44 and not found.on_frontier
        assert "goes through all 44 runs, of several sizes for a compute" in found.rule
        assert f"no law of the compute-optimal runs (4 on the frontier are too few, {needed} are needed)" in found.rule


def test_one_size_for_each_compute_goes_through_all_runs():
    """Catches runs that are dropped for their noise alone, where no size competes with another."""
    flops = np.geomspace(1e15, 1e19, 8)
    table = pd.DataFrame({"run": list("abcdefgh"), "flops": flops, "loss": [8, 7, 7.1, 6, 5, 5.1, 4, 3]})
    grown = table.assign(params=np.sqrt(flops))
    assert len(choose_runs(grown, POWER).rows) == 8 and "each compute has one size" in choose_runs(grown, POWER).rule
    assert not sizes_compete(flops, np.repeat([1.0, 2.0], 4)) and sizes_compete(flops, np.repeat([2.0, 1.0], 4))
    assert sizes_compete(np.array([1.0, 1.0]), np.array([1.0, 2.0]))
    unknown = choose_runs(table, POWER)
    assert len(unknown.rows) == 8 and "is not known without a column params or images" in unknown.rule
    by_images = choose_runs(table.assign(images=flops / np.tile([1e9, 1e8], 4)), POWER)  # sizes are flops / images
    assert by_images.on_frontier and set(by_images.rows["run"]) == set("abdegh")


def test_rounded_numbers_make_no_sizes_compete():
    """Catches runs of one size, dropped from a law since FLOPs and images were printed to three digits."""
    images = np.geomspace(1.1e6, 9.9e6, 12)
    rounded = [float(f"{value:.3g}") for value in 1.037e9 * images]
    table = pd.DataFrame({"flops": rounded, "images": [float(f"{value:.3g}") for value in images]})
    table = table.assign(
        run=[f"r{n}" for n in range(12)], loss=np.geomspace(3, 1, 12) * (1 + 0.1 * (np.arange(12) % 2))
    )
    found = choose_runs(table, POWER)
    assert len(found.rows) == 12 and "each compute has one size" in found.rule


def test_columns_that_are_no_numbers_are_left_to_the_fit():
    """Its refusal names the row; a frontier among the other rows would hide it."""
    table = parametric_study().astype({"flops": object})
    table.loc[3, "flops"] = "many"
    assert choose_runs(table, POWER).rows is table
