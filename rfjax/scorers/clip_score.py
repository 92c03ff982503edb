"""CLIPScore: how well an image matches its caption, by CLIP ViT-B/32.

Hessel et al., "CLIPScore" (arXiv 2104.08718): the mean over images of 2.5 max(cos, 0), between the embedding of the
image and that of "A photo depicts " followed by the caption.
"""

from __future__ import annotations

import hashlib
import io
import math
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Float64

from rfjax.errors import ConfigError
from rfjax.evaluation.image_folders.geneval_folder import own_row
from rfjax.inputs.json_files import read_json
from rfjax.inputs.text import read_text
from rfjax.scorers import images
from rfjax.scorers.clip import Clip, unit
from rfjax.scorers.folder_features import images_of, say_left_out
from rfjax.scorers.rows import Bar, Row, Rows

WEIGHT = 2.5
PREFIX = "A photo depicts "
TOWER = "ViT-B/32"


def clip_scores(seen: Float[torch.Tensor, "n d"], said: Float[torch.Tensor, "n d"]) -> Float[torch.Tensor, " n"]:
    """Computes 2.5 max(cos, 0) of each image's embedding and its caption's, which need not have length 1."""
    return WEIGHT * (unit(seen) * unit(said)).sum(-1).clamp(min=0)


def mean_and_stderr(scores: Sequence[float], captions: Sequence[str]) -> tuple[float, float]:
    """Returns the mean over images and its standard error, clustered by caption: a caption's images are dependent.

    With G captions: sqrt(G / (G - 1) * sum over captions of (sum of residuals)^2) / images; nan for a single caption.
    """
    values: Float64[np.ndarray, " n"] = np.asarray(scores, np.float64)
    mean = float(values.mean())
    _, group = np.unique(np.asarray(captions, dtype=object).astype(str), return_inverse=True)
    sums = np.bincount(group, weights=values - mean)
    if (groups := len(sums)) < 2:
        return mean, math.nan
    return mean, math.sqrt(groups / (groups - 1) * float(sums @ sums)) / len(values)


def captions_of(folder: str | os.PathLike, file: str | os.PathLike | None) -> tuple[dict[str, str], dict[str, int]]:
    """Returns {image's name relative to the folder: caption}, and {reason: number of images or captions left out}.

    If `file` is given, a JSON object {image's name, with or without suffix: caption}, it must have all captions.
    Otherwise they come from the `metadata.jsonl` of GenEval's layout, or from a `.txt` beside the image. Raises
    `ConfigError`, naming the image, if one has no caption.
    """
    folder = Path(folder)
    given = _read_captions(file) if file is not None else None
    captions, prompts, used = {}, {}, set()
    paths, left_out = images_of(folder)
    for path in paths:
        name = path.relative_to(folder).as_posix()
        if given is not None:
            stem = name.removesuffix(path.suffix)
            captions[name] = given.get(name, given.get(stem))
            used |= {name, stem}
            remedy = f"add {name!r} to {file}"
        elif path.parent.name == "samples" and (place := path.parent.parent / "metadata.jsonl").is_file():
            if place not in prompts:
                prompts[place] = own_row(place.parent)["prompt"]
            captions[name], remedy = prompts[place], ""
        else:
            side = path.with_suffix(".txt")
            captions[name] = read_text(side, "the caption").strip() if side.is_file() else None
            remedy = f"write it into {side.name} beside it, or give --captions"
        if not captions[name]:
            raise ConfigError(f"the image {name} has no caption; {remedy}")
    if unused := [name for name in given or () if name not in used]:
        reason = f"captions of {Path(file).name} without an image"
        say_left_out({reason: unused})
        left_out = left_out | {reason: len(unused)}
    return captions, left_out


def _read_captions(file):
    wanted = 'give a JSON object of captions by image, like {"00000/samples/0000.png": "a bench"}'
    try:
        return read_json(file, dict[str, str], remedy=wanted, error=ConfigError)
    except FileNotFoundError:
        raise ConfigError(f"--captions is {file}, and there is no such file; {wanted}") from None


def score_folder(
    folder: str | os.PathLike, clip: Clip, captions: dict[str, str], out: str | os.PathLike, *, batch_size: int
) -> list[float]:
    """Scores each image, in the order of `captions`. Resumes: rows that an earlier command left in `out` are reused.

    Raises `ConfigError`, naming an image or a setting that cannot be used.
    """
    folder, names = Path(folder), list(captions)
    settings = {"metric": "clip-score", "clip": f"{clip.name} {clip.sha256}", "prefix": PREFIX, "weight": WEIGHT}
    with Rows(out, settings, _Row) as rows:
        contents = {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in names}
        waiting = [name for name in names if not _is_done(rows.get(name), contents[name], captions[name])]
        with Bar("CLIP score", len(names) - len(waiting), len(names)) as bar:
            for start in range(0, len(waiting), batch_size):
                batch = waiting[start : start + batch_size]
                pictures = [images.read(io.BytesIO((folder / name).read_bytes()), folder / name) for name in batch]
                inputs = torch.stack([images.clip_transform(picture, clip.size) for picture in pictures])
                said = clip.embed_texts([PREFIX + captions[name] for name in batch])
                scores = clip_scores(clip.embed_images(inputs), said).tolist()
                rows.add(
                    {"image": name, "sha256": contents[name], "caption": captions[name], "score": score}
                    for name, score in zip(batch, scores, strict=True)
                )
                bar.more(len(batch))
        return [rows.get(name)["score"] for name in names]


class _Row(Row):
    sha256: str
    caption: str
    score: float


def _is_done(row, sha256, caption):
    return row is not None and row["sha256"] == sha256 and row["caption"] == caption
