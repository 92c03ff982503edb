"""CLIPScore: how near an image is to its caption, by CLIP.

Hessel et al., "CLIPScore" (arXiv 2104.08718): 2.5 max(cos, 0) of the embeddings of the image and of
"A photo depicts " before the caption, by CLIP ViT-B/32; the mean over images.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Float64

from rfjax.errors import ConfigError
from rfjax.scorers import images
from rfjax.scorers.clip import Clip, unit
from rfjax.scorers.folder_features import images_of
from rfjax.scorers.rows import Bar, Rows

WEIGHT = 2.5
PREFIX = "A photo depicts "
TOWER = "ViT-B/32"


def clip_scores(seen: Float[torch.Tensor, "n d"], said: Float[torch.Tensor, "n d"]) -> Float[torch.Tensor, " n"]:
    """2.5 max(cos, 0) of each image's embedding and its caption's; lengths do not matter."""
    return WEIGHT * (unit(seen) * unit(said)).sum(-1).clamp(min=0)


def mean_and_stderr(scores: Sequence[float], captions: Sequence[str]) -> tuple[float, float]:
    """The mean over images, and its standard error over captions: images of one caption share their fate.

    sqrt(G / (G - 1) * sum of squared sums of residuals) / images of G captions; nan of one caption.
    """
    values: Float64[np.ndarray, " n"] = np.asarray(scores, np.float64)
    mean = float(values.mean())
    _, group = np.unique(np.asarray(captions, dtype=object).astype(str), return_inverse=True)
    sums = np.bincount(group, weights=values - mean)
    groups = len(sums)
    if groups < 2:
        return mean, math.nan
    return mean, math.sqrt(groups / (groups - 1) * float(sums @ sums)) / len(values)


def captions_of(folder: str | os.PathLike, file: str | os.PathLike | None) -> dict[str, str]:
    """The caption of each image, by its name relative to the folder.

    From `file`, a JSON object of captions by the image's name (with or without its suffix), which must have
    them all; else from the `metadata.jsonl` of GenEval's layout; else from a `.txt` beside the image.
    Raises `ConfigError` naming an image without one.
    """
    folder = Path(folder)
    given = _given(file) if file is not None else None
    captions, prompts = {}, {}
    for path in images_of(folder):
        name = path.relative_to(folder).as_posix()
        if given is not None:
            stem = name.removesuffix(path.suffix)
            captions[name] = given.get(name, given.get(stem))
            remedy = f"add {name!r} to {file}"
        elif path.parent.name == "samples" and (place := path.parent.parent / "metadata.jsonl").is_file():
            if place not in prompts:
                prompts[place] = _prompt(place)
            captions[name], remedy = prompts[place], ""
        else:
            side = path.with_suffix(".txt")
            captions[name] = side.read_text(encoding="utf-8").strip() if side.is_file() else None
            remedy = f"write it into {side.name} beside it, or give --captions"
        if not captions[name]:
            raise ConfigError(f"the image {name} has no caption; {remedy}")
    return captions


def _given(file):
    try:
        content = json.loads(Path(file).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"cannot read captions from {file} ({error}); it must be a JSON object, image to caption"
        ) from None
    if not isinstance(content, dict) or not all(isinstance(caption, str) for caption in content.values()):
        raise ConfigError(
            f'{file} must be a JSON object of captions by image, like {{"00000/samples/0000.png": "a bench"}}'
        )
    return content


def _prompt(place):
    from rfjax.evaluation.geneval.files import read_metadata

    return read_metadata(place)[0]["prompt"]


def score_folder(
    folder: str | os.PathLike, clip: Clip, captions: dict[str, str], out: str | os.PathLike, *, batch_size: int
) -> list[float]:
    """The score of each image, in the order of `captions`; goes on where it was stopped.

    Raises `ConfigError` naming what cannot be used as given.
    """
    folder, names = Path(folder), list(captions)
    settings = {"metric": "clip-score", "clip": f"{clip.name} {clip.sha256}", "prefix": PREFIX, "weight": WEIGHT}
    with Rows(out, settings) as rows:
        contents = {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in names}
        waiting = [name for name in names if not _is_done(rows.get(name), contents[name], captions[name])]
        with Bar("CLIP score", len(names) - len(waiting), len(names)) as bar:
            for start in range(0, len(waiting), batch_size):
                batch = waiting[start : start + batch_size]
                pictures = [images.read(io.BytesIO((folder / name).read_bytes()), folder / name) for name in batch]
                seen = clip.embed_images(
                    torch.stack([images.clip_transform(picture, clip.size) for picture in pictures])
                )
                scores = clip_scores(seen, clip.embed_texts([PREFIX + captions[name] for name in batch])).tolist()
                rows.add(
                    {"image": name, "sha256": contents[name], "caption": captions[name], "score": score}
                    for name, score in zip(batch, scores, strict=True)
                )
                bar.more(len(batch))
        return [rows.get(name)["score"] for name in names]


def _is_done(row, sha256, caption):
    return row is not None and row["sha256"] == sha256 and row["caption"] == caption
