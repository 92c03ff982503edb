import time

import numpy as np
import pytest

from rfjax.config import DataConfig
from rfjax.data.corpus import load_corpus
from rfjax.data.loader import batches
from rfjax.errors import ConfigError


@pytest.fixture(scope="module")
def corpus():
    return load_corpus(DataConfig(), 0)


def assert_equal(a, b):
    for left, right in zip(a, b, strict=True):
        assert np.array_equal(left, right)


def test_a_step_holds_its_own_examples(corpus):
    steps = list(batches(corpus, batch_size=6, start_step=0, stop_step=9))
    assert np.concatenate([batch.example_ids for batch in steps]).tolist() == list(range(54))
    assert_equal(steps[7], corpus.examples(np.arange(42, 48), "train"))


def test_resuming_gives_the_same_batches(corpus):
    whole = list(batches(corpus, batch_size=4, start_step=0, stop_step=8))
    resumed = list(batches(corpus, batch_size=4, start_step=5, stop_step=8))
    assert len(resumed) == 3
    for a, b in zip(whole[5:], resumed, strict=True):
        assert_equal(a, b)


def test_threads_change_neither_batches_nor_order(corpus):
    """Catches batches handed out as they get ready: many threads load steps of very unequal cost."""

    class Slow:
        name, shapes, fingerprint = corpus.name, corpus.shapes, corpus.fingerprint
        captions, encode, unknown_words = corpus.captions, corpus.encode, corpus.unknown_words
        evaluation_prompts, render_prompt = corpus.evaluation_prompts, corpus.render_prompt
        to_images, to_clips, to_latents = corpus.to_images, corpus.to_clips, corpus.to_latents
        parts, made_with = property(lambda self: (self,)), {}

        def examples(self, indices, split):
            time.sleep(0.03 if indices[0] % 8 == 0 else 0.0)
            return corpus.examples(indices, split)

    found = list(batches(Slow(), batch_size=4, start_step=0, stop_step=12, threads=4))
    assert np.concatenate([batch.example_ids for batch in found]).tolist() == list(range(48))


@pytest.mark.parametrize("places", [[0, 1, 2, 3], [2, 3, 6, 7], [5]])
def test_places_are_rows_of_the_batch(corpus, places):
    """Catches rows counted from the process's first row, which is right for contiguous parts only."""
    whole = list(batches(corpus, batch_size=8, start_step=3, stop_step=5))
    parts = list(batches(corpus, batch_size=8, start_step=3, stop_step=5, places=[np.array(places)]))
    for batch, part in zip(whole, parts, strict=True):
        assert_equal(part, [np.asarray(array)[places] for array in batch])


def test_places_outside_the_batch_are_refused(corpus):
    for places in ([8], [-1, 0]):
        with pytest.raises(ConfigError, match="batch_size=8"):
            batches(corpus, batch_size=8, start_step=0, stop_step=1, places=[np.array(places)])


def test_nothing_left_to_do(corpus):
    assert list(batches(corpus, batch_size=8, start_step=5, stop_step=5)) == []


def test_it_can_be_left_early(corpus):
    iterator = batches(corpus, batch_size=4, start_step=0, stop_step=10**9)
    assert next(iterator).example_ids.tolist() == [0, 1, 2, 3]
