"""The files of a run that are not arrays: config.json, run.json, status.json, and its lock."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import traceback
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal, NotRequired, TypedDict

import jax
from jax.sharding import Mesh

import rfjax
from rfjax import config as schema
from rfjax.config import Config
from rfjax.data.corpus import Corpus
from rfjax.errors import ConfigError, RfjaxError
from rfjax.files import write_whole
from rfjax.inputs.json_files import read_json
from rfjax.outputs import check_output_folder, open_to_append
from rfjax.training import hardware
from rfjax.training.may_change import MAY_CHANGE
from rfjax.training.processes import distributed

try:
    import fcntl
except ImportError:  # not a POSIX system: two trainers in one folder are then not noticed
    fcntl = None


def write_json(path: Path, value) -> None:
    """Writes the file whole or not at all, in process 0 only. Raises `RfjaxError` if it cannot be written."""
    if distributed.is_first():
        write_whole({path: json.dumps(value, indent=1, allow_nan=False) + "\n"})


class ParentFacts(TypedDict):
    """The checkpoint that a run's first weights come from."""

    path: str
    run: str
    step: int
    images: int
    flops: float


class TrunkFacts(TypedDict):
    """The run that a branch left, the step at which it left, and what the trunk had cost by then."""

    path: str
    run: str
    step: int
    skip_batches: NotRequired[int]
    images: NotRequired[int]
    flops: NotRequired[float]
    train_seconds: NotRequired[float]


class BucketFacts(TypedDict):
    flops_per_image: float


class Start(TypedDict):
    step: int


class AdapterFacts(TypedDict):
    """Facts about a tuned run's adapter: the base run's checkpoint that was tuned, and the adapter's rank and alpha.

    The merged weights are W + alpha / rank * (a b), where W are the weights of that checkpoint.
    """

    base: str  # that run's folder, as a path from the tuned run's folder
    step: int
    weights: str
    sums: str  # a hash of the checksums of these weights
    rank: int
    alpha: float


class RunName(TypedDict):
    """The fields of run.json that readers of any run use; only `run` must be there."""

    run: str
    made_with: NotRequired[dict[str, object] | None]
    step: NotRequired[int]
    skips: NotRequired[list[list[int]]]  # `lineage.Skip`s
    corpus_fingerprint: NotRequired[str]
    role: NotRequired[str]
    adapter: NotRequired[AdapterFacts]


class RunFacts(RunName):
    """The fields of run.json that training needs to go on; `rfjax.training.run.describe` makes them."""

    flops_per_image: float
    corpus_fingerprint: str
    parent: ParentFacts | None
    starts: list[Start]
    trunk: NotRequired[TrunkFacts]
    buckets: NotRequired[list[BucketFacts] | None]


class Status(TypedDict):
    """status.json."""

    state: Literal["new", "running", "stopped", "done", "failed", "diverged"]
    step: int
    message: str


_REMEDY = "restore it, or use another --workdir"


def _read(path, shape):
    try:
        return read_json(path, shape, remedy=_REMEDY)
    except FileNotFoundError:
        return None


def read_run(workdir: Path) -> RunFacts | None:
    """The content of run.json; None if there is none. Raises `RfjaxError` if it is damaged or of another shape."""
    return _read(workdir / "run.json", RunFacts)


def read_name(workdir: Path) -> RunName | None:
    """Returns the content of run.json; None if there is no run.json. Of its fields only `run` is required, so that this
    also reads runs that rfjax did not train. Raises `RfjaxError` if the file is damaged."""
    return _read(workdir / "run.json", RunName)


def read_config(workdir: Path) -> Config | None:
    """The config in config.json; None if there is none. Raises `RfjaxError` if it is damaged or no config."""
    path = workdir / "config.json"
    values = _read(path, dict[str, object])
    try:
        return None if values is None else schema.from_dict(values)
    except ConfigError as error:
        raise RfjaxError(f"{path} holds no config of a run: {error}; {_REMEDY}") from None


def changed_keys(workdir: Path, config: Config) -> list[str] | None:
    """The keys in which `config` differs from the config in `workdir`, except keys that may change when resuming.

    Returns None if `workdir` has no config.
    """
    held = read_config(workdir)
    if held is None:
        return None
    return [key for key in schema.differences(held, config) if not key.startswith(MAY_CHANGE)]


def check_run_folder(workdir: Path) -> None:
    """Raises `ConfigError` for a --workdir that holds something other than a run."""
    if (workdir / "results" / "table.json").exists():
        raise ConfigError(
            f"--workdir {workdir} is the folder of a study (it has results/table.json); give a folder inside it"
        )
    started = any((workdir / name).exists() for name in ("run.json", "config.json", "status.json"))
    files = ("metrics.jsonl", "checkpoints", "evaluations")
    check_output_folder(workdir, "--workdir", own=("run.json",), files=files, made_here=lambda _: started)


def check_config(workdir: Path, config: Config) -> None:
    """Raises `ConfigError` if `workdir` holds a run of another config, naming the keys that differ.

    Also raises it if `workdir` has checkpoints but no config.
    """
    keys = changed_keys(workdir, config)
    if keys is None:
        if any(workdir.glob("checkpoints/*")):
            raise ConfigError(f"{workdir} holds checkpoints but no config.json; use another --workdir")
        return
    if keys:
        raise ConfigError(
            f"{workdir} holds a run of another config; it differs in {', '.join('config.' + key for key in keys)}. "
            f"Use another --workdir, with --init={workdir} to start from this run's weights"
        )


@contextlib.contextmanager
def lock(workdir: Path) -> Iterator[None]:
    """Locks the folder against a second trainer; raises `RfjaxError` if another process has locked it. The system drops
    the lock when the process ends."""
    if fcntl is None or not distributed.is_first():
        yield
        return
    with open_to_append(workdir / "lock", "lock") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            remedy = "wait for it, or use another --workdir"
            raise RfjaxError(f"another process is training in {workdir}; {remedy}") from None
        except OSError:
            pass  # a file system without locks
        yield


def note_traceback(workdir: Path, error: BaseException) -> None:
    """Writes the traceback of an unforeseen error to `error.txt`, if the disk allows."""
    with contextlib.suppress(OSError):
        workdir.mkdir(parents=True, exist_ok=True)
        (workdir / "error.txt").write_text("".join(traceback.format_exception(error)))


def read_status(workdir: Path) -> Status:
    """Returns {"state": "new" | "running" | "stopped" | "done" | "failed" | "diverged", "step", "message"}.

    "new" means that there is no status.json. If a process was killed, its folder still says "running"; such a run
    resumes like a stopped run.
    """
    return _read(workdir / "status.json", Status) or {"state": "new", "step": 0, "message": ""}


def write_status(workdir: Path, state: str, step: int, message: str = "") -> None:
    write_json(workdir / "status.json", {"state": state, "step": step, "message": message})


GONE = "is no longer the folder of this run"  # in the message of every error of `check_still_there`


def check_still_there(workdir: Path, record: dict) -> None:
    """Raises `RfjaxError` if the run's folder was moved or removed since this attempt wrote `record`.

    Writing would then make a new folder without a config. The content of run.json is compared, not the folder's inode,
    because some file systems renumber folders.
    """
    if not distributed.is_first():
        return
    try:
        here = read_run(workdir)
    except RfjaxError:
        here = None
    if here is None or here["starts"] != json.loads(json.dumps(record["starts"])):
        reason = "it was moved, removed or replaced while it was trained"
        remedy = "move it back, then give the same command again"
        raise RfjaxError(f"{workdir} {GONE}: {reason}; {remedy}")


@functools.cache
def code_hash() -> str:
    """A hash of the package's sources: runs with equal hashes ran the same code."""
    root = Path(rfjax.__file__).parent
    digest = hashlib.sha256()
    shipped = root / "_shipped"  # configs and sites, which only a wheel has inside
    for path in sorted(path for path in root.rglob("*.py") if shipped not in path.parents):
        digest.update(str(path.relative_to(root)).encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


def check_corpus(workdir: Path, record: dict, corpus: Corpus) -> None:
    """Raises `ConfigError` if the run of `record` was trained on another version of the corpus."""
    if record["corpus_fingerprint"] != corpus.fingerprint:
        raise ConfigError(
            f"{workdir} was trained on another version of the corpus {corpus.name} (fingerprint "
            f"{record['corpus_fingerprint'][:12]}, now {corpus.fingerprint[:12]}); restore that one, or train another "
            "run on this one in another --workdir"
        )


def started(record: dict, step: int, mesh: Mesh, together: int = 1) -> dict:
    """Returns `record` with one more start: its step, time, mesh, hardware and code, and how many runs are trained
    together."""
    on = {
        "code_hash": code_hash(),
        "hardware": hardware.describe(mesh.devices.flatten().tolist()),
        "jax_version": jax.__version__,
    }
    at = {
        "step": step,
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "mesh": dict(mesh.shape),
        "together": together,
    }
    return record | on | {"starts": [*record["starts"], at | on]}
