"""One part of a source: its name, its images looked at in threads and in order, and those that are left out."""

from __future__ import annotations

import json
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Executor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from rfjax.errors import RfjaxError
from rfjax.prepare.sources import Drop, Record

CORRUPT = "corrupt"
NO_CAPTION = "no caption"
SPARED = 10  # corrupt images of a part that never stop it: a share of few says little
Looked = TypeVar("Looked")
Tell = Callable[[float | int, int, int], None]  # (how much of the part is done, images kept, images left out)


def part_name(stem: str, part: int, parts: int) -> str:
    return f"{stem}-{part:05}-of-{parts:05}"


def finished(path: Path, recipe_hash: str, sizes: Callable[[Mapping], Mapping[str, int]]) -> dict | None:
    """What a finished part's .json says; None where it is of another recipe, or a file has not the size it says."""
    try:
        facts = json.loads(path.with_name(f"{path.name}.json").read_text())
        whole = all(path.with_name(name).stat().st_size == size for name, size in sizes(facts).items())
        return facts if whole and facts["recipe_sha256"] == recipe_hash else None
    except (OSError, ValueError, KeyError):
        return None


def in_order(
    pool: Executor, look: Callable[[Record | Drop], Looked], records: Iterable[Record | Drop], window: int
) -> Iterator[Looked]:
    """`look` at each record, in their order, up to `window` at a time in the pool's threads."""
    pending = deque()
    for record in records:
        pending.append(pool.submit(look, record))
        if len(pending) >= window:
            yield pending.popleft().result()
    while pending:
        yield pending.popleft().result()


@dataclass
class LeftOut:
    """The images of a part that are left out: each with its reason, and their number by reason."""

    name: str  # of the part
    rows: list[dict] = field(default_factory=list)
    counts: Counter = field(default_factory=Counter)
    kept: int = 0

    def sift(self, looked: Iterable[Looked | Drop], tell: Tell, corrupt_limit: float = 1.0) -> Iterator[Looked]:
        """What is no `Drop`, each with its `done`; `tell` hears of it when it has been dealt with.

        Raises `RfjaxError` where more than `corrupt_limit` of the images, a share, are corrupt.
        """
        for one in looked:
            if isinstance(one, Drop):
                self.counts[one.reason] += 1
                self.rows.append({"key": one.key, "reason": one.reason, "detail": one.detail})
                self._check(corrupt_limit, soonest=100)
            else:
                self.kept += 1
                yield one
            tell(one.done, self.kept, self.counts.total())
        self._check(corrupt_limit, soonest=0)

    def _check(self, limit, soonest):
        seen, corrupt = self.kept + self.counts.total(), self.counts[CORRUPT]
        if corrupt > SPARED and corrupt > limit * seen and seen >= soonest:
            found = (f"{row['key']} ({row['detail']})" for row in self.rows if row["reason"] == CORRUPT)
            raise RfjaxError(
                f"{corrupt} of the first {seen} images of {self.name} cannot be decoded, more than --corrupt-limit="
                f"{limit:g} allows: {'; '.join(found)[:600]}; see what they are, or raise the limit"
            )

    def lines(self) -> str:
        """The rows as JSON lines."""
        return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in self.rows)

    def by_reason(self) -> dict[str, int]:
        return dict(sorted(self.counts.items()))
