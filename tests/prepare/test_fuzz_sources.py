"""Random small sources of everything that users have in them. In each, what came in = what is kept + what is named.

No source ends in a traceback, and no picture gets another's caption: each picture's colour is named in its caption.
"""

import json
import random
import tarfile

import pytest

from helpers.coloured_pictures import COLOURS, colour_of, picture
from helpers.photographs import add_member
from rfjax.errors import RfjaxError
from rfjax.prepare.judge import judge
from rfjax.prepare.reading import Reading, open_captioned
from rfjax.prepare.recipe import Recipe
from rfjax.prepare.sources import Drop

NOT_FOR_IMAGES = "no image"  # a sample of a tar without one: nothing that came in as an image
ENCODINGS = ("utf-8", "utf-8-sig", "utf-16", "utf-16-be", "windows-1252", "cp1251", "shift-jis")
WORDS = {"cp1251": "куб", "shift-jis": "立方体", "windows-1252": "café"}
PICTURES = {colour: picture(colour, side=8) for colour in COLOURS}


def caption(rng, colour):
    """A caption's bytes; those of some encodings cannot be told."""
    encoding = rng.choice(ENCODINGS)
    return f"a {colour} {WORDS.get(encoding, 'cube')}{rng.choice(['', chr(10), chr(13) + chr(10)])}".encode(encoding)


def image_of(rng, colour):
    return b"\x89PNG broken" if rng.random() < 0.1 else PICTURES[colour]


def columns_of(rng, colour):
    """The bytes of a .json: good, of another type, torn, or nested a thousand deep."""
    good = json.dumps({"caption": f"{colour} by json", "n": 1}).encode()
    return rng.choice([good, good, good.decode().encode("utf-16"), b"[1]", b"{", b"[" * 1000 + b"]" * 1000, b""])


def write_folder(rng, root):
    """(images that are to be met, folders that are to be named as passed over)."""
    met, hidden, tables = 0, set(), {}
    for number in range(rng.randrange(1, 12)):
        folder = rng.choice(["", "a", "a/b", "ü", ".trash", "a/.ipynb_checkpoints", "__MACOSX"])
        colour, suffix = rng.choice(list(COLOURS)), rng.choice([".png", ".PNG", ".jpg", ".Webp"])
        stem = rng.choice(["{}", "v1.{}", "{} copy", "é{}"]).format(number)
        path = root / folder / f"{stem}{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(image_of(rng, colour))
        if "." in folder or "__" in folder:
            hidden.add(folder + "/")
            continue
        met += 1
        for beside in rng.sample([".txt", ".TXT", ".caption", ".json"], rng.randrange(3)):
            content = columns_of(rng, colour) if beside == ".json" else caption(rng, colour)
            (path.parent / f"{stem}{beside}").write_bytes(content)
        if rng.random() < 0.3:
            tables.setdefault(path.parent, []).append({"file_name": path.name, "text": f"{colour} by table"})
    for folder, rows in tables.items():
        lines = [*map(json.dumps, rows), *rng.choice([[], ["{"], ['{"file_name": "gone.png", "text": "x"}'], ["3"]])]
        (folder / "metadata.jsonl").write_text("\n".join(lines))
    if rng.random() < 0.3:
        (root / "loop").symlink_to(root)
    return met, hidden


def write_tar(rng, path):
    met, members = 0, []
    for number in range(rng.randrange(1, 10)):
        colour = rng.choice(list(COLOURS))
        key = rng.choice(["{}", "d/{}", "./{}", "v1.0_{}", "._{}", "é{}"]).format(number)
        content = PICTURES[colour]
        sample = [(f"{key}{rng.choice(['.png', '.JPG', '.input.png'])}", content)]
        if rng.random() < 0.2:
            sample.append((f"{key}{rng.choice(['.mask.png', '.webp'])}", PICTURES[rng.choice(list(COLOURS))]))
        if rng.random() < 0.1:
            sample.append(sample[0])
        met += len(sample)
        for suffix in rng.sample([".txt", ".caption", ".json"], rng.randrange(3)):
            sample.append((key + suffix, columns_of(rng, colour) if suffix == ".json" else caption(rng, colour)))
        members += rng.sample(sample, len(sample))
    if rng.random() < 0.3:
        rng.shuffle(members)
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT, encoding=rng.choice(["utf-8", "latin-1"])) as tar:
        for name, content in members:
            add_member(tar, name, content)
        if rng.random() < 0.2:
            add_member(tar, "link.png", b"", type=tarfile.SYMTYPE, linkname="0.png")
            met += 1
    return met, set()


def write_parquet(rng, path):
    import pyarrow
    import pyarrow.parquet

    colours = [rng.choice(list(COLOURS)) for _ in range(rng.randrange(1, 8))]
    images = [rng.choice([PICTURES[colour], PICTURES[colour], None, b"no image"]) for colour in colours]
    if rng.random() < 0.5:
        images = [{"bytes": image, "path": None} for image in images]
    texts = [rng.choice([f"a {c}", json.dumps([f"a {c}", f"{c}, sharp"]), None, "", f"\ufeffa {c}"]) for c in colours]
    name, column = rng.choice(["image", "jpg", "image_bytes"]), rng.choice(["caption", "text"])
    pyarrow.parquet.write_table(pyarrow.table({name: images, column: pyarrow.array(texts, pyarrow.string())}), path)
    return len(colours), set()


def check(seed, tmp_path):
    rng = random.Random(seed)
    kind = ("folder", "tar", "parquet")[seed % 3]
    if kind == "folder":
        where = tmp_path / "images"
        where.mkdir()
        met, hidden = write_folder(rng, where)
    else:
        where = tmp_path / f"a.{kind}"
        met, hidden = {"tar": write_tar, "parquet": write_parquet}[kind](rng, where)
    try:
        source, columns = open_captioned(Reading(source=str(where), shard_size=4))
    except RfjaxError as error:
        assert met == 0 and "no images in" in str(error), error
        return
    recipe, kept, dropped = Recipe(columns=columns, buckets=((8, 8),)), 0, 0
    for part in range(len(source.sizes)):
        for record in source.records(part):
            (found,) = judge(record, recipe)
            if isinstance(found, Drop):
                dropped += found.reason != NOT_FOR_IMAGES or kind == "parquet"
                continue
            kept += 1
            for text in found.original:
                assert colour_of(record.image) in text, (found.key, text)
    assert kept + dropped == met, f"{met} came in, {kept} are kept and {dropped} named"
    named = {name for names in source.passed_over.values() for name in names}
    assert hidden <= named | {folder for folder in hidden if any(folder.startswith(name) for name in named)}


@pytest.mark.parametrize("seed", range(30))
def test_what_came_in_is_kept_or_named(seed, tmp_path):
    check(seed, tmp_path)


@pytest.mark.full
@pytest.mark.parametrize("seed", range(30, 300))
def test_what_came_in_is_kept_or_named_in_hundreds(seed, tmp_path):
    check(seed, tmp_path)
