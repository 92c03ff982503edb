"""Runs trained together: each as if alone, none minding what another meets, and all resumed to the same bits."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from helpers import child_process
from helpers.training_tiny import rows, run_in, tiny_config
from rfjax.config import apply_overrides
from rfjax.errors import ConfigError, Diverged, Preempted
from rfjax.training import checkpoint, cohort_step, run_folder
from rfjax.training.cohort import _Cohort, may_join, train_cohort
from rfjax.training.loop import train
from rfjax.training.run import Run

NAMES = ("rf/lognorm(0.00,1.00)", "edm(-1.20,1.20)", "eps/linear")
COUNT = len(NAMES)
SHIFTS = {"rf/lognorm(0.00,1.00)": 3.0}
RATES = {"eps/linear": 4e-3}  # the others have 1e-2
STEPS, EVERY = 16, 8


def own_fields(name):
    return {
        "formulation": name,
        "timestep_shift": SHIFTS.get(name, 1.0),
        "train.learning_rate": RATES.get(name, 1e-2),
    }


def members(root, names=NAMES, **overrides):
    overrides = {
        "train.steps": STEPS,
        "train.checkpoint_every": EVERY,
        "evaluation.every": 0,
        "train.together": 16,
    } | overrides
    return [
        run_in(
            Path(root) / f"m{index}",
            tiny_config(own_fields(name) | overrides),
        )
        for index, name in enumerate(names)
    ]


def run(root, names=NAMES, stop=lambda: False, seen=None, **overrides):
    made = members(root, names, **overrides)

    def on_checkpoint(step, live, weights):
        if seen is not None:
            seen.append((step, list(live), weights))

    return train_cohort(made, on_checkpoint=on_checkpoint, stop=stop)


def sums(root, step=STEPS, count=COUNT):
    return [checkpoint.read_facts(Path(root) / f"m{index}", step)["checksums"] for index in range(count)]


def stop_at(step):
    calls = iter(range(10**6))
    return lambda: next(calls) >= step


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    root, seen = tmp_path_factory.mktemp("cohort"), []
    assert run(root, seen=seen) == {}
    return root, seen


def test_a_member_is_trained_as_if_alone(undisturbed, tmp_path):
    """Another member's t, path, weight or noise, a batch that is not the run's own, an average or a rate not the
    run's: all would show. The products are summed in another order, so not to the bit."""
    root, _ = undisturbed
    for member in members(root):
        alone = tmp_path / member.workdir.name
        train(run_in(alone, member.config))
        for weights in ("ema", "raw"):
            ours, theirs = (checkpoint.restore_params(folder, STEPS, weights)[0] for folder in (member.workdir, alone))
            jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-5), ours, theirs)
        ours, theirs = rows(member.workdir), rows(alone)
        assert [row["step"] for row in ours] == [row["step"] for row in theirs]
        np.testing.assert_allclose([row["loss"] for row in ours], [row["loss"] for row in theirs], rtol=1e-4)
        np.testing.assert_allclose([row["grad_norm"] for row in ours], [row["grad_norm"] for row in theirs], rtol=1e-3)
        facts = [checkpoint.read_facts(folder, STEPS) for folder in (member.workdir, alone)]
        assert facts[0]["images"] == facts[1]["images"]
        assert facts[0]["flops"] == facts[1]["flops"] == STEPS * 8 * member.flops_per_image > 0
        assert json.loads((member.workdir / "status.json").read_text())["state"] == "done"
    losses = [rows(member.workdir)[-1]["loss"] for member in members(root)]
    assert (
        min(abs(a - b) for a, b in zip(losses, losses[1:], strict=False)) > 1e-3
    )  # the members are not each other's copies


def test_members_that_do_not_fill_the_devices_are_trained_all_the_same(undisturbed, tmp_path):
    """Three members on two devices: the place left over must not be taken for a member, nor one be lost."""
    root, _ = undisturbed
    command = "import sys; sys.path.insert(0, sys.argv[2]); import test_cohort as t; assert t.run(sys.argv[1]) == {}"
    flags = child_process.quick_environment(2)
    subprocess.run([sys.executable, "-c", command, str(tmp_path), str(Path(__file__).parent)], env=flags, check=True)
    assert dict(run_folder.read_run(tmp_path / "m0")["starts"][0]["mesh"]) == {"member": 2}
    for index in range(len(NAMES)):
        here, there = (checkpoint.restore_params(folder / f"m{index}", STEPS)[0] for folder in (root, tmp_path))
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-5), here, there)


def test_evaluation_gets_each_members_own_weights(undisturbed):
    root, seen = undisturbed
    ((step, live, weights_of),) = seen
    assert step == STEPS and [member.workdir for member in live] == [root / f"m{i}" for i in range(3)]
    for member in live:
        given = weights_of(member)
        for weights in ("ema", "raw"):
            saved = checkpoint.restore_params(member.workdir, STEPS, weights)[0]
            jax.tree.map(np.testing.assert_array_equal, given[weights], jax.device_get(saved))


def test_one_that_diverges_ends_alone(undisturbed, tmp_path, monkeypatch):
    """A mean over members, a norm shared by them or a stop for all would change the others' last bit."""
    root, _ = undisturbed
    real = cohort_step.examples_at

    def poisoned(formulation, t):
        rows = real(formulation, t)
        return rows._replace(weight=np.nan) if formulation.name == "edm(-1.20,1.20)" else rows

    monkeypatch.setattr(cohort_step, "examples_at", poisoned)
    seen = []
    failures = run(tmp_path, seen=seen)
    assert list(failures) == [tmp_path / "m1"] and isinstance(failures[tmp_path / "m1"], Diverged)
    assert [member.workdir.name for member in seen[0][1]] == ["m0", "m2"]
    states = [json.loads((tmp_path / f"m{i}" / "status.json").read_text())["state"] for i in range(3)]
    assert states == ["done", "diverged", "done"]
    for index in (0, 2):
        assert checkpoint.read_facts(tmp_path / f"m{index}", STEPS)["checksums"] == sums(root)[index]
    again = run(tmp_path)  # it stays ended, and the others are not trained again
    assert list(again) == [tmp_path / "m1"]


def left_running(root, tmp_path, *lost):
    """A copy of a finished cohort as a kill leaves it, the last checkpoint of the members `lost` not yet written."""
    shutil.copytree(root, tmp_path, dirs_exist_ok=True)
    for index in range(len(NAMES)):
        if index in lost:
            shutil.rmtree(tmp_path / f"m{index}" / "checkpoints" / str(STEPS))
        run_folder.write_status(tmp_path / f"m{index}", "running", EVERY)


def starts(root, count):
    return [[start["step"] for start in run_folder.read_run(root / f"m{i}")["starts"]] for i in range(count)]


def test_stopped_and_resumed_to_the_same_bits_and_rows(undisturbed, tmp_path):
    """A member resumed with another's state, a batch repeated or left out, a row doubled."""
    root, _ = undisturbed
    for step in (3, 9):
        with pytest.raises(Preempted, match="the same command goes on"):
            run(tmp_path, stop=stop_at(step))
        assert json.loads((tmp_path / "m2" / "status.json").read_text())["state"] == "stopped"
    assert run(tmp_path) == {}
    assert sums(tmp_path) == sums(root)
    assert [rows(tmp_path / f"m{i}") for i in range(3)] == [rows(root / f"m{i}") for i in range(3)]


def test_killed_between_two_members_saves(undisturbed, tmp_path):
    """The one a save ahead goes back with the others, and what it saved ahead is saved again: stopped before it,
    all stand at the same step, and no row is missing."""
    root, _ = undisturbed
    left_running(root, tmp_path, 1, 2)
    with pytest.raises(Preempted):
        run(tmp_path, stop=stop_at(4))  # at the start, before the part, and between steps
    assert {max(checkpoint.steps_saved(tmp_path / f"m{i}")) for i in range(3)} == {EVERY + 3}
    assert run(tmp_path) == {}
    assert sums(tmp_path) == sums(root) and starts(tmp_path, 3) == [[0, EVERY, EVERY + 3]] * 3
    assert [rows(tmp_path / f"m{i}") for i in range(3)] == [rows(root / f"m{i}") for i in range(3)]


@pytest.mark.parametrize("part", ("state", "facts"))
def test_a_damaged_checkpoint_takes_all_back_to_the_one_before(undisturbed, tmp_path, part):
    root, _ = undisturbed
    left_running(root, tmp_path)
    shutil.rmtree(tmp_path / "m1" / "checkpoints" / str(STEPS) / part)
    assert run(tmp_path) == {}
    assert sums(tmp_path) == sums(root)
    assert (tmp_path / "m1" / "damaged" / str(STEPS)).is_dir()


def test_a_member_whose_only_checkpoint_is_damaged_fails_alone(undisturbed, tmp_path):
    """It must neither be begun anew without a word nor take the others back to the start."""
    root, _ = undisturbed
    left_running(root, tmp_path, 0, 1, 2)
    shutil.rmtree(tmp_path / "m1" / "checkpoints" / str(EVERY) / "state")
    failures = run(tmp_path)
    assert list(failures) == [tmp_path / "m1"] and "start it afresh" in str(failures[tmp_path / "m1"])
    assert starts(tmp_path, 3) == [[0, EVERY], [0], [0, EVERY]]


def test_with_one_checkpoint_kept_a_kill_parts_them(undisturbed, tmp_path):
    """One that is ahead, and has nothing to go back to, is not sent to the start."""
    root, _ = undisturbed
    left_running(root, tmp_path, 1, 2)
    shutil.rmtree(tmp_path / "m0" / "checkpoints" / str(EVERY))
    assert run(tmp_path) == {}
    assert starts(tmp_path, 3) == [[0, STEPS], [0, EVERY], [0, EVERY]]


def test_a_newcomer_does_not_send_the_others_back(tmp_path):
    """An old checkpoint that is kept for good, and that all have, is not where to go on from."""
    settings = {"evaluation.every": 4, "train.checkpoint_every": 4}
    with pytest.raises(Preempted):
        run(tmp_path, stop=stop_at(14), **settings)
    shutil.copytree(tmp_path / "m0", tmp_path / "m3")
    for name in ("12", "8"):
        shutil.rmtree(tmp_path / "m3" / "checkpoints" / name)
    newest = max(checkpoint.steps_saved(tmp_path / "m0"))
    shutil.rmtree(tmp_path / "m3" / "checkpoints" / str(newest), ignore_errors=True)
    assert newest >= 12 and checkpoint.steps_saved(tmp_path / "m3") == [4]
    assert run(tmp_path, names=(*NAMES, NAMES[0]), **settings) == {}
    assert starts(tmp_path, 4) == [[0, newest]] * 3 + [[0, 4]]


def test_one_that_is_held_elsewhere_fails_alone(undisturbed, tmp_path):
    root, _ = undisturbed
    left_running(root, tmp_path, 0, 1, 2)
    with run_folder.lock(tmp_path / "m1"):
        failures = run(tmp_path)
    assert list(failures) == [tmp_path / "m1"] and "another process" in str(failures[tmp_path / "m1"])
    assert [json.loads((tmp_path / f"m{i}" / "status.json").read_text())["state"] for i in (0, 2)] == ["done", "done"]


def test_a_save_is_tried_again(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "SAVE_AGAIN_SECONDS", (0.01, 0.01))
    real, failing = checkpoint.Checkpoints.save, iter((True, True, False, True))

    def save(self, *arguments):
        if next(failing, False):
            raise checkpoint.SaveFailed("the disk is away")
        real(self, *arguments)

    monkeypatch.setattr(checkpoint.Checkpoints, "save", save)
    assert run(tmp_path) == {}
    assert [checkpoint.steps_saved(tmp_path / f"m{i}") for i in range(3)] == [[EVERY, STEPS]] * 3


def test_who_may_join(tmp_path):
    a, b = (member.config for member in members(tmp_path)[:2])
    assert may_join(a) == may_join(b)
    faster = apply_overrides(a, {"train.learning_rate": 0.5})
    assert may_join(faster) == may_join(a) and faster != a
    for key, value in {"seed": 1, "train.weight_decay": 0.5, "model.depth": 3, "data.image_size": 8}.items():
        assert may_join(tiny_config({"formulation": a.formulation, key: value})) != may_join(a)
    for key in ("train.accumulate", "mesh.fsdp"):
        with pytest.raises(ConfigError, match=key):
            tiny_config({"train.together": 2, key: 2})


def test_a_folder_of_another_config_is_refused_and_the_rest_go_on(undisturbed, tmp_path):
    root, _ = undisturbed
    shutil.copytree(root / "m0", tmp_path / "m0")
    failures = run(tmp_path, **{"train.learning_rate": 0.5})
    assert list(failures) == [tmp_path / "m0"] and "learning_rate" in str(failures[tmp_path / "m0"])


def test_a_members_folder_that_goes_is_that_members_failure_alone(tmp_path):
    """Catches a whole cohort that fails with one member."""
    folders, notes = [tmp_path / "m0", tmp_path / "m1"], []
    facts = {"run": "m", "flops_per_image": 1, "corpus_fingerprint": "f", "parent": None, "starts": [{"step": 0}]}
    folders[1].mkdir()
    (folders[1] / "run.json").write_text(json.dumps(facts))
    cohort = object.__new__(_Cohort)
    cohort.members = [object.__new__(Run) for _ in folders]
    for member, folder in zip(cohort.members, folders, strict=True):
        object.__setattr__(member, "workdir", folder)
    cohort.records, cohort.failures, cohort.begun = [facts, facts], {}, True
    cohort._leave_out_gone(SimpleNamespace(note=notes.append))
    assert [member.workdir for member in cohort.live] == folders[1:] and list(cohort.failures) == folders[:1]
    assert "m0 is no longer the folder of this run" in notes[0]


@pytest.mark.full
def test_a_members_folder_that_goes_ends_that_member_alone(tmp_path):
    """Catches a whole cohort that fails with one member."""
    made = members(tmp_path, NAMES[:2], **{"train.steps": 4, "train.checkpoint_every": 2, "evaluation.every": 2})

    def on_checkpoint(step, live, weights):
        if step == 2:
            (tmp_path / "m0").rename(tmp_path / "elsewhere")

    failures = train_cohort(made, on_checkpoint=on_checkpoint, stop=lambda: False)
    assert set(failures) == {tmp_path / "m0"}
    assert "is no longer the folder of this run" in str(failures[tmp_path / "m0"])
    assert not (tmp_path / "m0").exists()
    assert run_folder.read_status(tmp_path / "m1") == {"state": "done", "step": 4, "message": ""}
