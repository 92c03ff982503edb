"""The report's section on averages of several widths: the optimum that was planted, and what lies at an edge."""

import json

import pytest

from helpers import planted_ranking, planted_study
from rfjax.errors import ConfigError
from rfjax.evaluation import records
from rfjax.laws.study_fits import primary_settings
from rfjax.ranking.measures import measures_of
from rfjax.report.average_widths import average_widths_figure, averages_section
from rfjax.report.numbers import report_numbers
from rfjax.results import merge, results_folder

FINISHED = tuple(row for row in planted_study.FINISHED if row[0] in ("depth1", "depth2", "depth3", "depth4"))
LOSS_OF = {  # run -> the loss of a width over the lowest one
    "depth2": lambda width: 1 + 0.02 * ((width - 0.11) / 0.05) ** 2,
    "depth4": lambda width: 1.01 - 0.05 * width,
}
WIDTHS = (0.05, 0.08, 0.12, 0.15, 0.2)


@pytest.fixture(scope="module")
def numbers(tmp_path_factory):
    root = tmp_path_factory.mktemp("widths")
    folders = planted_study.write_study(root / "runs", finished=FINISHED, failed=False, samples=False)
    for folder in folders:
        if folder.name in LOSS_OF:
            for width in WIDTHS:
                values = planted_study.loss_values(0.1 * LOSS_OF[folder.name](width))
                key = {"weights": f"power-{width:g}", "grid": "paper-8"}
                planted_study.put(folder, folder.name, 2000, "validation", values, **key)
    merge.collect(folders, root / "results")
    return report_numbers(results_folder.read(root / "results"), resamples=100)


def test_each_runs_optimum_is_found_and_an_edge_is_said(numbers):
    """Catches losses of another run or weights, widths in the order of text, and an edge given as an optimum; and laws
    that take the made averages for the ordinary one."""
    found = {each["run"]: each for each in numbers["average_widths"]}
    assert found.keys() == LOSS_OF.keys()
    inside, edge = found["depth2"], found["depth4"]
    assert inside["optimum"] == pytest.approx(0.11, abs=0.006) and inside["best"] == 0.12 and not inside["edge"]
    assert [one["width"] for one in inside["losses"]] == list(WIDTHS)
    assert edge["edge"] == "largest" and edge["best"] == 0.2
    runs = {run["run"]: run for run in numbers["runs"]}
    assert inside["ema"] == runs["depth2"]["loss"] and inside["raw"] == pytest.approx(1.02 * inside["ema"])
    assert numbers["settings"]["weights"] == "ema"


def test_the_section_and_its_figure_show_them(numbers):
    class Page:
        def drawing(self, name, caption):
            return f"[{name}] {caption}"

        def table(self, header, rows, title, words):
            return json.dumps([header, *rows])

    said = averages_section(numbers, Page())
    assert "[average_widths]" in said and "0.2, the largest measured" in said and said.count("no optimum") == 1
    figure = average_widths_figure(numbers, {depth: ("black", "o") for depth in (1, 2, 3, 4)})
    lines = [line for line in figure.axes[0].lines if len(line.get_xdata()) == len(WIDTHS)]
    assert len(lines) == 2 and min(min(line.get_ydata()) for line in lines) == 0
    assert averages_section({"average_widths": []}, Page()) == ""
    assert average_widths_figure({"average_widths": []}, {}) is None


def test_laws_and_rankings_never_take_made_averages(tmp_path):
    """Half of the runs have a loss of the ordinary average alone, half of the raw weights, and all of a made average:
    it has the most runs. Catches a law or a ranking of averages whose width was chosen by their loss."""
    folders = planted_study.write_study(tmp_path / "runs", finished=FINISHED, failed=False, samples=False)
    for number, folder in enumerate(folders):
        for path in (folder / "evaluations").glob("*.json"):
            key = json.loads(path.read_text())["key"]
            if key["evaluation"] == "validation" and key["weights"] == ("raw", "ema")[number % 2]:
                path.unlink()
        made = {"weights": "power-0.1", "grid": "paper-8"}
        planted_study.put(folder, folder.name, 2000, "validation", planted_study.loss_values(0.01), **made)
    merge.collect(folders, tmp_path / "results")
    assert primary_settings(results_folder.read(tmp_path / "results")).weights == "ema"
    for folder in folders:
        for path in (folder / "evaluations").glob("*.json"):
            key = json.loads(path.read_text())["key"]
            if key["evaluation"] == "validation" and key["weights"] != "power-0.1":
                path.unlink()
    merge.collect(folders, tmp_path / "only")
    with pytest.raises(ConfigError, match="has no validation loss; evaluate a run first"):
        primary_settings(results_folder.read(tmp_path / "only"))
    ranked = []
    for variant, score in {"rf": 0.7, "eps/linear": 0.6}.items():
        ranked += planted_ranking.write_variant(
            tmp_path / "ranked", variant, lambda *_, s=score: (s, s), corpora=("shapes",)
        )
    merge.collect(ranked, tmp_path / "before")
    for folder in ranked:
        for steps, guidance in planted_ranking.SAMPLERS:
            place = {"corpus": "shapes", "weights": "power-0.1", "steps": steps, "guidance": guidance}
            records.write_record(folder, planted_ranking.control_record(folder.name, 0.1, 9.0, **place))
    merge.collect(ranked, tmp_path / "after")
    before, after = (measures_of(results_folder.read(tmp_path / name)) for name in ("before", "after"))
    assert after.controls == before.controls
