"""A branch is the run trained alone: the same bits, rows and costs, whatever is killed, and nothing else is let in."""

import dataclasses
import json
import random
import signal
import time

import jax
import numpy as np
import pytest

from helpers.training_tiny import ended, rows, start_processes, tiny_config, tiny_train
from rfjax.config import Config, TrainConfig, apply_overrides
from rfjax.config_rules import READ_BY_SCHEDULES
from rfjax.errors import ConfigError, Diverged, RfjaxError
from rfjax.training import branches, checkpoint
from rfjax.training.optimizer import learning_rate

# Departures at 10 and 20; checkpoints and rows of the curve end amid both.
LENGTHS = (14, 28)
WHOLE = {"train.branches": LENGTHS, "train.steps": 28, "train.schedule": "wsd", "train.decay_fraction": 0.29}
WHOLE |= {"train.decay_shape": "1-sqrt"}


def flat(config):
    from rfjax import config as schema

    return {key: value for key, value in schema.flatten(config).items() if key.startswith(("train.", "evaluation."))}


def overrides_of(config):
    """The overrides of the toy's config that make it `config`, without those that its schedule does not read."""
    own, base = flat(config), flat(tiny_config())
    unread = {key for key, schedules in READ_BY_SCHEDULES.items() if config.train.schedule not in schedules}
    return {key: value for key, value in own.items() if value != base[key] and key not in unread}


POINT = tiny_config(WHOLE)
TRUNK = overrides_of(branches.trunk_of(POINT))
BRANCHES = {length: overrides_of(branches.branch_of(POINT, length)) for length in LENGTHS}
LEAVES = dict(zip(LENGTHS, branches.departures(POINT.train), strict=True))


def bits(workdir, step):
    """Every array of a checkpoint: weights, average, moments and counters."""
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    shapes = checkpoint.stored_shapes(workdir, step)
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=here), shapes)
    tree, facts = checkpoint.restore_step(workdir, step, shapes)
    return jax.tree.map(np.asarray, tree), {name: facts[name] for name in ("images", "flops", "window")}


def same(one, other):
    jax.tree.map(np.testing.assert_array_equal, one, other)
    return True


@pytest.fixture(autouse=True, scope="module")
def compiled_quickly(unoptimised):
    """In place of the room's: a trunk and the run alone are two programs, and give the same bits."""


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """Each branch's run, trained whole."""
    root = tmp_path_factory.mktemp("alone")
    for length, overrides in BRANCHES.items():
        tiny_train(root / str(length), overrides)
    return root


@pytest.fixture(scope="module")
def trunk(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("branches") / "trunk"
    tiny_train(workdir, TRUNK, keep_steps=LEAVES.values())
    return workdir


def leave(trunk, workdir, length, **more):
    return tiny_train(workdir, BRANCHES[length], trunk=[str(trunk), "trunk", LEAVES[length]], **more)


def test_departures_and_configs_are_those_of_the_runs_alone():
    """Catches warm-up and average by each branch's own length: the trunk could then be that of one branch only."""
    train = TrainConfig(steps=20_000, branches=(2_500, 5_000, 20_000), schedule="wsd", decay_fraction=0.2)
    assert branches.departures(train) == (2_000, 4_000, 16_000)
    assert branches.steps_taken(train) == 16_000 + 500 + 1_000 + 4_000
    config = Config(train=train)
    short, base = branches.branch_of(config, 2_500), branches.trunk_of(config)
    assert (
        (short.train.warmup, short.train.average_every) == (base.train.warmup, base.train.average_every) == (1000, 20)
    )
    assert (base.train.steps, base.train.schedule, short.train.branches) == (16_000, "constant", ())
    assert not base.evaluation.validation.examples and not base.evaluation.geneval.prompts_per_task


@pytest.mark.parametrize("shape", ["linear", "1-sqrt", "cosine"])
def test_a_branch_has_the_trunks_rates_and_then_falls(shape):
    train = TrainConfig(steps=100, branches=(50, 100), schedule="wsd", warmup_steps=10, decay_shape=shape)
    config = Config(train=train)
    steps = np.arange(50)
    ours = np.asarray(learning_rate(branches.branch_of(config, 50).train)(steps))
    assert np.array_equal(ours[:40], np.broadcast_to(learning_rate(branches.trunk_of(config).train)(steps), 50)[:40])
    done = np.arange(10) / 10
    fall = {"linear": 1 - done, "1-sqrt": 1 - np.sqrt(done), "cosine": (1 + np.cos(np.pi * done)) / 2}[shape]
    np.testing.assert_allclose(ours[40:], 1e-4 * fall, rtol=1e-5)


def test_a_branch_is_the_run_to_the_last_bit(alone, trunk, tmp_path):
    """Weights, average, moments, counters, costs and rows. Catches fresh moments, and other data or noise."""
    for length in LENGTHS:
        workdir = tmp_path / str(length)
        leave(trunk, workdir, length)
        assert same(bits(workdir, length), bits(alone / str(length), length))
        assert rows(workdir) == rows(alone / str(length))
        record = json.loads((workdir / "run.json").read_text())
        assert record["role"] == "branch" and record["trunk"]["step"] == LEAVES[length] == record["starts"][0]["step"]
        assert record["images"] == length * 8  # what the run would have cost alone


def test_trunk_and_branch_go_on_where_they_broke_off(alone, tmp_path):
    """Catches a trunk that forgets a departure that it has passed, and a branch that begins anew, leaves its trunk
    again or loses rows where it has a checkpoint of its own, or has none yet."""
    folder, workdir, length = tmp_path / "trunk", tmp_path / "branch", LENGTHS[-1]
    with pytest.raises(RfjaxError, match="shard 3 is damaged"):
        tiny_train(folder, TRUNK, keep_steps=LEAVES.values(), damaged=(0, 15))
    tiny_train(folder, TRUNK, keep_steps=LEAVES.values())
    for step, saved in ((22, []), (26, [24])):
        with pytest.raises(RfjaxError, match="shard 3 is damaged"):
            leave(folder, workdir, length, damaged=(0, step))
        assert checkpoint.steps_saved(workdir) == saved
    leave(folder, workdir, length)
    assert [start["step"] for start in json.loads((workdir / "run.json").read_text())["starts"]] == [20, 20, 24]
    assert same(bits(workdir, length), bits(alone / str(length), length))
    assert rows(workdir) == rows(alone / str(length))


@pytest.mark.full
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_kills_at_any_time_change_nothing(alone, tmp_path, seed):
    """Kills trunk and branch at random moments until both are done."""
    draw, length = random.Random(seed), LENGTHS[-1]
    parts = [("trunk", {"overrides": TRUNK, "keep_steps": list(LEAVES.values())})]
    parts += [(name := "branch", {"overrides": BRANCHES[length], "trunk": [str(tmp_path / "trunk"), "trunk", 20]})]
    for name, arguments in parts:
        for _ in range(2):
            (process,) = start_processes(tmp_path / name, 1, pause=0.15, **arguments)
            begun = time.monotonic()
            while not (tmp_path / name / "run.json").exists() and time.monotonic() - begun < 60:
                time.sleep(0.05)
            time.sleep(draw.uniform(0.5, 2.5))
            process.send_signal(signal.SIGKILL)
            process.wait()
        assert ended(start_processes(tmp_path / name, 1, **arguments))[0][0] == 0
    assert rows(tmp_path / "branch")[-1]["step"] == rows(alone / str(length))[-1]["step"]
    ours, theirs = bits(tmp_path / "branch", length), bits(alone / str(length), length)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-6), ours, theirs)


def test_what_is_no_branch_is_refused_by_name(trunk, tmp_path):
    """Catches a branch of another run, step or rate, which would be no run that anybody could train alone."""

    def refused(words, length=14, step=None, folder=trunk, **changes):
        place = [str(folder), "trunk", LEAVES[length] if step is None else step]
        overrides = {key: value for key, value in (BRANCHES[length] | changes).items() if value is not None}
        with pytest.raises(ConfigError, match=words):
            tiny_train(tmp_path / "no", overrides, trunk=place)
        assert not (tmp_path / "no").exists()

    refused("trunk@20: the branch of 14 steps leaves its trunk at step 10", step=20)
    refused("has no checkpoint of step 11, where the branch is to leave .it has .*10,", step=11, **{"train.steps": 15})
    refused("config.train.b1 is 0.9 in the trunk and 0.8 in this run", **{"train.b1": 0.8})
    refused("config.seed is 0 in the trunk and 5 in this run", seed=5)
    refused("config.train.ema_every", **{"train.ema_every": 2})
    refused("the rate of step 0 is .* in the trunk and .* in this run", **{"train.warmup_steps": 9})
    unread = dict.fromkeys(("train.decay_fraction", "train.decay_shape"))
    refused("the branch of 14 steps leaves", **{"train.schedule": "cosine"}, **unread)
    refused("has no checkpoint of step 10", folder=tmp_path / "nowhere")


def test_a_folder_keeps_the_trunk_that_it_left(trunk, tmp_path):
    leave(trunk, tmp_path / "run", 14)
    with pytest.raises(ConfigError, match="left trunk@10, not other@10"):
        path = tmp_path / "run"
        (path / "status.json").unlink()
        tiny_train(path, BRANCHES[14], trunk=[str(trunk), "other", 10])
    leave(tmp_path / "moved" / "trunk", tmp_path / "run", 14)  # done: the trunk is not asked for


def test_a_trunk_that_diverged_has_the_branches_that_left_before(trunk, tmp_path):
    folder = tmp_path / "trunk"
    with pytest.raises(Diverged):
        tiny_train(folder, TRUNK, keep_steps=LEAVES.values(), bad_steps=range(14, 20))
    leave(folder, tmp_path / "short", 14)
    with pytest.raises(RfjaxError, match="has no checkpoint of step 20"):
        leave(folder, tmp_path / "long", 28)


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"train.branches": (28, 14), "train.steps": 14}, "branches are whole lengths that increase"),
        ({"train.branches": (14, 14, 28)}, "branches are whole lengths that increase"),
        ({"train.branches": (0, 28)}, "branches are whole lengths that increase"),
        ({"train.branches": (14, 20)}, "the last of them is config.train.steps"),
        ({"train.branches": "14,20"}, "the last of them is config.train.steps"),
        ({"train.branches": (14, 28.0)}, "it must be a list of integers"),
        ({"train.branches": "a,b"}, "it must be a list of integers"),
        ({"train.schedule": "cosine"}, "set config.train.schedule=wsd"),
        ({"train.warmup_steps": 11}, "leaves the trunk before its warm-up ends"),
        ({"train.decay_fraction": 1.0}, "leaves the trunk before its warm-up ends"),
    ],
)
def test_branches_that_cannot_be_are_refused_before_training(changes, words):
    with pytest.raises(ConfigError, match=words):
        apply_overrides(POINT, changes)


def test_lengths_are_read_from_a_command_line():
    for text in ("14,28", "(14, 28)", "[14,28]", "14, 28,"):
        assert apply_overrides(POINT, {"train.branches": text}).train.branches == LENGTHS
    assert apply_overrides(POINT, {"train.branches": "()"}).train.branches == ()
    assert dataclasses.replace(POINT.train, branches=()).departure == 20
