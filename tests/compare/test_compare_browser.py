"""A rater's page in a real browser: voted by keyboard, mouse and phone, reloaded, in two tabs, without storage."""

import csv
import io
import json
from pathlib import Path

import pytest

from helpers.browser import Browser
from helpers.image_sides import write_sides
from rfjax.cli import main
from rfjax.compare.design import left_and_right
from rfjax.compare.study_files import VOTE_COLUMNS, read_study

pytestmark = pytest.mark.full


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """A study of one rater with images in the page, and the same with images beside it."""
    folder = write_sides(tmp_path_factory.mktemp("voted"), ["zebra-run", "yak-run", "gnu-run"], side=200)
    sides = [str(folder / name) for name in ("zebra-run", "yak-run", "gnu-run")]
    command = ["compare", *sides, f"--prompts={folder / 'prompts.txt'}", "--raters=1", "--pairs=24"]
    assert (
        main([*command, f"--out={folder / 'out'}"]) == main([*command, f"--out={folder / 'beside'}", "--folder"]) == 0
    )
    return folder


@pytest.fixture
def browser(tmp_path):
    browser = Browser(tmp_path)
    yield browser
    browser.close()


def address(folder: Path, name="out"):
    return (folder / name / "pages" / "r01.html").as_uri()


def opened(browser, where, **how):
    page = browser.tab(**how)
    page.resize(1280, 800)
    page.open(where)
    page.wait("ready")
    return page


def done(page):
    return int(page.js("document.getElementById('done').textContent"))


def vote(page, send):
    """Answers a question by `send()`, and waits for the next."""
    before = done(page)
    page.wait("ready || shown === null")
    send()
    page.wait(f"document.getElementById('done').textContent === '{before + 1}' && (ready || shown === null)")


def rows_of(text):
    return list(csv.DictReader(io.StringIO(text)))


def saved(browser, page):
    """The rows of the file that the page saves."""
    for path in browser.downloads.iterdir():
        path.unlink()
    page.click("#save")
    page.wait("document.getElementById('saved').textContent.startsWith('Saved')")
    for _ in range(200):
        found = [path for path in browser.downloads.iterdir() if not path.name.endswith(".crdownload")]
        if found and found[0].stat().st_size:
            break
        page.js("new Promise(done => setTimeout(done, 25))")
    assert [path.name for path in found] == ["votes-r01.csv"]
    return rows_of(found[0].read_text())


def test_a_rater_votes_by_keyboard_and_mouse_and_comes_back(study, browser):
    """Forty votes and more, a reload in the middle, an answer taken back, the file at the end: each choice stands by
    the images that were shown. Catches a vote lost or doubled, sides mixed up, a request that leaves the page."""
    page = opened(browser, address(study))
    facts = read_study(study / "out")
    by_id = {pair.pair: pair for pair in facts.pairs}
    expected = [(name, q) for name in facts.pairs_of("r01") for q in by_id[name].questions]
    assert len(expected) > 40 and page.js("document.getElementById('total').textContent") == str(len(expected))
    ways = [
        ("left", lambda: page.press("ArrowLeft")),
        ("right", lambda: page.click("#choose-right")),
        ("tie", lambda: page.press("ArrowDown")),
        ("left", lambda: page.click("#choose-left")),
        ("right", lambda: page.press("ArrowRight")),
        ("tie", lambda: page.click("#choose-tie")),
    ]
    choices = []
    for number in range(len(expected)):
        if number == 20:
            page.reload()
            page.wait("ready")
            assert done(page) == 20 and [row["choice"] for row in rows_of(page.js("csv()"))] == choices
        if number == 30:
            page.press("Backspace")
            page.wait("document.getElementById('done').textContent === '29' && ready")
            assert page.js("shown.pair + shown.question") == "".join(expected[29])
            choices.pop()
            vote(page, ways[number % 6][1])
            choices.append(ways[number % 6][0])
        assert page.js("shown.question") == expected[number][1]
        vote(page, ways[number % 6][1])
        choices.append(ways[number % 6][0])
    assert page.js("document.getElementById('vote').hidden && !document.getElementById('end').hidden")
    rows = saved(browser, page)
    assert tuple(rows[0]) == VOTE_COLUMNS and [(row["pair"], row["question"]) for row in rows] == expected
    assert [row["choice"] for row in rows] == choices
    for row in rows:
        assert (row["left"], row["right"]) == left_and_right(facts.study, "r01", by_id[row["pair"]])
        assert row["study"] == facts.study and row["rater"] == "r01" and 0 <= float(row["seconds"]) < 60
        assert len(row["at"]) == 24 and row["at"].endswith("Z")
    assert len({row["at"] for row in rows}) == len(rows)
    others = [url for url in browser.requests if not url.startswith(("data:image/webp", "blob:", address(study)))]
    assert not others and not browser.errors


def test_two_tabs_of_one_page_lose_nothing(study, browser):
    """Catches a tab that writes its own list of votes over the other's, and one question answered in both tabs."""
    first, second = opened(browser, address(study)), opened(browser, address(study))
    vote(first, lambda: first.js("vote('left')"))
    second.wait("document.getElementById('done').textContent === '1' && ready")
    vote(second, lambda: second.js("vote('right')"))
    first.wait("document.getElementById('done').textContent === '2' && ready")
    assert first.js("csv()") == second.js("csv()") and len(rows_of(first.js("csv()"))) == 2
    # Both answer one question before either hears of the other: the later answer counts in both.
    key = first.js("shown.key")
    for page, choice in ((first, "left"), (second, "tie")):
        page.js(f"record(items.find(item => item.key === {json.dumps(key)}), {choice!r}, 1)")
    for page in (first, second):
        page.wait(f"join() || votes.get({json.dumps(key)}).choice === 'tie'")
    first.js("show()")
    second.js("show()")
    assert first.js("csv()") == second.js("csv()") and done(first) == 3
    second.js("localStorage.clear()")
    first.wait("localStorage.length === 3")  # a tab that holds votes writes them again
    assert len(saved(browser, first)) == 3


def test_a_phone_shows_all_without_scrolling_sideways(study, browser, tmp_path):
    """390 pixels wide. Catches a button out of reach, images beside the screen, a key needed."""
    page = browser.tab()
    page.resize(390, 844, mobile=True)
    page.open(address(study))
    page.wait("ready")
    vote(page, lambda: page.click("#choose-right"))
    assert page.js("[document.documentElement.scrollWidth, innerWidth]") == [390, 390]
    for name in ("left", "right", "choose-left", "choose-tie", "choose-right"):
        box = page.js(f"(box => [box.left, box.right, box.top, box.bottom])(at('{name}').getBoundingClientRect())")
        assert 0 <= box[0] < box[1] <= 390 and 0 <= box[2] < box[3] <= 844, (name, box)
    assert all(
        page.js(f"at('choose-{choice}').getBoundingClientRect().height") >= 44 for choice in ("left", "tie", "right")
    )
    page.screenshot(tmp_path / "phone.png")


def test_where_nothing_can_be_stored_the_page_says_so(study, browser):
    """Catches votes that vanish without a word: a browser that refuses storage, and one whose storage fills up."""
    page = browser.tab()
    page.call(
        "Page.addScriptToEvaluateOnNewDocument",
        source="Object.defineProperty(window, 'localStorage', {get() {throw new Error('refused')}})",
    )
    page.open(address(study))
    page.wait("ready")
    assert "keeps no answers" in page.js("at('warning').hidden ? '' : at('warning').textContent")
    vote(page, lambda: page.press("ArrowLeft"))
    vote(page, lambda: page.press("ArrowDown"))
    assert [row["choice"] for row in saved(browser, page)] == ["left", "tie"]
    assert rows_of(page.js("at('text').value")) == rows_of(page.js("csv()"))
    full = opened(browser, address(study))
    assert full.js("at('warning').hidden")
    full.js("Storage.prototype.setItem = () => { throw new Error('full') }")
    vote(full, lambda: full.press("ArrowLeft"))
    assert "keeps no answers" in full.js("at('warning').hidden ? '' : at('warning').textContent")
    assert len(rows_of(full.js("csv()"))) == 1


def test_images_beside_the_page_and_one_that_is_gone(study, browser):
    """Catches a policy that forbids the images of --folder, and a page that waits for ever for a missing image."""
    page = opened(browser, address(study, "beside"))
    vote(page, lambda: page.press("ArrowLeft"))
    images = study / "beside" / "pages" / "images"
    page.js("study.pairs.length")
    later = page.js("items.find(item => !answered(item) && item.pair !== shown.pair).left")
    (images / f"{later}.webp").rename(images / "gone")
    while page.js("!document.getElementById('trouble').hidden") is False:
        page.wait("ready || !at('trouble').hidden")
        if page.js("ready"):
            page.js("vote('tie')")
    assert "Is the folder images/ beside this page?" in page.js("at('trouble').textContent")
    before = page.js("shown.pair")
    page.click("#skip")
    page.wait("ready || !at('trouble').hidden")
    assert page.js("shown.pair") != before or page.js("shown.question")
    (images / "gone").rename(images / f"{later}.webp")
    asked = [url for url in browser.requests if not url.startswith(address(study, "beside").rsplit("/", 1)[0])]
    assert not asked


def test_a_key_that_is_held_down_answers_once(study, browser):
    """Catches a rater who leans on a key and answers the whole study."""
    page = opened(browser, address(study))
    for repeated in (False, True, True, True):
        how = {"key": "ArrowLeft", "code": "ArrowLeft", "windowsVirtualKeyCode": 37, "autoRepeat": repeated}
        page.call("Input.dispatchKeyEvent", type="keyDown", **how)
        page.wait("ready")
    assert done(page) == 1
    page.js("vote('left'); vote('left')")  # a double tap: the second comes before the images
    assert done(page) == 2
    page.press("Tab")
    assert page.js("getComputedStyle(document.activeElement).outlineStyle") == "solid"
