"""What studies, plans and benchmarks make of a corpus of several latent shapes."""

from dataclasses import replace

import pytest

from rfjax.config import from_dict
from rfjax.data.buckets import BucketedCorpus, format_shape
from rfjax.data.corpus import load_corpus
from rfjax.errors import ConfigError
from rfjax.models.flops import forward_flops, training_flops
from rfjax.plan import point_plan
from rfjax.plan.estimate import _state
from rfjax.study.size import size_of
from rfjax.training import run as runs
from rfjax.training.run import plan_run

SHAPES = ((4, 4), (2, 6), (6, 4), (8, 8))  # the largest has no training images


def config(**changes):
    return from_dict(
        {
            "model": {"depth": 2, "hidden": 16, "head_size": 8, "position_grid": 4},
            "data": {"corpus": "random", "image_size": 4, "context_tokens": 2, "context_size": 8, "pooled_size": 8},
            **changes,
        }
    )


def bucketed(shapes=SHAPES):
    plain = load_corpus(config().data, 0)
    parts = tuple(replace(plain, shapes=replace(plain.shapes, latents=(*shape, 3))) for shape in shapes)
    return BucketedCorpus("buckets", parts, 0, (5000, 3000, 2000, 0), (4, 4, 4, 4))


@pytest.fixture
def corpus(monkeypatch):
    made = bucketed()
    monkeypatch.setattr(runs, "_corpus", lambda data, seed: made)
    return made


def test_a_points_flops_are_the_mean_over_steps(corpus):
    """Catches the first bucket's cost, and a mean that weighs buckets alike."""
    size, model = size_of(config(train={"steps": 1000, "batch_size": 8})), config().model
    each = [training_flops(model, part.shapes) for part in corpus.parts]
    expected = 0.5 * each[0] + 0.3 * each[1] + 0.2 * each[2]
    assert size.flops_per_image == round(expected) and size.flops == 8000 * round(expected)
    assert size.flops_forward_per_image == pytest.approx(expected / 3, abs=1)
    run = plan_run(config())
    assert run.flops_of_parts == tuple(each) and run.flops_per_image == size.flops_per_image


def test_a_corpus_of_one_shape_costs_what_it_did():
    plain = load_corpus(config().data, 0)
    run = plan_run(config())
    assert run.flops_per_image == training_flops(config().model, plain.shapes)
    assert run.flops_forward_per_image == forward_flops(config().model, plain.shapes)


def test_a_study_refuses_before_it_trains(corpus):
    """Catches a bucket that does not fit found out at its first step, and runs put together that cannot be."""
    with pytest.raises(
        ConfigError, match="latents of 8x8 have 4 tokens along the height, more than config.model.position_grid=3"
    ):
        size_of(config(model={"depth": 2, "hidden": 16, "head_size": 8, "position_grid": 3}))
    with pytest.raises(ConfigError, match="config.train.together is 4, and the corpus buckets has 4 aspect buckets"):
        size_of(config(train={"together": 4}))


def test_plans_are_of_the_largest_bucket_that_is_trained_on(corpus, monkeypatch):
    """Catches memory planned for the first bucket, and for one that no step takes."""
    run = plan_run(config())
    assert corpus.parts[run.largest_part].shapes.latents == (1, 6, 4, 3)
    (note,) = point_plan._buckets_note(config())
    assert "largest of 4 aspect buckets, latents of 6x4" in note
    monkeypatch.setattr(runs, "_corpus", lambda data, seed: corpus.parts[0])
    assert point_plan._buckets_note(config()) == []


@pytest.mark.parametrize(
    "temporal_patch_size, shapes, largest",
    [
        (1, ((4, 8, 8), (1, 14, 14)), 0),  # 64 tokens and 49; a largest by its sides would be the still
        (4, ((4, 8, 8), (1, 14, 14)), 1),  # 16 tokens and 49, though the clip has more latent pixels
        (2, ((1, 4, 4), (1, 4, 8), (1, 8, 4)), 1),  # images: most pixels, and of equals the first
    ],
)
def test_the_largest_bucket_has_the_most_tokens(monkeypatch, temporal_patch_size, shapes, largest):
    """Catches plans of the bucket with the most latent pixels, whose examples have fewer tokens than another's."""
    model = {"depth": 2, "hidden": 32, "head_size": 16, "position_grid": 8, "position_tokens": 4, "position_span": 4.0}
    model |= {"temporal_patch_size": temporal_patch_size}
    settings = config(model=model)
    plain = load_corpus(settings.data, 0)
    parts = tuple(replace(plain, shapes=replace(plain.shapes, latents=(*shape, 3))) for shape in shapes)
    ones = (1,) * len(parts)
    monkeypatch.setattr(runs, "_corpus", lambda data, seed: BucketedCorpus("clips", parts, 0, ones, ones))
    assert plan_run(settings).largest_part == largest
    assert _state.__wrapped__(settings)[0] == parts[largest].shapes
    (note,) = point_plan._buckets_note(settings)
    assert f"latents of {format_shape(parts[largest].shapes.latents)}:" in note
