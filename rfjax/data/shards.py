"""Records of many ArrayRecord files by their place among all of them."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Integer

from rfjax.errors import RfjaxError

OPEN_FILES = 400  # of each kind and split: below the 1,024 that many systems allow a process


class Shards:
    """Random access to the records of files that follow each other; safe to share between threads.

    The readers used last are kept open. `array_record`'s own data source keeps all of them open,
    and a corpus of a thousand shards would run out of file descriptors in the middle of an epoch.
    """

    def __init__(self, paths: Sequence[Path], counts: Sequence[int], *, open_files: int = OPEN_FILES):
        self._paths, self._ends = list(paths), np.cumsum(counts)
        self._capacity, self._lock = open_files, threading.Lock()
        self._readers: OrderedDict[int, object] = OrderedDict()

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def first(self, file: int) -> int:
        """The place of a file's first record."""
        return int(self._ends[file - 1]) if file else 0

    def file_of(self, places: Integer[np.ndarray, "n"]) -> Integer[np.ndarray, "n"]:
        """Which file holds each place."""
        return np.searchsorted(self._ends, np.asarray(places, np.int64), side="right")

    def read(self, places: Integer[np.ndarray, "n"]) -> list[bytes]:
        """The records at `places`, in their order. `RfjaxError` names the file and record that cannot be read."""
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
            return self._reader(file).read(own)
        except Exception as error:  # array_record raises RuntimeError and ValueError with C++'s words
            raise RfjaxError(
                f"{self._paths[file]}: record {own[0]}{f' or one of {len(own)}' if len(own) > 1 else ''} cannot be "
                f"read: {error}; rfjax inspect {self._paths[file].parent} finds every damaged file"
            ) from None

    def _reader(self, file):
        from array_record.python.array_record_module import ArrayRecordReader

        with self._lock:
            reader = self._readers.pop(file, None)
            if reader is None:  # no read-ahead: what is asked for next is somewhere else
                reader = ArrayRecordReader(str(self._paths[file]), options="readahead_buffer_size:0", file_reader_buffer_size=2**15)
            self._readers[file] = reader
            if len(self._readers) > self._capacity:  # closed when whoever still reads from it is done
                self._readers.popitem(last=False)
            return reader
