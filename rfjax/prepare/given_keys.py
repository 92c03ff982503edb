"""Finds the keys given by the user, to drop images or to add captions, that name no image of the source.

For a folder, Parquet files and a TFDS data set the images' keys are known beforehand. For tars they are known only once
all tars have been read.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path

from rfjax.inputs.walk import describe
from rfjax.prepare.clips import ClipRule, clip_keys
from rfjax.prepare.joined_captions import JoinedSource
from rfjax.prepare.progress import say
from rfjax.prepare.sources import Source

_REASON = "keys of {} that name no image"


def without_image(given: Iterable[str], keys: Iterable[str]) -> tuple[str, ...]:
    """Returns the `given` keys that are not in `keys`, the keys of a source's images. Their order is kept."""
    rest = dict.fromkeys(given)
    for key in keys:
        rest.pop(key, None)
    return tuple(rest)


def known_before(
    source: Source, given: Mapping[str, Collection[str]], clips: ClipRule | None = None
) -> dict[str, tuple[str, ...]]:
    """Returns {option: its keys that name neither an image nor a clip}; empty for a source that does not know its keys
    beforehand."""
    if getattr(source, "keys", None) is None:
        return {}
    found = {}
    for option, keys in given.items():
        known = source.keys
        if clips is not None and clips.most > 1:
            known = (name for key in known for name in (key, *clip_keys(key, clips.most, clips)))
        if keys and (unmet := without_image(keys, known)):
            found[option] = unmet
    return found


def known_after(source: Source, folder: Path, parts: Sequence[str], dropped_keys: Collection[str]) -> tuple[str, ...]:
    """Returns those of `dropped_keys` that named no image of any part, which is known once all parts are finished.

    `parts` are the names of the finished parts in `folder`. The result is empty for a source that knows its keys before
    parts are read, and if a part's list of drops cannot be read.
    """
    if getattr(source, "keys", None) is not None or not dropped_keys:
        return ()
    rest = dict.fromkeys(dropped_keys)
    try:
        for name in parts:
            with open(folder / f"{name}.dropped.jsonl", encoding="utf-8") as rows:
                for row in rows:
                    rest.pop(json.loads(row)["key"], None)
    except (OSError, ValueError, LookupError, TypeError):
        return ()
    return tuple(rest)


def captions_known_after(source: Source) -> tuple[str, ...]:
    """Returns the keys of joined captions that no image has.

    The result is empty in three cases: the source knew its keys before it was read, another command read some of its
    parts, or the captions were written for exactly this source.
    """
    if not isinstance(source, JoinedSource) or source.keys is not None:
        return ()
    if source.captions.listing == source.listing or len(source.met) < len(source.sizes):
        return ()
    return without_image(source.captions.all, (key for met in source.met.values() for key in met))


def say_unmet(unmet: Mapping[str, Collection[str]]) -> None:
    """Prints a line for each option with keys that name no image: their number and the first of them."""
    for line in describe({_REASON.format(option): keys for option, keys in unmet.items() if keys}, most=5):
        say(f"noticed: {line}")


def noticing(source: Source, unmet: Mapping[str, Sequence[str]]) -> Source:
    """Returns the source with a note for each option in `unmet` ({option: keys that name no image}) added to what was
    noticed about the source."""
    found = {_REASON.format(option): tuple(keys) for option, keys in unmet.items() if keys}
    if not found:
        return source
    if isinstance(source, JoinedSource):
        return dataclasses.replace(source, source=noticing(source.source, unmet))
    return dataclasses.replace(source, noticed={**source.noticed, **found})
