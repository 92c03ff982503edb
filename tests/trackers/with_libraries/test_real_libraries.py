"""The real libraries, writing locally: the same curve in all, whatever is killed. `pip install 'rfjax[trackers]'`"""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from helpers import child_process, tracked, training_tiny

pytestmark = pytest.mark.full
ALL = ["tensorboard", "wandb", "mlflow"]
KILLS, STEPS = 20, 1000


def environment(folder):
    own = {"WANDB_MODE": "offline", "MLFLOW_TRACKING_URI": f"file://{folder}/mlflow", "MLFLOW_ALLOW_FILE_STORE": "true"}
    return child_process.quick_environment() | own


def start(workdir, **more):
    arguments = {
        "look": 0.1,
        "pause": 0.5,
        "overrides": {"train.trackers": ALL, "train.steps": STEPS, "train.log_every": 1, "train.checkpoint_every": 2},
    }
    command = [sys.executable, training_tiny.__file__, str(workdir), json.dumps(arguments | more)]
    with open(f"{workdir}.said", "a") as said:
        return subprocess.Popen(command, env=environment(workdir.parent), stdout=said, stderr=said)


def descendants(pid):
    """The processes that a process started, and those that they started."""
    parents = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(path.parent.name)] = int(path.read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
    found, more = [], [pid]
    while more:
        more = [child for child, parent in parents.items() if parent in more]
        found += more
    return found


def kill(pid):
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        pass


def test_the_same_curve_is_in_all_trackers_after_twenty_kills(tmp_path, monkeypatch):
    """Catches rows that a library held in memory when the cursor said that they were sent: half of the kills take the
    library's own processes, too."""
    workdir, dice, fed = tmp_path / "run", random.Random(0), 0
    cursors = [workdir / "trackers" / f"{name}.json" for name in ALL]

    def numbers():
        return [json.loads(path.read_text())["number"] if path.exists() else 0 for path in cursors]

    for number in range(KILLS):
        before = numbers()
        process = start(workdir)
        # Kills fall anywhere, but every second waits until all trackers have gone on: else nothing is ever sent.
        deadline = time.monotonic() + (600 if number % 2 else dice.uniform(5, 40))
        while process.poll() is None and time.monotonic() < deadline:
            if number % 2 and all(now > then for now, then in zip(numbers(), before, strict=True)):
                time.sleep(dice.uniform(0, 1.5))
                break
            time.sleep(0.01)
        fed += numbers() != before
        children = descendants(process.pid) if number % 4 < 2 else []
        kill(process.pid)
        for child in children:
            kill(child)
        assert process.wait(60) == -signal.SIGKILL, "it ended before it was killed"
    with start(workdir, pause=0.0) as process:
        assert process.wait(900) == 0
    assert fed >= KILLS // 2
    rows = tracked.of_rows(workdir)
    assert {step for name, step in rows if name == "loss"} == set(range(1, STEPS + 1))
    tracked.check_same(tracked.of_events(workdir / "tensorboard"), rows, tracked.as_float32)
    tracked.check_same(tracked.of_wandb(workdir), rows)
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    tracked.check_same(tracked.of_mlflow(f"file://{tmp_path}/mlflow", {name for name, _ in rows}), rows)
    folders = list((workdir / "wandb").glob("offline-run-*"))
    assert len(folders) <= KILLS + 1 and len({path.name.split("-")[-1] for path in folders}) == 1


def test_evaluations_and_pictures_are_in_all(tmp_path, monkeypatch):
    from PIL import Image

    from helpers.training_tiny import run_in, tiny_config
    from rfjax.evaluation.records import Measured, make_record, record_key, write_record
    from rfjax.trackers import feeding

    for name, value in environment(tmp_path).items():
        monkeypatch.setenv(name, value)
    training_tiny.tiny_train(tmp_path / "run", {"train.trackers": ALL})
    run = run_in(tmp_path / "run", tiny_config({"train.trackers": ALL}))
    (run.workdir / "samples").mkdir()
    Image.new("RGB", (6, 4)).save(run.workdir / "samples" / "a.png")
    key = {"run": "run", "step": 24, "corpus": "random", "weights": "ema"}
    value = Measured.within(metric="loss", item="t=0.5", value=0.5, stderr=0.1, n=4)
    write_record(run.workdir, make_record(record_key(evaluation="validation", grid="paper", **key), [value]))
    write_record(run.workdir, make_record(record_key(evaluation="samples", **key), [], extra={"png": "samples/a.png"}))
    with feeding.follow([run]):
        pass
    name = "validation/ema/random paper/loss/t=0.5"
    assert tracked.of_wandb(run.workdir)[name, 24] == [0.5]
    plain = name.replace("=", "_")
    assert tracked.of_mlflow(f"file://{tmp_path}/mlflow", {plain})[plain, 24] == [0.5]
    assert tracked.of_events(run.workdir / "tensorboard")[name.replace("=", "_").replace(" ", "_"), 24] == [0.5]
    assert list(run.workdir.glob("wandb/*/files/media/images/**/*.png"))
    assert list((tmp_path / "mlflow").glob("*/*/artifacts/samples/a.png"))


def test_what_is_missing_is_told_with_its_remedy(tmp_path, monkeypatch):
    """In processes of their own, because the libraries read the environment once."""
    script = "from rfjax.trackers.table import check\nimport sys\ncheck([sys.argv[1]])"

    def said(tracker, **environment):
        plain = {"HOME": str(tmp_path), "WANDB_MODE": "online", "WANDB_API_KEY": "", "MLFLOW_TRACKING_URI": ""}
        env = child_process.environment(**(plain | environment))
        command = [sys.executable, "-c", script, tracker]
        return subprocess.run(command, env=env, capture_output=True, text=True).stderr

    assert "; run `wandb login`, set WANDB_API_KEY" in said("wandb")
    assert "WANDB_MODE=disabled" in said("wandb", WANDB_MODE="disabled")
    assert said("wandb", WANDB_MODE="offline") == "" and said("wandb", WANDB_API_KEY="a" * 40) == ""
    assert said("wandb", WANDB_MODE="dryrun") == "" and "refuses its settings" in said("wandb", WANDB_MODE="onlin")
    stored = tmp_path / "netrc"
    stored.write_text("machine localhost:8080 login user password " + "a" * 40 + "\n")
    server = {"WANDB_BASE_URL": "http://localhost:8080", "NETRC": str(stored)}
    assert said("wandb", **server) == ""
    assert "no login for http://localhost:8081" in said("wandb", **server | {"WANDB_BASE_URL": "http://localhost:8081"})
    (tmp_path / ".netrc").write_text(stored.read_text())
    stored.write_text("")  # W&B reads NETRC alone, where it is set
    assert "no login for http://localhost:8080" in said("wandb", **server)
    assert "the environment has no MLFLOW_TRACKING_URI; set it to your server" in said("mlflow")
    assert "cannot be used: " in said("mlflow", MLFLOW_TRACKING_URI="file:///nowhere", MLFLOW_ALLOW_FILE_STORE="")
    assert said("mlflow", MLFLOW_TRACKING_URI="http://127.0.0.1:1") == ""


@pytest.mark.parametrize("tracker", ["wandb", "mlflow"])
def test_without_a_network_training_ends_as_ever(tmp_path, tracker):
    """Catches a process that waits for a server when it should end: at the end of training, or when Python exits."""
    arguments = {"look": 0.1, "overrides": {"train.trackers": [tracker]}, "last": 5.0}
    command = [sys.executable, training_tiny.__file__, str(tmp_path / "run"), json.dumps(arguments)]
    more = {"WANDB_MODE": "online", "WANDB_API_KEY": "a" * 40, "WANDB_BASE_URL": "http://127.0.0.1:1"}
    more |= {"MLFLOW_TRACKING_URI": "http://127.0.0.1:1"}
    done = subprocess.run(
        command, env=child_process.quick_environment() | more, capture_output=True, text=True, timeout=150
    )
    assert done.returncode == 0, done.stderr
    assert f"{tracker}: " in done.stderr
    assert json.loads((tmp_path / "run" / "status.json").read_text())["state"] == "done"


def test_a_log_is_read_as_it_grows(tmp_path):
    """Catches a row across two blocks that is missed: a flush would then wait for it in vain."""
    import struct

    from wandb.proto.wandb_internal_pb2 import Record

    from rfjax.trackers.wandb_runs import BLOCK, LogScan, records

    def record(number):
        made = Record()
        made.history.step.num = number
        made.history.item.add(key="loss", value_json="1" * 3000)
        return made.SerializeToString()

    content, count = bytearray(b":W&B" + bytes(3)), 40
    for number in range(count):
        payload, first = record(number), True
        while payload or first:
            left = BLOCK - len(content) % BLOCK
            if left < 7:
                content += bytes(left)
                continue
            piece, payload = payload[: left - 7], payload[left - 7 :]
            kind = (1 if first else 4) if not payload else (2 if first else 3)
            content += struct.pack("<IHB", 0, len(piece), kind) + piece
            first = False
    assert len(content) > 3 * BLOCK
    assert [each.history.step.num for each in records(bytes(content))] == list(range(count))
    path, seen = tmp_path / "run.wandb", []
    scan = LogScan(path)
    for end in range(100, len(content) + 1, 997):
        path.write_bytes(content[:end])
        scan.go_on()
        seen.append(-1 if scan.last is None else scan.last)
        whole = [each.history.step.num for each in records(bytes(content[:end]))]
        assert seen[-1] == (whole[-1] if whole else -1)
    path.write_bytes(content)
    scan.go_on()
    assert scan.last == count - 1 and sorted(seen) == seen
