"""Gets captions from a record's columns: as stored, or made from a class as in the SD3 paper."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rfjax.errors import ConfigError
from rfjax.inputs.json_files import parse_json
from rfjax.inputs.text import decode_text, drop_nuls, read_text

NUL_REMOVED = "caption with NUL removed"
# Columns that `joined_captions` adds to a record: the record's captions, and those of each clip cut from its file
JOINED, JOINED_OF_CLIPS = "joined synthetic captions", "joined synthetic captions of its clips"
TEMPLATE = "a photo of a {}"  # Esser et al. 2024, section 5.1, for ImageNet's classes


@dataclass(frozen=True)
class CaptionColumns:
    """The columns that captions come from. A dotted name, such as `captions.text`, names a nested column."""

    original: str = "caption"
    synthetic: str | None = None
    label: str | None = None  # the column of the class, if captions are made from the class's names
    # Label as text -> names of the class. If this is empty, the label itself is the name.
    class_names: Mapping[str, Sequence[str]] = field(default_factory=dict)
    template: str = TEMPLATE

    def of(self, metadata: Mapping[str, object]) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Returns a record's (original, synthetic) captions. With `label`, each name of the record's class gives one
        original caption.

        Raises `NoText` for a column that holds no text, and `UndecodableText` for text in an unknown encoding.
        """
        synthetic = texts(column(metadata, self.synthetic)) if self.synthetic else ()
        if self.label is None:
            return texts(column(metadata, self.original)), synthetic
        label = column(metadata, self.label)
        if is_missing(label):
            return (), synthetic
        label = _text(label)
        names = self.class_names.get(label, () if self.class_names else (label,))
        return tuple(self.template.format(name) for name in map(to_words, names) if name), synthetic


def column(metadata: Mapping[str, object], name: str) -> object:
    """Returns a column's value; None if the record lacks the column. The name `captions.text` means `text` in the
    column `captions` or, if that is a list, the list of `text` in each of its items."""
    if name in metadata:
        return metadata[name]
    value: object = metadata
    for part in name.split("."):
        if isinstance(value, list):
            value = [item.get(part) for item in value if isinstance(item, Mapping)]
        elif isinstance(value, Mapping):
            value = value.get(part)
        else:
            return None
    return value


class NoText(ValueError):
    """Raised if a column for captions or classes holds a value that is no text; the message names value and type."""


def texts(value: object) -> tuple[str, ...]:
    """Reads the captions in a column's value: one caption, several, or JSON text of several.

    Leaves out empty captions and repetitions. Raises `NoText` for other values, such as a list in a list or a bool.
    """
    found = (_text(item) for item in _items(value) if not is_missing(item))
    return tuple(dict.fromkeys(text for text in found if text))


def _items(value: object) -> list:
    """Lists the items of a column's value that may be captions, unconverted."""
    if isinstance(value, (str, bytes)) and clean(value)[:1] in ("[", "{"):
        value = _from_json(clean(value))
    if isinstance(value, Mapping):  # a sequence of texts, as TFDS gives it
        value = value.get("text", value.get("raw"))
    several = value if isinstance(value, (list, tuple)) else [value]
    return [item["text"] if isinstance(item, Mapping) and "text" in item else item for item in several]


def is_missing(value: object) -> bool:
    """Whether a cell is empty: None, or NaN, which pandas writes for a missing text."""
    return value is None or isinstance(value, float) and value != value


def _text(value: object) -> str:
    """Converts a caption or a class to text. A whole float becomes an int: pandas stores ints beside NaN as floats."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, (str, bytes, int, float)):
        raise NoText(f"{str(value)[:60]!r} is of type {type(value).__name__}")
    return clean(value)


def _from_json(text: str) -> object:
    """Reads a text that is captions in JSON, such as `["a cat", "one cat"]`; returns other texts unchanged."""
    try:
        value = parse_json(text, object)
    except ValueError:
        return text
    several = value if isinstance(value, list) else [value]
    if isinstance(value, dict):
        value = next((value[name] for name in ("caption", "text", "raw") if name in value), None)
        return text if value is None else value
    whole = several and all(isinstance(item, str) or isinstance(item, dict) and "text" in item for item in several)
    return value if whole else text


def reading_notes(columns: CaptionColumns, metadata: Mapping[str, object]) -> list[str]:
    """Returns notes on how a record's captions had to be read: in an encoding other than UTF-8, or with zero characters
    removed."""
    names = (columns.label or columns.original, columns.synthetic)
    values = [column(metadata, name) for name in names if name]
    return sorted({note for value in values for note in notes_of(value)})


def notes_of(value: object) -> set[str]:
    """Returns the notes of `reading_notes` for one column's value."""
    notes = set()
    for item in (value, *_items(value)):
        if isinstance(item, bytes):
            found = decode_text(item, without_nuls=True)
            notes |= {f"caption read as {found.encoding}"} if found.encoding != "utf-8" else set()
        if found.nuls if isinstance(item, bytes) else isinstance(item, str) and "\0" in item:
            notes.add(NUL_REMOVED)
    return notes


def clean(value: object) -> str:
    """Returns a value as text that can be stored: decoded and stripped, without zero characters or a byte-order mark,
    and with "?" for each half of a surrogate pair.

    Raises `UndecodableText` for bytes whose encoding cannot be recognised.
    """
    text = decode_text(value, without_nuls=True).text if isinstance(value, bytes) else str(value)
    return drop_nuls(text.encode("utf-8", "replace").decode())[0].strip().strip("\ufeff").strip()


def to_words(name: str) -> str:
    """Writes a class's name as words: `golden_retriever` becomes "golden retriever"."""
    return clean(name).replace("_", " ").strip()


def read_class_names(path: str | Path) -> dict[str, tuple[str, ...]]:
    """Reads {class: names} from JSON, {"n01440764": ["tench", "Tinca tinca"]}, or from ImageNet's
    LOC_synset_mapping.txt, with lines `n01440764 tench, Tinca tinca`.

    Raises `ConfigError` for any other file, for a class without a name or with two rows, and if there is no class.
    """
    path = Path(path)
    try:
        text = read_text(path, "--class-names")
        found: dict[str, tuple[str, ...]] = {}
        for where, label, names in _class_rows(text, path.suffix == ".json"):
            if label in found:
                raise ValueError(f"{where}: the class {label!r} occurs twice; write all its names in one place")
            if not names:
                raise ValueError(f"{where}: the class {label!r} has no name")
            found[label] = names
        if not found:
            raise ValueError("it names no class")
        return found
    except (OSError, ValueError, AttributeError) as error:
        form = 'it has lines `class name, other name`, or is JSON as {"class": ["name", "other name"]}'
        raise ConfigError(f"--class-names {path} cannot be read: {error}; {form}") from None


def _class_rows(text: str, is_json: bool) -> Iterator[tuple[str, str, tuple[str, ...]]]:
    """Yields (place in the file, class, its names)."""
    if is_json:
        for label, names in parse_json(text, dict[str, str | list[str]]).items():
            yield "its content", label, texts(names)
        return
    for number, line in enumerate(text.splitlines(), 1):
        label, _, names = line.strip().replace("\t", " ", 1).partition(" ")
        if label:
            yield f"line {number}", label, tuple(name.strip() for name in names.split(",") if name.strip())
