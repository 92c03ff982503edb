"""Kills a small study at random times again and again, and compares its results, bit for bit, with an undisturbed
study's.

    python analysis/kills.py --kills 50 --seed 0 --folder DIR
    python analysis/kills.py --kind tune --kills 20 --seed 0 --folder DIR    # the tuning of a study of two sizes

Each attempt at the study is, at random, one process of two simulated devices or two processes of one device. After a
random time, one process or both get SIGKILL or SIGTERM. If only one was killed, the other must end by itself; if it has
not joined the job yet, it is told to end, as a scheduler would do. Then the same command is given again. Whenever a
study is finished, all its files are compared, and another study is started in a new folder, until there have been
enough kills. The last study runs to its end. A dated record goes to analysis/kill_records/.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import platform
import random
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm

ROOT = Path(__file__).resolve().parent.parent
RECORDS = ROOT / "analysis" / "kill_records"
TIMED = {
    "seconds",
    "train_seconds",
    "code_hash",
}  # of a results table: what depends on the clock, and on the last start
TIMED_ROW = {"train_seconds", "steps_per_second", "images_per_second", "flops_per_second", "mfu"}
EVERY = 50  # steps between evaluations
LOST_AFTER, WAIT = 10, 120  # seconds: the job's heartbeat, and how long an attempt may take to end once it was killed
STATUSES = {0, 75, -signal.SIGKILL, -signal.SIGTERM}  # what a process that was, or whose peer was, killed may end with

CONFIG = """
from ml_collections import ConfigDict

def get_config():
    return ConfigDict({
        "name": "killed",
        "model": {"depth": 1, "hidden": 32, "head_size": 16, "patch_size": 4, "position_tokens": 4,
                  "position_span": 4.0, "position_grid": 8},
        "mesh": {"data": 1, "fsdp": 2},
        "train": {"steps": 200, "batch_size": 8, "learning_rate": 1e-3, "warmup_steps": 20, "condition_dropout": 0.1,
                  "ema_every": 1, "ema_decay": 0.9, "checkpoint_every": 10, "log_every": 5},
        "evaluation": {"every": EVERY, "sampler": {"steps": 2, "guidance_scale": 2.0},
                       "validation": {"examples": 12, "batch_size": 8, "levels": 4},
                       "geneval": {"prompts_per_task": 2, "images_per_prompt": 2, "batch_size": 16}},
    })

def points():
    return {"only": {}}
"""
# The study whose sizes are tuned. It is trained once, undisturbed.
BASE_CONFIG = CONFIG.replace('"steps": 200', '"steps": 40').replace(
    '{"only": {}}', '{"a": {}, "b": {"model.depth": 2}}'
)
TUNE_CONFIG = """
from ml_collections import ConfigDict

def get_config():
    return ConfigDict({
        "method": "nft", "reward": "cleanness", "held_out_reward": "geneval_graded", "steps": 60, "batch_size": 8,
        "learning_rate": 1e-2, "warmup_steps": 5, "checkpoint_every": 5, "log_every": 5, "lora": {"rank": 8},
        "nft": {"keep_growth": 0.1},
        "rollout": {"prompts": 6, "images_per_prompt": 4, "batch_size": 24, "steps_per_round": 7},
        "watch": {"every": 20, "prompts_per_task": 1, "images_per_prompt": 2},
    })
"""


class Kind(NamedTuple):
    """What is killed: the text of its config, its command (folder, config, base) without the interpreter, and the
    table that it ends with. `base` is the text of the config of the study that it starts from, if it has one."""

    config: str
    command: Callable[[Path, Path, Path], list[str]]
    table: Callable[[Path], list[dict]]
    base: str | None = None


def study_table(folder: Path) -> list[dict]:
    """The rows of a study's results table, without what depends on the clock."""
    with open(folder / "results" / "long.csv", newline="") as file:
        return [{key: value for key, value in row.items() if key not in TIMED} for row in csv.DictReader(file)]


def tuned_table(folder: Path) -> list[dict]:
    """What tuning changed, and what was measured on held-out prompts."""
    changes = json.loads((folder / "tuned.json").read_text())["changes"]
    rows = [(path.parent.name, line) for path in sorted(folder.glob("*/held_out.jsonl")) for line in path.open()]
    return changes + [{"run": run, **json.loads(line)} for run, line in rows]


def study_command(folder: Path, config: Path, base: Path) -> list[str]:
    return ["study", f"--config={config}", f"--workdir={folder}"]


KINDS = {
    "study": Kind(CONFIG, study_command, study_table),
    "tune": Kind(
        TUNE_CONFIG,
        lambda folder, config, base: ["tune", str(base), f"--config={config}", f"--workdir={folder}"],
        tuned_table,
        base=BASE_CONFIG,
    ),
}


def start(folder: Path, words: list[str], processes: int, cache: Path) -> list[subprocess.Popen]:
    """The command in so many processes, two devices in all; what they say is appended to `said`."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = os.environ | {
        "PYTHONPATH": str(ROOT),
        "JAX_PLATFORMS": "cpu",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",  # most of a start is compilation
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={2 // processes}",
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    command = [sys.executable, "-P", "-m", "rfjax", *words, f"--lost-after={LOST_AFTER}"]
    started = []
    for index in range(processes):
        job = [f"--coordinator=127.0.0.1:{port}", f"--processes={processes}", f"--process-id={index}"]
        with open(f"{folder}.said", "a") as said:
            started.append(
                subprocess.Popen(command + (job if processes > 1 else []), env=environment, stdout=said, stderr=said)
            )
    return started


def wait(started: list[subprocess.Popen], seconds: float) -> bool:
    """Whether all end within the time."""
    deadline = time.monotonic() + seconds
    while any(process.poll() is None for process in started):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


def together(folder: Path, since: int, processes: int) -> bool:
    """Whether the attempt's processes had found each other, by what they said."""
    with open(f"{folder}.said") as said:
        said.seek(since)
        return said.read().count("all have come together") == processes


def trained_to(folder: Path, kind: Kind) -> dict:
    """Everything that a kind ends with that does not depend on the clock."""
    from rfjax.training import checkpoint

    ends = {}
    for run in sorted(path for path in folder.iterdir() if (path / "run.json").exists()):
        rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        steps = checkpoint.steps_saved(run)
        evaluated = [
            step for step in steps if step % EVERY == 0
        ]  # beside these stays the last but one, a stop's perhaps
        for step in steps:  # each is read whole, and its checksums verified
            for key in ("params", "ema"):
                for _ in checkpoint.read_arrays(run, step, key):
                    pass
        ends[run.name] = {
            "state": checkpoint.read_facts(run, steps[-1])["checksums"],
            "evaluated": evaluated,
            "rows": [{key: value for key, value in row.items() if key not in TIMED_ROW} for row in rows],
            "unreadable": sorted(path.name for path in run.glob("damaged/*")),
            "torn": sorted(path.name for path in run.glob("checkpoints/*tmp*")),
            "status": json.loads((run / "status.json").read_text())["state"],
        }
    ends["table"] = kind.table(folder)
    return ends


def differences(found: dict, expected: dict) -> list[str]:
    """What of a study is not as in the undisturbed one; empty where nothing is."""
    wrong = []
    for run in expected.keys() - {"table"}:
        wrong += [f"{run}: {name} differs" for name in expected[run] if found[run][name] != expected[run][name]]
    rows, doubled = [json.dumps(row) for row in found["table"]], [json.dumps(row) for row in expected["table"]]
    lost, extra = Counter(doubled) - Counter(rows), Counter(rows) - Counter(doubled)
    return (
        wrong
        + [f"table: {len(lost)} rows lost or changed"] * bool(lost)
        + [f"table: {len(extra)} rows doubled or new"] * bool(extra)
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kind", choices=KINDS, default="study", help="what is killed (default study)")
    parser.add_argument("--kills", type=int, default=50, help="at least so many (default 50)")
    parser.add_argument("--seed", type=int, default=0, help="of the dice (default 0)")
    parser.add_argument("--folder", type=Path, required=True, help="a new folder for the studies")
    args = parser.parse_args()
    args.folder = args.folder.absolute()
    args.folder.mkdir(parents=True)
    sys.path.insert(0, str(ROOT))
    config, cache, base = (args.folder / name for name in ("killed.py", "cache", "base"))
    kind = KINDS[args.kind]
    config.write_text(kind.config.replace("EVERY", str(EVERY)))
    if kind.base is not None:
        (args.folder / "base.py").write_text(kind.base.replace("EVERY", str(EVERY)))
        running = start(base, study_command(base, args.folder / "base.py", base), 1, cache)
        if not wait(running, 3600) or running[0].returncode:
            raise SystemExit(f"the study to start from failed; see {base}.said")
    dice, began = random.Random(args.seed), time.monotonic()

    calm, lengths = {}, {}
    for processes in (1, 2):  # both in the same bits, and how long each takes
        folder = args.folder / f"undisturbed{processes}"
        for name in ("filling the cache", "timed"):
            print(f"undisturbed, {processes} process{'es' * (processes > 1)}: {name}", flush=True)
            at = folder.with_name(f"{folder.name}-{name.split()[0]}")
            since = time.monotonic()
            running = start(at, kind.command(at, config, base), processes, cache)
            if not wait(running, 3600) or any(process.returncode for process in running):
                raise SystemExit(f"the undisturbed study failed; see {at}.said")
            lengths[processes] = time.monotonic() - since
        calm[processes] = trained_to(at, kind)
    problems = [f"two processes, undisturbed: {wrong}" for wrong in differences(calm[2], calm[1])]

    kills, ends, studies, slowest, apart = [], Counter(), 0, 0.0, 0
    bar = tqdm(total=args.kills, unit="kill", smoothing=0.1)
    while len(kills) < args.kills:
        folder = args.folder / f"killed{studies}"
        done = False
        while not done:
            processes = dice.choice((1, 2))
            said = Path(f"{folder}.said").stat().st_size if Path(f"{folder}.said").exists() else 0
            running = start(folder, kind.command(folder, config, base), processes, cache)
            if len(kills) >= args.kills:
                done = wait(running, 3600)
                if not done:
                    problems.append(f"{folder.name}: the last attempt does not end")
                    break
            elif not wait(running, dice.uniform(0, lengths[processes])):
                number = dice.choice((signal.SIGKILL, signal.SIGTERM))
                whom = dice.choice(("one", "all")) if processes > 1 else "all"
                victims = [dice.choice(running)] if whom == "one" else running
                for process in victims:
                    process.send_signal(number)
                at = time.monotonic()
                if whom == "one" and not wait(running, 20) and not together(folder, said, processes):
                    apart += 1
                    for process in running:
                        if process.poll() is None:
                            process.terminate()
                if not wait(running, WAIT):
                    problems.append(
                        f"{folder.name}: {signal.Signals(number).name} to {whom} of {processes}: still running after "
                        f"{WAIT} s"
                    )
                slowest = max(slowest, time.monotonic() - at)
                kills.append(
                    {
                        "signal": signal.Signals(number).name,
                        "processes": processes,
                        "to": whom,
                        "study": studies,
                        "ended_after_seconds": round(time.monotonic() - at, 1),
                    }
                )
                bar.update()
            for process in running:
                process.kill()
                ends[process.wait()] += 1
                if process.returncode not in STATUSES:
                    problems.append(f"{folder.name}: exit status {process.returncode}; see {folder}.said")
            done = all(process.returncode == 0 for process in running)
        if done:
            problems += [f"{folder.name}: {wrong}" for wrong in differences(trained_to(folder, kind), calm[1])]
        studies += 1
    bar.close()

    import jax

    now = datetime.now(UTC)
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, cwd=ROOT
    ).stdout.strip()
    by_kind = Counter(f"{kill['signal']} to {kill['to']} of {kill['processes']}" for kill in kills)
    record = {
        "date": now.isoformat(timespec="seconds"),
        "commit": commit,
        "python": platform.python_version(),
        "jax": jax.__version__,
        "kind": args.kind,
        "seed": args.seed,
        "kills": kills,
        "studies": studies,
        "by_kind": dict(sorted(by_kind.items())),
        "exit_statuses": {str(status): count for status, count in sorted(ends.items())},
        "killed_before_together": apart,
        "slowest_end_seconds": round(slowest, 1),
        "minutes": round((time.monotonic() - began) / 60, 1),
        "problems": problems,
    }
    text = "\n".join(
        [
            f"{now:%Y-%m-%d %H:%M} UTC, commit {commit}, Python {record['python']}, jax {record['jax']}, "
            f"{os.cpu_count()} cores",
            f"{len(kills)} kills of {studies} of kind {args.kind} in {record['minutes']} minutes (seed {args.seed})",
            *(f"  {count:3} x {kind}" for kind, count in record["by_kind"].items()),
            f"exit statuses of processes: {record['exit_statuses']}; the slowest end after a kill took {slowest:.0f} s",
            f"kills before the processes had come together, the others then told to end: {apart}",
            *(
                problems
                or ["no difference from the undisturbed study: state, checkpoints, metrics rows, results table"]
            ),
            "",
        ]
    )
    print(text)
    RECORDS.mkdir(exist_ok=True)
    stem = RECORDS / f"{now:%Y-%m-%d-%H%M}"
    stem.with_suffix(".json").write_text(json.dumps(record, indent=1) + "\n")
    stem.with_suffix(".txt").write_text(text)
    print(f"record: {stem}.txt")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
