"""The four kinds of source give the same records, and count what is wrong in them."""

import json
import tarfile

import pytest

from helpers import photographs
from helpers.photographs_tfds import write_tfds
from rfjax.errors import ConfigError, RfjaxError
from rfjax.prepare.captions import column, texts
from rfjax.prepare.sources import Drop, Record, open_source

NAMES = tuple(photographs.FILES)[:7]


def opened(where, shard_size=3, caption_column=None):
    return open_source(str(where), shard_size=shard_size, caption_column=caption_column)


def everything(source):
    return [record for part in range(len(source.sizes)) for record in source.records(part)]


def content(records):
    """The content in which all kinds of source must agree."""
    return [
        (record.image, texts(column(record.metadata, "caption")), record.metadata["aesthetic"]) for record in records
    ]


def test_the_four_sources_give_the_same_records(tmp_path):
    """Catches another image's caption, lost columns, images encoded a second time, and another order."""
    sources = {
        "folder": opened(photographs.write_folder(tmp_path / "folder", sorted(NAMES))),
        "webdataset": opened(photographs.write_tars(tmp_path / "tars", sorted(NAMES), each=3)),
        "parquet": opened(photographs.write_parquet(tmp_path / "a.parquet", sorted(NAMES), rows_a_group=2)),
        "tfds": opened(f"tfds:{write_tfds(tmp_path / 'tfds', sorted(NAMES))}"),
    }
    expected = [
        (photographs.encoded(name), (photographs.FILES[name][1],), photographs.columns(name)["aesthetic"])
        for name in sorted(NAMES)
    ]
    for kind, source in sources.items():
        assert source.kind == kind
        assert content(everything(source)) == expected, kind


@pytest.mark.parametrize("rows_a_group", [1, 2, 3, 100])
def test_parts_of_parquet_cut_across_its_row_groups(tmp_path, rows_a_group):
    """Catches rows lost, repeated or keyed wrongly where a part starts inside a group."""
    source = opened(photographs.write_parquet(tmp_path / "a.parquet", NAMES, rows_a_group))
    assert list(source.sizes) == [3, 3, 1]
    records = [list(source.records(part)) for part in (2, 1, 0)]
    assert [record.key for part in records for record in part] == [f"a/{n:09}" for n in (6, 3, 4, 5, 0, 1, 2)]
    assert [r.image for r in records[1]] == [photographs.encoded(name) for name in NAMES[3:6]]


def test_a_part_says_how_much_of_it_is_done(tmp_path):
    for where in (photographs.write_folder(tmp_path / "f", NAMES), photographs.write_tars(tmp_path / "t", NAMES)):
        source = opened(where)
        for part, size in enumerate(source.sizes):
            done = [record.done for record in source.records(part)]
            assert done == sorted(done) and 0.8 * size <= done[-1] <= size


def test_members_that_climb_out_of_a_tar_are_counted_and_never_read(tmp_path):
    """Catches a name joined to a folder, a link followed, and a drop that takes its neighbours along."""
    path, name = tmp_path / "00000.tar", NAMES[0]
    with tarfile.open(path, "w") as tar:
        for stem in ("../../escaped", "/etc/absolute", "a/../../up", "good", "in/folder"):
            photographs.add_member(tar, f"{stem}.png", photographs.encoded(name))
            photographs.add_member(tar, f"{stem}.txt", b"a caption")
        photographs.add_member(tar, "link.png", b"", type=tarfile.SYMTYPE, linkname="/etc/hostname")
        photographs.add_member(tar, "hard.png", b"", type=tarfile.LNKTYPE, linkname="good.png")
        photographs.add_member(tar, "device.png", b"", type=tarfile.CHRTYPE)
        photographs.add_member(tar, "lonely.txt", b"no image here")
        photographs.add_member(tar, "odd.png", photographs.encoded(name))
        photographs.add_member(tar, "odd.json", b"[1, 2")
    records = everything(opened(path))
    assert [record.key for record in records if isinstance(record, Record)] == ["00000/good", "00000/in/folder"]
    dropped = [(record.reason, record.key) for record in records if isinstance(record, Drop)]
    assert sum(reason == "unsafe member of a tar" for reason, _ in dropped) == 9
    assert ("no image", "00000/lonely") in dropped and ("unreadable", "00000/odd") in dropped
    assert not list(tmp_path.rglob("escaped*")) and len(list(tmp_path.iterdir())) == 1


def test_the_rest_of_a_broken_tar_is_one_drop_and_what_came_before_is_kept(tmp_path):
    path = photographs.write_tars(tmp_path, NAMES) / "00000.tar"
    whole = path.read_bytes()
    path.write_bytes(whole[: int(0.6 * len(whole))])
    records = everything(opened(path))
    kept = [record for record in records if isinstance(record, Record)]
    assert 2 <= len(kept) < len(NAMES)
    assert [record.reason for record in records if isinstance(record, Drop)] == ["rest of a broken tar"]
    path.write_bytes(b"no tar at all" * 100)
    assert [record.reason for record in everything(opened(path))] == ["rest of a broken tar"]


def test_sidecars_that_cannot_be_read_drop_their_image_alone(tmp_path):
    root = photographs.write_folder(tmp_path, NAMES[:3])
    (root / "sub" / f"{NAMES[0]}.json").write_text("{")
    (root / "sub" / f"{NAMES[1]}.json").write_text("[]")
    (root / "sub" / f"{NAMES[2]}.txt").unlink()
    found = {record.key: record for record in everything(opened(root))}
    assert [type(found[f"sub/{name}.png"]) for name in NAMES[:3]] == [Drop, Drop, Record]
    assert "caption" not in found[f"sub/{NAMES[2]}.png"].metadata


def test_captions_of_tfds_may_be_several_or_a_class(tmp_path):
    """A class is a number, and the source has the names; TFDS names ImageNet's classes by WordNet ids."""
    several = opened(f"tfds:{write_tfds(tmp_path / 'a', NAMES[:2], 'captions')}")
    first = everything(several)[0]
    assert texts(column(first.metadata, "captions")) == (photographs.FILES[NAMES[0]][1], f"{NAMES[0]} again")
    classes = opened(f"tfds:{write_tfds(tmp_path / 'b', NAMES[:2], 'label')}")
    assert classes.label == "label" and tuple(classes.class_names) == ("tabby_cat", "n02123045")
    assert everything(classes)[0].metadata["label"] == len(NAMES[0]) % 2


def test_tfds_stored_as_tfrecord_is_refused_with_the_command_that_converts_it(tmp_path):
    version = write_tfds(tmp_path, NAMES[:2])
    info = version / "dataset_info.json"
    about = json.loads(info.read_text())
    for split in about["splits"]:
        split["filepathTemplate"] = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"
    info.write_text(json.dumps(about | {"fileFormat": "tfrecord"}))
    with pytest.raises(ConfigError, match="tfds convert_format .*--out_file_format=array_record"):
        opened(f"tfds:{version}")


def test_what_is_no_source_is_refused_by_name(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 not")
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.table({"text": ["a"]}), tmp_path / "text.parquet")
    for where, words in (
        (tmp_path / "nowhere", "no source at"),
        (tmp_path / "empty", "no images in"),
        (f"webdataset:{tmp_path / 'empty'}", r"no \*.tar at"),
        (tmp_path / "bad.parquet", "bad.parquet cannot be read"),
        (tmp_path / "text.parquet", "no column of images.*it has text"),
        ("tfds:no_such_builder", "tfds:no_such_builder"),
    ):
        with pytest.raises(RfjaxError, match=words):
            opened(where)


def test_a_listing_changes_with_what_there_is(tmp_path):
    """Catches a resumed preparation whose parts have shifted because an image was added."""
    root = photographs.write_folder(tmp_path, NAMES[:3])
    before = opened(root).listing
    assert opened(root).listing == before
    photographs.write_folder(root, NAMES[3:4])
    assert opened(root).listing != before
