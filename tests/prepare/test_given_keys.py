"""Keys to drop and keys of captions that name no image are counted and named, for sources of every kind."""

import json

import pytest

from helpers.coloured_pictures import picture
from helpers.small_sources import write_parquet, write_tar
from rfjax.prepare import given_keys
from rfjax.prepare.clips import ClipRule
from rfjax.prepare.reading import Reading, open_captioned
from rfjax.prepare.work import counted_names, say_passed_over


def write(kind, root):
    """The keys of two images in a source of a kind."""
    if kind == "folder":
        for name in ("a.png", "b.png"):
            (root / name).write_bytes(b"x")
        return ["a.png", "b.png"]
    if kind == "parquet":
        write_parquet(root / "x.parquet", {"image": [b"a", b"b"], "text": ["red", "red"]})
        return ["x/000000000", "x/000000001"]
    write_tar(root / "x.tar", [("a.png", picture("red")), ("a.txt", b"red"), ("b.png", picture("red"))])
    return ["x/a", "x/b"]


@pytest.mark.parametrize("kind", ["folder", "parquet"])
def test_keys_that_name_no_image_are_noticed_before_the_work(tmp_path, kind, capsys):
    """Catches a list of keys of which some name nothing, such as `./a.png` and `a.png,reason`."""
    first, second = write(kind, tmp_path)
    source, _ = open_captioned(Reading(source=str(tmp_path), shard_size=1))
    given = {"--drop-keys": {f"./{first}": "", second: "", f"{first},why": ""}, "--synthetic-captions": {first: ()}}
    found = given_keys.known_before(source, given)
    assert found == {"--drop-keys": (f"./{first}", f"{first},why")}
    noticed = given_keys.noticing(source, found)
    assert counted_names(noticed, "noticed")["keys of --drop-keys that name no image"] == 2
    say_passed_over(noticed)
    assert f"noticed: 2 keys of --drop-keys that name no image: ./{first}, {first},why" in capsys.readouterr().err


def test_keys_to_drop_of_tars_are_told_by_what_was_dropped(tmp_path):
    first, second = write("tar", tmp_path)
    source, _ = open_captioned(Reading(source=str(tmp_path), shard_size=1))
    assert given_keys.known_before(source, {"--drop-keys": {"x": ""}}) == {}
    (tmp_path / "s.dropped.jsonl").write_text(json.dumps({"key": first, "reason": "listed", "detail": ""}) + "\n")
    assert given_keys.known_after(source, tmp_path, ["s"], {first: "", "x/z": ""}) == ("x/z",)
    assert given_keys.known_after(source, tmp_path, ["s", "gone"], {"x/z": ""}) == ()
    # A file that is dropped whole, say because it is damaged, has one row.
    clips, keys = ClipRule(frames=4, most=3), dict.fromkeys((f"{first}#1", f"{second}#1"))
    assert given_keys.known_after(source, tmp_path, ["s"], keys, clips) == (f"{second}#1",)


@pytest.mark.parametrize("kind", ["folder", "tar"])
def test_captions_of_no_image_are_noticed(tmp_path, kind):
    first, second = write(kind, tmp_path)
    rows = [{"key": first, "caption": "red"}, {"key": "nope", "caption": "lost"}]
    given = tmp_path.with_name(f"{tmp_path.name}.jsonl")
    given.write_text("".join(json.dumps(row) + "\n" for row in rows))
    source, _ = open_captioned(Reading(source=str(tmp_path), shard_size=9, synthetic_captions=given))
    before = given_keys.known_before(source, {"--synthetic-captions": source.captions.all})
    assert before == ({"--synthetic-captions": ("nope",)} if kind == "folder" else {})
    assert given_keys.captions_known_after(source) == ()  # nothing is read yet
    assert [record.key for record in source.records(0)] == [first, second]
    assert given_keys.captions_known_after(source) == (() if kind == "folder" else ("nope",))
    unmet = {"--synthetic-captions": ("nope",)}
    assert list(given_keys.noticing(source, unmet).noticed.values())[-1] == ("nope",)


def test_joined_captions_leave_a_folders_name_askable(tmp_path):
    """Catches --label-column=folder beside --synthetic-captions, which ended in an AttributeError."""
    write("folder", tmp_path)
    given = tmp_path.with_name(f"{tmp_path.name}.jsonl")
    given.write_text('{"key": "a.png", "caption": "red"}')
    source, _ = open_captioned(Reading(source=str(tmp_path), shard_size=9, synthetic_captions=given))
    assert source.root_name == tmp_path.name
