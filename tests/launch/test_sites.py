"""Sites, the files that say where to run, and the schedulers' common protocol."""

import re
import shutil
from pathlib import Path

import pytest

from helpers.launch_tiny import write_study
from rfjax import cli, shipped
from rfjax.config_files import call, load_file
from rfjax.launch.command import TARGETS
from rfjax.launch.target import Target
from rfjax.study.study import load_study

SITE = """
def get_site():
    return {"on": "slurm", "gpus_per_node": 0, "partition": "p", "setup": None, "sbatch": ["--exclusive"], "grace": 9}
"""
COMPLETE = ("--setup=true", "--partition=q", "--zone=z", "--image=i", "--volume=pvc:c")


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_study(tmp_path)
    return tmp_path


def launch(*options):
    return cli.main(["launch", "--config=tiny.py", "--dry-run", *options])


def test_a_site_gives_what_belongs_to_the_place_and_flags_override_it(here, capsys):
    """Catches a site whose fields are lost, and a site that overrides a flag."""
    Path("mine.py").write_text(SITE)
    flags = ["--on=slurm", "--gpus-per-node=0", "--partition=p", "--sbatch=--exclusive", "--grace=9", "--setup=a b"]
    assert launch(*flags) == 0
    by_flags = capsys.readouterr().out
    assert launch("--site=mine.py", "--setup=a b") == 0
    assert capsys.readouterr().out == by_flags
    assert launch("--site=mine.py", "--setup=a b", "--grace=5", "--sbatch=--qos=high", "--partition=q") == 0
    out = capsys.readouterr().out
    assert "TERM@5" in out and "--qos=high" in out and "--partition=q" in out
    assert "exclusive" not in out and "--partition=p" not in out


def test_the_studys_folder_lies_in_the_sites_storage(here, capsys):
    Path("mine.py").write_text(SITE.replace('"grace": 9', '"storage": "/shared/"'))
    assert launch("--site=mine.py", "--setup=x") == 0
    out = capsys.readouterr().out
    assert "--workdir=/shared/tiny " in out and "# /shared/tiny/launch/tiny.sh" in out
    assert launch("--site=mine.py", "--setup=x", "--workdir=there") == 0
    assert "--workdir=there " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("old", "new", "options", "message"),
    [
        ("", "", (), "--on=slurm needs --setup (shell commands that each task runs first"),
        ("", "", (), "give it, or fill the field setup of the site mine.py"),
        ("partition", "partision", (), "the site mine.py has no field 'partision'; did you mean partition?"),
        ("partition", "qqq", (), "the fields are on, setup, storage, grace, gpus_per_node"),
        (
            '"gpus_per_node": 0',
            '"gpus_per_node": "8"',
            (),
            "gpus_per_node of the site mine.py is '8'; it must be a whole",
        ),
        ('["--exclusive"]', '"--exclusive"', (), "it must be a list of texts"),
        ("9", "0", ("--setup=x",), "the field grace of the site mine.py is 0; it must be at least 1"),
        (
            '"partition": "p"',
            '"zone": "z"',
            ("--setup=x",),
            "the field zone of the site mine.py is for --on=tpu-vm, and",
        ),
        ("", "", ("--on=gke", "--setup=x"), "is for --on=slurm, and this is --on=gke"),
        ('"slurm"', '"slrum"', (), "--on is 'slrum'; it must be one of slurm, tpu-vm, gke; did you mean slurm?"),
        ('"on": "slurm", ', "", (), "neither --on nor a --site says where to run"),
        ("return {", "return 3, {", (), "it must return a ConfigDict"),
        ("get_site", "get_sight", (), "site file mine.py has no get_site()"),
    ],
)
def test_a_site_that_cannot_be_used_is_refused(old, new, options, message, here, capsys):
    Path("mine.py").write_text(SITE.replace(old, new))
    assert launch("--site=mine.py", *options) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


@pytest.mark.parametrize("name", shipped.list_sites())
def test_a_shipped_site_asks_for_what_it_leaves_open_and_runs_with_it(name, here, capsys):
    """Catches a shipped site with an account, a project or a bucket, and a site that no flags complete."""
    site = call(load_file(name, "site"), "get_site", name).to_dict()
    assert not {"account", "project", "service_account", "namespace"} & set(site)
    assert "gs://" not in str(site) and "gcsfuse" not in str(site)
    left_open = [field for field, value in site.items() if value is None]
    given = []
    for _ in left_open:
        assert launch(f"--site={name}", "--config.mesh.data=-1", *given) == 2
        error = capsys.readouterr().err
        asked = re.search(rf"needs (--\w+) .* fill the field \w+ of the site {name}", error)
        assert asked, error
        given.append(next(flag for flag in COMPLETE if flag.startswith(asked[1] + "=")))
    batches = "--config.train.batch_size=256", "--config.evaluation.validation.batch_size=256"
    assert launch(f"--site={name}", *batches, *given) == 0
    assert f"study tiny on {site['on']}: 2 point(s)" in capsys.readouterr().out


@pytest.mark.parametrize("name", shipped.list_configs())
def test_a_shipped_config_needs_no_file_beside_it(name, tmp_path):
    """TPU VMs and GKE are given the config file alone. Catches a config that reads another file beside it."""
    alone = shutil.copy(shipped.find_config(name), tmp_path / "alone.py")
    assert load_study(alone) == load_study(name)


@pytest.mark.parametrize(
    ("on", "needed"),
    [
        ("slurm", {"gpus_per_node": 8}),
        ("tpu-vm", {"accelerator": "v5p-8", "zone": "z"}),
        ("gke", {"accelerator": "v5p-8", "image": "i", "volume": "pvc:c"}),
    ],
)
def test_every_scheduler_is_a_target_and_needs_these_alone(on, needed):
    """Catches a row of the table without a part of the protocol, and an option that became needed."""
    assert isinstance(TARGETS[on](**needed), Target)
    for name in needed:
        with pytest.raises(TypeError, match=name):
            TARGETS[on](**{key: value for key, value in needed.items() if key != name})
