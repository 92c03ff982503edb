"""Makes the HTML of a page's parts: numbered figures and tables, warnings, pictures."""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping, Sequence

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
        """A table whose cells are already safe HTML. The columns with an index in `words` hold words, the others
        numbers."""

        def cells(row, tag):
            return "".join(f"<{tag}{' class=w' if i in words else ''}>{cell}</{tag}>" for i, cell in enumerate(row))

        body = "".join(f"<tr>{cells(row, 'td')}</tr>" for row in rows)
        return (
            f"<figure class=t><figcaption>{self._label('Table')} {caption}</figcaption><div class=scroll><table>"
            f"<thead><tr>{cells(header, 'th')}</tr></thead><tbody>{body}</tbody></table></div></figure>"
        )


class Page(Captions):
    """A report's page while its sections are made. `drawn` holds the figures as HTML by name; `sheets` holds the PNGs
    of samples by their path in the results folder."""

    def __init__(self, drawn: Mapping[str, str], sheets: Mapping[str, bytes]):
        super().__init__()
        self.drawn, self.sheets = drawn, sheets

    def drawing(self, name: str, caption: str) -> str:
        """The figure of this name with its caption; "" if the numbers allow no such figure."""
        return self.figure(self.drawn[name], caption) if name in self.drawn else ""


def figure_section(name: str, caption: str) -> Callable[..., str]:
    """Makes a section of the report that only shows a figure."""
    return lambda numbers, page: page.drawing(name, caption)


def warning(content: str) -> str:
    """A warning as a paragraph; `content` is escaped and becomes a sentence."""
    return f"<p class=warn>{sentence(content)}</p>"


def picture(data: bytes, kind: str, alt: str, attributes: str = "") -> str:
    """An image inside the page; `alt` is escaped."""
    return f'<img alt="{text(alt)}" src="data:{kind};base64,{base64.b64encode(data).decode()}"{attributes}>'
