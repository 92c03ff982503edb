"""study.json and key.json: read back as written, and refused where a vote could count for the wrong image."""

import json

import pytest

from rfjax.compare.study_files import KEY, STUDY, read_key, read_study, write_study
from rfjax.errors import ConfigError


def test_a_study_is_read_as_it_was_written(made, tmp_path):
    study = read_study(made / "out")
    key = read_key(made / "out", study)
    write_study(tmp_path, study, key)
    assert read_study(tmp_path) == study and read_key(tmp_path, study) == key
    for name in (STUDY, KEY):
        assert (tmp_path / name).read_bytes() == (made / "out" / name).read_bytes()


def changed(part, value):
    return lambda content: content.__setitem__(part, value)


def in_pair(number, part, value):
    return lambda content: content["pairs"][number].__setitem__(part, value)


DAMAGE = (
    (changed("schema", 2), "has schema 2, and this rfjax reads 1"),
    (changed("study", "../../x"), "the study '../../x'; its id must be 16 hex digits"),
    (changed("raters", ["r01", "r01"]), "the rater 'r01' twice"),
    (changed("pairs", [{}]), r"pairs\[0\] has no images"),
    (changed("assigned", {"r01": []}), "assigns pairs to raters other than its own"),
    (changed("prompts", []), "the unknown prompt"),
    (changed("questions", []), "the unknown question"),
    (in_pair(0, "pair", "0" * 11), "the pair '00000000000'; its id must be 12 hex digits"),
    (in_pair(0, "images", ["0" * 12] * 2), "without two different images"),
    (in_pair(0, "images", ["0" * 12, "G" * 12]), "the image 'GGGGGGGGGGGG'"),
    (in_pair(0, "questions", ["prompt", "prompt"]), "the question 'prompt' twice"),
    (in_pair(0, "questions", ["beauty"]), "beauty"),
    (in_pair(0, "check", {}), "a check with neither or both"),
    (in_pair(0, "check", {"right": "0" * 12}), "the right image '000000000000'"),
    (in_pair(0, "check", {"repeats": "0" * 12}), "a repeat of 000000000000, which is no pair of the same images"),
)


def test_a_repeat_of_a_check_is_refused(made, tmp_path):
    """Catches a repeat of an answer that is known, which would tell nothing about the rater."""
    content = json.loads((made / "out" / STUDY).read_text())
    repeat = next(pair for pair in content["pairs"] if "repeats" in (pair["check"] or {}))
    again = repeat | {"pair": "0" * 12, "check": {"repeats": repeat["pair"]}}
    content["pairs"].append(again)
    (tmp_path / STUDY).write_text(json.dumps(content))
    with pytest.raises(
        ConfigError,
        match=f"has in the pair 000000000000 a repeat of {repeat['pair']}, which is no pair of the same images",
    ):
        read_study(tmp_path)


@pytest.mark.parametrize(("damage", "message"), DAMAGE, ids=[message[:30] for _, message in DAMAGE])
def test_a_damaged_study_is_refused_by_what_is_wrong(made, tmp_path, damage, message):
    content = json.loads((made / "out" / STUDY).read_text())
    damage(content)
    (tmp_path / STUDY).write_text(json.dumps(content))
    with pytest.raises(ConfigError, match=message):
        read_study(tmp_path)


def test_a_key_of_another_study_or_with_a_gap_is_refused(made, tmp_path):
    study = read_study(made / "out")
    content = json.loads((made / "out" / KEY).read_text())
    for part, value, message in (
        ("study", "0" * 16, "give the key of the study"),
        ("images", {}, "does not name the image"),
        ("runs", {}, "has an image of the unknown run"),
    ):
        (tmp_path / KEY).write_text(json.dumps(content | {part: value}))
        with pytest.raises(ConfigError, match=message):
            read_key(tmp_path, study)
    with pytest.raises(ConfigError, match="no file at .*study.json; give the folder that rfjax compare wrote"):
        read_study(tmp_path)
