"""Tuned runs in the report: a law before and after, what moves, and no law of pretraining that takes them."""

import json
from types import SimpleNamespace

import numpy as np
import pytest

from helpers import planted_study
from rfjax.cli import main
from rfjax.cli.report import read_tuned
from rfjax.report.write import write_report
from rfjax.results import merge

TUNED = (("depth1", 1), ("depth2", 2), ("depth3", 3), ("depth4", 4))
GAIN = 0.1  # in GenEval, at every size


def held_out_rows(steps, gain):
    about = {"prompts": "held_out", "guidance_scale": 4.0, "measure": "geneval_graded", "images": 8}
    values = {0: 0.4, steps: 0.4 + gain}
    return [{**about, "step": step, "value": v, "low": v - 0.02, "high": v + 0.02} for step, v in values.items()]


def write_tuned(root, study, name, depth, seed):
    """The folder of a run that `rfjax tune` made of a planted run: a lower loss than any law allows, a higher score."""
    base = json.loads((study / name / "run.json").read_text())
    folder = root / f"{name}-nft"
    run = f"{name}-nft"
    planted_study.write_run(folder, run, depth, 2000, penalty=0.2, seed=seed, samples=False)
    record = json.loads((folder / "run.json").read_text())
    flops = 2000 * 64 * base["flops_per_image"]
    parent = {"path": str(study / name), "run": name, "step": 2000, "images": 2000 * 64, "flops": flops}
    (folder / "run.json").write_text(json.dumps(record | {"role": "tuned", "parent": parent, "step": 2000}))
    (folder / "tune.json").write_text(json.dumps({"method": "nft"}))
    rows = held_out_rows(150, GAIN + 0.001 * (-1) ** depth)
    (folder / "held_out.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture(scope="module")
def tuned(study, tmp_path_factory):
    """(the folder of the made-up study's runs, the folder of its tuned runs)."""
    root, runs = tmp_path_factory.mktemp("tuned"), study.parent / "runs"
    for seed, (name, depth) in enumerate(TUNED):
        write_tuned(root, runs, name, depth, seed)
    return runs, root


@pytest.fixture(scope="module")
def both(tuned, tmp_path_factory):
    """(folder, numbers) of the report of the study and its tuned runs, which are in one table."""
    runs, preference = tuned
    root = tmp_path_factory.mktemp("reported")
    found, notes = read_tuned(SimpleNamespace(runs=runs, tuned=preference))
    assert not notes
    folders = [run for folder in tuned for run in sorted(folder.iterdir())]
    merge.collect(folders, root / "results")
    return root / "report", write_report(root / "results", root / "report", resamples=100, tuned=found)


def test_no_law_of_pretraining_takes_a_tuned_run(both, report):
    """Catches a tuned run among the points of a law, a correlation, a claim, a figure of levels or the best of a depth:
    its loss is a fifth of what the law says. The same study with and without tuned runs gives the same numbers."""
    alone, together = report[1], both[1]
    assert {run["role"] for run in together["runs"]} == {"run", "tuned"} and alone["tuned"] is None
    assert [each["role"] for each in together["left_out_by_role"]] == ["tuned"]
    for name in ("analysis", "band", "optimal_band", "claims", "levels", "depths", "trends", "geneval", "correlation"):
        assert together[name] == alone[name], name
    assert together["folder_scores"] == alone["folder_scores"] and together["score_levels"] == alone["score_levels"]


def test_the_report_shows_the_law_before_and_after_and_what_moves(both):
    """Catches before for after, tuned FLOPs for those of pretraining, and a section without intervals."""
    out, numbers = both
    html = (out / "index.html").read_text()
    shifts = {shift["measure"]: shift for shift in numbers["tuned"]["nft"]["shifts"]}
    reward = shifts["held-out geneval_graded"]
    assert reward["verdict"] == "only the intercept moves" and reward["sizes"] == 4
    assert reward["mean_change"][0] == pytest.approx(GAIN, abs=1e-6)
    assert reward["mean_change"][1] < GAIN < reward["mean_change"][2]
    loss = shifts["validation loss"]
    runs = {run["run"]: run for run in numbers["runs"]}
    x = np.log10([runs[name]["flops"] for name, _ in TUNED])
    slope = np.polyfit(x, np.log([runs[name]["loss"] for name, _ in TUNED]), 1)[0]
    assert loss["slope_before"] == pytest.approx(slope) and loss["mean_change"][0] < np.log(0.4)
    for end in ("before", "after"):
        assert loss[end][0] == pytest.approx(loss[f"slope_{end}"]) and loss[end][1] < loss[end][0] < loss[end][2]
    assert (out / "figures" / "before_and_after_tuning.svg").is_file()
    assert "After tuning</h2>" in html and "Tuned by nft: held-out geneval_graded over 4 sizes" in html
    assert "4 sizes say little about a slope" in html and "only the intercept moves" in html


def test_folders_that_have_nothing_to_show_are_named(tuned, tmp_path, capsys):
    study, preference = tuned
    assert main(["report", str(preference), f"--out={tmp_path / 'report'}"]) == 2
    assert "are tuned, and no law takes them; name the folder of the study" in capsys.readouterr().err
    assert main(["report", str(study), f"--tuned={study}", f"--out={tmp_path / 'report'}"]) == 2
    assert "has no finished tuned run; finish rfjax tune, or leave --tuned out" in capsys.readouterr().err
    assert not (tmp_path / "report").exists()
