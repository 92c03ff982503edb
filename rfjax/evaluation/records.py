"""Evaluation records: the result of one evaluation of one checkpoint, in one JSON file.

A run's records lie in `<workdir>/evaluations/<sha1 of the key>.json`; a record replaces an earlier record with the
same key. The results table is merged from the records. Nothing here needs JAX.

    {"schema": 1,
     "key": {"run", "step", "weights", "evaluation", "corpus", "sampler", "grid", "seed"},
     "images": images seen in training so far, lineage included (null where this does not apply),
     "flops": training FLOPs so far, lineage included,
     "seconds": wall time of this evaluation, "train_seconds": wall time of training so far,
     "values": [{"metric", "item", "value", "stderr", "low", "high", "n"}, ...],
     "extra": {...}}
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TypedDict

from rfjax.errors import RfjaxError
from rfjax.evaluation.geneval.rules import GenEvalScore
from rfjax.evaluation.intervals import normal_interval
from rfjax.evaluation.paired_loss import ValidationLoss
from rfjax.files import write_whole
from rfjax.inputs.files import read_bytes
from rfjax.inputs.json_files import WrongJson, check_json, parse_json
from rfjax.outputs import check_place

SCHEMA = 1
FLOAT_MAX = sys.float_info.max
LAG = 0.05  # a warning is given if the loss of the averaged weights is above 1 + LAG times the loss of the raw weights
FLOOR = "_floor_"  # METRIC_floor_NAME is the metric of the floor NAME of METRIC, in the same record
KEY_FIELDS = {
    "run": str,
    "step": int,
    "weights": str,
    "evaluation": str,
    "corpus": str,
    "sampler": str,
    "grid": str,
    "seed": int,
}
RECORD_FIELDS = ("schema", "key", "images", "flops", "seconds", "train_seconds", "values", "extra")


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One number that an evaluation found, with its standard error, its 95 % interval, and the number of examples or
    images that it is computed from. A number that is unknown or not finite is nan here and null in the record."""

    metric: str
    item: str = "mean"
    value: float
    stderr: float = math.nan
    low: float = math.nan
    high: float = math.nan
    n: int

    @classmethod
    def within(cls, *, value: float, stderr: float, **more) -> Measured:
        """Returns the number with the 95 % interval of a normally distributed estimate, `value` ± 1.96 `stderr`."""
        low, high = normal_interval(value, stderr)
        return cls(value=value, stderr=stderr, low=low, high=high, **more)

    def to_json(self) -> dict:
        """Returns the number as an entry of a record's `values`, with None for a float that is not finite."""
        return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in vars(self).items()}


class Extra(TypedDict, total=False):
    """The keys of a record's `extra` that the results table reads. A record may have other keys."""

    png: str
    webp: str
    prompts: list[object]
    tile: int | None
    example_ids_sha1: str
    example_losses: list[float | None]
    prompt_scores: list[list[object]]
    replicates: dict[str, list[float | None]]
    feature_map: str
    reference: dict[str, object]


VALUE_FIELDS = tuple(field.name for field in fields(Measured))


def record_key(
    *,
    run: str,
    step: int,
    evaluation: str,
    corpus: str,
    weights: str = "-",
    sampler: str = "-",
    grid: str = "-",
    seed: int = 0,
) -> dict:
    """The key that tells a record from all others. A field that does not apply is "-" (or step -1)."""
    return {
        "run": run,
        "step": step,
        "weights": weights,
        "evaluation": evaluation,
        "corpus": corpus,
        "sampler": sampler,
        "grid": grid,
        "seed": seed,
    }


def record_name(key: Mapping[str, object]) -> str:
    """The file name of the record with this key: the SHA-1 of its canonical JSON."""
    canonical = json.dumps(key, sort_keys=True, separators=(",", ":"))
    return hashlib.sha1(canonical.encode()).hexdigest() + ".json"


def make_record(
    key: Mapping[str, object],
    values: Sequence[Measured],
    *,
    images: int | None = None,
    flops: float | None = None,
    seconds: float | None = None,
    train_seconds: float | None = None,
    extra: Mapping[str, object] | None = None,
) -> dict:
    """Makes the record of an evaluation. The module's docstring says what the fields mean."""
    return {
        "schema": SCHEMA,
        "key": dict(key),
        "images": images,
        "flops": flops,
        "seconds": seconds,
        "train_seconds": train_seconds,
        "values": [value.to_json() for value in values],
        "extra": dict(extra or {}),
    }


def validation_record(key: Mapping[str, object], result: ValidationLoss, **training) -> dict:
    """Makes the record of a validation loss. `training` says what training and the evaluation cost, by the names of
    `make_record`'s arguments; the `extra` in it is added to the record's.

    The metric "loss" has the item "mean" and an item "t=..." for each level, with intervals of 1.96 standard errors
    over examples. `extra` keeps each example's loss (the mean over the levels that enter the loss) in the order of
    example ids, so that two runs can be compared example by example. It also keeps a hash of the ids: only runs with
    equal hashes can be compared in this way.
    """
    items = {"mean": (result.loss, result.stderr)}
    for t, loss, stderr in zip(result.levels, result.level_losses, result.level_stderrs, strict=True):
        items[f"t={t:g}"] = (loss, stderr)
    values = [
        Measured.within(metric="loss", item=item, value=loss, stderr=stderr, n=result.n)
        for item, (loss, stderr) in items.items()
    ]
    extra = {
        "levels": list(result.levels),
        "averaged": list(result.averaged),
        "example_ids_sha1": hashlib.sha1(result.example_ids.astype("<u4").tobytes()).hexdigest(),
        "example_losses": json_numbers(result.example_losses),
        **({"loss_by_bucket": _json_buckets(result)} if result.shapes else {}),
    }
    return make_record(key, values, **{**training, "extra": {**extra, **training.get("extra", {})}})


def _json_buckets(result: ValidationLoss) -> dict[str, dict]:
    """Converts the validation loss of each latent shape to JSON values, with None for numbers that are not finite."""
    return {
        shape: {**dict(zip(found, json_numbers(list(found.values())), strict=True)), "n": found["n"]}
        for shape, found in result.bucket_losses.items()
    }


def geneval_record(
    key: Mapping[str, object], scores: Mapping[str, GenEvalScore], more: Sequence[Measured] = (), /, **training
) -> dict:
    """Makes a record of GenEval scores, `scores` = {metric: score}, and of the values in `more`. For a checkpoint's
    GenEval the metrics are "geneval" and, if some prompts are held out, "geneval_held_out" and "geneval_seen".
    `training` is as in `validation_record`.

    The items are "overall" and the tasks that have images; n counts images. `extra` gives, for each metric, the tasks
    without images, the number of prompts of each item, and the plain fractions of correct images and prompts.
    """
    values, extra = [], {}
    for metric, score in scores.items():
        items = {"overall": score.overall, **score.tasks}
        values += [
            Measured(metric=metric, item=item, value=e.value, stderr=e.stderr, low=e.low, high=e.high, n=e.images)
            for item, e in items.items()
        ]
        extra[metric] = {
            "missing_tasks": list(score.missing_tasks),
            "prompts": {item: estimate.prompts for item, estimate in items.items()},
            "correct_images": score.correct_images,
            "correct_prompts": score.correct_prompts,
        }
    return make_record(key, [*values, *more], **{**training, "extra": {**extra, **training.get("extra", {})}})


def check_may_record(workdir: str | os.PathLike) -> None:
    """Raises `ConfigError` if no record can be written to a run's folder, for example on a read-only disk. Call it
    before hours of measuring."""
    check_place(Path(workdir) / "evaluations" / "record.json", "an evaluation's record")


def check_still_run(workdir: str | os.PathLike) -> None:
    """Raises `RfjaxError` if a run's folder is gone: a record would make a new folder, without a run."""
    if not (Path(workdir) / "run.json").is_file():
        reason = "it was moved or removed while the run was measured"
        remedy = "move it back, then give the same command again"
        raise RfjaxError(f"{workdir} is no longer a run's folder (it has no run.json): {reason}; {remedy}")


def write_record(workdir: str | os.PathLike, record: Mapping[str, object]) -> Path:
    """Writes the record into the run's folder, where it replaces a record with the same key. Returns its path.

    Raises `RfjaxError` for a record that breaks the schema (a number that is not finite must be null), and if the file
    cannot be written. An earlier record is then left as it was.
    """
    try:
        text = json.dumps(record, indent=1, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise RfjaxError(
            f"the evaluation record {record['key']} is not plain JSON: {error}; give null for nan"
        ) from None
    problem = _problem(record)
    if problem:
        raise RfjaxError(f"the evaluation record to be written {problem}")
    path = Path(workdir) / "evaluations" / record_name(record["key"])
    write_whole({path: text + "\n"})
    return path


def read_records(workdir: str | os.PathLike) -> list[dict]:
    """Reads all records of a run's folder, and returns them in the order of their keys.

    Raises `RfjaxError`, naming the file, if a record is damaged, of another schema, or misnamed.
    """
    records = []
    for path in sorted((Path(workdir) / "evaluations").glob("*.json")):
        remedy = "remove the file and evaluate the run again"
        try:
            record = parse_json(read_bytes(path), object)
        except (OSError, ValueError) as error:
            raise RfjaxError(f"the evaluation record {path} is damaged ({error}); {remedy}") from None
        problem = _problem(record)
        if problem:
            raise RfjaxError(f"the evaluation record {path} {problem}; {remedy}")
        if record_name(record["key"]) != path.name:
            raise RfjaxError(
                f"{path} holds the record of another key, which belongs in {record_name(record['key'])}; remove the "
                "file and evaluate the run again"
            )
        records.append(record)
    return sorted(records, key=lambda record: [record["key"][name] for name in KEY_FIELDS])


def json_numbers(values: Iterable[float]) -> list[float | None]:
    """Returns the values for JSON: each rounded to eight significant digits, or None if it is not finite."""
    return [float(f"{value:.8g}") if math.isfinite(value) else None for value in values]


def _problem(record):
    """Says how a record breaks the schema; returns "" if the record keeps it."""
    if not isinstance(record, Mapping):
        return f"is {type(record).__name__}, not an object"
    if record.get("schema") != SCHEMA:
        return f"has schema {record.get('schema')!r}, not {SCHEMA}"
    if set(record) != set(RECORD_FIELDS):
        return f"has the fields {', '.join(sorted(record))}; they must be {', '.join(sorted(RECORD_FIELDS))}"
    key = record["key"]
    if not isinstance(key, Mapping) or set(key) != set(KEY_FIELDS):
        return f"has the key {key!r}; its fields must be {', '.join(KEY_FIELDS)}"
    for name, kind in KEY_FIELDS.items():
        if not isinstance(key[name], kind) or isinstance(key[name], bool):
            return f"has key field {name} {key[name]!r}; it must be {kind.__name__}"
    for name in ("images", "flops", "seconds", "train_seconds"):
        if not (record[name] is None or _is_number(record[name])):
            return f"has {name} {record[name]!r}; it must be a finite number or null"
    try:
        check_json(record["extra"], Extra, "extra")
    except WrongJson as error:
        return f"is damaged: {error}"
    values = record["values"]
    if not isinstance(values, list) or not isinstance(record["extra"], Mapping):
        return "has values that are not a list or extra that is not an object"
    for value in values:
        if not isinstance(value, Mapping) or set(value) != set(VALUE_FIELDS):
            return f"has the value {value!r}; its fields must be {', '.join(VALUE_FIELDS)}"
        if not all(isinstance(value[name], str) for name in VALUE_FIELDS[:2]):
            return f"has the value {value!r}; metric and item must be text"
        if not all(value[name] is None or _is_number(value[name]) for name in VALUE_FIELDS[2:]):
            return f"has the value {value!r}; value, stderr, low, high and n must be numbers or null"
    names = [(value["metric"], value["item"]) for value in values]
    if len(set(names)) != len(names):
        return "has a metric and item twice"
    return ""


def _is_number(value) -> bool:
    return type(value) in (int, float) and -FLOAT_MAX <= value <= FLOAT_MAX


def lag_note(records: Iterable[Mapping], step: int) -> str | None:
    """Returns a warning if at `step` the validation loss of the averaged weights (ema) is more than 1 + `LAG` times the
    loss of the raw weights; else returns None."""
    losses: dict[tuple, dict[str, float]] = {}
    for key, values in ((record["key"], record["values"]) for record in records):
        if key["evaluation"] == "validation" and key["step"] == step:
            settings = key["corpus"], key["grid"], key["seed"]
            for value in values:
                if (value["metric"], value["item"]) == ("loss", "mean") and value["value"] is not None:
                    losses.setdefault(settings, {})[key["weights"]] = value["value"]
    for found in losses.values():
        ema, raw = found.get("ema"), found.get("raw")
        if ema is not None and raw is not None and ema > (1 + LAG) * raw:
            return (
                f"the average of step {step} has a loss of {ema:.4g} where the raw weights have {raw:.4g}: it lags "
                "behind a loss that falls. Judge the raw weights, or average over fewer steps (config.train.ema_decay, "
                "config.train.ema_every)"
            )
    return None


def record_lines(records: Sequence[Mapping]) -> list[str]:
    """Returns lines for a console: a line for each record, and under it a line for each of its values. A score's line
    also shows the floors of this score, which have no lines of their own."""
    lines = []
    for record in records:
        key = record["key"]
        settings = " ".join(str(key[name]) for name in ("grid", "sampler") if key[name] != "-")
        lines.append(
            f"{key['run']} step {key['step']} {key['weights']}: {key['evaluation']} ({settings}, seed {key['seed']})"
        )
        floors = _floors_of(record["values"])
        width = max([16, *(1 + len(value["item"]) for value in record["values"])])
        for value in record["values"]:
            if FLOOR in value["metric"]:
                continue
            interval = "" if value["low"] is None else f"  [{value['low']:.4f}, {value['high']:.4f}]"
            below = floors.get((value["metric"], value["item"]), "")
            line = f"  {value['metric']:<25} {value['item']:<{width}}{_shown(value)}{interval}  n={value['n']}{below}"
            lines.append(line)
    return lines


def _floors_of(values):
    """Returns {(metric, item): a text with the floors of that score}, for the scores whose floors are among
    `values`."""
    found: dict[tuple[str, str], list[str]] = {}
    for value in values:
        metric, floor, name = value["metric"].partition(FLOOR)
        if floor:
            found.setdefault((metric, value["item"]), []).append(f"{name} {_shown(value, 3)}")
    return {place: f"  floors: {', '.join(each)}" for place, each in found.items()}


def _shown(value, digits=4):
    return "not finite" if value["value"] is None else f"{value['value']:.{digits}f}"
