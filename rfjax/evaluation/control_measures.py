"""The measures by which formulations are ranked: one record for each control.

A control is one combination of corpus, weights and sampler. SD3 (section 5.1) ranks formulations under each control
by two numbers, alignment with the prompt (higher is better) and distance from real images (lower is better), and
averages the ranks over controls. Here the alignment is GenEval's score, and the distance is the Frechet distance of
the features of `rfjax.evaluation.image_features`. A record keeps both numbers, and their values under resamples of
prompts. The resamples are the same in every run, so two variants can be compared resample by resample from their
records alone. No JAX here.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float, Integer

from rfjax.data.corpus import Corpus
from rfjax.data.geneval_names import TASKS
from rfjax.errors import ConfigError
from rfjax.evaluation import image_features
from rfjax.evaluation.detectors import detector_for
from rfjax.evaluation.frechet import Moments, Reference, as_uint8, frechet_distance, moments, reference_of
from rfjax.evaluation.geneval import rules
from rfjax.evaluation.geneval.judgements import judge_rows, prompt_scores
from rfjax.evaluation.intervals import PERCENTILES
from rfjax.evaluation.records import Measured, geneval_record, json_numbers

EVALUATION = "ranking"
# Not named "geneval", so that no reader of GenEval scores takes a control's score for the run's own.
ALIGNMENT, DISTANCE = "ranking_geneval", "ranking_frechet_distance"
REPLICATES = {ALIGNMENT: "geneval", DISTANCE: "frechet_distance"}  # metric -> its name among a record's replicates
RESAMPLES = 200
TRUTH = "ground_truth"  # item of DISTANCE for pictures that the corpus draws for the prompts, as many as the model's
TRUTH_SETS = 8  # the value of this item is the mean over so many sets of pictures


def resamples_of_prompts(
    prompts_per_task: Sequence[int], seed: int, resamples: int = RESAMPLES
) -> Integer[np.ndarray, "resamples prompts"]:
    """Returns how often each prompt is drawn in each resample. A task with n prompts has n draws, with replacement.

    The draws depend on the arguments alone, so that resample b is the same in every run. The draws of a task do not
    depend on the other tasks. Prompts are in the order of tasks.
    """
    return np.concatenate(
        [
            np.random.default_rng((seed, index)).multinomial(count, np.full(count, 1.0 / count), size=resamples)
            for index, count in enumerate(prompts_per_task)
            if count
        ],
        axis=1,
    )


def ranking_record(
    key: Mapping[str, object],
    pixels: np.ndarray,
    ids: Integer[np.ndarray, "n 2"],
    prompts: Sequence[Mapping],
    corpus: Corpus,
    /,
    *,
    seed: int,
    seconds: float | None = None,
    resamples: int = RESAMPLES,
    **training,
) -> dict:
    """Measures the images of one control, and returns the record.

    `key` is a `record_key` with evaluation "ranking". `pixels` [n, h, w, 3] are uint8, or floats in [0, 1]. Row i is an
    image of prompt `ids[i, 0]` of `prompts`, metadata rows of the corpus. `seed` decides the evaluation's prompts and
    noise; only runs with equal seeds can be compared. `training` is what `checkpoint.spent` returns (images, flops,
    train_seconds).

    The metric "ranking_geneval" has the item "overall" and an item for each task, with GenEval's intervals. The metric
    "ranking_frechet_distance" has two items: "overall" is the images' distance, and "ground_truth" is the mean distance
    of `TRUTH_SETS` sets of equally many pictures that the corpus itself draws for these prompts. A model's distance is
    smaller than the ground truth's only by chance. Images with a number that is not finite are scored as black images,
    and make the distance null. Among the record's `extra` are each prompt's score, in the order of
    `resamples_of_prompts`, and `replicates`, the values of both measures under each resample of prompts.

    Raises `ConfigError` for a key of another evaluation, if images and ids differ in number, and for a corpus without a
    detector.
    """
    if key["evaluation"] != EVALUATION:
        raise ConfigError(f"a ranking's record has the evaluation {key['evaluation']!r}; it must be {EVALUATION!r}")
    if len(pixels) != len(ids) or not len(ids):
        raise ConfigError(f"{len(pixels)} images for {len(ids)} ids; give one (prompt, sample) for each image")
    finite = np.isfinite(pixels).all(axis=(1, 2, 3)) if pixels.dtype != np.uint8 else np.ones(len(pixels), bool)
    shown = pixels if finite.all() else np.where(finite[:, None, None, None], pixels, 0).astype(pixels.dtype)
    images = as_uint8(shown)
    own = [prompts[index] for index in ids[:, 0]]
    judged = judge_rows(detector_for(corpus)(images.astype(np.float32) / np.float32(255.0)), own)

    cluster, tasks = _clusters(own)
    per_task = [tasks.count(task) for task in TASKS]
    weights = resamples_of_prompts(per_task, seed, resamples)
    correct = np.bincount(cluster, [result.correct for result in judged])
    reference = reference_of(corpus, [row["tag"] for row in own])
    found = image_features.features(images)
    distance, distances = math.nan, np.full(resamples, math.nan)
    if finite.all():
        distance = float(frechet_distance(reference.moments, moments(found)))
        distances = frechet_distance(reference.moments, _resampled_moments(found, cluster, weights, reference))

    low, high = shifted_interval(distance, distances)
    spread, truth = float(np.std(distances, ddof=1)), _ground_truth(corpus, own, reference)
    return geneval_record(
        key,
        {ALIGNMENT: rules.score(judged)},
        [
            Measured(metric=DISTANCE, n=len(images), item="overall", value=distance, stderr=spread, low=low, high=high),
            Measured(metric=DISTANCE, n=len(images), item=TRUTH, value=truth),
        ],
        seconds=seconds,
        extra={
            "prompt_scores": _in_order(prompt_scores(judged), tasks),
            "images_per_prompt": int(np.bincount(ids[:, 0]).max()),
            "not_finite": int((~finite).sum()),
            "replicates": {
                REPLICATES[ALIGNMENT]: json_numbers(
                    _resampled_scores(correct, np.bincount(cluster), per_task, weights)
                ),
                REPLICATES[DISTANCE]: json_numbers(distances),
            },
            "feature_map": image_features.NAME,
            "reference": {**reference.to_json(), "corpus_fingerprint": corpus.fingerprint},
        },
        **training,
    )


def shifted_interval(value: float, replicates: Float[np.ndarray, " resamples"]) -> tuple[float, float]:
    """Returns the 95 % interval of a measure: the percentiles of its replicates, after all replicates were shifted so
    that their mean is `value`.

    A resample holds fewer distinct prompts than the sample, and with fewer prompts a distance between sets is larger.
    So the replicates lie above the value by about as much as the value lies above the distance of infinitely many
    images. Their spread says how uncertain the value is; their mean says nothing.
    """
    low, high = np.percentile(replicates, PERCENTILES) - np.mean(replicates) + value
    return float(low), float(high)


def _clusters(own):
    """Returns (for each image, the number of its prompt among the distinct prompts; the task of each distinct prompt).

    Distinct prompts are in the order of tasks, then of first use. If a prompt was asked more than once, all its images
    are resampled together.
    """
    first: dict[str, str] = {}
    for row in own:
        if row["tag"] not in TASKS:
            raise ConfigError(f"unknown GenEval tag {row['tag']!r}; it must be one of {', '.join(TASKS)}")
        first.setdefault(json.dumps(row), row["tag"])
    ordered = sorted(first, key=lambda name: TASKS.index(first[name]))
    place = {name: index for index, name in enumerate(ordered)}
    return np.array([place[json.dumps(row)] for row in own]), [first[name] for name in ordered]


def _in_order(scores, tasks):
    scores = sorted(scores, key=lambda row: TASKS.index(row[0]))
    assert [row[0] for row in scores] == tasks
    return scores


def _resampled_scores(correct, images, per_task, weights):
    """Computes the overall GenEval score under each resample: the mean of the tasks' shares of correct images."""
    ends = np.cumsum(per_task)
    parts = [slice(end - count, end) for end, count in zip(ends, per_task, strict=True) if count]
    return np.mean([weights[:, part] @ correct[part] / (weights[:, part] @ images[part]) for part in parts], axis=0)


def _resampled_moments(found, cluster, weights, reference) -> Moments:
    """Computes the mean and covariance of the features under each resample, from sums over each prompt's images.

    The sums are taken about the reference's mean, because sums of squares about a far point lose digits.
    """
    centre = reference.moments.mean
    rows, prompts = found - centre, weights.shape[1]
    at = np.equal(cluster[None], np.arange(prompts)[:, None]).astype(float)  # [prompts, images]
    counts = weights @ at.sum(axis=1)
    mean = weights @ (at @ rows) / counts[:, None]
    squares = np.stack([rows[cluster == index].T @ rows[cluster == index] for index in range(prompts)])
    second = (weights @ squares.reshape(prompts, -1)).reshape(len(weights), *squares.shape[1:])
    centred = second - counts[:, None, None] * mean[:, :, None] * mean[:, None, :]
    return Moments(mean + centre, centred / (counts - 1)[:, None, None])


_truths: dict[tuple, float] = {}


def _ground_truth(corpus, own, reference: Reference) -> float:
    """Returns the Fréchet distance between `reference` and ground-truth pictures, as the mean over `TRUTH_SETS` sets of
    pictures. A set has a picture for each prompt row in `own`. A process computes the mean once for each reference,
    corpus and `own`."""
    key = (reference.sha1, corpus.fingerprint, json.dumps(own))
    if key not in _truths:
        found = []
        for again in range(TRUTH_SETS):
            # Each picture has its own seed, so that a repeated prompt does not repeat its picture.
            truth = np.stack([corpus.render_prompt(row, again * len(own) + n) for n, row in enumerate(own)])
            found.append(frechet_distance(reference.moments, moments(image_features.features(as_uint8(truth)))))
        _truths[key] = float(np.mean(found))
    return _truths[key]
