"""Images of any folder find their prompts, and what is missing is named."""

import json

import pytest
from PIL import Image

from rfjax.compare import pictures
from rfjax.compare.sides import Side, find_images
from rfjax.compare.study_files import Prompt
from rfjax.errors import ConfigError

PROMPTS = [Prompt(2, "a red cube"), Prompt(7, "a star")]
LAYOUTS = {
    "numbers": {"2.png": None, "00007-0.png": None, "00007-1.png": None},
    "texts": {"a.png": None, "a.txt": "a star\n", "b.png": None, "b.txt": "a  red cube"},
    "compbench": {"samples/a red cube_000000.png": None, "samples/a star_000001.png": None},
    "geneval": {
        "00000/samples/0000.png": None,
        "00000/metadata.jsonl": json.dumps(
            {"tag": "colors", "prompt": "a star", "include": [{"class": "a", "count": 1}]}
        ),
        "00001/samples/0000.png": None,
        "00001/metadata.jsonl": json.dumps(
            {"tag": "colors", "prompt": "a red cube", "include": [{"class": "a", "count": 1}]}
        ),
        "00001/grid.png": None,
    },
    "manifest": {"2.png": None, "7.png": None, "images.json": json.dumps({"2.png": "a star", "7.png": "a red cube"})},
}
FOUND = {
    "numbers": {2: "2.png", 7: "00007-0.png"},
    "texts": {2: "b.png", 7: "a.png"},
    "compbench": {2: "samples/a red cube_000000.png", 7: "samples/a star_000001.png"},
    "geneval": {2: "00001/samples/0000.png", 7: "00000/samples/0000.png"},
    "manifest": {2: "7.png", 7: "2.png"},
}


def write(folder, files):
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        if content is None:
            Image.new("RGB", (4, 4)).save(folder / name)
        else:
            (folder / name).write_text(content)
    return Side("side", folder)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_an_image_finds_its_prompt(tmp_path, layout):
    found, lines = find_images(write(tmp_path, LAYOUTS[layout]), PROMPTS)
    assert {place: path.relative_to(tmp_path).as_posix() for place, path in found.items()} == FOUND[layout]
    assert len(lines) == (layout == "numbers")


def test_missing_images_are_named(tmp_path):
    side = write(tmp_path, {"2.png": None, "9.png": None})
    with pytest.raises(ConfigError, match=r"no image of 1 of the 2 prompts: 7 \('a star'\)"):
        find_images(side, PROMPTS)
    with pytest.raises(ConfigError, match="has no images .* and is no run"):
        find_images(Side("x", write(tmp_path / "empty", {"a.txt": "x"}).folder), PROMPTS)
    (tmp_path / "images.json").write_text('{"gone.png": "a star"}')
    with pytest.raises(ConfigError, match="names 'gone.png', and there is no such image"):
        find_images(side, PROMPTS)


def test_an_image_keeps_its_pixels_and_nothing_else(tmp_path):
    """Catches EXIF, PNG text or a colour profile that goes into the page, and a small image that loses detail."""
    image = Image.effect_noise((40, 30), 90).convert("RGB")
    exif = image.getexif()
    exif[0x010E] = "SECRET"
    image.save(tmp_path / "a.jpg", exif=exif, icc_profile=b"SECRET" * 30, quality=95)
    made = pictures.webp(pictures.read(tmp_path / "a.jpg"), 90)
    assert b"SECRET" not in made and b"EXIF" not in made and b"ICCP" not in made
    (tmp_path / "a.webp").write_bytes(made)
    assert list(pictures.read(tmp_path / "a.webp").tobytes()) == list(pictures.read(tmp_path / "a.jpg").tobytes())
    assert pictures.noise(b"ab", (40, 30)).tobytes() != pictures.noise(b"ac", (40, 30)).tobytes()
    (tmp_path / "bad.png").write_bytes(b"no image")
    with pytest.raises(ConfigError, match="bad.png cannot be read"):
        pictures.look_at(tmp_path / "bad.png", "bad.png")
