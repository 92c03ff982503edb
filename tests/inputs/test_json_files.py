"""JSON that is damaged, or of another shape than its reader expects."""

import json
from dataclasses import dataclass
from typing import Literal, NotRequired, Required, TypedDict

import pytest

from rfjax.errors import ConfigError, RfjaxError
from rfjax.inputs.json_files import WrongJson, check_json, parse_json, read_json, unknown_keys


class Start(TypedDict):
    step: int
    mesh: dict[str, int]


class Run(TypedDict):
    run: str
    rate: float
    parent: str | None
    starts: list[Start]
    kind: NotRequired[Literal["rf", "edm"]]


@dataclass(frozen=True)
class Facts:
    images: int
    source: Start | None = None


GOOD = {"run": "a", "rate": 1, "parent": None, "starts": [{"step": 2, "mesh": {"data": 1}}], "more": 3}


def test_good_json_is_taken_as_it_is():
    assert parse_json(json.dumps(GOOD), Run) == GOOD
    assert unknown_keys(GOOD, Run) == ["more"]
    assert check_json({"images": 3, "other": 1}, Facts) == Facts(3)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"run": 3}, "run must be a text and is 3"),
        ({"rate": "x"}, "rate must be a finite number and is the text 'x'"),
        ({"rate": True}, "rate must be a finite number and is true"),
        ({"rate": float("nan")}, "rate must be a finite number and is nan"),
        ({"rate": 10**400}, "rate must be a finite number"),
        ({"parent": []}, "parent must be a text or null and is a list"),
        ({"starts": {}}, "starts must be a list and is an object"),
        ({"starts": [{"step": 1.5, "mesh": {}}]}, r"starts\[0\].step must be a whole number"),
        ({"starts": [{"step": 2**63, "mesh": {}}]}, r"starts\[0\].step must be a whole number below"),
        ({"starts": [{"step": 1}]}, r"starts\[0\] has no mesh"),
        ({"starts": [{"step": 1, "mesh": {"data": None}}]}, r"starts\[0\].mesh.data must be .* and is null"),
        ({"kind": "vp"}, "kind must be one of rf, edm and is the text 'vp'"),
    ],
)
def test_the_wrong_key_is_named(change, says):
    with pytest.raises(WrongJson, match=says):
        check_json(GOOD | change, Run)


def test_a_wrong_key_inside_a_union_is_named():
    with pytest.raises(WrongJson, match="source.step must be"):
        check_json({"images": 1, "source": {"step": "x", "mesh": {}}}, Facts)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "it is empty"),
        (b"{", "it is no JSON"),
        (b"[" * 100_000, "nested more than 64 deep"),
        (b"[" * 100 + b"]" * 100, "nested more than 64 deep"),
        (b"3", "its content must be an object and is 3"),
        (b"\x89\xff\xfe\xff", "neither UTF-8"),
    ],
)
def test_a_damaged_file_is_named_with_the_remedy(tmp_path, content, says):
    path = tmp_path / "run.json"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=rf"{path} cannot be read: .*{says}.*; make it again"):
        read_json(path, Run, remedy="make it again", error=ConfigError)


def test_a_missing_file_is_the_callers_to_judge(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_json(tmp_path / "none.json")
    (tmp_path / "folder.json").mkdir()
    with pytest.raises(RfjaxError, match="a folder"):
        read_json(tmp_path / "folder.json")
    with pytest.raises(RfjaxError, match="cannot be read: it is file name too long"):  # nobody knows if it is there
        read_json(tmp_path / ("a" * 300))


def test_other_encodings_are_read(tmp_path):
    (tmp_path / "a.json").write_bytes(json.dumps(GOOD).encode("utf-16"))
    assert read_json(tmp_path / "a.json", Run) == GOOD


class Written(TypedDict, total=False):
    """Its annotations are text, as in modules with `from __future__ import annotations`."""

    step: "Required[int]"
    loss: "float | None"


def test_a_required_key_is_asked_for_where_annotations_are_text():
    assert check_json({"step": 1}, Written) == {"step": 1}
    with pytest.raises(WrongJson, match="it has no step"):
        check_json({"loss": 1.0}, Written)


def test_an_integer_of_too_many_digits_is_told_in_plain_words():
    with pytest.raises(WrongJson, match="^it has a number of too many digits$"):
        parse_json('{"a": ' + "9" * 5000 + "}")
