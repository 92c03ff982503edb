"""The names of slices, their links, and the arithmetic of a roofline."""

import contextlib
import io
import math

import pytest

from rfjax.cli import main
from rfjax.config import TrainConfig
from rfjax.errors import ConfigError
from rfjax.plan.compiled import why_not_compiled
from rfjax.plan.gpu_description import DESCRIPTIONS
from rfjax.plan.roofline import LIMITS, Collective, Roofline, cost, limits_of, precision_note, roofline
from rfjax.plan.targets import PLANNED, check_network, parse_target
from rfjax.report.formats import amount
from rfjax.training.chips import CHIPS, GIB, device_peak


@pytest.mark.parametrize(
    "name, chips, cores, shape",
    [
        ("v5p-256", 128, 256, (4, 4, 8)),
        ("v4-128", 64, 128, (4, 4, 4)),
        ("v5e-256", 256, 256, (16, 16)),
        ("v6e-64", 64, 64, (8, 8)),
        ("tpu7x-256", 128, 256, (4, 4, 8)),
        ("h100x64", 64, 64, (8, 8)),
        ("gb200x72", 72, 72, (1, 72)),
        ("rtx4090x1", 1, 1, (1, 1)),
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
    with pytest.raises(ConfigError, match="unknown chip 'v5x'.*did you mean v7x, v5p or v5e"):
        parse_target("v5x-256")
    with pytest.raises(ConfigError, match="unknown chip 'b300'.*did you mean b200, .*gb200"):
        parse_target("b300x8")
    with pytest.raises(ConfigError, match="no gb200 of 40 GPUs; the sizes are 4, 8, 16"):
        parse_target("gb200x40")
    with pytest.raises(ConfigError, match="no v5p of 100 TensorCores, two a chip; the sizes are 8, 16"):
        parse_target("v5p-100")
    with pytest.raises(ConfigError, match="as its vendor does"):
        parse_target("pod")


def test_a_chip_sends_over_all_its_links_what_its_vendor_says():
    """Compares the sum over a torus's links, in both directions, with the documented GB/s of a chip."""
    for name, both_ways in (("v5p-256", 1200e9), ("v5e-256", 400e9), ("v6e-256", 800e9), ("tpu7x-256", 1200e9)):
        target = parse_target(name)
        assert 2 * target.bandwidth(target.devices) == both_ways


def test_a_group_uses_the_rings_that_it_covers():
    """Catches every group given all links: 16 chips of 4x4x8 are two sides, 8 are one."""
    target = parse_target("v5p-256")
    assert target.bandwidth(16) == 4 * 100e9
    assert target.bandwidth(8) == 2 * 100e9
    assert parse_target("v5e-64").bandwidth(8) == 50e9  # an open side: one way
    assert parse_target("h100x64").bandwidth(8) == 450e9
    assert parse_target("h100x64").bandwidth(64) == 50e9


def test_groups_of_gpus_in_several_nodes_use_the_network():
    """Catches the links of a node for a group of few GPUs that are one in each node: gradients over `data`, where
    `fsdp` fills the nodes."""
    target = parse_target("h100x64")
    assert target.bandwidth(8, stride=8) == target.bandwidth(2, stride=8) == 50e9
    assert target.bandwidth(4, stride=2) == 450e9
    assert parse_target("gb200x144").bandwidth(16) == 50e9  # a group of 16 goes over the edge of 72
    assert parse_target("gb200x72").bandwidth(16) == 900e9
    seconds = roofline(target, 0.0, 0.0, [Collective("all-reduce", 10**9, 8, stride=8)]).links
    assert seconds == pytest.approx(2 * 7 / 8 * 1e9 / 50e9)


def test_rings_send_what_a_simulated_ring_sends():
    """Compares the formula with an all-gather and an all-reduce that are simulated chunk by chunk."""
    ways, size = 8, 8 * 1000
    chunk = size // ways
    gather = chunk * (ways - 1)  # each device passes on every chunk but its neighbour's own
    assert Collective("all-gather", size, ways).sent == gather
    assert Collective("reduce-scatter", size, ways).sent == gather
    assert Collective("all-reduce", size, ways, 3).sent == 3 * 2 * gather
    assert Collective("all-reduce", size, 1).sent == 0


def test_slices_are_counted_before_the_name():
    """Catches two slices planned as one: half of the speed and memory that is paid for, or twice a slice's links."""
    two = parse_target("2xv5p-256")
    assert (two.name, two.slices, two.chips, two.cores, two.shape) == ("2xv5p-256", 2, 256, 512, (4, 4, 8))
    assert two.one_slice == parse_target("v5p-256") == parse_target("1xv5p-256")
    assert two.bandwidth(128) == two.one_slice.bandwidth(128)
    assert "2 slices, 256 chips, 512 TensorCores, topology 4x4x8" in two.describe()
    assert parse_target("3xv5litepod-16").name == "3xv5e-16"
    assert parse_target("4090x1").slices == 1  # a chip whose name is a number
    for name, words in (
        ("2xh100x8", "no 2 slices of h100x8; count the GPUs"),
        ("0xv5e-16", "no 0 slices.*one or more"),
    ):
        with pytest.raises(ConfigError, match=words):
            parse_target(name)
    check_network(two)
    check_network(parse_target("v4-128"))
    with pytest.raises(
        ConfigError, match="between slices of v4 is not published; it is known for v5p, v5e, v6e, tpu7x"
    ):
        check_network(parse_target("2xv4-128"))


def test_the_network_between_slices_is_a_limit_of_its_own():
    """Catches bytes of the slow network at the speed of the links, and a chip's share given to each of its devices."""
    exchanges = [Collective("all-reduce", 10**9, 16), Collective("all-reduce", 10**9, 2, between_slices=True)]
    found = roofline(parse_target("2xv5p-256"), 0.0, 0.0, exchanges)
    assert found.links == pytest.approx(2 * 15 / 16 * 1e9 / 400e9)
    assert found.network == found.step == pytest.approx(1e9 / 6.25e9) and found.slowest == "network"
    assert roofline(parse_target("2xtpu7x-256"), 0.0, 0.0, exchanges[1:]).network == pytest.approx(1e9 / 6.25e9)
    assert limits_of(1) == ("compute", "memory", "links") and limits_of(2) == (*limits_of(1), "network") == LIMITS


def test_the_slowest_limit_is_the_step_and_its_cost():
    target = parse_target("v5e-256")
    limits = roofline(target, 197e12, 819e9 / 2, [Collective("all-gather", 200_000_000_000, 256, 1)])
    assert (limits.compute, limits.memory) == (1.0, 0.5)
    assert limits.links == pytest.approx(255 / 256)
    assert (limits.step, limits.slowest) == (1.0, "compute")
    spent = cost(target, limits.step, 3600, 2.0)
    assert (spent.chip_hours, spent.days, spent.money) == (256.0, 1 / 24, 512.0)
    assert cost(target, 1.0, 1, None).money is None


def test_a_plan_says_where_products_in_float32_do_not_reach_its_peak():
    """Catches days at the rate of bfloat16 for a config in float32, which is the default."""
    config, bf16 = TrainConfig(), TrainConfig(compute_dtype="bfloat16", matmul_precision="highest")
    (said,) = precision_note(parse_target("h100x8"), [bf16, config])
    assert "compute_dtype is float32 (matmul_precision default)" in said and "at most half" in said
    assert precision_note(parse_target("v5e-8"), [config]) == precision_note(parse_target("h100x8"), [bf16]) == []
    (said,) = precision_note(parse_target("v5e-8"), [TrainConfig(matmul_precision="highest")])
    assert "a sixth at highest" in said
    arguments = ["plan", "--config=sd3_depth", "--point=depth15", "--target=h100x8", "--config.mesh.fsdp=8"]
    for words in ([], ["--sample", "--weights=bfloat16"]):
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            main([*arguments, *words, "--no-compile", "--config.train.compute_dtype=float32"])
        assert "at most half" in printed.getvalue()


def test_every_chip_states_its_source_and_has_its_own_names():
    for chip in CHIPS.values():
        assert chip.source and all(math.prod(shape) for shape in chip.shapes)
    names = [name for chip in CHIPS.values() for name in chip.device_kinds]
    assert len(set(names)) == len(names)


def test_a_chip_of_which_only_the_peak_is_known_cannot_be_planned_for():
    """Catches a plan with no memory and infinite links."""
    assert CHIPS["h100-pcie"].peak_flops and not CHIPS["h100-pcie"].shapes
    with pytest.raises(ConfigError, match="of h100-pcie only the peak is known.*did you mean h100"):
        parse_target("h100-pciex8")


def test_what_can_be_planned_has_every_number():
    """Catches a row without a bandwidth, by which a plan would divide, and a name that two chips have."""
    for chip in CHIPS.values():
        numbers = (chip.hbm_bytes, chip.hbm_bandwidth, chip.link_bandwidth)
        assert not chip.shapes or all(numbers), chip.name
        assert not chip.shapes or chip.kind == "tpu" or chip.node_bandwidth
    names = [name for chip in CHIPS.values() for name in (chip.name, *chip.aliases)]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize(
    "alias, name",
    [("v7x-256", "tpu7x-256"), ("v5litepod-8", "v5e-8"), ("4090x1", "rtx4090x1"), ("mi300x8", "mi300x-8")],
)
def test_names_as_sold(alias, name):
    """Catches an alias that is refused, and one that makes another target's name."""
    assert parse_target(alias) == parse_target(name) and parse_target(alias).name == name


def test_two_devices_share_a_chip():
    """Catches a plan that gives each of a tpu7x chip's two devices the whole chip, and half as many devices."""
    target = parse_target("tpu7x-256")
    assert (target.chips, target.devices) == (128, 256) and "256 devices" in target.describe()
    assert roofline(target, 2307e12 / 2, 7380e9, []) == Roofline(compute=1.0, memory=2.0, links=0.0)
    assert target.chip.device_bytes == int(94.75 * GIB)
    assert target.bandwidth(2) == 600e9  # the two of a chip
    assert target.bandwidth(256) == 6 * 100e9  # both devices of each chip pass the same rings
    assert target.bandwidth(128) == 6 * 100e9 / 2  # one of each chip: two groups share the links
    assert cost(target, 3600.0, 1, None).chip_hours == 128
    assert device_peak("TPU7x") == 2307e12 / 2


def test_what_no_compiler_here_compiles_is_said():
    """Catches a GPU without a description that is given to the compiler, and one whose description goes unused."""
    compiled = {name for name, chip in PLANNED.items() if why_not_compiled(chip) is None}
    assert compiled == {"v4", "v5p", "v5e", "v6e", "tpu7x", "a100", "h100", "h200", "b200", "gb200", "rtx4090"}
    assert "no description of l40s" in why_not_compiled(CHIPS["l40s"]) and "rocm" in why_not_compiled(CHIPS["mi300x"])
    assert set(DESCRIPTIONS) <= set(compiled) and [name for name in DESCRIPTIONS if DESCRIPTIONS[name].by_hand] == [
        "rtx4090"
    ]
    for name, described in DESCRIPTIONS.items():
        assert described.device in CHIPS[name].device_kinds
        assert CHIPS[name].hbm_bytes < described.memory_bytes < 1.1 * CHIPS[name].hbm_bytes
        assert described.bandwidth == pytest.approx(CHIPS[name].hbm_bandwidth, rel=0.05)


def test_small_amounts_are_no_zeros():
    """Catches the plan of a small study that costs 0 days and 0 chip-hours."""
    shown = [amount(1275.4), amount(0.2, 1), amount(0.04, 1), amount(3.5e-4), amount(0.0)]
    assert shown == ["1,275", "0.2", "0.04", "0.00035", "0"]
