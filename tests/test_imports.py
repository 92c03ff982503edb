"""The direction of imports: a value goes one way, and nothing reads what lies to its right."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import jaxtyping
import numpy as np
import pytest

import rfjax

ROOT = Path(rfjax.__file__).parent
ORDER = (
    "errors",
    "files",
    "limits",
    "config",
    "data",
    "prepare",
    "models",
    "flow",
    "training",
    "evaluation",
    "scaling",
    "interop",
    "launch",
)
APART = {("flow", "models"), ("models", "flow")}  # these two do not know each other
# Readable in a notebook, or by the command's --help, without JAX.
WITHOUT_JAX = (
    "rfjax.cli",
    "rfjax.config",
    "rfjax.files",
    "rfjax.launch.command",
    "rfjax.limits",
    "rfjax.evaluation.features",
    "rfjax.evaluation.frechet",
    "rfjax.evaluation.geneval",
    "rfjax.evaluation.geneval_files",
    "rfjax.evaluation.judging",
    "rfjax.evaluation.ranking",
    "rfjax.evaluation.records",
    "rfjax.prepare.captioner",
    "rfjax.prepare.command",
    "rfjax.prepare.duplicates.command",
    "rfjax.prepare.duplicates.removal",
    "rfjax.prepare.frozen",
    "rfjax.prepare.inspect",
    "rfjax.prepare.joined",
    "rfjax.prepare.recaption",
    "rfjax.prepare.shard",
    "rfjax.scaling.allocation",
    "rfjax.scaling.approaches",
    "rfjax.scaling.correlation",
    "rfjax.scaling.fit_command",
    "rfjax.scaling.fit_source",
    "rfjax.scaling.fits",
    "rfjax.scaling.flops",
    "rfjax.scaling.frontier",
    "rfjax.scaling.levels",
    "rfjax.scaling.links",
    "rfjax.scaling.profile",
    "rfjax.scaling.ranking.summary",
    "rfjax.scaling.ranking.tables",
    "rfjax.scaling.read_table",
    "rfjax.scaling.report",
    "rfjax.scaling.step_efficiency",
    "rfjax.scaling.table",
)
# Scorers' modules that need neither JAX nor torch.
WITHOUT_TORCH = (
    "rfjax.evaluation.scorers.attach",
    "rfjax.evaluation.scorers.cmmd",
    "rfjax.evaluation.scorers.command",
    "rfjax.evaluation.scorers.compbench",
    "rfjax.evaluation.scorers.distances",
    "rfjax.evaluation.scorers.files",
    "rfjax.evaluation.scorers.geneval_folder",
    "rfjax.evaluation.scorers.rows",
)


def package_of(module: str) -> str:
    return module.split(".")[1]


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module] + [f"{node.module}.{alias.name}" for alias in node.names if node.module == "rfjax"]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        found |= {name for name in names if name.startswith("rfjax.")}
    return found


def test_packages_import_only_what_stands_before_them():
    wrong = []
    for path in ROOT.rglob("*.py"):
        own = path.relative_to(ROOT).parts[0].removesuffix(".py")
        if own in ("cli", "__main__", "__init__"):
            continue
        for module in imports(path):
            other = package_of(module)
            if other != own and (ORDER.index(other) > ORDER.index(own) or (own, other) in APART):
                wrong.append(f"{path.relative_to(ROOT)} imports {module}")
    assert not wrong, wrong


def test_only_models_import_flax_and_only_the_loader_grain():
    for library, home in (("flax", "models"), ("grain", "data"), ("orbax", "training"), ("optax", "training")):
        for path in ROOT.rglob("*.py"):
            tree = ast.parse(path.read_text())
            names = {a.name for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names}
            names |= {n.module for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) and n.module}
            if any(name.split(".")[0] == library for name in names):
                assert path.relative_to(ROOT).parts[0] == home, f"{path} imports {library}"


@pytest.mark.parametrize("module", WITHOUT_JAX)
def test_imports_without_jax(module):
    script = f"import sys; sys.modules['jax'] = None; import {module}"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env={**os.environ})
    assert done.returncode == 0, done.stderr[-2000:]


def test_torch_is_imported_where_it_is_wanted_alone():
    """Modules that are given away, scorers, which `rfjax score` imports when it has read its arguments, and the frozen
    models and the captioner, when they are loaded: preparing's --help and what inspects need no PyTorch."""
    given_away = set((ROOT / "interop/torch_modules").glob("*.py"))
    scorers = set((ROOT / "evaluation/scorers").glob("*.py"))
    late = {ROOT / "prepare/frozen.py", ROOT / "prepare/captioner.py"}
    for path in set(ROOT.rglob("*.py")) - given_away - scorers - late:
        assert "import torch" not in path.read_text(), path
    for path in late:
        outermost = ast.parse(path.read_text()).body
        assert not any(isinstance(node, ast.Import) and node.names[0].name == "torch" for node in outermost)
    for path in set(ROOT.rglob("*.py")) - scorers:
        for node in ast.walk(ast.parse(path.read_text())):  # training, too, could bring it along by way of a scorer
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("rfjax.evaluation.scorers"):
                for alias in node.names:
                    names = {node.module, f"{node.module}.{alias.name}"}
                    assert names & set(WITHOUT_TORCH), f"{path} imports {alias.name} of {node.module}"


def test_what_an_extra_brings_is_imported_when_it_is_wanted():
    """Catches an ImportError where a message is to name the extra."""
    for path in (ROOT / "prepare").rglob("*.py"):
        for node in ast.parse(path.read_text()).body:
            names = (
                [alias.name for alias in node.names]
                if isinstance(node, ast.Import)
                else [node.module or ""]
                if isinstance(node, ast.ImportFrom)
                else []
            )
            wrong = {name.split(".")[0] for name in names} & {"faiss", "onnxruntime", "pyarrow", "tensorflow_datasets"}
            assert not wrong, f"{path} imports {wrong}"


@pytest.mark.parametrize("module", WITHOUT_TORCH)
def test_imports_without_torch(module):
    script = (
        f"import sys; sys.modules['torch'] = sys.modules['transformers'] = sys.modules['jax'] = None; import {module}"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env={**os.environ})
    assert done.returncode == 0, done.stderr[-2000:]


def test_annotations_are_checked_at_every_call_in_these_tests():
    """An option lost from pyproject.toml, or a package it no longer reaches, would check nothing."""
    from rfjax.models.positions import sincos

    with pytest.raises(jaxtyping.TypeCheckError, match="checking the parameters of rfjax.models.positions.sincos"):
        sincos(np.zeros((2, 3)), 4)
