"""What is found by name, in a checkout and in a wheel's layout, and never confused with files of the user's own."""

import ast
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from rfjax import shipped
from rfjax.config_files import load, load_file
from rfjax.errors import ConfigError

ROOT = Path(shipped.__file__).parents[1]
CONFIGS = [
    "backbones",
    "digits",
    "emoji",
    "formulations",
    "motion",
    "motion_full",
    "node_depth",
    "sd3_depth",
    "sd3_family",
    "shapes",
    "shapes_full",
    "shapes_hour",
    "shapes_rates",
]
SITES = ["gke_v6e", "slurm_8xh100", "tpu_v5p"]
TEMPLATES = ("slurm_points.sh", "slurm_collect.sh", "tpu_vm.sh")


def test_a_checkout_ships_its_top_level_folders():
    assert list(shipped.list_configs()) == CONFIGS and list(shipped.list_sites()) == SITES
    for folder, found in (("configs", shipped.list_configs()), ("launch", shipped.list_sites())):
        for name, path in found.items():
            assert path.samefile(ROOT / folder / f"{name}.py")
    assert list(shipped.list_tunings()) == list(shipped.TUNINGS)
    assert shipped.find_config("preference").samefile(ROOT / "configs" / "preference.py")
    for name in TEMPLATES:
        assert "Made by `rfjax launch`" in shipped.find_template(name).read_text()


def test_a_wheel_ships_them_inside_the_package(tmp_path):
    """setup.py's table, followed by hand; .ci/wheel builds and installs a real one. Catches a folder that is looked
    for where a wheel does not have it."""
    table = next(node.value for node in ast.parse((ROOT / "setup.py").read_text()).body if isinstance(node, ast.Assign))
    made = eval(compile(ast.Expression(table), "setup.py", "eval"))
    site = tmp_path / "site"
    shutil.copytree(ROOT / "rfjax", site / "rfjax", ignore=shutil.ignore_patterns("__pycache__"))
    for package, folder in made.items():
        shutil.copytree(ROOT / folder, site / Path(*package.split(".")))
    script = (
        "from rfjax import config_files, shipped\n"
        "from rfjax.training.run_folder import code_hash\n"
        "print(*shipped.list_configs(), *shipped.list_sites(), config_files.load('digits').data.corpus, code_hash())\n"
        f"for name in {TEMPLATES}: print(shipped.find_template(name).read_text()[:2])\n"
        "print(shipped.find_config('shapes'))"
    )
    (tmp_path / "empty").mkdir()
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=tmp_path / "empty",
        env=os.environ | {"PYTHONPATH": str(site)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    from rfjax.training.run_folder import code_hash

    first, *templates, shapes = done.stdout.splitlines()
    assert first.split() == [*CONFIGS, *SITES, "digits", code_hash()]  # the same code, wherever it lies
    assert templates == ["#!"] * 3
    assert shapes == str(site / "rfjax/_shipped/configs/shapes.py")


def test_paths_are_paths_and_names_are_names(tmp_path, monkeypatch):
    """Catches a file here that is taken for a shipped config, and a shipped one that is taken for a file."""
    monkeypatch.chdir(tmp_path)
    ours = shipped.list_configs()["shapes"]
    assert shipped.find_config("shapes") == shipped.find_config("shapes.py") == ours
    for text in ("./shapes.py", "configs/shapes.py", "./shapes"):
        with pytest.raises(ConfigError, match=re.escape(f"no config file at {text}")):
            shipped.find_config(text)
    with pytest.raises(ConfigError, match="no config file at ./shapes.py"):
        load_file(Path("shapes.py"))  # a Path is none of the names
    (tmp_path / "shapes").write_text("")
    Path("shapes.py").write_text("def get_config():\n    return {'name': 'mine'}\n")
    assert shipped.find_config("shapes") == ours
    assert shipped.find_config("shapes.py") == Path("shapes.py")
    assert load("shapes").name == "shapes" and load("shapes.py").name == load(Path("shapes.py")).name == "mine"


@pytest.mark.parametrize(
    ("find", "text", "message"),
    [
        (shipped.find_config, "shaps", "no config 'shaps' is shipped, and a path ends in .py; did you mean shapes? "),
        (shipped.find_config, "shpes", "did you mean shapes? "),  # not setup.py, which is in the folder, too
        (
            shipped.find_config,
            "mine",
            "did you mean mine.py? Shipped are backbones, digits, emoji, formulations, motion,",
        ),
        (shipped.find_config, "mien.py", "no config file at mien.py; did you mean mine.py? Shipped are backbones"),
        (shipped.find_config, "digit.py", "no config file at digit.py; did you mean digits? "),
        (shipped.find_config, "b/x.py", "no config file at b/x.py. Shipped are "),
        (shipped.find_site, "slurm", "no site 'slurm' is shipped, and a path ends in .py"),
        (shipped.find_site, "tpu_v5", "did you mean tpu_v5p? Shipped are gke_v6e, slurm_8xh100, tpu_v5p"),
    ],
)
def test_what_is_not_there_is_refused_with_the_nearest(find, text, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("mine.py", "setup.py"):
        Path(name).touch()
    with pytest.raises(ConfigError, match=re.escape(message)):
        find(text)
