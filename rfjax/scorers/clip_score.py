"""CLIPScore: how well an image matches its caption, by CLIP ViT-B/32.

Following Hessel et al., "CLIPScore" (arXiv 2104.08718), an image's score is 2.5 max(cos, 0). Here cos is the cosine
similarity of two embeddings: of the image, and of the text "A photo depicts " followed by the caption.
"""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from jaxtyping import Float

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
    """Computes 2.5 max(cos, 0) for each image; cos is the cosine similarity of the image's embedding in `seen` and the
    caption's embedding in `said`. The embeddings need not have length 1."""
    return WEIGHT * (unit(seen) * unit(said)).sum(-1).clamp(min=0)


@dataclass(frozen=True)
class Similarity:
    """A score of an image and its caption, computed from CLIP's embeddings of both."""

    metric: str
    title: str
    scores: Callable  # (Clip, embeddings of images [n, d], of texts [n, d]) -> [n]
    prefix: str = ""  # is put before the caption
    settings: Mapping[str, object] = field(default_factory=dict)


CLIP_SCORE = Similarity(
    "clip-score",
    "CLIP score",
    lambda model, seen, said: clip_scores(seen, said),
    PREFIX,
    {"prefix": PREFIX, "weight": WEIGHT},
)


def captions_of(folder: str | os.PathLike, file: str | os.PathLike | None) -> tuple[dict[str, str], dict[str, int]]:
    """Returns {image's name relative to the folder: caption}, and {reason: number of images or captions left out}.

    If `file` is given, all captions come from it: a JSON object {image's name, with or without suffix: caption}.
    Otherwise a caption comes from the `metadata.jsonl` of GenEval's layout, or from a `.txt` beside the image. Raises
    `ConfigError`, naming the image, if an image has no caption.
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
    folder: str | os.PathLike,
    clip: Clip,
    captions: dict[str, str],
    out: str | os.PathLike,
    *,
    batch_size: int,
    similarity: Similarity = CLIP_SCORE,
) -> list[float]:
    """Returns each image's score, in the order of `captions`.

    Resumes: rows that an earlier command left in `out` are reused. Raises `ConfigError`, naming an image or a setting
    that cannot be used.
    """
    folder, names = Path(folder), list(captions)
    settings = {"metric": similarity.metric, "clip": f"{clip.name} {clip.sha256}", **similarity.settings}
    with Rows(out, settings, _Row) as rows:
        contents = {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in names}
        waiting = [name for name in names if not _is_done(rows.get(name), contents[name], captions[name])]
        with Bar(similarity.title, len(names) - len(waiting), len(names)) as bar:
            for start in range(0, len(waiting), batch_size):
                batch = waiting[start : start + batch_size]
                pictures = [images.read(io.BytesIO((folder / name).read_bytes()), folder / name) for name in batch]
                inputs = torch.stack([images.clip_transform(picture, clip.size) for picture in pictures])
                said = clip.embed_texts([similarity.prefix + captions[name] for name in batch])
                scores = similarity.scores(clip, clip.embed_images(inputs), said).tolist()
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
