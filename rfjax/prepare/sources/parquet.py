"""Parquet files with a column of encoded images, as bytes or as Hugging Face's {bytes, path}, and other columns."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from rfjax.errors import ConfigError, RfjaxError
from rfjax.inputs.json_files import parse_json
from rfjax.prepare.libraries import require
from rfjax.prepare.sources import CAPTION_COLUMNS, CLIPS, IMAGES, Drop, Record, files_of, listing_hash, others_in

IMAGE_COLUMNS = ("image", "jpg", "image_bytes", "bytes", "img")
CLIP_COLUMNS = ("video", "mp4", "clip", "webm", "gif", "webp", "bytes")
ROWS_AT_ONCE = 64
_READ = "is read beside images; then give folder:FOLDER, or take the Parquet file out"


class Span(NamedTuple):
    """One part of a Parquet source: a range of rows in a file, and the name of the file's column of images."""

    path: Path
    start: int
    end: int
    column: str


@dataclass(frozen=True)
class ParquetSource:
    location: str
    listing: str
    columns: tuple[str, ...]  # the columns that all files have
    spans: tuple[Span, ...]  # one for each part
    class_columns: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # column -> names by class number
    passed_over: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    label: str | None = None
    class_names: tuple[str, ...] | None = None
    kind: str = "parquet"
    noticed: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    @property
    def sizes(self) -> list[int]:
        return [span.end - span.start for span in self.spans]

    @property
    def keys(self) -> Iterator[str]:
        """Yields the keys of all images, without reading any."""
        return (f"{span.path.stem}/{row:09}" for span in self.spans for row in range(span.start, span.end))

    def records(self, part: int) -> Iterator[Record | Drop]:
        import pyarrow.parquet

        path, start, end, column = self.spans[part]
        row = 0
        try:
            with pyarrow.parquet.ParquetFile(path) as file:
                counts = [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]
                firsts = [sum(counts[:group]) for group in range(len(counts))]
                groups = [g for g, first in enumerate(firsts) if first < end and first + counts[g] > start]
                row = firsts[groups[0]]
                for batch in file.iter_batches(batch_size=ROWS_AT_ONCE, row_groups=groups):
                    for values in batch.to_pylist():
                        if start <= row < end:
                            yield _record(f"{path.stem}/{row:09}", column, values, row - start + 1)
                        row += 1
        except (pyarrow.ArrowException, OSError) as error:
            raise RfjaxError(f"{path} cannot be read at row {row}: {error}; replace it, or leave it out") from None


def _record(key, column, values, done):
    image = values.pop(column)
    image = image.get("bytes") if isinstance(image, dict) else image
    if not isinstance(image, bytes):
        return Drop(key, "no image", f"column {column} holds no bytes", done)
    return Record(key, image, values, done)


def _class_columns(schema) -> dict[str, tuple[str, ...]]:
    """Returns {column: names of classes}, from a schema with Hugging Face's `ClassLabel`; {} for other schemas."""
    try:
        about = parse_json((schema.metadata or {}).get(b"huggingface", b"{}"))
        features = about["info"]["features"]
        found = {name: feature for name, feature in features.items() if feature.get("_type") == "ClassLabel"}
        return {name: tuple(map(str, feature["names"])) for name, feature in found.items() if name in schema.names}
    except (ValueError, KeyError, TypeError, AttributeError):
        return {}


def open_source(
    where: str, shard_size: int, caption_column: str | None, suffixes: Sequence[str] = IMAGES
) -> ParquetSource:
    what, wanted = ("clips", CLIP_COLUMNS) if suffixes is CLIPS else ("images", IMAGE_COLUMNS)
    require("pyarrow.parquet", "reading Parquet needs pyarrow")
    import pyarrow.parquet

    spans, listing, classes, shared = [], [], None, None
    for path in files_of(where, ".parquet"):
        try:
            with pyarrow.parquet.ParquetFile(path) as file:
                names, rows, found = file.schema_arrow.names, file.metadata.num_rows, _class_columns(file.schema_arrow)
        except (pyarrow.ArrowException, OSError) as error:
            raise ConfigError(f"{path} cannot be read: {error}; replace it, or leave it out") from None
        column = next((name for name in wanted if name in names), None)
        if column is None:
            known = ", ".join(wanted)
            links = any("url" in name.lower() for name in names)
            hint = "; fetch what its URLs name first, for example by img2dataset" if links else ""
            if "file_name" in names:
                hint = (
                    f"; write it as metadata.jsonl (pandas' to_json(..., orient='records', lines=True)), which {_READ}"
                )
            raise ConfigError(f"{path} has no column of {what}, named one of {known}; it has {', '.join(names)}{hint}")
        if caption_column and not {caption_column, caption_column.partition(".")[0]} & set(names):
            raise ConfigError(
                f"--caption-column is {caption_column}, and {path} has no such column; it has {', '.join(names)}"
            )
        if classes is not None and found != classes:
            raise ConfigError(
                f"{path} has other class names than the files before it; prepare it with a command of its own"
            )
        classes, shared = found, [name for name in (names if shared is None else shared) if name in names]
        listing.append((path.name, path.stat().st_size, rows))
        spans += [Span(path, start, min(start + shard_size, rows), column) for start in range(0, rows, shard_size)]
    if not spans:
        raise ConfigError(f"no rows in {where}; give a file that has some")
    captioned = caption_column or any(name in shared for name in CAPTION_COLUMNS)
    label = next(iter(classes), None) if len(classes) == 1 and not captioned else None
    passed_over = others_in(where, ".parquet")
    given = where, listing_hash(listing), tuple(shared), tuple(spans), classes, passed_over, label
    return ParquetSource(*given, classes[label] if label else None)
