"""Draws the report's figures and renders its page, a self-contained HTML file, from the report's numbers."""

from __future__ import annotations

from collections.abc import Mapping
from string import Template

import matplotlib
from matplotlib.figure import Figure

from rfjax.report.axes import STYLE as FIGURE_STYLE
from rfjax.report.axes import looks
from rfjax.report.findings import subtitle
from rfjax.report.formats import text
from rfjax.report.html_parts import Page, picture
from rfjax.report.sections import FIGURES, SECTIONS


def draw(numbers: Mapping) -> dict[str, Figure]:
    """Draws the figures that the numbers allow. Returns {name: figure}, in the order of `FIGURES`."""
    with matplotlib.rc_context(FIGURE_STYLE):
        look = looks(sorted({run["depth"] for run in numbers["runs"] if run["depth"] is not None}))
        rows = {name: row for name, row in FIGURES.items() if numbers["compares"] in row.studies}
        drawn = {name: row.draw(numbers, look) for name, row in rows.items()}
        drawn = {name: figure for name, figure in drawn.items() if figure is not None}
        for figure in drawn.values():
            figure.draw_without_rendering()  # does the layout, once for both formats
            figure.set_layout_engine("none")
    return drawn


def render(numbers: Mapping, figures: Mapping[str, bytes], sheets: Mapping[str, bytes]) -> str:
    """Renders the page. `figures` are SVGs by name; `sheets` are PNGs, and WebPs of clips, by their path in
    the results folder.

    A section with nothing to show is left out.
    """
    drawn = {
        name: picture(svg, "image/svg+xml", FIGURES[name].title, " class=narrow" if FIGURES[name].narrow else "")
        for name, svg in figures.items()
    }
    page = Page(drawn, sheets)
    body = []
    for title, section in SECTIONS[numbers["compares"]]:
        if content := section(numbers, page):
            body.append(f"<section><h2>{len(body) + 1}&ensp;{title}</h2>\n{content}\n</section>")
    return Template(PAGE).substitute(
        title=text(f"Scaling study: {numbers['study']}" if numbers["study"] else "Scaling study"),
        style=STYLE,
        subtitle=subtitle(numbers),
        footer=FOOTER.format(text(numbers["table_sha256"][:16])),
        body="\n".join(body).replace("95 %", "95&nbsp;%"),
    )


STYLE = """
:root { --ink: #1a1a1a; --soft: #5c5c5c; --rule: #cfcfcf; --accent: #0072B2; }
* { box-sizing: border-box; }
body { margin: 0; background: #fff; color: var(--ink);
  font: 16px/1.55 "Charter", "Bitstream Charter", "Iowan Old Style", "Palatino Linotype", Georgia, "DejaVu Serif", \
serif; }
main { max-width: 58rem; margin: 0 auto; padding: 3.2rem 1.6rem 4rem; }
h1 { font-size: 1.9rem; line-height: 1.2; margin: 0 0 .5rem; font-weight: 600; }
.subtitle { color: var(--soft); margin: 0 0 2.2rem; padding-bottom: 1.2rem; border-bottom: 1px solid var(--ink); }
h2 { font-size: 1.2rem; font-weight: 600; margin: 2.6rem 0 .8rem; }
p { margin: .6rem 0; }
ul { padding-left: 1.2rem; margin: .6rem 0; } li { margin: .35rem 0; }
ul.findings { list-style: none; padding: .3rem 0 .3rem 1.1rem; border-left: 3px solid var(--accent); }
figure { margin: 1.4rem 0 1.8rem; }
figure img { display: block; width: 100%; height: auto; margin: 0 auto; }
figure img.narrow { width: 64%; min-width: 22rem; max-width: 100%; }
figcaption { font-size: .86rem; line-height: 1.45; color: #333; margin-top: .6rem; }
figure.t figcaption { margin: 0 0 .5rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font: .74rem/1.4 system-ui, "DejaVu Sans", sans-serif;
  font-variant-numeric: tabular-nums; border-top: 1.5px solid var(--ink); border-bottom: 1.5px solid var(--ink); }
th { font-weight: 600; border-bottom: .8px solid var(--ink); vertical-align: bottom; }
th, td { text-align: right; padding: .3rem .45rem; white-space: nowrap; }
td { vertical-align: top; }
.w { text-align: left; white-space: normal; overflow-wrap: break-word; }
th:first-child, td:first-child { padding-left: 0; } th:last-child, td:last-child { padding-right: 0; }
tbody tr + tr td { border-top: .5px solid #ececec; }
sup { line-height: 0; }
small { color: var(--soft); font-size: .88em; }
dl { display: grid; grid-template-columns: max-content 1fr max-content 1fr; gap: .15rem .9rem; font-size: .84rem; \
margin: 1rem 0; }
dt { color: var(--soft); } dd { margin: 0; overflow-wrap: anywhere; }
details { margin: .5rem 0; } summary { cursor: pointer; color: var(--accent); font-size: .86rem; }
.warn { border-left: 3px solid #D55E00; padding: .2rem 0 .2rem .9rem; }
.sheet { display: grid; grid-template-columns: 6.8rem 1fr; gap: 3px .7rem; align-items: center;
  max-width: calc(7.5rem + var(--n) * 6.6rem); margin: 0 auto;
  font: .74rem/1.3 system-ui, "DejaVu Sans", sans-serif; }
.sheet img { width: 100%; image-rendering: pixelated; }
.sheet img.printed { display: none; }
.strip { position: relative; line-height: 0; }
.strip::after { content: ""; position: absolute; inset: 0; /* gutters between the tiles */
  background: repeating-linear-gradient(to right, #fff 0 1px, transparent 1px calc(100% / var(--n) - 1px), #fff \
calc(100% / var(--n) - 1px) calc(100% / var(--n))); }
.heads { display: grid; grid-template-columns: repeat(var(--n), 1fr); gap: 0; align-items: end; margin-bottom: 3px; }
.heads div { padding: 0 3px; font-size: .66rem; text-align: center; color: var(--soft); overflow-wrap: anywhere; \
hyphens: auto; }
.who { text-align: right; }
footer { margin-top: 3rem; padding-top: .8rem; border-top: .8px solid var(--rule); font-size: .78rem; color: \
var(--soft); }
@page { size: A4; margin: 17mm 15mm; }
@media print {
  body { font-size: 9.6pt; } main { max-width: none; padding: 0; }
  .sheet img.playing { display: none; } .sheet img.printed { display: block; }
  figure, tr, li { break-inside: avoid; } h2 { break-after: avoid; } .scroll { overflow: visible; }
}
"""

FOOTER = (
    "Made by rfjax from the results table {}&hellip; (start of its SHA-256). "
    "Every number on this page is in report.json."
)

PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>$title</title>
<style>$style</style>
</head>
<body>
<main>
<h1>$title</h1>
<p class="subtitle">$subtitle</p>
$body
<footer>$footer</footer>
</main>
</body>
</html>
"""
