"""Reads what a command line says about a source: where it is, its parts, which images to read, and their captions."""

from __future__ import annotations

import argparse
import dataclasses
import string
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

from rfjax.errors import ConfigError
from rfjax.inputs.json_files import read_json
from rfjax.inputs.text import read_text
from rfjax.prepare import captions, joined_captions
from rfjax.prepare.captions import TEMPLATE, CaptionColumns
from rfjax.prepare.clips import ClipRule, check_same_rule, parse_rule
from rfjax.prepare.filters import Filter, parse_filter
from rfjax.prepare.libraries import require
from rfjax.prepare.options import check_range
from rfjax.prepare.sources import CAPTION_COLUMNS, CLIPS, IMAGES, Source, open_source


@dataclass(frozen=True, kw_only=True)
class Reading:
    """Values from a command line, as given. A field has the name of its command-line argument."""

    source: str
    shard_size: int
    filter: Sequence[str] = ()
    drop_keys: str | Path | None = None
    caption_column: str | None = None
    synthetic_column: str | None = None
    synthetic_captions: str | Path | None = None
    label_column: str | None = None
    class_names: str | Path | None = None
    template: str = TEMPLATE
    frames: int | None = None  # of a clip; None: images are read
    fps: str | None = None
    clips: int | None = None

    def clip_rule(self) -> ClipRule | None:
        """Returns the rule by which clips are cut from files, or None if images are read."""
        return parse_rule(self.frames, self.fps, self.clips)

    def require_video(self) -> None:
        """Raises `ConfigError` if clips are asked for and the library that reads them is missing."""
        if self.clip_rule() is not None:
            require("av", "reading clips needs PyAV", extra="video")

    def filters(self) -> tuple[Filter, ...]:
        """Parses the comparisons of --filter."""
        return tuple(parse_filter(text) for text in self.filter)

    def dropped_keys(self) -> dict[str, str]:
        """Reads {key: reason} from the file of --drop-keys: a key on each line, and perhaps a reason after a tab.
        Returns {} without the option. Raises `ConfigError` as `check_drop_list` does."""
        if self.drop_keys is None:
            return {}
        check_drop_list(Path(self.drop_keys), self.clip_rule())
        lines = read_text(self.drop_keys, "--drop-keys").split(
            "\n"
        )  # not splitlines: it also splits at characters that a key may contain
        rows = [line.partition("\t") for line in lines]
        return {key: reason or "listed" for key, _, reason in rows if key}


class DropList(TypedDict, total=False):
    """What is read of the .json that `rfjax duplicates` writes beside its list of keys: how clips were cut."""

    clips: dict[str, object]


def check_drop_list(path: Path, rule: ClipRule | None) -> None:
    """Raises `ConfigError` if `rfjax duplicates` made the list of keys from clips that are cut by another rule than
    `rule`, or from images where clips are read, or the reverse. A list that is no .tsv, or without its .json beside it,
    is not checked."""
    beside = path.with_name(path.name.removesuffix(".tsv") + ".json")
    if path.suffix == ".tsv" and beside.is_file():
        facts = read_json(beside, DropList, error=ConfigError, remedy="move it away, or make the list anew")
        check_same_rule(facts.get("clips", {}), rule, f"--drop-keys {path}")


def read_keys(path: str | Path | None, option: str) -> frozenset[str]:
    """Reads the keys in the file of an option, one on each line. If `path` is None, there are none. Raises
    `ConfigError` for a file without keys."""
    if path is None:
        return frozenset()
    keys = frozenset(filter(None, read_text(path, option).split("\n")))  # not splitlines: a key may have other breaks
    if not keys:
        raise ConfigError(f"{option} {path} has no keys; write one on each line, or leave it out")
    return keys


def fields_given(kind: type, args: argparse.Namespace) -> dict:
    """Returns {name: value} of the arguments that are fields of the dataclass `kind`."""
    names = {field.name for field in dataclasses.fields(kind)}
    return {name: value for name, value in vars(args).items() if name in names}


def check_template(template: str) -> None:
    """Raises `ConfigError` unless a template of captions has exactly one `{}`, where the class's name goes."""
    try:
        places = [place[1:] for place in string.Formatter().parse(template) if place[1] is not None]
    except ValueError:  # a brace alone
        places = []
    if places != [("", "", None)]:
        braces = "it needs one {} where the class's name goes, and a brace of the caption is written twice, {{ or }}"
        raise ConfigError(f"--template is {template!r}; {braces}")


def open_captioned(reading: Reading) -> tuple[Source, CaptionColumns]:
    """Opens the source, joins the captions of --synthetic-captions, and finds the columns that captions come from.

    Raises `ConfigError` for options that contradict the source or each other.
    """
    check_range(reading, ("shard_size",), 1)
    check_template(reading.template)
    suffixes = IMAGES if reading.frames is None else CLIPS
    source = open_source(
        reading.source, shard_size=reading.shard_size, caption_column=reading.caption_column, suffixes=suffixes
    )
    _check_columns(reading, source)
    label = reading.label_column or source.label
    if reading.class_names is not None and label is None:
        lack = f"--class-names is {reading.class_names}, and no column holds one; name it with --label-column"
        raise ConfigError(lack)
    given = captions.read_class_names(reading.class_names) if reading.class_names is not None else {}
    names = given
    known = getattr(source, "class_columns", {}).get(label) or (source.class_names if label == source.label else None)
    if known:  # the data set's classes are numbers
        names = {str(number): given.get(name, (name,)) for number, name in enumerate(known)}
    original = reading.caption_column or _default_column(reading, source, label)
    synthetic = reading.synthetic_column
    if reading.synthetic_captions is not None:
        if synthetic is not None:
            both = f"--synthetic-column={synthetic} and --synthetic-captions={reading.synthetic_captions}"
            raise ConfigError(f"{both} both give synthetic captions; give one of the two")
        written, rule = joined_captions.open_captions(reading.synthetic_captions), reading.clip_rule()
        if written.rule is not None:
            check_same_rule(written.rule, rule, f"--synthetic-captions {reading.synthetic_captions}")
        source = joined_captions.JoinedSource(source, written, rule)
        synthetic = captions.JOINED
    return source, CaptionColumns(original, synthetic, label, names, reading.template)


def _check_columns(reading, source) -> None:
    """Raises `ConfigError` if an option names a column that a source of Parquet files or TFDS lacks."""
    if source.kind not in ("tfds", "parquet"):
        return
    for option in ("caption_column", "synthetic_column", "label_column"):
        name = getattr(reading, option)
        if name is not None and not {name, name.partition(".")[0]} & set(source.columns):
            given = f"--{option.replace('_', '-')} is {name!r}, and {reading.source} has no such column"
            raise ConfigError(f"{given}; it has {', '.join(source.columns) or 'none that all its files share'}")


def _default_column(reading, source, label):
    """Returns the column of captions to use if --caption-column is not given. Raises `ConfigError` for a TFDS data set
    without captions, unless an option says where they come from."""
    if source.kind not in ("tfds", "parquet"):
        return "caption"
    found = next((name for name in CAPTION_COLUMNS if name in source.columns), None)
    elsewhere = label or reading.caption_column or reading.synthetic_column or reading.synthetic_captions
    if found is None and not elsewhere and source.kind == "tfds":
        lack = f"{reading.source} has neither a caption ({', '.join(CAPTION_COLUMNS)}) nor a class"
        raise ConfigError(f"{lack}; name the column with --caption-column, or give --synthetic-captions")
    return found or "caption"
