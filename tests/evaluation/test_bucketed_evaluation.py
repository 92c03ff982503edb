"""Validation and sampling where a corpus has several latent shapes."""

import json
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from helpers.bucketed_parts import Part
from rfjax.config import MeshConfig, ValidationConfig, from_dict
from rfjax.data.batch import BatchShapes, EncoderSlot
from rfjax.data.buckets import BucketedCorpus, validation_shares
from rfjax.errors import ConfigError, RfjaxError
from rfjax.evaluation import generate
from rfjax.evaluation.evaluate import due_at
from rfjax.evaluation.samples import picture, request
from rfjax.evaluation.validation import make_validation_step, validation_loss, validation_noise
from rfjax.flow.formulation import parse_formulation
from rfjax.flow.resolution import formulation_at
from rfjax.flow.samplers import sampling_times
from rfjax.models.backbone import Backbone
from rfjax.training.cohort import check_may_be_together
from rfjax.training.mesh import make_mesh
from rfjax.training.run import Run

SHAPES, COUNTS = ((4, 4), (2, 6), (6, 4)), (9, 6, 3)


def bucketed(firsts=(2000, 0, 1000)):
    """Ids do not follow the order of the parts."""
    slot = EncoderSlot("text", (0, 2), (0, 4), (0, 4))
    parts = tuple(
        Part(0, BatchShapes((*shape, 3), (2, 4), 4, (slot,)), first=first)
        for shape, first in zip(SHAPES, firsts, strict=True)
    )
    return BucketedCorpus("buckets", parts, 0, COUNTS, COUNTS)


def network(params, z, t, context, pooled):
    """Some function of all that it is given, for any shape."""
    return jnp.tanh(z * params + t[:, None, None, None, None]) + pooled.mean(1)[:, None, None, None, None]


def settings(**changes):
    return ValidationConfig(**{"examples": 13, "batch_size": 4, "levels": 3, "seed": 5, **changes})


@pytest.fixture(scope="module")
def step():
    return make_validation_step(network, settings())


def test_examples_are_shared_out_over_the_parts():
    """13 of 9 : 6 : 3 are 6.5, 4.33 and 2.17. Catches as many of each, which would weigh small buckets up."""
    assert validation_shares(bucketed(), 13) == (7, 4, 2)
    assert validation_shares(bucketed(), 18) == COUNTS
    assert validation_shares(bucketed().parts[0], 13) == (13,)


def test_the_loss_of_buckets_is_that_of_each_one_joined_by_id(step):
    """Catches rows left in the order of the parts, a padded batch that runs over into the next part, and noise that
    depends on what else is measured: against each part as a corpus of its own."""
    corpus, params = bucketed(), jnp.float32(0.3)
    whole = validation_loss(step, params, corpus)
    assert whole.n == 13 and whole.example_ids.tolist() == [*range(4), 1000, 1001, *range(2000, 2007)]
    found = {}
    for part, count in zip(corpus.parts, (7, 4, 2), strict=True):
        alone = validation_loss(replace(step, config=settings(examples=count)), params, part)
        found |= dict(zip(alone.example_ids.tolist(), alone.per_example, strict=True))
    np.testing.assert_array_equal(whole.per_example, [found[id] for id in whole.example_ids.tolist()])


def test_one_part_is_measured_as_it_is_alone(step):
    part = bucketed().parts[1]
    one = validation_loss(step, jnp.float32(0.3), BucketedCorpus("one", (part,), 0, (20,), (20,)))
    alone = validation_loss(step, jnp.float32(0.3), part)
    np.testing.assert_array_equal(one.per_example, alone.per_example)
    np.testing.assert_array_equal(one.example_ids, alone.example_ids)


def test_noise_has_the_shape_of_the_examples_own_part():
    """Catches noise of the first part's shape, cut or filled up. A network that says nothing has the target's
    square."""
    corpus = bucketed()
    nothing = make_validation_step(lambda params, z, t, context, pooled: jnp.zeros_like(z), settings())
    result = validation_loss(nothing, None, corpus)
    for _number, (part, first) in enumerate(zip(corpus.parts, (2000, 0, 1000), strict=True)):
        latents = part.examples(np.array([1], np.uint64), "validation").latents[0]
        row = result.per_example[result.example_ids.tolist().index(first + 1)]
        for place, level in enumerate((1, 2, 3)):
            noise = np.asarray(validation_noise(5, jnp.array([first + 1], jnp.uint32), level, latents.shape))[0]
            assert row[place] == pytest.approx(np.mean((noise - latents) ** 2), rel=1e-5)


def test_more_examples_than_all_buckets_have_are_refused(step):
    """A repeated example would shrink the standard error."""
    with pytest.raises(
        ConfigError, match="validation.examples is 19, and the corpus buckets has 18 .* 3 aspect buckets"
    ):
        validation_loss(replace(step, config=settings(examples=19)), jnp.float32(0.3), bucketed())


def test_an_id_of_two_parts_is_refused(step):
    """Their noise would be one, and their pairs mixed up."""
    with pytest.raises(RfjaxError, match="two validation examples of the corpus buckets have the id 0"):
        validation_loss(step, jnp.float32(0.3), bucketed(firsts=(0, 0, 1000)))


def config(**changes):
    return from_dict(
        {
            "timestep_shift": 2.0,
            "timestep_shift_by_area": True,
            "model": {"depth": 2, "hidden": 16, "head_size": 8, "position_grid": 8},
            "data": {"corpus": "random", "image_size": 4, "context_tokens": 2, "context_size": 4, "pooled_size": 4},
            "evaluation": {"sampler": {"steps": 3, "guidance_scale": 1.0}},
            **changes,
        }
    )


def opened(**changes):
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    return Run(
        config=config(**changes),
        corpus=bucketed(),
        backbone=Backbone(lambda key: {}, network),
        mesh=mesh,
        name="wide",
        workdir=Path("runs/wide"),
    )


@pytest.mark.parametrize("size, alpha", [(None, 2.0), ((2, 6), 3.0**0.5), ((8, 4), 8.0**0.5)])
def test_sampling_at_a_size_has_its_shape_and_its_shift(size, alpha, tmp_path, monkeypatch):
    """Catches images of the first bucket's shape whatever was asked for, its shift (alpha = 2 sqrt(m / 16)), and
    scores of two shapes under one sampler's name, of which one would replace the other."""
    seen, make = [], generate.make_generator
    monkeypatch.setattr(request, "open_run", lambda workdir, overrides: opened())
    monkeypatch.setattr(Run, "choose_step", lambda run, step: 7)
    monkeypatch.setattr(Run, "restore_params", lambda run, step, weights: jnp.float32(0.3))
    monkeypatch.setattr(
        generate,
        "make_generator",
        lambda apply, sampler, formulation, latents, **more: (
            seen.append((formulation, latents)) or make(apply, sampler, formulation, latents, **more)
        ),
    )
    wanted = request.Wanted(step=None, weights="ema", samples=1, negative=None, seed=0, latent_size=size)
    picture.sample_picture(tmp_path, {}, wanted, prompts=["a"], out=tmp_path / "a.png")
    formulation, latents = seen[0]
    assert latents == (1, *(size or (4, 4)), 3)
    np.testing.assert_allclose(
        sampling_times(3, formulation.timestep_shift)[1], alpha * (2 / 3) / (1 + (alpha - 1) * (2 / 3)), rtol=1e-12
    )
    facts = json.loads((tmp_path / "a.json").read_text())
    assert facts["latent_size"] == list(size or (4, 4)) and facts["sampler"] == "euler-3-cfg1-shift2-by-area" + (
        f"-{size[0]}x{size[1]}" if size else ""
    )


@pytest.mark.parametrize(
    "size, message",
    [
        (
            (5, 4),
            "--latent-size=5x4: .*height 5 is not divisible by config.model.patch_size=2. wide was trained on 4x4, "
            "2x6, 6x4",
        ),
        ((4, 18), "9 tokens along the width, more than config.model.position_grid=8"),
        ((0, 4), "both sides must be at least 1"),
    ],
)
def test_sizes_that_the_network_cannot_take_are_refused_with_those_there_are(size, message):
    with pytest.raises(ConfigError, match=message):
        request.latents_shape(opened(), size)


def test_a_shift_by_area_is_in_the_samplers_name():
    """Catches scores under two schedules of shifts that would be taken for one sampler's."""
    (name,) = {one.key["sampler"] for one in due_at(config(), "run", 2000) if one.kind == "geneval"}
    assert name.startswith("euler-3-cfg1-shift2-by-area-")


def test_the_shift_at_the_configs_size_is_the_configs():
    """Bit for bit: runs that turn it on at one square shape change nothing."""
    assert formulation_at(config()) == parse_formulation(config().formulation, 2.0)


def test_a_shift_by_area_of_another_formulation_is_refused():
    said = "timestep_shift_by_area is true, .* 'eps/linear' is not rectified flow's; set it to false"
    with pytest.raises(ConfigError, match=said):
        formulation_at(config(formulation="eps/linear", timestep_shift=1.0))


def test_buckets_are_not_trained_together():
    """A cohort's program has one shape: refused by name before anything is compiled."""
    with pytest.raises(ConfigError, match="config.train.together is 4, and the corpus buckets has 3 aspect buckets"):
        check_may_be_together(config(train={"together": 4}), bucketed())
    check_may_be_together(config(train={"together": 4}), bucketed().parts[0])
    check_may_be_together(config(), bucketed())
