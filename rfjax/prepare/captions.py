"""Captions from a record's columns: as they are given, or made of a class as the SD3 paper made them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rfjax.errors import ConfigError

TEMPLATE = "a photo of a {}"  # Esser et al. 2024, section 5.1, of ImageNet's classes


@dataclass(frozen=True)
class CaptionColumns:
    """Which columns hold what; a dotted name goes into a nested column."""

    original: str = "caption"
    synthetic: str | None = None
    label: str | None = None  # a class; the caption is then made of its name
    class_names: Mapping[str, Sequence[str]] = field(default_factory=dict)  # label, as text -> names
    template: str = TEMPLATE

    def of(self, metadata: Mapping[str, object]) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """(original, synthetic) captions of a record; empty where it has none.

        Every name of a class gives a caption, of which training draws one.
        """
        synthetic = texts(column(metadata, self.synthetic)) if self.synthetic else ()
        if self.label is None:
            return texts(column(metadata, self.original)), synthetic
        label = column(metadata, self.label)
        if label is None:
            return (), synthetic
        label = clean(label)
        names = self.class_names.get(label, () if self.class_names else (label,))
        return tuple(self.template.format(spoken(name)) for name in names if spoken(name)), synthetic


def column(metadata: Mapping[str, object], name: str) -> object:
    """A column's value, or None; `captions.text` is `text` of `captions`, in each where it is a list."""
    if name in metadata:
        return metadata[name]
    value: object = metadata
    for part in name.split("."):
        if isinstance(value, list):
            value = [each.get(part) for each in value if isinstance(each, Mapping)]
        elif isinstance(value, Mapping):
            value = value.get(part)
        else:
            return None
    return value


def texts(value: object) -> tuple[str, ...]:
    """The captions that a column holds, one or several, each once and without those that say nothing."""
    if isinstance(value, Mapping):  # TFDS gives a sequence of texts so
        value = value.get("text", value.get("raw"))
    several = value if isinstance(value, (list, tuple)) else [value]
    found = (
        clean(each["text"] if isinstance(each, Mapping) and "text" in each else each)
        for each in several
        if each is not None
    )
    return tuple(dict.fromkeys(text for text in found if text))


def clean(value: object) -> str:
    """Text that can be stored: stripped; what is not UTF-8, or half a surrogate pair, is replaced."""
    text = value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
    return text.encode("utf-8", "replace").decode().replace("\0", " ").strip()


def spoken(name: str) -> str:
    """A class's name as it is said: `golden_retriever` is "golden retriever"."""
    return clean(name).replace("_", " ").strip()


def read_class_names(path: str | Path) -> dict[str, tuple[str, ...]]:
    """Names by class, from JSON ({"n01440764": ["tench", "Tinca tinca"]}) or lines `n01440764 tench, Tinca tinca`,
    as ImageNet's LOC_synset_mapping.txt has them. `ConfigError` for any other file."""
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
        if path.suffix == ".json":
            return {
                str(key): texts(value if isinstance(value, (str, list)) else None)
                for key, value in json.loads(text).items()
            }
        rows = [line.split(maxsplit=1) for line in text.splitlines() if line.strip()]
        return {label: tuple(name.strip() for name in names.split(",") if name.strip()) for label, names in rows}
    except (OSError, ValueError, AttributeError) as error:
        raise ConfigError(
            f"--class-names {path} cannot be read: {error}; it has lines `class name, other name`, or is JSON"
        ) from None
