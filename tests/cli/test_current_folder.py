"""Code that only lies in the current folder is not run, however a command and its children are started."""

import subprocess
import sys

import pytest

from helpers.child_process import environment
from rfjax.plan import compiled

NAMES = ("jax", "numpy", "ml_collections", "json", "libtpu")  # of modules that a command imports


@pytest.fixture
def trap(tmp_path):
    """A folder whose modules leave a mark where they are run."""
    for name in NAMES:
        (tmp_path / f"{name}.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'a').write('{name} ')\n")
    (tmp_path / "jax_plugins").mkdir()
    (tmp_path / "jax_plugins" / "one.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'a').write('plugin ')\n")
    return tmp_path


def run(words, folder, **more):
    plain = {name: value for name, value in environment().items() if name != "GLIBC_TUNABLES"}
    done = subprocess.run(words, cwd=folder, env=plain, capture_output=True, text=True, **more)
    assert not (folder / "ran").exists(), (folder / "ran").read_text()
    return done


def test_a_command_that_starts_itself_again_runs_nothing_of_the_folder(trap):
    """By its script and by `-m`. Catches a start again by `-m` where the user gave the script."""
    script = trap / "bin" / "rfjax"
    script.parent.mkdir()
    script.write_text("import sys\nfrom rfjax.cli import main\nsys.exit(main())\n")
    for start in ([str(script)], ["-m", "rfjax"]):
        done = run([sys.executable, *start, "bench", "--config=shapes", "--steps=0"], trap)
        assert (done.returncode, done.stderr) == (2, "rfjax: --steps is 0; it must be at least 1\n")


def test_the_process_that_compiles_runs_nothing_of_the_folder(trap):
    done = run(compiled.child_command("rfjax.plan.worker"), trap, input="no JSON")
    assert "JSONDecodeError" in done.stderr


def test_a_shipped_name_is_the_shipped_config(trap):
    """The default study, whatever file the folder has under its name."""
    (trap / "shapes.py").write_text(f"open({str(trap / 'ran')!r}, 'a').write('shapes ')\n")
    done = run([sys.executable, "-m", "rfjax", "bench", "--config=shapes", "--point=none"], trap)
    assert "the study shapes has no point 'none'" in done.stderr
