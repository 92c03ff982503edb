"""The settings that a trunk and its branch share: all that decide a step before the branch leaves."""

from __future__ import annotations

from rfjax import config as schema
from rfjax.config import Config

# The fields (or the beginnings of their names) that may differ between a trunk and its branch. Some of them decide the
# learning rates and how often the average is updated: these results must be equal, not the fields. No other field of
# this list changes a step before the departure.
_MAY_DIFFER = (
    "name",
    "evaluation.",
    "mesh.",
    "train.steps",
    "train.branches",
    "train.schedule",
    "train.decay_",
    "train.final_learning_rate_fraction",
    "train.warmup_steps",
    "train.ema_every",
    "train.checkpoint_every",
    "train.keep_",
    "train.log_every",
    "train.diagnostics_every",
    "train.max_skipped_in_row",
    "train.stall_seconds",
    "train.trackers",
    "train.together",
    "train.attention",
    "train.remat",
    "train.unroll",
    "data.prepared.path",
    "data.prepared.models",
)


def differing_settings(trunk: Config, branch: Config) -> list[str]:
    """Returns the keys of the settings that differ between a trunk and a branch, and must not.

    Learning rates before the departure, which must also be equal, are not compared.
    """
    keys = [key for key in schema.differences(trunk, branch) if not key.startswith(_MAY_DIFFER)]
    return keys + (["train.ema_every"] if trunk.train.average_every != branch.train.average_every else [])
