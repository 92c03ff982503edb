"""The names of slices, their links, and the arithmetic of a roofline."""

import math

import pytest

from rfjax.errors import ConfigError
from rfjax.plan.roofline import Collective, cost, roofline
from rfjax.plan.targets import parse_target
from rfjax.report.formats import amount
from rfjax.training.chips import CHIPS


@pytest.mark.parametrize(
    "name, chips, cores, shape",
    [
        ("v5p-256", 128, 256, (4, 4, 8)),
        ("v4-128", 64, 128, (4, 4, 4)),
        ("v5e-256", 256, 256, (16, 16)),
        ("v6e-64", 64, 64, (8, 8)),
        ("h100x64", 64, 64, (8, 8)),
    ],
)
def test_vendors_count_tensorcores_or_chips(name, chips, cores, shape):
    """Catches v5p-256 read as 256 chips: twice the speed and memory that is paid for."""
    target = parse_target(name)
    assert (target.chips, target.cores, target.shape) == (chips, cores, shape)


def test_both_counts_are_printed():
    assert "128 chips" in parse_target("v5p-256").describe() and "256 TensorCores" in parse_target("v5p-256").describe()


def test_unknown_chips_and_sizes_are_refused():
    """Catches a guess: a plan for a chip whose peak nobody stated."""
    with pytest.raises(ConfigError, match="unknown chip 'v5x'.*did you mean v5[pe]"):
        parse_target("v5x-256")
    with pytest.raises(ConfigError, match="no v5p of 100 TensorCores, two a chip; the sizes are 8, 16"):
        parse_target("v5p-100")
    with pytest.raises(ConfigError, match="as its vendor does"):
        parse_target("pod")


def test_a_chip_sends_over_all_its_links_what_its_vendor_says():
    """Compares the sum over a torus's links, in both directions, with the documented GB/s of a chip."""
    for name, both_ways in (("v5p-256", 1200e9), ("v5e-256", 400e9), ("v6e-256", 800e9)):
        target = parse_target(name)
        assert 2 * target.bandwidth(target.chips) == both_ways


def test_a_group_uses_the_rings_that_it_covers():
    """Catches every group given all links: 16 chips of 4x4x8 are two sides, 8 are one."""
    target = parse_target("v5p-256")
    assert target.bandwidth(16) == 4 * 100e9
    assert target.bandwidth(8) == 2 * 100e9
    assert parse_target("v5e-64").bandwidth(8) == 50e9  # an open side: one way
    assert parse_target("h100x64").bandwidth(8) == 450e9
    assert parse_target("h100x64").bandwidth(64) == 50e9


def test_rings_send_what_a_simulated_ring_sends():
    """Compares the formula with an all-gather and an all-reduce that are simulated chunk by chunk."""
    ways, size = 8, 8 * 1000
    chunk = size // ways
    gather = chunk * (ways - 1)  # each device passes on every chunk but its neighbour's own
    assert Collective("all-gather", size, ways).sent == gather
    assert Collective("reduce-scatter", size, ways).sent == gather
    assert Collective("all-reduce", size, ways, 3).sent == 3 * 2 * gather
    assert Collective("all-reduce", size, 1).sent == 0


def test_the_slowest_limit_is_the_step_and_its_cost():
    target = parse_target("v5e-256")
    limits = roofline(target, 197e12, 819e9 / 2, [Collective("all-gather", 200_000_000_000, 256, 1)])
    assert (limits.compute, limits.memory) == (1.0, 0.5)
    assert limits.links == pytest.approx(255 / 256)
    assert (limits.step, limits.slowest) == (1.0, "compute")
    spent = cost(target, limits.step, 3600, 2.0)
    assert (spent.chip_hours, spent.days, spent.money) == (256.0, 1 / 24, 512.0)
    assert cost(target, 1.0, 1, None).money is None


def test_every_chip_states_its_source_and_has_its_own_names():
    for chip in CHIPS.values():
        assert chip.source and all(math.prod(shape) for shape in chip.shapes)
    names = [name for chip in CHIPS.values() for name in chip.device_kinds]
    assert len(set(names)) == len(names)


def test_a_chip_of_which_only_the_peak_is_known_cannot_be_planned_for():
    """Catches a plan with no memory and infinite links."""
    assert CHIPS["a100"].peak_flops and not CHIPS["a100"].shapes
    with pytest.raises(ConfigError, match="unknown chip 'a100'"):
        parse_target("a100x8")


def test_small_amounts_are_no_zeros():
    """Catches the plan of a small study that costs 0 days and 0 chip-hours."""
    shown = [amount(1275.4), amount(0.2, 1), amount(0.04, 1), amount(3.5e-4), amount(0.0)]
    assert shown == ["1,275", "0.2", "0.04", "0.00035", "0"]
