"""Decides what a record of a source gives: an image, the clips cut from it, or the reason why it is left out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from rfjax.data.prepared.manifest_facts import bucket_name
from rfjax.inputs.text import UndecodableText
from rfjax.prepare import clips, images
from rfjax.prepare.captions import JOINED_OF_CLIPS, NoText, reading_notes
from rfjax.prepare.clip_files import Unfit
from rfjax.prepare.filters import first_refusal
from rfjax.prepare.images import CorruptImage, Picture
from rfjax.prepare.part import CORRUPT, NO_CAPTION, NO_TEXT, UNDECODABLE, UNREADABLE, listed
from rfjax.prepare.recipe import Recipe
from rfjax.prepare.sources import Drop, Record

Decoded = TypeVar("Decoded")


@dataclass(frozen=True)
class Kept:
    """An image or a clip that goes into the shard."""

    key: str
    picture: Picture
    original: tuple[str, ...]
    synthetic: tuple[str, ...]
    done: float | int  # how much of the part has been read up to here
    notes: tuple[str, ...] = ()  # what was done to read its captions; counted together with conversions of pictures
    record: str = ""  # the record's key, which decides the split: clips of one file are never in two splits

    def __post_init__(self):
        object.__setattr__(self, "record", self.record or self.key)

    @property
    def bucket(self) -> str:
        return bucket_name(self.picture.pixels.shape[:-1])


def decoded(record: Record, decode: Callable[[bytes | Path], Decoded], *, of_clips: bool = False) -> Decoded | Drop:
    """Returns what `decode` makes of a record's image or file, or a `Drop` with the reason why it cannot be used.

    If `decode` raises `OSError`, the error is raised again for an image, whose bytes the source has already read. With
    `of_clips` the function returns a `Drop`, because a file of clips may be read only now.
    """
    try:
        return decode(record.image)
    except CorruptImage as error:
        return Drop(record.key, CORRUPT, str(error), record.done)
    except Unfit as error:
        return Drop(record.key, error.reason, str(error), record.done)
    except OSError as error:
        if not of_clips:
            raise
        return Drop(record.key, UNREADABLE, f"{type(error).__name__}: {error}", record.done)


def judge(record: Record | Drop, recipe: Recipe) -> Sequence[Kept | Drop]:
    """Decodes a record. Returns one `Kept` for an image or, if the recipe has a rule for clips, one for each clip. A
    `Drop` with the reason replaces each image, clip or file that is left out. The cheapest checks come first."""
    if isinstance(record, Drop):
        return [record]
    if record.key in recipe.dropped_keys:
        return [Drop(record.key, listed(recipe.dropped_keys[record.key]), "", record.done)]
    try:
        original, synthetic = recipe.columns.of(record.metadata)
        notes = tuple(reading_notes(recipe.columns, record.metadata))
    except UndecodableText as error:
        return [Drop(record.key, UNDECODABLE, str(error), record.done)]
    except NoText as error:
        return [Drop(record.key, NO_TEXT, str(error), record.done)]
    of_clips = record.metadata.get(JOINED_OF_CLIPS, {})
    if not original and not synthetic and not any(of_clips.values()):
        return [Drop(record.key, NO_CAPTION, "", record.done)]
    if reason := first_refusal((test for test in recipe.filters if not test.measured), record.metadata):
        return [Drop(record.key, reason, "", record.done)]
    if recipe.clips is None:
        pictures = decoded(record, lambda file: [images.decode(file, recipe.buckets, recipe.resample)])
    else:
        cut = lambda file: clips.cut(file, recipe.clips, recipe.buckets, recipe.resample)  # noqa: E731
        pictures = decoded(record, cut, of_clips=True)
    if isinstance(pictures, Drop):
        return [pictures]
    if reason := first_refusal((test for test in recipe.filters if test.measured), pictures[0].columns):
        return [Drop(record.key, reason, f"{pictures[0].width}x{pictures[0].height}", record.done)]
    found: list[Kept | Drop] = []
    for number, key in enumerate(clips.clip_keys(record.key, len(pictures), recipe.clips)):
        written = of_clips.get(number) or synthetic
        if key in recipe.dropped_keys:
            found.append(Drop(key, listed(recipe.dropped_keys[key]), "", record.done))
        elif not original and not written:
            found.append(Drop(key, NO_CAPTION, "", record.done))
        else:
            found.append(Kept(key, pictures[number], original, written, record.done, notes, record.key))
    return found
