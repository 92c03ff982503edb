"""The report's section on averages of several widths: the optimum that was planted, and what lies at an edge."""

import json

import pytest

from helpers import planted_study
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
