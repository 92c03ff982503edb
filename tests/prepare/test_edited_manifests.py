"""Files beside the shards that were edited or damaged: refused, told by `rfjax inspect`, or of no effect."""

import dataclasses
import json
import shutil
from collections import Counter

import numpy as np
import pytest

from helpers.stand_ins import ENCODERS, StandIns, data_config, prepare
from rfjax.cli import main
from rfjax.data.corpus import load_corpus
from rfjax.data.prepared import manifest, model_folders
from rfjax.errors import ConfigError, RfjaxError
from rfjax.inputs import seals
from rfjax.prepare import joined_captions
from rfjax.prepare.part import read_finished
from rfjax.prepare.reading import Reading
from rfjax.prepare.recipe import claim, read_recipe
from rfjax.prepare.shard import ShardJson, sizes


@pytest.fixture(scope="module")
def stored(folder, tmp_path_factory):
    """Two buckets, several shards, both splits, captions of both kinds."""
    out = tmp_path_factory.mktemp("edited") / "photos"
    words = "--shard-size=5 --validation-share=0.3 --synthetic-column=by_model --buckets=32x32,32x48".split()
    with pytest.MonkeyPatch.context() as patch:
        assert prepare(patch, folder, f"--out={out}", *words) == 0
    return out


@pytest.fixture
def edited(stored, tmp_path):
    """A copy of the corpus, and a function that writes its manifest anew."""
    folder = tmp_path / "corpus"
    shutil.copytree(stored, folder)
    facts = json.loads((folder / "manifest.json").read_text())

    def write(change):
        change(facts)
        (folder / "manifest.json").write_text(json.dumps(facts))
        return folder

    return write


def paths(value, at=()):
    """The place of each value in JSON that is no object and no list."""
    parts = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    inner = [path for key, part in parts for path in paths(part, (*at, key))]
    return inner if isinstance(value, (dict, list)) and value else [at]


def put(facts, path, change):
    for key in path[:-1]:
        facts = facts[key]
    facts[path[-1]] = change(facts[path[-1]])


def other(value):
    """Another value of the same type."""
    return not value if isinstance(value, bool) else value + 1 if isinstance(value, (int, float)) else f"{value}x"


# What no example depends on: words on where the corpus is from, what was left out, and how the models were run.
TOLD_ONLY = ("source", "dropped", "converted", "truncated", "recipe", "models")
WORDS = (("latents", "statistics"), ("latents", "stored"), ("latents", "scaling"))


def test_every_value_of_a_manifest_that_decides_examples_is_checked(stored, tmp_path, capsys):
    """Catches one changed count that gives images the captions of others, under the same fingerprint."""
    facts = json.loads((stored / "manifest.json").read_text())
    folder = tmp_path / "corpus"
    shutil.copytree(stored, folder)
    before = manifest.read(stored).fingerprint
    answers = Counter()
    for path in paths(facts):
        if path[0] in TOLD_ONLY or path[:2] in WORDS:
            continue
        changed = json.loads(json.dumps(facts))
        put(changed, path, other)
        (folder / "manifest.json").write_text(json.dumps(changed))
        try:
            found = manifest.read(folder)
            manifest.check_records(found)
        except ConfigError as error:
            assert "again" in str(error)
            answers["refused"] += 1
            continue
        assert main(["inspect", str(folder), "--samples=0"]) in (1, 2), path
        answers["another fingerprint" if found.fingerprint != before else "the same"] += 1
    assert answers["refused"] > 50 and answers["another fingerprint"] and answers["the same"]


@pytest.mark.parametrize("value", [None, [], {}, "x", -1, 1e300, True, float("nan")])
def test_a_value_of_another_type_is_refused_by_name(stored, tmp_path, value):
    """Catches a KeyError, and a number of another kind that is computed with."""
    facts = json.loads((stored / "manifest.json").read_text())
    folder = tmp_path / "corpus"
    folder.mkdir()
    checked = [("format",), ("splits",), ("splits", "train"), ("splits", "train", "images"), ("buckets",)]
    checked += [("buckets", 0), ("buckets", 0, "pixels"), ("buckets", 0, "latents"), ("latents",), ("latents", "scale")]
    checked += [("text", "encoders"), ("text", "encoders", 0), ("text", "encoders", 0, "tokens"), ("shards",)]
    checked += [("shards", 0, "units", 0, "files"), ("shards", 0, "units", 0, "images"), ("captions",), ("models",)]
    checked += [("models", "parts"), ("models", "parts", "vae"), ("source", "location"), ("dropped",)]
    for path in checked:
        changed = json.loads(json.dumps(facts))
        put(changed, path, lambda _: value)
        if value == {} and path in (("dropped",),):
            continue
        if value == "x" and path[-1] in ("location",):
            continue
        if value == 1e300 and path[-1] == "scale":
            continue
        (folder / "manifest.json").write_text(json.dumps(changed))
        with pytest.raises(ConfigError, match="manifest.json.*again"):
            manifest.read(folder)


@pytest.mark.parametrize("text", ["", "3", "[]", "null", "[" * 2000, '{"format"', "\ufffe", '{"format": 1}'])
def test_a_damaged_manifest_is_refused_by_name(tmp_path, text):
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(ConfigError, match="manifest.json.*again"):
        manifest.read(tmp_path)


def test_captions_of_one_shard_are_never_those_of_anothers_images(edited):
    """The files of two units exchanged, names, hashes and counts with them."""

    def exchange(facts):
        units = [unit for shard in facts["shards"] for unit in shard["units"]]
        one, two = [unit for unit in units if unit["split"] == "train"][:2]
        for unit in (one["files"], two["files"]), (one, two):
            unit[0]["captions"], unit[1]["captions"] = unit[1]["captions"], unit[0]["captions"]

    with pytest.raises(ConfigError, match=r"shards.*files.captions.name is .* make it"):
        manifest.read(edited(exchange))


def test_a_count_that_agrees_with_all_sums_is_compared_with_the_files(edited, capsys):
    """Catches a caption of the next shard, taken where this one's number of captions was lowered everywhere."""

    def lower(facts):
        unit = next(unit for unit in facts["shards"][0]["units"] if unit["split"] == "train")
        bucket = next(bucket for bucket in facts["buckets"] if bucket["name"] == unit["bucket"])
        for counts in (unit, bucket["splits"]["train"], facts["splits"]["train"]):
            counts["captions"] -= 1

    folder = edited(lower)
    with pytest.raises(ConfigError, match="was changed after it was written; copy the corpus again, or give its"):
        load_corpus(data_config(folder), 0)
    content = json.loads((folder / "manifest.json").read_text())
    content.pop(seals.SEAL)
    (folder / "manifest.json").write_text(json.dumps(seals.seal(content)))  # as of one that was made wrong
    with pytest.raises(ConfigError, match=r"captions.array_record has \d+ records, and manifest.json says \d+"):
        load_corpus(data_config(folder), 0)
    assert main(["inspect", str(folder), "--samples=0"]) == 1
    assert "captions.array_record has" in capsys.readouterr().out


def test_a_caption_that_the_shard_does_not_have_is_no_other_shards(stored, monkeypatch):
    """The second line of defence: records themselves that name captions beyond their file's."""
    corpus = load_corpus(data_config(stored), 0).parts[0]
    real = type(corpus)._records

    def beyond(self, kind, split, places):
        found = real(self, kind, split, places)
        return [(arrays, facts | {"original": [999], "synthetic": []}) for arrays, facts in found]

    monkeypatch.setattr(type(corpus), "_records", beyond)
    with pytest.raises(RfjaxError, match="has no caption number 999 in its shard"):
        corpus.examples(np.array([0]), "train")


@pytest.mark.parametrize(
    "text", ["", "3", "[]", "null", "[" * 2000, '{"name"', '{"recipe_sha256": 1}', '{"units": {}}']
)
def test_a_damaged_shards_json_makes_the_shard_anew(tmp_path, text):
    """Catches a traceback, after which the preparation could never be finished."""
    (tmp_path / "shard-00000-of-00001.json").write_text(text)
    path = tmp_path / "shard-00000-of-00001"
    assert read_finished(path, "abc", shape=ShardJson, sizes=sizes) is None


@pytest.mark.parametrize("text", ["", "3", "[]", "null", "[" * 2000, '{"models": [3]}', '{"models": {"vae": 1}}'])
def test_a_damaged_recipe_is_refused_by_name(tmp_path, text):
    (tmp_path / "recipe.json").write_text(text)
    with pytest.raises(ConfigError, match="recipe.json.*without --merge"):
        read_recipe(tmp_path, "models")
    with pytest.raises(ConfigError, match="recipe.json cannot be read|has another recipe"):
        claim(tmp_path, {"version": 2})


@pytest.mark.parametrize(
    "text", ["", "3", "[]", "[" * 2000, '{"_class_name": 5}', '{"architectures": 5}', '{"architectures": [5]}']
)
def test_a_damaged_config_of_a_frozen_model_is_refused_by_name(tmp_path, text):
    (tmp_path / "vae").mkdir()
    (tmp_path / "vae/config.json").write_text(text)
    with pytest.raises(ConfigError, match="vae/config.json cannot be read.*fetch the folder again"):
        model_folders.find_model(tmp_path, "vae", "")


@pytest.mark.parametrize("line", ["3", "[]", '{"key": 3, "caption": "a"}', '{"key": "a"}', "{", "[" * 2000])
def test_a_damaged_line_of_captions_is_refused_by_number(tmp_path, line):
    path = tmp_path / "captions.jsonl"
    path.write_text('{"key": "a", "caption": "b"}\n' + line)
    with pytest.raises(RfjaxError, match="captions.jsonl, line 2"):
        list(joined_captions.READERS[".jsonl"](path, None))


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "windows-1252"])
def test_joined_captions_and_keys_to_drop_are_read_in_other_encodings(tmp_path, encoding):
    path = tmp_path / "captions.jsonl"
    path.write_text('{"key": "a", "caption": "café"}\r\n', encoding=encoding)
    assert list(joined_captions.READERS[".jsonl"](path, None)) == [("a", "café")]
    path.write_text("café.png\tblurred\r\nb.png\r\n", encoding=encoding, newline="")
    found = Reading(source="", shard_size=1, drop_keys=path).dropped_keys()
    assert found == {"café.png": "blurred", "b.png": "listed"}


def test_encoders_that_no_network_takes_are_refused_before_any_work(monkeypatch, folder, tmp_path, capsys):
    """Catches the refusal after all shards were encoded."""
    models = StandIns()
    models.encoders = (ENCODERS[0], dataclasses.replace(ENCODERS[1], tokens=6))
    assert prepare(monkeypatch, folder, f"--out={tmp_path / 'out'}", models=models) == 2
    assert "these have clip_l 5, clip_g 6" in capsys.readouterr().err and not (tmp_path / "out").exists()
