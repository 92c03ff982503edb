"""The record of one control: both measures, and their resamples, against the long way round."""

import json

import numpy as np
import pytest

from rfjax.config import DataConfig
from rfjax.data.corpus import load_corpus
from rfjax.data.geneval_names import TASKS
from rfjax.errors import ConfigError
from rfjax.evaluation import control_measures, image_features
from rfjax.evaluation.control_measures import ranking_record, resamples_of_prompts, shifted_interval
from rfjax.evaluation.detectors import detector_for
from rfjax.evaluation.frechet import as_uint8, frechet_distance, moments, reference_of
from rfjax.evaluation.geneval import rules
from rfjax.evaluation.geneval.judgements import judge_rows
from rfjax.evaluation.records import read_records, record_key, write_record

PER_TASK, EACH = 8, 3  # shapes has 6 distinct prompts of a single object: two of the 8 are repeated
KEY = record_key(
    run="r", step=5, evaluation="ranking", corpus="shapes", weights="ema", sampler="euler-5-cfg5-shift1-8x3", seed=1
)
SPENT = {"images": 64, "flops": 1e9, "train_seconds": 3.0}


@pytest.fixture(scope="module")
def corpus():
    return load_corpus(DataConfig(corpus="shapes", image_size=16), 0)


@pytest.fixture(scope="module")
def control(corpus):
    """(pixels, ids, prompts): pictures of which a third answer another prompt, and all are a little noisy."""
    prompts = corpus.evaluation_prompts(PER_TASK, 1)
    ids = np.stack([np.repeat(np.arange(len(prompts)), EACH), np.tile(np.arange(EACH), len(prompts))], 1)
    rng = np.random.default_rng(3)
    drawn = [(i + (rng.random() < 0.33)) % len(prompts) for i in ids[:, 0]]
    pixels = np.stack([corpus.render_prompt(prompts[i], 900 + n) for n, i in enumerate(drawn)])
    return np.clip(pixels + 0.03 * rng.normal(size=pixels.shape), 0, 1).astype(np.float32), ids, prompts


@pytest.fixture(scope="module")
def record(corpus, control):
    return ranking_record(KEY, *control, corpus, seed=1, seconds=2.0, **SPENT)


def values_of(record):
    return {(value["metric"], value["item"]): value for value in record["values"]}


def test_record_holds_genevals_score_and_the_distance(corpus, control, record, tmp_path):
    """Would catch images judged by prompts of other rows, or a distance of floats where files would hold bytes."""
    pixels, ids, prompts = control
    images = as_uint8(pixels)
    judged = judge_rows(detector_for(corpus)(images / np.float32(255)), [prompts[i] for i in ids[:, 0]])
    score = rules.score(judged)
    found = values_of(record)
    assert 0.3 < score.overall.value < 0.9
    for item, estimate in {"overall": score.overall, **score.tasks}.items():
        value = found["ranking_geneval", item]
        assert (value["value"], value["low"], value["high"], value["n"]) == (
            estimate.value,
            estimate.low,
            estimate.high,
            estimate.images,
        )
    reference = reference_of(corpus, [prompts[i]["tag"] for i in ids[:, 0]])
    distance = frechet_distance(reference.moments, moments(image_features.features(images)))
    value = found["ranking_frechet_distance", "overall"]
    assert value["value"] == pytest.approx(distance, rel=1e-9) and value["n"] == len(pixels)
    assert value["low"] < value["value"] < value["high"]
    # Noise and wrong answers stand away from ground truth's own distance.
    assert value["value"] > found["ranking_frechet_distance", "ground_truth"]["value"] > 0
    assert record["images"] == 64 and record["seconds"] == 2.0
    assert record["extra"]["feature_map"] == image_features.NAME
    assert record["extra"]["reference"]["n"] == 4096 and record["extra"]["reference"]["corpus_split"] == "validation"
    write_record(tmp_path, record)  # in schema, and plain JSON
    assert read_records(tmp_path) == [json.loads(json.dumps(record))]


def test_bytes_and_floats_give_the_same_record(corpus, control, record):
    """Would catch a detector shown 0 to 255, and features of unrounded pixels."""
    pixels, ids, prompts = control
    again = ranking_record(KEY, as_uint8(pixels), ids, prompts, corpus, seed=1, seconds=2.0, **SPENT)
    assert again == record


def test_replicates_are_the_measures_of_repeated_images(corpus, control, record):
    """Each resample done the long way: its prompts' images laid side by side as often as drawn. Would catch
    weights in another order than the prompts', second moments about the wrong mean, or tasks pooled."""
    pixels, ids, prompts = control
    names = [json.dumps(prompts[i]) for i in ids[:, 0]]
    distinct = list(dict.fromkeys(names))  # evaluation_prompts comes in the order of tasks
    per_task = [sum(json.loads(name)["tag"] == task for name in distinct) for task in TASKS]
    assert per_task == [6, 8, 8, 8, 8, 8]
    weights = resamples_of_prompts(per_task, 1)
    judged = judge_rows(detector_for(corpus)(as_uint8(pixels) / np.float32(255)), [prompts[i] for i in ids[:, 0]])
    values = image_features.features(as_uint8(pixels))
    reference = reference_of(corpus, [prompts[i]["tag"] for i in ids[:, 0]])
    kept = record["extra"]["replicates"]
    assert len(kept["geneval"]) == len(kept["frechet_distance"]) == control_measures.RESAMPLES == 200
    for b in (0, 57, 199):
        rows = [
            n
            for name, times in zip(distinct, weights[b], strict=True)
            for n in np.flatnonzero(np.array(names) == name).tolist() * times
        ]
        tasks = {t: [judged[n].correct for n in rows if judged[n].metadata["tag"] == t] for t in TASKS}
        assert kept["geneval"][b] == pytest.approx(np.mean([np.mean(correct) for correct in tasks.values()]), rel=1e-7)
        assert kept["frechet_distance"][b] == pytest.approx(
            frechet_distance(reference.moments, moments(values[rows])), rel=1e-6
        )


def test_resamples_depend_on_seed_and_prompts_alone_and_stay_within_tasks():
    """Would catch a generator shared over tasks, with which an absent task changes the others' draws and so
    the pairing of runs; and one seeded alike for all, which would draw tasks of equal size alike."""
    weights = resamples_of_prompts([6, 0, 8], 1, 50)
    assert weights.shape == (50, 14) and (weights[:, :6].sum(1) == 6).all() and (weights[:, 6:].sum(1) == 8).all()
    np.testing.assert_array_equal(weights, resamples_of_prompts([6, 0, 8], 1, 50))
    np.testing.assert_array_equal(weights[:, 6:], resamples_of_prompts([3, 5, 8], 1, 50)[:, 8:])
    assert (weights != resamples_of_prompts([6, 0, 8], 2, 50)).any()
    assert (resamples_of_prompts([8, 8], 1, 50)[:, :8] != resamples_of_prompts([8, 8], 1, 50)[:, 8:]).any()
    assert weights.mean() == pytest.approx(1.0) and weights.var() > 0.5


def test_replicates_scatter_as_a_mean_over_prompts_does(record):
    """Would catch resampling of images, whose scatter is too small by the likeness of a prompt's images."""
    kept = np.array(record["extra"]["replicates"]["geneval"])
    overall = values_of(record)["ranking_geneval", "overall"]
    assert kept.mean() == pytest.approx(overall["value"], abs=4 * overall["stderr"] / np.sqrt(200))
    assert kept.std() == pytest.approx(overall["stderr"], rel=0.25)


def test_the_interval_of_the_distance_is_moved_to_its_value():
    """Would catch raw percentiles, which may leave the value out: resamples repeat prompts and lie farther away."""
    replicates = np.random.default_rng(0).normal(5.0, 1.0, 4000)
    low, high = shifted_interval(3.0, replicates)
    assert (low, high) == (pytest.approx(3.0 - 1.96, abs=0.15), pytest.approx(3.0 + 1.96, abs=0.15))


def test_pictures_that_are_not_finite_are_wrong_and_have_no_distance(corpus, control, tmp_path):
    """Would catch a diverged network that stops the study, or whose nan pixels become colours."""
    pixels, ids, prompts = control
    broken = pixels.copy()
    broken[::2, 3, 3, 0] = np.nan
    record = ranking_record(KEY, broken, ids, prompts, corpus, seed=1)
    found = values_of(record)
    distance = found["ranking_frechet_distance", "overall"]
    assert (distance["value"], distance["stderr"], distance["low"], distance["high"]) == (None, None, None, None)
    assert set(record["extra"]["replicates"]["frechet_distance"]) == {None}
    assert record["extra"]["not_finite"] == len(broken[::2])
    judged = judge_rows(detector_for(corpus)(np.zeros((1, 16, 16, 3), np.float32)), prompts[:1])
    assert not judged[0].correct and found["ranking_geneval", "overall"]["value"] < 0.5
    write_record(tmp_path, record)


def test_what_does_not_fit_is_refused(corpus, control):
    pixels, ids, prompts = control
    with pytest.raises(ConfigError, match="143 images for 144 ids"):
        ranking_record(KEY, pixels[:-1], ids, prompts, corpus, seed=1)
    with pytest.raises(ConfigError, match="'geneval'; it must be 'ranking'"):
        ranking_record({**KEY, "evaluation": "geneval"}, pixels, ids, prompts, corpus, seed=1)
