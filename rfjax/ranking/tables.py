"""Writes the ranking's tables: CSV with every number, and LaTeX (booktabs) for a paper."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence

from rfjax.ranking.summary import rank_of

_COLUMN = r"r@{\hspace{0.5em}}l"  # a rank and its interval
_LATEX = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
}


def ranking_files(numbers: Mapping) -> dict[str, str]:
    """The tables' content by file name, from `ranking_numbers`: the complete table, and the short one with the best
    of each family, as in the paper's table 1."""
    best_first = [one["variant"] for one in _first_ranked(numbers)["ranks"]]
    files = {}
    for name, variants in (("ranking", numbers["shown"]), ("ranking_complete", best_first)):
        if variants:
            files[f"{name}.csv"], files[f"{name}.tex"] = (
                ranking_csv(numbers, variants),
                ranking_latex(numbers, variants),
            )
    return files


def ranking_csv(numbers: Mapping, variants: Sequence[str]) -> str:
    """One row per variant: its average rank in each column, with interval and the share of resamples in which it
    came first; then the paper's ranks."""
    facts = {one["variant"]: one for one in numbers["variants"]}
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    names = [column["name"] for column in numbers["columns"]]
    measured = [name + suffix for name in names for suffix in ("", " low", " high", " first")]
    writer.writerow(["variant", "family", "diverged", *measured, *(f"paper {name}" for name in names)])
    for variant in variants:
        cells = []
        for column in numbers["columns"]:
            one = rank_of(column, variant)
            cells += (
                ["", "", "", ""]
                if one is None
                else [repr(float(one[key])) for key in ("value", "low", "high", "first")]
            )
        theirs = facts[variant]["paper"] or [""] * len(names)
        writer.writerow([variant, facts[variant]["family"], int(facts[variant]["diverged"]), *cells, *theirs])
    return out.getvalue()


def ranking_latex(numbers: Mapping, variants: Sequence[str]) -> str:
    """A booktabs table: average ranks with their intervals, the best of each column bold."""
    columns = [column for column in numbers["columns"] if column["ranks"]]
    best = {column["name"]: min(one["value"] for one in column["ranks"]) for column in columns}
    lines = [
        r"% needs \usepackage{booktabs}",
        r"\begin{tabular}{l" + _COLUMN * len(columns) + "}",
        r"\toprule",
        "variant" + "".join(rf" & \multicolumn{{2}}{{c}}{{{latex(column['name'])}}}" for column in columns) + r" \\",
        r"\midrule",
    ]
    for variant in variants:
        cells = [latex(variant)]
        for column in columns:
            one = rank_of(column, variant)
            shown = f"{one['value']:.2f}"
            cells.append(rf"\textbf{{{shown}}}" if one["value"] == best[column["name"]] else shown)
            cells.append(rf"{{\small [{one['low']:.2f}, {one['high']:.2f}]}}")
        lines.append(" & ".join(cells) + r" \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}"]) + "\n"


def latex(text: str) -> str:
    """The text escaped for LaTeX."""
    return "".join(_LATEX.get(letter, letter) for letter in text)


def _first_ranked(numbers):
    return next((column for column in numbers["columns"] if column["ranks"]), {"ranks": []})
