"""Keys that a user gives, of images to drop or to add captions to: which of them name no image of the source.

A folder, Parquet files and a TFDS data set know the keys of their images beforehand. Tars do not: which keys they have
is known when all of them are read.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path

from rfjax.inputs.walk import describe
from rfjax.prepare.joined_captions import JoinedSource
from rfjax.prepare.progress import say
from rfjax.prepare.sources import Source

_REASON = "keys of {} that name no image"


def without_image(given: Iterable[str], keys: Iterable[str]) -> tuple[str, ...]:
    """The given keys that are not among the keys of a source's images, in their order."""
    rest = dict.fromkeys(given)
    for key in keys:
        rest.pop(key, None)
    return tuple(rest)


def known_before(source: Source, given: Mapping[str, Collection[str]]) -> dict[str, tuple[str, ...]]:
    """By option, the given keys that name no image of a source that knows its keys; empty for any other source."""
    if getattr(source, "keys", None) is None:
        return {}
    return {option: found for option, keys in given.items() if keys and (found := without_image(keys, source.keys))}


def known_after(source: Source, folder: Path, parts: Sequence[str], dropped_keys: Collection[str]) -> tuple[str, ...]:
    """The keys to drop that no part dropped, of a source that does not know its keys.

    `parts` are the names of the finished parts in `folder`. None are told where a part's list of drops is gone.
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
    """The keys of joined captions that no image has, of a source that does not know its keys.

    None are told where another command read a part, nor of captions that were written for this very source.
    """
    if not isinstance(source, JoinedSource) or source.keys is not None:
        return ()
    if source.captions.listing == source.listing or len(source.met) < len(source.sizes):
        return ()
    return without_image(source.captions.all, (key for met in source.met.values() for key in met))


def say_unmet(unmet: Mapping[str, Collection[str]]) -> None:
    """A line for each option that gives keys which name no image, with the first of them."""
    for line in describe({_REASON.format(option): keys for option, keys in unmet.items() if keys}, most=5):
        say(f"noticed: {line}")


def noticing(source: Source, unmet: Mapping[str, Sequence[str]]) -> Source:
    """The source with keys that name no image, by option, among what it says may be a mistake."""
    found = {_REASON.format(option): tuple(keys) for option, keys in unmet.items() if keys}
    if not found:
        return source
    if isinstance(source, JoinedSource):
        return dataclasses.replace(source, source=noticing(source.source, unmet))
    return dataclasses.replace(source, noticed={**source.noticed, **found})
