"""What cannot be launched is refused before anything is written, with the remedy."""

import os

import pytest

from helpers.launch_tiny import write_study
from rfjax import cli
from rfjax.launch.tasks import LONGEST_NAME, scheduler_name

SLURM = ("--on=slurm", "--gpus-per-node=0")
TPU = ("--on=tpu-vm", "--zone=z", "--workdir=/mnt/s")
GKE = ("--on=gke", "--image=i", "--volume=pvc:c")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--on=slrum",), "--on is 'slrum'; it must be one of slurm, tpu-vm, gke; did you mean slurm?"),
        ((*SLURM, "--point=depth3"), "no point 'depth3'; it has depth1, Depth_2"),
        ((*SLURM, "--config.train.stpes=3"), "did you mean config.train.steps?"),
        (("--on=slurm",), "--on=slurm needs --gpus-per-node (GPUs of a node; 0 for nodes without); give it, or fill"),
        ((*SLURM, "--zone=z"), "--zone is for --on=tpu-vm, and this is --on=slurm"),
        ((*SLURM, "--spot"), "--spot is for --on=tpu-vm or gke"),
        ((*SLURM, "--sbatch=qos"), "'qos' cannot be an option of sbatch; write it as --FLAG=VALUE"),
        ((*SLURM, "--partision=p"), "did you mean --partition?"),
        ((*SLURM, "--grace=0"), "--grace is 0; it must be at least 1"),
        (
            ("--on=slurm", "--gpus-per-node=8", "--config.mesh.data=3"),
            "point depth1 on 1 node(s) of 8 GPUs: config.mesh.data=3",
        ),
        (("--on=slurm", "--gpus-per-node=4", "--config.mesh.fsdp=3"), "batch_size=64 is not divisible by"),
        (("--on=slurm", "--gpus-per-node=8", "--nodes=9"), "batch_size=64 is not divisible by"),
        (
            ("--on=slurm", "--gpus-per-node=8", "--config.evaluation.validation.batch_size=60"),
            "config.evaluation.validation.batch_size=60 is not divisible by the 8 devices",
        ),
        (("--on=tpu-vm", "--accelerator=v5p-8", "--zone=z"), "--on=tpu-vm needs --workdir ("),
        ((*TPU, "--accelerator=v5p-8", "--workdir=runs/a"), "must be the absolute path of a folder that outlives them"),
        ((*TPU, "--accelerator=v5p-8", "--workdir=gs://b/a"), "a URL; rfjax reads and writes mounted folders"),
        (
            (*TPU, "--accelerator=v7p-8"),
            "--accelerator v7p-8: unknown chip 'v7p': its peak and its links are not known; did you mean v7x or v5p?",
        ),
        ((*TPU, "--accelerator=v5p-12"), "there is no v5p of 12 TensorCores"),
        ((*TPU, "--accelerator=h100x8"), "is no TPU; use --on gke or --on slurm"),
        ((*TPU, "--accelerator=v7x-8"), "tpu7x-8 is not sold as TPU VMs"),
        ((*GKE, "--accelerator=mi300x8"), "no machines of mi300x on Google's cloud; it has v4, v5p"),
        (
            (*TPU, "--accelerator=v5p-256", "--config.mesh.data=256"),
            "v5p-256: 128 chips, 256 TensorCores, topology 4x4x8: config.mesh.data=256",
        ),
        (
            (*GKE, "--accelerator=v5litepod-16", "--config.mesh.data=8"),
            "v5e-16: 16 chips, 16 TensorCores, topology 4x4: config.mesh.data=8",
        ),
        ((*GKE, "--accelerator=2xv5p-8"), "v5p-8 is one machine, and GKE joins only slices of several"),
        ((*GKE, "--accelerator=2xh100x8"), "no 2 slices of h100x8; count the GPUs of all nodes"),
        (
            (*TPU, "--accelerator=2xv5p-16", "--config.mesh.fsdp=16"),
            "2xv5p-16: 2 slices, 16 chips, 32 TensorCores, topology 2x2x2: config.mesh.data=-1, config.mesh.fsdp=16, "
            "config.mesh.tensor=1: only data goes over slices",
        ),
        (
            (*TPU, "--accelerator=2xv5p-16", "--config.mesh.slices=4"),
            "devices are in 2 slice(s); set it to 2 or -1",
        ),
        ((*GKE, "--accelerator=v5p-8", "--volume=nfs"), "--volume is 'nfs'; write pvc:CLAIM"),
        ((*GKE, "--accelerator=v5p-8", "--workdir=/mnt/a"), "it must lie in /rfjax, where --volume is mounted"),
        ((*GKE, "--accelerator=v5p-8", "--workdir=/rfjax/../a"), "it must lie in /rfjax"),
        (SLURM, "there is no sbatch on the PATH"),
        ((*TPU, "--accelerator=v5p-8"), "there is no gcloud on the PATH"),
        (
            (*GKE, "--accelerator=v5p-8"),
            "there is no kubectl on the PATH: install it, or run this where it is; --dry-run shows what would be run",
        ),
    ],
)
def test_refusals(options, message, tmp_path, monkeypatch, capsys):
    write_study(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    before = os.listdir()
    assert cli.main(["launch", "--config=tiny.py", *options]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert [name for name in os.listdir() if name != "__pycache__"] == before


def test_a_study_without_points_is_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "none.py").write_text("def get_config():\n    return {}\ndef points():\n    return {}\n")
    assert cli.main(["launch", "--config=none.py", *SLURM, "--dry-run"]) == 2
    assert "points() of none.py returned {}; it must return a mapping of at least one id" in capsys.readouterr().err


def test_names_fit_every_scheduler_and_stay_apart():
    """Catches two points under one name: the second would get the first one's slice."""
    texts = ["a-b", "a_b", "a.b", "A-b", "a b", "-a-b", "1a", "x" * 80, "x" * 81, "$()", "a/b", ""]
    names = [scheduler_name(text) for text in texts]
    assert len(set(names)) == len(texts) and names[0] == "a-b"
    for name in names:
        assert name[0].isalpha() and name[-1] != "-" and len(name) <= LONGEST_NAME
        assert not set(name) - set("abcdefghijklmnopqrstuvwxyz0123456789-")
