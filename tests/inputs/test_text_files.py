"""Text files in the encodings that users have, and bytes that are no text."""

import os

import pytest

from rfjax.errors import ConfigError
from rfjax.inputs.text import UndecodableText, decode_text, read_text

WORDS = "Zoë’s café: a red cube\nand a blue one"


@pytest.mark.parametrize(
    ("encoding", "told"),
    [
        ("utf-8", "utf-8"),
        ("utf-8-sig", "utf-8"),
        ("utf-16", "utf-16-le"),
        ("utf-16-le", "utf-16-le"),
        ("utf-16-be", "utf-16-be"),
        ("utf-32", "utf-32-le"),
        ("windows-1252", "windows-1252"),
    ],
)
def test_the_encoding_is_recognised(encoding, told):
    text = decode_text(WORDS.encode(encoding))
    assert (text.text, text.encoding) == (WORDS, told)


@pytest.mark.parametrize("end", ["\r\n", "\r"])
def test_lines_end_alike(end):
    assert decode_text(WORDS.replace("\n", end).encode()).text == WORDS


@pytest.mark.parametrize(
    "data",
    [
        "красный куб".encode("cp1251"),
        "赤い立方体".encode("shift-jis"),
        "红色立方体".encode("gbk"),
        b"\x89PNG\r\n\x1a\n",
        b"a\0\0b\0c\0\0",
        b"a cat\0",
        "a cat".encode("utf-32-le"),
        "рыжий кот".encode("utf-16-le"),
    ],
)
def test_what_is_no_such_text_is_told(data):
    with pytest.raises(UndecodableText):
        decode_text(data)


@pytest.mark.parametrize(
    ("data", "text", "nuls"),
    [
        (b"a cat\0", "a cat", 1),
        (b"a cats\0", "a cats", 1),
        (b"cat\0", "cat", 1),
        (b"a cat\0 dog", "a cat  dog", 1),
        (b"a dog" + bytes(11), "a dog", 11),
        ("un café noir\0".encode(), "un café noir", 1),
        ("a cat\0".encode("utf-16"), "a cat", 1),
        ("a cat\0\0".encode("utf-16-le"), "a cat", 2),
        ("a cat".encode("utf-16-be"), "a cat", 0),
    ],
)
def test_zeros_that_end_a_text_do_not_make_it_utf16(data, text, nuls):
    """Catches C's string b"a cat\\0" that is read as Chinese."""
    found = decode_text(data, without_nuls=True)
    assert (found.text, found.nuls) == (text, nuls)


@pytest.mark.parametrize(
    "data", [b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", "a cat".encode("utf-32-le"), "рыжий кот".encode("utf-16-le"), b"a\0b"]
)
def test_zeros_of_no_text_are_never_taken_out(data):
    with pytest.raises(UndecodableText):
        decode_text(data, without_nuls=True)


def test_the_error_names_file_and_remedy(tmp_path):
    path = tmp_path / "prompts.txt"
    path.write_bytes("красный куб".encode("cp1251"))
    with pytest.raises(ConfigError, match=rf"--prompts {path} cannot be read: .*iconv"):
        read_text(path, "--prompts")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ConfigError, match="it is a pipe"):  # opening it would wait for ever
        read_text(tmp_path / "pipe", "--prompts")
    with pytest.raises(ConfigError, match="not there"):
        read_text(tmp_path / "absent", "--prompts")
