"""Parquet files with a column of encoded images, as bytes or as Hugging Face's {bytes, path}, and other columns."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from rfjax.errors import ConfigError, RfjaxError
from rfjax.prepare.libraries import require
from rfjax.prepare.sources import Drop, Record, files_of, listing_hash

IMAGE_COLUMNS = ("image", "jpg", "image_bytes", "bytes", "img")
ROWS_AT_ONCE = 64


@dataclass(frozen=True)
class ParquetSource:
    location: str
    listing: str
    column: str
    spans: tuple[tuple[Path, int, int], ...]  # (file, first row, end row) of each part
    kind: str = "parquet"
    label: str | None = None
    class_names: None = None

    @property
    def sizes(self) -> list[int]:
        return [end - start for _, start, end in self.spans]

    def records(self, part: int) -> Iterator[Record | Drop]:
        import pyarrow.parquet

        path, start, end = self.spans[part]
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
                            yield self._record(f"{path.stem}/{row:09}", values, row - start + 1)
                        row += 1
        except (pyarrow.ArrowException, OSError) as error:
            raise RfjaxError(f"{path} cannot be read at row {row}: {error}; replace it, or leave it out") from None

    def _record(self, key, values, done):
        image = values.pop(self.column)
        image = image.get("bytes") if isinstance(image, dict) else image
        if not isinstance(image, bytes):
            return Drop(key, "no image", f"column {self.column} holds no bytes", done)
        return Record(key, image, values, done)


def open_source(where: str, shard_size: int, caption_column: str | None) -> ParquetSource:
    require("pyarrow.parquet", "reading Parquet needs pyarrow")
    import pyarrow.parquet

    spans, listing, column = [], [], None
    for path in files_of(where, ".parquet"):
        try:
            with pyarrow.parquet.ParquetFile(path) as file:
                names, rows = file.schema_arrow.names, file.metadata.num_rows
        except (pyarrow.ArrowException, OSError) as error:
            raise ConfigError(f"{path} cannot be read: {error}; replace it, or leave it out") from None
        column = next((name for name in IMAGE_COLUMNS if name in names), None)
        if column is None:
            known = ", ".join(IMAGE_COLUMNS)
            raise ConfigError(f"{path} has no column of images, named one of {known}; it has {', '.join(names)}")
        if caption_column and caption_column not in names:
            raise ConfigError(f"{path} has no column {caption_column}; it has {', '.join(names)}")
        listing.append((path.name, path.stat().st_size, rows))
        spans += [(path, start, min(start + shard_size, rows)) for start in range(0, rows, shard_size)]
    if not spans:
        raise ConfigError(f"no rows in {where}; give a file that has some")
    return ParquetSource(where, listing_hash(listing), column, tuple(spans))
