"""Compares the text of a compiled train step with formulas, on eight simulated devices in one child process."""

import json
import math
import subprocess

import jax
import pytest

from helpers import child_process
from rfjax.config import Config, from_dict
from rfjax.data.corpus import load_corpus
from rfjax.models.backbone import make_backbone
from rfjax.models.flops import recompute_flops, training_flops
from rfjax.plan import compiled as compiled_programs
from rfjax.plan.compiled import Compiled, Compiler, _needed_bytes, compile_step
from rfjax.plan.targets import parse_target
from rfjax.training.xla_flags import flags_for, jaxlib_version

DEVICES = 8
LAYERS = 5  # in the scan; the last block is not in it


def config_of(**mesh) -> Config:
    return from_dict(
        {
            "model": {"depth": LAYERS + 1, "hidden": 128, "head_size": 32},
            "data": {
                "corpus": "random",
                "image_size": 16,
                "channels": 4,
                "context_tokens": 16,
                "context_size": 64,
                "pooled_size": 32,
            },
            "train": {"batch_size": 32, "accumulate": 2, "remat": "full"},
            "mesh": mesh,
        }
    )


@pytest.fixture(scope="module")
def program() -> tuple[Config, Compiled]:
    config = config_of(data=2, fsdp=4)
    with pytest.MonkeyPatch.context() as patch:  # what is compiled last, to machine code, is not looked at
        for name in ("JAX_DISABLE_MOST_OPTIMIZATIONS", "XLA_FLAGS"):
            patch.setenv(name, child_process.quick_environment()[name])
        return config, compile_step(config, None, cpu_devices=DEVICES)


def layer_weights(config) -> dict[str, int]:
    """Float32 bytes of one layer's kernels by name, from shapes."""
    shapes = load_corpus(config.data, config.seed).shapes
    blocks = jax.eval_shape(make_backbone(config.model, shapes).init, jax.random.key(0))["blocks"]["image"]
    return {name: 4 * math.prod(part["kernel"].shape[1:]) for name, part in blocks.items() if "kernel" in part}


def test_operations_of_the_compiled_step_are_the_formulas(program):
    """Catches loops counted once (a factor of layers x microbatches) and a step that computes more
    than it should, such as activations made whole on every device."""
    config, compiled = program
    shapes = load_corpus(config.data, config.seed).shapes
    each = training_flops(config.model, shapes) + recompute_flops(config.model, shapes, "full")
    assert compiled.counts.unknown_loops == 0
    assert compiled.counts.flops == pytest.approx(each * config.train.batch_size / DEVICES, rel=0.02)


def test_no_gather_is_larger_than_one_weight_of_one_layer(program):
    """Catches a gather of the stack outside the scan, and activations gathered in place of weights."""
    config, compiled = program
    weights = layer_weights(config)
    assert compiled.counts.largest_all_gather == max(weights.values())
    gathers = [c for c in compiled.counts.collectives if c.kind == "all-gather" and "blocks" in c.name]
    # each kernel of both streams, forward and again for the backward pass
    once = 2 * sum(weights.values())
    assert sum(c.bytes * c.times for c in gathers) == 2 * once * LAYERS * config.train.accumulate


def test_activations_are_not_exchanged(program):
    """Catches the compiler splitting activations along `hidden`, as the weights are."""
    _, compiled = program
    assert not [c for c in compiled.counts.collectives if c.kind == "all-to-all"]


def test_memory_is_that_of_split_weights(program):
    """A device's arguments are a 1/fsdp of the kernels, and the rest of the state, by their shapes."""
    config, compiled = program
    shapes = load_corpus(config.data, config.seed).shapes
    params = jax.eval_shape(make_backbone(config.model, shapes).init, jax.random.key(0))
    kernels = sum(leaf.size for path, leaf in jax.tree_util.tree_leaves_with_path(params) if "kernel" in str(path))
    others = sum(leaf.size for leaf in jax.tree.leaves(params)) - kernels
    batch = (
        4
        * config.train.batch_size
        // DEVICES
        * (math.prod(shapes.latents) + math.prod(shapes.context) + shapes.pooled + 1)
    )
    assert compiled.argument_bytes == pytest.approx(16 * (kernels / 4 + others) + batch, rel=0.01)
    assert compiled.fits and compiled.peak_bytes > 0


def test_what_a_compiler_asks_for():
    text = "Ran out of memory: the total memory required for HLO temporaries (205.11G) exceeds available HBM (95.74G)."
    assert _needed_bytes(text) == int(205.11 * 2**30)


@pytest.mark.parametrize("target, variable", [("v5e-16", "LIBTPU_INIT_ARGS"), ("h100x8", "XLA_FLAGS")])
def test_a_plan_compiles_with_the_flags_of_a_run(target, variable, monkeypatch):
    """Catches a plan of another program than the one that is trained, and a user's flag that is overruled."""
    target = parse_target(target)
    wanted = [str(flag) for flag in flags_for(target.chip.kind, jaxlib_version())]
    program = {"seconds": 1.0, "host_bytes": 1, "too_large": "(2.0G)"}
    seen = []

    def run(command, *, env, **_):
        if any("rfjax.plan.worker" in word for word in command):  # else a child that tries the flags
            seen.append(env.get(variable, "").split())
        return subprocess.CompletedProcess(command, 0, json.dumps(program), "")

    monkeypatch.setattr(compiled_programs, "check_compiler", lambda target: None)
    compiled_programs._chosen.cache_clear()
    monkeypatch.setattr(compiled_programs.subprocess, "run", run)
    monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("RFJAX_XLA_FLAGS", "--of_this_machine")
    monkeypatch.setenv(variable, "--of_this_machine")
    compiled = compile_step(config_of(), target)
    assert compiled.xla_flags == {"rfjax": wanted, "user": []} and "rfjax's XLA flags" in compiled.settings
    compiled = compile_step(config_of(), target, Compiler(xla_flags=False))
    assert compiled.xla_flags == {"rfjax": [], "user": []} and "no XLA flags" in compiled.settings
    monkeypatch.delenv("RFJAX_XLA_FLAGS")
    mine = wanted[0].replace("true", "false")
    monkeypatch.setenv(variable, mine)
    assert compile_step(config_of(), target).xla_flags == {"rfjax": wanted[1:], "user": [mine]}
    with_flags, without, with_mine = seen
    assert set(wanted) <= set(with_flags) and not set(wanted) & set(without)
    assert mine in with_mine and wanted[0] not in with_mine and "--of_this_machine" not in with_flags + without
