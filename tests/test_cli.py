"""The command line: quick help, clear refusals, exit statuses."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from rfjax import shipped
from rfjax.cli import VERBS, environment, main, split_overrides
from rfjax.cli.verbs import MOMENTS
from rfjax.errors import ConfigError

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize("words", [[], *([verb] for verb in VERBS)], ids=lambda words: "".join(words) or "rfjax")
def test_help_needs_neither_jax_nor_numpy(words):
    """JAX takes seconds to import; --help must import nothing that it does not need."""
    script = (
        "import sys\n"
        "for name in ('jax', 'pandas', 'scipy', 'matplotlib', 'flax', 'numpy', 'torch'): sys.modules[name] = None\n"
        f"from rfjax.cli import main\nmain([*{words}, '--help'])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-500:]
    assert " ".join(["usage: rfjax", *words]) in done.stdout


def test_help_shows_each_verb_once_in_its_moment(capsys):
    """Catches a verb of a moment that no heading names, which `rfjax --help` would leave out."""
    with pytest.raises(SystemExit):
        main(["--help"])
    lines = capsys.readouterr().out.splitlines()
    places = {name: [n for n, line in enumerate(lines) if line.startswith(f"  {name:<17} ")] for name in VERBS}
    headings = {moment: lines.index(title) for moment, (title, _) in MOMENTS.items()}
    assert all(len(found) == 1 for found in places.values()), places
    for name, (place,) in places.items():
        above = [moment for moment, line in headings.items() if line < place]
        assert above[-1] == VERBS[name].moment and VERBS[name].help in lines[place]


def test_a_config_is_named_by_a_word_too(capsys):
    """Catches a verb that takes the word for a path, and a list without each study's subject."""
    assert main(["study", "--list"]) == 0
    listed = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert listed["shapes"].startswith("The default study: four depths on procedurally drawn shapes")
    outputs = []
    for config in ("sd3_depth", f"{ROOT}/configs/sd3_depth.py"):
        assert main(["study", f"--config={config}", "--dry-run"]) == 0
        outputs.append(capsys.readouterr().out)
    assert outputs[0] == outputs[1] and listed.keys() == {path.stem for path in (ROOT / "configs").glob("*.py")} - set(
        shipped.TUNINGS
    )


def test_a_runs_config_json_is_a_path_without_a_slash_too(monkeypatch, tmp_path, capsys):
    """Catches a refusal of the config that a run keeps, as a name that does not ship."""
    (tmp_path / "config.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    assert main(["bench", "--config=config.json", "--steps=0"]) == 2
    assert main(["bench", "--config=config.json", "--config.train.steps=x"]) == 2
    assert "--steps is 0" in (error := capsys.readouterr().err) and "config.train.steps" in error


def test_overrides_are_taken_apart():
    rest, overrides = split_overrides(
        ["train", "--config=a.py", "--config.model.depth=3", "--config.name", "x=y", "--init", "r@5"]
    )
    assert rest == ["train", "--config=a.py", "--init", "r@5"]
    assert overrides == {"model.depth": "3", "name": "x=y"}
    with pytest.raises(ConfigError, match="--config.seed has no value"):
        split_overrides(["train", "--config.seed"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["study", "--config=configs/shaps.py"], "did you mean configs/shapes.py?"),
        (
            ["study", "--config=configs/shapes.py", "--dry-run", "--config.model.dpeth=3"],
            "did you mean config.model.depth?",
        ),
        (["study", "--config=configs/shapes.py", "--dry-run", "--config.train.steps=x"], "must be an integer"),
        (["study", "--config=configs/shapes.py", "--point=nothing"], "has no point 'nothing'"),
        (
            ["study", "--config=configs/shapes.py", "--workdir=nowhere", "--collect"],
            "no point of shapes has been run in nowhere",
        ),
        (
            ["train", "--config=configs/shapes.py", "--workdirr=a"],
            "rfjax train has no option --workdirr; did you mean --workdir?",
        ),
        (["study", "--dry-runs", "--config=configs/shapes.py"], "no option --dry-runs; did you mean --dry-run?"),
        (["eval", "nowhere", "--confg.seed=3"], "no option --confg.seed; did you mean --config.seed?"),
        (["fit", "nowhere", "--zzz"], "no option --zzz; rfjax fit --help lists them"),
        (["eval", "nowhere"], "nowhere is not a run's folder"),
        (["sample", "nowhere", "--prompt=a"], "nowhere is not a run's folder"),
        (
            ["sample", "nowhere", "--prompt=a", "--latent-size=40"],
            "--latent-size is '40'; it must be height x width in latent pixels",
        ),
        (["geneval", "--metadata=no.jsonl", "--detections=no.jsonl", "--out=o", "--config.seed=1"], "reads no config"),
    ],
)
def test_refusals_name_the_remedy(arguments, message, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    os.symlink(ROOT / "configs", tmp_path / "configs")
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1  # one line, no traceback


def test_unknown_verbs_and_options_exit_with_two(capsys):
    for arguments in (["stduy"], ["train", "-c=x"], []):
        with pytest.raises(SystemExit) as exit:
            main(arguments)
        assert exit.value.code == 2


def test_dry_run_lists_the_papers_sweep(capsys):
    assert main(["study", f"--config={ROOT}/configs/sd3_depth.py", "--dry-run"]) == 0
    out = capsys.readouterr().out
    for text in (
        "496,066,624",
        "856,159,552",
        "1,358,950,720",
        "3,962,392,384",
        "8,056,617,792",
        "1.392e+22",
        "120.1 GiB",
    ):
        assert text in out


@pytest.mark.parametrize(
    ("environ", "installed", "vendors", "platforms"),
    [
        ({}, ["libtpu"], ["0x8086"], "cpu"),
        ({}, ["libtpu"], ["0x8086", "0x1ae0"], None),  # a TPU, or a card of its cloud
        ({}, ["libtpu"], None, None),  # unknown
        ({}, ["libtpu", "jax_plugins"], ["0x8086", "0x10de"], None),  # a GPU's plugin
        ({}, [], ["0x8086"], None),
        ({"JAX_PLATFORMS": "tpu"}, ["libtpu"], ["0x8086"], "tpu"),
    ],
)
def test_the_tpu_is_left_out_only_where_there_is_none(environ, installed, vendors, platforms, monkeypatch, tmp_path):
    """Catches a run that computes on the CPU beside the accelerator it was meant for."""
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name if name in installed else None)
    monkeypatch.setattr("importlib.metadata.entry_points", lambda group: [])
    for number, vendor in enumerate(vendors or []):
        (tmp_path / "pci" / str(number)).mkdir(parents=True)
        (tmp_path / "pci" / str(number) / "vendor").write_text(vendor + "\n")
    environment.leave_out_absent_tpu(environ, tmp_path / "pci")
    assert environ.get("JAX_PLATFORMS") == platforms
