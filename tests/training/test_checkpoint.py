import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from helpers import child_process
from rfjax.errors import ConfigError, RfjaxError
from rfjax.training import checkpoint
from rfjax.training.checkpoint import (
    Checkpoints,
    read_facts,
    restore_newest,
    restore_params,
    restore_step,
    steps_saved,
)
from rfjax.training.checksums import checksums, host_checksums
from rfjax.training.state import TrainState


def state_at(step, shape=(64, 33)):
    """A state whose every number depends on the step."""

    def numbers(salt):
        return jax.random.normal(jax.random.key(1000 * step + salt), shape)

    def tree(salt):
        return {"blocks": {"kernel": numbers(salt), "bias": jnp.full(7, step + 0.5)}}

    opt_state = ((), {"count": jnp.int32(step), "mu": tree(2), "half": numbers(3).astype(jnp.bfloat16)})
    return TrainState(jnp.int32(step), tree(0), tree(1), opt_state, jnp.int32(0), jnp.int32(0))


def abstract(tree):
    return jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=a.sharding), tree)


COST = {"images": 8, "flops": 1.0, "train_seconds": 0.5}


def save(workdir, steps, *, keep_last=10, kept=lambda step: False):
    with Checkpoints(workdir, keep_last=keep_last, kept=kept) as checkpoints:
        for step in steps:
            checkpoints.save(state_at(step), step, COST | {"images": 8 * step})


def restored(workdir):
    return restore_newest(workdir, abstract(state_at(0)._asdict()))


def same(a, b):
    return jax.tree.structure(a) == jax.tree.structure(b) and jax.tree.all(
        jax.tree.map(lambda x, y: x.dtype == y.dtype and np.array_equal(x, y), jax.device_get(a), jax.device_get(b))
    )


def largest_file(workdir, step):
    files = [path for path in (workdir / "checkpoints" / str(step)).rglob("*") if path.is_file()]
    return max(files, key=lambda path: path.stat().st_size)


def flip_a_bit(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)


def test_what_was_saved_comes_back(tmp_path):
    assert restored(tmp_path) is None
    save(tmp_path, [3, 11])
    found = restored(tmp_path)
    assert (found.step, found.facts["images"], found.messages) == (11, 88, ())
    assert same(TrainState(**found.tree), state_at(11))
    ema, facts = restore_params(tmp_path, 3, "ema")
    assert facts["images"] == 24 and same(ema, state_at(3).ema)
    assert same(restore_params(tmp_path, weights="raw")[0], state_at(11).params)


def test_a_relative_folder_will_do(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save(Path("runs/a"), [1])
    assert same(restore_params(Path("runs/a"))[0], state_at(1).ema)


def test_pruning_keeps_the_last_and_those_for_good(tmp_path):
    save(tmp_path, range(1, 10), keep_last=2, kept=lambda step: step % 4 == 0)
    assert steps_saved(tmp_path) == [4, 8, 9]


def test_saving_goes_on_while_the_state_is_overwritten(tmp_path):
    advance = jax.jit(lambda s: jax.tree.map(lambda a: a + 1, s), donate_argnums=0)
    state = state_at(5, shape=(1000, 1000))
    expected = jax.device_get(state)
    with Checkpoints(tmp_path, keep_last=1, kept=lambda step: False) as checkpoints:
        checkpoints.save(state, 5, COST)
        for _ in range(5):
            state = advance(state)
        jax.block_until_ready(state)
    assert same(TrainState(**restore_step(tmp_path, 5, abstract(state._asdict()))[0]), expected)


def missing_file(workdir, step):
    largest_file(workdir, step).unlink()


def flipped_bit(workdir, step):
    flip_a_bit(largest_file(workdir, step))


def truncated_facts(workdir, step):
    path = workdir / "checkpoints" / str(step) / "facts" / "metadata"
    path.write_text(path.read_text()[:20])


def exchanged_arrays(workdir, step):
    """Readable, complete and wrong: only a checksum can tell."""
    path = workdir / "checkpoints" / str(step)
    (path / "state").rename(path.parent / "aside")
    (path.parent / str(step - 10) / "state").rename(path / "state")
    (path.parent / "aside").rename(path.parent / str(step - 10) / "state")


@pytest.mark.parametrize("damage", [missing_file, flipped_bit, truncated_facts])
def test_a_damaged_checkpoint_falls_back_to_the_one_before(tmp_path, damage):
    save(tmp_path, [10, 20])
    damage(tmp_path, 20)
    found = restored(tmp_path)
    assert found.step == 10 and found.damaged == (20,) and same(TrainState(**found.tree), state_at(10))
    (message,) = found.messages
    assert "checkpoints/20" in message and "fell back to the checkpoint of step 10" in message
    checkpoint.set_aside(tmp_path, found.damaged)
    assert steps_saved(tmp_path) == [10] and (tmp_path / "damaged" / "20").is_dir()
    save(tmp_path, [20])  # the step can be saved again
    assert restored(tmp_path).step == 20


def test_arrays_that_are_not_those_saved_are_found_by_checksum(tmp_path):
    save(tmp_path, [10, 20])
    exchanged_arrays(tmp_path, 20)
    with pytest.raises(RfjaxError, match="is damaged: the checksum of .* differs"):
        restore_step(tmp_path, 20, abstract(state_at(0)._asdict()))
    with pytest.raises(RfjaxError, match="none of the 2 checkpoints in .* can be restored"):
        restored(tmp_path)


def test_results_are_never_those_of_another_step(tmp_path):
    save(tmp_path, [10, 20])
    shutil.rmtree(tmp_path / "checkpoints" / "20" / "state")
    with pytest.raises(RfjaxError, match="checkpoints/20"):
        restore_params(tmp_path)
    with pytest.raises(ConfigError, match="no checkpoint of step 15 .* it has 10, 20"):
        restore_params(tmp_path, 15)
    with pytest.raises(ConfigError, match="train that run first"):
        restore_params(tmp_path / "empty")


def test_a_checksum_sees_every_bit_and_every_place():
    array = np.random.default_rng(0).normal(size=(5, 6)).astype(np.float32)
    base = checksums({"a": jnp.asarray(array)})
    assert base == checksums({"a": jnp.asarray(array)})
    changed = []
    for index in np.ndindex(array.shape):
        for bit in (0, 31):
            bits = array.copy().view(np.uint32)
            bits[index] ^= np.uint32(1 << bit)
            changed.append(bits.view(np.float32))
    swapped = array.copy()
    swapped[0, 0], swapped[3, 2] = array[3, 2], array[0, 0]
    changed += [swapped, array.reshape(6, 5).T.copy(), np.roll(array, 1)]
    sums = [checksums({"a": jnp.asarray(other)})["a"] for other in changed]
    assert base["a"] not in sums
    other_name = checksums({"b": jnp.asarray(array)})
    assert other_name["b"] != base["a"]  # arrays exchanged between names


FULL_DISK = """
import json, sys
sys.path.insert(0, sys.argv[2])
from test_checkpoint import *
import resource
workdir = Path(sys.argv[1])
with Checkpoints(workdir, keep_last=2, kept=lambda step: False) as checkpoints:
    checkpoints.save(state_at(1), 1, COST)
    checkpoints.wait()
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))  # no file may grow further
    try:
        checkpoints.save(state_at(2), 2, COST)
        checkpoints.wait()
    except RfjaxError as error:
        print(json.dumps(str(error)))
    try:
        checkpoints.check()
    except RfjaxError:
        pass
"""


def test_a_full_disk_is_a_clear_error_and_keeps_the_last_good_checkpoint(tmp_path):
    command = [sys.executable, "-c", FULL_DISK, str(tmp_path), str(Path(__file__).parent)]
    ended = subprocess.run(command, env=child_process.quick_environment(), capture_output=True, text=True, timeout=120)
    assert ended.returncode == 0, ended.stderr
    message = json.loads(ended.stdout)
    assert f"could not be written to {tmp_path}/checkpoints" in message
    assert "File too large" in message and "space" not in message.split("; the last complete")[1]
    assert "the last complete one is of step 1" in message
    found = restored(tmp_path)
    assert found.step == 1 and not found.messages and same(TrainState(**found.tree), state_at(1))


@pytest.mark.parametrize("shape", [(), (5,), (1, 3), (4, 3), (3, 2, 5)])
def test_checksums_in_parts_are_those_of_the_whole(shape):
    """A part that starts at another position than its own: every good checkpoint would be refused."""
    array = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    tree = {"params": {"a": array}}
    assert host_checksums(tree) == checksums(jax.tree.map(jnp.asarray, tree))


def chained(error, cause):
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "full"),
    [
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), True),
        (ValueError("RESOURCE_EXHAUSTED: Failed to write 9 bytes: No space left on device [os_error_code='28']"), True),
        (chained(RuntimeError("commit failed"), OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))), True),
        (PermissionError(errno.EACCES, os.strerror(errno.EACCES)), False),
        (ValueError("NaN"), False),
    ],
)
def test_space_is_asked_for_only_where_it_is_lacking(tmp_path, error, full):
    """Freeing space mends no permission; TensorStore tells a full disk by its text alone."""
    with Checkpoints(tmp_path, keep_last=1, kept=lambda step: False) as checkpoints:
        message = str(checkpoints._failed(error))
    assert ("Free some space" in message and "GiB" in message) == full
    assert ("space" in message.split("; there is none yet")[1]) == full


def write_run(workdir, **values):
    names = "depth hidden heads learning_rate params batch_size steps corpus corpus_fingerprint"
    record = dict.fromkeys(names.split(), 1)
    workdir.mkdir(parents=True, exist_ok=True)
    (workdir / "run.json").write_text(json.dumps(record | {"seed": 0, "parent": None} | values))


def test_a_checkpoint_under_another_steps_name_is_passed_over(tmp_path):
    """Catches "resumed at step 20", with the images of step 10."""
    save(tmp_path, [10])
    shutil.copytree(tmp_path / "checkpoints" / "10", tmp_path / "checkpoints" / "20")
    found = restored(tmp_path)
    assert (found.step, found.damaged) == (10, (20,)) and "belongs to step 10 and was renamed" in found.messages[0]
    with pytest.raises(RfjaxError, match="belongs to step 10"):
        restore_params(tmp_path, 20)
    with pytest.raises(RfjaxError, match="belongs to step 10"):
        read_facts(tmp_path, 20)


def test_a_checkpoint_of_another_run_is_refused(tmp_path):
    """Catches the other run's weights sampled and measured as this run's own."""
    for name, seed in (("a", 0), ("b", 1)):
        write_run(tmp_path / name, seed=seed)
        save(tmp_path / name, [3 + seed])
    shutil.copytree(tmp_path / "b" / "checkpoints" / "4", tmp_path / "a" / "checkpoints" / "4")
    with pytest.raises(RfjaxError, match="is that of another run: seed differ"):
        restore_params(tmp_path / "a")
    assert restored(tmp_path / "a").step == 3
    (tmp_path / "b").rename(tmp_path / "moved")
    assert restored(tmp_path / "moved").step == 4


def test_one_changed_digit_of_the_facts_is_noticed(tmp_path):
    save(tmp_path, [3])
    (path,) = (path for path in (tmp_path / "checkpoints" / "3" / "facts").rglob("*") if b"images" in path.read_bytes())
    path.write_bytes(path.read_bytes().replace(b'"images": 24', b'"images": 25'))
    with pytest.raises(RfjaxError, match="the checksum of its facts differs"):
        read_facts(tmp_path, 3)
    with pytest.raises(RfjaxError, match="the checksum of its facts differs"):
        restore_params(tmp_path, 3)


def test_other_names_beside_checkpoints_are_no_steps(tmp_path):
    """Catches a folder called \u00b2, which isdigit takes, 0010, and a file in the place of a checkpoint."""
    save(tmp_path, [3])
    for name in ("\u00b2", "0010", "x"):
        (tmp_path / "checkpoints" / name).mkdir()
    (tmp_path / "checkpoints" / "9").write_text("a file")
    (tmp_path / "checkpoints" / "7").symlink_to("7")
    assert steps_saved(tmp_path) == [3]
    assert restored(tmp_path).step == 3
    save(tmp_path, [5])
    assert steps_saved(tmp_path) == [3, 5]


def test_torn_saves_are_gone_before_a_manager_is_made(tmp_path, monkeypatch):
    """Catches folders that are removed in the background, while the next manager begins to save: it would lose its
    own."""
    torn = tmp_path / checkpoint.FOLDER / "7.orbax-checkpoint-tmp"
    (torn / "state.orbax-checkpoint-tmp").mkdir(parents=True)
    real, there = checkpoint.ocp.CheckpointManager, []

    def make(*arguments, **named):
        there.append(torn.exists())
        return real(*arguments, **named)

    monkeypatch.setattr(checkpoint.ocp, "CheckpointManager", make)
    with Checkpoints(tmp_path, keep_last=1, kept=lambda step: False) as checkpoints:
        torn.mkdir()
        checkpoints.open_again()
        checkpoints.save(state_at(7), 7, COST)
    assert there == [False, False] and checkpoint.steps_saved(tmp_path) == [7]
