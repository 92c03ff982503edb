"""The direction of imports: a value goes one way, and nothing reads what lies to its right."""

import ast
import functools
import json
import subprocess
import sys
from pathlib import Path

import jaxtyping
import numpy as np
import pytest
from beartype.roar import BeartypeCallHintViolation

import rfjax
from helpers import light_type_checks

ROOT = Path(rfjax.__file__).parent
# From the ground up: a package imports those before it alone, late imports included.
FOUNDATION = (
    *("errors", "console", "files", "inputs", "outputs"),
    *(
        "mesh_axes",
        "limits",
        "weight_names",
        "option_limits",
        "config_rules",
        "shipped",
        "config_sections",
        "config",
        "config_files",
    ),
)
CORE = ("data", "flow", "models", "training", "evaluation")
STUDY = ("trackers", "study", "results", "laws", "ranking", "report")
PRODUCT = ("prepare", "duplicates", "scorers", "interop", "plan", "bench", "launch", "compare", "votes", "tune")
ORDER = (*FOUNDATION, *CORE, *STUDY, *PRODUCT, "cli", "__main__")
APART = {("flow", "models"), ("models", "flow")}  # these two do not know each other
SHARE = 0.14  # of the lines of rfjax/, that one package holds at most
# Readable in a notebook, or by the command's --help, without JAX.
WITHOUT_JAX = (
    "rfjax.cli",
    "rfjax.compare.study_files",
    "rfjax.config",
    "rfjax.config_files",
    "rfjax.files",
    "rfjax.inputs.json_files",
    "rfjax.inputs.paths",
    "rfjax.inputs.walk",
    "rfjax.launch.command",
    "rfjax.limits",
    "rfjax.option_limits",
    "rfjax.shipped",
    "rfjax.evaluation.image_features",
    "rfjax.evaluation.frechet",
    "rfjax.evaluation.geneval.rules",
    "rfjax.evaluation.geneval.files",
    "rfjax.evaluation.geneval.judgements",
    "rfjax.evaluation.temporal.files",
    "rfjax.evaluation.temporal.summary",
    "rfjax.data.motion_captions",
    "rfjax.evaluation.control_measures",
    "rfjax.evaluation.records",
    "rfjax.prepare.captioner",
    "rfjax.prepare.command",
    "rfjax.duplicates.command",
    "rfjax.duplicates.removal",
    "rfjax.data.prepared.frozen",
    "rfjax.prepare.inspect",
    "rfjax.prepare.joined_captions",
    "rfjax.prepare.recaption",
    "rfjax.prepare.shard",
    "rfjax.laws.budgets",
    "rfjax.laws.claims",
    "rfjax.report.claims_command",
    "rfjax.laws.chinchilla_approaches",
    "rfjax.laws.correlation",
    "rfjax.report.fit_command",
    "rfjax.laws.fit_source",
    "rfjax.laws.fitting",
    "rfjax.laws.study_fits",
    "rfjax.laws.noise_levels",
    "rfjax.laws.score_links",
    "rfjax.laws.profile_likelihood",
    "rfjax.ranking.summary",
    "rfjax.ranking.tables",
    "rfjax.results.foreign_table",
    "rfjax.report.write",
    "rfjax.laws.step_efficiency",
    "rfjax.results.merge",
    "rfjax.tune.study",
    "rfjax.votes.command",
    "rfjax.votes.record",
)
# Scorers' modules that need neither JAX nor torch.
WITHOUT_TORCH = (
    "rfjax.scorers.answer_rules",
    "rfjax.scorers.answered_images",
    "rfjax.scorers.attach",
    "rfjax.scorers.clustered",
    "rfjax.scorers.cmmd",
    "rfjax.scorers.command",
    "rfjax.evaluation.image_folders.compbench",
    "rfjax.scorers.distances",
    "rfjax.scorers.files",
    "rfjax.scorers.model_names",
    "rfjax.scorers.polynomial_mmd",
    "rfjax.scorers.questions",
    "rfjax.evaluation.image_folders.geneval_folder",
    "rfjax.scorers.rows",
    "rfjax.scorers.videos",
)


def name_of(path: Path) -> str:
    """The dotted name of a module of ours."""
    return ".".join(("rfjax", *path.relative_to(ROOT).with_suffix("").parts)).removesuffix(".__init__")


MODULES = {name_of(path): path for path in ROOT.rglob("*.py")}


def package_of(module: str) -> str:
    return module.split(".")[1]


@functools.cache
def imports(path: Path) -> set[str]:
    """The modules of ours that a file imports anywhere, late imports included."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "rfjax":
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in MODULES else node.module for name in names}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return {name for name in found if name in MODULES and name != "rfjax"}


@functools.cache
def named(path: Path) -> set[str]:
    """The modules of ours that a file's tables name, as "module" or "module:name", to be imported when a row is chosen.
    `limits` says where the networks are and imports none of them: `models` does."""
    constants = (node.value for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Constant))
    names = {value.partition(":")[0] for value in constants if isinstance(value, str)}
    return {name for name in names if name in MODULES and name != "rfjax"} if name_of(path) != "rfjax.limits" else set()


def test_every_package_has_a_place_in_the_order():
    assert {package_of(module) for module in MODULES if module != "rfjax"} == set(ORDER)


def test_packages_import_only_what_stands_before_them():
    wrong = []
    for module, path in MODULES.items():
        for other in imports(path) | named(path) if module != "rfjax" else ():
            pair = package_of(module), package_of(other)
            if ORDER.index(pair[1]) > ORDER.index(pair[0]) or pair in APART:
                wrong.append(f"{path.relative_to(ROOT)} imports {other}")
    assert not wrong, wrong


def test_the_core_imports_no_study_and_no_product():
    """What trains and measures one run can be read, and used as a library, without what stands around it."""
    for module, path in MODULES.items():
        if module != "rfjax" and package_of(module) in CORE:
            others = {package_of(other) for other in imports(path) | named(path)}
            assert not others & {*STUDY, *PRODUCT, "cli"}, f"{module} imports {others}"


def test_no_module_imports_itself_by_way_of_others():
    """Late imports count: a circle that is hidden in a function is one all the same. A table that names its rows
    does not, since each row may import what they share."""
    graph = {module: imports(path) for module, path in MODULES.items()}
    while leaves := {module for module, others in graph.items() if not others & set(graph)}:
        graph = {module: others - leaves for module, others in graph.items() if module not in leaves}
    while roots := set(graph) - set().union(*graph.values()):
        graph = {module: others for module, others in graph.items() if module not in roots}
    assert not graph, f"a circle of imports: {graph}"


def test_no_package_holds_the_house():
    lines = {}
    for module, path in MODULES.items():
        package = package_of(module) if module != "rfjax" else ""
        lines[package] = lines.get(package, 0) + len(path.read_text().splitlines())
    largest = max(lines, key=lines.get)
    assert lines[largest] <= SHARE * sum(lines.values()), (
        f"{largest} has {lines[largest]} of {sum(lines.values())} lines"
    )


def test_only_models_import_flax_and_only_the_loader_grain():
    homes = {"flax": "models", "grain": "data", "orbax": "training", "optax": "training"}
    for path in ROOT.rglob("*.py"):
        nodes = list(ast.walk(ast.parse(path.read_text())))
        names = {a.name for n in nodes if isinstance(n, ast.Import) for a in n.names}
        names |= {n.module for n in nodes if isinstance(n, ast.ImportFrom) and n.module}
        for library in {name.split(".")[0] for name in names} & set(homes):
            assert path.relative_to(ROOT).parts[0] == homes[library], f"{path} imports {library}"


# Each module is imported by itself, with none of ours imported before it; libraries are imported once for all.
ONE_BY_ONE = """
import importlib, json, sys, traceback
absent, modules = json.loads(sys.argv[1])
sys.modules.update(dict.fromkeys(absent))
failures = {}
for module in modules:
    for name in [name for name in sys.modules if name.partition(".")[0] == "rfjax"]:
        del sys.modules[name]
    try:
        importlib.import_module(module)
    except Exception:
        failures[module] = traceback.format_exc()[-2000:]
print(json.dumps(failures))
"""


@pytest.mark.parametrize(
    "absent, modules",
    [(("jax",), WITHOUT_JAX), (("torch", "transformers", "jax"), WITHOUT_TORCH)],
    ids=["without_jax", "without_torch"],
)
def test_imports_without(absent, modules):
    command = [sys.executable, "-c", ONE_BY_ONE, json.dumps([absent, modules])]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    failures = json.loads(done.stdout)
    assert not failures, "\n".join(failures.values())


def test_torch_is_imported_where_it_is_wanted_alone():
    """Modules that are given away, scorers, which `rfjax score` imports when it has read its arguments, and the frozen
    models and the captioner, when they are loaded: preparing's --help and what inspects need no PyTorch."""
    given_away = set((ROOT / "interop/torch_modules").glob("*.py"))
    scorers = set((ROOT / "scorers").glob("*.py"))
    late = {ROOT / "data/prepared/frozen.py", ROOT / "prepare/captioner.py"}
    for path in set(ROOT.rglob("*.py")) - given_away - scorers - late:
        assert "import torch" not in path.read_text(), path
    for path in late:
        outermost = ast.parse(path.read_text()).body
        assert not any(isinstance(node, ast.Import) and node.names[0].name == "torch" for node in outermost)
    for path in set(ROOT.rglob("*.py")) - scorers:
        for node in ast.walk(ast.parse(path.read_text())):  # training, too, could bring it along by way of a scorer
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("rfjax.scorers"):
                for alias in node.names:
                    names = {node.module, f"{node.module}.{alias.name}"}
                    assert names & set(WITHOUT_TORCH), f"{path} imports {alias.name} of {node.module}"


def test_what_an_extra_brings_is_imported_when_it_is_wanted():
    """Catches an ImportError where a message is to name the extra."""
    for path in (*(ROOT / "prepare").rglob("*.py"), *(ROOT / "duplicates").rglob("*.py")):
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


def test_annotations_are_checked_at_every_call_in_these_tests():
    """An option lost from pyproject.toml, or a package it no longer reaches, would check nothing."""
    from rfjax.models.positions import sincos

    with pytest.raises(jaxtyping.TypeCheckError, match="checking the parameters of rfjax.models.positions.sincos"):
        sincos(np.zeros((2, 3)), 4)


def test_annotations_without_shapes_are_checked_too(monkeypatch):
    """Catches the light checks of helpers.light_type_checks that check nothing, or that take a shape's alias for a
    plain class and so forget the sizes of its axes."""
    from rfjax.flow import path
    from rfjax.inputs import json_files

    with pytest.raises(BeartypeCallHintViolation, match="where=3"):
        json_files.check_json([], list, 3)
    names = vars(path) | {"Alias": list[path.Float[np.ndarray, " n"]]}
    for text in ("Times", "Float[Array, '']", "Alias | None", "Callable[[Alias], int]", "NotKnown"):
        assert light_type_checks.speaks_of_shapes(text, names), text
    for text in ("int | None", "dict[str, list[int]]", "Protocol", "math"):
        assert not light_type_checks.speaks_of_shapes(text, names), text
    assert light_type_checks.speaks_of_shapes(names["Alias"], {})
