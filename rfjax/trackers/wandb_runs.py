"""Weights & Biases: each start of a run of rfjax opens the same run of W&B, by its id.

The library first writes all values to a file in the run's folder `wandb`, the transaction log. Then it uploads them
from this file, unless WANDB_MODE=offline. Project, entity, address and mode are set by the library's own environment
variables, such as WANDB_PROJECT.
"""

from __future__ import annotations

import os
import struct
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import wandb
from wandb.errors import AuthenticationError
from wandb.proto.wandb_internal_pb2 import Record
from wandb.sdk.lib.wbauth import read_netrc_auth

from rfjax.errors import RfjaxError
from rfjax.trackers.items import Item, read_picture
from rfjax.trackers.table import About

OFFLINE = ("offline", "dryrun")  # values of WANDB_MODE
FLUSH_SECONDS = 30.0  # how long a flush may take
# The transaction log has LevelDB's log format: bytes of a block, and a piece's header (checksum, length, kind).
BLOCK, HEADER = 32768, struct.Struct("<IHB")


def why_not() -> str:
    """Says what W&B still needs in order to start without asking the user for a login; "" if it needs nothing."""
    try:
        settings = wandb.setup().settings
    except ValueError as error:
        return f"W&B refuses its settings ({' '.join(str(error).split())}); correct its environment variables"
    if settings.mode in OFFLINE:
        return ""
    if settings.mode == "disabled":
        return "W&B is switched off by WANDB_MODE=disabled; set it to online or offline"
    try:
        if settings.api_key or settings.identity_token_file or read_netrc_auth(host=settings.base_url):
            return ""
        lack = f"there is no login for {settings.base_url}"
    except (ValueError, AuthenticationError) as error:
        lack = f"W&B refuses the address or the key for {settings.base_url} ({error})"
    return f"{lack}; run `wandb login`, set WANDB_API_KEY, or set WANDB_MODE=offline and upload later with `wandb sync`"


class WandbRun:
    """A run that is open at W&B.

    W&B's own step is the item's number in the run, so an item that is sent twice has the same step both times. Curves
    are drawn over the training step, which is sent as the value `step`.
    """

    def __init__(self, about: About):
        self._workdir = about.workdir
        settings = wandb.Settings(
            console="off",  # the program's output stays the program's
            silent=True,
            init_timeout=60.0,
            x_transaction_log_flush_interval=1.0,
        )
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "rfjax"),
            id=about.id,
            name=about.name,
            group=about.group or None,
            config=dict(about.config),
            dir=str(about.workdir),
            resume="allow",
            reinit="create_new",  # runs that are trained together are open together
            settings=settings,
        )
        self._run.define_metric("*", step_metric="step")
        self._log = Path(self._run.settings.sync_file)
        self._scan = LogScan(self._log)
        self._number: int | None = None  # of the last row that was sent

    def send(self, items: Iterable[Item], number: int) -> None:
        for place, item in enumerate(items):
            values: dict[str, object] = {"step": item["step"], **item["values"]}
            if item["picture"]:
                read_picture(self._workdir, item)  # names the file if it is not there
                values[item["label"]] = wandb.Image(str(self._workdir / item["picture"]))
            self._number = number + place
            self._run.log(values, step=self._number, commit=True)

    def flush(self) -> None:
        """Waits until the last row is in the transaction log and, unless W&B is offline, everything is uploaded."""
        deadline = time.monotonic() + FLUSH_SECONDS
        offline = self._run.settings.mode in OFFLINE
        while self._number is not None:
            self._scan.go_on()
            there = self._scan.last is not None and self._scan.last >= self._number
            if there and (offline or self._run.status().sync_items_pending == 0):
                break
            if time.monotonic() > deadline:
                where = f"is not written to {self._log}" if not there else "is not uploaded"
                raise RfjaxError(
                    f"what was sent to W&B {where} after {FLUSH_SECONDS:.0f} s; look at the disk or network"
                )
            time.sleep(0.2)
        with open(self._log, "rb") as file:
            os.fsync(file.fileno())

    def close(self, done: bool) -> None:
        self._run.finish(exit_code=0 if done else 1)


open_run = WandbRun


class LogScan:
    """Reads a transaction log while it grows. `last` is the number of its newest row, or None if it has none."""

    def __init__(self, path: Path):
        self._path, self._from, self.last = path, 0, None

    def go_on(self) -> None:
        """Reads what was added to the log, from the block in which the last complete record ended."""
        with open(self._path, "rb") as file:
            file.seek(self._from)
            content = file.read()
        begin = self._from
        for record, end in _whole(content, begin == 0):
            self._from = (begin + end) // BLOCK * BLOCK
            if record.HasField("history"):
                self.last = record.history.step.num


def records(content: bytes) -> Iterator[Record]:
    """Yields the complete records in a transaction log."""
    return (record for record, _ in _whole(content, True))


def _whole(content: bytes, first: bool) -> Iterator[tuple[Record, int]]:
    """Yields (record, position of its end) for each complete record.

    `content` is a transaction log from its start if `first`, else from the start of a later block. A record that begins
    before `content` is left out.
    """
    whole: bytes | None = None
    place = 7 if first else 0  # the file begins with its kind and version
    while place + HEADER.size <= len(content):
        left = BLOCK - place % BLOCK
        if left < HEADER.size:
            place += left
            continue
        _, length, kind = HEADER.unpack_from(content, place)
        end = place + HEADER.size + length
        if kind == 0 or end > len(content):
            return
        piece, place = content[place + HEADER.size : end], end
        if kind in (1, 2):  # the record is whole, or begins
            whole = piece
        elif whole is not None:  # it goes on, or ends
            whole += piece
        if kind in (1, 4) and whole is not None:
            yield Record.FromString(whole), end
            whole = None
