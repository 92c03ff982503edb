"""Puts the model into a metric's name: only scores by the published model have the metric's name alone. No torch
here."""

from __future__ import annotations

import re

from rfjax.results.columns import BY


def named_by(metric: str, model: str, sha256: str, published: bool) -> str:
    """Returns the evaluation's name: `metric` by the published model, else `metric_by_MODEL-HASH`.

    MODEL is the folder's name in small letters, digits and hyphens. The first eight digits of the content's hash
    follow, so that two models never share a column, whatever their folders are called.
    """
    return metric if published else f"{metric}{BY}{slug(model)}-{sha256[:8]}"


def slug(name: str) -> str:
    """Returns a name in small letters, digits and single hyphens, of at most 40 characters."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:40].strip("-") or "model"
