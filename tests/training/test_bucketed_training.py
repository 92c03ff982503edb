"""Training on aspect buckets: the same bits however a run is cut up, every step at its own shape."""

import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from helpers import bucketed_tiny, child_process
from helpers.bucketed_tiny import (
    SETTINGS,
    SHAPES,
    Part,
    bucketed,
    bucketed_train,
    flops,
    pixelwise,
    stopped_and_resumed,
)
from helpers.training_tiny import rows, tiny_config
from rfjax.data.buckets import CYCLE, BucketedCorpus, schedule_of
from rfjax.data.stream import stream_of
from rfjax.errors import ConfigError
from rfjax.training import checkpoint
from rfjax.training.kept_steps import images_before
from rfjax.training.loss import make_loss, run_keys

STEPS, BATCH = SETTINGS["train.steps"], SETTINGS["train.batch_size"]
FLOPS = flops(tiny_config(SETTINGS))
PLACES = jnp.arange(BATCH, dtype=jnp.int32)
MEAN = round(0.5 * FLOPS[0] + 0.3 * FLOPS[1] + 0.2 * FLOPS[2])


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """(folder, result, what was said) of a run that nothing happened to."""
    workdir = tmp_path_factory.mktemp("buckets") / "undisturbed"
    return workdir, bucketed_train(workdir)


def parts_of(steps, offset=0):
    schedule = schedule_of(bucketed(tiny_config(SETTINGS)))
    return [schedule.at(step)[0] for step in range(offset, offset + steps)]


def test_the_steps_take_several_shapes():
    """What the tests below rest on."""
    assert set(parts_of(STEPS)) == {0, 1, 2}


def test_stopped_runs_resume_to_the_same_bits_and_rows(undisturbed, tmp_path):
    """Catches a schedule or a count of examples that starts anew with an attempt."""
    stopped_and_resumed(tmp_path, 5)
    assert len(json.loads((tmp_path / "run.json").read_text())["starts"]) == 3
    assert rows(tmp_path) == rows(undisturbed[0])
    for step in (4, 8, 12):
        assert (
            checkpoint.read_facts(tmp_path, step)["checksums"]
            == checkpoint.read_facts(undisturbed[0], step)["checksums"]
        )


def test_flops_are_those_of_the_steps_taken(undisturbed, tmp_path):
    """Catches the mean, or the first bucket's cost, in place of each step's own; and a child that is charged for the
    steps from 0 on, not for those of its place in the stream. Against a sum over steps."""
    spent = [BATCH * FLOPS[part] for part in parts_of(STEPS)]
    assert [row["flops"] for row in rows(undisturbed[0])] == np.cumsum(spent).tolist()
    assert undisturbed[1].flops == sum(spent) != STEPS * BATCH * MEAN
    child = bucketed_train(tmp_path / "child", {"train.steps": 5}, init_from=f"{undisturbed[0]}@12")
    assert [BATCH * FLOPS[part] for part in parts_of(5)] != [BATCH * FLOPS[part] for part in parts_of(5, STEPS)]
    assert child.flops == sum(spent) + sum(BATCH * FLOPS[part] for part in parts_of(5, STEPS))


def test_over_a_whole_cycle_flops_are_the_mean_on_record(undisturbed):
    """Catches quotas on record that are not the schedule's, and a mean over buckets instead of over steps."""
    record = json.loads((undisturbed[0] / "run.json").read_text())
    assert [bucket["latent_size"] for bucket in record["buckets"]] == [list(shape) for shape in SHAPES]
    assert [bucket["steps_of_cycle"] for bucket in record["buckets"]] == [500, 300, 200]
    stream = stream_of(bucketed(tiny_config(SETTINGS)), BATCH)
    for offset in (0, 3 * CYCLE):
        images = images_before(stream, offset, CYCLE)
        assert (
            sum(many * flops for many, flops in zip(images, FLOPS, strict=True))
            == BATCH * sum(b["steps_of_cycle"] * b["flops_per_image"] for b in record["buckets"])
            == BATCH * CYCLE * record["flops_per_image"]
        )


def test_each_shape_is_compiled_once_before_the_first_step(tmp_path, capsys, monkeypatch):
    """Catches a compilation in the middle of training, and one for a bucket without images."""
    from rfjax.training import loop

    lowered, lower = [], loop.lower_train_step
    monkeypatch.setattr(
        loop,
        "lower_train_step",
        lambda run, **named: lowered.append(run.corpus.shapes.latents[1:3]) or lower(run, **named),
    )
    config = tiny_config(SETTINGS)
    bucketed_train(tmp_path, {"train.steps": 8}, corpus=bucketed(config, training=(50, 0, 20)))
    assert lowered == [SHAPES[0], SHAPES[2]]
    said = capsys.readouterr().err
    assert "compiling the training step (1 of 2: 4x4)" in said and "compiling the training step (2 of 2: 6x4)" in said


def test_a_steps_loss_is_that_of_its_own_bucket_and_shift(tmp_path):
    """Catches a step at another part's examples, and a shift that is one for all shapes: against the loss by hand,
    at the parameters that do not move."""
    overrides = {"train.learning_rate": 0.0, "timestep_shift": 2.0, "timestep_shift_by_area": True, "train.steps": 8}
    bucketed_train(tmp_path, overrides)
    found = [row["loss"] for row in rows(tmp_path)]
    plain = tiny_config(SETTINGS | {"train.learning_rate": 0.0})
    corpus, backbone = bucketed(plain), pixelwise(plain)
    params = backbone.init(run_keys(plain.seed)[0])
    # SD3 eq. 23, with alpha = 2 at the 16 pixels of config.data.image_size = 4
    shifted = [
        tiny_config(SETTINGS | {"timestep_shift": 2.0 * (height * width / 16) ** 0.5}) for height, width in SHAPES
    ]
    losses = [jax.jit(make_loss(config, backbone.apply, corpus.shapes.encoders)) for config in shifted]
    for step, part in enumerate(parts_of(8)):
        earlier = parts_of(step).count(part)
        batch = corpus.parts[part].examples(np.arange(earlier * BATCH, (earlier + 1) * BATCH, dtype=np.uint64), "train")
        loss, _ = losses[part](params, batch, jnp.int32(step), PLACES)
        assert found[step] == pytest.approx(float(loss), rel=1e-5)


def test_the_shift_by_area_moves_the_log_odds_of_t():
    """Catches alpha = m / n, its inverse, and a shape that is not square taken by its height: in log-odds the shift is
    a sum, log alpha = log(timestep_shift) + log(m / n) / 2."""
    settings = {"timestep_shift": 3.0, "timestep_shift_by_area": True}
    corpus, backbone = bucketed(tiny_config(SETTINGS)), pixelwise(tiny_config(SETTINGS))
    params = backbone.init(jax.random.key(0))
    for part, (height, width) in zip(corpus.parts, SHAPES, strict=True):
        batch = part.examples(np.arange(BATCH, dtype=np.uint64), "train")
        t = [
            np.asarray(
                jax.jit(make_loss(tiny_config(SETTINGS | more), backbone.apply, corpus.shapes.encoders))(
                    params, batch, jnp.int32(3), PLACES
                )[1].t,
                float,
            )
            for more in ({}, settings)
        ]
        plain, shifted = (np.log(one / (1 - one)) for one in t)
        np.testing.assert_allclose(shifted - plain, np.log(3.0) + 0.5 * np.log(height * width / 16), rtol=2e-4)


def test_one_part_trains_as_its_corpus_alone(tmp_path):
    """Catches buckets that cost runs without them their bits."""
    config = tiny_config(SETTINGS)
    part = bucketed(config).parts[1]
    for name, corpus in (("alone", part), ("one", BucketedCorpus("one", (part,), 0, (9,), (9,)))):
        bucketed_train(tmp_path / name, corpus=corpus)
    sums = [checkpoint.read_facts(tmp_path / name, 12)["checksums"] for name in ("alone", "one")]
    assert sums[0] == sums[1] and rows(tmp_path / "alone") == rows(tmp_path / "one")
    assert json.loads((tmp_path / "alone" / "run.json").read_text())["buckets"] is None


def test_a_shape_that_the_network_cannot_take_is_refused_by_name(tmp_path):
    """Before the folder is touched: found out at the bucket's first step it would take hours."""
    plain = bucketed(tiny_config(SETTINGS))
    for shape, overrides, message in (
        ((4, 7), {}, "latents of 4x7: the width 7 is not divisible by config.model.patch_size=2"),
        (
            (8, 2),
            {"model.position_grid": 3},
            "4 tokens along the height, more than config.model.position_grid=3; raise",
        ),
    ):
        odd = Part(0, type(plain.shapes)((*shape, 3), plain.shapes.context, plain.shapes.pooled, plain.shapes.encoders))
        corpus = BucketedCorpus("odd", (plain.parts[0], odd), 0, (1, 1), (1, 1))
        with pytest.raises(ConfigError, match=message):
            bucketed_train(tmp_path / "odd", overrides, corpus=corpus)
        assert not (tmp_path / "odd").exists()


@pytest.mark.full
def test_two_devices_have_the_bits_of_themselves_and_the_losses_of_one(undisturbed, tmp_path):
    """Catches batches laid out by another bucket's shape, and a resumed run on a mesh that sees other data."""
    command = [sys.executable, bucketed_tiny.__file__, str(tmp_path)]
    flags = child_process.quick_environment(2)
    ended = subprocess.run(command, env=flags, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    out = json.loads(ended.stdout)
    assert out["devices"] == 2 and out["sums"][0] == out["sums"][1]
    losses = [[row["loss"] for row in each] for each in (rows(undisturbed[0]), out["rows"])]
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-5)
    assert np.std(losses[0]) > 1e-3
