"""Kills a command on a small study at random times again and again, and compares its results, bit for bit, with those
of an undisturbed command.

    python analysis/kills.py --kills 50 --seed 0 --folder DIR                # a study
    python analysis/kills.py --kind tune --kills 20 --seed 0 --folder DIR    # the tuning of a study of two sizes

`kill_kinds.py` has the table of kinds. Each attempt is, at random, one process of two simulated devices or two
processes of one device; collecting and exporting have one process. After a random time, one process or both get SIGKILL
or SIGTERM. If only one was killed, the other must end by itself; if the other has not joined the job yet, it is told to
end, as a scheduler would do. Then the same command is given again. When a command ends by itself, all that it left is
compared, and the next command starts in a new folder, until there have been enough kills. The last command runs to its
end. A dated record goes to analysis/kill_records/, with the number of kills of each kind in all records there.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path

from kill_kinds import KINDS, Kind, differences, study_command
from tqdm import tqdm

ROOT = Path(__file__).resolve().parent.parent
RECORDS = ROOT / "analysis" / "kill_records"
LOST_AFTER, WAIT = 10, 120  # seconds: the job's heartbeat, and how long an attempt may take to end once it was killed
STATUSES = {
    0,
    75,
    143,
    -signal.SIGKILL,
    -signal.SIGTERM,
}  # exit statuses allowed for a process that was killed, or whose peer was killed


def start(folder: Path, words: list[str], processes: int, cache: Path) -> list[subprocess.Popen]:
    """Starts the command in `processes` processes with two devices in all; their output is appended to FOLDER.said."""
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
    command = [sys.executable, "-P", "-m", "rfjax", *words]
    started = []
    for index in range(processes):
        job = [f"--coordinator=127.0.0.1:{port}", f"--processes={processes}", f"--process-id={index}"]
        job += [f"--lost-after={LOST_AFTER}"]
        with open(f"{folder}.said", "a") as said:
            started.append(
                subprocess.Popen(command + (job if processes > 1 else []), env=environment, stdout=said, stderr=said)
            )
    return started


def wait(started: list[subprocess.Popen], seconds: float) -> bool:
    """Waits for the processes to end; returns False if some still run after `seconds`."""
    deadline = time.monotonic() + seconds
    while any(process.poll() is None for process in started):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


def together(folder: Path, since: int, processes: int) -> bool:
    """Whether FOLDER.said, from byte `since` on, says that all processes of the attempt had joined one job."""
    with open(f"{folder}.said") as said:
        said.seek(since)
        return said.read().count("all have come together") == processes


def command_in(folder: Path, kind: Kind, config: Path, base: Path) -> list[str]:
    """Returns the kind's command for a folder. Makes the folder if it does not exist: empty, or as a copy of `base` if
    the kind has `in_copy`."""
    if not folder.exists():
        shutil.copytree(base, folder) if kind.in_copy else folder.mkdir()
    return kind.command(folder, config, base)


def total_kills() -> dict[str, int]:
    """Returns {kind: number of its kills in all records}. A kind's count starts again after a record with problems,
    because the fault was then mended."""
    totals: dict[str, int] = {}
    for path in sorted(RECORDS.glob("*.json")):
        record = json.loads(path.read_text())
        kind = record.get("kind", "study")
        totals[kind] = 0 if record["problems"] else totals.get(kind, 0) + len(record["kills"])
    return totals


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kind", choices=KINDS, default="study", help="what is killed (default study)")
    parser.add_argument("--kills", type=int, default=50, help="at least so many (default 50)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the times and kinds of kills (default 0)")
    parser.add_argument("--folder", type=Path, required=True, help="a new folder for the studies")
    args = parser.parse_args()
    args.folder = args.folder.absolute()
    args.folder.mkdir(parents=True)
    sys.path.insert(0, str(ROOT))
    config, cache, base = (args.folder / name for name in ("killed.py", "cache", "base"))
    kind = KINDS[args.kind]
    config.write_text(kind.config)
    if kind.base is not None:
        (args.folder / "base.py").write_text(kind.base)
        running = start(base, study_command(base, args.folder / "base.py", base), 1, cache)
        if not wait(running, 3600) or running[0].returncode:
            raise SystemExit(f"the study to start from failed; see {base}.said")
        for made in ("results", "report"):
            shutil.rmtree(base / made, ignore_errors=True)
    dice, began = random.Random(args.seed), time.monotonic()

    calm, lengths = {}, {}
    for processes in kind.processes:  # all must give the same bits; also measures how long each takes
        folder = args.folder / f"undisturbed{processes}"
        for name in ("filling the cache", "timed"):
            print(f"undisturbed, {processes} process{'es' * (processes > 1)}: {name}", flush=True)
            at = folder.with_name(f"{folder.name}-{name.split()[0]}")
            since = time.monotonic()
            running = start(at, command_in(at, kind, config, base), processes, cache)
            if not wait(running, 3600) or any(process.returncode for process in running):
                raise SystemExit(f"the undisturbed study failed; see {at}.said")
            lengths[processes] = time.monotonic() - since
        calm[processes] = kind.ends(at)
    problems = [f"{n} processes, undisturbed: {wrong}" for n in calm for wrong in differences(calm[n], calm[1])]

    kills, ends, studies, slowest, apart = [], Counter(), 0, 0.0, 0
    bar = tqdm(total=args.kills, unit="kill", smoothing=0.1)
    while len(kills) < args.kills:
        folder = args.folder / f"killed{studies}"
        done = False
        while not done:
            if kind.product and (folder / kind.product).exists():
                done = True  # the kill came after the last write
                break
            processes = dice.choice(kind.processes)
            said = Path(f"{folder}.said").stat().st_size if Path(f"{folder}.said").exists() else 0
            running = start(folder, command_in(folder, kind, config, base), processes, cache)
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
            if any(process.returncode not in STATUSES for process in running):
                break  # the same command would end so again
            done = all(process.returncode == 0 for process in running)
        if done:
            problems += [f"{folder.name}: {wrong}" for wrong in differences(kind.ends(folder), calm[1])]
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
    compared = sorted({name.split(": ")[-1] for name in calm[1]})
    text = "\n".join(
        [
            f"{now:%Y-%m-%d %H:%M} UTC, commit {commit}, Python {record['python']}, jax {record['jax']}, "
            f"{os.cpu_count()} cores",
            f"{len(kills)} kills of {studies} of kind {args.kind} in {record['minutes']} minutes (seed {args.seed})",
            *(f"  {count:3} x {kind}" for kind, count in record["by_kind"].items()),
            f"exit statuses of processes: {record['exit_statuses']}; the slowest end after a kill took {slowest:.0f} s",
            f"kills before the processes had come together, the others then told to end: {apart}",
            *(problems or [f"no difference from the undisturbed command: {', '.join(compared)}"]),
            "",
        ]
    )
    RECORDS.mkdir(exist_ok=True)
    stem = RECORDS / f"{now:%Y-%m-%d-%H%M}"
    stem.with_suffix(".json").write_text(json.dumps(record, indent=1) + "\n")
    counts = ", ".join(f"{count} of kind {kind}" for kind, count in sorted(total_kills().items()))
    text += f"kills without a fault, in all records: {counts}\n"
    print(text)
    stem.with_suffix(".txt").write_text(text)
    print(f"record: {stem}.txt")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
