"""Says which fields of their configs the runs of one sweep of the learning rate must share. No JAX here."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence

from rfjax import config as configs
from rfjax.config_sections import flatten_nested
from rfjax.training.may_change import MAY_CHANGE

# The beginnings of the dotted keys in which the runs of a sweep may differ: rate, seed and size, and fields that do not
# change what a run learns.
FREE = (
    *("train.learning_rate", "seed", "model.depth", "model.hidden", "model.width_per_depth"),
    *("name", "evaluation.", "train.role", "train.log_every", "train.checkpoint_every", "train.keep_"),
    *("train.accumulate", "train.power_averages", "train.average_snapshots"),
    *MAY_CHANGE,
)
# The fields of the evaluation that say which loss is measured. Losses of other values cannot be compared.
OF_LOSS = tuple(f"evaluation.validation.{name}" for name in ("grid", "levels", "examples", "seed"))
DEFAULTS = configs.flatten(configs.Config())


def shared_fields(values: Mapping) -> dict[str, object]:
    """Returns {dotted key: value} of the fields that a sweep's runs share, from a config's dict, nested or flat."""
    return {key: value for key, value in flatten_nested(values).items() if not key.startswith(FREE)}


def settings_text(values: Mapping, known: Collection[str]) -> str:
    """Returns `shared_fields` as a JSON object, without the keys in `known` and without fields at their defaults."""
    fields = shared_fields(values).items()
    told = {key: value for key, value in fields if key not in known and (key, value) not in DEFAULTS.items()}
    return json.dumps(told, sort_keys=True)


def differing(runs: Sequence[Mapping[str, object]]) -> dict[str, list]:
    """Returns {dotted key: its distinct values} of the fields in which runs differ, from the {dotted key: value} of
    each run. A field that a run lacks has its default."""
    keys = sorted({key for run in runs for key in run})
    given = {key: [run.get(key, DEFAULTS.get(key)) for run in runs] for key in keys}
    distinct = {key: list({json.dumps(value): value for value in values}.values()) for key, values in given.items()}
    return {key: values for key, values in distinct.items() if len(values) > 1}
