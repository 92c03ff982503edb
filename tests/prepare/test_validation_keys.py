"""Validation images that are named by key, and settings that an older folder's recipe does not have."""

import numpy as np

from helpers import photographs
from helpers.stand_ins import data_config, prepare
from rfjax.data.corpus import load_corpus
from rfjax.prepare.clips import ClipRule
from rfjax.prepare.recipe import WRITTEN_WHERE_SET, Recipe


def test_the_named_images_and_no_others_are_for_validation(monkeypatch, tmp_path, capsys):
    """Catches a share that is drawn beside them, keys that name nothing, and a file without any."""
    names = sorted(photographs.FILES)[:8]
    root = photographs.write_folder(tmp_path / "in", names)
    keys = tmp_path / "keys.txt"
    keys.write_text("sub/brick.png\nsub/china.png\nsub/not-there.png\n")
    out = tmp_path / "out"
    words = root, f"--out={out}", f"--validation-keys={keys}", "--validation-share=0.9", "--shard-size=3"
    assert prepare(monkeypatch, *words) == 0
    assert "1 keys of --validation-keys that name no image: sub/not-there.png" in capsys.readouterr().err
    corpus = load_corpus(data_config(out), 0)
    captions = [photographs.FILES[name][1] for name in ("brick", "china")]
    assert corpus.captions(np.arange(2), "validation") == captions
    assert sorted(corpus.captions(np.arange(6), "train")) == sorted(
        photographs.FILES[name][1] for name in names if name not in ("brick", "china")
    )
    keys.write_text("sub/brick.png\n")
    assert prepare(monkeypatch, *words) == 2
    assert "has another recipe: recipe.validation_keys" in capsys.readouterr().err
    keys.write_text("brick.png\n")
    assert prepare(monkeypatch, root, f"--out={tmp_path / 'b'}", f"--validation-keys={keys}") == 2
    assert "none of the 1 keys of --validation-keys" in capsys.readouterr().err
    keys.write_text("\n")
    assert prepare(monkeypatch, root, f"--out={tmp_path / 'c'}", f"--validation-keys={keys}") == 2
    assert "has no keys" in capsys.readouterr().err


def test_a_recipe_has_new_settings_only_where_they_are_set():
    """Catches a folder prepared by an older rfjax that the same command no longer goes on with."""
    assert not set(WRITTEN_WHERE_SET) & Recipe().facts().keys()
    given = Recipe(
        validation_keys=frozenset("a"),
        autoencoder="identity",
        text_settings={"minilm": {"tokens": 3}},
        clips=ClipRule(5),
        text_precision="int8",
    ).facts()
    assert set(WRITTEN_WHERE_SET) <= given.keys() and given["validation_keys"]["count"] == 1
