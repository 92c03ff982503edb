"""Files of a corpus that were edited after they were written: made anew, refused, or told by `rfjax inspect`."""

import json
import shutil

import numpy as np
import pytest

from helpers.stand_ins import StandIns, data_config, prepare, recaption
from rfjax.cli import main
from rfjax.data.corpus import load_corpus
from rfjax.data.prepared import autoencoders, frozen, manifest
from rfjax.data.prepared.records import FACTS_OF, pack, unpack
from rfjax.errors import ConfigError, RfjaxError
from rfjax.inputs import seals
from rfjax.inputs.json_files import WrongJson, parse_json
from rfjax.prepare import joined_captions, verify

WORDS = "--shard-size=9 --validation-share=0.3 --latent-scaling=measured".split()


@pytest.fixture(scope="module")
def stored(folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("sealed") / "photos"
    with pytest.MonkeyPatch.context() as patch:
        assert prepare(patch, folder, f"--out={out}", *WORDS) == 0
    return out


@pytest.fixture
def copied(stored, tmp_path):
    return shutil.copytree(stored, tmp_path / "corpus")


def edit(path, change):
    facts = json.loads(path.read_text())
    change(facts)
    path.write_text(json.dumps(facts))


def rewrite(found, kind, change):
    """Writes the first file of a kind anew, with its first record's arrays and facts changed."""
    from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter

    name = found.files("train", found.buckets[0].name, kind).names[0]
    reader = ArrayRecordReader(str(found.folder / name))
    records = reader.read_all()
    reader.close()
    arrays, facts = unpack(records[0], FACTS_OF[kind])
    records[0] = change(dict(arrays), dict(facts))
    writer = ArrayRecordWriter(str(found.folder / name), "group_size:1,uncompressed")
    for record in records:
        writer.write(record)
    writer.close()


@pytest.mark.parametrize(
    "change",
    [
        lambda facts: facts.update(units=[]),
        lambda facts: facts["units"].pop(),
        lambda facts: facts["units"][0]["statistics"]["squares"].__setitem__(0, 1e6),
        lambda facts: facts["units"][0].update(split="../../validation"),
    ],
)
def test_a_shard_whose_json_was_edited_is_made_anew(monkeypatch, folder, stored, copied, change):
    """Catches images that are gone, and a scale of other latents, with exit status 0."""
    before = (stored / "manifest.json").read_bytes()
    edit(copied / "shard-00000-of-00002.json", change)
    assert prepare(monkeypatch, folder, f"--out={copied}", *WORDS) == 0
    assert (copied / "manifest.json").read_bytes() == before


def test_a_shards_json_of_an_earlier_version_counts(monkeypatch, folder, copied):
    """It has no seal: hours of work are not made anew for that. Sums that are no sums are refused all the same."""
    first = copied / "shard-00000-of-00002.json"
    edit(first, lambda facts: facts.pop(seals.SEAL))

    def never():
        raise AssertionError("an image was encoded")

    assert prepare(monkeypatch, folder, f"--out={copied}", *WORDS, models=StandIns(never)) == 0
    for wrong in ([1.0], [1e300] * 3):
        edit(first, lambda facts, wrong=wrong: facts["units"][0]["statistics"].update(squares=wrong))
        assert prepare(monkeypatch, folder, f"--out={copied}", *WORDS, models=StandIns(never)) == 1


def damages():
    def shape(arrays, facts):
        return pack(arrays | {"latents": arrays["latents"][:2]}, facts)

    def nan(arrays, facts):
        return pack(arrays | {"latents": np.full_like(arrays["latents"], np.nan)}, facts)

    def without(key):
        return lambda arrays, facts: pack(arrays, {name: value for name, value in facts.items() if name != key})

    def features(arrays, facts):
        return pack(arrays | {"t5.context": arrays["t5.context"][:3]}, facts)

    yield "images", shape, "has latents of (2, 4, 3), and manifest.json says (4, 4, 3)"
    yield "images", nan, "latents with numbers that are not finite"
    yield "images", without("original"), "it has no original"
    yield "images", lambda arrays, facts: pack(arrays, facts | {"original": ["a"]}), "original[0] must be a whole"
    yield "images", lambda arrays, facts: pack(arrays, facts | {"original": []}), "names no caption"
    yield "images", lambda arrays, facts: b"\3\0\0\0\0\0\0\0[1]", "not as it was written"
    yield "images", lambda arrays, facts: b"\xff\xff\0\0\0\0\0\0" + b"[" * 65535, "not as it was written"
    yield "captions", features, "has t5.context of (3, 20), and manifest.json says (7, 20)"
    yield "captions", lambda arrays, facts: pack(arrays, {"caption": 5}), "caption must be a text"
    yield "captions", lambda arrays, facts: pack({}, facts), "has no clip_l.context"


@pytest.mark.parametrize("kind, change, words", damages(), ids=lambda value: str(value)[:30])
def test_every_record_is_read_and_a_wrong_one_is_named(copied, kind, change, words, capsys):
    """Catches a traceback, and features of another size that are found in the middle of a training."""
    found = manifest.read(copied)
    rewrite(found, kind, change)
    lines = list(verify.contradictions(found))
    assert len(lines) >= 1 and words in lines[0] and "record 0" in lines[0], lines


def test_inspect_tells_edits_files_without_a_place_and_moments(copied, capsys):
    found = manifest.read(copied)
    assert not [*verify.strangers(found), *verify.contradictions(found)]
    shutil.copy(copied / next(found.every_file())["name"], copied / "shard-9.array_record")

    def other(facts):
        facts["latents"]["statistics"]["train"]["all"]["std"] *= 1.1

    edit(copied / "manifest.json", other)
    found = manifest.read(copied)
    lines = [*verify.strangers(found), *verify.contradictions(found)]
    assert lines[0] == "manifest.json was changed after it was written"
    assert "shard-9.array_record is in the folder" in lines[1] and "train latents' std" in lines[2] and len(lines) == 3


def test_a_wrong_count_is_told_without_hashes_too(copied, capsys):
    """Catches a picture of images under the captions of others."""

    def lower(facts):
        unit = next(unit for unit in facts["shards"][0]["units"] if unit["split"] == "train")
        for counts in (unit, facts["buckets"][0]["splits"]["train"], facts["splits"]["train"]):
            counts["captions"] -= 1

    edit(copied / "manifest.json", lower)
    assert main(["inspect", str(copied), "--no-hashes"]) == 1
    assert "captions.array_record has" in capsys.readouterr().out and not (copied / "samples.png").exists()


def test_what_inspect_cannot_write_or_load_is_told_first(copied, capsys):
    (copied / "samples.png").mkdir()
    assert main(["inspect", str(copied)]) == 2
    assert main(["inspect", str(copied), "--out=p.png", "--models=nowhere"]) == 2
    said = capsys.readouterr()
    assert "samples.png is a folder" in said.err and "--models is nowhere, and no folder is there" in said.err
    assert not said.out


def test_captions_that_lost_a_part_are_refused_before_any_work(monkeypatch, folder, tmp_path):
    """Catches captions.json without one of its parts, and a part that was cut, found after all images are encoded."""
    captions = tmp_path / "captions"
    assert recaption(monkeypatch, folder, f"--out={captions}", "--shard-size=9") == 0
    joined_captions.open_captions(captions)
    last = sorted(captions.glob("*.jsonl"))[-1]
    edited = shutil.copytree(captions, tmp_path / "edited")
    edit(edited / "captions.json", lambda facts: facts["shards"].pop())
    with pytest.raises(ConfigError, match="it was changed after it was written"):
        joined_captions.open_captions(edited)
    edit(edited / "captions.json", lambda facts: facts.pop(seals.SEAL))
    with pytest.raises(ConfigError, match="it was changed after it was written"):
        joined_captions.open_captions(edited)
    last.write_bytes(last.read_bytes()[:-3])
    with pytest.raises(ConfigError, match=f"{last.name} has .* bytes, and captions.json says"):
        joined_captions.open_captions(captions)


@pytest.mark.parametrize("option, line", [("drop-keys", "nobody.png"), ("synthetic-captions", None)])
def test_keys_that_a_folder_does_not_have_are_refused_before_any_work(
    monkeypatch, folder, tmp_path, capsys, option, line
):
    """Catches the refusal after all images were encoded, whose remedy makes another recipe."""
    path = tmp_path / "given.jsonl"
    path.write_text(line or '{"key": "nobody.png", "caption": "a"}')
    assert prepare(monkeypatch, folder, f"--out={tmp_path / 'out'}", f"--{option}={path}") == 2
    said = capsys.readouterr().err
    assert f"--{option}" in said and "inspect" in said and not (tmp_path / "out").exists()


def test_a_reason_of_the_users_is_never_one_of_ours(monkeypatch, folder, tmp_path):
    """Catches images that a list calls corrupt, counted against --corrupt-limit."""
    keys = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.png"))[:12]
    (tmp_path / "list").write_text("".join(f"{key}\tcorrupt\n" for key in keys))
    words = f"--out={tmp_path / 'out'}", f"--drop-keys={tmp_path / 'list'}", "--validation-share=0.5"
    assert prepare(monkeypatch, folder, *words) == 0
    assert manifest.read(tmp_path / "out").facts["dropped"]["corrupt (listed)"] == len(keys)


def test_latents_that_are_all_equal_have_no_measured_scale(monkeypatch, tmp_path, capsys):
    from PIL import Image

    (tmp_path / "in").mkdir()
    Image.new("RGB", (32, 32), (128, 128, 128)).save(tmp_path / "in/grey.png")
    (tmp_path / "in/grey.txt").write_text("a grey square")
    words = "--latent-scaling=measured", "--validation-share=0"
    assert prepare(monkeypatch, tmp_path / "in", f"--out={tmp_path / 'out'}", *words) == 1
    assert "--latent-scaling is measured, and all latents of" in capsys.readouterr().err


@pytest.mark.parametrize(
    "about, words",
    [
        ({}, "it has no scaling_factor"),
        ({"scaling_factor": 0.0}, "a scale is above 0"),
        ({"scaling_factor": -1.0}, "a scale is above 0"),
        ({"scaling_factor": 1e300}, "a scale is above 0"),
        ({"scaling_factor": float("inf")}, "scaling_factor must be a finite number"),
        ({"scaling_factor": None}, "scaling_factor must be a finite number and is null"),
        ({"scaling_factor": 1.5, "shift_factor": "0.1"}, "shift_factor must be a finite number or null"),
    ],
)
def test_a_scale_of_latents_that_is_none_is_refused(tmp_path, about, words):
    """Catches diffusers' default for a factor that is missing, and latents that are all zero or not finite."""
    (tmp_path / "vae").mkdir()
    (tmp_path / "vae/config.json").write_text(json.dumps(about))
    with pytest.raises(ConfigError, match=f"vae/config.json.*{words}"):
        autoencoders.read_scaling(tmp_path)


def test_models_are_tried_before_the_work(tmp_path):
    """Catches features that are no numbers, or none, found when the first image is stored."""
    pooled = np.zeros((1, 2), np.float32)

    def models(context, tokens=lambda captions: [3]):
        return frozen.FrozenModels(
            (manifest.StoredEncoder("t5", "t5", 2, 3, 2),),
            4,
            8,
            0.0,
            1.0,
            {},
            _text={"t5": lambda captions: (context, pooled)},
            _encode=lambda images: np.zeros((1, 4, images.shape[2] // 8, images.shape[3] // 8), np.float32),
            _decode=lambda raw: raw,
            _tokens={"t5": tokens},
        )

    good = np.zeros((1, 2, 3), np.float32)
    frozen.try_out(models(good), tmp_path)
    for context, words in [(good + np.float32(np.nan), "that are not finite"), (good[:, :0], "no numbers")]:
        with pytest.raises(ConfigError, match=f"{words} for t5.context"):
            frozen.try_out(models(context), tmp_path)

    def broken(captions):
        raise TypeError("no padding token\nwas set")

    with pytest.raises(ConfigError, match="cannot be used: no padding token; fetch"):
        frozen.try_out(models(good, broken), tmp_path)


def test_half_a_surrogate_pair_is_no_text_of_a_file():
    """Catches a name that is read, and cannot be written when the work is done."""
    for text, shape in [('"\\ud800"', str), ('{"\\ud800": 1}', dict[str, int])]:
        with pytest.raises(WrongJson):
            parse_json(text, shape)
    assert parse_json('"\\ud83d\\udc08"', str) == "🐈"


def test_a_seal_tells_any_change():
    facts = seals.seal({"a": [1, 2.5], "b": None})
    assert not seals.is_broken(facts) and not seals.is_broken({"a": 3})
    assert seals.is_broken(facts | {"a": [1, 2.50001]}) and seals.is_broken({**facts, "c": 1})


def test_a_damaged_record_names_its_place(copied):

    found = manifest.read(copied)
    rewrite(found, "images", lambda arrays, facts: pack(arrays, {"key": "a"}))
    corpus = load_corpus(data_config(copied), 0)
    with pytest.raises(RfjaxError, match="record 0 of the train images.*it has no .*rfjax inspect"):
        corpus.examples(np.arange(len(corpus._orders.places(np.arange(30)))), "train")
