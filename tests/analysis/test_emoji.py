"""The emoji corpus from a small package made by hand, and the scores' judges on planted pictures."""

import importlib
import io
import json
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest

ANALYSIS = Path(__file__).parents[2] / "analysis"


@pytest.fixture()
def load(monkeypatch):
    monkeypatch.syspath_prepend(str(ANALYSIS))
    yield importlib.import_module
    for name in ("emoji_corpus", "emoji_scores"):
        sys.modules.pop(name, None)


def archive(path, files):
    with tarfile.open(path, "w:gz") as file:
        for name, content in files.items():
            data = json.dumps(content).encode()
            about = tarfile.TarInfo(f"package/{name}")
            about.size = len(data)
            file.addfile(about, io.BytesIO(data))
    return path


NAMES = [
    {"label": "red apple", "tags": ["apple", "fruit", "red apple"]},
    {"label": "flag: Côte d’Ivoire", "tags": ["CI"]},
    {"label": "A", "tags": []},
    {"label": "a!", "tags": []},  # its slug is that of the row above
]


def icon_set(licence, icons):
    info = {"license": {"spdx": licence}, "author": {"name": "x"}}
    return {"info": info, "width": 32, "height": 32, "icons": icons}


def test_emoji_are_joined_by_name_with_captions_and_without_skin_tones(load, tmp_path):
    """Catches an icon under another's name, a caption that repeats the name, and a set whose licence has changed."""
    corpus = load("emoji_corpus")
    names = corpus.read_names(archive(tmp_path / "names.tgz", {"en/data.json": NAMES}))
    assert set(names) == {"red-apple", "redapple", "flag-cote-divoire", "flagcotedivoire"}
    icons = {
        "red-apple": {"body": "<path/>"},
        "redapple": {"body": "<g/>"},
        "red-apple-dark": {"body": "<path/>"},
        "flag-cote-divoire": {"body": "<path/>", "hidden": True},
        "unknown": {"body": "<path/>"},
    }
    sets = {f"json/{style}.json": icon_set(licence, {}) for style, (_, licence) in corpus.STYLES.items()}
    sets["json/noto.json"] = icon_set("Apache-2.0", icons)
    (apple,) = corpus.read_emoji(archive(tmp_path / "icons.tgz", sets), names)
    assert (apple.style, apple.key, apple.licence) == ("noto", "noto/red-apple.png", "Apache-2.0")
    assert apple.captions == ("a noto style emoji of red apple", "a noto style emoji of red apple: apple, fruit")
    assert "<path/>" in apple.svg and 'viewBox="0 0 32 32"' in apple.svg
    sets["json/noto.json"] = icon_set("proprietary", icons)
    with pytest.raises(SystemExit, match="noto states the licence proprietary, and not Apache-2.0"):
        list(corpus.read_emoji(archive(tmp_path / "other.tgz", sets), names))


def test_a_held_out_pair_leaves_its_name_and_its_style_in_training(load):
    """Catches a name whose every style is set aside, and names of few styles."""
    corpus = load("emoji_corpus")
    styles = list(corpus.STYLES)
    emoji = [
        corpus.Emoji(style, f"name {number}", (), "", "") for number in range(60) for style in styles[: 1 + number % 9]
    ]
    out = corpus.held_out(emoji)
    assert len({each.name for each in out}) == len(out) and 10 < len(out) < 40
    assert min(sum(each.name == other.name for each in emoji) for other in out) == corpus.FEWEST_STYLES
    assert len({each.style for each in out}) > 4
    assert corpus.held_out(emoji[::-1]) and {e.key for e in corpus.held_out(emoji[::-1])} == {e.key for e in out}


def test_a_package_with_another_checksum_is_refused(load, tmp_path):
    corpus = load("emoji_corpus")
    package = corpus.PACKAGES["names"]
    (tmp_path / package.file).write_bytes(b"another")
    with pytest.raises(SystemExit, match="SHA-256 .*do not use it"):
        corpus.fetch(package, tmp_path)


def test_judges_tell_planted_styles_and_names_apart(load):
    """A name is a place in the picture, a style a texture. Catches labels in another order than means, and floors that
    are as good as the score."""
    scores = load("emoji_scores")
    rng = np.random.default_rng(0)
    places, textures = [(2, 2), (2, 18), (18, 2), (18, 18)], [1, 2, 4]
    images, names, styles = [], [], []
    for number in range(240):
        name, style = number % 4, number // 4 % 3
        image = np.ones((32, 32, 3))
        y, x = places[name]
        patch = (np.indices((12, 12)).sum(0) // textures[style]) % 2
        image[y : y + 12, x : x + 12] = patch[..., None] * rng.uniform(0.5, 0.9) + rng.normal(0, 0.05, (12, 12, 3))
        images.append(np.clip(image, 0, 1))
        names.append(f"n{name}")
        styles.append(f"s{style}")
    every = scores.Pictures(np.array(images, np.float32), np.array(names), np.array(styles), tuple(names))
    training, held = every.only(np.arange(240) >= 60), every.only(np.arange(60))
    style = scores.Discriminant.fit(scores.fine, training.images, training.styles)
    name = scores.Discriminant.fit(scores.coarse, training.images, training.names)
    found = scores.shares(style, name, held.images, held)
    assert found["style"] > 0.9 and found["name"] > 0.9 and found["both"] > 0.8
    assert found["style_floor"] < 0.6 and found["name_floor"] < 0.6
    assert scores.nearest(training.images[:3], training.images).max() < 1e-3
    assert scores.nearest(held.images, training.images).min() > 1e-3
