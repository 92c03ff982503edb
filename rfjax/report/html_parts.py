"""Makes the HTML of a page's parts: numbered figures and tables, warnings, pictures."""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping, Sequence

from rfjax.report.crowds import ROWS
from rfjax.report.formats import sentence, text


class Captions:
    """Numbers figures and tables in the order in which the page shows them."""

    def __init__(self):
        self._counts = {"Figure": 0, "Table": 0}

    def _label(self, kind):
        self._counts[kind] += 1
        return f"<b>{kind} {self._counts[kind]}.</b>"

    def figure(self, content: str, caption: str) -> str:
        return f"<figure>{content}<figcaption>{self._label('Figure')} {caption}</figcaption></figure>"

    def table(
        self, header: Sequence[str], rows: Sequence[Sequence[str]], caption: str, words: Sequence[int] = (0,)
    ) -> str:
        """Returns the HTML of a numbered table. Cells are safe HTML. Columns whose indices are in `words` hold words;
        the other columns hold numbers.

        Rows beyond `crowds.ROWS` are folded.
        """

        def cells(row, tag):
            return "".join(f"<{tag}{' class=w' if i in words else ''}>{cell}</{tag}>" for i, cell in enumerate(row))

        def scrolled(rows):
            body = "".join(f"<tr>{cells(row, 'td')}</tr>" for row in rows)
            return (
                f"<div class=scroll><table><thead><tr>{cells(header, 'th')}</tr></thead><tbody>{body}</tbody></table>"
                "</div>"
            )

        shown = scrolled(rows[:ROWS]) + fold(rows[ROWS:], "rows", scrolled, len(rows))
        return f"<figure class=t><figcaption>{self._label('Table')} {caption}</figcaption>{shown}</figure>"


def fold(rest: Sequence, what: str, render: Callable[[Sequence], str], total: int) -> str:
    """Returns the HTML of `rest`, the rows that a table or list of `total` rows does not show at once, folded until a
    reader clicks; "" if there are none. `what` is the plural noun for rows."""
    if not rest:
        return ""
    summary = f"{len(rest):,} more of {total:,} {what}"
    return f"<details><summary>{summary}</summary>{render(rest)}</details>"


class Page(Captions):
    """A report's page while its sections are made.

    `drawn` has the figures as HTML, by name. `sheets` has the PNGs of samples and the WebPs of clips, by their path in
    the results folder.
    """

    def __init__(self, drawn: Mapping[str, str], sheets: Mapping[str, bytes]):
        super().__init__()
        self.drawn, self.sheets = drawn, sheets

    def drawing(self, name: str, caption: str) -> str:
        """Returns the HTML of the figure `name`, numbered and with its caption; "" if the report has no such figure."""
        return self.figure(self.drawn[name], caption) if name in self.drawn else ""


def figure_section(
    name: str, caption: str, remark: Callable[[Mapping], str] = lambda numbers: ""
) -> Callable[..., str]:
    """Returns the function that writes a section of one figure. `remark(numbers)` is appended to the caption."""
    return lambda numbers, page: page.drawing(name, caption + remark(numbers))


def bullets(items: Sequence[str], kind: str = "") -> str:
    """Returns an HTML list of the class `kind`; its items are safe HTML. Items beyond `crowds.ROWS` are folded."""

    def listed(items):
        return f"<ul{kind and f' class={kind}'}>" + "".join(f"<li>{item}</li>" for item in items) + "</ul>"

    return listed(items[:ROWS]) + fold(items[ROWS:], "lines", listed, len(items))


def warning(content: str) -> str:
    """Returns the HTML of a warning, as a paragraph of its own; `content` is escaped and becomes a sentence."""
    return f"<p class=warn>{sentence(content)}</p>"


def picture(data: bytes, kind: str, alt: str, attributes: str = "") -> str:
    """Returns the HTML of an image inside the page. `kind` is its media type; `alt` is escaped."""
    return f'<img alt="{text(alt)}" src="data:{kind};base64,{base64.b64encode(data).decode()}"{attributes}>'
