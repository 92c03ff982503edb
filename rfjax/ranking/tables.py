"""Writes the ranking's tables: CSV with every number, and LaTeX (booktabs) for a paper."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence

from rfjax.ranking.summary import rank_of, ranked_columns

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
    """Returns {file name: content} of the ranking's tables. `numbers` is what `ranking_numbers` returns.

    There are two tables, each as CSV and LaTeX: the complete one, and a short one with the two best variants of each
    family in each column, as in the paper's table 1.
    """
    columns = ranked_columns(numbers)
    best_first = [row["variant"] for row in columns[0]["ranks"]] if columns else []
    files = {}
    for name, variants in (("ranking", numbers["shown"]), ("ranking_complete", best_first)):
        if variants:
            files |= {f"{name}.csv": ranking_csv(numbers, variants), f"{name}.tex": ranking_latex(numbers, variants)}
    return files


def ranking_csv(numbers: Mapping, variants: Sequence[str]) -> str:
    """Returns a CSV table with a row for each variant: for each column of ranks the average rank, its interval and the
    share of resamples in which the variant came first; then the paper's ranks."""
    facts = {fact["variant"]: fact for fact in numbers["variants"]}
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    names = [column["name"] for column in numbers["columns"]]
    measured = [name + suffix for name in names for suffix in ("", " low", " high", " first")]
    writer.writerow(["variant", "family", "diverged", *measured, *(f"paper {name}" for name in names)])
    for variant in variants:
        cells = []
        for column in numbers["columns"]:
            row = rank_of(column, variant)
            cells += [repr(float(row[key])) if row else "" for key in ("value", "low", "high", "first")]
        theirs = facts[variant]["paper"] or [""] * len(names)
        writer.writerow([variant, facts[variant]["family"], int(facts[variant]["diverged"]), *cells, *theirs])
    return out.getvalue()


def ranking_latex(numbers: Mapping, variants: Sequence[str]) -> str:
    """Returns a LaTeX booktabs table: average ranks with their intervals, the best of each column bold."""
    columns = ranked_columns(numbers)
    best = {column["name"]: min(row["value"] for row in column["ranks"]) for column in columns}
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
            row = rank_of(column, variant)
            shown = f"{row['value']:.2f}"
            cells.append(rf"\textbf{{{shown}}}" if row["value"] == best[column["name"]] else shown)
            cells.append(rf"{{\small [{row['low']:.2f}, {row['high']:.2f}]}}")
        lines.append(" & ".join(cells) + r" \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}"]) + "\n"


def latex(text: str) -> str:
    """Escapes a text for LaTeX."""
    return "".join(_LATEX.get(letter, letter) for letter in text)
