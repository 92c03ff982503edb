"""The table of rewards, which are functions of images and of their prompts' rows. More is better. No JAX here.

On `shapes`, `digits` and stills of `motion` GenEval's reward needs no network: a detector of drawn objects reads the
pixels, and GenEval's rules judge the objects.
"""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from rfjax.data.corpus import Corpus
from rfjax.errors import ConfigError, RfjaxError
from rfjax.evaluation.detectors import detector_for
from rfjax.evaluation.geneval import rules
from rfjax.evaluation.geneval.judgements import judge_rows
from rfjax.inputs.paths import local_path

# (images [n, h, w, 3] in [0, 1], the prompt's row of each) -> a number for each
RewardFn = Callable[[Float[np.ndarray, "n h w 3"], Sequence[Mapping]], Float[np.ndarray, " n"]]


@dataclass(frozen=True)
class Reward:
    """A row of the table. All values of the reward are in [low, high]."""

    about: str
    make: Callable[[Corpus], RewardFn]
    low: float = 0.0
    high: float = 1.0


def _geneval(corpus: Corpus) -> RewardFn:
    detect = detector_for(corpus)
    return lambda images, rows: np.array([float(judged.correct) for judged in judge_rows(detect(images), rows)])


def _geneval_graded(corpus: Corpus) -> RewardFn:
    detect = detector_for(corpus)

    def reward(images, rows):
        found = (rules.Detections.from_lists(each["detections"], each["colors"]) for each in detect(images))
        return np.array([graded(detections, row) for detections, row in zip(found, rows, strict=True)])

    return reward


def graded(detections: rules.Detections, row: Mapping) -> float:
    """A reward in [0, 1]: the mean over a prompt's demands of how far the image meets the demand. It is 1 exactly if
    GenEval calls the image correct.

    An `include` item has up to three demands. The count scores the share of the wanted objects that were found. The
    colour scores the share of the wanted objects that have the right colour. The position scores 0 or 1. An `exclude`
    item is one demand, which scores 0 or 1.
    """
    kept, met, groups = rules.keep(detections, row["tag"]), [], []
    for item in row.get("include", ()):
        name, count = item["class"], item["count"]
        chosen = kept.get(name, np.zeros(0, int))[:count]
        boxes = [detections.boxes[name][index] for index in chosen]
        met.append(len(chosen) / count)
        right = len(chosen) == count
        if "color" in item:
            colored = sum(detections.colors[name][index] == item["color"] for index in chosen)
            met.append(colored / count)
            right &= colored == count
        if "position" in item:
            wanted, target = item["position"]
            pairs = [(box, other) for box in boxes for other in groups[target] or ()]
            placed = right and bool(pairs) and all(wanted in rules.relation(*pair) for pair in pairs)
            met.append(float(placed))
            right &= placed
        groups.append(boxes if right else None)
    for item in row.get("exclude", ()):
        met.append(float(len(kept.get(item["class"], ())) < item["count"]))
    return float(np.mean(met))


TIDY = 0.15  # a pixel counts as clean if it is this near, in RGB, to a colour, to the background, or to a mix of both


def _cleanness(corpus: Corpus) -> RewardFn:
    """Makes the reward that is the share of pixels that the corpus could have drawn: the background, a colour of the
    palette, or a mix of both at an edge.

    The reward uses neither prompt nor detector. So an image whose smears fool the detector scores low.
    """
    vocabulary = getattr(corpus, "vocabulary", None)
    if vocabulary is None or not hasattr(vocabulary, "palette"):
        raise ConfigError(
            f"the reward cleanness is for corpora of drawn scenes, and the corpus is {corpus.name}; "
            "give a reward of your own as FILE.py:FUNCTION"
        )
    palette = np.asarray(vocabulary.palette, np.float64)

    def reward(images, rows):
        images = np.asarray(images, np.float64)
        backgrounds = np.median(images.reshape(len(images), -1, 3), axis=1)  # most pixels show the background
        start = backgrounds[:, None, None, None, :]
        towards = palette - start
        share = np.einsum(
            "nhwkc,nhwkc->nhwk",
            images[..., None, :] - start,
            np.broadcast_to(towards, (*images.shape[:3], *palette.shape)),
        )
        share = np.clip(share / np.sum(np.square(towards), axis=-1), 0.0, 1.0)
        nearest = start + share[..., None] * towards
        distance = np.sqrt(np.min(np.sum(np.square(images[..., None, :] - nearest), axis=-1), axis=-1))
        return (distance < TIDY).mean(axis=(1, 2))

    return reward


REWARDS: dict[str, Reward] = {
    "geneval": Reward("whether GenEval judges the image correct", _geneval),
    "geneval_graded": Reward("the share of the prompt's demands that GenEval's rules find met", _geneval_graded),
    "cleanness": Reward("the share of pixels that the corpus could have drawn", _cleanness),
}


def make_reward(name: str, corpus: Corpus, field: str = "reward") -> RewardFn:
    """Returns the reward function that `name` names: a row of `REWARDS`, or a user's own FILE.py:FUNCTION.

    A user's function is called with images [n, h, w, 3] in [0, 1] and their n captions, and returns n finite numbers,
    which must be in the file's RANGE = (low, high) if it has one. `field` is the config's field that holds the name,
    for messages. Raises `ConfigError` for a missing file or function, and for a corpus that the reward cannot judge.
    The returned function raises `RfjaxError` if its values are not n finite numbers in that range.
    """
    if name in REWARDS:
        row = REWARDS[name]
        try:
            reward = row.make(corpus)
        except ConfigError as error:
            raise ConfigError(f"config.{field} is {name!r}: {error}") from error
        return _checked(name, reward, row.low, row.high)
    return _checked(name, *_own(name, f"config.{field}"))


def hash_of_file(name: str, field: str) -> str | None:
    """Returns the first 16 hex digits of the SHA-256 of the file of a user's own reward, FILE.py:FUNCTION; None for a
    row of `REWARDS`."""
    if name in REWARDS:
        return None
    return hashlib.sha256(local_path(name.rpartition(":")[0], field).read_bytes()).hexdigest()[:16]


def _own(name, field):
    file, _, function = name.rpartition(":")
    path = local_path(file, field)
    if not path.is_file():
        raise ConfigError(f"{field} is {name!r}, and there is no file {path}; give FILE.py:FUNCTION")
    spec = importlib.util.spec_from_file_location(f"rfjax_reward_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise ConfigError(f"the reward's file {path} failed: {type(error).__name__}: {error}") from error
    own = getattr(module, function, None)
    if not callable(own):
        given = f"and {path} defines no function {function!r}" if function else "which names no function"
        own_values = (value for value in vars(module).values() if getattr(value, "__module__", "") == module.__name__)
        defined = sorted(value.__name__ for value in own_values if callable(value))
        found = f"it defines {', '.join(defined)}" if defined else "it defines none"
        raise ConfigError(f"{field} is {name!r}, {given} ({found}); give FILE.py:FUNCTION")
    return lambda images, rows: own(images, [row["prompt"] for row in rows]), *_range(module, path)


def _range(module, path) -> tuple[float, float]:
    """Returns (low, high) from RANGE in a user's file; (-inf, inf) if the file has no RANGE."""
    given = getattr(module, "RANGE", (-np.inf, np.inf))
    try:
        low, high = map(float, given)
    except (TypeError, ValueError):
        low = high = np.nan
    if not low < high:
        raise ConfigError(f"RANGE in {path} is {given!r}; it must be two numbers, the lower first, as (0, 1)")
    return low, high


def _checked(name, reward, low, high):
    """Wraps `reward` so that it raises `RfjaxError` unless it gives each image a finite number in the range."""

    def checked(images, rows):
        try:
            values = np.asarray(reward(images, rows), np.float64)
        except (RfjaxError, KeyboardInterrupt):
            raise
        except Exception as error:
            raise RfjaxError(f"the reward {name} failed: {type(error).__name__}: {error}") from error
        if values.shape != (len(images),):
            raise RfjaxError(
                f"the reward {name} returned shape {values.shape} for {len(images)} images; it must be one each"
            )
        for wrong, what in (
            (~np.isfinite(values), "which is not finite"),
            ((values < low) | (values > high), f"which is outside [{low:g}, {high:g}]"),
        ):
            if wrong.any():
                place = int(np.argmax(wrong))
                raise RfjaxError(
                    f"the reward {name} of an image of {rows[place]['prompt']!r} is {values[place]:g}, {what}; "
                    "mend the reward, then give the same command again"
                )
        return values

    return checked
