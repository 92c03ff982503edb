"""`rfjax design` as a command: its answer, the config that it writes, and what it refuses."""

import numpy as np
import pandas as pd
import pytest

from rfjax.cli import main
from rfjax.study.study import load_study, size_of, spent_flops

CONFIG = """
from ml_collections import ConfigDict

def get_config():
    return ConfigDict({
        "name": "tiny",
        "model": {"depth": 1, "hidden": 32, "head_size": 16, "patch_size": 4, "position_tokens": 4,
                  "position_span": 4.0, "position_grid": 8},
        "train": {"steps": 800, "batch_size": 8, "learning_rate": 1e-2, "warmup_steps": 20},
    })

def points():
    return {f"w{width}": {"model.hidden": width, "train.learning_rate": 1 / width} for width in (32, 48, 64, 96)}
"""
LAW = "--law=0.05,60,0.34,900,0.6"


@pytest.fixture
def config(tmp_path):
    (tmp_path / "tiny.py").write_text(CONFIG)
    return tmp_path / "tiny.py"


def test_the_config_that_is_written_trains_the_design(config, tmp_path, capsys):
    """Catches a config whose runs cost more than was said, or lose the rate of their size."""
    out = tmp_path / "designed.py"
    command = ["design", f"--config={config}", "--budget=3e12", "--target=1e14", LAW, f"--out={out}"]
    assert main(command) == 0
    said = capsys.readouterr().out
    study = load_study(out)
    spent = sum(spent_flops(run, size_of(run.config)) for run in study.runs)
    assert spent <= 3e12 and f"{spent:.4g} of 3e+12 FLOPs are spent" in said
    assert f"{len(study.points)} trunks" in said and study.name == "tiny-design" and "narrower" in said
    for point in study.points:
        train, model = point.config.train, point.config.model
        assert train.learning_rate == 1 / model.width and (train.schedule, train.decay_shape) == ("wsd", "1-sqrt")
        assert point.id == f"depth1-width{model.width}-seed{point.config.seed}"
    assert main(command) == 0  # its own file may be written again
    out.write_text("mine")
    assert main(command) == 2 and out.read_text() == "mine"


def test_results_so_far_give_the_law_and_the_best_next_trunk(config, tmp_path, capsys):
    rng, rows = np.random.default_rng(0), []
    for size, params in enumerate(np.geomspace(4e4, 4e5, 5)):
        for images in (800, 1600, 3200, 6400):
            loss = (0.05 + 60 * params**-0.34 + 90 * images**-0.6) * np.exp(0.002 * rng.standard_normal())
            rows.append((f"r{size}-{images}", f"t{size}", params, images, 6 * params * images, loss))
    table = pd.DataFrame(rows, columns=["run", "trunk", "params", "images", "flops", "loss"])
    table.to_csv(tmp_path / "so_far.csv", index=False)
    given = f"--given={tmp_path / 'so_far.csv'}"
    assert main(["design", f"--config={config}", "--budget=3e12", "--target=1e14", given]) == 0
    said = capsys.readouterr().out
    assert "of 20 runs of 5 trunks" in said and "what one more trunk would make of it" in said and "from " in said


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--budget=1", "--target=1e14", LAW], "no place for 7 trunks"),
        (["--budget=3e12", "--target=1e9", LAW], "--target is 1e+09 FLOPs, and a run takes up to"),
        (["--budget=3e12", "--target=1e14"], "give one of --given TABLE"),
        (["--budget=3e12", "--target=1e14", "--law=1,2"], "it takes 5 numbers"),
        (["--budget=3e12", "--target=1e14", "--law=1,0,1,1,1"], "must be positive"),
        (["--budget=3e12", "--target=1e14", LAW, "--lengths=200,100"], "steps that increase"),
        (["--budget=3e12", "--target=1e14", LAW, "--lengths=10,800"], "with --lengths=10,800: config.train.branches"),
        (["--budget=-1", "--target=1e14", LAW], "--budget is -1"),
        (["--budget=3e12", "--target=1e14", LAW, "--seeds=1"], "it must be at least 2"),
        (["--budget=3e12", "--target=1e14", LAW, "--out=x.json"], "ends in .py"),
    ],
)
def test_what_cannot_be_designed_is_refused_by_name(config, options, words, capsys):
    assert main(["design", f"--config={config}", *options]) == 2
    assert words in capsys.readouterr().err
