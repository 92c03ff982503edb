import pytest

from rfjax.errors import ConfigError
from rfjax.prepare.captions import CaptionColumns, NoText, clean, read_class_names, reading_notes, texts
from rfjax.prepare.filters import parse_filter


@pytest.mark.parametrize(
    "value, expected",
    [
        (b"  a cat\n", ("a cat",)),
        (["a cat", "a cat", "", None, "one more"], ("a cat", "one more")),
        ({"text": [b"one", b"two"]}, ("one", "two")),
        ([{"text": "one", "id": 1}, {"text": "two", "id": 2}], ("one", "two")),
        (None, ()),
        ("   ", ()),
        (b"caf\xe9", ("café",)),
        ("un café".encode("utf-16"), ("un café",)),
        (b"\xef\xbb\xbfa cat", ("a cat",)),
        ("\ufeffa cat", ("a cat",)),
        ('["a cat", "one cat"]', ("a cat", "one cat")),
        (b'{"caption": "a cat", "score": 3}', ("a cat",)),
        ("[a cat] on a mat", ("[a cat] on a mat",)),
        ("half a pair \ud83d", ("half a pair ?",)),
        ("猫が窓辺に座っている", ("猫が窓辺に座っている",)),
        ("قطة على النافذة 🐈", ("قطة على النافذة 🐈",)),
        (7, ("7",)),
        (7.0, ("7",)),  # pandas makes floats of a column of whole numbers with an empty cell
        (float("nan"), ()),  # and this of the empty cell
    ],
)
def test_captions_of_any_kind_and_script(value, expected):
    """Catches text that cannot be encoded later, in the middle of a million images."""
    assert texts(value) == expected
    assert all(text.encode() for text in texts(value))


@pytest.mark.parametrize("value", [True, [["a", "b"]], {"a": 1, "text": {"b": 2}}, [{"caption": "a"}], [b"a", {}]])
def test_what_is_no_text_is_no_caption(value):
    """Catches "['a', 'b']" and "True", the printed forms of values, as captions."""
    with pytest.raises(NoText):
        texts(value)


def test_a_class_becomes_the_papers_caption_one_for_each_of_its_names():
    names = {"n01440764": ("tench", "Tinca_tinca")}
    made = CaptionColumns(label="label", class_names=names)
    assert made.of({"label": "n01440764", "caption": "not this"}) == (
        ("a photo of a tench", "a photo of a Tinca tinca"),
        (),
    )
    assert made.of({"label": "n09999999"}) == ((), ())  # a class without a name has no caption
    assert made.of({}) == ((), ())
    assert CaptionColumns(label="folder").of({"folder": "golden_retriever"})[0] == ("a photo of a golden retriever",)
    assert CaptionColumns(label="label", class_names={"3": ("cat",)}, template="{}!").of({"label": 3})[0] == ("cat!",)


def test_original_and_synthetic_columns_are_kept_apart():
    columns = CaptionColumns(original="meta.alt", synthetic="recaption")
    assert columns.of({"meta": {"alt": "a"}, "recaption": ["b", "c"], "caption": "d"}) == (("a",), ("b", "c"))
    assert columns.of({"recaption": "b"}) == ((), ("b",))


def test_class_names_as_imagenet_and_as_json_give_them(tmp_path):
    lines, table = tmp_path / "names.txt", tmp_path / "names.json"
    lines.write_text("n01440764 tench, Tinca tinca\nn01443537 goldfish\n\n")
    table.write_text('{"n01440764": ["tench", "Tinca tinca"], "n01443537": "goldfish"}')
    assert (
        read_class_names(lines)
        == read_class_names(table)
        == {"n01440764": ("tench", "Tinca tinca"), "n01443537": ("goldfish",)}
    )
    wrong = {
        "n0 tench\nn1\n": "line 2: the class 'n1' has no name",
        "n0 tench\n\nn0 cat\n": "line 3: the class 'n0' occurs twice",
        "\n": "it names no class",
    }
    for text, words in wrong.items():
        lines.write_text(text)
        with pytest.raises(ConfigError, match=f"names.txt cannot be read: {words}"):
            read_class_names(lines)
    for text, words in {
        '{"n0": 5}': "n0 must be a text or a list",
        '{"n0": []}': "has no name",
        "{}": "no class",
    }.items():
        table.write_text(text)
        with pytest.raises(ConfigError, match=f"names.json cannot be read: .*{words}"):
            read_class_names(table)


COLUMNS = {
    "aesthetic": 5.0,
    "width": 300,
    "nsfw": "UNLIKELY",
    "watermark": False,
    "score": "6.5",
    "raw": b"7",
    "id": 2**60 + 5,
    "id_as_text": str(2**60 + 5),
    "nested": {"p": 0.1},
    "nan": float("nan"),
}


@pytest.mark.parametrize(
    "text, expected",
    [
        ("aesthetic>=5", None),
        ("aesthetic>5", "not aesthetic>5"),
        ("aesthetic < 5", "not aesthetic<5"),
        ("width<=300", None),
        ("width==300", None),
        ("width!=300", "not width!=300"),
        ("nsfw=='UNLIKELY'", None),
        ("nsfw==UNLIKELY", None),
        ("nsfw!=UNLIKELY", "not nsfw!=UNLIKELY"),
        ("watermark==false", None),
        ("watermark==true", "not watermark==true"),
        ("score>=6.5", None),  # numbers that a file keeps as text
        ("raw>6.9", None),
        ("nested.p<0.2", None),
        ("nan>=0", "lacks nan"),
        ("missing>=0", "lacks missing"),
        (f"id=={2**60 + 5}", None),  # a float would round it
        (f"id=={2**60 + 6}", f"not id=={2**60 + 6}"),
        (f"id<{2**60 + 6}", None),
        (f"id_as_text=={2**60 + 6}", f"not id_as_text=={2**60 + 6}"),
        ("width>=299.5", None),
        ("aesthetic==5", None),
        ("nsfw>=5", "nsfw is of another type"),
        ("watermark>=0", "watermark is of another type"),  # not "False is 0"
    ],
)
def test_filters_keep_what_holds(text, expected):
    assert parse_filter(text).refuses(COLUMNS) == expected


@pytest.mark.parametrize(
    "text", ["aesthetic", "aesthetic=5", "__import__('os')", "a>=", ">=5", "a>='x'", "a<true", "len(a)>3"]
)
def test_what_is_no_comparison_is_refused_and_never_run(text):
    with pytest.raises(ConfigError, match="--filter"):
        parse_filter(text)


def test_clean_text_has_no_nul():
    assert clean("a\0b") == "a b"


@pytest.mark.parametrize("value", [b"a cat\0", "a cat\0", ["a cat\0"], {"text": [b"a cat\0"]}, '["a cat\\u0000"]'])
def test_zeros_taken_out_of_a_caption_are_counted(value):
    """Catches a caption of a C string stored as Chinese, and one that is mended without a count."""
    assert texts(value) == ("a cat",)
    assert reading_notes(CaptionColumns(), {"caption": value}) == ["caption with NUL removed"]
