"""What a command line asks of a source: where it is, its parts, which images are read, and what captions they have."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rfjax.errors import ConfigError
from rfjax.prepare import captions, joined_captions
from rfjax.prepare.captions import TEMPLATE, CaptionColumns
from rfjax.prepare.filters import Filter, parse_filter
from rfjax.prepare.sources import Source, open_source


@dataclass(frozen=True, kw_only=True)
class Reading:
    """Values of the options of these names, as they were given."""

    source: str
    shard_size: int
    filter: Sequence[str] = ()
    drop_keys: str | None = None
    caption_column: str | None = None
    synthetic_column: str | None = None
    synthetic_captions: str | None = None
    label_column: str | None = None
    class_names: str | None = None
    template: str = TEMPLATE

    def filters(self) -> tuple[Filter, ...]:
        """The comparisons of --filter."""
        return tuple(parse_filter(text) for text in self.filter)

    def dropped_keys(self) -> dict[str, str]:
        """Key -> reason of the file of --drop-keys, which has a key on each line and after a tab perhaps a reason."""
        if not self.drop_keys:
            return {}
        try:
            text = Path(self.drop_keys).read_text(encoding="utf-8-sig")
        except (OSError, ValueError) as error:
            raise ConfigError(f"--drop-keys {self.drop_keys} cannot be read: {error}") from None
        rows = [line.removesuffix("\r").partition("\t") for line in text.split("\n")]  # other ends may stand in a name
        return {key: reason or "listed" for key, _, reason in rows if key}


def given(kind: type, args: argparse.Namespace) -> dict:
    """The values of a command line that are fields of a dataclass, by name."""
    names = {field.name for field in dataclasses.fields(kind)}
    return {name: value for name, value in vars(args).items() if name in names}


def open_captioned(reading: Reading) -> tuple[Source, CaptionColumns]:
    """The source, and which of its columns captions come from; checked before anything is loaded."""
    if reading.shard_size < 1:
        raise ConfigError(f"--shard-size is {reading.shard_size}; it must be at least 1")
    if reading.template.count("{}") != 1:
        raise ConfigError(f"--template is {reading.template!r}; it needs one {{}} where the class's name goes")
    source = open_source(reading.source, shard_size=reading.shard_size, caption_column=reading.caption_column)
    label = reading.label_column or source.label
    if reading.class_names and label is None:
        raise ConfigError("--class-names names classes, and no column holds one; name it with --label-column")
    given = captions.read_class_names(reading.class_names) if reading.class_names else {}
    names = given
    if source.class_names and label == source.label:  # the data set's classes are numbers
        names = {str(number): given.get(name, (name,)) for number, name in enumerate(source.class_names)}
    original = reading.caption_column or _default_column(reading, source, label)
    synthetic = reading.synthetic_column
    if reading.synthetic_captions:
        if synthetic:
            raise ConfigError(
                "--synthetic-column and --synthetic-captions both give synthetic captions; give one of the two"
            )
        source = joined_captions.JoinedSource(source, joined_captions.open_captions(reading.synthetic_captions))
        synthetic = joined_captions.COLUMN
    columns = CaptionColumns(
        original=original, synthetic=synthetic, label=label, class_names=names, template=reading.template
    )
    return source, columns


def _default_column(reading, source, label):
    """Where captions are looked for unless --caption-column says."""
    if source.kind != "tfds":
        return "caption"
    from rfjax.prepare.sources.tfds import CAPTIONS

    found = next((name for name in CAPTIONS if name in source.columns), None)
    elsewhere = label or reading.caption_column or reading.synthetic_column or reading.synthetic_captions
    if found is None and not elsewhere:
        raise ConfigError(
            f"{reading.source} has neither a caption ({', '.join(CAPTIONS)}) nor a class; name the column with "
            "--caption-column, or give --synthetic-captions"
        )
    return found or "caption"
