"""The report: from the results folder alone, self-contained, escaped, and every number in its JSON."""

import json
import re
import shutil

import pandas as pd
import pytest
from matplotlib.figure import Figure

from helpers import planted_study
from rfjax import cli
from rfjax.errors import ConfigError
from rfjax.evaluation.records import record_name
from rfjax.report import formats, page, sections
from rfjax.report.axes import to_bytes
from rfjax.report.crowds import shown_sheets
from rfjax.report.numbers import report_numbers
from rfjax.report.write import summary_lines, write_report
from rfjax.results import merge, results_folder

FIGURES = {
    "loss_against_compute",
    "optimal_frontier",
    "claimed_laws",
    "level_exponents_and_collapse",
    "loss_against_steps",
    "loss_per_level",
    "geneval_against_depth",
    "held_out_pairs",
    "loss_against_geneval",
}


SAMPLING = (("sampling", "overall"), ("sampling_path_length", "mean"), ("sampling_distance", "mean"))


def make(root, finished, **options):
    merge.collect(planted_study.write_study(root / "runs", finished=finished, **options), root / "results")
    return write_report(root / "results", root / "report", resamples=100)


def test_everything_is_written(report):
    out, numbers = report
    names = {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()}
    pictures = {f"figures/{name}.{kind}" for name in FIGURES for kind in ("svg", "png")}
    assert names == {"index.html", "report.json"} | pictures
    assert json.loads((out / "report.json").read_text()) == numbers
    assert numbers["ranking"] is None and "Ranking" not in (out / "index.html").read_text()  # nothing was ranked


def test_the_results_folder_alone_gives_the_same_bytes(report, study, tmp_path):
    shutil.copytree(study, tmp_path / "moved")
    write_report(tmp_path / "moved", tmp_path / "again", resamples=100)
    for name in ("index.html", "report.json", "figures/loss_against_compute.svg"):
        assert (tmp_path / "again" / name).read_bytes() == (report[0] / name).read_bytes()


def test_the_page_says_nothing_that_the_json_does_not_hold(report, study):
    # The page drawn again from report.json is the page: no number reaches it by another way.
    out, _ = report
    numbers = json.loads((out / "report.json").read_text())
    svgs = {name: to_bytes(figure, "svg") for name, figure in page.draw(numbers).items()}
    sheets = {sheet.png: (study / sheet.png).read_bytes() for sheet in results_folder.read(study).samples}
    assert page.render(numbers, svgs, sheets) == (out / "index.html").read_text()


def test_the_page_asks_for_nothing_from_outside(report):
    html = (report[0] / "index.html").read_text()
    links = re.findall(r"""(?:src|href|url)\s*[=(]\s*["']?([^"')\s>]{1,30})""", html)
    assert len(links) == len(FIGURES) + 4 + 7  # figures, samples of the best of each depth, samples of every run
    assert all(link.startswith("data:image/") for link in links)
    assert "<script" not in html and "@import" not in html


def test_the_numbers_are_those_that_were_planted(report):
    _, numbers = report
    assert [run["run"] for run in numbers["runs"]] == [
        "depth1-short",
        "depth1",
        "depth2-short",
        "depth2",
        "depth3-short",
        "depth3",
        "depth4",
        "depth5",
    ]
    fit = numbers["analysis"]["fits"]["saturating"]
    assert numbers["analysis"]["headline"] == "saturating" and fit["n"] == 7
    for name, truth in (("E", planted_study.E), ("b", planted_study.B)):
        assert fit["parameters"][name]["low"] < truth < fit["parameters"][name]["high"]
    held = numbers["analysis"]["held_out"]
    assert (
        held["depth"] == 4
        and held["predictions"][0]["covered"]
        and abs(held["predictions"][0]["relative_error"]) < 0.02
    )
    assert numbers["trends"]["loss"]["best_per_depth"] == -1 and numbers["trends"]["score"]["best_per_depth"] == 1
    rank = next(c for c in numbers["correlation"]["overall"]["coefficients"] if c["name"] == "Spearman")
    assert rank["value"] < -0.9 and rank["p"] < 0.01
    assert "prompts they share" in numbers["correlation"]["overall"]["interval_method"]
    assert [run["run"] for run in numbers["failures"]] == ["depth5"]
    assert numbers["levels"]["averaged"] == [True] * 7 + [False]
    largest = numbers["geneval"]["runs"][-1]
    assert largest["above_floor"]["overall"] and numbers["geneval"]["ceiling"]["overall"]["value"] == 0.99
    between = next(run for run in numbers["geneval"]["runs"] if run["run"] == "depth2-short")
    low, floors = between["scores"]["overall"]["low"], between["floors"]
    assert floors["null"]["overall"]["high"] < low < floors["shuffled"]["overall"]["high"]
    assert not between["above_floor"]["overall"]  # clear of one floor is not clear of both
    assert largest["held_out"]["overall"]["value"] < largest["seen"]["overall"]["value"]
    depth3 = next(curve for curve in numbers["curves"] if curve["run"] == "depth3")
    assert depth3["validation"]["step"] == [400, 800, 1200, 1600, 2000] and len(depth3["train"]["step"]) == 101
    assert [row["run"] for row in numbers["samples"]["rows"] if row["best_of_depth"]] == [
        "depth1",
        "depth2",
        "depth3",
        "depth4",
    ]


def test_the_report_says_how_well_its_laws_predict(report):
    """Held-out errors, profile intervals and the share of the validation examples come from the fits:
    the planted examples move all losses by one factor, 0.3/sqrt(64), so E and a move by it and b not."""
    folder, numbers = report
    analysis = numbers["analysis"]
    fit = analysis["fits"]["saturating"]
    assert 0 < fit["leave_one_out"]["rms_relative_error"] < 0.03 and fit["leave_largest_out"]["runs"] == ["depth4"]
    assert analysis["comparison"]["preferred"] == "saturating"
    profile = analysis["profiles"]["saturating"]["E"]
    assert profile["low"] < planted_study.E < profile["high"]
    e, b = fit["parameters"]["E"], fit["parameters"]["b"]
    assert e["examples_stderr"] == pytest.approx(0.3 / 8 * e["value"], rel=0.15) and b["examples_stderr"] < 1e-3
    levels = numbers["score_levels"]
    assert [level["t"] for level in levels] == [i / 8 for i in range(1, 9)]
    assert sum(level["share_first"] for level in levels) == pytest.approx(1)
    predicted = {p["link"]: p for p in numbers["correlation"]["overall"]["largest_predicted"]}
    assert predicted["logistic"]["run"] == "depth4" and abs(predicted["logistic"]["error"]) < 0.1
    html = (folder / "index.html").read_text()
    assert "predicted from its validation loss by links" in html and "at each noise level" in html
    assert "By leave-one-out error the saturating law predicts best over the same 7 runs (saturating 0." in html
    assert "parametric 2" in html and "Compute-optimal frontier of the parametric law, for C FLOPs: params = " in html
    assert 'alt="Compute-optimal loss, size and images against training FLOPs"' in html


def test_a_new_figure_and_a_new_section_are_a_row_each(report, monkeypatch):
    """Catches a title, a list of names or a renderer that has to know every figure."""
    _, numbers = report
    monkeypatch.setitem(sections.FIGURES, "new", sections.Drawing(lambda numbers, look: Figure(), "A new figure"))
    row = ("A new section", lambda numbers, page: page.drawing("new", f"Of {numbers['study']}."))
    monkeypatch.setitem(sections.SECTIONS, "sizes", (*sections.SECTIONS["sizes"], row))
    html = page.render(numbers, {"new": to_bytes(page.draw(numbers)["new"], "svg")}, {})
    assert "A new section</h2>" in html and 'alt="A new figure"' in html and "Of planted.</figcaption>" in html


def test_what_failed_is_told_and_what_users_named_is_escaped(report, tmp_path):
    html = (report[0] / "index.html").read_text()
    assert "norm: &lt;blocks/image/attention&gt;" in html and "<blocks" not in html
    assert "&lt;b&gt;cross&lt;/b&gt; &amp; a &quot;heart&quot;" in html and "<b>cross" not in html
    hostile = "$E_{$ <img src=x onerror=alert(1)> \"'"  # a broken formula, a broken tag
    finished = tuple((f"{run} {hostile}", *rest) for run, *rest in planted_study.FINISHED[1::2])
    make(tmp_path, finished)
    html = (tmp_path / "report" / "index.html").read_text()
    assert "<img src=x" not in html and "$E_{$ &lt;img src=x onerror=alert(1)&gt; &quot;&#x27;" in html


def test_the_summary_names_the_findings(report):
    text = "\n".join(summary_lines(report[1]))
    for words in (
        "saturating law: loss = E + a·flops^-b over 7 runs",
        "held out depth 4 (depth4): the saturating law predicted",
        "inside the 95 % interval",
        "loss against GenEval over 7 runs",
        "Spearman −0.9",
        "1 of 8 runs failed: depth5.",
    ):
        assert words in text


@pytest.mark.parametrize(
    ("finished", "words"),
    [
        (1, "1 run cannot decide 3 parameters"),
        (2, "a depth can be held out only where runs of at least two depths have finished"),
        (4, "saturating law was not fitted"),
    ],
)
def test_fewer_runs_still_give_a_report_that_says_what_is_missing(undrawn, tmp_path, finished, words):
    chosen = planted_study.FINISHED[:finished] if finished < 4 else planted_study.FINISHED[1::2]
    numbers = make(tmp_path, chosen, samples=False)
    page_text = (tmp_path / "report" / "index.html").read_text()
    assert words in page_text
    assert (numbers["band"] is None) == (finished < 3)
    assert ">Samples<" not in page_text


def test_a_study_without_scores_has_no_empty_figures(undrawn, tmp_path):
    folders = planted_study.write_study(tmp_path / "runs", samples=False)
    for folder in folders:
        for path in (folder / "evaluations").glob("*.json"):
            if "geneval" in json.loads(path.read_text())["key"]["evaluation"]:
                path.unlink()
    merge.collect(folders, tmp_path / "results")
    numbers = write_report(tmp_path / "results", tmp_path / "report", resamples=100)
    assert {path.stem for path in (tmp_path / "report/figures").iterdir()} == {
        "loss_against_compute",
        "optimal_frontier",
        "claimed_laws",
        "level_exponents_and_collapse",
        "loss_against_steps",
        "loss_per_level",
    }
    assert numbers["geneval"]["reason"] == "no finished run has a GenEval score"
    assert "no finished run has a GenEval score" in (tmp_path / "report/index.html").read_text()


def test_nothing_to_show_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="no validation loss; evaluate a run first"):
        make(tmp_path, ())
    assert not (tmp_path / "report").exists()


def sweep(root):
    """Depth 1 is best inside its grid of learning rates, depth 2 at the largest."""
    penalties = {1: (1.05, 1.0, 1.03), 2: (1.06, 1.02, 1.0)}
    folders = []
    for depth, factors in penalties.items():
        for rate, penalty in zip((1e-3, 2e-3, 4e-3), factors, strict=True):
            name = f"d{depth}-{rate:g}"
            planted_study.write_run(root / name, name, depth, 500, rate, penalty=penalty, samples=False)
            folders.append(root / name)
    return folders


def test_a_learning_rate_at_the_edge_of_its_grid_is_flagged(undrawn, tmp_path):
    merge.collect(sweep(tmp_path / "runs"), tmp_path / "results")
    numbers = write_report(tmp_path / "results", tmp_path / "report", resamples=100)
    verdicts = [(s["depth"], s["best"], s["at_edge"], s["edge"]) for s in numbers["learning_rates"]]
    assert verdicts == [(1, 2e-3, False, ""), (2, 4e-3, True, "largest")]
    warnings = [line for line in summary_lines(numbers) if "learning rate" in line]
    assert warnings == [
        "The best learning rate of depth 2 (32,000 images) is the largest of its grid, 0.004: widen the grid."
    ]
    assert warnings[0] in (tmp_path / "report/index.html").read_text()
    assert (tmp_path / "report/figures/learning_rates.png").exists()
    assert [run["run"] for run in numbers["runs"] if run["frontier"]] == ["d1-0.002", "d2-0.004"]


def test_what_is_left_out_or_unfinished_is_said_on_the_console_and_the_page(undrawn, tmp_path, capsys):
    """A run missing from a table without a word is a wrong table, also to a script, which sees the exit
    status alone; a stopped run is no failure."""
    good, damaged, stopped, _ = planted_study.write_study(tmp_path / "runs", finished=planted_study.FINISHED[:3])
    record = next((damaged / "evaluations").glob("*.json"))
    record.write_text("{")
    planted_study.write_json(stopped / "status.json", {"state": "stopped", "step": 100, "message": "told to stop"})
    assert cli.main(["report", str(tmp_path / "runs")]) == 1
    assert f"note: the run in {damaged} was left out: the evaluation record" in capsys.readouterr().err
    numbers = json.loads((tmp_path / "runs" / "report" / "report.json").read_text())
    assert {run["run"] for run in numbers["runs"]} == {good.name, stopped.name, "depth5"}
    assert [run["run"] for run in numbers["unfinished"]] == [stopped.name]
    assert [run["run"] for run in numbers["failures"]] == ["depth5"]
    assert record.name in (tmp_path / "runs" / "report" / "index.html").read_text()


@pytest.mark.parametrize("verb", ["fit", "report"])
def test_the_folder_of_a_single_run_is_answered_with_the_one_above(verb, tmp_path, capsys):
    """Its own lack of a table says nothing of where the table is."""
    planted_study.write_run(tmp_path / "runs" / "a", "a", 1, 500)
    assert cli.main([verb, str(tmp_path / "runs" / "a")]) == 2
    assert f"single run; name the one above it, {tmp_path / 'runs'}," in capsys.readouterr().err
    assert not (tmp_path / "runs" / "a" / "results").exists()


def test_the_command_line_reports_and_fits_from_the_results_alone(study, tmp_path, capsys):
    shutil.copytree(study, tmp_path / "results")
    assert cli.main(["fit", str(tmp_path), "--resamples", "100", "--out", str(tmp_path / "fit.json")]) == 0
    assert "held out depth 4" in capsys.readouterr().out
    fits = json.loads((tmp_path / "fit.json").read_text())
    assert fits["fits"]["saturating"]["parameters"]["E"]["value"] == pytest.approx(planted_study.E, rel=0.1)
    assert cli.main(["fit", str(tmp_path), "--resamples", "5"]) == 2
    (tmp_path / "results" / "wide.csv").write_text("run\n")
    assert cli.main(["report", str(tmp_path)]) == 2
    assert "wide.csv lacks the column(s)" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        (formats.power(1.39e22), "1.39\u00a0×\u00a010²²"),
        (formats.power(2.5e-5), "2.50\u00a0×\u00a010⁻⁵"),
        (formats.power(2152.8), "2,153"),
        (formats.power(0), "0"),
        (formats.power(999.6), "1,000"),
        (formats.power(-12.34), "−12.3"),
        (formats.count(99_999), "99,999"),
        (formats.count(999_700), "1 M"),
        (formats.count(123_456), "123 k"),
        (formats.count(56_064), "56,064"),
        (formats.count(8_056_617_792), "8.06 B"),
        (formats.count(2.048e12), "2.05 T"),
        (formats.duration(59.7), "1 min 00 s"),
        (formats.duration(7500), "2 h 05 min"),
        (formats.loss(0.0731, 0.0004), "0.0731 ± 0.0004"),
        (formats.interval(-0.001, -0.2, 0.3), "0.00 [−0.20, 0.30]"),
        (formats.interval(0.5, None, None), "0.50"),
        (formats.interval(2.5e6, 1e6, 3e6, formats.count), "2.5 M [1 M, 3 M]"),
        (formats.estimate(None), "–"),
        (formats.sentence("loss = a·flops^-b < 1"), "Loss = a·flops<sup>−b</sup> &lt; 1."),
        (formats.formula("run^2: C^0.45 · params^-alpha"), "run^2: C<sup>0.45</sup> · params<sup>−α</sup>"),
        (formats.p_value(1 / 12), "0.083"),
        (formats.p_value(2e-6), "2.0\u00a0×\u00a010⁻⁶"),
        (formats.percent(-0.0421), "−4.21 %"),
        (formats.percent(0.002, signed=False), "0.20 %"),
        (formats.percent(24884.887), "over 1,000 %"),
    ],
)
def test_formats(shown, expected):
    assert shown == expected


def planted_runs(root, count=4):
    return planted_study.write_study(root, finished=planted_study.FINISHED[:count], failed=False)


def test_a_run_under_another_setting_is_named_with_the_command_that_brings_it_in(undrawn, tmp_path, capsys):
    """Catches the largest run gone from the law, exit 0, "of 3 finished runs"."""
    *_, largest = planted_runs(tmp_path / "runs", 7)
    for path in (largest / "evaluations").glob("*.json"):
        record = json.loads(path.read_text())
        if record["key"]["evaluation"] == "validation":
            path.unlink()
            record["key"]["grid"] = "paper-8-n64"
            (path.parent / record_name(record["key"])).write_text(json.dumps(record))
    out = tmp_path / "fit.json"
    assert cli.main(["fit", str(tmp_path / "runs"), "--resamples=100", f"--out={out}"]) == 0
    said = capsys.readouterr().out
    assert "of 7 finished runs" in said and f"left out: {largest.name}, the largest of the study, was validated" in said
    assert f"rfjax eval {largest} --weights ema" in said
    (row,) = json.loads(out.read_text())["source"]["left_out"]
    assert row["run"] == largest.name and row["is_largest"]
    assert cli.main(["report", str(tmp_path / "runs")]) == 0
    assert f"{largest.name}, the largest of the study" in capsys.readouterr().out
    page = (tmp_path / "runs" / "report" / "index.html").read_text()
    assert "the largest of the study" in page
    numbers = json.loads((tmp_path / "runs" / "report" / "report.json").read_text())
    points = numbers["analysis"]["frontier_runs"] + numbers["analysis"]["dominated_runs"]
    assert len(points) + len(numbers["left_out"]) == 7


def test_a_table_older_than_its_runs_is_made_again(undrawn, tmp_path, capsys):
    """Catches a report without the run that was trained after it, and one that stays torn for good."""
    said = []
    planted_runs(tmp_path / "runs", 3)
    assert len(merge.up_to_date(tmp_path / "runs", said.append).runs) == 3
    merge.up_to_date(tmp_path / "runs", said.append)
    assert not said
    planted_study.write_run(tmp_path / "runs" / "new", "new", 4, 2000)
    assert len(merge.up_to_date(tmp_path / "runs", said.append).runs) == 4
    assert "collected again: the runs beside it have other records now" in said[-1]
    (tmp_path / "runs" / "results" / "long.csv").write_text("torn")
    assert cli.main(["report", str(tmp_path / "runs")]) == 0  # as `rfjax fit` does
    assert "collected again" in capsys.readouterr().err
    alone = tmp_path / "moved"
    (tmp_path / "runs" / "results").rename(alone)
    assert len(merge.up_to_date(alone, said.append).runs) == 4


def change(path, **values):
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


@pytest.mark.parametrize(
    "break_it",
    [
        lambda run: (run / "run.json").write_text("[1]"),
        lambda run: (run / "status.json").write_text("3"),
        lambda run: change(run / "run.json", steps="x"),
        lambda run: change(run / "run.json", depth=[1]),
        lambda run: next((run / "evaluations").glob("*.json")).write_text('{"schema": 1, "key": 3}'),
        lambda run: (run / "metrics.jsonl").write_bytes(b"\xff\n3\nnull\n[]\n"),
        lambda run: (run / "run.json").write_bytes(b""),
        lambda run: (run / "run.json").write_text("[" * 100_000),
        lambda run: change(run / "run.json", flops_per_image="x", parent="y"),
        lambda run: change(run / "status.json", state=["done"]),
        lambda run: change(next((run / "evaluations").glob("*.json")), extra={"prompt_scores": [[1]], "png": 3}),
        lambda run: change(next((run / "evaluations").glob("*.json")), flops="x"),
    ],
)
def test_one_bad_record_stops_no_other_run(undrawn, tmp_path, capsys, break_it):
    runs = planted_runs(tmp_path / "runs", 3)
    break_it(runs[1])
    status = cli.main(["report", str(tmp_path / "runs")])
    heard = capsys.readouterr()
    assert status in (0, 1) and "Traceback" not in heard.err
    numbers = json.loads((tmp_path / "runs" / "report" / "report.json").read_text())
    assert {runs[0].name, runs[2].name} <= {run["run"] for run in numbers["runs"]}
    assert len(numbers["runs"]) == 3 or f"the run in {runs[1]} was left out" in heard.err


def test_what_came_in_is_used_or_named(undrawn, tmp_path, capsys):
    """Catches a run that leaves a fit in silence: unfinished, diverged, unreadable, without a score, of no cost."""
    runs = {path.name: path for path in planted_study.write_study(tmp_path / "runs")}
    change(runs["depth1"] / "status.json", state="stopped")
    for name, metric, field, value in (
        ("depth1", "loss", "value", None),  # stopped, and without a number
        ("depth2", "loss", "value", None),
        ("depth3-short", "loss", "flops", -5.0),
        ("depth2-short", "geneval", "key", None),
    ):
        for path in (runs[name] / "evaluations").glob("*.json"):
            record = json.loads(path.read_text())
            if record["key"]["evaluation"] == "geneval" == metric:
                path.unlink()
            elif metric == "loss" and (field == "flops" or record["key"]["evaluation"] == "validation"):
                (record["values"][0] if field == "value" else record)[field] = value
                path.write_text(json.dumps(record))
    (runs["depth1-short"] / "run.json").write_text("[")
    out = tmp_path / "fit.json"
    for _ in range(2):  # the second time the table is only read
        assert cli.main(["fit", str(tmp_path / "runs"), "--metric=overall", f"--out={out}"]) == 0
        said = capsys.readouterr().out
        source = json.loads(out.read_text())["source"]
        used, left = source["fitted_runs"], [each["run"] for each in source["left_out"]]
        unfinished = [each["run"] for each in source["unfinished"]]
        assert sorted(used + left + unfinished) == sorted(set(runs) - {"depth1-short"})
        assert sorted(left) == ["depth2", "depth3-short"] and sorted(unfinished) == ["depth1", "depth5"]
        (note,) = source["notes"]
        for words in ("depth2 has a validation loss that is not finite", "flops -5", "depth5 (diverged)", note):
            assert words in said
        assert "without a score, and left out: depth2-short" in said
    assert cli.main(["report", str(tmp_path / "runs")]) == 1
    heard = capsys.readouterr()
    assert "depth1-short was left out" in heard.err and "depth2-short has no GenEval score" in heard.out
    page = (tmp_path / "runs" / "report" / "index.html").read_text()
    for words in (
        "depth2 has a validation loss that is not finite",
        "flops -5",
        "depth2-short has no GenEval",
        "depth5",
    ):
        assert words in page
    assert cli.main(["report", str(tmp_path / "runs")]) == 1
    assert "depth1-short was left out" in capsys.readouterr().err


def test_what_the_page_does_not_show_is_named(undrawn, tmp_path, capsys):
    """Catches sheets of other prompts, and scores at several steps of other weights, that are nowhere."""
    first, *_ = planted_runs(tmp_path / "runs", 4)
    for path in (first / "evaluations").glob("*.json"):
        record = json.loads(path.read_text())
        if record["key"]["evaluation"] == "samples":
            record["extra"]["prompts"][0] = "another prompt"
            path.write_text(json.dumps(record))
    values = [planted_study.value(metric, item, 0.5, 0.1, 9) for metric, item in SAMPLING]
    more = {"images": 1, "flops": 1.0, "weights": "raw", "sampler": "euler-2-cfg4-shift1-10x4-of50", "extra": {}}
    planted_study.put(first, first.name, 500, "sampling_steps", values, **more)
    assert cli.main(["report", str(tmp_path / "runs")]) == 0
    said = capsys.readouterr().out
    page = (tmp_path / "runs" / "report" / "index.html").read_text()
    for words in (f"Not shown under samples: {first.name};", f"Not shown under sampling steps: {first.name};"):
        assert words in said and words in page


def test_clips_are_shown_at_their_own_sampler_beside_genevals(tmp_path):
    """Catches a section on motion that is left out because GenEval has other prompts or another seed, and a run with
    scores of another sampler that is nowhere."""
    runs = planted_runs(tmp_path / "runs", 4)
    for number, run in enumerate(runs):
        values = [planted_study.value("temporal", "direction_right", 0.5 + 0.1 * number, 0.1, 9)]
        sampler = f"{planted_study.SAMPLER}-{9 if number == 3 else 6}x2"
        steps = json.loads((run / "run.json").read_text())["steps"]
        at = {"images": 1, "flops": 1.0, "weights": "ema", "sampler": sampler, "seed": 5}
        planted_study.put(run, run.name, steps, "temporal", values, **at)
        pictures = {"png": "samples/final.png", "webp": "samples/final.webp"}
        (run / "samples" / "final.webp").write_bytes(results_folder.WEBP_MAGIC)
        extra = pictures | {"prompts": ["a video"], "tile": 64}
        planted_study.put(run, run.name, steps, "temporal_samples", [], extra=extra, **at)
    table = merge.collect(runs, tmp_path / "results")
    numbers = report_numbers(table, resamples=20)
    assert numbers["geneval"]["runs"] and numbers["settings"]["sampler"] == planted_study.SAMPLER
    temporal, others = numbers["temporal"], {each["section"]: each["runs"] for each in numbers["not_shown"]}
    assert (temporal["sampler"], temporal["seed"]) == (f"{planted_study.SAMPLER}-6x2", 5)
    assert {run["run"] for run in temporal["runs"]} == {run.name for run in runs[:3]}
    assert others == {name: [runs[3].name] for name in ("motion", "samples of clips")}
    shown = [{row["run"] for row in numbers[group]["rows"]} for group in ("samples", "samples_of_clips")]
    assert shown == [{run.name for run in runs}, {run.name for run in runs[:3]}]
    assert len({row["png"] for row in shown_sheets(numbers)}) == 4 + 3


def test_a_name_with_control_characters_moves_no_terminal(undrawn, tmp_path, capsys):
    planted_runs(tmp_path / "runs", 3)
    planted_study.write_run(tmp_path / "runs" / "x", "a\x1b[2J\rb", 1, 700)
    change(tmp_path / "runs" / "x" / "run.json", point="a\x1b[2J\rb")
    change(tmp_path / "runs" / "x" / "status.json", state="stopped")
    for path in (tmp_path / "runs" / "x" / "evaluations").glob("*.json"):
        path.unlink()
    for verb in ("report", "fit"):
        assert cli.main([verb, str(tmp_path / "runs")]) == 0
        heard = capsys.readouterr()
        assert "\x1b" not in heard.out + heard.err and "\\x1b[2J" in heard.out
        assert "\\xa0" not in heard.out  # a number's own blank is no control character


def test_scores_by_more_prompts_stand_apart(undrawn, tmp_path):
    """Catches floors and a ceiling that another sampler measured beside the scores of this one, and scores that the
    page drops since few runs have them."""
    *_, largest = folders = planted_runs(tmp_path / "runs", 4)
    for path in (largest / "evaluations").glob("*.json"):
        record = json.loads(path.read_text())
        if record["key"]["evaluation"].startswith("geneval"):
            record["key"]["sampler"] = record["key"]["sampler"].replace("40x", "80x") + (
                "" if "40x" in record["key"]["sampler"] else "-80x4"
            )
            for value in record["values"]:
                value |= {"value": 0.875, "low": 0.86, "high": 0.89}
            (path.parent / record_name(record["key"])).write_text(json.dumps(record))
    merge.collect(folders, tmp_path / "results")
    numbers = write_report(tmp_path / "results", tmp_path / "report", resamples=100)
    *_, run = numbers["geneval"]["runs"]
    shown = [*run["scores"].values(), *(of for floor in run["floors"].values() for of in floor.values())]
    assert all(of["value"] != 0.875 for of in [*shown, *numbers["geneval"]["ceiling"].values()])
    (other,) = numbers["geneval"]["others"]
    assert (other["value"], other["sampler"].endswith("80x4")) == (0.875, True) and other["run"] == run["run"]
    assert "They enter no fit" in (tmp_path / "report" / "index.html").read_text()


@pytest.mark.parametrize("corpus", ["shapes", "prepared:birds"])
def test_only_runs_of_one_seed_can_show_that_the_data_changed(corpus):
    """Catches a warning about every study of a prepared corpus with two seeds, whose orders and captions differ."""
    from rfjax.report import numbers

    runs = pd.DataFrame({"train_corpus": [corpus] * 3, "seed": [0, 0, 1], "corpus_fingerprint": ["a", "a", "b"]})
    runs = runs.reindex(columns=[*{*runs.columns, *numbers.ENVIRONMENT_COLUMNS}])
    assert numbers._environment(runs)["corpora_that_changed"] == {}
    runs.loc[1, "corpus_fingerprint"] = "c"
    assert numbers._environment(runs)["corpora_that_changed"] == {corpus: 2}
