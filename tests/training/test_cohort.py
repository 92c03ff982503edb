"""Runs trained together: each as if alone, none minding what another meets, and all resumed to the same bits."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from rfjax.data.corpus import load_corpus
from rfjax.errors import ConfigError, Diverged, Preempted
from rfjax.training import checkpoint, cohort_step, run_folder
from rfjax.training.cohort import Member, may_join, train_cohort
from rfjax.training.loop import train
from rfjax.training.run_folder import RunFacts
from training_tiny import environment, rows, tiny_backbone, tiny_config

NAMES = ("rf/lognorm(0.00,1.00)", "edm(-1.20,1.20)", "eps/linear")
STEPS, EVERY = 16, 8


def members(root, names=NAMES, **overrides):
    overrides = {"train.steps": STEPS, "train.checkpoint_every": EVERY, "evaluation.every": 0, "train.together": 16} | overrides
    return [
        Member(tiny_config(overrides | {"formulation": name}), Path(root) / f"m{index}", RunFacts(flops_per_image=10))
        for index, name in enumerate(names)
    ]


def run(root, names=NAMES, stop=lambda: False, seen=None, **overrides):
    made = members(root, names, **overrides)
    corpus = load_corpus(made[0].config.data, made[0].config.seed)

    def on_checkpoint(step, live, weights):
        if seen is not None:
            seen.append((step, [member.workdir.name for member in live], weights))

    return train_cohort(made, corpus=corpus, backbone=tiny_backbone(made[0].config), on_checkpoint=on_checkpoint, stop=stop)


def sums(root, step=STEPS, count=len(NAMES)):
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
        config, alone = member.config, tmp_path / member.workdir.name
        corpus = load_corpus(config.data, config.seed)
        train(config, alone, corpus=corpus, backbone=tiny_backbone(config), facts=member.facts)
        for weights in ("ema", "raw"):
            ours, theirs = (checkpoint.restore_params(folder, STEPS, weights)[0] for folder in (member.workdir, alone))
            jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-5), ours, theirs)
        ours, theirs = rows(member.workdir), rows(alone)
        assert [row["step"] for row in ours] == [row["step"] for row in theirs]
        np.testing.assert_allclose([row["loss"] for row in ours], [row["loss"] for row in theirs], rtol=1e-4)
        np.testing.assert_allclose([row["grad_norm"] for row in ours], [row["grad_norm"] for row in theirs], rtol=1e-3)
        facts = [checkpoint.read_facts(folder, STEPS) for folder in (member.workdir, alone)]
        assert facts[0]["images"] == facts[1]["images"] and facts[0]["flops"] == facts[1]["flops"] == STEPS * 8 * 10
        assert json.loads((member.workdir / "status.json").read_text())["state"] == "done"
    losses = [rows(member.workdir)[-1]["loss"] for member in members(root)]
    assert min(abs(a - b) for a, b in zip(losses, losses[1:])) > 1e-3  # the members are not each other's copies


def test_members_that_do_not_fill_the_devices_are_trained_all_the_same(undisturbed, tmp_path):
    """Three members on two devices: the place left over must not be taken for a member, nor one be lost."""
    root, _ = undisturbed
    command = "import sys; sys.path.insert(0, sys.argv[2]); import test_cohort as t; assert t.run(sys.argv[1]) == {}"
    flags = environment(XLA_FLAGS="--xla_force_host_platform_device_count=2")
    subprocess.run([sys.executable, "-c", command, str(tmp_path), str(Path(__file__).parent)], env=flags, check=True)
    assert dict(run_folder.read_json(tmp_path / "m0" / "run.json")["starts"][0]["mesh"]) == {"member": 2}
    for index in range(len(NAMES)):
        here, there = (checkpoint.restore_params(folder / f"m{index}", STEPS)[0] for folder in (root, tmp_path))
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-5), here, there)


def test_evaluation_gets_each_members_own_weights(undisturbed):
    root, seen = undisturbed
    assert [(step, names) for step, names, _ in seen] == [(STEPS, ["m0", "m1", "m2"])]
    for member in members(root):
        given = seen[0][2](member)
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
    assert seen[0][1] == ["m0", "m2"]
    states = [json.loads((tmp_path / f"m{i}" / "status.json").read_text())["state"] for i in range(3)]
    assert states == ["done", "diverged", "done"]
    for index in (0, 2):
        assert checkpoint.read_facts(tmp_path / f"m{index}", STEPS)["checksums"] == sums(root)[index]
    again = run(tmp_path)  # it stays ended, and the others are not trained again
    assert list(again) == [tmp_path / "m1"]


def test_stopped_and_resumed_to_the_same_bits_and_rows(undisturbed, tmp_path):
    root, _ = undisturbed
    for step in (3, 9):
        with pytest.raises(Preempted, match="the same command goes on"):
            run(tmp_path, stop=stop_at(step))
        assert json.loads((tmp_path / "m2" / "status.json").read_text())["state"] == "stopped"
    assert run(tmp_path) == {}
    assert sums(tmp_path) == sums(root)
    assert [rows(tmp_path / f"m{i}") for i in range(3)] == [rows(root / f"m{i}") for i in range(3)]


def test_killed_between_two_members_saves(undisturbed, tmp_path):
    """The newest checkpoint of one member is not that of all: they go on from the newest that all have."""
    root, _ = undisturbed
    shutil.copytree(root, tmp_path, dirs_exist_ok=True)
    for index in (1, 2):
        shutil.rmtree(tmp_path / f"m{index}" / "checkpoints" / str(STEPS))
    for index in range(3):
        run_folder.write_status(tmp_path / f"m{index}", "running", EVERY)
    assert run(tmp_path) == {}
    assert sums(tmp_path) == sums(root)
    assert rows(tmp_path / "m1") == rows(root / "m1")


def test_a_damaged_checkpoint_takes_all_back_to_the_one_before(undisturbed, tmp_path):
    root, _ = undisturbed
    shutil.copytree(root, tmp_path, dirs_exist_ok=True)
    for index in range(3):
        run_folder.write_status(tmp_path / f"m{index}", "running", EVERY)
    shutil.rmtree(tmp_path / "m1" / "checkpoints" / str(STEPS) / "state")
    assert run(tmp_path) == {}
    assert sums(tmp_path) == sums(root)
    assert (tmp_path / "m1" / "damaged" / str(STEPS)).is_dir()


def test_a_new_member_does_not_send_the_others_back(undisturbed, tmp_path):
    root, _ = undisturbed
    shutil.copytree(root, tmp_path, dirs_exist_ok=True)
    for index in range(3):
        shutil.rmtree(tmp_path / f"m{index}" / "checkpoints" / str(STEPS))
        run_folder.write_status(tmp_path / f"m{index}", "stopped", EVERY)
    assert run(tmp_path, names=(*NAMES, "rf")) == {}
    starts = [[start["step"] for start in run_folder.read_json(tmp_path / f"m{i}" / "run.json")["starts"]] for i in range(4)]
    assert starts == [[0, EVERY]] * 3 + [[0]]


def test_who_may_join(tmp_path):
    a, b = (member.config for member in members(tmp_path)[:2])
    assert may_join(a) == may_join(b)
    for key, value in {"seed": 1, "train.learning_rate": 0.5, "model.depth": 3, "data.image_size": 8}.items():
        assert may_join(tiny_config({"formulation": a.formulation, key: value})) != may_join(a)
    for key in ("train.accumulate", "mesh.fsdp"):
        with pytest.raises(ConfigError, match=key):
            tiny_config({"train.together": 2, key: 2})


def test_a_folder_of_another_config_is_refused_and_the_rest_go_on(undisturbed, tmp_path):
    root, _ = undisturbed
    shutil.copytree(root / "m0", tmp_path / "m0")
    failures = run(tmp_path, **{"train.learning_rate": 0.5})
    assert list(failures) == [tmp_path / "m0"] and "learning_rate" in str(failures[tmp_path / "m0"])
