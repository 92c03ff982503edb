"""Makes the pages that raters open. A page is one file that holds its style, script and images, and loads nothing else.

A page holds only what its rater may see: it does not mark the checks and does not name the runs. With `beside`, the
images are files in a folder beside the pages, under their blind names.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import resources

from rfjax.compare.design import left_and_right
from rfjax.compare.study_files import VOTE_COLUMNS, Study
from rfjax.errors import ConfigError

IMAGES = "images"  # the folder beside the pages
SPARE = 60_000  # bytes of a page that are neither images nor pairs: markup, style, script, questions
POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src {}; base-uri 'none'"
LINK = "data:image/webp;base64,"


def pages_of(
    study: Study, rater: str, webp_of: Callable[[str], bytes], *, most_bytes: int, beside: bool
) -> Iterator[tuple[str, str]]:
    """Yields (name, content) of a rater's pages: RATER.html, or RATER-1.html, RATER-2.html, ... if there are several.

    `webp_of` returns the bytes of the image with a given id. A page has at most `most_bytes` bytes. With `beside`, a
    page refers to images in files beside it. Raises `ConfigError` if the two images of a pair do not fit into a page.
    """
    by_id = {pair.pair: pair for pair in study.pairs}
    prompts = {prompt.id: prompt.prompt for prompt in study.prompts}
    shown = []
    for name in study.pairs_of(rater):
        pair = by_id[name]
        left, right = left_and_right(study.study, rater, pair)
        texts = {"pair": name, "left": left, "right": right, "prompt": prompts[pair.prompt]}
        shown.append(texts | {"questions": pair.questions})
    size_of = _NoSizes() if beside else _Sizes(webp_of)
    parts = cut_into_pages(shown, size_of, most_bytes)
    for number, part in enumerate(parts, 1):
        suffix = f"-{number}" if len(parts) > 1 else ""
        images = [image for pair in part for image in (pair["left"], pair["right"])]
        data = {
            "study": study.study,
            "rater": rater,
            "page": number,
            "pages": len(parts),
            "columns": list(VOTE_COLUMNS),
            "questions": {question.name: question.text for question in study.questions},
            "pairs": part,
            "folder": f"{IMAGES}/" if beside else "",
            "images": {} if beside else {image: _link(webp_of(image)) for image in dict.fromkeys(images)},
        }
        yield f"{rater}{suffix}.html", _html(data, beside)


def cut_into_pages(shown: Sequence[dict], size_of: Mapping[str, int], most_bytes: int) -> list[list[dict]]:
    """Divides a rater's pairs, in their order, among pages of at most `most_bytes` bytes. A page stores an image once.

    `size_of` has an image's bytes in a page, by the image's id. Raises `ConfigError` if a single pair does not fit.
    """
    pages, page, held, total = [], [], set(), SPARE
    for pair in shown:
        text, images = len(json.dumps(pair)) + 2, {pair["left"], pair["right"]}
        if page and total + text + sum(size_of[image] for image in images - held) > most_bytes:
            pages.append(page)
            page, held, total = [], set(), SPARE
        total += text + sum(size_of[image] for image in images - held)
        if total > most_bytes:
            raise ConfigError(
                f"two images take {total - SPARE:,} bytes, and a page has room for {most_bytes - SPARE:,}; lower "
                "--quality, raise --page-mb, or give --folder"
            )
        page.append(pair)
        held |= images
    return [*pages, page]


class _Sizes(dict):
    """A mapping from an image's id to the number of bytes that the image takes in a page. Each number is computed when
    it is first asked for."""

    def __init__(self, webp_of):
        super().__init__()
        self.webp_of = webp_of

    def __missing__(self, image):
        self[image] = len(_link(self.webp_of(image))) + len(image) + 6
        return self[image]


class _NoSizes(dict):
    """A mapping from any image to a size of 0 bytes, for images that lie in files beside the page: they do not make the
    page larger."""

    def __missing__(self, image):
        return 0


def _link(webp: bytes) -> str:
    return LINK + base64.b64encode(webp).decode()


def _html(data: dict, beside: bool) -> str:
    """Returns the HTML of a page: the template with `data` as JSON. `<` is escaped in the JSON, so that no prompt can
    end the script element."""
    parts = {name: (resources.files(__package__) / "page" / name).read_text("utf-8") for name in _FILES}
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")
    values = {
        "POLICY": POLICY.format("'self' file:" if beside else "data:"),
        "STYLE": parts["page.css"],
        "SCRIPT": parts["page.js"],
        "DATA": text,
    }
    pieces = parts["page.html"].split("@@")  # odd places are names
    return "".join(values[piece] if place % 2 else piece for place, piece in enumerate(pieces))


_FILES = ("page.html", "page.css", "page.js")
