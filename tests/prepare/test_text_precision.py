"""Captions' features in int8: the rounding's error, the corpus that is read from them, and what they take on disk."""

import shutil

import numpy as np
import pytest
from test_prepare import digests, records

from helpers.small_sources import write_tar
from helpers.stand_ins import ENCODERS, StandIns, data_config, features, prepare
from rfjax.cli import main
from rfjax.data.corpus import load_corpus
from rfjax.data.prepared import manifest, text_precision
from rfjax.data.prepared.manifest import StoredEncoder
from rfjax.data.prepared.records import pack
from rfjax.errors import RfjaxError
from rfjax.prepare import storage
from rfjax.prepare.recipe import Recipe
from rfjax.prepare.sources import open_source
from rfjax.prepare.verify import _wrong_caption

INT8 = ("--text-precision=int8", "--shard-size=5", "--validation-share=0.3", "--synthetic-column=by_model")


@pytest.fixture(scope="module")
def in_int8(folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("int8") / "out"
    with pytest.MonkeyPatch.context() as patch:
        assert prepare(patch, folder, f"--out={out}", *INT8) == 0
    return out


def test_a_number_is_off_by_half_a_scale_at_most():
    """The bound on the error, and its size on normal numbers with one token 300 times as large. Catches one scale for
    all tokens (the other tokens would be rounded to nothing), rounding to zero, and a token of zeros that divides by
    its scale."""
    context = np.random.default_rng(0).standard_normal((77, 4096)).astype(np.float32)
    context[0] *= 300
    context[5] = 0
    levels, scales = text_precision.quantise(context)
    back = np.empty_like(context)
    text_precision.from_stored({"a": levels, "a.scales": scales}, "a", back)
    largest = np.abs(context).max(axis=1, keepdims=True)
    assert levels.dtype == np.int8 and levels.min() == -127 or levels.max() == 127
    assert (np.abs(back - context) <= largest / 254 * 1.0001).all() and not back[5].any()
    error = np.sqrt(np.square(back - context).mean(axis=1) / np.square(context).mean(axis=1).clip(1e-9))
    assert 0.005 < np.delete(error, 5).max() < 0.012  # 3.9 deviations / 127 levels / sqrt(12)


def test_a_corpus_in_int8_is_that_in_float32_but_for_the_rounding(monkeypatch, folder, in_int8, tmp_path):
    """Catches levels read without their scales, scales of another token, and pooled vectors or latents that became
    int8."""
    assert prepare(monkeypatch, folder, f"--out={tmp_path / 'out'}", *INT8[1:]) == 0
    rounded, plain = (load_corpus(data_config(path), 0) for path in (in_int8, tmp_path / "out"))
    for split, indices in (("train", np.arange(9)), ("validation", np.arange(2))):
        ours, theirs = rounded.examples(indices, split), plain.examples(indices, split)
        assert np.array_equal(ours.latents, theirs.latents) and np.array_equal(ours.pooled, theirs.pooled)
        off = np.abs(ours.context - theirs.context)
        bound = np.abs(theirs.context).max(axis=2, keepdims=True) / 254 + 2e-3  # of float16 as well
        assert (off <= bound).all() and off.max() > 2e-3
        for context, caption in zip(ours.context, rounded.captions(indices, split), strict=True):
            own = features([caption])["t5.context"][0]
            assert (np.abs(context[5:] - own) <= np.abs(own).max(axis=1, keepdims=True) / 254 * 1.0001).all()
    arrays, _ = records(in_int8, "train", "captions")[0]
    types = {name: str(array.dtype) for name, array in arrays.items()}
    assert types["clip_g.context"] == "int8" and types["clip_g.context.scales"] == types["clip_g.pooled"] == "float32"
    assert rounded.fingerprint != plain.fingerprint
    shutil.copytree(in_int8, tmp_path / "copy")
    assert main(["inspect", str(tmp_path / "copy"), "--samples=1"]) == 0
    assert manifest.read(in_int8).facts["recipe"]["text_precision"] == "int8"
    assert "text_precision" not in manifest.read(tmp_path / "out").facts["recipe"]  # as folders made before


def test_a_killed_preparation_in_int8_ends_in_the_same_bytes(monkeypatch, folder, in_int8, tmp_path, capsys):
    """Catches bytes that depend on the order of arrays, and a folder that goes on in another type."""
    left = [3]  # batches until memory runs out

    def before():
        left[0] -= 1
        if not left[0]:
            raise MemoryError

    assert prepare(monkeypatch, folder, f"--out={tmp_path / 'out'}", *INT8, models=StandIns(before)) == 1
    assert prepare(monkeypatch, folder, f"--out={tmp_path / 'out'}", *INT8[1:]) == 2
    assert "recipe.text_precision was 'int8' and is now None" in capsys.readouterr().err
    assert prepare(monkeypatch, folder, f"--out={tmp_path / 'out'}", *INT8) == 0
    assert digests(tmp_path / "out") == digests(in_int8)


def test_a_record_without_its_scales_is_refused(in_int8, tmp_path):
    """Catches levels that are taken for features, 50 times too large, and a scale that is not finite."""
    found = manifest.read(in_int8)
    arrays, facts = records(in_int8, "train", "captions")[0]
    for name, change, said in (
        ("t5.context.scales", None, "has no t5.context.scales"),
        ("t5.context.scales", arrays["t5.context.scales"][:3], "and manifest.json says (7,)"),
        ("clip_l.context.scales", np.full(5, np.nan, np.float32), "numbers that are not finite"),
    ):
        changed = {each: array for each, array in (arrays | {name: change}).items() if array is not None}
        lines = list(_wrong_caption("record 0", pack(changed, facts), found))
        assert len(lines) == 1 and said in lines[0]
    corpus = load_corpus(data_config(in_int8), 0)
    with pytest.raises(RfjaxError, match="t5.context.scales of no array"):
        corpus._assemble([{name: array for name, array in arrays.items() if name != "t5.context.scales"}])


def test_the_estimate_is_what_the_folder_takes(monkeypatch, folder, tmp_path, capsys):
    """Against the sizes of the files. Catches an estimate that forgets the scales, an encoder or the latents, or that
    begins the work; and shards that are not those which are made."""
    wide = StandIns()
    wide.encoders = (*ENCODERS[:2], StoredEncoder("t5", "t5", 200, 300, 0))

    def text(captions):
        return features(captions) | {"t5.context": np.ones((len(captions), 200, 300), np.float32)}

    wide.text = text
    words = ("--validation-share=0", "--shard-size=8", f"--out={tmp_path / 'out'}", "--text-precision=int8")
    assert prepare(monkeypatch, folder, *words, "--estimate", models=wide) == 0
    said = capsys.readouterr().out
    assert "16 images with a caption each" in said and "in 2 shards" in said and not (tmp_path / "out").exists()
    assert prepare(monkeypatch, folder, *words, models=wide) == 0
    assert "features of a million captions: 1" in capsys.readouterr().err  # and before the work
    found = manifest.read(tmp_path / "out")
    size = sum(file["bytes"] for file in found.every_file() if ".captions." in file["name"])
    expected = storage.caption_bytes(wide.encoders, "int8", "float32") * 16 + 2 * storage.FILE
    assert expected == pytest.approx(size, rel=0.02)
    in_types = [storage.caption_bytes(wide.encoders, each, "float32") for each in ("int8", "float16", "float32")]
    assert in_types[1] / in_types[0] == pytest.approx(2, rel=0.03) and in_types[2] / in_types[0] > 3.8
    assert prepare(monkeypatch, folder, *words, "--estimate", "--merge", models=wide) == 2


def test_tars_do_not_say_how_many_images_they_have(folder, tmp_path):
    """Catches bytes of tars taken for numbers of images."""
    tar = write_tar(tmp_path / "a.tar", [("a.txt", b"a cat")])
    opened = {where: open_source(str(where), shard_size=8, caption_column=None) for where in (tar, folder)}
    assert [storage.image_count(source, Recipe()) for source in opened.values()] == [None, 16]
