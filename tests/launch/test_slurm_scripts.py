"""Runs the scripts for SLURM with stand-ins for SLURM's programs: what they run, and when they requeue."""

import json
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest

from helpers.launch_tiny import WEIRD, path_with, stand_in, write_study
from rfjax import cli

ROOT = Path(__file__).parents[2]


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder with a study whose config has a space in its name; the working directory."""
    monkeypatch.chdir(tmp_path)
    write_study(tmp_path, "my study.py")
    return tmp_path


def launch(*options):
    return cli.main(["launch", "--config=my study.py", "--on=slurm", *options])


def calls(folder):
    path = folder / "calls.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def script_of(text, name):
    """The file `name` as a dry run shows it."""
    return re.split(r"\n# \S.*\n(?=#!)|\n\nsbatch ", text.split(f"/{name}\n", 1)[1])[0] + "\n"


def run_script(script, bin, index=0, **more):
    """Runs an array script as SLURM would, with stand-ins in `bin` for what it calls."""
    for name in ("scontrol", "scancel"):
        if not (bin / name).exists():
            stand_in(bin, name)
    env = path_with(bin) | {"SLURM_ARRAY_TASK_ID": str(index), "SLURM_JOB_ID": "77", "SLURM_ARRAY_JOB_ID": "77"} | more
    return subprocess.Popen(["bash", str(script)], env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def wait_for(path, task):
    while not path.exists():
        assert task.poll() is None, task.stdout.read()
        time.sleep(0.01)


SRUN = "command = [a for a in sys.argv[1:] if not a.startswith('--wait')]\nos.execvp(command[0], command)\n"


def test_every_word_of_a_task_reaches_rfjax_as_it_was_given(here, capsys):
    """Catches a word that is not quoted for the shell, and a point run under another's index."""
    overrides = [f"--config.name={WEIRD}", "--config.train.learning_rate=1e-2"]
    before = set(here.rglob("*"))
    assert (
        launch("--gpus-per-node=0", f"--workdir={here}/a {WEIRD}", "--dry-run", "--setup=export LOADED=yes", *overrides)
        == 0
    )
    assert set(here.rglob("*")) == before  # a dry run writes nothing
    text = capsys.readouterr().out
    names = re.findall(r"/([\w-]+\.sh)\n#!", text)
    assert len(names) == 2
    bin = here / "bin"
    stand_in(bin, "srun", SRUN)
    stand_in(bin, "rfjax", "assert os.environ['LOADED'] == 'yes'\n")
    for name in names:
        (here / name).write_text(script_of(text, name))
        subprocess.run(["bash", "-n", here / name], check=True)
    for index in (0, 1):
        assert run_script(here / names[0], bin, index).wait() == 0
    assert run_script(here / names[1], bin).wait() == 0
    base = ["rfjax", "study", "--config=my study.py", *overrides]
    workdir = f"--workdir={here}/a {WEIRD}"
    assert [call for call in calls(bin) if call[0] == "rfjax"] == [
        [*base, "--point=depth1", workdir],
        [*base, "--point=Depth_2", workdir],
        [*base, workdir, "--collect"],
    ]
    assert run_script(here / names[0], bin, 2).wait() == 2  # an index without a point


@pytest.mark.parametrize(
    ("status", "state", "requeued"),
    [
        (0, "RUNNING", False),
        (75, "RUNNING", True),
        (143, "RUNNING", True),  # told to stop before it could say so
        (1, "RUNNING", False),
        (2, "RUNNING", False),
        (65, "RUNNING", False),  # diverged: it would diverge again
        (75, "COMPLETING", False),  # cancelled, or SLURM requeues it itself
    ],
)
def test_only_a_run_told_to_stop_is_requeued(here, monkeypatch, status, state, requeued):
    """Catches a loop of failures, a job that its owner cannot cancel, and one task speaking for its whole array."""
    bin = here / "bin"
    stand_in(bin, "sbatch", "print(5)\n")
    stand_in(bin, "srun", f"sys.exit({status})\n")
    # as SLURM does, all tasks of an array where the array's number is given
    stand_in(bin, "squeue", f"print({state!r} if '--job=77_0' in sys.argv else 'RUNNING\\nRUNNING')\n")
    monkeypatch.setenv("PATH", path_with(bin)["PATH"])
    assert launch("--gpus-per-node=0") == 0
    task = run_script(here / "runs/tiny/launch/tiny.sh", bin)
    assert task.wait() == status
    assert (["scontrol", "requeue", "77_0"] in calls(bin)) == requeued, task.stdout.read()


def test_sigterm_to_the_script_reaches_the_processes_and_waits_for_them(here, monkeypatch):
    """As before a time limit. Catches a script that ends at the signal, and with it a run that cannot save."""
    bin = here / "bin"
    stand_in(bin, "sbatch", "print(5)\n")
    monkeypatch.setenv("PATH", path_with(bin)["PATH"])
    assert launch("--gpus-per-node=0") == 0
    saving = here / "saving"
    stand_in(bin, "scancel", f"open({str(saving)!r}, 'w').close()\n")
    stand_in(
        bin,
        "srun",
        "import time\nopen('ready', 'w').close()\n"
        f"while not os.path.exists({str(saving)!r}): time.sleep(0.01)\n"
        "time.sleep(0.5)\nopen('saved', 'w').close()\nsys.exit(75)\n",
    )
    stand_in(bin, "squeue", "print('RUNNING')\n")
    with run_script(here / "runs/tiny/launch/tiny.sh", bin) as task:
        wait_for(here / "ready", task)
        task.send_signal(signal.SIGTERM)
        assert task.wait() == 75
    assert (here / "saved").exists()
    assert [call for call in calls(bin) if call[0] in ("scancel", "scontrol")] == [
        ["scancel", "--signal=TERM", "77_0"],
        ["scontrol", "requeue", "77_0"],
    ]


def test_sigterm_during_setup_requeues_without_a_start(here, monkeypatch):
    bin = here / "bin"
    stand_in(bin, "sbatch", "print(5)\n")
    stand_in(bin, "srun")
    stand_in(bin, "squeue", "print('RUNNING')\n")
    monkeypatch.setenv("PATH", path_with(bin)["PATH"])
    assert launch("--gpus-per-node=0", "--setup=touch ready; until [ -e go ]; do sleep 0.05; done") == 0
    with run_script(here / "runs/tiny/launch/tiny.sh", bin) as task:
        wait_for(here / "ready", task)
        task.send_signal(signal.SIGTERM)
        (here / "go").touch()
        assert task.wait() == 143
    names = [call[0] for call in calls(bin)]
    assert "scontrol" in names and "srun" not in names


def test_an_array_for_each_size_then_the_job_that_collects(here, monkeypatch, capsys):
    """Catches a collect that waits for one array only, points on other nodes than their mesh takes,
    and options that are lost."""
    bin = here / "bin"
    stand_in(bin, "sbatch", "print(f\"{len(open(os.path.join(here, 'calls.jsonl')).readlines())};cluster\")\n")
    monkeypatch.setenv("PATH", path_with(bin)["PATH"])
    study = here / "my study.py"
    wide = '{"model.depth": 2, "mesh.data": 16, "mesh.fsdp": 2, "evaluation.validation.batch_size": 32}'
    study.write_text(study.read_text().replace('{"model.depth": 2}', wide))
    options = (
        "--gpus-per-node=8",
        "--partition=p",
        "--account=a",
        "--time=1-00",
        "--sbatch=--qos=high prio",
        "--grace=7",
        "--workdir=w d",
    )
    assert launch(*options) == 0
    one, four = ((here / "w d/launch" / name).read_text() for name in ("tiny-1-nodes.sh", "tiny-4-nodes.sh"))
    assert calls(bin) == [
        ["sbatch", "--parsable", "w d/launch/tiny-1-nodes.sh"],
        ["sbatch", "--parsable", "w d/launch/tiny-4-nodes.sh"],
        ["sbatch", "--parsable", "--dependency=afterany:1:2", next(c[-1] for c in calls(bin) if "collect" in c[-1])],
    ]
    assert "--point=depth1" in one and "--point=Depth_2" not in one and "#SBATCH --nodes=1\n" in one
    for line in (
        "--nodes=4",
        "--array=0-0",
        "--ntasks-per-node=1",
        "--gpus-per-node=8",
        "--partition=p",
        "--account=a",
        "--time=1-00",
        "'--qos=high prio'",
        "--requeue",
        "--open-mode=append",
        "--signal=B:TERM@7",
        "'--output=w d/launch/%x-%A_%a.out'",
    ):
        assert f"#SBATCH {line}\n" in four, line
    collect = (here / calls(bin)[2][-1]).read_text()
    assert "#SBATCH --partition=p\n" in collect and "gpus" not in collect and "--qos" not in collect
    assert "scancel 1 2 3" in capsys.readouterr().out


def test_what_was_submitted_before_a_refusal_is_named(here, monkeypatch, capsys):
    bin = here / "bin"
    stand_in(bin, "sbatch", "if 'dependency' in sys.argv[2]: sys.exit('sbatch: error: no such account')\nprint(31)\n")
    monkeypatch.setenv("PATH", path_with(bin)["PATH"])
    assert launch("--gpus-per-node=0") == 1
    error = capsys.readouterr().err
    assert "no such account" in error and "scancel 31" in error


def test_nodes_follow_from_the_mesh(capsys):
    """The paper's study splits over 16: two nodes of 8 GPUs, four of 4. Catches nodes that the mesh refuses."""
    for gpus, nodes in ((8, 2), (4, 4), (16, 1)):
        assert (
            cli.main(
                [
                    "launch",
                    f"--config={ROOT}/configs/sd3_depth.py",
                    "--on=slurm",
                    f"--gpus-per-node={gpus}",
                    "--dry-run",
                    "--point=depth15",
                ]
            )
            == 0
        )
        assert f"#SBATCH --nodes={nodes}\n" in capsys.readouterr().out
