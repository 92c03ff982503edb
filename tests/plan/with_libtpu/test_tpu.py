"""The smallest point of the paper's sweep compiled for a small slice; `make test LIBTPU=no` leaves it out."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from rfjax.plan.compiled import Compiler, compile_step
from rfjax.plan.estimate import estimate
from rfjax.plan.targets import parse_target
from rfjax.study.study import load_study

PAPER = Path(__file__).parents[3] / "configs" / "sd3_depth.py"


def test_the_smallest_point_compiles_for_a_small_slice():
    """Catches a step that the TPU compiler refuses or lays out otherwise: weights gathered as a
    stack, activations exchanged, loops counted once."""
    config = load_study(PAPER, {"train.batch_size": 256}).point("depth15").config
    target = parse_target("v5e-16")
    compiled = compile_step(config, target, Compiler("O0"))
    counts = compiled.counts
    assert compiled.fits and compiled.peak_bytes < target.chip.hbm_bytes and compiled.xla_flags["rfjax"]
    assert counts.unknown_loops == 0
    # Splash pads 410 tokens to 512; forward twice (remat is full) and backward once: 2 + 2 + 5 products.
    each = 9 * 2 * 512**2 * config.model.width * config.model.depth
    assert counts.kernel_flops == each * config.train.batch_size // target.chips and not counts.unknown_kernels
    assert (
        counts.flops > 0.98 * estimate(config, target).flops
    )  # above the formula by a fifth here; which products is not known
    assert counts.largest_all_gather == 2 * 6 * config.model.width**2  # a layer's modulation kernel, bfloat16
    assert not [c for c in counts.collectives if c.kind == "all-to-all"]


@pytest.mark.full
@pytest.mark.parametrize("slices", [2, 4])
def test_slices_exchange_their_parts_of_the_gradients_and_nothing_else(slices):
    """Catches a mesh that is not ordered by slice (weights would be gathered over the slow network), exchanges between
    slices that the program's text hides, and gradients that are not first summed inside a slice."""
    config = load_study(PAPER, {"train.batch_size": 64, "mesh.fsdp": 4}).point("depth15").config
    target = parse_target(f"{slices}xv5e-8")
    counts = compile_step(config, target, Compiler("O0")).counts
    between = [found for found in counts.collectives if found.between_slices]
    assert {(found.kind, found.ways) for found in between} == {("all-reduce", slices)}
    (formula,) = [found for found in estimate(config, target).collectives if found.between_slices]
    assert sum(found.sent for found in between) == pytest.approx(formula.sent, rel=0.02)
    inside = [found for found in counts.collectives if not found.between_slices]
    assert max(found.ways for found in inside) <= 8


@pytest.mark.full
def test_a_command_on_a_cpu_says_nothing_of_the_tpu_that_is_not_there(tmp_path):
    """Catches a command that has JAX try for a TPU: warnings in every log, and a lock for one process at a time.

    On a machine with a TPU the command runs there.
    """
    environ = {name: value for name, value in os.environ.items() if not name.startswith(("JAX_PLATFORMS", "TPU_"))}
    command = [
        sys.executable,
        "-m",
        "rfjax",
        "train",
        f"--config={PAPER.parent}/shapes.py",
        f"--workdir={tmp_path}/run",
        "--no-evaluation",
    ]
    tiny = ["--config.model.depth=1", "--config.train.batch_size=2", "--config.train.steps=1"]
    done = subprocess.run([*command, *tiny], capture_output=True, text=True, env=environ)
    assert done.returncode == 0 and "TPU" not in done.stderr, done.stderr
