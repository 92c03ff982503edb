"""The public names of `import rfjax`, and the core used as a library."""

import re
import runpy
import subprocess
import sys

import pytest

import rfjax
from helpers.child_process import ROOT


def test_every_public_name_is_what_its_row_says():
    """Catches a name that was moved, and a row that was misspelt."""
    for name in rfjax.__all__:
        assert getattr(rfjax, name) is not None and name in dir(rfjax)
    assert rfjax.fit.__module__ == "rfjax.laws.fitting" and rfjax.Run.__name__ == "Run"
    with pytest.raises(AttributeError, match="no public name 'fitt'; it has Config, load_config"):
        _ = rfjax.fitt


def test_importing_rfjax_imports_nothing_heavy():
    """Catches an import at the top of the package: a notebook would wait for JAX to read a table."""
    heavy = "{'jax', 'numpy', 'pandas', 'flax', 'ml_collections'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", f"import sys, rfjax; sys.exit(bool({heavy}))"], check=True)


def test_the_smallest_program_learns(monkeypatch, capsys, quick_compilation):
    """Catches a core that cannot be used without the trainer."""
    monkeypatch.setattr(sys, "argv", ["minimal.py", "30"])
    runpy.run_path(str(ROOT / "analysis" / "minimal.py"), run_name="__main__")
    before, after = (float(loss) for loss in re.findall(r"validation loss (\d\.\d+)", capsys.readouterr().out))
    assert after < 0.9 * before
    assert len((ROOT / "analysis" / "minimal.py").read_text().splitlines()) <= 42
