"""GenEval from files: reads any detector's detections, and writes the official results format.

Metadata: JSON lines in the official schema, one prompt per line (see `rules`). Detections:
JSON lines, one image per line,

    {"prompt_index": 0, "sample": 0, "detections": {"bench": [[x1, y1, x2, y2, score], ...]},
     "colors": {"bench": ["red", ...]}}

where `prompt_index` is the 0-based line of the metadata, and `sample` numbers the images of a prompt. `colors`, aligned
with the boxes, is needed only for a class whose colour the prompt names. Results: one JSON line per image with
filename, tag, prompt, correct, reason, metadata and details (the last two as JSON text), and a summary beside them.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import math
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from rfjax.data.geneval_names import COLORS, RELATIONS, TASKS
from rfjax.errors import ConfigError
from rfjax.files import write_whole
from rfjax.outputs import check_output, is_json_with

# `rules` imports NumPy, so it is imported only in the functions that use it.

SCHEMA = 1
METADATA_KEYS = {"tag": True, "prompt": True, "include": False, "exclude": False, "held_out": False}  # key: required
INCLUDE_KEYS = {"class": True, "count": True, "color": False, "position": False}
EXCLUDE_KEYS = {"class": True, "count": True}
DETECTIONS_KEYS = {"prompt_index": True, "sample": True, "detections": True, "colors": False}
MOST_IMAGES = 10_000  # per prompt: file names have four digits
LISTED = 8  # an error names this many missing things, and only counts the others


def score_files(
    metadata_path: str | os.PathLike,
    detections_path: str | os.PathLike,
    out_path: str | os.PathLike,
    *,
    allow_missing: bool = False,
    options=None,
    images_per_prompt: int | None = None,
    seed: int = 0,
) -> dict:
    """Scores a detections file (`options`: a `GenEvalOptions`), and returns the summary.

    Writes the results to `out_path` and the summary to `summary_path(out_path)`: both or neither. Missing images are an
    error; with `allow_missing` they are left out of every mean and listed in the summary. Each prompt must have
    `images_per_prompt` images, by default the largest sample in the file plus one. Raises `ConfigError`, naming file,
    line and remedy, for anything that cannot be used as given.
    """
    from rfjax.evaluation.geneval.rules import GenEvalOptions, judge, score

    options = GenEvalOptions() if options is None else options
    outputs = (Path(out_path), summary_path(out_path))
    ours, reads = is_json_with("metadata_file", "detections_file"), (Path(metadata_path), Path(detections_path))
    for output in reversed(outputs):
        check_output(output, "--out", reads=reads, made_here=lambda _: ours(outputs[1]))
    rows = read_metadata(metadata_path)
    found = read_detections(detections_path, rows, images_per_prompt=images_per_prompt)
    numbered = within_prompts(found)
    expected = images_per_prompt or 1 + max(sample for _, sample in numbered.values())
    missing_prompts, missing_images = missing(set(numbered.values()), len(rows), expected)
    if (missing_prompts or missing_images) and not allow_missing:
        raise ConfigError(
            f"{detections_path} lacks {lacking(missing_prompts, missing_images)}; {len(rows)} metadata rows x "
            f"{expected} images are expected. Add them, or pass --allow-missing"
        )
    places = sorted(found)
    results = [judge(found[place], rows[place[0]], options) for place in places]
    summary = {
        "schema": SCHEMA,
        "metadata_file": str(metadata_path),
        "detections_file": str(detections_path),
        "metadata_rows": len(rows),
        "repeated_rows": len(rows) - len({json.dumps(row) for row in rows}),
        "images_per_prompt": expected,
        **score_summary(score(results, seed=seed)),
        "missing_prompts": missing_prompts,
        "missing_images": [list(place) for place in missing_images],
        "classes_never_detected": never_detected(rows, found),
        "options": dataclasses.asdict(options),
        "seed": seed,
    } | numbering_facts(numbered)
    lines = [
        json.dumps(result_row(*place, result), allow_nan=False) + "\n"
        for place, result in zip(places, results, strict=True)
    ]
    write_whole(
        dict(zip(outputs, ("".join(lines), json.dumps(summary, indent=1, allow_nan=False) + "\n"), strict=True))
    )
    return summary


def summary_path(out_path: str | os.PathLike) -> Path:
    """The path of the summary of `results.jsonl`: `results.summary.json` beside it."""
    path = Path(out_path)
    return path.with_name(path.stem + ".summary.json")


def result_row(prompt_index: int, sample: int, result) -> dict:
    """The row of one `ImageResult` in the official results format."""
    return {
        "filename": f"{prompt_index:05d}/samples/{sample:04d}.png",
        "tag": result.metadata["tag"],
        "prompt": result.metadata["prompt"],
        "correct": result.correct,
        "reason": result.reason,
        "metadata": json.dumps(result.metadata),
        "details": json.dumps({name: boxes.tolist() for name, boxes in result.kept.items()}),
    }


def score_summary(score) -> dict:
    """A `GenEvalScore` as plain values for JSON, with null for nan."""
    values = dataclasses.asdict(score)
    for estimate in (values["overall"], *values["tasks"].values()):
        if math.isnan(estimate["stderr"]):
            estimate["stderr"] = None
    return {**values, "missing_tasks": list(values["missing_tasks"])}


def summary_text(summary: Mapping[str, object]) -> str:
    """The summary of `score_files` as text for people."""
    overall = summary["overall"]
    repeats = f" ({summary['repeated_rows']} of the {summary['metadata_rows']} metadata rows repeat an earlier row)"
    repeated = repeats if summary["repeated_rows"] else ""
    lines = [
        f"{overall['images']} images of {overall['prompts']} prompts{repeated}: {summary['correct_images']:.2%} of "
        f"images and {summary['correct_prompts']:.2%} of prompts (any image) are correct",
        f"{'task':<16}{'score':>9}   95 % interval      images  prompts",
    ]
    for name, estimate in (*summary["tasks"].items(), ("overall", overall)):
        interval = f"[{estimate['low']:.4f}, {estimate['high']:.4f}]"
        counts = f"{estimate['images']:>8}{estimate['prompts']:>9}"
        lines.append(f"{name:<16}{estimate['value']:>9.4f}   {interval}{counts}")
    if summary["missing_tasks"]:
        lines.append(
            f"NOT GenEval's headline: overall is the mean of {len(summary['tasks'])} tasks, no image of "
            f"{', '.join(summary['missing_tasks'])}"
        )
    if summary["missing_prompts"] or summary["missing_images"]:
        lines.append(f"missing, and left out: {lacking(summary['missing_prompts'], summary['missing_images'])}")
    if "numbering" in summary:
        lines.append(f"note: {summary['numbering']}")
    if summary["classes_never_detected"]:
        names = ", ".join(summary["classes_never_detected"])
        lines.append(f"never detected: {names}; are they spelt as the prompts spell them?")
    return "\n".join(lines)


def read_metadata(path: str | os.PathLike) -> list[dict]:
    """The checked rows of a metadata file, in the official schema with the key `held_out` added.

    Raises `ConfigError`, naming the line, for a row of another form.
    """
    rows = []
    for place, row in _json_lines(path):
        _check_keys(place, "", row, METADATA_KEYS)
        _check_choice(place, "tag", row["tag"], TASKS)
        _check_text(place, "prompt", row["prompt"])
        if not isinstance(row.get("held_out", False), bool):
            raise ConfigError(f"{place}: held_out is {row['held_out']!r}; it must be true or false")
        for section, keys in (("include", INCLUDE_KEYS), ("exclude", EXCLUDE_KEYS)):
            items = row.get(section, [])
            if not isinstance(items, list):
                raise ConfigError(f"{place}: {section} is {items!r}; it must be a list of items")
            for index, item in enumerate(items):
                name = f"{section}[{index}]"
                _check_keys(place, name, item, keys)
                _check_text(place, f"{name} class", item["class"])
                _check_integer(place, f"{name} count", item["count"], 1, math.inf)
                if "color" in item:
                    _check_text(place, f"{name} color", item["color"])
                if "position" in item:
                    position = item["position"]
                    if not isinstance(position, list) or len(position) != 2:
                        raise ConfigError(f"{place}: {name} position is {position!r}; it must be [relation, target]")
                    _check_choice(place, f"{name} relation", position[0], RELATIONS)
                    # an item may only point at an earlier item
                    _check_integer(place, f"{name} target", position[1], 0, index - 1)
        if not row.get("include") and not row.get("exclude"):
            raise ConfigError(f"{place}: neither include nor exclude has an item; without one every image is correct")
        rows.append(row)
    return rows


def read_detections(path: str | os.PathLike, metadata: list[dict], *, images_per_prompt: int | None = None) -> dict:
    """The `Detections` of a file by (prompt index, sample), checked against the metadata rows.

    Raises `ConfigError`, naming the line, for a row of another form or one that contradicts the metadata.
    """
    from rfjax.evaluation.geneval.rules import Detections

    if images_per_prompt is not None and not 1 <= images_per_prompt <= MOST_IMAGES:
        raise ConfigError(f"images per prompt is {images_per_prompt}; it must be from 1 to {MOST_IMAGES}")
    named = {item["color"] for row in metadata for item in row.get("include", []) if "color" in item}
    known_colors = named | set(COLORS)
    found, lines = {}, {}
    for place, row in _json_lines(path):
        _check_keys(place, "", row, DETECTIONS_KEYS)
        _check_integer(place, "prompt_index", row["prompt_index"], 0, len(metadata) - 1)
        _check_integer(place, "sample", row["sample"], 0, MOST_IMAGES - 1)
        key = row["prompt_index"], row["sample"]
        if key in found:
            raise ConfigError(f"{place}: prompt_index {key[0]}, sample {key[1]} is already at {lines[key]}; keep one")
        _check_boxes(place, row["detections"])
        _check_colors(place, row.get("colors", {}), known_colors)
        try:
            detections = Detections.from_lists(row["detections"], row.get("colors", {}))
        except ConfigError as error:
            raise ConfigError(f"{place}: {error}") from None
        for item in metadata[key[0]].get("include", []):
            if "color" in item and row["detections"].get(item["class"]) and item["class"] not in detections.colors:
                wanted = f"{item['class']!r}, whose color the prompt {metadata[key[0]]['prompt']!r} names"
                raise ConfigError(f"{place}: no colors for {wanted}; give one per box")
        found[key], lines[key] = detections, place
    for key, (_, sample) in within_prompts(found).items():
        _check_integer(lines[key], "sample", sample, 0, (images_per_prompt or MOST_IMAGES) - 1)
    return found


def _json_lines(path) -> Iterator[tuple[str, object]]:
    """Yields (file:line, value) for each line. There must be at least one line, and blank lines only at the end."""
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror or error}; check the path") from None
    except UnicodeDecodeError as error:
        where = f"{error.reason} at byte {error.start}"
        raise ConfigError(f"{path} is not UTF-8 text ({where}); save it as UTF-8") from None
    lines = text.rstrip().split("\n")  # JSON texts may hold other line breaks
    if lines == [""]:
        raise ConfigError(f"{path} has no rows; it must have one JSON object a line")
    for number, line in enumerate(lines, 1):
        place = f"{path}:{number}"
        try:
            value = json.loads(line, object_pairs_hook=_object, parse_constant=_constant)
        except RecursionError:
            raise ConfigError(f"{place}: nested too deeply; it must be one JSON object a line") from None
        except ValueError as error:
            raise ConfigError(f"{place}: malformed JSON ({error}); it must be one JSON object a line") from None
        yield place, value


def _object(pairs):
    values = dict(pairs)
    if len(values) != len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"key {next(name for name in names if names.count(name) > 1)!r} given twice")
    return values


def _constant(name):
    raise ValueError(f"{name} is not a number")


def _check_keys(place, name, value, keys):
    of = f"{name} " if name else ""
    if not isinstance(value, dict):
        raise ConfigError(f"{place}: {of or 'the row '}is {_short(value)}; it must be an object with {', '.join(keys)}")
    for key in value:
        if key not in keys:
            near = difflib.get_close_matches(key, keys, 1)
            remedy = f"did you mean {near[0]}?" if near else f"the keys are {', '.join(keys)}"
            raise ConfigError(f"{place}: {of}has the unknown key {key!r}; {remedy}")
    for key, required in keys.items():
        if required and key not in value:
            raise ConfigError(f"{place}: {of}has no {key!r}; add it")


def _check_choice(place, name, value, choices):
    if value not in choices:
        near = difflib.get_close_matches(str(value), choices, 1)
        remedy = f"did you mean {near[0]}?" if near else f"it must be one of {', '.join(choices)}"
        raise ConfigError(f"{place}: {name} is {_short(value)}; {remedy}")


def _check_text(place, name, value):
    if not isinstance(value, str) or not value:
        raise ConfigError(f"{place}: {name} is {_short(value)}; it must be text")


def _check_integer(place, name, value, low, high):
    if type(value) is not int or not low <= value <= high:
        top = f"an integer from {low} to {high}" if math.isfinite(high) else f"an integer of at least {low}"
        allowed = top if high >= low else "left out here, as nothing comes before it"
        raise ConfigError(f"{place}: {name} is {_short(value)}; it must be {allowed}")


def _check_boxes(place, boxes):
    if not isinstance(boxes, dict):
        raise ConfigError(f"{place}: detections is {_short(boxes)}; it must map each class to its boxes")
    for name, rows in boxes.items():
        if not isinstance(rows, list):
            raise ConfigError(f"{place}: the boxes of {name!r} are {_short(rows)}; they must be a list")
        for row in rows:
            if not isinstance(row, list) or len(row) != 5 or any(type(number) not in (int, float) for number in row):
                raise ConfigError(f"{place}: a box of {name!r} is {_short(row)}; it must be [x1, y1, x2, y2, score]")


def _check_colors(place, colors, known):
    if not isinstance(colors, dict):
        raise ConfigError(f"{place}: colors is {_short(colors)}; it must map each class to a colour per box")
    for name, values in colors.items():
        if not isinstance(values, list):
            raise ConfigError(f"{place}: the colors of {name!r} are {_short(values)}; they must be a list")
        for value in values:
            _check_text(place, f"a color of {name!r}", value)
            meant = value.strip().lower()
            if value not in known and meant in known:  # it would match no prompt
                raise ConfigError(f"{place}: a color of {name!r} is {value!r}; did you mean {meant!r}?")


def missing(found, prompts, expected):
    """Returns (metadata rows without any image, (row, sample) of each image that another row lacks)."""
    present = {prompt for prompt, _ in found}
    missing_prompts = [prompt for prompt in range(prompts) if prompt not in present]
    images = [(prompt, sample) for prompt in sorted(present) for sample in range(expected)]
    return missing_prompts, [image for image in images if image not in found]


THROUGH = "images are numbered through the prompts; in each prompt they were counted in their order"


def within_prompts(places: Iterable[tuple[int, int]]) -> dict[tuple[int, int], tuple[int, int]]:
    """Returns (row, number of the image in its row) by (row, number as given).

    The official layout numbers each row's images from 0. Some tools go on counting from row to row: then no number
    comes twice, and numbers rise with their rows. Such images are numbered anew.
    """
    places = sorted(places)
    numbers = [number for _, number in places]
    rows = {row for row, _ in places}
    if len(rows) < 2 or any(late <= early for early, late in zip(numbers, numbers[1:], strict=False)):
        return {place: place for place in places}
    counts: Counter[int] = Counter()
    found = {}
    for row, number in places:
        found[row, number] = row, counts[row]
        counts[row] += 1
    return found


def numbering_facts(numbered: Mapping[tuple[int, int], tuple[int, int]]) -> dict[str, str]:
    """The note in a summary if images were numbered anew; else empty."""
    return {} if all(given == meant for given, meant in numbered.items()) else {"numbering": THROUGH}


def never_detected(rows, found):
    """The classes that prompts ask for but no image has. Often the detector spells such a name differently."""
    asked = {item["class"] for prompt, _ in found for item in rows[prompt].get("include", [])}
    seen = {name for detections in found.values() for name, boxes in detections.boxes.items() if len(boxes)}
    return sorted(asked - seen)


def lacking(rows, images):
    """The missing images in words: metadata rows without images, and single images of other rows."""
    whole = [f"every image of {_list('metadata row', rows)}"] if rows else []
    names = [f"{row}/{sample}" for row, sample in images]
    single = [f"{_list('single image', names)}, as row/sample"] if names else []
    return " and ".join(whole + single)


def _list(noun, things):
    """Text such as "3 metadata rows (0, 4, 7)", naming the first few."""
    names = ", ".join(map(str, things[:LISTED])) + (", ..." if len(things) > LISTED else "")
    return f"{len(things)} {noun}{'s' if len(things) > 1 else ''} ({names})"


def _short(value):
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
