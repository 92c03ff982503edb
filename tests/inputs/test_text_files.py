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
    ],
)
def test_what_is_no_such_text_is_told(data):
    with pytest.raises(UndecodableText):
        decode_text(data)


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
