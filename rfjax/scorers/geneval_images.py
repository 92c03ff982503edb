"""Scores a folder of images by GenEval: detects objects, classifies colours, judges the images, and sums up.

The rules are in `rfjax.evaluation.geneval.rules`. Results have the format of `rfjax geneval`.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from rfjax.errors import ConfigError
from rfjax.evaluation.geneval.files import (
    lacking,
    missing,
    numbering_facts,
    result_row,
    score_summary,
    summary_path,
    within_prompts,
)
from rfjax.evaluation.geneval.judgements import prompt_scores
from rfjax.evaluation.geneval.rules import (
    DEFAULT_OPTIONS,
    Detections,
    GenEvalOptions,
    GenEvalScore,
    ImageResult,
    judge,
    keep,
    score,
)
from rfjax.evaluation.image_folders import geneval_folder
from rfjax.files import write_whole
from rfjax.inputs.json_files import parse_json
from rfjax.scorers import images
from rfjax.scorers.coco_boxes import BoxDetector
from rfjax.scorers.colors import ColorClassifier
from rfjax.scorers.folder_features import say_left_out
from rfjax.scorers.mask2former import Detector, Instances
from rfjax.scorers.model_names import named_by
from rfjax.scorers.object_names import OBJECT_NAMES
from rfjax.scorers.rows import Bar, Row, Rows

RESULTS = "results.jsonl"
OFFICIAL_CLIP = "ViT-L/14"
OFFICIAL_FIELDS = ("filename", "tag", "prompt", "correct", "reason", "metadata", "details")

# kind of the detector's weights -> (evaluation's name in records, title)
KINDS = {
    "official": ("geneval_official", "GenEval"),
    "hf": ("geneval_hf_mask2former", "GenEval (HF Mask2Former weights)"),
    "other": ("geneval_other_models", "GenEval (other models)"),
}

# kind of the detector's weights -> what it is instead of the official detector
WEIGHTS = {
    "hf": "converted from facebookresearch's weights",
    "other": "of another checkpoint",
    "boxes": "another network that gives boxes without masks",
}


class Scored(NamedTuple):
    """A folder's score. `deviations` has a phrase for each difference between the scoring and the official protocol."""

    evaluation: str
    title: str
    score: GenEvalScore
    prompt_scores: list[list]
    deviations: tuple[str, ...]
    summary: dict


def score_folder(
    folder: str | os.PathLike,
    detector: Detector | BoxDetector,
    classifier: ColorClassifier,
    out: str | os.PathLike,
    *,
    metadata: str | os.PathLike | None = None,
    options: GenEvalOptions = DEFAULT_OPTIONS,
    batch_size: int = 4,
    images_per_prompt: int | None = None,
    allow_missing: bool = False,
    seed: int = 0,
) -> Scored:
    """Scores the images of a folder in GenEval's layout. Resumes: rows that an earlier command left are reused.

    Writes `results.jsonl`, in the official format, and its summary, both or neither. As in `rfjax geneval`, `metadata`,
    `images_per_prompt` and `allow_missing` say which images are expected, and `seed` is the bootstrap's. Raises
    `ConfigError`, naming an image, a prompt or a setting that cannot be used.
    """
    found, out = geneval_folder.read(folder, metadata), Path(out)
    say_left_out(found.left_out)
    _check_classes(found)
    numbered = within_prompts((sample.prompt_index, sample.sample) for sample in found.samples)
    expected = images_per_prompt or 1 + max(number for _, number in numbered.values())
    prompts = 1 + max(found.rows)
    missing_prompts, missing_images = missing(set(numbered.values()), prompts, expected)
    if (missing_prompts or missing_images) and not allow_missing:
        absent = f"{lacking(missing_prompts, missing_images)} of {prompts} prompts x {expected} images"
        raise ConfigError(f"{folder} lacks {absent}; make them, or pass --allow-missing")
    settings = {
        "metric": "geneval",
        "detector": f"{detector.kind} {detector.sha256}",
        "clip": f"{classifier.clip.name} {classifier.clip.sha256}",
        "options": dataclasses.asdict(options),
    }
    with Rows(out, settings, _Row) as rows:
        _score_images(found, detector, classifier, rows, options, batch_size)
        lines = [rows.get(sample.name) for sample in found.samples]
    results = [
        ImageResult(found.rows[sample.prompt_index], row["correct"], row["reason"], {})
        for sample, row in zip(found.samples, lines, strict=True)
    ]
    evaluation, title = _named(detector, classifier)
    deviations = _deviations(found, detector, classifier, options, expected, missing_prompts or missing_images)
    scores = score(results, seed=seed)
    summary = {
        "schema": 1,
        "title": title,
        "deviations": list(deviations),
        "metadata_sha256": found.sha256,
        "metadata_official": found.official,
        "metadata_rows": len(found.rows),
        "repeated_rows": len(found.rows) - len({json.dumps(row) for row in found.rows.values()}),
        "images_per_prompt": expected,
        "detector": {"weights": detector.kind, "sha256": detector.sha256},
        "clip": {"name": classifier.clip.name, "sha256": classifier.clip.sha256},
        **score_summary(scores),
        "missing_prompts": missing_prompts,
        "missing_images": [list(place) for place in missing_images],
        "classes_never_detected": _never_kept(found, lines),
        "options": dataclasses.asdict(options),
        "seed": seed,
        "left_out": {reason: len(names) for reason, names in found.left_out.items()},
    } | numbering_facts(numbered)
    results_path = out / RESULTS
    text = "".join(json.dumps({name: row[name] for name in OFFICIAL_FIELDS}, allow_nan=False) + "\n" for row in lines)
    write_whole({results_path: text, summary_path(results_path): json.dumps(summary, indent=1, allow_nan=False) + "\n"})
    return Scored(evaluation, title, scores, prompt_scores(results), deviations, summary)


def _named(detector, classifier) -> tuple[str, str]:
    """Returns the evaluation's name and title. If the detector gives boxes, name and title contain the detector's name.
    The name then also has a hash of the detector and of any CLIP that is not the official one."""
    official = classifier.clip.name == OFFICIAL_CLIP
    if not isinstance(detector, BoxDetector):
        return KINDS[detector.kind if official else "other"]
    both = detector.sha256 + ("" if official else classifier.clip.sha256)
    sha256 = detector.sha256 if official else hashlib.sha256(both.encode()).hexdigest()
    return named_by("geneval", detector.name, sha256, False), f"GenEval's rules on boxes by {detector.name}"


def _score_images(found, detector, classifier, rows, options, batch_size):
    """Scores every image that has no row, or whose file has changed since, and adds its row."""
    waiting, done = [], 0
    for sample in found.samples:
        row = rows.get(sample.name)
        if row is not None and row["metadata"] != json.dumps(found.rows[sample.prompt_index]):
            raise ConfigError(f"{sample.name} was scored under another prompt; give another --out, or remove this one")
        if row is not None and row["sha256"] == hashlib.sha256(sample.path.read_bytes()).hexdigest():
            done += 1
        else:
            waiting.append(sample)
    with Bar("GenEval", done, len(found.samples)) as bar:
        for batch in (waiting[start : start + batch_size] for start in range(0, len(waiting), batch_size)):
            contents = [sample.path.read_bytes() for sample in batch]
            pairs = zip(contents, batch, strict=True)
            pictures = [images.read(io.BytesIO(content), sample.path) for content, sample in pairs]
            judged = []
            for sample, content, picture, instances in zip(batch, contents, pictures, detector(pictures), strict=True):
                result = judge_image(picture, instances, found.rows[sample.prompt_index], classifier, options)
                row = result_row(sample.prompt_index, sample.sample, result) | {"filename": sample.name}
                judged.append({"image": sample.name, "sha256": hashlib.sha256(content).hexdigest(), **row})
            rows.add(judged)
            bar.more(len(batch))


def judge_image(
    image, instances: Instances, row: Mapping[str, object], classifier: ColorClassifier, options: GenEvalOptions
) -> ImageResult:
    """Judges one image. Classifies colours only of objects that `keep` keeps and whose class has a colour in `row`."""
    boxes, masks = by_class(instances)
    kept = keep(Detections(boxes), row["tag"], options)
    boxes = {name: boxes[name][order] for name, order in kept.items()}
    colored = {item["class"] for item in row.get("include", ()) if "color" in item}
    colors = {}
    for name in (name for name in kept if name in colored):
        colors[name] = classifier(image, boxes[name], [masks[name][index] for index in kept[name]], name)
    return judge(Detections(boxes, colors), row, options)


def by_class(instances: Instances) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Returns {class: boxes with scores, float32 [n, 5]} and {class: masks [n, h, w]}."""
    labels = instances.labels.cpu().numpy()
    boxes, scores = (values.cpu().numpy().astype(np.float32) for values in (instances.boxes, instances.scores))
    table, masks = np.concatenate([boxes, scores[:, None]], 1), instances.masks.cpu().numpy()
    chosen = {OBJECT_NAMES[int(label)]: labels == label for label in np.unique(labels)}
    return {name: table[rows] for name, rows in chosen.items()}, {name: masks[rows] for name, rows in chosen.items()}


def _check_classes(found):
    for index, row in found.rows.items():
        for item in (*row.get("include", ()), *row.get("exclude", ())):
            if item["class"] not in OBJECT_NAMES:
                raise ConfigError(
                    f"prompt {index} asks for {item['class']!r}, which is none of the detector's 80 classes; leave the "
                    "prompt out"
                )


def _deviations(found, detector, classifier, options, expected, incomplete):
    """Returns a phrase for each difference between the scoring and the official protocol."""
    wrong = []
    if not found.official:
        rows = geneval_folder.OFFICIAL_ROWS
        wrong.append(f"the prompts are not the official {rows} (SHA-256 of the metadata {found.sha256})")
    if expected != geneval_folder.OFFICIAL_IMAGES:
        wrong.append(f"{expected} images a prompt instead of {geneval_folder.OFFICIAL_IMAGES}")
    if incomplete:
        wrong.append("images are missing")
    if detector.kind != "official":
        wrong.append(f"the detector is {WEIGHTS[detector.kind]} (SHA-256 {detector.sha256})")
    if classifier.clip.name != OFFICIAL_CLIP:
        wrong.append(f"colours are by another CLIP than {OFFICIAL_CLIP} ({classifier.clip.name})")
    if options != DEFAULT_OPTIONS:
        wrong.append("the scorer's options are not the official ones")
    return tuple(wrong)


class _Row(Row):
    """A row of the official results, with the hash of the image's file."""

    sha256: str
    filename: str
    tag: str
    prompt: str
    correct: bool
    reason: str
    metadata: str
    details: str


def _never_kept(found, lines):
    """Lists the classes that prompts ask for but that have no kept object in any image."""
    asked = {item["class"] for sample in found.samples for item in found.rows[sample.prompt_index].get("include", ())}
    return sorted(asked - {name for row in lines for name in parse_json(row["details"])})
