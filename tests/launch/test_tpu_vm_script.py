"""Runs the script for TPU VMs with a stand-in for gcloud that keeps slices in files."""

import json
import os
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest

from helpers.launch_tiny import WEIRD, path_with, stand_in, write_study
from rfjax import cli

# A slice is a file with its state. `plan.json` says what befalls each run of `ssh`, by slice: an exit
# status, "preempted" (the slice is suspended meanwhile) or "hang".
GCLOUD = """
import time, subprocess
verb, name = sys.argv[4], sys.argv[5].rstrip(":")
slice = os.path.join(here, "slice-" + name)
option = lambda key: next(a.split("=", 1)[1] for a in sys.argv if a.startswith(key + "="))
if verb == "describe":
    if not os.path.exists(slice):
        sys.exit(1)
    print(open(slice).read())
elif verb == "create":
    open(slice, "w").write("ACTIVE")
elif verb == "delete":
    os.remove(slice)
elif verb == "ssh":
    path = os.path.join(here, "plan.json")
    plan = json.load(open(path)) if os.path.exists(path) else {}
    mark = os.path.join(here, f"runs-{name}")
    seen = os.path.getsize(mark) if os.path.exists(mark) else 0
    open(mark, "a").write("x")
    fate = plan.get(name, [])[seen:seen + 1] or [0]
    if fate == ["preempted"]:
        open(slice, "w").write("SUSPENDED")
        sys.exit(255)
    if fate == ["hang"]:
        open(os.path.join(here, "hanging"), "w").write(str(os.getpid()) + "\\n")
        time.sleep(60)
    if fate == [0]:
        sys.exit(subprocess.call(["bash", "-c", option("--command")], env=os.environ | {"PATH": here + ":" + \
os.environ["PATH"]}))
    sys.exit(fate[0])
"""


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    stand_in(tmp_path / "bin", "gcloud", GCLOUD)
    stand_in(tmp_path / "bin", "rfjax")
    return tmp_path


OPTIONS = ("--on=tpu-vm", "--accelerator=v5litepod-8", "--zone=z", "--workdir=/mnt/s")


def script(here, capsys, *options, config="tiny.py"):
    write_study(here, config)
    assert cli.main(["launch", f"--config={config}", "--dry-run", *OPTIONS, *options]) == 0
    text = capsys.readouterr().out
    shown = re.search(r"\n# (\S.*\.sh)\n(#!.*)\nbash ", text, re.DOTALL)
    path = here / "script.sh"
    path.write_text(shown[2])
    (here / shown[1]).parent.mkdir(parents=True)
    subprocess.run(["bash", "-n", path], check=True)
    return path


def run(path, here, **settings):
    env = path_with(here / "bin") | {"RFJAX_LAUNCH_PAUSE": "0.1"}
    return subprocess.Popen(
        ["bash", path], env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **settings
    )


def ended(process):
    """All that the script printed. Kills it where it goes on for ever."""
    try:
        return process.communicate(timeout=120)[0]
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        pytest.fail("the script has not ended in two minutes")


def calls(here):
    return [json.loads(line) for line in (here / "bin/calls.jsonl").read_text().splitlines()]


def verbs(here, name):
    """gcloud's verbs for a slice, without those that look at its state."""
    asked = [call for call in calls(here) if call[0] == "gcloud" and name in (call[5], call[6].rstrip(":"))]
    return [call[4] for call in asked if call[4] != "describe"]


def test_slices_are_asked_for_used_and_given_back(here, capsys):
    """Catches words that two shells read, a config that workers lack, a slice that is kept, and a
    collect before the points have ended."""
    path = script(
        here,
        capsys,
        "--spot",
        "--project=p",
        f"--config.name={WEIRD}",
        f"--workdir=/mnt/{WEIRD}",
        "--setup=export A=1",
        config="my study.py",
    )
    done = run(path, here, start_new_session=True)
    out = ended(done)
    assert done.returncode == 0, out
    base = ["rfjax", "study", "--config=my study.py", f"--config.name={WEIRD}"]
    workdir = f"--workdir=/mnt/{WEIRD}"
    ran = [call for call in calls(here) if call[0] == "rfjax"]
    assert sorted(ran[:2]) == sorted([[*base, "--point=depth1", workdir], [*base, "--point=Depth_2", workdir]])
    assert ran[2:] == [[*base, workdir, "--collect"]]
    created = [call for call in calls(here) if call[4:5] == ["create"]]
    assert len(created) == 3
    for call in created[:2]:
        name = call[5]
        assert re.fullmatch(r"[a-z][a-z0-9-]{0,62}", name)
        assert set(call[6:]) == {
            f"--node-id={name}",
            "--accelerator-type=v5litepod-8",
            "--zone=z",
            "--project=p",
            "--runtime-version=v2-alpha-tpuv5-lite",
            "--spot",
        }
        assert verbs(here, name) == ["create", "scp", "ssh", "delete"]
    assert "--accelerator-type=v5litepod-1" in created[2]
    sent = next(call for call in calls(here) if call[4:5] == ["scp"])
    assert sent[5] == str(here / "my study.py") and "--worker=all" in sent
    assert not list((here / "bin").glob("slice-*"))


def test_a_point_on_several_slices_is_one_request_and_one_command(here, capsys):
    """Catches a command for the first slice alone, which would wait for the others for ever, and a collect on all."""
    layout = "--config.mesh.fsdp=16", "--config.evaluation.validation.batch_size=32"
    path = script(here, capsys, "--accelerator=2xv5litepod-16", "--point=depth1", *layout)
    done = run(path, here, start_new_session=True)
    out = ended(done)
    assert done.returncode == 0, out
    asked = [call for call in calls(here) if call[0] == "gcloud" and call[4] != "describe"]
    (create, scp, ssh, _, collect, *_) = asked
    name = "tiny-depth1"
    assert create[5] == name and {f"--node-prefix={name}", "--node-count=2", "--accelerator-type=v5litepod-16"} < {
        *create
    }
    assert scp[3:5] == ["queued-resources", "scp"] and ssh[3:6] == ["queued-resources", "ssh", name]
    assert {"--node=all", "--worker=all"} < {*scp} and {"--node=all", "--worker=all", "--batch-size=all"} < {*ssh}
    assert "--accelerator-type=v5litepod-1" in collect and not [word for word in collect if "node-count" in word]
    assert not list((here / "bin").glob("slice-*"))


@pytest.mark.parametrize(
    ("fate", "expected", "status"),
    [
        (["preempted", 75, 0], ["create", "scp", "ssh", "delete", "create", "scp", "ssh", "scp", "ssh", "delete"], 0),
        ([65], ["create", "scp", "ssh", "delete"], 1),  # diverged: it would again
        ([1] * 9, ["create", *["scp", "ssh"] * 5, "delete"], 1),  # no loop without end
    ],
)
def test_a_slice_that_is_taken_is_asked_for_again(here, capsys, fate, expected, status):
    path = script(here, capsys, "--point=depth1")
    (here / "bin/plan.json").write_text(json.dumps({"tiny-depth1": fate}))
    done = run(path, here, start_new_session=True)
    out = ended(done)
    assert verbs(here, "tiny-depth1") == expected, out
    assert done.returncode == status
    assert [call[-1] for call in calls(here) if call[0] == "rfjax"][-1] == "--collect"  # what there is, is reported
    assert not list((here / "bin").glob("slice-*"))


def test_stopping_the_script_ends_its_tasks_and_says_what_still_costs(here, capsys):
    """Catches runs that go on unseen, and slices that are paid for unnoticed."""
    path = script(here, capsys, "--point=depth1")
    (here / "bin/plan.json").write_text(json.dumps({"tiny-depth1": ["hang"]}))
    with run(path, here, start_new_session=True) as process:
        hanging = here / "bin/hanging"
        while not (hanging.exists() and hanging.read_text().endswith("\n")):
            assert process.poll() is None
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        out = process.communicate(timeout=30)[0]
    assert process.returncode == 143
    task = Path("/proc") / hanging.read_text().strip()
    deadline = time.monotonic() + 20
    while task.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not task.exists()
    assert "tiny-depth1" in out and "costs money" in out and "queued-resources delete" in out
    assert (here / "bin/slice-tiny-depth1").exists()
