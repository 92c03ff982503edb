"""Writes the section on claims of published laws: their verdicts, the laws beside the table's own, the conventions."""

from __future__ import annotations

from rfjax.laws.verdicts import AGREES, CONTRADICTS
from rfjax.report.claims_facts import LAW_HEADER, decide_words, found_words, law_rows, summary
from rfjax.report.formats import NONE, sentence, text
from rfjax.report.html_parts import warning


def claims_section(numbers, page):
    """Returns the HTML of the section: the table of claims, two figures, the table of laws, and how each law counts C
    and D."""
    board = numbers["claims"]
    rows = [
        [
            f"<b>{text(verdict['verdict'])}</b>"
            if verdict["verdict"] in (AGREES, CONTRADICTS)
            else text(verdict["verdict"]),
            f"{text(verdict['claim'])}<br><small>{text(verdict['source'])}</small>",
            text(found_words(verdict)) or NONE,
            "<br>".join(map(text, filter(None, [decide_words(verdict), *verdict["notes"]]))) or NONE,
        ]
        for verdict in board["verdicts"]
    ]
    caption = (
        f"{text(summary(board))}. Intervals are at 95 %. The table agrees with a claimed value if its interval holds "
        "this value and not the rival's, and contradicts the claim if its interval leaves the value out; the rule of "
        "each claim is in report.json."
    )
    parts = [page.table(["verdict", "claim", "found", "what would decide it; notes"], rows, caption, words=range(4))]
    caption = (
        "Published laws beside this table's. Left: by which power of compute the optimal size grows, with the table's "
        "95 % interval. Right: the optimal size, each law over the compute of its own runs (dashed: published), "
        "and the runs (points). <b>Figures of different counts of C do not meet</b>: only the slopes may be set beside "
        "each other."
    )
    parts.append(page.drawing("claimed_laws", caption))
    caption = (
        "How the loss falls. The power law's exponent at each level of t, with its 95 % interval. As the law has no "
        "floor, the exponent is only apparent."
    )
    if board["collapse"]["curves"]:
        caption += " Right: loss − E of compute-optimal runs, over its value at the end of training; E is the floor."
    parts.append(page.drawing("level_exponents_and_collapse", caption))
    if board["own_reason"]:
        parts.append(warning(f"no optimal size of this table to set beside the laws: {board['own_reason']}"))
    cells = [[text(cell) for cell in row] for row in law_rows(board)]
    caption = "The laws as published, and the table's own from its parametric law, each in its own count of C and D."
    parts.append(page.table(list(LAW_HEADER), cells, caption, words=(0, 6, 7)))
    return "".join(parts) + "<ul>" + "".join(f"<li>{sentence(line)}</li>" for line in board["conventions"]) + "</ul>"
