"""Autoguidance: guidance away from a weaker run's prediction for the same caption (Karras et al. 2024).

The weaker run is a smaller network, or an earlier checkpoint of the same run. It must have been trained on the same
corpus, with a formulation of the same path, prediction and span of t, so that both networks predict the same quantity.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

from rfjax.config import SamplerConfig
from rfjax.errors import ConfigError
from rfjax.evaluation.guide_names import parse_guide
from rfjax.training.run import Run, open_run
from rfjax.training.state import Params

FIELD = "config.evaluation.sampler.guide"


class Guide(NamedTuple):
    """The weaker network, with the `ema` weights of its checkpoint on the sampled run's mesh."""

    apply: Callable
    params: Params


def guide_of(run: Run, sampler: SamplerConfig) -> Guide | None:
    """Returns the weaker network that guides `sampler` in sampling from `run`, or None if `sampler.guide` is empty.

    Raises `ConfigError` if the folder has no run or lacks the checkpoint, if the weaker run has another corpus, and if
    its formulation has another path, prediction or span of t. The density of t and the weight may differ.
    """
    return _load(run, sampler.guide) if sampler.guide else None


@functools.lru_cache(maxsize=1)  # one guide at a time, because a guide holds a whole network's weights
def _load(run: Run, guide: str) -> Guide:
    folder, step = parse_guide(guide)
    weaker = open_run(folder, {f"mesh.{axis}": size for axis, size in vars(run.config.mesh).items()})
    if weaker.corpus.fingerprint != run.corpus.fingerprint:
        raise ConfigError(
            f"{FIELD} is {guide}, a run on {weaker.config.data.label}, not on the corpus of {run.name} "
            f"({run.config.data.label}); take a run on the same corpus"
        )
    ours, theirs = ((each.path, each.prediction, each.span) for each in (run.formulation, weaker.formulation))
    if ours != theirs:
        raise ConfigError(
            f"{FIELD} is {guide}, a run of the formulation {weaker.formulation.name}, and {run.name} has "
            f"{run.formulation.name}; take a run that predicts the same"
        )
    with weaker.computing():
        return Guide(weaker.backbone.apply, weaker.restore_params(weaker.choose_step(step), "ema"))
