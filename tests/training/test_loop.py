import errno
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from helpers import child_process, training_tiny
from helpers.training_tiny import rows, tiny_config, tiny_train
from rfjax import cli
from rfjax.errors import ConfigError, Diverged, Preempted, RfjaxError
from rfjax.training import checkpoint, run_folder
from rfjax.training.kept_steps import evaluation_steps

STEPS = 30  # of the tiny run, which saves every 6 and logs every 4


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """(folder, result) of a run that nothing happened to."""
    workdir = tmp_path_factory.mktemp("runs") / "undisturbed"
    return workdir, tiny_train(workdir)


def saved(workdir, step=STEPS):
    return checkpoint.read_facts(workdir, step)["checksums"]


def stop_at(step):
    """A `stop` that turns true after so many steps."""
    calls = iter(range(10**6))
    return lambda: next(calls) >= step  # asked before the first step and after each


def test_a_run_leaves_its_files(undisturbed):
    workdir, result = undisturbed
    assert (result.step, result.images, int(result.state.step)) == (STEPS, STEPS * 8, STEPS)
    assert [row["step"] for row in rows(workdir)] == [4, 8, 12, 16, 20, 24, 28, 30]
    assert rows(workdir)[-1]["loss"] < 0.7 * rows(workdir)[0]["loss"]
    assert checkpoint.steps_saved(workdir) == [24, 30]
    record = json.loads((workdir / "run.json").read_text())
    assert record["run"] == "undisturbed" and record["images"] == STEPS * 8 and record["parent"] is None
    assert record["hardware"]["platform"] == "cpu" and len(record["code_hash"]) == 16
    assert json.loads((workdir / "status.json").read_text())["state"] == "done"
    first = next((workdir / "metrics.jsonl").open())
    assert json.loads(first)["train_seconds"] > 0 and json.loads(first)["mfu"] is None


def test_a_run_that_is_done_returns_at_once(undisturbed):
    workdir, result = undisturbed
    before = (workdir / "run.json").stat().st_mtime_ns
    again = tiny_train(workdir, on_checkpoint=lambda step, state: pytest.fail("evaluated again"))
    assert again.state is None and again.images == result.images
    assert (workdir / "run.json").stat().st_mtime_ns == before


def test_stopped_runs_resume_to_the_same_bits_and_rows(tmp_path, undisturbed):
    for _ in range(3):
        with pytest.raises(Preempted, match="the same command goes on") as told:
            tiny_train(tmp_path, stop=stop_at(8))
        assert told.value.exit_status == 75
    status = run_folder.read_status(tmp_path)
    assert status["state"] == "stopped" and "told to stop" in status["message"]
    result = tiny_train(tmp_path)
    assert saved(tmp_path) == saved(undisturbed[0])
    assert rows(tmp_path) == rows(undisturbed[0])
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(result.state), jax.device_get(undisturbed[1].state))
    assert len(json.loads((tmp_path / "run.json").read_text())["starts"]) == 4


# TensorStore calls back after Orbax has closed its event loop: the command line hides that (console.quiet_background).
@pytest.mark.filterwarnings("ignore:(?s).*Event loop is closed:pytest.PytestUnraisableExceptionWarning")
def test_a_damaged_checkpoint_is_passed_over_and_said_so(tmp_path, undisturbed, capsys):
    with pytest.raises(Preempted):
        tiny_train(tmp_path, stop=stop_at(12))
    (tmp_path / "checkpoints" / "12" / "state" / "manifest.ocdbt").unlink()
    result = tiny_train(tmp_path)
    (message,) = result.messages
    assert "checkpoints/12 cannot be read" in message and "fell back to the checkpoint of step 6" in message
    assert (tmp_path / "damaged" / "12").is_dir()
    assert message in capsys.readouterr().err
    assert saved(tmp_path) == saved(undisturbed[0])
    assert rows(tmp_path) == rows(undisturbed[0])


def test_what_takes_time_before_the_first_row_is_said(tmp_path, capsys):
    """A start is otherwise silent until a row is logged: minutes, for a large network."""
    name = tmp_path.name
    with pytest.raises(Preempted):
        tiny_train(tmp_path, stop=stop_at(6), log_seconds=1e6)
    assert capsys.readouterr().err.splitlines() == [f"{name}: compiling the training step"]
    tiny_train(tmp_path, {}, stop=lambda: False, log_seconds=1e6)
    said = capsys.readouterr().err.splitlines()
    assert said[:2] == [f"{name}: resumed at step 6 of 30", f"{name}: compiling the training step"]
    assert len(said) == 3 and said[2].startswith(f"{name}: step 30/30")


def test_told_to_stop_at_the_last_step_it_is_evaluated_next_time(tmp_path):
    seen, overrides = [], {"train.steps": 6}
    with pytest.raises(Preempted, match="step 6 of 6"):
        tiny_train(tmp_path, overrides, stop=stop_at(6), on_checkpoint=lambda step, state: seen.append(step))
    assert not seen
    tiny_train(tmp_path, overrides, on_checkpoint=lambda step, state: seen.append(step))
    assert seen == [6] and run_folder.read_status(tmp_path)["state"] == "done"


def test_another_config_is_refused_by_its_keys(undisturbed):
    workdir, _ = undisturbed
    with pytest.raises(ConfigError, match=r"config.train.learning_rate, config.train.schedule\. .*--workdir.*--init"):
        tiny_train(workdir, {"train.learning_rate": 1.0, "train.schedule": "wsd"})
    tiny_train(workdir, {"mesh.fsdp": 1, "mesh.data": 1})  # where arrays live is no part of it


def test_a_refused_start_leaves_the_folder_free(tmp_path):
    workdir = tmp_path / "run"
    with pytest.raises(ConfigError, match="no checkpoint in"):
        tiny_train(workdir, init_from=str(tmp_path / "nowhere"))
    assert not workdir.exists()
    tiny_train(workdir, {"train.steps": 4})


def test_evaluation_sees_saved_checkpoints_and_is_made_up_for(tmp_path):
    overrides = {"evaluation.every": 10, "train.steps": 20, "train.keep_last": 1}
    assert evaluation_steps(tiny_config(overrides)) == {10, 20}
    seen = []

    def evaluate(step, state):
        seen.append(step)
        assert int(state.step) == step and step in checkpoint.steps_saved(tmp_path)
        if len(seen) in (1, 3):
            raise Preempted("stopped while evaluating")

    for _ in range(2):
        with pytest.raises(Preempted):
            tiny_train(tmp_path, overrides, on_checkpoint=evaluate)
    tiny_train(tmp_path, overrides, on_checkpoint=evaluate)
    assert seen == [10, 10, 20, 20]
    assert checkpoint.steps_saved(tmp_path) == [10, 20]  # evaluated ones are kept for good


def test_non_finite_steps_in_a_row_end_the_run_for_good(tmp_path):
    bad = [9, 12, 13, 14]  # the last three right after a save
    with pytest.raises(Diverged) as error:
        tiny_train(tmp_path, bad_steps=bad)
    message = str(error.value)
    assert "3 non-finite steps in a row up to step 15" in message
    assert "parameter group blocks (inf)" in message  # of several without a finite gradient, the largest
    assert f"--init={tmp_path}@12 --config.train.learning_rate=0.005" in message
    assert error.value.exit_status == 65
    assert [row["skipped"] for row in rows(tmp_path)] == [0, 0, 1]
    status = run_folder.read_status(tmp_path)
    assert (status["state"], status["message"]) == ("diverged", message)
    with pytest.raises(Diverged) as again:
        tiny_train(tmp_path)
    assert str(again.value) == message


def test_scattered_non_finite_steps_are_counted_and_passed(tmp_path):
    result = tiny_train(tmp_path, {"train.steps": 12}, bad_steps=[3, 7, 8])
    assert (int(result.state.skipped), int(result.state.skipped_in_row), int(result.state.step)) == (3, 0, 12)
    assert [row["skipped"] for row in rows(tmp_path)] == [1, 2, 3]


def test_a_full_disk_ends_the_run_and_the_same_command_goes_on(tmp_path, undisturbed):
    """A limit on the size of files, which holds for one process, stands in for the disk's."""
    command = [sys.executable, training_tiny.__file__, str(tmp_path), '{"file_limit": 16384}']
    ended = subprocess.run(command, env=child_process.quick_environment(), capture_output=True, text=True, timeout=120)
    assert ended.returncode == 1, ended.stderr
    said = f"a checkpoint could not be written to {tmp_path}/checkpoints"
    messages = [line for line in ended.stderr.splitlines() if said in line]
    assert messages and all("File too large" in message for message in messages), ended.stderr
    assert not any("space" in message for message in messages)  # there is room: freeing some would not help
    assert run_folder.read_status(tmp_path)["state"] == "failed"
    tiny_train(tmp_path)
    assert saved(tmp_path) == saved(undisturbed[0])
    assert rows(tmp_path) == rows(undisturbed[0])


def test_a_status_that_cannot_be_written_hides_no_error(tmp_path):
    """What ended the run is what is told, though its state cannot be noted."""

    def evaluate(step, state):
        (tmp_path / "status.json").unlink()
        (tmp_path / "status.json").mkdir()
        raise ArithmeticError("of the evaluation")

    with pytest.raises(ArithmeticError, match="of the evaluation"):
        tiny_train(tmp_path, {"train.steps": 6}, on_checkpoint=evaluate)


def test_two_trainers_in_one_folder_are_refused(tmp_path):
    def evaluate(step, state):
        with pytest.raises(RfjaxError, match="another process is training"):
            tiny_train(tmp_path, {"train.steps": 6})

    tiny_train(tmp_path, {"train.steps": 6}, on_checkpoint=evaluate)


def test_sigterm_saves_and_exits_with_the_requeue_status(tmp_path, undisturbed):
    command = [sys.executable, training_tiny.__file__, str(tmp_path), '{"pause": 0.1}']
    with subprocess.Popen(command, env=child_process.quick_environment(), stderr=subprocess.PIPE, text=True) as process:
        for line in process.stderr:
            if "step 8/" in line:
                process.send_signal(signal.SIGTERM)
                break
        said = process.stderr.read()
        assert process.wait(60) == 75, said
    step = checkpoint.steps_saved(tmp_path)[-1]
    assert 8 <= step < STEPS and f"told to stop at step {step} of {STEPS}" in said
    tiny_train(tmp_path)
    assert saved(tmp_path) == saved(undisturbed[0])
    assert rows(tmp_path) == rows(undisturbed[0])


def test_a_corpus_that_changed_is_refused(tmp_path, monkeypatch):
    with pytest.raises(Preempted):
        tiny_train(tmp_path, stop=stop_at(2))
    monkeypatch.setattr("rfjax.data.random.VERSION", "other")
    with pytest.raises(ConfigError, match="another version of the corpus random"):
        tiny_train(tmp_path)


@pytest.mark.parametrize("how", ["moved", "removed", "replaced"])
def test_a_folder_that_goes_while_it_trains_ends_the_run_with_an_error(tmp_path, how, undisturbed):
    """Catches "done", exit 0, in a new folder without config.json."""
    workdir, elsewhere = tmp_path / "run", tmp_path / "elsewhere"

    def evaluate(step, state):
        if how == "removed":
            shutil.rmtree(workdir)
        else:
            workdir.rename(elsewhere)
        if how == "replaced":
            shutil.copytree(undisturbed[0], workdir)

    with pytest.raises(RfjaxError, match="run is no longer the folder of this run.*move it back"):
        tiny_train(workdir, {"train.steps": 6}, on_checkpoint=evaluate)
    assert workdir.exists() == (how == "replaced")
    if how == "moved":
        elsewhere.rename(workdir)
        assert tiny_train(workdir, {"train.steps": 6}).step == 6
        assert run_folder.read_status(workdir)["state"] == "done"


@pytest.mark.parametrize("kind", ["folder", "link to nothing"])
def test_a_lock_that_is_no_file_is_refused_by_name(tmp_path, kind):
    if kind == "folder":
        (tmp_path / "lock").mkdir()
    else:
        (tmp_path / "lock").symlink_to(tmp_path / "nowhere" / "lock")
    with pytest.raises(RfjaxError, match="cannot lock .*/lock: it is a .*; remove it"), run_folder.lock(tmp_path):
        pass


@pytest.mark.parametrize("number", [errno.EROFS, errno.ENOSPC, errno.EACCES, errno.EDQUOT, errno.EIO])
def test_a_disk_that_refuses_the_first_write_is_one_line(tmp_path, monkeypatch, number, capsys):
    """Catches a traceback on a read-only disk, and on one that is full before the first checkpoint."""
    config = tmp_path / "config.py"
    config.write_text("def get_config():\n    return {'name': 'a'}\n")

    def refuse(path, *_, **__):
        raise OSError(number, os.strerror(number), str(path))

    monkeypatch.setattr(Path, "mkdir", refuse)
    assert cli.main(["train", f"--config={config}", f"--workdir={tmp_path / 'run'}"]) == 1
    said = capsys.readouterr().err.splitlines()[-1]
    assert os.strerror(number) in said and str(tmp_path / "run") in said and "the same command again" in said
