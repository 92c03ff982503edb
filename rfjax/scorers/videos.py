"""Lists the clips of a folder, and reads their frames. No torch here.

A file of moving pictures is a clip, read as `rfjax prepare` reads it. An .npy of bytes [..., frames, height, width, 3]
holds one clip or many, as `rfjax sample` writes it.
"""

from __future__ import annotations

import functools
import itertools
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from rfjax.errors import ConfigError
from rfjax.inputs.files import NoPlainFile
from rfjax.inputs.walk import walk_files
from rfjax.prepare.clip_files import Unfit, opened, pictures
from rfjax.prepare.clips import as_stored, at_rate, parse_rate
from rfjax.prepare.images import CorruptImage
from rfjax.prepare.libraries import require
from rfjax.prepare.sources import CLIPS
from rfjax.scorers.files import content_hash
from rfjax.scorers.folder_features import SUFFIXES, Listed, say_left_out

BY_PIL = (".gif", ".webp")  # PyAV reads the other formats
ARRAY = ".npy"


@dataclass(frozen=True)
class ClipOf:
    """A clip of a folder: a whole file, or one of the clips in an array."""

    path: Path
    number: int | None = None  # of the clip in its array

    def __str__(self):
        return str(self.path) if self.number is None else f"clip {self.number} of {self.path}"


def clips_of(folder: str | os.PathLike) -> Listed:
    """Lists the clips in a folder and below it, sorted by name. Prints on standard error which files are left out.

    Raises `ConfigError` if there are no clips, and if a file needs PyAV but PyAV is not installed.
    """
    folder = Path(folder)
    suffixes = (*CLIPS, ARRAY)
    walk = walk_files(folder, suffixes, others=tuple(set(SUFFIXES) - set(suffixes)))
    say_left_out(walk.passed_over)
    if not walk.names:
        raise ConfigError(f"no clips ({', '.join(suffixes)}) in {folder}; give the folder that has them")
    found = []
    for path in (folder / name for name in walk.names):
        if path.suffix.lower() == ARRAY:
            found += [ClipOf(path, number) for number in range(math.prod(_array(path).shape[:-4]))]
        else:
            found.append(ClipOf(path))
    for clip in found:
        if clip.path.suffix.lower() not in (*BY_PIL, ARRAY):
            require("av", f"reading {clip.path} needs PyAV", "video")
            break
    hash_of = functools.cache(content_hash)  # hashes an array of many clips only once

    def line(clip):
        number = "" if clip.number is None else f" {clip.number}"
        return f"{clip.path.relative_to(folder).as_posix()}{number} {hash_of(clip.path)}"

    return Listed(found, {reason: len(names) for reason, names in walk.passed_over.items()}, line)


@dataclass(frozen=True)
class Reader:
    """How frames are taken from a clip."""

    frames: int | None = None  # number of frames from the clip's start; None: all (clips must have equally many)
    rate: Fraction | None = None  # frames a second; None: the pictures as stored

    @classmethod
    def of_options(cls, frames: int | None, fps: str | None) -> Reader:
        """Makes the reader of clips from the options --frames and --fps. Raises `ConfigError` for fewer than two
        frames, and for a rate that cannot be read."""
        if frames is not None and frames < 2:
            raise ConfigError(f"--frames is {frames}; a clip has at least 2: score images with fid-inception")
        return cls(frames, parse_rate(fps))

    def read(self, clip: ClipOf) -> UInt8[np.ndarray, "frames height width 3"]:
        """Returns the frames of a clip. Raises `ConfigError`, which names the clip, if it cannot be read or has too few
        frames, if a file of variable rate is read without a rate, and if an array is read at a rate."""
        if clip.number is None:
            frames = np.stack(list(itertools.islice(self._frames(clip), self.frames)))
        elif self.rate is not None:
            raise ConfigError(f"{clip} has no times, and --fps asks for a rate; leave it out")
        else:
            array = _array(clip.path)
            frames = np.array(array.reshape(-1, *array.shape[-4:])[clip.number][: self.frames])
        if len(frames) < max(2, self.frames or 0):
            rest = f"{self.frames} are asked for" if self.frames else "a clip has at least 2"
            raise ConfigError(f"{clip} has {_count(len(frames))}, and {rest}; remove it, or give a smaller --frames")
        return frames

    def _frames(self, clip):
        try:
            with opened(clip.path) as stream:
                shown = pictures(stream)
                timed = as_stored(shown) if self.rate is None else at_rate(shown, self.rate)
                size = None
                for _, each in timed:
                    frame = np.asarray(each.make()[0])
                    if size not in (None, frame.shape):
                        raise CorruptImage("its pictures differ in size")
                    size = frame.shape
                    yield frame
        except Unfit as error:
            raise ConfigError(f"cannot read {clip}: {error.reason} ({error}); remove it, or convert it") from None
        except (CorruptImage, NoPlainFile, OSError) as error:
            raise ConfigError(f"cannot read {clip} ({error}); make it again or remove it") from None

    def read_all(self, clips: Sequence[ClipOf], frames: int) -> list[UInt8[np.ndarray, "frames height width 3"]]:
        """Reads clips. Raises `ConfigError`, as `read` does, and for a clip of another number of frames."""
        found = []
        for clip in clips:
            found.append(self.read(clip))
            if len(found[-1]) != frames:
                raise ConfigError(
                    f"{clip} has {_count(len(found[-1]))} and the first clip {frames}, and a distance is of clips of "
                    "one number of frames; give --frames, at most the smallest number"
                )
        return found


def _count(frames):
    return "1 frame" if frames == 1 else f"{frames} frames"


def _array(path):
    """Opens a file of arrays without reading its content. Raises `ConfigError` if the array's shape is not that of
    clips."""
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise ConfigError(f"cannot read {path} ({error}); make it again or remove it") from None
    if array.ndim < 4 or array.shape[-1] != 3 or array.dtype != np.uint8:
        raise ConfigError(
            f"{path} has {array.shape} of type {array.dtype}; clips are bytes [..., frames, height, width, 3], as "
            "`rfjax sample --out=FILE.npy` writes them"
        )
    return array
