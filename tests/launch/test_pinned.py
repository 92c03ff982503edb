"""What each scheduler is given for the same options, byte for byte: scripts, manifests, commands and the summary.

Catches a change of what runs on machines that no test has. An intended change is written into `pinned/`.
"""

from pathlib import Path

import pytest

from helpers.launch_tiny import write_study
from rfjax import cli

PINNED = Path(__file__).parent / "pinned"
OPTIONS = {
    "slurm": (
        "--on=slurm",
        "--gpus-per-node=8",
        "--partition=p",
        "--account=a",
        "--time=1-00",
        "--sbatch=--qos=high prio",
        "--sbatch=--exclusive",
        "--grace=7",
        "--setup=module load cuda; . env",
        "--config.train.learning_rate=1e-2",
    ),
    "tpu_vm": (
        "--on=tpu-vm",
        "--accelerator=v5litepod-8",
        "--zone=z",
        "--workdir=/mnt/s",
        "--spot",
        "--project=p",
        "--gcloud=--labels=a=b",
        "--setup=export A=$B",
    ),
    "gke": (
        "--on=gke",
        "--accelerator=v5p-16",
        "--image=i:1",
        "--volume=gs://bucket",
        "--spot",
        "--namespace=n",
        "--service-account=me",
        "--max-restarts=3",
        "--setup=export TOKEN=$(echo 5)",
        "--grace=90",
    ),
}


@pytest.mark.parametrize("name", OPTIONS)
def test_a_dry_run_shows_the_same_bytes(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_study(tmp_path, "my study.py")
    assert cli.main(["launch", "--config=my study.py", "--dry-run", *OPTIONS[name]]) == 0
    assert capsys.readouterr().out.replace(str(tmp_path), "/HERE") == (PINNED / f"{name}.txt").read_text()
