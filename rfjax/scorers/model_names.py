"""Puts the model into a metric's name: only scores by the published model have the metric's name alone. No torch
here."""

from __future__ import annotations

import re

from rfjax.results.columns import BY


def named_by(metric: str, model: str, sha256: str, published: bool) -> str:
    """Returns the evaluation's name: `metric` if the model is the published one, else `metric_by_MODEL-HASH`.

    MODEL is the name of the model's folder in small letters, digits and hyphens. HASH is the first eight digits of
    `sha256`, so that two models never share a column, whatever their folders are called.
    """
    return metric if published else f"{metric}{BY}{slug(model)}-{sha256[:8]}"


def slug(name: str) -> str:
    """Writes a name in small letters, digits and single hyphens, cut to 40 characters; "model" if nothing is left."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:40].strip("-") or "model"
