"""GenEval from files: reads any detector's detections, and writes the official results format.

The metadata are JSON lines in the official schema, one prompt per line (see `rules`). The detections are JSON lines,
one image per line,

    {"prompt_index": 0, "sample": 0, "detections": {"bench": [[x1, y1, x2, y2, score], ...]},
     "colors": {"bench": ["red", ...]}}

where `prompt_index` is the 0-based line of the metadata, and `sample` numbers the images of a prompt. `colors`, aligned
with the boxes, is needed only for a class whose colour the prompt names. The results are one JSON line per image with
filename, tag, prompt, correct, reason, metadata and details (the last two as JSON text), and a summary in a file beside
them.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from rfjax.data.geneval_names import COLORS, TASKS
from rfjax.errors import ConfigError
from rfjax.evaluation.geneval.rows import (
    check_boxes,
    check_colors,
    check_integer,
    check_item,
    check_keys,
    check_position,
    check_row,
    check_text,
    json_lines,
)
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
    `images_per_prompt` images, by default one more than the largest sample number within a prompt (`within_prompts`).
    Raises `ConfigError`, naming file, line and remedy, for anything that cannot be used as given.
    """
    from rfjax.evaluation.geneval.rules import GenEvalOptions, judge, score

    options = GenEvalOptions() if options is None else options
    check_outputs(out_path, (metadata_path, detections_path), is_json_with("metadata_file", "detections_file"))
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
        "classes_never_detected": never_detected(rows, {prompt for prompt, _ in found}, found.values()),
        "options": dataclasses.asdict(options),
        "seed": seed,
    } | numbering_facts(numbered)
    lines = [
        json.dumps(result_row(*place, result), allow_nan=False) + "\n"
        for place, result in zip(places, results, strict=True)
    ]
    write_results(out_path, lines, summary)
    return summary


def check_outputs(
    out_path: str | os.PathLike, reads: Sequence[str | os.PathLike], ours: Callable[[Path], bool]
) -> None:
    """Raises `ConfigError` if results and their summary may not be written. `ours` tests whether a file is a summary
    that this command wrote."""
    summary = summary_path(out_path)
    for output in (summary, Path(out_path)):
        check_output(output, "--out", reads=tuple(map(Path, reads)), made_here=lambda _: ours(summary))


def write_results(out_path: str | os.PathLike, lines: Sequence[str], summary: Mapping[str, object]) -> None:
    """Writes the lines of results and the summary beside them: both or neither."""
    text = json.dumps(summary, indent=1, allow_nan=False) + "\n"
    write_whole({Path(out_path): "".join(lines), summary_path(out_path): text})


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
    """Returns a `GenEvalScore` as plain values for JSON, with None for a standard error that is nan."""
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
    return "\n".join([*lines, *never_detected_lines(summary["classes_never_detected"])])


def read_metadata(path: str | os.PathLike) -> list[dict]:
    """Reads and checks a metadata file; returns its rows, in the official schema. A row may also have the key
    `held_out`, true or false.

    Raises `ConfigError`, naming the line, for a row of another form.
    """
    rows = []
    for place, row in json_lines(path):
        check_row(place, row, METADATA_KEYS, TASKS)
        for section, keys in (("include", INCLUDE_KEYS), ("exclude", EXCLUDE_KEYS)):
            items = row.get(section, [])
            if not isinstance(items, list):
                raise ConfigError(f"{place}: {section} is {items!r}; it must be a list of items")
            for index, item in enumerate(items):
                name = f"{section}[{index}]"
                check_item(place, name, item, keys)
                if "color" in item:
                    check_text(place, f"{name} color", item["color"])
                if "position" in item:
                    check_position(place, name, "position", item["position"], index)
        if not row.get("include") and not row.get("exclude"):
            raise ConfigError(f"{place}: neither include nor exclude has an item; without one every image is correct")
        rows.append(row)
    return rows


def read_detections(path: str | os.PathLike, metadata: list[dict], *, images_per_prompt: int | None = None) -> dict:
    """Reads a detections file; returns {(prompt index, sample as the file numbers it): `Detections`}.

    Raises `ConfigError`, naming the line, for a row of another form, and for a row that contradicts the metadata.
    """
    from rfjax.evaluation.geneval.rules import Detections

    if images_per_prompt is not None and not 1 <= images_per_prompt <= MOST_IMAGES:
        raise ConfigError(f"images per prompt is {images_per_prompt}; it must be from 1 to {MOST_IMAGES}")
    named = {item["color"] for row in metadata for item in row.get("include", []) if "color" in item}
    known_colors = named | set(COLORS)
    found, lines = {}, {}
    for place, row in json_lines(path):
        check_keys(place, "", row, DETECTIONS_KEYS)
        check_integer(place, "prompt_index", row["prompt_index"], 0, len(metadata) - 1)
        check_integer(place, "sample", row["sample"], 0, MOST_IMAGES - 1)
        key = row["prompt_index"], row["sample"]
        if key in found:
            raise ConfigError(f"{place}: prompt_index {key[0]}, sample {key[1]} is already at {lines[key]}; keep one")
        check_boxes(place, row["detections"])
        check_colors(place, row.get("colors", {}), known_colors)
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
        check_integer(lines[key], "sample", sample, 0, (images_per_prompt or MOST_IMAGES) - 1)
    return found


def missing(found, prompts, expected):
    """Finds the images that are missing if each metadata row should have `expected` images. Returns (the rows without
    any image, [(row, sample)] of the images that other rows lack)."""
    present = {prompt for prompt, _ in found}
    missing_prompts = [prompt for prompt in range(prompts) if prompt not in present]
    images = [(prompt, sample) for prompt in sorted(present) for sample in range(expected)]
    return missing_prompts, [image for image in images if image not in found]


THROUGH = "images are numbered through the prompts, so within each prompt they were numbered anew, in their order"


def within_prompts(places: Iterable[tuple[int, int]]) -> dict[tuple[int, int], tuple[int, int]]:
    """Numbers the images of each metadata row from 0. Returns {(row, the image's number as given): (row, its number
    within the row)}.

    The official layout already numbers each row's images from 0, and such numbers stay. Some tools go on counting from
    row to row. In their files no number occurs twice, and numbers rise with the rows. Such images are renumbered.
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
    """Returns an entry for the summary which says that images were renumbered (`within_prompts`), or {} if no image
    was."""
    return {} if all(given == meant for given, meant in numbered.items()) else {"numbering": THROUGH}


def never_detected(rows, prompts, found):
    """Returns the classes that `prompts`, indices of `rows`, ask for but that none of the `Detections` `found` has.
    Often the detector spells the name of such a class differently."""
    asked = {item["class"] for prompt in prompts for item in rows[prompt].get("include", [])}
    seen = {name for detections in found for name, boxes in detections.boxes.items() if len(boxes)}
    return sorted(asked - seen)


def never_detected_lines(classes: Sequence[str]) -> list[str]:
    """The warning about classes that were never detected, as a line for the console; [] if there is none."""
    return [f"never detected: {', '.join(classes)}; are they spelt as the prompts spell them?"] if classes else []


def lacking(rows, images):
    """Says in words which images are missing: the metadata rows without any image, and single images of other rows."""
    whole = [f"every image of {_list('metadata row', rows)}"] if rows else []
    names = [f"{row}/{sample}" for row, sample in images]
    single = [f"{_list('single image', names)}, as row/sample"] if names else []
    return " and ".join(whole + single)


def _list(noun, things):
    """Makes a text such as "3 metadata rows (0, 4, 7)", which counts things and names the first few of them."""
    names = ", ".join(map(str, things[:LISTED])) + (", ..." if len(things) > LISTED else "")
    return f"{len(things)} {noun}{'s' if len(things) > 1 else ''} ({names})"
