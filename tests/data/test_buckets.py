"""Which bucket a step takes, and which of its examples."""

from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest

from helpers.bucketed_parts import Part
from rfjax.data.batch import BatchShapes, EncoderSlot
from rfjax.data.buckets import CYCLE, BucketedCorpus, Schedule, format_shape, share_out
from rfjax.data.loader import batch_of_step, batches
from rfjax.data.prepared import epoch_orders
from rfjax.errors import ConfigError

COUNTS = (700, 0, 2999, 1, 1300)


def part(height, width, first=0, context=(3, 4), channels=2):
    slot = EncoderSlot("text", (0, context[0]), (0, context[1]), (0, 5))
    return Part(0, BatchShapes((height, width, channels), context, 5, (slot,)), first=first)


def bucketed(training=(60, 30, 10), seed=0):
    parts = (part(4, 4), part(2, 6, 100_000), part(6, 2, 200_000))
    return BucketedCorpus("tiny", parts, seed, training, (8, 8, 8))


@pytest.mark.parametrize("first, steps", [(0, 2 * CYCLE + 17), (5 * CYCLE - 3, 40)])
def test_a_schedule_counts_what_came_before(first, steps):
    """Compares with counting. Catches a count that restarts with a cycle, or that includes the step itself."""
    schedule = Schedule(COUNTS, 7)
    seen = list(schedule.taken(first))
    for step in range(first, first + steps):
        part, earlier = schedule.at(step)
        assert earlier == seen[part]
        seen[part] += 1
    assert tuple(seen) == schedule.taken(first + steps)


def test_the_first_steps_took_nothing_before():
    assert Schedule(COUNTS, 7).taken(0) == (0, 0, 0, 0, 0)


def test_every_cycle_has_its_quotas_in_an_order_of_its_own():
    """Catches cycles that repeat one order, steps in the order of the parts, and a seed that is not used."""
    cycles = [
        [Schedule(COUNTS, seed).at(step)[0] for step in range(n * CYCLE, (n + 1) * CYCLE)]
        for seed, n in ((0, 0), (0, 1), (1, 0))
    ]
    for parts in cycles:
        assert tuple(np.bincount(parts, minlength=5).tolist()) == Schedule(COUNTS, 0).quotas
        assert 10 < np.bincount(parts[:100], minlength=5)[4] < 45  # of 26: in the order of parts, 0
    assert cycles[0] != cycles[1] and cycles[0] != cycles[2] and cycles[1] != cycles[2]


def test_quotas_are_the_shares_to_within_one_step():
    """Catches shares that are rounded one by one, and an empty part with steps, for which it has no images."""
    quotas = Schedule(COUNTS, 0).quotas
    assert sum(quotas) == CYCLE and quotas[1] == 0 and quotas[3] == 1
    for quota, count in zip(quotas, COUNTS, strict=True):
        assert abs(quota - Fraction(CYCLE * count, sum(COUNTS))) < 1


@pytest.mark.parametrize(
    "total, counts, at_least, expected",
    [
        (10, (1, 1, 1), 0, (4, 3, 3)),  # equal remainders: the earlier
        (7, (47, 16, 158, 12), 0, (1, 1, 5, 0)),  # 1.41, 0.48, 4.75, 0.36
        (10, (10**9, 1, 1), 1, (8, 1, 1)),
        (12, (30, 30, 1, 1, 1), 1, (5, 4, 1, 1, 1)),
        (5, (0, 3), 0, (0, 5)),
        (3, (10**20, 10**20 + 1), 0, (1, 2)),  # floats would take them for equals
    ],
)
def test_sharing_out_by_largest_remainder(total, counts, at_least, expected):
    """Worked by hand. Catches float arithmetic, and a sum that leaves out the least shares."""
    assert share_out(total, counts, at_least=at_least) == expected


def test_nothing_to_share_out_over():
    for total, counts in ((3, (0, 0)), (1, (1, 1))):
        with pytest.raises(ConfigError, match="cannot be shared out"):
            share_out(total, counts, at_least=1)


def test_more_parts_than_a_cycle_has_steps_are_refused():
    with pytest.raises(ConfigError, match=f"at most {CYCLE}"):
        Schedule((1,) * (CYCLE + 1), 0).at(0)


def test_one_part_is_what_a_corpus_alone_is():
    """Catches a schedule that moves the examples of corpora without buckets."""
    alone = part(4, 4)
    assert [Schedule((60,), 3).at(step) for step in (0, 5, 10**7)] == [(0, 0), (0, 5), (0, 10**7)]
    for step in (0, 3, CYCLE + 1):
        batch = batch_of_step(BucketedCorpus("one", (alone,), 0, (60,), (8,)), step, batch_size=4)
        assert batch.example_ids.tolist() == list(range(4 * step, 4 * step + 4))
        assert np.array_equal(batch.latents, batch_of_step(alone, step, batch_size=4).latents)


def test_every_example_of_a_part_comes_once_and_in_turn():
    """Catches steps*batch_size for the place in a part, which skips what the other parts' steps would have taken."""
    corpus = bucketed()
    ids = {shape: [] for shape in ((4, 4), (2, 6), (6, 2))}
    for batch in batches(corpus, batch_size=4, start_step=0, stop_step=90):
        ids[batch.latents.shape[2:4]] += batch.example_ids.tolist()
    for first, found in zip((0, 100_000, 200_000), ids.values(), strict=True):
        assert found == list(range(first, first + len(found))) and len(found) > 4 * 2


def test_resumed_and_split_over_processes_the_batches_are_the_same():
    """Catches a schedule that depends on where it begins, or on which rows a process asks for."""
    whole = list(batches(bucketed(), batch_size=4, start_step=0, stop_step=30))
    for first, places in ((0, [1, 3]), (17, [0, 2]), (29, [3])):
        here = list(
            batches(bucketed(), batch_size=4, start_step=first, stop_step=30, places=[np.array(places)] * 3, threads=3)
        )
        assert len(here) == 30 - first
        for batch, mine in zip(whole[first:], here, strict=True):
            for array, rows in zip(batch, mine, strict=True):
                assert np.array_equal(array[places], rows)


def test_parts_that_take_turns_keep_their_orders(monkeypatch):
    """Catches one small cache for all parts: each step would then sort a whole epoch anew."""
    made, order = [], epoch_orders._order
    monkeypatch.setattr(epoch_orders, "_order", lambda *one: made.append(one) or order(*one))
    parts = [epoch_orders.EpochOrders(count, key=11) for count in (50, 60, 70, 80, 90)]
    for turn in range(20):
        for orders in parts:
            orders.places(np.arange(2 * turn, 2 * turn + 2))
    assert len(made) == 5


def test_what_a_bucketed_corpus_is_known_by():
    """Catches a fingerprint that does not see the order of steps, a part or its number of images."""
    corpus = bucketed()
    others = [
        bucketed(seed=1),
        bucketed(training=(60, 31, 10)),
        replace(corpus, parts=(part(4, 4, 7), *corpus.parts[1:])),
    ]
    assert corpus.shapes.latents == (1, 4, 4, 2) and bucketed().fingerprint == corpus.fingerprint
    assert len({corpus.fingerprint, others[0].fingerprint, others[1].fingerprint}) == 3


@pytest.mark.parametrize(
    "change, message",
    [
        ({"parts": (part(4, 4), part(2, 6, context=(4, 4)), part(6, 2))}, "more than frames, height and width"),
        ({"parts": (part(4, 4), part(2, 6, channels=3), part(6, 2))}, "more than frames, height and width"),
        ({"parts": (part(4, 4), part(2, 6), part(4, 4))}, "two aspect buckets of 4x4"),
        ({"parts": (part(4, 4),)}, "1 parts, 3 numbers"),
        ({"training": (0, 0, 0)}, "no training images in any of its 3"),
    ],
)
def test_parts_that_do_not_make_one_corpus_are_refused(change, message):
    with pytest.raises(ConfigError, match=message):
        replace(bucketed(), **change)


def test_buckets_may_differ_in_their_frames():
    """Catches clips and stills that no one corpus can have."""
    clip = replace(part(2, 6), shapes=replace(part(2, 6).shapes, latents=(4, 2, 6, 2)))
    corpus = replace(bucketed(), parts=(part(4, 4), clip, part(6, 2)))
    assert corpus.parts[1] == clip and format_shape(clip.shapes.latents) == "4x2x6"


def test_examples_of_no_shape_are_refused():
    """A training index of several shapes has no meaning; that must be said, not answered by the first part."""
    for ask in (bucketed().examples, bucketed().captions):
        with pytest.raises(ConfigError, match="3 latent shapes"):
            ask(np.arange(2), "train")
