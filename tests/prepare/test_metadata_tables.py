"""Tables of metadata as users write them: no image gets another's or half a caption, and each row left out is named."""

import csv

import pytest

from rfjax.errors import ConfigError
from rfjax.prepare.reading import Reading, open_captioned
from rfjax.prepare.sources import folder
from rfjax.prepare.sources.metadata_tables import AGAIN, LONG, UNCLOSED, read_table, read_tables

IMAGES = {"a.png", "b.png", "c.png", "s/d.png"}


def captions(text, table="metadata.csv"):
    """(captions by image, rows left out by reason)."""
    found = read_table(text, table, IMAGES)
    return {path: row["caption"] for path, row in found.columns.items()}, dict(found.unread)


def test_a_row_with_more_cells_than_the_header_is_left_out():
    """Catches a caption that an unquoted comma cuts short, and a rating that is a piece of the caption."""
    text = 'file_name,caption,score\na.png,a cat, on a mat,5\nb.png,"a dog, quoted",6,\nc.png,short\n'
    assert captions(text) == ({"b.png": "a dog, quoted", "c.png": "short"}, {LONG: ["line 2"]})
    assert read_table(text, "metadata.csv", IMAGES).columns["b.png"]["score"] == "6"


@pytest.mark.parametrize("end", ["", '\ns/d.png,"closed"', '\ns/d.png,"closed'])
def test_a_quote_that_is_not_closed_swallows_no_row(end):
    """Catches the rows after the quote, gone in silence inside one caption."""
    found, unread = captions(f'file_name,caption\na.png,"a cat\nb.png,a dog\nc.png,"two\nlines"{end}\n')
    assert found == {"b.png": "a dog", "c.png": "two\nlines"} | ({"s/d.png": "closed"} if end.endswith('"') else {})
    assert unread == {UNCLOSED: ["line 2"] + (["line 6"] if end.endswith("d") else [])}


def test_a_quote_before_an_images_row_that_a_later_quote_closes():
    found, unread = captions('file_name,caption\na.png,"a cat\nb.png,a dog"\nc.png,a bird\n')
    assert found == {"b.png": 'a dog"', "c.png": "a bird"} and unread == {UNCLOSED: ["line 2"]}


def test_cells_of_any_length_and_names_with_blanks():
    """Catches `field larger than field limit`, and a header of which one column is " caption"."""
    before = csv.field_size_limit()
    found, _ = captions(f'file_name, caption \na.png, {"word " * 30_000}\nb.png , "a dog, quoted"\n')
    assert len(found["a.png"]) == 150_000 and found["b.png"] == "a dog, quoted"
    assert csv.field_size_limit() == before


def test_an_image_that_is_named_again_keeps_its_first_row():
    assert captions("file_name,caption\na.png,one\na.png,two\n") == ({"a.png": "one"}, {AGAIN: ["line 3"]})


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("metadata.csv", "file_name;caption\na.png;a cat\n", "it has file_name;caption, separated by ';'"),
        ("metadata.csv", "image,text\na.png,a cat\n", "metadata.csv (it has image, text)"),
        ("metadata.jsonl", '{"image": "a.png", "text": "a cat"}\n', "metadata.jsonl (it has image, text)"),
        ("metadata.csv", "", "metadata.csv (it has none)"),
    ],
)
def test_a_table_without_file_name_is_named_with_its_columns(tmp_path, name, text, words):
    """Catches a table that is read as nothing, image by image."""
    (tmp_path / name).write_text(text)
    found = read_tables(tmp_path, [name], IMAGES)
    assert not found.columns and list(found.left_out) == ["tables of metadata without a column file_name"]
    assert words in found.left_out["tables of metadata without a column file_name"][0]


def test_a_table_without_captions_is_noticed_with_its_columns(tmp_path):
    (tmp_path / "metadata.csv").write_text("file_name,Text\na.png,a cat\n")
    reason = "tables of metadata without a column of captions"
    assert read_tables(tmp_path, ["metadata.csv"], IMAGES).noticed == {
        reason: ("metadata.csv (it has file_name, Text)",)
    }
    assert not read_tables(tmp_path, ["metadata.csv"], IMAGES, "Text").noticed


def test_two_tables_that_name_one_image_are_counted(tmp_path):
    """Catches a caption that another table replaces in silence; the table nearest to the image counts, always."""
    tables = {
        "metadata.csv": "file_name,caption\na.png,csv\nb.png,both\ns/d.png,above\n",
        "metadata.jsonl": '{"file_name": "a.png", "caption": "jsonl"}\n{"file_name": "b.png", "caption": "both"}\n',
        "s/metadata.csv": "file_name,caption\nd.png,beside\n",
    }
    (tmp_path / "s").mkdir()
    for name, text in tables.items():
        (tmp_path / name).write_text(text)
    for order in (tables, [*tables][::-1]):
        found = read_tables(tmp_path, order, IMAGES)
        assert {path: row["caption"] for path, row in found.columns.items()} == {
            "a.png": "jsonl",
            "b.png": "both",
            "s/d.png": "beside",
        }
        assert found.left_out == {
            "rows of metadata.csv whose image metadata.jsonl names, too": ("a.png",),
            "rows of metadata.csv whose image s/metadata.csv names, too": ("s/d.png",),
        }


def opened(root, names, **options):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"x")
    return open_captioned(Reading(source=str(root), shard_size=9, **options))[0]


def test_tables_and_archives_that_are_not_read_are_named(tmp_path):
    """Catches captions.csv, Metadata.csv, train/metadata.parquet and a .zip of more images, passed over in silence."""
    tables = [
        "Metadata.csv",
        "captions.csv",
        "captions.jsonl",
        "captions.tsv",
        "s/METADATA.JSONL",
        "s/metadata.parquet",
    ]
    found = opened(tmp_path, ["a.png", "s/d.png", *tables, "more.zip", "s/more.tar", "more.tar.gz"])
    (reason, names), (unread, files) = sorted(found.passed_over.items(), reverse=True)
    assert "rename to metadata.csv or metadata.jsonl" in reason and sorted(names) == tables
    assert unread == "files of formats that are not read" and files == ("more.tar.gz", "more.zip", "s/more.tar")


def test_files_that_several_images_share_and_files_of_one_name_are_named(tmp_path):
    """Catches one caption for two pictures, and a case.TXT that case.txt hides."""
    found = opened(tmp_path, ["cat.jpg", "cat.png", "cat.txt", "case.png", "case.txt", "case.TXT"])
    assert found.noticed == {folder.SHARED: ("cat.txt",)}
    assert found.passed_over == {folder.OTHER_CASE: ("case.TXT",)}


def test_metadata_in_parquet_at_the_top_is_answered_with_the_remedy(tmp_path):
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.table({"file_name": ["a.png"], "text": ["a"]}), tmp_path / "metadata.parquet")
    (tmp_path / "a.png").write_bytes(b"x")
    with pytest.raises(ConfigError, match="no column of images.*write it as metadata.jsonl.*folder:"):
        open_captioned(Reading(source=str(tmp_path), shard_size=9))
