"""Temporal GenEval from files: reads what any detector found in the frames of clips, judges and sums up.

The metadata are JSON lines, one prompt a line, as `data.motion_captions.row` makes them. The detections are JSON lines,
one clip a line,

    {"prompt_index": 0, "sample": 0, "size": 256,
     "frames": [{"detections": {"square": [[x1, y1, x2, y2, score], ...]}, "colors": {"square": ["red", ...]}}, ...]}

where `size` is the side of the square frames, in the boxes' unit.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
from collections.abc import Mapping, Sequence

from rfjax.errors import ConfigError
from rfjax.evaluation.geneval.files import (
    check_outputs,
    lacking,
    missing,
    never_detected,
    never_detected_lines,
    write_results,
)
from rfjax.evaluation.geneval.rows import check_boxes, check_colors, check_integer, check_keys, json_lines
from rfjax.evaluation.temporal.metadata import read_metadata
from rfjax.outputs import is_json_with

# The rules import numpy, so they are imported where they are used.

SCHEMA = 1
DETECTIONS_KEYS = {"prompt_index": True, "sample": True, "size": True, "frames": True}
FRAME_KEYS = {"detections": True, "colors": False}
MOST_SAMPLES = 10_000
# How far the centre of a box may lie outside the frame, as a share of the frame's side. Edges may lie further outside:
# detectors draw the whole box of an object that the frame's border cuts.
MOST_OUTSIDE = 0.05


def score_files(
    metadata_path: str | os.PathLike,
    detections_path: str | os.PathLike,
    out_path: str | os.PathLike,
    *,
    allow_missing: bool = False,
    options=None,
    world: str | None = None,
    truth_path: str | os.PathLike | None = None,
    seed: int = 0,
) -> dict:
    """Scores a file of clips (`options`: a `TemporalOptions`), and returns the summary.

    `world` names the world whose speeds the prompts ask for. If it is given, the summary also has the velocity error.
    `truth_path` is a file of detections in ground-truth clips of the same prompts; the velocity error of these clips is
    the detector's own error. Each such clip must have as many frames as the scored clips of its prompt. Velocities are
    averaged in the boxes' unit, so with `world` all clips of both files must have one size.

    Writes a line for each clip to `out_path`, with every clause of the clip's prompt, and the summary to a file beside
    it. The number of clips that each prompt must have is one more than the largest sample number in the file. Missing
    clips are an error, in both files; with `allow_missing` they are left out and listed in the summary. Raises
    `ConfigError`, naming file, line and remedy, for anything that cannot be used as given.
    """
    from rfjax.data.motion_worlds import WORLDS
    from rfjax.evaluation.temporal.rules import TemporalOptions, judge
    from rfjax.evaluation.temporal.summary import summarize, velocity_summary
    from rfjax.evaluation.temporal.velocity import ERROR, velocity_measures

    if truth_path is not None and world is None:
        raise ConfigError(
            f"--truth={truth_path} is read for the velocity error alone; give --world, too, or leave it out"
        )
    options = TemporalOptions() if options is None else options
    reads = (metadata_path, detections_path, *((truth_path,) if truth_path is not None else ()))
    check_outputs(out_path, reads, is_json_with("metadata_file", "clips_file"))
    rows = read_metadata(metadata_path)
    clips = read_clips(detections_path, rows)
    expected, missing_prompts, missing_clips = _missing_clips(detections_path, clips, rows, allow_missing)
    truth, truth_prompts, truth_clips = {}, [], []
    if truth_path is not None:
        truth = read_clips(truth_path, rows)
        _, truth_prompts, truth_clips = _missing_clips(truth_path, truth, rows, allow_missing)
        _check_frames(detections_path, clips, truth_path, truth)
    if world is not None:
        _check_sizes({detections_path: clips, truth_path: truth})
    places = sorted(clips)
    summary = {
        "schema": SCHEMA,
        "metadata_file": str(metadata_path),
        "clips_file": str(detections_path),
        "metadata_rows": len(rows),
        "clips_per_prompt": expected,
        **summarize([clips[place] for place in places], [place[0] for place in places], rows, options, seed=seed),
        "velocity": None,
        "missing_prompts": missing_prompts,
        "missing_clips": [list(place) for place in missing_clips],
        "classes_never_detected": never_detected(
            rows, {prompt for prompt, _ in clips}, (found for frames, _ in clips.values() for found in frames)
        ),
        "options": dataclasses.asdict(options),
        "seed": seed,
    }
    if world is not None:
        drawn = WORLDS[world]
        measured = {
            name: velocity_summary(each, rows, drawn, options, seed=seed)
            for name, each in (("clips", clips), ("ground_truth", truth))
        }
        summary["velocity"] = {
            "world": world,
            "truth_file": None if truth_path is None else str(truth_path),
            "truth_missing_prompts": truth_prompts,
            "truth_missing_clips": [list(place) for place in truth_clips],
            **measured,
        }
    lines = []
    for index, sample in places:
        result = judge(*clips[index, sample], rows[index], options)
        facts = {"prompt_index": index, "sample": sample, "tag": rows[index]["tag"], "prompt": rows[index]["prompt"]}
        facts |= {"correct": result.correct, "clauses": dict(result.clauses)}
        if world is not None and (velocity := velocity_measures(*clips[index, sample], rows[index], drawn, options)):
            facts[ERROR] = velocity.get(ERROR)  # null where an object was not found
        lines.append(json.dumps(facts) + "\n")
    write_results(out_path, lines, summary)
    return summary


def _missing_clips(path, clips, rows, allow_missing):
    """Returns (the number of clips that each prompt must have, the prompts without any clip, the single clips that
    other prompts lack). Raises `ConfigError` if clips are missing and may not be."""
    expected = 1 + max(sample for _, sample in clips)
    prompts, single = missing(set(clips), len(rows), expected)
    if (prompts or single) and not allow_missing:
        raise ConfigError(
            f"{path} lacks {lacking(prompts, single)}; {len(rows)} metadata rows x {expected} clips are expected. "
            "Add them, or pass --allow-missing"
        )
    return expected, prompts, single


def _check_sizes(files):
    """Raises `ConfigError` if clips of the files {path: clips} have different sizes: the mean velocity error would mix
    units."""
    sizes = {}
    for path, clips in files.items():
        for place, (_, size) in clips.items():
            sizes.setdefault(size, f"{_named(path, place)} has size {size:g}")
    if len(sizes) > 1:
        first, other, *_ = sizes.values()
        raise ConfigError(
            f"{first}, but {other}; the velocity error is a mean in the boxes' unit, so scale all clips to one size"
        )


def _check_frames(path, clips, truth_path, truth):
    """Raises `ConfigError` if a clip of the truth has another number of frames than a scored clip of its prompt."""
    scored = {}
    for place, (frames, _) in clips.items():
        scored.setdefault(place[0], {}).setdefault(len(frames), place)
    for place, (frames, _) in truth.items():
        for count, own in scored.get(place[0], {}).items():
            if count != len(frames):
                raise ConfigError(
                    f"{_named(truth_path, place)} has {len(frames)} frames, but {_named(path, own)} has {count}; give "
                    "the truth as many frames as the clips of its prompt"
                )


def _named(path, place):
    return f"{path}: prompt_index {place[0]}, sample {place[1]}"


def read_clips(path: str | os.PathLike, metadata: Sequence[Mapping]) -> dict[tuple[int, int], tuple[list, float]]:
    """Reads a file of detections in clips. Returns {(prompt index, sample): (`Detections` of each frame, the frames'
    side)}. Raises `ConfigError`, naming the line, for a line of another form, and for one that contradicts the
    metadata."""
    from rfjax.evaluation.geneval.rules import Detections

    named = {item[key] for row in metadata for item in row["include"] for key in ("color", "becomes") if key in item}
    clips = {}
    for place, row in json_lines(path):
        check_keys(place, "", row, DETECTIONS_KEYS)
        check_integer(place, "prompt_index", row["prompt_index"], 0, len(metadata) - 1)
        check_integer(place, "sample", row["sample"], 0, MOST_SAMPLES - 1)
        key = row["prompt_index"], row["sample"]
        if key in clips:
            raise ConfigError(f"{place}: prompt_index {key[0]}, sample {key[1]} is there already; keep one")
        side = row["size"]
        if type(side) not in (int, float) or not 0 < side < math.inf:
            raise ConfigError(f"{place}: size is {side!r}; it must be the side of the frames, in the unit of the boxes")
        if not isinstance(row["frames"], list) or len(row["frames"]) < 2:
            raise ConfigError(f"{place}: frames must be a list of two frames or more; score stills with rfjax geneval")
        frames = []
        for t, frame in enumerate(row["frames"]):
            at = f"{place}: frame {t}"
            check_keys(at, "", frame, FRAME_KEYS)
            check_boxes(at, frame["detections"])
            check_colors(at, frame.get("colors", {}), named)
            try:
                found = Detections.from_lists(frame["detections"], frame.get("colors", {}))
            except ConfigError as error:
                raise ConfigError(f"{at}: {error}") from None
            for item in metadata[key[0]]["include"]:
                if "color" in item and frame["detections"].get(item["class"]) and item["class"] not in found.colors:
                    raise ConfigError(f"{at}: no colors for {item['class']!r}, whose color its prompt names; give one")
            _check_inside(f"{at} of prompt_index {key[0]}, sample {key[1]}", found, side)
            frames.append(found)
        clips[key] = frames, float(side)
    return clips


def _check_inside(at, found, side):
    """Raises `ConfigError` if the centre of a box lies outside the frame by more than `MOST_OUTSIDE` of its side."""
    for name, boxes in found.boxes.items():
        off = abs((boxes[:, :2] + boxes[:, 2:4]) / 2 - side / 2).max(axis=1, initial=0) > (0.5 + MOST_OUTSIDE) * side
        if off.any():
            raise ConfigError(
                f"{at}: the box {boxes[off][0, :4].tolist()} of {name!r} is outside the frame, and size is {side}; "
                "size must be the side of the square frames, in the boxes' unit"
            )


def summary_text(summary: Mapping[str, object]) -> str:
    """The summary of `score_files` as text for people."""
    floors = list(dict.fromkeys(name for task in summary["floors"].values() for name in task))
    lines = [f"{'task':<16}{'score':>7}   95 % interval   {'clips':>6}" + "".join(f"{name:>15}" for name in floors)]
    for group in summary["groups"].values():
        for name, estimate in (*group["tasks"].items(), (group["name"], group["overall"])):
            interval = f"[{estimate['low']:.3f}, {estimate['high']:.3f}]"
            below = summary["floors"].get(name, {})
            shown = "".join(f"{below[floor]:>15.3f}" if floor in below else f"{'-':>15}" for floor in floors)
            lines.append(f"{name:<16}{estimate['value']:>7.3f}   {interval}{estimate['images']:>8}{shown}")
    for task, clauses in summary["clauses"].items():
        low = ", ".join(f"{name} {share:.3f}" for name, share in clauses.items())
        lines.append(f"{task}: {low}")
    velocity = summary["velocity"] or {}
    lines += _velocity_lines(velocity) if velocity else []
    if velocity and (velocity["truth_missing_prompts"] or velocity["truth_missing_clips"]):
        left_out = lacking(velocity["truth_missing_prompts"], velocity["truth_missing_clips"])
        lines.append(f"missing in the truth, and left out: {left_out}")
    if summary["missing_prompts"] or summary["missing_clips"]:
        lines.append(f"missing, and left out: {lacking(summary['missing_prompts'], summary['missing_clips'])}")
    return "\n".join([*lines, *never_detected_lines(summary["classes_never_detected"])])


def _velocity_lines(velocity: Mapping) -> list[str]:
    """Returns lines for the console with the velocity errors. A line also has the number of clips, the number of clips
    in which an object was not found (their error is unknown), and the detector's own error on ground truth."""
    if not velocity["clips"]:
        return [f"velocity error: no prompt determines a velocity in the world {velocity['world']}"]
    lines = []
    for part, found in velocity["clips"].items():
        own = velocity["ground_truth"].get(part)
        beside = f"; the detector's own {_error(own)}" if own else ""
        counts = f"{found['asked']} clips, in {found['not_found']} of them an object was not found"
        lines.append(f"velocity error, {part.replace('_', ' ')}: {_error(found)} pixels a frame; {counts}{beside}")
    return lines


def _error(found):
    error = found["error"]
    return "unknown" if error is None else f"{error['value']:.3f} [{error['low']:.3f}, {error['high']:.3f}]"
