"""A rater's page, without a browser: whole markup, no request, nothing that tells a side, contrast of its colours."""

import base64
import io
import json
import re
from html.parser import HTMLParser

import pytest
from PIL import Image

from helpers.image_sides import MARK
from rfjax.compare import pages
from rfjax.compare.design import left_and_right
from rfjax.compare.study_files import KEY, STUDY, read_key, read_study
from rfjax.errors import ConfigError

VOID = {"meta", "img", "br", "input", "link"}


class Markup(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.open, self.ids, self.tags, self.labels, self.addresses = [], [], [], set(), []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        values = dict(attrs)
        self.tags.append((tag, values))
        self.ids += [values["id"]] if "id" in values else []
        self.labels |= {values["for"]} if tag == "label" else set()
        self.addresses += [value for name, value in attrs if name in ("src", "href", "action", "srcset")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def page_of(made, rater="r01"):
    return (made / "out" / "pages" / f"{rater}.html").read_text()


def data_of(text):
    return json.loads(re.search(r'<script type="application/json" id="study">(.*?)</script>', text, re.DOTALL)[1])


def test_markup_is_whole_and_labelled(made):
    """Catches an element that is not closed, an id twice, a control without a name, an id the script lacks."""
    text = page_of(made)
    found = Markup(text)
    assert len(found.ids) == len(set(found.ids))
    assert text.startswith("<!DOCTYPE html>") and dict(found.tags)["html"] == {"lang": "en"} and "@@" not in text
    for tag, values in found.tags:
        assert tag != "img" or values["alt"]
        assert tag not in ("textarea", "progress", "input") or values["id"] in found.labels
        for name in ("aria-labelledby", "for"):
            assert values.get(name, found.ids[0]) in found.ids
    used = set(re.findall(r'\bat\("([a-z-]+)"\)', text)) | {"left", "right", "study"}
    assert used | {"choose-left", "choose-tie", "choose-right"} <= set(found.ids)


def test_a_page_requests_nothing(made):
    """Catches a font, a script or a picture from elsewhere; the policy forbids the browser whatever is left."""
    text = page_of(made)
    assert not Markup(text).addresses and not re.search(
        r"https?:|@import|url\(|fetch\(|XMLHttp|sendBeacon|eval\(", text
    )
    policy = next(values["content"] for tag, values in Markup(text).tags if "http-equiv" in values)
    assert policy.startswith("default-src 'none';") and "img-src data:;" in policy and "connect" not in policy


def test_nothing_tells_which_run_made_an_image(made):
    """Catches a run's name, a path, the mark that the PNGs carry in text and EXIF, and checks that are marked."""
    study = read_study(made / "out")
    key = read_key(made / "out", study)
    assert {"zebra-run", "yak-run"} == set(key.runs.values())
    for path in [*(made / "out" / "pages").iterdir(), made / "out" / STUDY]:
        text = path.read_text()
        for secret in ("zebra", "yak", str(made), MARK, ".png", *key.runs):
            assert secret not in text, (path, secret)
    for rater in study.raters:
        data = data_of(page_of(made, rater))
        assert " ".join(data) == "study rater page pages columns questions pairs folder images"
        assert {frozenset(pair) for pair in data["pairs"]} == {
            frozenset(("pair", "left", "right", "prompt", "questions"))
        }
        for link in data["images"].values():
            content = base64.b64decode(link.removeprefix(pages.LINK))
            assert MARK.encode() not in content and not Image.open(io.BytesIO(content)).info.get("exif")
    assert "zebra" in (made / "out" / KEY).read_text()


def test_a_page_has_its_raters_pairs_and_no_other(made):
    study = read_study(made / "out")
    by_id = {pair.pair: pair for pair in study.pairs}
    for rater in study.raters:
        data = data_of(page_of(made, rater))
        assert [pair["pair"] for pair in data["pairs"]] == study.pairs_of(rater) and data["rater"] == rater
        for pair in data["pairs"]:
            sides = left_and_right(study.study, rater, by_id[pair["pair"]])
            assert (pair["left"], pair["right"]) == sides and pair["questions"] == by_id[pair["pair"]].questions
        assert set(data["images"]) == {image for pair in data["pairs"] for image in (pair["left"], pair["right"])}


def test_a_prompt_cannot_end_the_script(made):
    """Catches `</script>` in a prompt, which would break the page or run."""
    data = {"pairs": [{"prompt": "</script><script>alert(1)</script><!--"}]}
    text = pages._html(data, False)
    assert Markup(text).tags and text.count("<script") == 2 and data_of(text) == data


def luminance(colour):
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize(
    ("text", "behind", "least"),
    [
        ("text", "page", 4.5),
        ("quiet", "page", 4.5),
        ("text", "plain", 4.5),
        ("button-text", "button", 4.5),
        ("warning", "warning-page", 4.5),
        ("focus", "page", 3),
        ("focus", "button", 1.2),  # the outline stands apart from the button
    ],
)
def test_colours_have_contrast(made, text, behind, least):
    """WCAG 2.2's ratio (success criteria 1.4.3 and 1.4.11)."""
    colours = dict(re.findall(r"--([a-z-]+): (#[0-9a-f]{6});", page_of(made)))
    light, dark = sorted((luminance(colours[text]), luminance(colours[behind])), reverse=True)
    assert (light + 0.05) / (dark + 0.05) >= least


def test_pairs_are_cut_into_pages_that_fit():
    """Each page holds its images once; the order is kept. Catches a page above its limit and a pair that is lost."""
    shown = [{"pair": f"{n:012}", "left": f"{n % 5}", "right": f"{n % 5 + 1}"} for n in range(20)]
    sizes = {str(n): 1000 for n in range(6)}
    parts = pages.cut_into_pages(shown, sizes, pages.SPARE + 4000)
    assert [pair for part in parts for pair in part] == shown and len(parts) > 1
    for part in parts:
        images = {image for pair in part for image in (pair["left"], pair["right"])}
        assert sum(sizes[image] for image in images) + sum(len(json.dumps(pair)) + 2 for pair in part) <= 4000
    assert pages.cut_into_pages(shown, sizes, 10**6) == [shown]
    with pytest.raises(ConfigError, match="two images take 2,0.. bytes, and a page has room for 100; lower --quality"):
        pages.cut_into_pages(shown, sizes, pages.SPARE + 100)
    empty = pages._html({"pairs": []}, False)
    assert len(empty.encode()) < pages.SPARE - 10_000
