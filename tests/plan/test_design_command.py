"""`rfjax design` as a command: its answer, the config that it writes, and what it refuses."""

import numpy as np
import pandas as pd
import pytest

from rfjax.cli import main
from rfjax.config import apply_overrides
from rfjax.plan.design_trunks import candidates_of, sizes_of, steps_text
from rfjax.study.size import size_of, spent_flops
from rfjax.study.study import load_study
from rfjax.training.run import plan_run

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
    assert spent <= 3e12 and f"{spent:.4g} of 3e+12 FLOPs are spent; every size has its --seeds" in said
    assert f"{len(study.points)} new trunks" in said and study.name == "designed" and "as wide as the design" in said
    for point in study.points:
        train, model = point.config.train, point.config.model
        assert train.learning_rate == 1 / model.width and (train.schedule, train.decay_shape) == ("wsd", "1-sqrt")
        assert point.id == f"depth1-width{model.width}-seed{point.config.seed}"
    assert main(command) == 0  # its own file may be written again
    assert "--law=0.05,60,0.34,900,0.6" in out.read_text().splitlines()[0]
    assert main(["design", f"--config={out}", *command[2:]]) == 2  # not over the config that it reads
    out.write_text("mine")
    assert main(command) == 2 and out.read_text() == "mine"


@pytest.mark.parametrize("tokens_per_batch", [0, -1])
def test_trunks_on_buckets_have_the_images_and_flops_of_their_steps(tmp_path, tokens_per_batch):
    """Catches images counted as steps x batch size where `tokens_per_batch` gives stills larger batches than clips, and
    FLOPs of a mean image where the steps are no whole cycles."""
    model = {"depth": 1, "hidden": 32, "head_size": 16, "patch_size": 4, "position_tokens": 4, "position_span": 4.0}
    data = {"corpus": "motion", "world": "first", "buckets": ("16x16@0.5", "4x16x16@0.5")}
    train = {"steps": 300, "batch_size": 8, "warmup_steps": 20, "schedule": "wsd", "tokens_per_batch": tokens_per_batch}
    given = {"name": "b", "model": model | {"position_grid": 8}, "data": data, "train": train}
    given |= {"evaluation": {"geneval": {"prompts_per_task": 0}}}
    (tmp_path / "b.py").write_text(
        f"from ml_collections import ConfigDict\n\ndef get_config():\n    return ConfigDict({given!r})\n"
    )
    sizes = sizes_of(load_study(tmp_path / "b.py"))
    trunks, changes = candidates_of(sizes, [100, 300])
    assert [steps_text(trunk, sizes) for trunk in trunks] == ["100", "100 300", "300"]
    for trunk in trunks:
        steps = changes[trunk.size, trunk.images]["train.steps"]
        alone = size_of(apply_overrides(sizes[0].config, {"train.steps": steps, "train.branches": ()}))
        assert trunk.images[-1] == alone.images and (trunk.images[-1] > 8 * steps) == (tokens_per_batch == -1)
        if len(trunk.images) == 1:
            assert trunk.flops == alone.flops
    stream, each = sizes[0].run.stream, plan_run(sizes[0].config).flops_of_parts
    # the branch of 100 steps leaves at step 80
    own = (stream.examples_of_parts(100)[part] - stream.examples_of_parts(80)[part] for part in (0, 1))
    assert trunks[1].flops == trunks[2].flops + sum(n * flops for n, flops in zip(own, each, strict=True))


def so_far(tmp_path, trunks=5, **columns):
    """A table of results of the config's sizes, each a trunk with four branches, as `rfjax collect` would name them."""
    rng, rows = np.random.default_rng(0), []
    points = load_study(tmp_path / "tiny.py").points
    for number in range(trunks):
        size, seed = size_of(points[number % 4].config), number // 4
        for images in (800, 1600, 3200, 6400):
            loss = (0.05 + 60 * size.params**-0.34 + 90 * images**-0.6) * np.exp(0.002 * rng.standard_normal())
            own = {"run": f"r{number}-{images}", "trunk": f"t{number}", "seed": seed, "loss": loss, "role": "branch"}
            rows.append(own | {"params": size.params, "images": images, "flops": size.flops_per_image * images})
    rows.append(rows[0] | {"run": "stray", "role": "sweep"})
    pd.DataFrame(rows).assign(**columns).to_csv(tmp_path / "so_far.csv", index=False)
    return f"--given={tmp_path / 'so_far.csv'}"


def test_results_so_far_give_the_law_and_the_best_next_trunk(config, tmp_path, capsys):
    """Catches a design of runs that are trained already: seeds go on after those of the table."""
    out = tmp_path / "next.py"
    command = ["design", f"--config={config}", "--budget=1.5e12", "--target=1e14", "--seeds=3", f"--out={out}"]
    assert main([*command, so_far(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert "of 20 runs of 5 trunks" in said and "what one more trunk would make of it" in said
    assert "so_far.csv (1 size with several seeds)" in said and "left out" in said and "sweep" in said
    seeds = {}
    for point in load_study(out).points:
        seeds.setdefault(point.config.model.width, []).append(point.config.seed)
    assert seeds and all(
        found == list(range(first, first + len(found)))
        for found, first in ((seeds.get(32, [2]), 2), (seeds.get(48, [1]), 1), (seeds.get(96, [1]), 1))
    )
    spent = sum(spent_flops(run, size_of(run.config)) for run in load_study(out).runs)
    assert spent <= 1.5e12


def test_many_trunks_tell_their_noise(config, tmp_path, capsys):
    """Catches noise that is assumed where a fit has so many trunks that it resamples them."""
    assert (
        main(["design", f"--config={config}", "--budget=3e12", "--target=1e14", so_far(tmp_path, 8), "--seeds=3"]) == 0
    )
    said = capsys.readouterr().out
    assert "assumed" not in said and "(4 sizes with several seeds)" in said
    between = float(said.split("noise of log loss: ")[1].split("%")[0])
    assert between < 0.5  # the table has none between trunks, and 1 % is what would be assumed


def test_a_table_without_seeds_or_of_other_sizes_says_so(config, tmp_path, capsys):
    options = ["design", f"--config={config}", "--budget=3e12", "--target=1e14"]
    assert main([*options, so_far(tmp_path, seed=np.nan)]) == 0
    assert "5 known trunks have no column seed" in capsys.readouterr().out
    other = "--config.model.head_size=8"
    given = so_far(tmp_path)
    (tmp_path / "tiny.py").write_text(CONFIG.replace('"patch_size": 4', '"patch_size": 2'))
    assert main([*options, given, other]) == 0
    assert "5 known trunks have a size that the config has not" in capsys.readouterr().out


def test_lengths_of_a_table_are_no_seeds(config, tmp_path, capsys):
    """Catches a table of independent runs, one of each size and length, whose four lengths take up all seeds."""
    given = so_far(tmp_path, trunk="", seed=np.nan)
    assert main(["design", f"--config={config}", "--budget=1.5e12", "--target=1e14", given]) == 0
    said = capsys.readouterr().out
    assert "of 20 runs of 20 trunks" in said and "0 new trunks" not in said


@pytest.mark.parametrize(
    ("trunks", "columns", "words"),
    [
        (8, {}, "every size has 2 seeds or more so far; raise --seeds"),
        (5, {"images": lambda t: t["images"] * 16}, "in other units than single ones"),
        (5, {"params": lambda t: t["params"] / 1e6}, "in other units than single ones"),
        (5, {"trunk": lambda t: t.index % 2}, "a trunk has one size"),
    ],
)
def test_results_that_a_design_cannot_go_on_from_are_refused(config, tmp_path, trunks, columns, words, capsys):
    """Catches an empty design, numbers in millions, tokens for images, and trunk names that several sizes share."""
    command = ["design", f"--config={config}", "--budget=1.5e12", "--target=1e14"]
    assert main([*command, so_far(tmp_path, trunks, **columns)]) == 2
    assert words in capsys.readouterr().err


def test_what_differs_from_the_config_is_noted(config, tmp_path, capsys):
    given = so_far(tmp_path, seed="s0", learning_rate=0.5, batch_size=8)
    assert main(["design", f"--config={config}", "--budget=3e12", "--target=1e14", given]) == 0
    said = capsys.readouterr().out
    assert "have learning_rate 0.5, the config" in said and "batch_size" not in said
    assert "5 known trunks have no column seed" in said and "the config's schedule is constant" in said


def test_the_default_lengths_leave_after_the_warm_up(config, capsys):
    """Catches default lengths that every command would be refused for."""
    assert (
        main(["design", f"--config={config}", "--budget=3e12", "--target=1e14", LAW, "--config.train.warmup_steps=90"])
        == 0
    )
    steps = {
        int(word) for line in capsys.readouterr().out.splitlines() if "width" in line for word in line.split()[2:-2]
    }
    assert steps <= {200, 400, 800} and steps


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--budget=1", "--target=1e14", LAW], "no place for 7 trunks"),
        (["--budget=3e12", "--target=1e9", LAW], "--target is 1e+09 FLOPs, and a run takes up to"),
        (["--budget=3e12", "--target=1e14"], "neither --given nor --law is given"),
        (["--budget=3e12", "--target=1e14", "--law=1,2"], "it must be 5 numbers"),
        (["--budget=3e12", "--target=1e14", "--law=1,0,1,1,1"], "must be positive"),
        (["--budget=3e12", "--target=1e14", LAW, "--lengths=200,100"], "steps that increase"),
        (
            ["--budget=3e12", "--target=1e14", LAW, "--lengths=10,800"],
            "a run of 10 steps of --lengths falls before the warm-up",
        ),
        (["--budget=-1", "--target=1e14", LAW], "--budget is -1"),
        (["--budget=3e12", "--target=1e14", LAW, "--seeds=1"], "it must be at least 2"),
        (["--budget=3e12", "--target=1e14", LAW, "--out=x.json"], "ends in .py"),
        (["--budget=3e12", "--target=1e14", LAW, "--config.train.warmup_steps=-1"], "--config.train.warmup_steps=80"),
        (["--budget=3e12", "--target=1e14", LAW, "--lengths=400,800"], "decides no law"),
    ],
)
def test_what_cannot_be_designed_is_refused_by_name(config, options, words, capsys):
    assert main(["design", f"--config={config}", *options]) == 2
    assert words in capsys.readouterr().err


def test_points_of_one_size_at_two_rates_are_refused(config, capsys):
    """Catches a design that takes the first point's settings for all of its size."""
    text = (
        config.read_text()
        + "\n\nfirst = points\n\ndef points():\n    return first() | {'again': {'model.hidden': 32}}\n"
    )
    config.write_text(text)
    assert main(["design", f"--config={config}", "--budget=3e12", "--target=1e14", LAW]) == 2
    said = capsys.readouterr().err
    assert "the points w32 and again of tiny have one size" in said and "config.train.learning_rate" in said


def test_a_file_that_is_no_text_is_not_written_over(config, tmp_path, capsys):
    out = tmp_path / "mine.py"
    out.write_bytes(b"\xff\xfe\x00")
    assert main(["design", f"--config={config}", "--budget=3e12", "--target=1e14", LAW, f"--out={out}"]) == 2
    assert "mine.py" in capsys.readouterr().err and out.read_bytes() == b"\xff\xfe\x00"
