"""The smallest point of the paper's sweep compiled for a small slice; `make test LIBTPU=yes`."""

from pathlib import Path

from rfjax.scaling.plan.chips import parse_target
from rfjax.scaling.plan.compiled import compile_step
from rfjax.scaling.plan.estimate import estimate
from rfjax.scaling.study import load_study

PAPER = Path(__file__).parents[4] / "configs" / "sd3_depth.py"


def test_the_smallest_point_compiles_for_a_small_slice():
    """Catches a step that the TPU compiler refuses or lays out otherwise: weights gathered as a
    stack, activations exchanged, loops counted once."""
    config = load_study(PAPER, {"train.batch_size": 256}).point("depth15").config
    target = parse_target("v5e-16")
    compiled = compile_step(config, target, "O0")
    counts = compiled.counts
    assert compiled.fits and compiled.peak_bytes < target.chip.hbm_bytes
    assert counts.unknown_loops == 0
    # Splash pads 410 tokens to 512; forward twice (remat is full) and backward once: 2 + 2 + 5 products.
    each = 9 * 2 * 512**2 * config.model.width * config.model.depth
    assert counts.kernel_flops == each * config.train.batch_size // target.chips and not counts.unknown_kernels
    assert counts.flops > 0.98 * estimate(config, target).flops  # above the formula by a fifth here; which products is not known
    assert counts.largest_all_gather == 2 * 6 * config.model.width**2  # a layer's modulation kernel, bfloat16
    assert not [c for c in counts.collectives if c.kind == "all-to-all"]
