"""The study runner: points trained and evaluated once, failures carried past, kills survived."""

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from helpers import child_process, tracked
from rfjax.config import from_dict
from rfjax.errors import ConfigError, RfjaxError
from rfjax.evaluation.records import read_records
from rfjax.study import study as studies
from rfjax.study.dry_run import dry_run_lines
from rfjax.study.run import run_config
from rfjax.study.size import size_of
from rfjax.study.study import load_study, run_point, run_study
from rfjax.training import run_folder

pytestmark = pytest.mark.usefixtures("quick_compilation")

ROOT = Path(__file__).parent.parent.parent

TINY = """
from ml_collections import ConfigDict

def get_config():
    return ConfigDict({
        "name": "tiny",
        "model": {"depth": 1, "hidden": 32, "head_size": 16, "patch_size": 4, "position_tokens": 4,
                  "position_span": 4.0, "position_grid": 8},
        "train": {"steps": 6, "batch_size": 8, "learning_rate": 1e-3, "warmup_steps": 2, "condition_dropout": 0.1,
                  "ema_every": 1, "ema_decay": 0.5, "checkpoint_every": 2, "log_every": 2},
        "evaluation": {"every": 3, "sampler": {"steps": 2, "guidance_scale": 2.0},
                       "validation": {"examples": 12, "batch_size": 8, "levels": 4},
                       "geneval": {"prompts_per_task": 2, "images_per_prompt": 2, "batch_size": 16}},
    })

def points():
    return {
        "depth1": {"model.depth": 1},
        "broken": {"mesh.fsdp": 7},
        "depth2": {"model.depth": 2},
    }
"""


@pytest.fixture
def tiny(tmp_path):
    path = tmp_path / "tiny.py"
    path.write_text(TINY)
    return path


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """(config file, folder, outcomes) of the tiny study, run once for all tests that read it."""
    folder = tmp_path_factory.mktemp("study")
    path = folder / "tiny.py"
    path.write_text(TINY)
    return path, folder / "runs", run_study(load_study(path), folder / "runs")


def evaluations(workdir):
    return sorted((r["key"]["evaluation"], r["key"]["step"], r["key"]["weights"]) for r in read_records(workdir))


def test_a_study_carries_on_past_a_failed_point(finished):
    _, root, outcomes = finished
    assert [(o.run.id, o.error is None) for o in outcomes] == [("depth1", True), ("broken", False), ("depth2", True)]
    assert "7" in outcomes[1].error
    assert json.loads((root / "broken" / "status.json").read_text())["state"] == "failed"
    # step 3 by the cadence, step 6 as the last, both sets of weights; GenEval at the last only
    want = [("validation", step, weights) for step in (3, 6) for weights in ("ema", "raw")]
    found = evaluations(root / "depth2")
    assert [e for e in found if e[0] == "validation"] == want
    scored = {e[0] for e in found if e[1] != 3} - {"validation"}
    assert scored == {"geneval", "geneval_ceiling", "geneval_floor_null", "geneval_floor_shuffled", "samples"}
    shown = tracked.of_events(root / "depth2" / "tensorboard")
    assert {step for name, step in shown if name.startswith("validation/ema/")} == {3, 6}
    assert any(value.image.height for e in tracked.events(root / "depth2" / "tensorboard") for value in e.summary.value)


def test_nothing_done_is_done_again_but_a_lost_evaluation_is(finished, tmp_path, capsys):
    path, root, _ = finished
    copy = tmp_path / "runs"
    shutil.copytree(root / "depth1", copy / "depth1")
    records = {p.name: json.loads(p.read_text()) for p in (copy / "depth1" / "evaluations").glob("*.json")}
    lost = [name for name, r in records.items() if r["key"]["evaluation"] == "validation" and r["key"]["step"] == 3]
    for name in lost:
        (copy / "depth1" / "evaluations" / name).unlink()
    before = {p: p.stat().st_mtime_ns for p in copy.rglob("*") if p.is_file()}
    study = load_study(path)
    run_point(study, study.point("depth1"), copy)
    # It takes time and shows nothing else where standard error is no terminal.
    assert capsys.readouterr().err == "tiny/depth1: evaluating step 3: validation of ema, validation of raw\n"
    assert {p for p in before if p.stat().st_mtime_ns != before[p]} <= {copy / "depth1" / "lock"}
    for name in lost:
        again = json.loads((copy / "depth1" / "evaluations" / name).read_text())
        assert again["values"] == records[name]["values"]  # paired noise: the very same numbers
    assert len(lost) == 2


@pytest.mark.full
def test_kill_the_command_and_give_it_again(tiny, tmp_path):
    """SIGKILL during a point, then the same command: the results are those of an undisturbed study."""
    tiny.write_text(TINY.replace('"broken": {"mesh.fsdp": 7},', ""))
    env = child_process.quick_environment()  # as here

    def command(root):
        return [sys.executable, "-m", "rfjax", "study", f"--config={tiny}", f"--workdir={root}"]

    with subprocess.Popen(
        command(tmp_path / "killed"), env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        deadline = time.monotonic() + 120
        while not (tmp_path / "killed" / "depth1" / "evaluations").exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        process.send_signal(signal.SIGKILL)
    done = subprocess.run(command(tmp_path / "killed"), env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert (tmp_path / "killed" / "report" / "index.html").exists()
    drawn = [value.tag for e in tracked.events(tmp_path / "killed/report/tensorboard") for value in e.summary.value]
    assert sorted(drawn) == sorted(path.stem for path in (tmp_path / "killed/report/figures").glob("*.png"))
    run_study(load_study(tiny), tmp_path / "calm")
    for point in ("depth1", "depth2"):
        killed, calm = (
            {json.dumps(r["key"]): r["values"] for r in read_records(tmp_path / name / point)}
            for name in ("killed", "calm")
        )
        assert killed == calm


def test_an_override_that_makes_points_one_run_is_refused(tiny, tmp_path):
    """Catches a study that trains one run many times under many names; one point may be given any."""
    same = load_study(tiny, {"model.depth": 2})
    for refuse in (lambda: run_study(same, tmp_path / "runs"), lambda: dry_run_lines(same)):
        with pytest.raises(ConfigError, match="the points depth1 and depth2 of tiny have one and the same config"):
            refuse()
    assert not (tmp_path / "runs").exists()


def test_a_folder_of_something_else_is_refused_before_a_point_is_trained(finished, tmp_path):
    """Catches a study of another config that fails point by point, over hours, where it should say so at once."""
    path, root, _ = finished
    shutil.copytree(root / "depth2", tmp_path / "runs" / "depth2")
    with pytest.raises(
        ConfigError,
        match=r"1 of the 3 runs of tiny differ from theirs, depth2 in config.train.batch_size. Use another",
    ):
        run_study(load_study(path, {"train.batch_size": 4}), tmp_path / "runs")
    assert not (tmp_path / "runs" / "depth1").exists()
    with pytest.raises(ConfigError, match="depth2 is the folder of one run"):
        run_study(load_study(path), tmp_path / "runs" / "depth2")


def test_a_point_runs_alone_and_points_are_collected_together(finished, tmp_path, capsys):
    from rfjax.cli import main

    path, root, _ = finished
    workdir = tmp_path / "w"
    shutil.copytree(root / "depth2", workdir / "depth2")  # as if another machine had made it
    assert main(["study", f"--config={path}", f"--workdir={workdir}", "--point=depth1"]) == 0
    assert main(["study", f"--config={path}", f"--workdir={workdir}", "--collect"]) == 0
    numbers = json.loads((workdir / "report" / "report.json").read_text())
    assert {run["run"].split("/")[-1] for run in numbers["runs"]} == {"depth1", "depth2"}
    # a run that is left out since it is damaged is told to scripts too, and the others are reported
    record = next((workdir / "depth1" / "evaluations").glob("*.json"))
    whole = record.read_text()
    record.write_text("{")
    capsys.readouterr()
    assert main(["study", f"--config={path}", f"--workdir={workdir}", "--collect"]) == 1
    assert f"the run in {workdir / 'depth1'} was left out" in capsys.readouterr().err
    numbers = json.loads((workdir / "report" / "report.json").read_text())
    assert {run["run"].split("/")[-1] for run in numbers["runs"]} == {"depth2"}
    record.write_text(whole)
    # results are not shown under a config that did not make them
    wrong = "--config.train.learning_rate=0.5"
    assert main(["study", f"--config={path}", f"--workdir={workdir}", "--collect", wrong]) == 2
    # the same numbers wherever a point ran
    there, here = ({json.dumps(r["key"]): r["values"] for r in read_records(d / "depth1")} for d in (root, workdir))
    assert there == here


def test_a_finished_run_is_opened_again(finished, tmp_path, capsys):
    from rfjax.cli import main

    run = tmp_path / "depth2"
    shutil.copytree(finished[1] / "depth2", run)
    before = {json.dumps(r["key"]): r["values"] for r in read_records(run)}
    off = "--config.evaluation.geneval.prompts_per_task=0"
    assert main(["eval", str(run), "--step=6", off, "--config.evaluation.validation.grid=midpoints"]) == 0
    after = {json.dumps(r["key"]): r["values"] for r in read_records(run)}
    assert {key: after[key] for key in before} == before  # another grid is another record
    assert {json.loads(key)["grid"] for key in set(after) - set(before)} == {"midpoints-4-n12"}
    out = tmp_path / "s.png"
    assert main(["sample", str(run), "--prompt", "a photo of a red square", f"--out={out}", "--negative", ""]) == 0
    assert (
        out.read_bytes().startswith(b"\x89PNG") and json.loads(out.with_suffix(".json").read_text())["negative"] == ""
    )
    assert "warning" not in capsys.readouterr().err
    assert main(["sample", str(run), "--prompt", "a photo of a Red sqare", f"--out={out}", "--negative", "blurry"]) == 0
    assert "the corpus shapes has no caption with 'sqare', 'blurry'" in capsys.readouterr().err
    assert main(["sample", str(run)]) == 2 and "needs captions" in capsys.readouterr().err
    assert main(["eval", str(run), "--config.model.depth=3"]) == 2


def test_bad_studies_are_refused(tmp_path):
    path = tmp_path / "s.py"
    path.write_text("def get_config():\n    return {}\ndef points():\n    return {'a/b': {}}\n")
    with pytest.raises(ConfigError, match="cannot name a folder"):
        load_study(path)
    path.write_text("def get_config():\n    return {}\ndef points():\n    return {'a': {'model.dpth': 3}}\n")
    with pytest.raises(
        ConfigError, match=r"point a: unknown config key config.model.dpth; did you mean config.model.depth\?"
    ):
        load_study(path)


def test_the_papers_smallest_point_takes_a_step_on_tiny_dimensions(tmp_path):
    """configs/sd3_depth.py as it is but for its sizes: bfloat16, full remat, three encoder slots."""
    study = load_study(
        ROOT / "configs" / "sd3_depth.py",
        {
            "model.depth": 2,
            "model.hidden": 32,
            "model.head_size": 16,
            "data.image_size": 4,
            "mesh.fsdp": 1,
            "train.batch_size": 4,
            "train.steps": 1,
            "evaluation.validation.examples": 4,
            "evaluation.validation.batch_size": 4,
        },
    )
    run_config(study.point("depth15").config, tmp_path / "run")
    losses = {r["key"]["weights"]: r["values"][0]["value"] for r in read_records(tmp_path / "run")}
    # Zero-initialised, one warm-up step of 1e-7: the loss of a zero velocity, 1 + 1.
    assert losses["raw"] == pytest.approx(2.0, abs=0.4)


def test_a_study_whose_tracker_cannot_be_used_is_refused_before_it_trains(tmp_path, monkeypatch):
    """Catches a study whose points fail one after another, each after it was compiled."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    study = load_study(ROOT / "configs" / "shapes.py", {"train.trackers": ("mlflow",)})
    with pytest.raises(ConfigError, match="trackers has mlflow"):
        run_study(study, tmp_path / "study")
    assert not (tmp_path / "study").exists()


@pytest.mark.full
def test_the_nodes_smallest_point_takes_steps_on_tiny_dimensions(tmp_path):
    """configs/node_depth.py as it is but for its sizes and lengths: mup, bfloat16, no loop. Of its branches one run."""
    tiny = {
        "model.depth": 2,
        "model.hidden": 32,
        "model.head_size": 16,
        "model.base_width": 16,
        "data.image_size": 4,
        "mesh.fsdp": 1,
        "train.batch_size": 4,
        "train.warmup_steps": 1,
        "train.steps": 3,
        "train.branches": (),
        "evaluation.validation.examples": 4,
        "evaluation.validation.batch_size": 4,
    }
    study = load_study(ROOT / "configs" / "node_depth.py", tiny)
    run_config(study.point("depth6-seed0").config, tmp_path / "run")
    losses = {r["key"]["weights"]: r["values"][0]["value"] for r in read_records(tmp_path / "run")}
    assert losses["raw"] == pytest.approx(2.0, abs=0.4)


def test_sizes_of_a_point():
    study = load_study(ROOT / "configs" / "sd3_depth.py")
    size = size_of(study.point("depth38").config)
    assert size.params == 8_056_617_792 and size.state_bytes == 16 * size.params
    assert size.images == 500_000 * 4096
    np.testing.assert_allclose(size.flops, 1.392e22, rtol=1e-3)


def test_a_run_is_measured_at_several_counts_of_sampling_steps(finished, tmp_path, capsys):
    """The reference is no distance from itself and the fewest steps the farthest; a run kept at its
    config's own number of steps would give the same everywhere."""
    from rfjax import cli
    from rfjax.laws.step_efficiency import step_counts
    from rfjax.results import merge, results_folder

    shutil.copytree(finished[1] / "depth1", tmp_path / "depth1")
    assert cli.main(["eval", str(tmp_path / "depth1"), "--sampling-steps", "1,4,8"]) == 0
    assert "sampling_path_length" in capsys.readouterr().out
    merge.collect([tmp_path / "depth1"], tmp_path / "results")
    found = results_folder.read(tmp_path / "results")
    counts = step_counts(found.long, found.prompts)
    assert [one.steps for one in counts] == [1, 4, 8] and {one.reference for one in counts} == {8}
    assert counts[2].distance == 0 < counts[1].distance < counts[0].distance
    assert all(one.path_length > 0 for one in counts)
    assert cli.main(["eval", str(tmp_path / "depth1"), "--sampling-steps", "8"]) == 2
    assert "give two or more counts" in capsys.readouterr().err


def test_a_run_is_measured_by_mlperfs_protocol(finished, tmp_path, capsys):
    """A column of its own, beside the grids'. Catches a record under the paired loss's name, and an example's
    loss without its level."""
    from rfjax import cli
    from rfjax.results import merge

    shutil.copytree(finished[1] / "depth1", tmp_path / "depth1")
    levels = tmp_path / "levels.txt"
    levels.write_text("\n".join(str(i % 8) for i in range(16)) + "\n")
    assert cli.main(["eval", str(tmp_path / "depth1"), f"--mlperf-levels={levels}"]) == 0
    assert "validation_mlperf (mlperf-assigned-8-n16-" in capsys.readouterr().out
    wide = merge.collect([tmp_path / "depth1"], tmp_path / "results").wide
    row = wide[wide["mlperf_loss"].notna()].iloc[0]
    assert row["grid"].startswith("mlperf-assigned-8-n16-") and np.isnan(row["loss"])
    each = [row[f"mlperf_loss@t={i / 8:g}"] for i in range(8)]
    assert row["mlperf_loss"] == pytest.approx(np.mean(each)) and row["mlperf_loss_n"] == 16
    assert row["mlperf_loss@t=0.125_n"] == 2
    assert cli.main(["eval", str(tmp_path / "depth1"), f"--mlperf-levels={levels}", "--sampling-steps=1,2"]) == 2
    assert "give one at a time" in capsys.readouterr().err


def test_images_of_a_file_of_prompts_are_laid_out_for_the_scorers(finished, tmp_path, capsys):
    """What is missing is made, the same to the byte, however it was cut into batches. Catches noise that follows the
    batch, prompts in another's folder, and images of two makings in one."""
    from rfjax import cli

    run = finished[1] / "depth1"
    rows = [
        {"tag": "single_object", "include": [{"class": "square", "count": 1}], "prompt": "a photo of a square"},
        {"tag": "single_object", "include": [{"class": "star", "count": 1}], "prompt": "a photo of a star"},
        {"tag": "single_object", "include": [{"class": "ring", "count": 1}], "prompt": "a photo of a ring"},
    ]
    prompts = tmp_path / "metadata.jsonl"
    prompts.write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = ["sample", str(run), f"--prompts={prompts}", "--samples=2", "--config.evaluation.sampler.steps=2"]
    out = tmp_path / "images"
    assert cli.main([*command, f"--out={out}"]) == 0
    made = {str(path.relative_to(out)): path.read_bytes() for path in sorted(out.rglob("*.png"))}
    assert list(made) == [f"{i:05d}/samples/{j:04d}.png" for i in range(3) for j in range(2)]
    assert len(set(made.values())) == 6
    assert [json.loads((out / f"{i:05d}/metadata.jsonl").read_text()) for i in range(3)] == rows
    facts = json.loads((out / "generation.json").read_text())
    assert facts["sampler"].endswith("-3x2") and facts["run"] == "tiny/depth1" and facts["seed"] == 0
    for name in list(made)[1::2]:
        (out / name).unlink()
    assert cli.main([*command, f"--out={out}", "--config.evaluation.geneval.batch_size=2"]) == 0
    assert {name: (out / name).read_bytes() for name in made} == made
    assert cli.main([*command, f"--out={out}", "--seed=1"]) == 2
    assert "was begun with seed 0, and this is 1" in capsys.readouterr().err

    (tmp_path / "prompts.txt").write_text("a red square\tcolor\na blue star\n")
    bench = tmp_path / "bench" / "color"
    assert cli.main([*command, f"--prompts={tmp_path / 'prompts.txt'}", "--layout=compbench", f"--out={bench}"]) == 0
    names = [f"a red square_{n:06d}.png" for n in (0, 1)] + [f"a blue star_{n:06d}.png" for n in (2, 3)]
    assert sorted(path.name for path in (bench / "samples").iterdir()) == sorted(names)
    assert cli.main(["sample", str(run)]) == 2
    assert "needs captions" in capsys.readouterr().err


def test_runs_are_sampled_for_a_preference_study(finished, tmp_path, capsys):
    """Both runs see the same noise, an interrupted command goes on, and pages hold the sampled pixels. Catches noise
    that follows the run, images of other prompts, a run's name in what raters get."""
    from rfjax import cli
    from rfjax.compare.study_files import read_key, read_study

    (tmp_path / "prompts.txt").write_text("a red square\na blue star\na green ring\n")
    runs = [str(finished[1] / name) for name in ("depth1", "depth2")]
    out = tmp_path / "voted"
    command = ["compare", *runs, f"--prompts={tmp_path / 'prompts.txt'}", f"--out={out}", "--raters=2"]
    command += ["--config.evaluation.sampler.steps=2"]
    assert cli.main(command) == 0
    study = read_study(out)
    key = read_key(out, study)
    assert set(key.runs.values()) == {"tiny/depth1", "tiny/depth2"}
    assert {facts["step"] for facts in key.sides.values()} == {6}
    images = {name: sorted((out / "samples" / f"tiny-{name}").glob("*.png")) for name in ("depth1", "depth2")}
    assert [path.name for path in images["depth1"]] == [f"0000{n}-0.png" for n in range(3)]
    assert "tiny" not in (out / "study.json").read_text() + (out / "pages" / "r01.html").read_text()
    pages = (out / "pages" / "r01.html").read_bytes()
    shutil.rmtree(out / "pages")
    (out / "study.json").unlink()
    (out / "key.json").unlink()
    images["depth2"][1].unlink()
    assert cli.main(command) == 0 and (out / "pages" / "r01.html").read_bytes() == pages
    alone = ["sample", runs[0], f"--prompts={tmp_path / 'prompts.txt'}", "--layout=numbered", "--samples=1"]
    assert cli.main([*alone, "--config.evaluation.sampler.steps=2", f"--out={tmp_path / 'alone'}"]) == 0
    assert (tmp_path / "alone" / "00002-0.txt").read_text() == "a green ring\n"
    for path in images["depth1"]:
        assert (tmp_path / "alone" / path.name).read_bytes() == path.read_bytes()
    assert cli.main([*command, "--choose=2"]) == 2
    assert "was begun for other prompts" in capsys.readouterr().err


def test_the_time_left_is_told_by_what_this_attempt_has_trained(tiny, tmp_path, monkeypatch):
    # The bug: a study taken up again counted the points done before as its own speed, and said "about 0 min left".
    study = load_study(tiny)
    flops = {point.id: size_of(point.config).flops for point in study.points}
    folder = tmp_path / "depth1"  # two thirds of it trained by an earlier attempt
    folder.mkdir()
    (folder / "run.json").write_text(json.dumps({"run": "depth1", "step": 4}))
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "status.json").write_text(json.dumps({"state": "done", "step": 6, "message": ""}))
    clock = [0.0]
    monkeypatch.setattr(studies.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(
        studies,
        "_train_and_measure",
        lambda study, run, root, stop: clock.__setitem__(0, clock[0] + 600.0 * (run.id == "depth1")),
    )
    said = []
    run_study(study, tmp_path, say=said.append)
    left = 600.0 * flops["depth2"] / (flops["depth1"] / 3) / 60
    assert said[0].endswith("FLOPs")  # nothing known yet
    assert said[1].endswith(f"(about {left:.0f} min left)") and said[2].endswith(f"(about {left:.0f} min left)")


NO_POINTS = ["def points(): return 3", "def points(): return None", "def points(): yield 'a', {}", "points = {'a': {}}"]
NO_POINTS += ["def points(): return {}", "def points(): return {'a': 3}", "def points(): return ['a']", "points = 3"]
NO_POINTS += ["async def points(): return {}", "def points(): return {1: {}}", "def points(): return {'a' * 300: {}}"]


@pytest.mark.filterwarnings("ignore:coroutine")
@pytest.mark.parametrize("text", NO_POINTS)
def test_points_that_are_none_are_refused_by_name(tmp_path, text):
    """Catches a traceback, and `points = {...}`, for which a study of one point was run without a word."""
    path = tmp_path / "s.py"
    path.write_text(f"def get_config():\n    return {{}}\n{text}\n")
    with pytest.raises(ConfigError, match=r"s\.py.* (it must (return|be) a|cannot name a folder)") as told:
        load_study(path)
    assert "\n" not in str(told.value)


def test_one_runs_damaged_config_is_a_note_of_the_collection(tmp_path):
    """Catches `--collect` that ends for all runs where one config.json is torn."""
    config = from_dict({})
    study = studies.Study("s", tuple(studies.Point(id, config) for id in ("a", "b")))
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "config.json").write_text('{"model')
    torn, absent = studies.strangers(study, tmp_path)
    assert "a is not compared with its point: " in torn and "a/config.json cannot be read" in torn
    assert absent == "not run: b"


def test_the_failure_of_a_folder_that_went_is_noted_in_no_new_folder(tmp_path):
    """Catches a new folder in the old one's place, into which the run can no longer be moved back."""
    with pytest.raises(RfjaxError) as told:
        run_folder.check_still_there(tmp_path / "a", {"starts": []})
    studies._note_failure(tmp_path / "a", f"RfjaxError: {told.value}")
    assert not (tmp_path / "a").exists()
    studies._note_failure(tmp_path / "b", "config.mesh does not fit")
    assert run_folder.read_status(tmp_path / "b")["state"] == "failed"
