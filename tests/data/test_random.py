import numpy as np
import pytest

from rfjax.config import DataConfig
from rfjax.data.corpus import load_corpus
from rfjax.errors import ConfigError

SMALL = dict(corpus="random", image_size=8, channels=4, context_tokens=5, context_size=6, pooled_size=7)


def test_sizes_are_the_configs():
    corpus = load_corpus(DataConfig(**SMALL), 0)
    batch = corpus.examples(np.arange(3), "train")
    assert [array.shape for array in batch] == [(3, 1, 8, 8, 4), (3, 5, 6), (3, 7), (3,)]
    (slot,) = corpus.shapes.encoders
    assert (slot.tokens, slot.channels, slot.pooled) == ((0, 5), (0, 6), (0, 7))
    assert corpus.to_images(batch.latents).shape == (3, 8, 8, 3)


def test_validation_is_the_same_for_every_seed():
    ours, theirs = (load_corpus(DataConfig(**SMALL), seed) for seed in (0, 1))
    for split, alike in (("validation", True), ("train", False)):
        pairs = zip(ours.examples(np.arange(4), split)[:3], theirs.examples(np.arange(4), split)[:3], strict=True)
        assert all(np.array_equal(one, other) is alike for one, other in pairs)
    assert ours.fingerprint != theirs.fingerprint
    of_splits = (ours.examples(np.arange(2), split).latents for split in ("train", "validation"))
    assert not np.array_equal(*of_splits)


def test_standard_normal_and_random_access():
    corpus = load_corpus(DataConfig(**SMALL), 0)
    batch = corpus.examples(np.arange(200), "train")
    for array in batch[:3]:
        assert abs(array.mean()) < 0.12 and abs(array.std() - 1) < 0.06
        assert len(np.unique(array.reshape(200, -1)[:, 0])) == 200
    picked = corpus.examples(np.array([150, 2]), "train")
    for part, whole in zip(picked, batch, strict=True):
        assert np.array_equal(part, whole[[150, 2]])
    context, pooled = corpus.encode(corpus.captions(np.array([150]), "train"))
    assert np.array_equal(context[0], batch.context[150]) and np.array_equal(pooled[0], batch.pooled[150])


def test_sd3s_encoders():
    sizes = dict(context_tokens=154, context_size=4096, pooled_size=2048)
    corpus = load_corpus(DataConfig(corpus="random", image_size=4, channels=16, **sizes), 0)
    slots = {slot.name: (slot.tokens, slot.channels, slot.pooled) for slot in corpus.shapes.encoders}
    assert slots == {
        "clip_l": ((0, 77), (0, 768), (0, 768)),
        "clip_g": ((0, 77), (768, 2048), (768, 2048)),
        "t5": ((77, 154), (0, 4096), (0, 0)),
    }
    context = corpus.examples(np.arange(1), "train").context[0]
    # Beside the two CLIP models, the first 77 tokens are padded with zeros to T5's width.
    assert (context[:77, 2048:] == 0).all() and (context[:77, :2048] != 0).all() and (context[77:] != 0).all()


def test_it_has_no_prompts_and_no_pictures():
    corpus = load_corpus(DataConfig(**SMALL), 0)
    assert corpus.evaluation_prompts(4, 0) == []
    with pytest.raises(ConfigError, match="shapes or digits"):
        corpus.render_prompt({}, 0)
    with pytest.raises(ConfigError, match="pooled_size is 0"):
        load_corpus(DataConfig(**{**SMALL, "pooled_size": 0}), 0)
