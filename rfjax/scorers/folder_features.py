"""Computes features of a folder's images, a shard at a time, so that the same command resumes stopped work.

    OUT/settings.json      what the features depend on
    OUT/shards/00000.npz   `features` of up to `SHARD` images, and the hash of those images
    OUT/features.npz       all features, with their model's name; may be given in place of the folder

No torch here: the caller provides the network.
"""

from __future__ import annotations

import hashlib
import io
import os
import sys
import zipfile
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path, PurePosixPath
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Float32, Float64

from rfjax.errors import ConfigError
from rfjax.evaluation.frechet import Moments, moments
from rfjax.files import write_whole
from rfjax.inputs.walk import describe, walk_files
from rfjax.scorers.files import content_hash
from rfjax.scorers.rows import Bar, Rows

SUFFIXES = (".png", ".jpg", ".jpeg", ".jfif", ".jpe", ".webp", ".bmp")
PASSED_OVER = ("grid.png",)  # GenEval's generator writes one beside each prompt's images
SHARD = 512


class Features(NamedTuple):
    """The features [n, d] of a set of images, or only the mean and covariance of the features."""

    values: np.ndarray | None
    gaussian: Moments | None
    n: int | None  # number of images; None if the file does not say
    model: str  # the model that made them; "" if the file names none
    sha256: str  # hash of the file, or of the images
    left_out: Mapping[str, int] = MappingProxyType({})  # reason -> number of files in the folder that were not read

    def as_gaussian(self) -> Moments:
        """Returns mean and covariance. Raises `ConfigError` for fewer than two images."""
        if self.gaussian is not None:
            return self.gaussian
        if len(self.values) < 2:
            raise ConfigError("one image has no covariance; give two or more images for a Frechet distance")
        return moments(self.values.astype(np.float64))


class ImagesOf(NamedTuple):
    """The images of a folder, and how many files and folders were not read, by reason."""

    paths: list[Path]
    left_out: dict[str, int]


class Listed(NamedTuple):
    """The items of a folder (images or clips) that are scored, the number of files that were not read, by reason, and a
    function that gives each item a line of text with its name and hash."""

    items: Sequence
    left_out: dict[str, int]
    line: Callable[[object], str]  # name and content's hash, on which an item's features depend


def list_images(folder: Path) -> Listed:
    """Lists the images of a folder (`images_of`); an image's line is its name and its content's hash."""
    paths, left_out = images_of(folder)
    return Listed(paths, left_out, lambda path: f"{path.relative_to(folder).as_posix()} {content_hash(path)}")


def images_of(folder: str | os.PathLike) -> ImagesOf:
    """Lists the images in a folder and below it, sorted by name. Prints on standard error which files are left out.

    Raises `ConfigError` if there are none.
    """
    folder = Path(folder)
    walk = walk_files(folder, SUFFIXES, others=(".gif", ".tif", ".tiff", ".jp2", ".ppm"))
    grids = tuple(name for name in walk.names if PurePosixPath(name).name in PASSED_OVER)
    passed_over = dict(walk.passed_over) | ({"pictures of GenEval's grids": grids} if grids else {})
    say_left_out(passed_over)
    found = [folder / name for name in walk.names if name not in set(grids)]
    if not found:
        raise ConfigError(f"no images ({', '.join(SUFFIXES)}) in {folder}; give the folder that has them")
    return ImagesOf(found, {reason: len(names) for reason, names in passed_over.items()})


def say_left_out(named: Mapping[str, Collection[str]]) -> None:
    """Prints on standard error what is not scored: for each reason, the number of files and up to three names."""
    for line in describe(named):
        print(f"rfjax: not scored: {line}", file=sys.stderr)


def of_folder(
    folder: str | os.PathLike,
    out: str | os.PathLike,
    model: str,
    embed: Callable[[Sequence], Float32[np.ndarray, "n d"]],
    *,
    name: str,
    batch_size: int,
    list_items: Callable[[Path], Listed] = list_images,
) -> Features:
    """Computes the features of a folder's images by `embed`. `name` is the metric's name. `model` names the network of
    `embed` and the hash of its weights. `list_items` lists what is in the folder; to score clips, give a function that
    lists clips.

    Shards from an earlier command are reused if their images are unchanged. Raises `ConfigError` if `out` has features
    of another metric or model.
    """
    folder, out = Path(folder), Path(out)
    items, left_out, line = list_items(folder)
    pieces, digests = [], []
    with Rows(out, {"features": name, "model": model}), Bar(name, 0, len(items)) as bar:
        for number, start in enumerate(range(0, len(items), SHARD)):
            chosen = items[start : start + SHARD]
            lines = [f"{line(item)}\n" for item in chosen]
            digests.append(hashlib.sha256("".join(lines).encode()).hexdigest())
            file = out / "shards" / f"{number:05d}.npz"
            piece = _read_shard(file, digests[-1])
            if piece is None:
                piece = _embed_batches(chosen, embed, batch_size, bar)
                write_whole({file: _npz(features=piece, images=np.array(digests[-1]))})
            else:
                bar.found_done(len(chosen))
            pieces.append(piece)
    values, sha256 = np.concatenate(pieces), hashlib.sha256("".join(digests).encode()).hexdigest()
    write_whole({out / "features.npz": _npz(features=values, model=np.array(model), images=np.array(sha256))})
    return Features(values, None, len(values), model, sha256, left_out)


def _embed_batches(items, embed, batch_size, bar):
    pieces = []
    for start in range(0, len(items), batch_size):
        batch = items[start : start + batch_size]
        pieces.append(embed(batch))
        bar.more(len(batch))
    return np.concatenate(pieces)


def _read_shard(file, digest):
    """Reads a shard's features; None if the file is missing or damaged, or its images' hash is not `digest`."""
    try:
        with np.load(file, allow_pickle=False) as content:
            return content["features"] if str(content["images"]) == digest else None
    except (OSError, ValueError, KeyError, zipfile.BadZipFile):
        return None


def _npz(**arrays):
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


def from_file(path: str | os.PathLike, model: str | None) -> Features:
    """Reads features: .npy [n, d], or .npz with `features` (from `of_folder`) or `mu` and `sigma` (from pytorch-fid).

    Raises `ConfigError` for anything else, and if the file names another model than `model`. If `model` is None or "",
    any model is accepted.
    """
    path = Path(path)
    try:
        with open(path, "rb") as file:
            content = np.load(file, allow_pickle=False)
            arrays = {"features": content} if isinstance(content, np.ndarray) else dict(content)
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise ConfigError(f"cannot read features from {path} ({error}); give .npy or .npz of plain numbers") from None
    made_by = str(arrays.get("model", ""))
    if made_by and model and made_by != model:
        raise ConfigError(f"{path} has features of {made_by}, not {model}; distances between them mean nothing")
    sha256 = content_hash(path)
    if "features" in arrays:
        values = arrays["features"]
        if values.ndim != 2 or values.dtype.kind != "f":
            raise ConfigError(f"{path} has features {values.shape} of type {values.dtype}; they must be floats [n, d]")
        _check_finite(path, values)
        return Features(values, None, len(values), made_by, str(arrays.get("images", sha256)))
    if {"mu", "sigma"} <= arrays.keys():
        mean, covariance = (np.asarray(arrays[name], np.float64) for name in ("mu", "sigma"))
        if mean.ndim != 1 or covariance.shape != (len(mean), len(mean)):
            raise ConfigError(f"{path} has mu {mean.shape} and sigma {covariance.shape}; they must be [d] and [d, d]")
        _check_finite(path, mean, covariance)
        return Features(None, Moments(mean, covariance), None, made_by, sha256)
    raise ConfigError(f"{path} has {', '.join(sorted(arrays))}; it must have `features`, or `mu` and `sigma`")


def _check_finite(path, *arrays: Float[np.ndarray, " ..."]):
    for values in arrays:
        if not np.isfinite(values).all():
            raise ConfigError(f"{path} has numbers that are not finite; make it again")


def unit(values: Float[np.ndarray, "n d"]) -> Float64[np.ndarray, "n d"]:
    """Scales rows to length 1, in float64: the squares of features in float16 overflow. Raises `ConfigError` for a row
    of zeros, which has no direction."""
    values = np.asarray(values, np.float64)
    lengths = np.linalg.norm(values, axis=1, keepdims=True)
    if not lengths.all():
        row = int(np.flatnonzero(lengths[:, 0] == 0)[0])
        raise ConfigError(f"row {row} of the features is all zeros and has no direction; compute the features again")
    return values / lengths


def check_alike(a: Features, b: Features) -> None:
    """Raises `ConfigError` unless images have equally many features in `a` (the images) and in `b` (the reference)."""
    ours, real = (len(each.gaussian.mean) if each.values is None else each.values.shape[1] for each in (a, b))
    if ours != real:
        raise ConfigError(
            f"the images' features have {ours} numbers and the reference's {real}; use one model for both"
        )


def facts(features: Features) -> dict:
    """Returns what a record says about the features."""
    return {
        "n": features.n,
        "sha256": features.sha256,
        "model": features.model or None,
        "left_out": dict(features.left_out),
    }
