"""One part of a source: its name, its images in order, the images left out, and the files that describe it."""

from __future__ import annotations

import json
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Executor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from rfjax.errors import RfjaxError
from rfjax.inputs import seals
from rfjax.inputs.json_files import read_json
from rfjax.prepare.sources import Drop, Record

CORRUPT = "corrupt"
NO_CAPTION = "no caption"
NO_TEXT = "caption that is no text"
UNDECODABLE = "caption in no encoding that can be told"
UNREADABLE = "unreadable"
OWN_REASONS = frozenset({CORRUPT, NO_CAPTION, NO_TEXT, UNDECODABLE})
SPARED = 10  # so many corrupt images never stop a part: a share of few images says little
Looked = TypeVar("Looked")
Tell = Callable[[float | int, int, int], None]  # (how much of the part is done, images kept, images left out)


def listed(reason: str) -> str:
    """Returns the reason under which images of --drop-keys are counted: the reason in the user's list, with " (listed)"
    after it if one of rfjax's own reasons has the same words."""
    return f"{reason} (listed)" if reason in OWN_REASONS else reason


def part_name(stem: str, part: int, parts: int) -> str:
    return f"{stem}-{part:05}-of-{parts:05}"


def read_finished(
    path: Path, recipe_hash: str, *, shape: type, sizes: Callable[[Mapping], Mapping[str, int]]
) -> dict | None:
    """Reads PATH.json, which describes a finished part, and returns its content. The .json must have the form of the
    TypedDict `shape`; `sizes` takes the content and returns {file name: number of bytes}.

    Returns None, so that the part is made again, if the .json is missing, changed or damaged, if it has another name or
    recipe, or if a file does not have the size that `sizes` gives.
    """
    try:
        facts = read_json(path.with_name(f"{path.name}.json"), shape)
        if seals.is_broken(facts) or (facts["name"], facts["recipe_sha256"]) != (path.name, recipe_hash):
            return None
        whole = all(path.with_name(name).stat().st_size == size for name, size in sizes(facts).items())
        return facts if whole else None
    except (OSError, ValueError, RfjaxError):  # ValueError: a name that no file can have
        return None


def map_in_order(
    pool: Executor, look: Callable[[Record | Drop], Looked], records: Iterable[Record | Drop], window: int
) -> Iterator[Looked]:
    """Applies the function `look` to each record in the threads of `pool`, with at most `window` records in progress;
    yields the results in the order of the records."""
    pending = deque()
    for record in records:
        pending.append(pool.submit(look, record))
        if len(pending) >= window:
            yield pending.popleft().result()
    while pending:
        yield pending.popleft().result()


def list_counts(counts: Mapping[str, int]) -> str:
    """Formats counts by reason, the highest first: "1,200 corrupt, 3 no caption"."""
    return ", ".join(f"{count:,} {reason}" for reason, count in sorted(counts.items(), key=lambda item: -item[1]))


@dataclass
class LeftOut:
    """The images left out of a part: a row with the reason for each, and counts by reason."""

    name: str  # the part's name
    rows: list[dict] = field(default_factory=list)
    counts: Counter = field(default_factory=Counter)
    kept: int = 0
    records: int = 0  # items seen so far; with `of_files`, files seen so far

    def sift(
        self, looked: Iterable[Looked | Drop], tell: Tell, corrupt_limit: float = 1.0, of_files: bool = False
    ) -> Iterator[Looked]:
        """Yields the items that are no `Drop`, and records each `Drop` in this object; calls `tell` after each item.

        With `of_files` the limit is a share of the files, not of the clips cut from them. Consecutive items with equal
        `done` come from one file.

        Raises `RfjaxError` if the corrupt images are more than `SPARED` and more than the share `corrupt_limit` of the
        images seen so far. This is checked at each drop from the hundredth image on, and at the end.
        """
        last = None
        for item in looked:
            self.records += not of_files or item.done != last
            last = item.done
            if isinstance(item, Drop):
                self.counts[item.reason] += 1
                self.rows.append({"key": item.key, "reason": item.reason, "detail": item.detail})
                self._check(corrupt_limit, soonest=100)
            else:
                self.kept += 1
                yield item
            tell(item.done, self.kept, self.counts.total())
        self._check(corrupt_limit, soonest=0)

    def _check(self, limit, soonest):
        seen, corrupt = self.records, self.counts[CORRUPT]
        if corrupt > SPARED and corrupt > limit * seen and seen >= soonest:
            found = (f"{row['key']} ({row['detail']})" for row in self.rows if row["reason"] == CORRUPT)
            raise RfjaxError(
                f"{corrupt} of the first {seen} images of {self.name} cannot be decoded, more than --corrupt-limit="
                f"{limit:g} allows: {'; '.join(found)[:600]}; raise the limit, or mend them and give another --out"
            )

    def by_reason(self) -> dict[str, int]:
        return dict(sorted(self.counts.items()))

    def write_with(self, facts: Mapping, folder: Path) -> None:
        """Writes NAME.dropped.jsonl, which lists the images left out, and NAME.json, which holds `facts` and a seal."""
        rows = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in self.rows)
        (folder / f"{self.name}.dropped.jsonl").write_text(rows, encoding="utf-8")
        (folder / f"{self.name}.json").write_text(json.dumps(seals.seal(facts), indent=1) + "\n")
