"""Finds keys that the user gave (to drop images, to choose validation images, to add captions) and no image has.

For a folder, Parquet files and a TFDS data set the images' keys are known beforehand. For tars they are known only once
all tars have been read.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path

from rfjax.inputs.walk import describe
from rfjax.prepare.clips import ClipRule, file_of
from rfjax.prepare.joined_captions import JoinedSource
from rfjax.prepare.progress import say
from rfjax.prepare.sources import Source

_REASON = "keys of {} that name no image"
OF_CLIPS = ("--drop-keys", "--synthetic-captions")  # options whose keys may be those of clips


def _by_file(keys: Iterable[str], clips: ClipRule | None) -> dict[str, list[str]]:
    """Returns {FILE: those of `keys` that are FILE#NUMBER by the rule `clips`}; {} unless the rule cuts
    several clips from a file."""
    files: dict[str, list[str]] = {}
    for key in keys if clips is not None and clips.most > 1 else ():
        if (clip := file_of(key, clips)) is not None:
            files.setdefault(clip[0], []).append(key)
    return files


def without_image(given: Iterable[str], keys: Iterable[str], clips: ClipRule | None = None) -> tuple[str, ...]:
    """Returns, in their order, the `given` keys that name nothing in a source. `keys` are the keys of the source's
    images or files. A key FILE#NUMBER names something if FILE is in `keys` and the rule `clips` may cut a clip
    NUMBER."""
    rest = dict.fromkeys(given)
    files = _by_file(rest, clips)
    for key in keys:
        for name in (key, *files.get(key, ())):
            rest.pop(name, None)
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
        rule = clips if option in OF_CLIPS else None
        if keys and (unmet := without_image(keys, source.keys, rule)):
            found[option] = unmet
    return found


def known_after(
    source: Source,
    folder: Path,
    parts: Sequence[str],
    dropped_keys: Collection[str],
    clips: ClipRule | None = None,
) -> tuple[str, ...]:
    """Returns the keys of `dropped_keys` by which no part dropped anything; to be called when all parts are finished.

    `parts` are the names of the finished parts in `folder`. If the source knew its keys before it was read,
    `known_before` has already found the keys without an image or file. Then only the keys of clips are returned, those
    whose file has no such clip. The result is empty if a part's list of drops cannot be read.
    """
    rest = dict.fromkeys(dropped_keys)
    if getattr(source, "keys", None) is not None:
        numbered = {key: clip[0] for key in rest if clips is not None and (clip := file_of(key, clips))}
        dropped_whole = {file for file in numbered.values() if file in rest}
        unmet = set(without_image(numbered, source.keys, clips))  # reported before the work
        rest = {key: None for key, file in numbered.items() if file not in dropped_whole and key not in unmet}
    if not rest:
        return ()
    of_files = _by_file(rest, clips)
    try:
        for name in parts:
            with open(folder / f"{name}.dropped.jsonl", encoding="utf-8") as rows:
                for row in rows:
                    dropped = json.loads(row)["key"]
                    for key in (dropped, *of_files.get(dropped, ())):  # a file dropped whole has no row for each clip
                        rest.pop(key, None)
    except (OSError, ValueError, LookupError, TypeError):
        return ()
    return tuple(rest)


def captions_known_after(source: Source) -> tuple[str, ...]:
    """Returns the keys of joined captions that no image has.

    The result is empty in four cases: the source has no joined captions, it knew its keys before it was read, another
    command read some of its parts, or the captions were written for exactly this source.
    """
    if not isinstance(source, JoinedSource) or source.keys is not None:
        return ()
    if source.captions.listing == source.listing or len(source.met) < len(source.sizes):
        return ()
    return without_image(source.captions.all, (key for met in source.met.values() for key in met))


def say_unmet(unmet: Mapping[str, Collection[str]]) -> None:
    """Prints a line for each option with keys that name no image: the number of such keys, and the first five."""
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
