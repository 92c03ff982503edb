"""Merging run folders into the results table, and reading it back with suspicion."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from helpers import planted_study
from rfjax.data.geneval_names import TASKS
from rfjax.errors import ConfigError, RfjaxError
from rfjax.evaluation import control_measures, mlperf_loss, preference
from rfjax.evaluation.image_folders import compbench
from rfjax.laws import study_fits
from rfjax.laws.fit_points import check, rename_hint
from rfjax.results import columns, columns_page, many_runs, merge, results_folder, run_files
from rfjax.results.foreign_table import read_table
from rfjax.scorers import distances

FRAMES = [file.removesuffix(".csv") for file in columns.FILES]


@pytest.fixture
def run(tmp_path):
    """One finished run, its folder."""
    planted_study.write_run(tmp_path / "a", "a", 1, 500)
    return tmp_path / "a"


def test_what_is_read_is_what_was_written_to_the_last_bit(tmp_path, run):
    planted_study.put(
        run,
        "a",
        500,
        "fid",
        [
            planted_study.value("fid", "mean", 0.1 + 0.2, 5e-324, 3),
            planted_study.value("fid", "big", 1.39e22 / 3, 1e300, 3),
        ],
        weights="raw",
        grid="-",
    )
    written = merge.collect([run], tmp_path / "results")
    read = results_folder.read(tmp_path / "results")
    for name in FRAMES:
        pd.testing.assert_frame_equal(getattr(written, name), getattr(read, name), check_exact=True)
    assert read.samples == written.samples and len(read.samples) == 1
    values = read.long.set_index(["metric", "item"])["value"]
    assert values["fid", "mean"] == 0.1 + 0.2 and values["fid", "big"] == 1.39e22 / 3


@pytest.mark.parametrize(
    "name", ['a,b"c\n<&>', "a\rb", "a\r\nb", "007", "2396e87", "None", "NA", "nan", "  spaced ", "é☃"]
)
def test_names_survive_whatever_they_are(tmp_path, name):
    planted_study.write_run(tmp_path / "r", name, 1, 500)
    merge.collect([tmp_path / "r"], tmp_path / "results")
    read = results_folder.read(tmp_path / "results")
    assert set(read.long["run"]) == {name} and set(read.runs["run"]) == {name}


def test_wide_has_a_row_per_checkpoint_and_settings(tmp_path, run):
    common = {"images": 32_000, "flops": 6.9e11}
    planted_study.put(
        run, "a", 500, "validation", planted_study.loss_values(0.3), weights="ema", grid="midpoints-8", **common
    )
    planted_study.put(
        run,
        "a",
        500,
        "geneval",
        planted_study.score_values("geneval", 0.5),
        weights="ema",
        sampler="heun-10",
        **common,
    )
    wide = merge.collect([run], tmp_path / "results").wide
    ema = wide[wide["weights"] == "ema"]
    assert sorted(zip(ema["grid"], ema["sampler"], strict=True)) == sorted(
        (g, s) for g in ("midpoints-8", "paper-8") for s in ("heun-10", planted_study.SAMPLER)
    )
    row = ema[(ema["grid"] == "midpoints-8") & (ema["sampler"] == "heun-10")].iloc[0]
    assert row["loss"] == 0.3 and row["geneval_overall"] == pytest.approx(0.5)
    assert row["loss_n"] == 512 and row["params"] == planted_study.params_of(1) and row["final"] == 1
    # The raw weights have a loss and no score; the ceiling, which has no checkpoint, has no row.
    raw = wide[wide["weights"] == "raw"]
    assert len(raw) == 1 and np.isnan(raw["geneval_overall"].iloc[0]) and raw["sampler"].iloc[0] == ""
    assert (wide["step"] == 500).all()


@pytest.mark.parametrize(
    ("triple", "name"),
    [
        (("validation", "loss", "mean"), "loss"),
        (("validation", "loss", "t=0.125"), "loss@t=0.125"),
        (("geneval", "geneval", "overall"), "geneval_overall"),
        (("geneval", "geneval_held_out", "position"), "geneval_held_out_position"),
        (("geneval_floor_null", "geneval", "counting"), "geneval_floor_null_counting"),
        (("geneval_ceiling", "geneval_seen", "overall"), "geneval_ceiling_seen_overall"),
    ],
)
def test_names_of_measured_columns(triple, name):
    assert columns.Measure(*triple).format() == name


WRITTEN = {
    ("validation", "loss", "mean"),
    (mlperf_loss.EVALUATION, mlperf_loss.METRIC, "mean"),
    (control_measures.EVALUATION, control_measures.DISTANCE, control_measures.TRUTH),
    ("sampling_steps", "sampling_path_length", "mean"),
    ("sampling_steps", "sampling_distance", "mean"),
    *((preference.EVALUATION, metric, item) for metric in preference.METRICS for item in preference.QUESTIONS),
    *(("compbench", "compbench", item) for item in compbench.RESULTS),
    *((name, name.replace("-", "_"), "mean") for name in ("clip-score", *distances.MODELS, "cmmd-other-model")),
    *(
        (evaluation, metric, item)
        for item in ("overall", *TASKS)
        for evaluation, metric in (
            ("geneval", "geneval"),
            ("geneval", "geneval_held_out"),
            ("geneval", "geneval_seen"),
            ("geneval_floor_null", "geneval"),
            ("geneval_floor_shuffled", "geneval"),
            ("geneval_ceiling", "geneval"),
            *((protocol, "geneval") for protocol in columns.PROTOCOLS),
            (control_measures.EVALUATION, control_measures.ALIGNMENT),
            ("sampling_steps", "sampling"),
        )
    ),
}


def test_every_measure_that_is_written_is_read_back_from_its_column():
    """Catches a metric that a reader would take for nothing, and two whose columns have one name."""
    measures = [columns.Measure(*triple) for triple in WRITTEN]
    assert len({measure.format() for measure in measures}) == len(WRITTEN)
    assert [columns.Measure.parse(measure.format()) for measure in measures] == measures
    for evaluation, metric in (("validation", "loss"), ("validation_mlperf", "mlperf_loss")):
        level = columns.Measure(evaluation, metric, "t=0.125")
        assert columns.Measure.parse(level.format()) == level


@pytest.mark.parametrize(
    "name", ["run", "geneval", "geneval_overall_low", "loss_stderr", "loss@t=0.5_n", "geneval_new_overall", "x@t=0.5"]
)
def test_other_columns_are_no_measures(name):
    """A statistic is none, and a metric that nothing writes is no task of GenEval's."""
    assert columns.Measure.parse(name) is None


def test_losses_at_levels_are_found_by_their_level():
    names = ["loss", "loss@t=0.5", "loss@t=0.5_low", "mlperf_loss@t=0.5", "geneval_overall", "loss@t=abc"]
    assert columns.loss_levels(names) == {"0.5": "loss@t=0.5", "abc": "loss@t=abc"}


def test_facts_of_the_run_are_joined(tmp_path):
    planted_study.write_run(tmp_path / "r", "r", 2, 500)
    path = tmp_path / "r" / "run.json"
    parent = {"run": "old", "step": 100, "flops": 2.5e9, "images": 6400}
    path.write_text(json.dumps(json.loads(path.read_text()) | {"parent": parent}))
    (tmp_path / "r" / "config.json").write_text(
        json.dumps({"formulation": "rf/lognorm(0.00,1.00)", "train": {"schedule": "wsd"}})
    )
    found = merge.collect([tmp_path / "r"], tmp_path / "results")
    row = found.runs.iloc[0]
    assert (row["parent_run"], row["parent_flops"], row["schedule"], row["platform"]) == (
        "old",
        2.5e9,
        "wsd",
        "cpu",
    )
    assert (row["train_seconds"], row["state"], row["last_step"]) == (25.0, "done", 500)
    assert row["evaluation_seconds"] == 1.5 * 7
    long = found.long
    assert set(long["formulation"]) == {"rf/lognorm(0.00,1.00)"} and set(long["parent_step"]) == {100}
    assert found.prompts.groupby("task").size().to_dict() == dict.fromkeys(planted_study.TASKS, 10)


def test_only_the_planned_last_step_is_final(tmp_path):
    planted_study.write_run(tmp_path / "r", "r", 1, 500, checkpoints=(200, 400))
    wide = merge.collect([tmp_path / "r"], tmp_path / "results").wide
    assert dict(zip(wide["step"], wide["final"], strict=True)) == {200: 0, 400: 0, 500: 1}


def test_training_curve_is_thinned_by_means(tmp_path, run):
    lines = [{"step": s, "loss": float(s)} for s in range(1, 1001)] + [
        {"step": 5, "loss": None},
        {"step": 1000, "loss": 0.0},
    ]
    text = "\n".join([*map(json.dumps, lines[:300]), "{broken", *map(json.dumps, lines[300:])]) + '\n{"step": 10'
    (run / "metrics.jsonl").write_text(text)
    found = merge.collect([run], tmp_path / "results")
    curve = found.curves
    assert len(curve) == run_files.MAX_CURVE_ROWS and curve["logged"].sum() == 1000
    assert curve["train_loss"].iloc[0] == np.mean(range(1, 6)) and curve["step"].iloc[0] == 5
    assert curve["train_loss"].iloc[-1] == np.mean([996, 997, 998, 999, 0])  # step 1000's last word
    assert found.notes == ("a: 1 line(s) of metrics.jsonl could not be read and were left out",)


def test_a_point_that_failed_before_it_began_is_listed(tmp_path, run):
    planted_study.write_json(tmp_path / "b" / "status.json", {"state": "failed", "step": 0, "message": "out of memory"})
    found = merge.collect([run, tmp_path / "b"], tmp_path / "results").runs.set_index("run")
    assert found.loc["b", "state"] == "failed" and found.loc["b", "message"] == "out of memory"
    assert pd.isna(found.loc["b", "depth"])


def test_run_folders_are_those_with_a_run(tmp_path, run):
    (tmp_path / "results").mkdir()
    (tmp_path / "notes.txt").write_text("")
    assert run_files.run_folders(tmp_path) == [run]


def test_a_sample_sheet_that_is_gone_is_noted(tmp_path, run):
    (run / "samples/final.png").write_bytes(b"not a picture")
    found = merge.collect([run], tmp_path / "results")
    assert found.samples == () and "sample sheet of step 500" in found.notes[0]


def test_sheets_of_an_earlier_table_are_removed(tmp_path, run):
    """They would pass for the table's own to whoever opens the folder."""
    planted_study.write_run(tmp_path / "b", "b", 1, 500)
    merge.collect([run, tmp_path / "b"], tmp_path / "results")
    assert len(list((tmp_path / "results/samples").iterdir())) == 2
    (sheet,) = merge.collect([run], tmp_path / "results").samples
    assert [f"samples/{path.name}" for path in (tmp_path / "results/samples").iterdir()] == [sheet.png]
    results_folder.read(tmp_path / "results")


def test_two_folders_of_one_run_are_refused(tmp_path, run):
    planted_study.write_run(tmp_path / "b", "a", 1, 500)
    with pytest.raises(ConfigError, match="run 'a' is in both"):
        merge.collect([run, tmp_path / "b"], tmp_path / "results")


def test_a_record_in_the_wrong_folder_is_refused(tmp_path, run):
    planted_study.put(run, "b", 500, "validation", planted_study.loss_values(0.1), grid="paper-8")
    with pytest.raises(ConfigError, match="belongs to run 'b' but lies in the folder of 'a'"):
        merge.collect([run], tmp_path / "results")


@pytest.mark.parametrize(
    ("file", "content", "words"),
    [
        ("run.json", "{", "cannot be read"),
        ("run.json", "[]", "cannot be read"),
        ("run.json", json.dumps({"schema": 9, "run": "a"}), "schema 9; this rfjax reads schema 1"),
        ("run.json", json.dumps(planted_study.facts("a", 1, 500) | {"params": None}), "has no 'params'"),
        ("status.json", "", "cannot be read"),
        ("config.json", '{"model": 3}', "model must be an object"),
        ("config.json", '{"train": {"schedule": []}}', "train.schedule must be a text"),
    ],
)
def test_a_damaged_run_is_named_and_left_out(tmp_path, run, file, content, words):
    """One unreadable file must neither hide the other runs nor go unsaid."""
    (run / file).write_text(content)
    with pytest.raises(ConfigError) as error:
        merge.collect([run], tmp_path / "results")
    assert words in str(error.value) and file in str(error.value)
    planted_study.write_run(tmp_path / "b", "b", 1, 500)
    found = merge.collect([run, tmp_path / "b"], tmp_path / "results")
    assert set(found.long["run"]) == set(found.runs["run"]) == {"b"}
    assert found.notes == (f"the run in {run} was left out: {error.value}",)
    assert results_folder.read(tmp_path / "results").notes == found.notes  # whence the report has them


@pytest.mark.parametrize("name", ["run.json", "status.json", "config.json", "metrics.jsonl"])
@pytest.mark.parametrize("what", ["a link to nothing", "a pipe"])
def test_a_file_of_a_run_that_is_no_file_is_named(tmp_path, run, name, what):
    """Catches a pipe that the collection waits for for ever, and a link to nothing that counts as no file."""
    path = run / name
    path.unlink(missing_ok=True)
    path.symlink_to("nowhere") if what == "a link to nothing" else os.mkfifo(path)
    with pytest.raises(ConfigError, match=f"{name} cannot be read: it is {what}; "):
        run_files.read_run(run)


def test_a_run_with_a_damaged_evaluation_is_left_out_whole(tmp_path, run):
    planted_study.write_run(tmp_path / "b", "b", 1, 500)
    record = next((run / "evaluations").glob("*.json"))
    record.write_text(record.read_text()[:100])
    found = merge.collect([run, tmp_path / "b"], tmp_path / "results")
    assert set(found.long["run"]) - {"-"} == set(found.runs["run"]) == {"b"}
    (note,) = found.notes
    assert note.startswith(f"the run in {run} was left out: the evaluation record") and record.name in note


def test_a_folder_that_is_no_run_is_refused_beside_runs_too(tmp_path, run):
    with pytest.raises(ConfigError, match="no run's folder at"):
        merge.collect([run, tmp_path / "misspelt"], tmp_path / "results")


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    (tmp_path / "empty").mkdir()
    for folders, words in (
        ([tmp_path / "empty"], "not a run folder"),
        ([tmp_path / "no"], "no run's folder"),
        ([], "no run folders"),
    ):
        with pytest.raises(ConfigError, match=words):
            merge.collect(folders, tmp_path / "results")


def edited(folder, file, change):
    path = folder / file
    path.write_text(change(path.read_text()))


def without_column(text, name):
    rows = [line.split(",") for line in text.splitlines()]
    place = rows[0].index(name)
    return "\n".join(",".join(row[:place] + row[place + 1 :]) for row in rows) + "\n"


@pytest.mark.parametrize(
    ("file", "change", "words"),
    [
        ("wide.csv", lambda text: text.replace("0.2338", "0.2337"), "does not match its hash"),
        ("long.csv", lambda text: text[:-200], "does not match its hash"),
        ("curves.csv", lambda text: without_column(text, "train_loss"), "lacks the column(s) train_loss"),
        ("runs.csv", lambda text: "", "lacks the column(s) run, study"),
        ("table.json", lambda text: text[:100], "is damaged"),
        (
            "table.json",
            lambda text: text.replace('"schema": 8', '"schema": 9'),
            "schema version 9; this rfjax reads version 8",
        ),
        ("table.json", lambda text: text.replace('"notes"', '"nodes"'), "is damaged"),
    ],
)
def test_a_damaged_table_is_refused_with_the_remedy(tmp_path, run, file, change, words):
    merge.collect([run], tmp_path / "results")
    edited(tmp_path / "results", file, change)
    with pytest.raises(ConfigError) as error:
        results_folder.read(tmp_path / "results")
    assert file in str(error.value) and words in str(error.value) and "rfjax study --collect" in str(error.value)


def test_missing_files_are_refused(tmp_path, run):
    with pytest.raises(ConfigError, match="no results table at .*table.json is missing"):
        results_folder.read(tmp_path)
    with pytest.raises(ConfigError, match="no results table at .*there is no such folder"):
        results_folder.read(tmp_path / "mistyped")
    merge.collect([run], tmp_path / "results")
    sheet = next((tmp_path / "results/samples").glob("*.png"))
    for path in (sheet, tmp_path / "results/long.csv"):
        kept = path.read_bytes()
        path.unlink()
        with pytest.raises(ConfigError, match=path.name):
            results_folder.read(tmp_path / "results")
        path.write_bytes(kept)
    results_folder.read(tmp_path / "results")


def test_a_disk_that_refuses_leaves_the_old_table(tmp_path, run, monkeypatch):
    merge.collect([run], tmp_path / "results")
    before = {path: path.read_bytes() for path in (tmp_path / "results").rglob("*") if path.is_file()}
    monkeypatch.setattr(results_folder, "SCHEMA", 2)  # so that a half-written folder would differ
    blocked = tmp_path / "results" / "runs.csv"
    blocked.unlink()
    blocked.mkdir()
    with pytest.raises(RfjaxError, match=r"runs\.csv"):
        merge.collect([run], tmp_path / "results")
    assert {p: p.read_bytes() for p in before if p != blocked} == {p: b for p, b in before.items() if p != blocked}
    assert not list((tmp_path / "results").glob(".*"))


def test_the_documentation_is_what_the_code_says():
    path = Path(__file__).parents[2] / "docs" / "results_table.md"
    assert path.read_text() == columns_page.markdown(), (
        "run: python -m rfjax.results.columns_page > docs/results_table.md"
    )


def test_table_and_fits_need_no_jax():
    modules = ("results.merge", "results.results_folder", "laws.study_fits", "report.fit_command", "report.write")
    imported = ", ".join(f"rfjax.{name}" for name in modules)
    code = f"import sys, {imported}; sys.exit('jax' in sys.modules or 'flax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2]).returncode == 0


def test_losses_that_share_their_examples_have_a_covariance(study):
    """Of the means, from the records' losses per example: equal to numpy's over n, symmetric by
    being stored once. A covariance of single examples, or of other checkpoints, would be larger."""
    found = results_folder.read(study).pairs
    ema = found[found["weights"] == "ema"]
    runs = sorted(set(ema["run"]))
    assert len(runs) == 7 and len(ema) == 7 * 8 // 2 and set(ema["step"]) == {500, 1000, 1200, 2000}
    at = ema.set_index(["run", "other_run"])
    first, last = (
        planted_study.example_losses(1.0)["example_losses"],
        planted_study.example_losses(1.0)["example_losses"],
    )
    unit = np.cov(first, last)[0, 1] / 64
    wide = results_folder.read(study).wide
    loss = wide[(wide["weights"] == "ema") & (wide["final"] == 1)].drop_duplicates("run").set_index("run")["loss"]
    for a, b in ((runs[0], runs[0]), (runs[0], runs[3])):
        assert at.loc[(a, b), "covariance"] == pytest.approx(loss[a] * loss[b] * unit, rel=1e-9)
        assert at.loc[(a, b), "n"] == 64


def written(tmp_path, text, encoding="utf-8"):
    path = tmp_path / "runs.csv"
    path.write_bytes(text.encode(encoding))
    return path


def test_names_of_runs_are_text_whatever_they_look_like(tmp_path):
    """Catches a hash that becomes 2.396e+90, and 007 and 7 that become one run."""
    names = ["2396e87", "007", "7", "None", "nan", "1e5", "TRUE", "2026-01-01"]
    rows = "".join(f"{name},{name},0.{n + 1},1e{n + 10}\n" for n, name in enumerate(names))
    table = read_table(written(tmp_path, "run,commit,loss,flops\n" + rows))
    assert table["run"].tolist() == names and table["commit"].tolist() == names
    renamed = read_table(written(tmp_path, "model,loss,flops\n007,0.3,1e10\n7,0.2,1e11\n"), rename={"run": "model"})
    assert renamed["run"].tolist() == ["007", "7"]


@pytest.mark.parametrize("mark", [";", "\t", "|"])
@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "windows-1252"])
def test_other_separators_and_encodings_are_read(tmp_path, mark, encoding):
    rows = [("run", "loss", "flops"), ("é", "0.3", "1e10"), ("b", "0.2", "1e11")]
    table = read_table(written(tmp_path, "\r\n".join(map(mark.join, rows)), encoding))
    assert table["run"].tolist() == ["é", "b"] and table["loss"].tolist() == [0.3, 0.2]


@pytest.mark.parametrize(
    ("cell", "remedy"),
    [("0,31;0.2", "decimal point"), ("1.234.567,8;0.2", "no number"), ("31%;2", "a unit"), ("3x10^2;2", "1.5e18")],
)
def test_a_number_that_cannot_be_read_is_answered_with_what_was_seen(tmp_path, cell, remedy):
    path = written(tmp_path, f"run;loss;flops\na;{cell}\nb;0.5x;0.5\n")
    with pytest.raises(ConfigError, match=f"loss in line 2 of .* is .*{remedy}"):
        read_table(path)


def test_a_column_of_another_spelling_is_named_with_the_option_that_takes_it(tmp_path):
    table = read_table(written(tmp_path, "run, Val Loss ,FLOPs\na,0.3,1e10\n"))
    assert table["flops"].tolist() == [1e10] and "'FLOPs'" in table.attrs["notes"][0]
    with pytest.raises(ConfigError, match=r'--rename "loss=Val Loss" takes'):
        check(table, ("loss", "flops"))


@pytest.mark.parametrize(
    ("text", "loss", "params"),
    [
        ("run;loss;params\na;0,512;1.234.567\nb;0,43;2.345.678\n", [0.512, 0.43], [1234567, 2345678]),
        ("run;loss;params\na;0,5;1\u202f234\u202f567\nb;0,4;2000\n", [0.5, 0.4], [1234567, 2000]),
        ('run,loss,params\na,0.5,"1,234"\nb,0.4,"2,345,678"\n', [0.5, 0.4], [1234, 2345678]),
        ("sep=;\nrun;loss;params\na;0.5;1234\nb;0.4;2345\n", [0.5, 0.4], [1234, 2345]),
        ("# made by x, y\nRun,Loss , Params,\na,0.5,1234,\nb,0.4,2345,\n# the end\n", [0.5, 0.4], [1234, 2345]),
        ("# run,loss,params\na,0.5,1234\nb,0.4,2345\n", [0.5, 0.4], [1234, 2345]),
        ("run loss params\na 0.5 1234\nb 0.4 2345\n", [0.5, 0.4], [1234, 2345]),
        ("| run | loss | params |\n|:--|--:|---|\n| a | 0.5 | 1234 |\n| b | 0.4 | 2345 |\n", [0.5, 0.4], [1234, 2345]),
        ("run,loss,params\na,0.5,1D3\nb,,2000\n", [0.5, np.nan], [1000, 2000]),
    ],
)
def test_tables_of_other_programs_are_read(tmp_path, text, loss, params):
    table = read_table(written(tmp_path, text))
    assert table["run"].tolist() == ["a", "b"] and table["params"].tolist() == params
    np.testing.assert_array_equal(table["loss"], loss)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("run;loss;params\na;2,345;1000\n", "loss in line 2 of .* '2,345', whose comma may be a decimal one"),
        ("run;loss;params\na;0,5;1,234\n", "params in line 2 of .* '1,234', where other cells have a decimal comma"),
        (
            "run;loss;params\na;2.345;1.234.567\n",
            "loss in line 2 of .* '2.345', where other cells have a decimal comma",
        ),
        ("run;loss;flops\na;2,34;1.234e+18\n", "loss in line 2 of .* '2,34', .* its comma is a decimal one"),
        ("run,loss\n,nats\na,0.5\n", "loss in line 2 of .* 'nats', .* holds units"),
        ("run,loss\na,0.5\n#b,0.4\n", "line 3 of .* begins with #"),
        ("run,loss\na,True\n", "'True', which is no number"),
        ('[{"run": "a", "loss": 1}]', "JSON or HTML"),
        ("PK\x03\x04", "Excel"),
        (",loss,flops\n0,0.5,1e18\n1,0.5,1e18\n", "line 3 of .* repeats line 2"),
    ],
)
def test_what_could_mean_two_things_is_refused(tmp_path, text, said):
    with pytest.raises(ConfigError, match=said):
        read_table(written(tmp_path, text))


def test_columns_of_names_stay_text_and_metrics_become_numbers(tmp_path):
    names = ("config_hash", "gitCommit", "dataset", "Model", "wandb_id")
    rows = f"run,loss,{','.join(names)},geneval,share,split\na,0.5,2396e87,1e5,007,1,None,0.3,31%,007\n"
    table = read_table(written(tmp_path, rows))
    assert [table[name][2] for name in (*names, "split")] == ["2396e87", "1e5", "007", "1", "None", "007"]
    assert table["geneval"].tolist() == [0.3] and table["share"].tolist() == [0.31]
    frame = pd.DataFrame({"run": [7, 8], "loss": ["0,5", "0,4"], "commit": [2396, 1], "tags": [["x"], ["y"]]})
    frame.to_parquet(tmp_path / "t.parquet")
    table = read_table(tmp_path / "t.parquet")
    assert table["run"].tolist() == ["7", "8"] and table["commit"].tolist() == ["2396", "1"]
    assert table["loss"].tolist() == [0.5, 0.4]


@pytest.mark.parametrize(
    "text, words",
    [
        ("run,loss,flops,FLOPs\na,1,2,3\nb,2,3,4\n", "has 'flops', 'FLOPs', which are all flops; .*--rename"),
        ("run,loss,Params,params \na,1,2,3\nb,2,3,4\n", "which are all params"),
        ("run\tloss\tflops\na\t1.4\t1.5e15\nb\t1,421\t2e15\n", "loss in line 3 .* is '1,421'.*a point, as 1.234"),
    ],
)
def test_columns_and_cells_that_contradict_each_other_are_refused(tmp_path, text, words):
    """Catches one of two columns taken in silence, and one loss of a thousand among losses of one."""
    (tmp_path / "table.csv").write_text(text)
    with pytest.raises(ConfigError, match=words):
        read_table(tmp_path / "table.csv")


@pytest.mark.parametrize(
    "name", ["GFLOPs", "training EFLOPs", "log10_flops", "flops (PFLOP)", "flops [1e15]", "flops_M"]
)
def test_a_column_in_another_unit_is_no_column_of_ours(tmp_path, name):
    """Catches exponents and optima of logarithms and of thousands, by the tool's own advice."""
    (tmp_path / "table.csv").write_text(f"run,loss,{name}\na,0.5,1\nb,0.4,4\n")
    with pytest.raises(ConfigError, match="another unit; convert its numbers"):
        read_table(tmp_path / "table.csv", rename={"flops": name})
    table = read_table(tmp_path / "table.csv")
    assert "another unit: convert it" in rename_hint(["flops"], table)
    assert read_table(tmp_path / "table.csv", rename={"images": "loss"}) is not None


def test_rows_that_did_not_finish_are_named(tmp_path):
    (tmp_path / "table.csv").write_text("Name,State,loss,flops\na,finished,1,2e15\nb,crashed,2,3e15\n")
    notes = read_table(tmp_path / "table.csv").attrs["notes"]
    assert any("line 3 (crashed) did not finish" in note for note in notes), notes


def test_covariances_of_many_runs_are_kept_by_way_of_a_few(tmp_path, monkeypatch):
    """Every two of 1,000 runs were half a million rows, four times over; without the runs' own variance, or with the
    anchors' alone, the standard errors of a fit's parameters would be too small."""
    rng = np.random.default_rng(0)
    share, runs = rng.standard_normal((3, 256)), 60
    mixed = rng.uniform(0.5, 1.5, (runs, 3)) @ share + 0.5 * rng.standard_normal((runs, 256))
    records = []
    for number, losses in enumerate(mixed):
        about = planted_study.facts(f"run{number:02d}", 2, 100)
        key = {"weights": "ema", "corpus": "shapes", "grid": "paper-8", "seed": 0, "step": 100, "run": about["run"]}
        extra = {"example_ids_sha1": "same", "example_losses": losses.tolist()}
        records.append(run_files.RunRecords(about, [{"key": key, "extra": extra}], tmp_path, pd.DataFrame(), []))
    names = [record.facts["run"] for record in records]
    exact = study_fits.examples_covariance(merge.pairs_frame(records), names)
    np.testing.assert_allclose(exact, np.cov(mixed) / 256, rtol=1e-12)
    for module in (merge, study_fits):
        monkeypatch.setattr(module, "are_many", lambda count: count > 50)
    few = merge.pairs_frame(records)
    assert len(few) == runs * many_runs.ANCHORS + runs - many_runs.ANCHORS
    found = study_fits.examples_covariance(few, names[::2])
    np.testing.assert_allclose(np.diag(found), np.diag(exact)[::2], rtol=1e-9)
    assert np.linalg.eigvalsh(found).min() > 0
    contrast = rng.standard_normal((50, len(found)))  # what a fit takes of it
    spread = [np.einsum("ij,jk,ik->i", contrast, matrix, contrast) for matrix in (found, exact[::2, ::2])]
    np.testing.assert_allclose(*spread, rtol=0.2)
    assert study_fits.examples_covariance(few[few["run"] != names[4]], names[::2]) is None


def test_numbers_in_columns_of_text_are_written_as_they_were(tmp_path):
    """Names are made text once each: 1, 1.0 and True are equal to Python, and are three texts."""
    frame = merge._cast(pd.DataFrame({"name": pd.Series([1, 1.0, True, "1", None, np.nan], dtype=object)}), TEXT)
    assert frame["name"].tolist() == ["1", "1.0", "True", "1", "", ""]


TEXT = columns.read_columns("name | text | | a name\n")
