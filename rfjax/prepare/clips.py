"""Cuts clips of a fixed number of frames from files of moving pictures, by a stated rule.

The first clip begins at the file's first picture, and clips follow each other without gap or overlap. If the rule gives
a rate, frame k of a file is the picture that is on the screen k/rate seconds after the file's first picture, so a clip
plays as fast as its file. Without a rate, frames are the pictures as stored, which must be equally far apart in time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps

from rfjax.errors import ConfigError
from rfjax.prepare.clip_files import Shown, Unfit, opened, pictures
from rfjax.prepare.images import FILTERS, Picture, crop_unscaled, name_changes, nearest_bucket
from rfjax.prepare.options import check_range

FASTEST = 1000  # frames a second
EARLY = Fraction(1, 4)  # by this share of a frame's duration a picture may come late: stored times are rounded
VARIABLE, SLOW = "variable frame rate", "fewer pictures than half the frames"
LONGER, REPEATED = "longer than its clips", "pictures shown in several frames"


@dataclass(frozen=True)
class ClipRule:
    """How clips are cut from a file."""

    frames: int
    rate: str = ""  # frames a second, as a fraction; "": the pictures as stored
    most: int = 1  # largest number of clips that are cut from one file

    def __post_init__(self):
        check_range(self, ("frames",), 2)
        if self.most < 1:
            raise ConfigError(f"--clips is {self.most}; it must be at least 1")


@dataclass(frozen=True)
class Clip(Picture):
    """A clip, cut and resized to a bucket's sides; `pixels` are [frames, rows, columns, 3]."""

    start: float  # seconds since the file's first picture


@dataclass(frozen=True)
class Frames:
    """Some frames of a clip, upright and not resized."""

    images: tuple[Image.Image, ...]
    width: int  # of the file's pictures, in pixels
    height: int


def clip_keys(key: str, count: int, rule: ClipRule | None) -> list[str]:
    """Returns the keys of the first `count` clips of a file: the file's own key or, if the rule cuts several clips from
    a file, FILE#NUMBER."""
    return [f"{key}#{number}" for number in range(count)] if rule is not None and rule.most > 1 else [key] * count


def file_of(key: str, rule: ClipRule) -> tuple[str, int] | None:
    """Splits the key FILE#NUMBER of a clip into (FILE, NUMBER). Returns None for other keys, and if NUMBER is not below
    `rule.most`."""
    file, _, number = key.rpartition("#")
    numbered = file and number.isdecimal() and number.isascii() and str(int(number)) == number
    return (file, int(number)) if numbered and int(number) < rule.most else None


def describe_rule(rule: Mapping) -> str:
    """Says what a rule cuts, for messages. `rule` has the fields of a `ClipRule`; {} stands for images."""
    if not rule:
        return "images"
    rate = f"{rule['rate']} frames a second" if rule["rate"] else "the frames as stored"
    return f"clips of {rule['frames']} frames, {rate}, at most {rule['most']} of a file"


def check_same_rule(theirs: Mapping, rule: ClipRule | None, option: str) -> None:
    """Raises `ConfigError` if the rules `theirs` and `rule` differ. `theirs` has the fields of the `ClipRule` for which
    the file named by `option` was made; {} stands for images, and so does None as `rule`.

    A clip's key holds only its number in the file, so under another rule the same key would mean other frames.
    """
    ours = {} if rule is None else asdict(rule)
    if dict(theirs) != ours:
        made, here = describe_rule(theirs), describe_rule(ours)
        remedy = "give the same --frames, --fps and --clips to both commands, or make it anew"
        raise ConfigError(f"{option} was made for {made}, and this command reads {here}; {remedy}")


def parse_rule(frames: int | None, rate: str | None, most: int | None) -> ClipRule | None:
    """Makes the `ClipRule` from the values of --frames, --fps and --clips; None without --frames. Raises `ConfigError`
    for values that make no rule."""
    if frames is None:
        for option, value in (("--fps", rate), ("--clips", most)):
            if value is not None:
                raise ConfigError(f"{option} is {value}, and is for clips; give --frames, too, or leave it out")
        return None
    number = parse_rate(rate)
    return ClipRule(frames, "" if number is None else str(number), 1 if most is None else most)


def parse_rate(rate: str | None) -> Fraction | None:
    """Reads --fps, frames a second, as a fraction; None if the option is not given. Raises `ConfigError` unless the
    value is a number above 0 and at most `FASTEST`."""
    try:
        number = Fraction(rate) if rate is not None else None
    except (ValueError, ZeroDivisionError):
        number = Fraction(0)
    if number is not None and not 0 < number <= FASTEST:
        given = f"--fps is {rate!r}; it must be frames a second, above 0 and at most {FASTEST}"
        raise ConfigError(f"{given}, such as 8 or 30000/1001")
    return number


def too_few(frames: int) -> str:
    """Returns the reason, in words, under which `rfjax prepare` counts files that are shorter than one clip of `frames`
    frames."""
    return f"fewer than {frames} frames"


def cut(file: bytes | Path, rule: ClipRule, buckets: Sequence[tuple[int, int]], resample: str) -> list[Clip]:
    """Returns the clips of a file, at least one. Each is resized to cover the bucket (height, width) of the nearest
    aspect, and cropped at the centre.

    The file is decoded only up to the end of its last clip. Raises `CorruptImage` if that part cannot be decoded, and
    `OSError` if the system cannot open the file. Raises `Unfit` for a file shorter than one clip, for a clip that has
    fewer pictures than half its frames, and for what `pictures` and `as_stored` refuse.
    """

    def fit(shown: Shown, number: int) -> _Frame:
        image, how = shown.make()
        rows, columns = bucket = buckets[nearest_bucket(*image.size, buckets)]
        changes = (*how, *name_changes(*image.size, bucket))
        return _Frame(np.asarray(ImageOps.fit(image, (columns, rows), FILTERS[resample])), image.size, changes)

    cut, longer = _cut(file, rule, fit)
    clips = []
    for start, frames in cut:
        notes = [note for frame in frames for note in (*frame.notes, *([REPEATED] if frame.repeated else []))]
        pixels, sides = np.stack([frame.picture for frame in frames]), frames[-1].size
        notes += [LONGER] if longer and len(clips) == len(cut) - 1 else []  # counted once for each file
        clips.append(Clip(pixels, *sides, tuple(dict.fromkeys(notes)), float(start)))
    return clips


def frames_shown(rule: ClipRule, count: int) -> list[int]:
    """Returns the numbers of the `count` frames that stand for a clip: the middle frame alone, or several evenly spread
    frames from the clip's first to its last. Raises `ConfigError` unless the clip has so many frames."""
    if not 1 <= count <= rule.frames:
        raise ConfigError(f"--shown-frames is {count}; it must lie in [1, {rule.frames}], --frames being {rule.frames}")
    return [rule.frames // 2] if count == 1 else np.linspace(0, rule.frames - 1, count).round().astype(int).tolist()


def pick(file: bytes | Path, rule: ClipRule, places: Sequence[int], crop: str) -> list[Frames]:
    """Returns, without resizing them, the frames numbered `places` of each clip that `cut` finds in a file.

    Each frame is cut to its centred square unless `crop` is "none". Raises what `cut` raises.
    """

    def fit(shown: Shown, number: int) -> _Frame:
        if number not in places:
            return _Frame(None, None, ())
        image, how = shown.make()
        return _Frame(crop_unscaled(image, crop), image.size, how)

    cut, _ = _cut(file, rule, fit)
    picked = [[frames[place] for place in places] for _, frames in cut]
    return [Frames(tuple(frame.picture for frame in frames), *frames[-1].size) for frames in picked]


class _Frame(NamedTuple):
    picture: object  # None for a frame that the caller does not want
    size: tuple[int, int] | None  # (width, height) of the file's picture
    notes: tuple[str, ...]  # names of the conversions
    repeated: bool = False  # whether the frame shows the same picture as the frame before it


def _cut(file, rule: ClipRule, fit: Callable[[Shown, int], _Frame]):
    """Decodes a file up to the end of its last clip. Returns (start in seconds, frames) of each clip, and whether the
    file goes on after them. `fit` makes a frame from a picture and the frame's number in its clip."""
    with opened(file) as stream:
        rate = Fraction(rule.rate) if rule.rate else None
        timed = as_stored(pictures(stream)) if rate is None else at_rate(pictures(stream), rate)
        clips, frames, start, distinct, last = [], [], Fraction(0), 0, None
        for time, shown in timed:
            if len(clips) == rule.most:
                return clips, True
            if not frames:
                start, distinct, last = time, 0, None
            repeated = shown is last
            distinct, last = distinct + (not repeated), shown
            reused = repeated and frames[-1].picture is not None
            frame = frames[-1] if reused else fit(shown, len(frames))
            frames.append(frame._replace(repeated=repeated))
            if len(frames) == rule.frames:
                if 2 * distinct < rule.frames:
                    raise Unfit(SLOW, f"{distinct} pictures for {rule.frames} frames from {float(start):g} s on")
                clips.append((start, frames))
                frames = []
        if not clips:
            raise Unfit(too_few(rule.frames), f"it has {len(frames)}")
        return clips, bool(frames)


def at_rate(shown: Iterator[Shown], rate: Fraction) -> Iterator[tuple[Fraction, Shown]]:
    """Yields (time, the picture on the screen at that time) at 0, 1/rate, 2/rate, ... seconds.

    A picture that begins at most `EARLY` of a frame's duration after such a time counts as on the screen at that time.
    The last picture stays as long as the file says or, if the file does not say, as long as the picture before it.
    """
    number, current, lasted = 0, None, 1 / rate
    for each in shown:
        while current is not None and (number + EARLY) / rate < each.start:
            yield number / rate, current
            number += 1
        lasted = each.start - current.start if current is not None else lasted
        current = each
    if current is not None:
        end = current.start + (current.lasts or lasted)
        while (number + EARLY) / rate < end:
            yield number / rate, current
            number += 1


def as_stored(shown: Iterator[Shown]) -> Iterator[tuple[Fraction, Shown]]:
    """Yields (time, picture) of all pictures. Raises `Unfit` if the times between neighbouring pictures differ by more
    than the rounding of stored times."""
    before = least = most = None
    for each in shown:
        if before is not None:
            apart = each.start - before.start
            least, most = (apart, apart) if least is None else (min(least, apart), max(most, apart))
            if most - least > each.tick:
                apart = f"pictures are {float(least):.4g} to {float(most):.4g} s apart"
                raise Unfit(VARIABLE, f"{apart}; --fps gives frames at one rate")
        before = each
        yield each.start, each
