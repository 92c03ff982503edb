"""`rfjax fit` on anybody's table: what it reads, what it refuses, and what it answers."""

import json
import warnings

import numpy as np
import pandas as pd
import pytest

from helpers import planted_study
from helpers.planted_tables import curves, isoflop, parametric_study
from rfjax import cli
from rfjax.errors import ConfigError
from rfjax.results.foreign_table import read_table
from rfjax.results.merge import collect


@pytest.fixture
def table(tmp_path):
    path = tmp_path / "runs.csv"
    parametric_study(noise=0.003).to_csv(path, index=False)
    return path


def fit_json(*words):
    out = words[0].parent / "fit.json"
    status = cli.main(["fit", *map(str, words), "--resamples", "100", "--out", str(out)])
    return status, json.loads(out.read_text()) if out.exists() else None


def test_all_laws_that_the_columns_allow(table, capsys):
    status, found = fit_json(table)
    assert status == 0 and set(found["fits"]) == {"power", "saturating", "parametric"}
    said = capsys.readouterr().out
    assert "parametric law: loss = E + A·params^-alpha" in said and "each run left out in turn: rms error" in said
    assert found["source"]["rows"] == 20 and len(found["source"]["sha256"]) == 64
    parametric = found["fits"]["parametric"]["parameters"]
    assert parametric["alpha"]["low"] < 0.3 < parametric["alpha"]["high"]


def test_all_laws_are_compared_over_the_same_runs(table, capsys):
    """A power law through all runs, 5 % off, was called best, and the parametric law's 0.3 % stood beside no other."""
    status, found = fit_json(table)
    said = capsys.readouterr().out
    assert status == 0 and found["comparison"]["preferred"] == "parametric"
    laws, shared = found["comparison"]["laws"], found["comparison"]["shared_runs"]
    assert set(laws) == {"power", "saturating", "parametric"} and shared == found["fits"]["power"]["runs"]
    errors = found["fits"]["parametric"]["leave_one_out"]["relative_errors"]
    rms = np.sqrt(np.mean([errors[run] ** 2 for run in shared]))
    assert len(shared) == 13 and laws["parametric"]["shared_runs_rms"] == pytest.approx(rms) and rms < 0.005
    assert laws["parametric"]["shared_runs_rms"] < laws["power"]["shared_runs_rms"] / 3
    assert "by leave-one-out error the parametric law predicts best over the same 13 runs (power 2." in said
    assert "the power law is fitted to the 13 of 20 runs on the frontier" in said
    assert found["which_runs"]["power"].startswith("the power law is fitted to the 13 of 20 runs on the frontier")


def test_the_compute_optimal_frontier_is_printed_and_in_the_json(table, tmp_path, capsys):
    _, found = fit_json(table, "--law", "parametric")
    said = capsys.readouterr().out
    frontier = found["optimal_frontier"]
    assert "compute-optimal frontier of the parametric law, for C FLOPs: params = 0.279·C^0.490 [0.4" in said
    assert frontier["cost"]["source"] == "measured on 20 runs" and found["optimal_frontier_reason"] == ""
    low, value, high = (frontier["params"]["exponent"][name] for name in ("low", "value", "high"))
    assert low < 0.25 / (0.3 + 0.9 * 0.25) < high and low < value < high
    assert [point["beyond"] for point in frontier["points"]][1:] == pytest.approx([1.0, 10.0])
    pd.read_csv(table).drop(columns="flops").to_csv(tmp_path / "costless.csv", index=False)
    _, found = fit_json(tmp_path / "costless.csv")
    assert found["optimal_frontier"] is None and "has no column flops" in found["optimal_frontier_reason"]
    assert (
        "no compute-optimal frontier of the parametric law: what training costs is not known" in capsys.readouterr().out
    )


def test_a_budget_is_divided_on_the_console_and_in_json(table, capsys):
    status, found = fit_json(table, "--law", "parametric", "--budget", "1e19")
    said = capsys.readouterr().out
    assert status == 0 and "budget 1.00" in said and "fixed steps (10 B images for every size)" in said
    budget = found["budgets"][0]
    best = budget["optimal"]
    assert best["params"]["low"] < best["params"]["value"] < best["params"]["high"]
    assert 3.0 * best["params"]["value"] ** 0.9 * best["images"]["value"] == pytest.approx(1e19, rel=1e-6)
    assert budget["fixed_steps"]["images_of_every_run"] == pytest.approx(1e10)


def test_a_law_of_compute_predicts_a_budget(table):
    _, found = fit_json(table, "--law", "saturating", "--budget", "1e20")
    budget = found["budgets"][0]
    assert budget["law"] == "saturating" and budget["new_run_low"] < budget["low"] < budget["loss"] < budget["high"]
    assert set(found["fits"]) == {"saturating", "power"} and found["comparison"]["preferred"] in found["fits"]


def test_csv_and_parquet_say_the_same(table, tmp_path):
    frame = pd.read_csv(table).rename(columns={"images": "samples"})
    frame.to_parquet(tmp_path / "runs.parquet")
    _, one = fit_json(table, "--law", "parametric")
    _, other = fit_json(tmp_path / "runs.parquet", "--law", "parametric")
    assert one["fits"] == other["fits"]


def test_other_names_and_a_known_cost(table, tmp_path):
    frame = pd.read_csv(table)
    frame = frame.assign(flops=6 * frame["params"] * frame["images"]).drop(columns=["images", "run"])
    frame.rename(columns={"params": "Model Size", "flops": "Training FLOP"}).to_csv(
        tmp_path / "theirs.csv", index=False
    )
    words = ("--rename", "params=Model Size", "--rename", "flops=Training FLOP", "--flops-per-param-image", "6")
    _, one = fit_json(tmp_path / "theirs.csv", *words, "--law", "parametric")
    _, other = fit_json(table, "--law", "parametric")
    for name, estimate in other["fits"]["parametric"]["parameters"].items():
        assert one["fits"]["parametric"]["parameters"][name]["value"] == pytest.approx(estimate["value"], rel=1e-6)
    assert one["fits"]["parametric"]["runs"][0] == "line 10"  # rows without a name are called by their line


def test_outliers_go_by_rule_and_on_record(table, tmp_path, capsys):
    frame = pd.read_csv(table)
    frame.loc[3, "loss"] = 9.0
    frame.to_csv(tmp_path / "wild.csv", index=False)
    _, found = fit_json(tmp_path / "wild.csv", "--law", "parametric", "--max-loss", "5")
    assert found["fits"]["parametric"]["excluded"] == [{"run": "r03", "rule": "loss above 5"}]
    assert "left out before fitting: 1 row (loss above 5)" in capsys.readouterr().out
    assert "r03" not in found["fits"]["parametric"]["runs"]


def test_profiles_and_other_losses(table):
    _, found = fit_json(table, "--law", "parametric", "--loss", "squares-log", "--profile")
    assert found["fits"]["parametric"]["loss_function"] == "sum of squares of log residuals"
    profile = found["profiles"]["parametric"]["alpha"]
    assert profile["method"].startswith("profile likelihood, F(1, 15)") and profile["low"] < 0.3 < profile["high"]


def test_scores_are_set_against_the_loss(tmp_path, capsys):
    loss = np.linspace(0.4, 0.2, 6)
    frame = pd.DataFrame(
        {
            "run": list("abcdef"),
            "params": np.geomspace(1e6, 1e8, 6),
            "flops": np.geomspace(1e12, 1e15, 6),
            "loss": loss,
            "geneval": 1 / (1 + np.exp((loss - 0.25) / 0.05)),
            "percent": 100 * loss,
        }
    )
    for t, wobble in ((0.25, 0.03), (0.5, 0.0)):
        frame[f"loss@t={t}"] = loss + wobble * np.array([1, -1, 1, -1, 1, -1])
    frame.to_csv(tmp_path / "t.csv", index=False)
    _, found = fit_json(tmp_path / "t.csv", "--law", "power", "--metric", "geneval")
    scores = found["metrics"]["geneval"]
    rank = {c["name"]: c for c in scores["correlation"]["coefficients"]}["Spearman"]
    assert rank["value"] == pytest.approx(-1) and rank["p"] == pytest.approx(2 / 720)
    predicted = {p["link"]: p for p in scores["largest_predicted"]}["logistic"]
    assert predicted["run"] == "f" and predicted["error"] == pytest.approx(0, abs=1e-6)
    assert {level["t"]: level["share_first"] for level in scores["levels"]}[0.5] > 0.8
    assert "geneval of f from its loss, by the logistic link over the 5 others" in capsys.readouterr().out
    frame.rename(columns={"loss@t=0.5": "loss@t=abc"}).to_csv(tmp_path / "t.csv", index=False)
    assert cli.main(["fit", str(tmp_path / "t.csv"), "--law", "power", "--metric", "geneval"]) == 2
    assert "column 'loss@t=abc' is named as the loss at a level of t, and 'abc' is none" in capsys.readouterr().err


def test_a_metric_that_is_no_fraction_is_correlated_and_no_more(tmp_path, capsys):
    """FID was refused. Its ranks and plain Pearson need no fraction; a link to [0, 1] would be a wrong number."""
    loss = np.linspace(0.4, 0.2, 6)
    fid = np.array([80.0, 61, 50, 33, 20, 12])
    frame = pd.DataFrame(
        {"run": list("abcdef"), "flops": np.geomspace(1e12, 1e15, 6), "loss": loss, "fid": fid, "loss@t=0.5": loss}
    )
    frame.to_csv(tmp_path / "t.csv", index=False)
    status, found = fit_json(tmp_path / "t.csv", "--law", "power", "--metric", "fid")
    scores = found["metrics"]["fid"]
    values = {c["name"]: c["value"] for c in scores["correlation"]["coefficients"]}
    assert status == 0 and set(values) == {"Pearson", "Spearman", "Kendall"} and values["Spearman"] == pytest.approx(1)
    assert values["Pearson"] == pytest.approx(np.corrcoef(loss, fid)[0, 1])
    assert not {"links", "levels", "largest_predicted"} & set(scores)
    assert "fid goes from 12 to 80 and is no fraction: without arcsine √score, the links" in capsys.readouterr().out


def test_a_missing_headline_is_explained(table, tmp_path, capsys):
    """Four runs decide the saturating law and three do not: the held-out errors were missing without a word."""
    pd.read_csv(table).iloc[[0, 6, 12, 19]].to_csv(tmp_path / "four.csv", index=False)
    status, found = fit_json(tmp_path / "four.csv", "--law", "saturating")
    said = capsys.readouterr().out
    why = (
        "4 of 4 runs cannot be predicted from the others "
        "(without r00: 3 runs cannot decide 3 parameters; at least 4 are needed)"
    )
    assert status == 0 and f"no error of each run left out in turn: {why}" in said
    assert "the largest (r19) is not predicted: without the largest: 3 runs cannot decide 3 parameters" in said
    assert found["fits"]["saturating"]["leave_one_out"]["reason"] == why


def test_profiles_are_shown_as_parameters_and_open_ends_as_open(tmp_path, capsys):
    """Without an offset in the data E is not bounded from below; the bound was shown as an end of its interval."""
    flops = np.geomspace(1e15, 1e19, 8)
    loss = 30 * flops**-0.08 * np.exp(0.01 * np.random.default_rng(1).standard_normal(8))
    pd.DataFrame({"run": list("abcdefgh"), "flops": flops, "loss": loss}).to_csv(tmp_path / "t.csv", index=False)
    fit_json(tmp_path / "t.csv", "--law", "saturating", "--profile", "--loss", "squares-log")
    said = [line for line in capsys.readouterr().out.splitlines() if "profile likelihood" in line]
    (offset,) = (line for line in said if ": E = " in line)
    assert offset.endswith("; no lower end: 0 is not excluded either")
    assert any(": b = 0.0" in line and "no upper" not in line for line in said)


def test_approach_2_answers_too(tmp_path, capsys):

    isoflop(4, sizes=9, noise=0.001).to_csv(tmp_path / "iso.csv", index=False)
    status, found = fit_json(tmp_path / "iso.csv", "--law", "approach2", "--budget", "1e22")
    said = capsys.readouterr().out
    assert status == 0 and "approach2: N grows as C^0.4" in said and "its bias, on the parametric law" in said
    assert found["budgets"][0]["params"]["low"] < found["budgets"][0]["params"]["high"]


def changed(frame, **cells):
    for name, (row, value) in cells.items():
        frame[name] = frame[name].astype(object)
        frame.loc[row, name] = value
    return frame


@pytest.mark.parametrize(
    ("change", "words", "said"),
    [
        (lambda t: t.drop(columns="loss"), (), "the fit needs the column 'loss'; the table has run, params"),
        (lambda t: t.drop(columns="flops"), ("--law", "saturating"), "the fit needs the column 'flops'"),
        (lambda t: changed(t, loss=(2, -0.1)), (), "loss of run 'r02' (line 4) is -0.1; it must be positive"),
        (lambda t: changed(t, loss=(5, np.nan)), (), "loss of run 'r05' (line 7) is nan"),
        (lambda t: changed(t, flops=(0, 0)), (), "flops of run 'r00' (line 2) is 0"),
        (lambda t: changed(t, params=(7, "big")), (), "params in line 9 of"),
        (lambda t: t.assign(run="same"), (), "run 'same' occurs more than once (lines 2, 3, 4, 5, 6, ...)"),
        (
            lambda t: t.assign(flops=1e18),
            ("--law", "saturating"),
            "flops takes 1 distinct value over the 20 runs (1e+18)",
        ),
        (
            lambda t: t.head(2),
            ("--law", "saturating"),
            "saturating law was not fitted: 2 runs cannot decide 3 parameters; at least 4",
        ),
        (
            lambda t: t.head(2),
            ("--law", "saturating"),
            "; the power law was not fitted: 2 runs cannot decide 2 parameters",
        ),
        (lambda t: t.head(0), (), "the table has no rows to fit"),
        (lambda t: t, ("--rename", "params=Param"), "no column 'Param' to be renamed 'params'; did you mean 'params'?"),
        (lambda t: t, ("--rename", "params"), "must be OURS=THEIRS"),
        (lambda t: t, ("--flops-per-param-image", "6"), "would contradict it"),
        (lambda t: t, ("--delta", "0.1", "--loss", "l1"), "--delta is a parameter of Huber's loss"),
        (lambda t: t, ("--budget", "-1"), "--budget is -1; it must be positive and finite"),
        (lambda t: t, ("--budget", "inf"), "--budget is inf; it must be at most 1e+60"),
        (lambda t: t, ("--max-loss", "nan"), "--max-loss is nan; it must be at most 1e+30"),
        (lambda t: t, ("--seed", "-1"), "--seed is -1; it must be 0 or more"),
        (
            lambda t: t,
            ("--rename", "loss=params", "--rename", "loss=flops"),
            "--rename gives 'loss' twice, from 'params' and from 'flops'",
        ),
        (lambda t: t, ("--rename", "loss=params", "--rename", "images=params"), "column 'params' of "),
        (
            lambda t: changed(t, flops=(4, np.nan)),
            ("--law", "parametric", "--budget", "1e19"),
            "flops of run 'r04' (line 6) is nan",
        ),
        (lambda t: changed(t, flops=(4, -1e18)), ("--law", "parametric"), "flops of run 'r04' (line 6) is -1e+18"),
        (lambda t: changed(t, run=(4, np.nan)), (), "the run in line 6 has no name"),
        (lambda t: changed(t, run=(4, " ")), (), "the run in line 6 has no name"),
        (lambda t: pd.concat([t, t.iloc[[1]]]).drop(columns="run"), (), "repeats line 3 in every column; leave one"),
        (lambda t: t.assign(samples=t["images"] / 2), (), "has both images and samples"),
        (lambda t: t, ("--metric", "geneval"), "the table has no column 'geneval'"),
        (
            lambda t: t.rename(columns={"flops": "f", "params": "p"}),
            (),
            "no law can be fitted without flops, or params and images",
        ),
    ],
)
def test_bad_input_is_refused_by_row_and_column(change, words, said, tmp_path, capsys):
    path = tmp_path / "bad.csv"
    change(parametric_study(noise=0.003)).to_csv(path, index=False)
    assert cli.main(["fit", str(path), *words, "--out", str(tmp_path / "fit.json")]) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "fit.json").exists()


def test_lines_are_those_of_an_editor(tmp_path):
    """Blank lines and quoted line breaks shifted the line that an error named."""
    (tmp_path / "t.csv").write_text('\n\nrun,loss,note\n\na,1.0,"two\nlines"\n\nb,2.0,\n   \nc,oops,\n')
    with pytest.raises(ConfigError, match="loss in line 10 of .* is 'oops'"):
        read_table(tmp_path / "t.csv")
    (tmp_path / "t.csv").write_text((tmp_path / "t.csv").read_text().replace("oops", "3"))
    assert list(read_table(tmp_path / "t.csv").index) == [5, 8, 10]


def test_a_header_shorter_than_its_rows_shifts_no_column(tmp_path):
    """pandas takes the first column for an index then, and every number comes under another's name."""
    (tmp_path / "t.csv").write_text("run,params,loss\na,1e6,2.5,7\nb,1e7,2.0,8\n")
    with pytest.raises(ConfigError, match="line 2 of .* has 4 cells and the header 3 columns"):
        read_table(tmp_path / "t.csv")
    (tmp_path / "t.csv").write_text("run,params,loss\na,1e6,2.5,\nb,1e7,2.0,\n")  # a comma at the end is no column
    assert read_table(tmp_path / "t.csv")["loss"].tolist() == [2.5, 2.0]
    (tmp_path / "t.csv").write_text("run,loss,loss\na,1,2\n")  # which pandas renames
    with pytest.raises(ConfigError, match="has the column 'loss' more than once"):
        read_table(tmp_path / "t.csv")


def test_parquet_of_any_case_and_with_a_named_index(table, tmp_path):
    pd.read_csv(table).set_index("run").to_parquet(tmp_path / "RUNS.PARQUET")
    assert read_table(tmp_path / "RUNS.PARQUET")["run"].tolist()[:2] == ["r00", "r01"]


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_many_columns_raise_no_warning(kind, tmp_path):
    wide = parametric_study().drop(columns=["run", "flops"])
    wide = pd.concat([wide, pd.DataFrame(np.ones((len(wide), 300))).add_prefix("metric")], axis=1)
    wide.to_csv(tmp_path / "t.csv", index=False)
    wide.to_parquet(tmp_path / "t.parquet", index=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read_table(tmp_path / f"t.{kind}", flops_per_param_image=6.0).shape == (20, 305)


def test_a_folder_is_not_written_over(table, monkeypatch, capsys):
    """`--out .` ended in a traceback, after the fits."""
    monkeypatch.chdir(table.parent)
    assert cli.main(["fit", str(table), "--out", "."]) == 2
    assert "--out . is a folder; give the name of a file" in capsys.readouterr().err


def test_three_runs_get_the_power_law_labelled(table, tmp_path, capsys):
    """Where the law asked for refuses, its fallback was fitted, thrown away, and called not fitted."""
    pd.read_csv(table).iloc[[0, 8, 19]].to_csv(tmp_path / "three.csv", index=False)
    status, found = fit_json(tmp_path / "three.csv", "--law", "saturating", "--budget", "1e20")
    said = capsys.readouterr().out
    assert status == 0 and not found["fits"]["saturating"]["identifiable"] and found["fits"]["power"]["identifiable"]
    assert "saturating law: not fitted: 3 runs cannot decide 3 parameters" in said
    assert "instead of the saturating law, which these runs cannot decide: the pure power law" in said
    assert found["instead"] == "power" and [one["law"] for one in found["budgets"]] == ["power"]


def test_outliers_among_checkpoints_take_no_whole_run(tmp_path, capsys):
    """Every run's first checkpoints have large losses: a rule for those took all runs."""

    table = curves(sizes=5)
    table.to_csv(tmp_path / "curves.csv", index=False)
    limit = float(table["loss"].quantile(0.9))
    status, found = fit_json(
        tmp_path / "curves.csv", "--law", "approach1", "--max-loss", f"{limit}", "--budget", "1e24"
    )
    assert status == 0 and len(found["approaches"]["approach1"]["optima"]) == 4
    assert found["source"]["excluded"][0] == {"run": "size0 (line 2)", "rule": f"loss above {limit:g}"}
    said = capsys.readouterr().out
    assert "left out before fitting: 30 rows" in said and "times the largest budget with a best size" in said


def test_an_outlier_of_a_study_leaves_the_rules_as_they_are(tmp_path, capsys):
    """With any outlier rule, runs off the frontier and at bad rates were fitted too. The frontier is that of
    the runs that are left: a diverged seed no longer takes its sister off it."""
    folders = planted_study.write_study(tmp_path / "runs", samples=False)
    for name, depth, rate, penalty, seed in (("lost", 2, 3e-3, 10.0, 1), ("slow", 3, 1e-3, 1.2, 0)):
        planted_study.write_run(
            tmp_path / "runs" / name, name, depth, 2000, rate, penalty=penalty, seed=seed, samples=False
        )
        folders.append(tmp_path / "runs" / name)
    collect(folders, tmp_path / "results")
    every = {run for run, *_ in planted_study.FINISHED}
    _, before = fit_json(tmp_path / "results")
    assert set(before["fits"]["saturating"]["runs"]) == every - {"depth2"}
    capsys.readouterr()
    status, found = fit_json(tmp_path / "results", "--drop-largest-losses", "1")
    said = capsys.readouterr().out
    assert status == 0 and set(found["fits"]["saturating"]["runs"]) == every == set(found["fits"]["parametric"]["runs"])
    assert (
        found["fits"]["saturating"]["excluded"]
        == [{"run": "lost", "rule": "1 largest losses"}]
        == found["source"]["excluded"]
    )
    assert (
        "of 8 finished runs that are left, laws of compute are fitted to the 7 on the frontier" in said
        and "held out depth 4" in said
    )
    assert set(found["source"]["frontier_runs"]) == every


def test_a_law_of_a_study_carries_its_examples_noise(study):
    """The planted examples move every loss by one factor, 0.3/sqrt(64); with `--law` their covariance was left out."""
    _, found = fit_json(study, "--law", "saturating")
    offset = found["fits"]["saturating"]["parameters"]["E"]
    assert offset["examples_stderr"] == pytest.approx(0.3 / 8 * offset["value"], rel=0.15)


def test_files_that_are_no_tables(tmp_path):
    with pytest.raises(ConfigError, match="no table at"):
        read_table(tmp_path / "none.csv")
    (tmp_path / "no.parquet").write_text("run,loss\n")
    with pytest.raises(ConfigError, match="cannot be read as Parquet"):
        read_table(tmp_path / "no.parquet")
    (tmp_path / "no.csv").write_text("")
    with pytest.raises(ConfigError, match="cannot be read as CSV"):
        read_table(tmp_path / "no.csv")


def test_parquet_without_its_library_names_the_remedy(tmp_path, monkeypatch):
    def missing(path):
        raise ImportError("no engine")

    (tmp_path / "t.parquet").write_bytes(b"PAR1")
    monkeypatch.setattr(pd, "read_parquet", missing)
    with pytest.raises(ConfigError, match="pip install 'rfjax\\[parquet\\]'"):
        read_table(tmp_path / "t.parquet")


def test_columns_that_span_hundreds_of_decades_are_refused_by_name(tmp_path, capsys):
    """Catches a LinAlgError of NumPy in place of the column."""
    rows = [(f"r{k}", 10.0 ** (40 * k - 160), 0.5 + 1 / (k + 1)) for k in range(8)]
    path = tmp_path / "runs.csv"
    pd.DataFrame(rows, columns=["run", "flops", "loss"]).to_csv(path, index=False)
    assert cli.main(["fit", str(path)]) == 2
    said = capsys.readouterr().err
    assert "flops goes from 1e-160 (run 'r0') to 1e+120 (run 'r7'), more than 30 decades" in said


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (("Name", "val_loss", "flops"), 'the table has Name, val_loss, flops; --rename "loss=val_loss"'),
        (("L", "C", "x"), "--rename \"loss=L\" takes 'L' for it"),
        (("loss", "Training FLOP", "Model Size"), '--rename "flops=Training FLOP"'),
        (("loss", "Model Size", "Training Tokens"), '--rename "images=Training Tokens"'),
    ],
)
def test_names_of_other_loggers_are_answered_with_the_option_that_takes_them(tmp_path, capsys, names, words):
    """Catches a column called run in the message, where the file has none."""
    path = tmp_path / "runs.csv"
    pd.DataFrame([(1.0 / k, k * 10.0, k * 20.0) for k in range(1, 7)], columns=names).to_csv(path, index=False)
    assert cli.main(["fit", str(path)]) == 2
    said = capsys.readouterr().err
    assert words in said and "has run," not in said


def test_a_table_json_of_something_else_is_no_results_folder(tmp_path, capsys):
    (tmp_path / "table.json").write_text('{"rows": []}')
    assert cli.main(["fit", str(tmp_path)]) == 2
    assert "schema" not in capsys.readouterr().err
