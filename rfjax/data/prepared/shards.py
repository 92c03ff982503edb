"""Reads records from many ArrayRecord files, by their index in the sequence of all the files' records."""

from __future__ import annotations

import itertools
import resource
import threading
from collections import OrderedDict
from collections.abc import Hashable, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Integer

from rfjax.errors import RfjaxError

MOST_OPEN = 4096


class Readers:
    """Keeps the most recently used files open; safe to share between threads.

    `array_record`'s own data source keeps all files open. With it, a corpus of a thousand shards would run out of file
    descriptors in the middle of an epoch.
    """

    def __init__(self, most: int):
        self._most, self._lock = most, threading.Lock()
        self._open: OrderedDict[Hashable, object] = OrderedDict()

    def of(self, key: Hashable, path: Path):
        """Returns the reader that is kept under `key`. If there is none, opens the file at `path` and keeps its
        reader."""
        from array_record.python.array_record_module import ArrayRecordReader

        with self._lock:
            reader = self._open.pop(key, None)
            if reader is None:  # no read-ahead: the next record to be read is somewhere else
                reader = ArrayRecordReader(str(path), options="readahead_buffer_size:0", file_reader_buffer_size=2**15)
            self._open[key] = reader
            if len(self._open) > self._most:  # a file is closed when its last user drops the reader
                self._open.popitem(last=False)
            return reader


def _open_file_budget():
    """How many ArrayRecord files may stay open: half of the files that the process may open, at most `MOST_OPEN`."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return MOST_OPEN if soft == resource.RLIM_INFINITY else max(1, min(MOST_OPEN, soft // 2))


READERS = Readers(_open_file_budget())  # of the process: all kinds, splits and buckets share this budget
_numbers = itertools.count()


class Shards:
    """Random access to the records of a sequence of ArrayRecord files, as if they were one; safe to share between
    threads."""

    def __init__(self, paths: Sequence[Path], counts: Sequence[int], *, readers: Readers = READERS):
        self._paths, self._ends = list(paths), np.cumsum(counts)
        self._readers, self._number = readers, next(_numbers)

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def first(self, file: int) -> int:
        """The index of a file's first record among the records of all files."""
        return int(self._ends[file - 1]) if file else 0

    def count(self, file: int) -> int:
        """The number of a file's records."""
        return int(self._ends[file]) - self.first(file)

    def file_of(self, places: Integer[np.ndarray, " n"]) -> Integer[np.ndarray, " n"]:
        """Returns the index of the file that holds each record. `places` are records' indices among the records of all
        files."""
        return np.searchsorted(self._ends, np.asarray(places, np.int64), side="right")

    def read(self, places: Integer[np.ndarray, " n"]) -> list[bytes]:
        """The records at `places`, in their order. Raises `RfjaxError` naming a file and record that cannot be read."""
        places = np.asarray(places, np.int64)
        files, records = self.file_of(places), [b""] * len(places)
        for file in np.unique(files).tolist():
            mine = np.flatnonzero(files == file)
            own = (places[mine] - self.first(file)).tolist()
            for place, record in zip(mine.tolist(), self._of_file(file, own), strict=True):
                records[place] = record
        return records

    def _of_file(self, file, own):
        try:
            return self._readers.of((self._number, file), self._paths[file]).read(own)
        except Exception as error:  # array_record raises RuntimeError and ValueError with C++'s words
            path, which = self._paths[file], f"record {own[0]}"
            which = f"one of {len(own)} records read together, the first of them {which}," if len(own) > 1 else which
            remedy = f"rfjax inspect {path.parent} finds every damaged file"
            raise RfjaxError(f"{path}: {which} cannot be read: {error}; {remedy}") from None
