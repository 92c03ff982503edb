"""Detectors of the objects in the embedded corpora: they read pixels and return the boxes and colours for GenEval.

A detector is a function of images [n, h, w, 3] in [0, 1] that returns one dict per image,

    {"detections": {class: [[x1, y1, x2, y2, score], ...]}, "colors": {class: [color, ...]}}

with boxes in pixels, scores in (0, 1] and colours aligned with the boxes. A detector sees only the pixels; it sees
neither the prompt nor the layout.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable

from jaxtyping import Float
from numpy import ndarray

from rfjax.data.corpus import Corpus
from rfjax.errors import ConfigError
from rfjax.limits import CLIP_CORPORA

Detector = Callable[[Float[ndarray, "n h w 3"]], list[dict]]

# corpus -> the module whose `detect` finds its objects; imported when it is used
DETECTORS = {"shapes": "rfjax.evaluation.detectors.shapes", "digits": "rfjax.evaluation.detectors.digits"}


def detector_for(corpus: Corpus) -> Detector:
    """Returns the detector of a corpus. Raises `ConfigError` for a corpus of clips, and for one without a detector."""
    if corpus.name.partition(":")[0] in CLIP_CORPORA:
        if corpus.shapes.latents[0] == 1:
            module = importlib.import_module("rfjax.evaluation.detectors.clips")
            return functools.partial(module.detect_stills, scans=corpus.drawn_from.of_scans)
        remedy = "config.evaluation.geneval.prompts_per_task=0, and score clips by config.evaluation.temporal instead"
        raise ConfigError(f"the {corpus.name} corpus has clips, and GenEval scores images; set {remedy}")
    if corpus.name not in DETECTORS:
        raise ConfigError(
            f"the {corpus.name} corpus has no detector, so GenEval cannot score it; set "
            f"config.evaluation.geneval.prompts_per_task=0, or config.data.corpus to one of {', '.join(DETECTORS)}"
        )
    return importlib.import_module(DETECTORS[corpus.name]).detect
