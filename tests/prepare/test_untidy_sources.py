"""Folders, tars and Parquet files as users have them: no picture gets another's caption, and nothing goes uncounted.

Every picture is of one colour, which its caption names.
"""

import json
import tarfile
from collections import Counter

import numpy as np
import pytest

from helpers.coloured_pictures import COLOURS, colour_of, picture
from helpers.photographs import add_member
from helpers.small_sources import write_parquet, write_tar
from rfjax.errors import ConfigError
from rfjax.prepare.judge import Kept, judge
from rfjax.prepare.reading import Reading, open_captioned
from rfjax.prepare.recipe import Recipe
from rfjax.prepare.sources import Drop


def judged(where, **options):
    """(captions by key of the images that are kept, drops by reason) of a source; every caption names its picture."""
    source, columns = open_captioned(Reading(source=str(where), shard_size=100, **options))
    recipe, kept, drops = Recipe(columns=columns, buckets=((16, 16),)), {}, Counter()
    for part in range(len(source.sizes)):
        for record in source.records(part):
            (found,) = judge(record, recipe)
            if isinstance(found, Drop):
                drops[found.reason] += 1
                continue
            assert isinstance(found, Kept)
            for caption in (*found.original, *found.synthetic):
                assert colour_of(record.image) in caption, (record.key, caption)
            kept[found.key] = found.original
    return kept, dict(drops)


PICTURES = {f"{n:03}": colour for n, colour in enumerate(COLOURS)}


def test_members_that_do_not_lie_side_by_side_find_each_other(tmp_path):
    """As `tar cf x.tar *.jpg *.txt` writes them: catches an image that is stored without its caption."""
    images = [(f"{key}.jpg", picture(colour, "JPEG")) for key, colour in PICTURES.items()]
    texts = [(f"{key}.txt", colour.encode()) for key, colour in PICTURES.items()]
    kept, drops = judged(write_tar(tmp_path / "a.tar", images + texts[::-1]))
    assert kept == {f"a/{key}": (colour,) for key, colour in PICTURES.items()} and not drops


def test_a_name_that_stands_twice_is_left_out_image_by_image(tmp_path):
    """Catches the blue picture under the red one's caption, and an image that is gone with "0 dropped"."""
    members = [("a.jpg", picture("red")), ("a.txt", b"red"), ("a.jpg", picture("blue")), ("a.txt", b"blue")]
    kept, drops = judged(write_tar(tmp_path / "a.tar", [*members, ("b.png", picture("green")), ("b.txt", b"green")]))
    assert kept == {"a/b": ("green",)} and drops == {"name that stands twice in the tar": 2}


@pytest.mark.parametrize("mask", ["a.png", "a.mask.png"])
def test_a_mask_is_never_stored_as_the_picture(tmp_path, mask):
    members = [(mask, picture("white")), ("a.jpg", picture("red")), ("a.txt", b"red")]
    kept, drops = judged(write_tar(tmp_path / "a.tar", members))
    assert not kept and drops == {"several images under one key": 2}


def test_dots_in_names_and_one_image_of_another_suffix(tmp_path):
    dotted = [(f"v1.0_{c}.{s}", b) for c in ("red", "blue") for s, b in (("jpg", picture(c)), ("txt", c.encode()))]
    others = [("x.input.jpg", picture("green")), ("x.txt", b"green"), ("./y.JPG", picture("red")), ("./y.TXT", b"red")]
    kept, drops = judged(write_tar(tmp_path / "a.tar", dotted + others))
    assert kept == {"a/v1.0_red": ("red",), "a/v1.0_blue": ("blue",), "a/x": ("green",), "a/y": ("red",)}
    assert not drops


def test_names_of_tars_that_are_no_utf8_and_hidden_members(tmp_path):
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT, encoding="latin-1") as tar:
        add_member(tar, "caf\xe9.jpg", picture("red"))
        add_member(tar, "._b.jpg", b"resource fork")
        add_member(tar, "b.jpg", picture("blue"))
        add_member(tar, "b.txt", b"blue")
    kept, drops = judged(path)
    assert kept == {"a/b": ("blue",)} and drops == {"name that is not UTF-8": 1, "hidden file": 1}


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "windows-1252"])
def test_captions_in_other_encodings(tmp_path, encoding):
    (tmp_path / "a.png").write_bytes(picture("red"))
    (tmp_path / "a.txt").write_bytes("a red café".encode(encoding))
    (tmp_path / "b.png").write_bytes(picture("blue"))
    (tmp_path / "b.txt").write_bytes("синий blue куб".encode("cp1251"))
    kept, drops = judged(tmp_path)
    assert kept == {"a.png": ("a red café",)} and drops == {"caption in no encoding that can be told": 1}


def test_hidden_copies_are_not_read_and_links_are(tmp_path):
    root, elsewhere = tmp_path / "images", tmp_path / "elsewhere"
    for folder in (root / "red", root / ".ipynb_checkpoints", root / "red" / ".trash", elsewhere):
        folder.mkdir(parents=True)
        (folder / "a.png").write_bytes(picture("red"))
    (root / "red" / "linked").symlink_to(elsewhere)
    source, _ = open_captioned(Reading(source=str(root), shard_size=9))
    assert source.parts == (("red/a.png", "red/linked/a.png"),)
    assert source.passed_over == {"hidden folders": (".ipynb_checkpoints/", "red/.trash/")}


@pytest.mark.parametrize("form", ["jsonl", "csv"])
def test_a_table_of_metadata_beside_the_images(tmp_path, form):
    """The layout of Hugging Face's imagefolder; a .txt beside an image says more than the table."""
    for name, colour in (("a.png", "red"), ("b.png", "blue"), ("c.png", "green"), ("d.png", "white")):
        (tmp_path / "train").mkdir(exist_ok=True)
        (tmp_path / "train" / name).write_bytes(picture(colour))
    (tmp_path / "train" / "c.caption").write_text("green, by hand")
    rows = [("a.png", "a red one"), ("b.png", "a blue one"), ("c.png", "from the table"), ("gone.png", "gone")]
    if form == "csv":
        text = "file_name,text\n" + "".join(f'{name},"{said}"\n' for name, said in rows)
    else:
        text = "".join(json.dumps({"file_name": name, "text": said}) + "\n" for name, said in rows) + "{torn\n"
    (tmp_path / "train" / f"metadata.{form}").write_text(text)
    kept, drops = judged(tmp_path)
    expected = {"train/a.png": "a red one", "train/b.png": "a blue one", "train/c.png": "green, by hand"}
    assert kept == {key: (caption,) for key, caption in expected.items()} and drops == {"no caption": 1}
    source, _ = open_captioned(Reading(source=str(tmp_path), shard_size=9))
    assert source.passed_over["rows of metadata that name no image"] == ("train/gone.png",)
    assert ("rows of train/metadata.jsonl that cannot be read" in source.passed_over) == (form == "jsonl")


def test_parquet_files_of_one_set_that_differ(tmp_path):
    """Other image columns in other files; captions as JSON text; files in a folder of the folder."""
    write_parquet(tmp_path / "data" / "a.parquet", {"image": [picture("red")], "text": ['["a red one", "red"]']})
    write_parquet(tmp_path / "data" / "b.parquet", {"jpg": [picture("blue")], "text": ["a blue one"]})
    kept, drops = judged(tmp_path)
    assert kept == {"a/000000000": ("a red one", "red"), "b/000000000": ("a blue one",)} and not drops


def test_classes_whose_names_stand_in_the_schema(tmp_path):
    about = {"label": {"_type": "ClassLabel", "names": ["red", "blue"]}, "image": {"_type": "Image"}}
    columns = {"image": [picture("blue"), picture("red")], "label": np.array([1, 0])}
    write_parquet(tmp_path / "a.parquet", columns, about)
    kept, _ = judged(tmp_path)
    assert kept == {"a/000000000": ("a photo of a blue",), "a/000000001": ("a photo of a red",)}


def test_parquet_files_whose_images_would_have_equal_keys_are_refused(tmp_path):
    for folder in ("x", "y"):
        write_parquet(tmp_path / folder / "a.parquet", {"image": [picture("red")], "text": ["red"]})
    with pytest.raises(ConfigError, match="several files a.parquet.*rename"):
        judged(tmp_path)


def test_pictures_of_other_formats_and_captions_without_a_picture_are_named(tmp_path):
    """Catches a set that shrinks by its HEIC files in silence, and a captions.json that nobody reads."""
    for name in ("a.png", "b.JPE", "c.jfif"):
        (tmp_path / name).write_bytes(picture("red"))
    for name in ("d.heic", "e.AVIF", "f.mp4", ".g.heic", "captions.json", "gone.txt"):
        (tmp_path / name).write_text("{}")
    source, _ = open_captioned(Reading(source=str(tmp_path), shard_size=4, label_column="folder"))
    assert source.sizes == [3]
    assert source.passed_over == {
        "files of formats that are not read": ("d.heic", "e.AVIF", "f.mp4"),
        "files of captions beside no image": ("captions.json", "gone.txt"),
    }


def test_a_picture_of_another_format_in_a_tar_is_named(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for name in ("a.png", "b.heic"):
            add_member(tar, name, picture("red"))
        add_member(tar, "a.txt", b"red")
    source, _ = open_captioned(Reading(source=str(tmp_path / "a.tar"), shard_size=4))
    found = list(source.records(0))
    assert [type(each).__name__ for each in found].count("Record") == 1
    assert [(each.reason, each.detail) for each in found if isinstance(each, Drop)] == [
        ("files of formats that are not read", ".heic")
    ]


@pytest.mark.parametrize(
    ("name", "remedy"), [("a.zip", "unpack"), ("a.tar.gz", "as .tar"), ("x.arrow", "to_parquet"), ("data.mdb", "tars")]
)
def test_a_folder_of_another_kind_is_answered_with_the_remedy(tmp_path, name, remedy):
    (tmp_path / name).write_bytes(b"x")
    with pytest.raises(ConfigError, match=f"no images in .*; it has {name}: .*{remedy}"):
        open_captioned(Reading(source=str(tmp_path), shard_size=4))


def test_what_lies_beside_tars_is_named(tmp_path):
    """Catches archives and tables beside the tars that nobody reads, and x.TAR counted as an image that is not read."""
    for name in ("a.tar", "b.TAR"):
        write_tar(tmp_path / name, [("a.png", picture("red")), ("a.txt", b"red")])
    others = ("c.tar.gz", "d.tgz", "e.zip", "f.parquet", "g.csv")
    for name in others:
        (tmp_path / name).write_bytes(b"x")
    source, _ = open_captioned(Reading(source=str(tmp_path), shard_size=9))
    assert source.kind == "webdataset" and len(source.sizes) == 2
    assert source.passed_over == {"files of formats that are not read": others}


@pytest.mark.parametrize(
    ("content", "reason", "words"),
    [
        (b"", "rest of a broken tar", "a.tar: it is empty"),
        (b"no tar" * 99, "rest of a broken tar", "a.tar: ReadError: file could not be opened"),
        (bytes(10240), "tar of nothing that is read", "neither images nor captions"),
    ],
)
def test_a_tar_of_nothing_is_one_line(tmp_path, content, reason, words):
    """Catches the key a/None with five lines, and an empty tar that is not named at all."""
    (tmp_path / "a.tar").write_bytes(content)
    source, _ = open_captioned(Reading(source=str(tmp_path / "a.tar"), shard_size=9))
    (found,) = source.records(0)
    assert (found.key, found.reason) == ("a.tar", reason) and words in found.detail and "\n" not in found.detail


def test_several_captions_of_one_key_in_a_tar(tmp_path):
    """Catches the last of several .txt files taken for the caption; `a.txt` is, whatever `a.ocr.txt` is."""
    members = [("a.png", picture("red")), ("a.txt", b"red"), ("a.ocr.txt", b"nothing")]
    members += [("b.png", picture("blue")), ("b.txt", b"blue"), ("b.TXT", b"BLUE")]
    members += [("c.png", picture("red")), ("c.x.txt", b"red"), ("c.y.txt", b"none")]
    kept, drops = judged(write_tar(tmp_path / "a.tar", members))
    assert kept == {"a/a": ("red",)} and drops == {"several captions or .json files under one key": 2}
