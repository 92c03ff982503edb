"""The corpus `prepared`: the example of an index, the content of a batch, and refusals."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from helpers import child_process, photographs
from helpers.stand_ins import data_config, features, prepare
from rfjax.cli import main
from rfjax.data.batch import EncoderSlot, stills
from rfjax.data.corpus import Corpus, load_corpus
from rfjax.data.loader import batches
from rfjax.data.prepared import manifest
from rfjax.data.prepared.epoch_orders import EpochOrders
from rfjax.data.prepared.shards import Readers, Shards
from rfjax.errors import ConfigError, RfjaxError
from rfjax.evaluation import mlperf_loss
from rfjax.inputs import seals
from rfjax.prepare import images


@pytest.fixture(scope="module")
def stored(folder, tmp_path_factory):
    """12 or so training images in four shards, with an original and two synthetic captions each."""
    out = tmp_path_factory.mktemp("prepared") / "photos"
    with pytest.MonkeyPatch.context() as patch:
        assert (
            prepare(
                patch,
                folder,
                f"--out={out}",
                "--shard-size=5",
                "--validation-share=0.3",
                "--synthetic-column=by_model",
                "--precision=float32",
            )
            == 0
        )
    return out


def opened(stored, seed=0, **fields):
    return load_corpus(data_config(stored, **fields), seed)


def name_of(caption):
    """The photograph that a caption belongs to."""
    return next(
        name
        for name, (_, own) in photographs.FILES.items()
        if caption == own or caption in photographs.columns(name)["by_model"]
    )


@pytest.mark.parametrize("count", [1, 2, 7, 1000])
def test_every_epoch_holds_every_example_once_in_an_order_of_its_own(count):
    """Catches examples left out or met twice, one order for all epochs, and an order that depends on earlier calls."""
    indices = np.arange(5 * count)
    places = EpochOrders(count, key=3).places(indices)
    epochs = places.reshape(5, count)
    assert (np.sort(epochs, axis=1) == np.arange(count)).all()
    if count == 1000:
        assert len({tuple(epoch) for epoch in epochs}) == 5
        assert (
            abs(np.corrcoef(epochs[0], epochs[1])[0, 1]) < 0.1
            and abs(np.corrcoef(epochs[0], np.arange(count))[0, 1]) < 0.1
        )
    again = np.random.default_rng(0).permutation(indices)
    assert np.array_equal(EpochOrders(count, key=3).places(again), places[again])
    assert count < 7 or not np.array_equal(EpochOrders(count, key=4).places(indices), places)


def test_orders_are_uniform():
    """All 24 orders of four, over 2,400 epochs: chi-squared with 23 degrees of freedom, 1e-4 quantile 55."""
    epochs = EpochOrders(4, key=1).places(np.arange(4 * 2400)).reshape(-1, 4)
    _, counts = np.unique(epochs, axis=0, return_counts=True)
    assert len(counts) == 24 and ((counts - 100) ** 2 / 100).sum() < 55


def test_the_order_of_a_seed_never_changes():
    """Golden: a change would make a resumed run see other data under the same seed."""
    assert EpochOrders(8, key=5).places(np.arange(16)).tolist() == [3, 5, 6, 4, 7, 2, 0, 1, 7, 0, 6, 2, 1, 4, 5, 3]


def test_a_batch_holds_the_image_and_the_text_of_its_captions(stored):
    """Computes pixels and the stand-ins' features a second way. Catches rows of other shards or captions, encoders in
    another encoder's slot, and shift and scale forgotten or exchanged."""
    corpus = opened(stored, synthetic_captions=0.5)
    assert isinstance(corpus, Corpus)
    for split, indices in (("train", np.array([0, 5, 31, 7, 7])), ("validation", np.array([1, 0]))):
        batch, captions = corpus.examples(indices, split), corpus.captions(indices, split)
        rows = zip(stills(batch.latents), batch.context, batch.pooled, captions, strict=True)
        for latents, context, pooled, caption in rows:
            pixels = images.decode(photographs.encoded(name_of(caption)), 32, "lanczos").pixels
            raw = pixels.reshape(4, 8, 4, 8, 3).mean((1, 3)) / 255
            assert np.allclose(latents, (raw - 0.25) * 2.0, atol=1e-6)
            own = {name: rows[0] for name, rows in features([caption]).items()}
            expected = np.zeros((12, 20), np.float32)
            expected[:5, :6], expected[:5, 6:14], expected[5:] = (
                own["clip_l.context"],
                own["clip_g.context"],
                own["t5.context"],
            )
            assert np.array_equal(context, expected)
            assert np.array_equal(pooled, np.concatenate([own["clip_l.pooled"], own["clip_g.pooled"]]))
        assert batch.context.dtype == batch.latents.dtype == np.float32
    assert corpus.shapes.encoders == (
        EncoderSlot("clip_l", (0, 5), (0, 6), (0, 4)),
        EncoderSlot("clip_g", (0, 5), (6, 14), (4, 7)),
        EncoderSlot("t5", (5, 12), (0, 20), (0, 0)),
    )


def test_sd3s_sizes_give_sd3s_slots():
    sd3 = [
        manifest.StoredEncoder("clip_l", "clip", 77, 768, 768),
        manifest.StoredEncoder("clip_g", "clip", 77, 1280, 1280),
        manifest.StoredEncoder("t5", "t5", 77, 4096, 0),
    ]
    from rfjax.data.random import ENCODERS as RANDOM

    (context, pooled, slots) = manifest.layout(sd3)
    assert RANDOM[(*context, pooled)] == slots
    assert manifest.layout(sd3[:2])[0] == (77, 2048) and manifest.layout(sd3[2:])[0] == (77, 4096)
    with pytest.raises(ConfigError, match="clip_g 60"):
        manifest.layout([sd3[0], manifest.StoredEncoder("clip_g", "clip", 60, 8, 8)])


def test_an_example_is_a_function_of_its_index(stored):
    """So it is across threads and a resume; each seed has another order, and the same validation examples."""
    corpus = opened(stored, synthetic_captions=0.5)
    whole = list(batches(corpus, batch_size=5, start_step=0, stop_step=9))
    late = list(batches(opened(stored, synthetic_captions=0.5), batch_size=5, start_step=6, stop_step=9, threads=3))
    for a, b in zip(whole[6:], late, strict=True):
        assert all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))
    ids = np.concatenate([batch.example_ids for batch in whole])
    count = corpus.manifest.count("train")
    assert np.array_equal(np.sort(ids[:count]), np.arange(count))
    other = opened(stored, seed=1, synthetic_captions=0.5)
    assert not np.array_equal(other.examples(np.arange(count), "train").example_ids, ids[:count])
    for a, b in zip(
        corpus.examples(np.arange(2), "validation"), other.examples(np.arange(2), "validation"), strict=True
    ):
        assert np.array_equal(a, b)
    assert other.fingerprint != corpus.fingerprint == opened(stored, synthetic_captions=0.5).fingerprint
    assert (
        opened(stored).fingerprint
        != corpus.fingerprint
        != opened(stored, synthetic_captions=0.5, encoders=("t5",)).fingerprint
    )


@pytest.mark.parametrize("share", [0.0, 0.5, 0.95, 1.0])
def test_captions_are_mixed_at_the_share_asked_for(stored, share):
    """Counts against the binomial's standard deviation. Catches a share of the images instead of the draws, one
    synthetic caption used alone, and the same choice in every epoch."""
    corpus, n = opened(stored, synthetic_captions=share), 3000
    captions = corpus.captions(np.arange(n), "train")
    original = {text for _, text in photographs.FILES.values()}
    synthetic = sum(caption not in original for caption in captions)
    assert abs(synthetic - n * share) <= 4 * np.sqrt(n * share * (1 - share))
    if share == 0.5:
        first = [c for c in captions if c.startswith("a picture of")]
        assert abs(len(first) - synthetic / 2) < 4 * np.sqrt(synthetic / 4)
        assert len({c for c in captions if name_of(c) == name_of(captions[0])}) == 3
    assert set(corpus.captions(np.arange(corpus.manifest.count("validation")), "validation")) <= original


def test_an_image_without_one_kind_of_caption_gives_the_other(monkeypatch, tmp_path):
    root = photographs.write_folder(tmp_path / "in", ("moon", "coins"))
    (root / "sub" / "moon.txt").unlink()
    (root / "sub" / "coins.json").unlink()
    out = f"--out={tmp_path / 'out'}"
    assert prepare(monkeypatch, root, out, "--synthetic-column=by_model", "--validation-share=0") == 0
    for share in (0.0, 1.0):
        captions = opened(tmp_path / "out", synthetic_captions=share).captions(np.arange(200), "train")
        assert {name_of(caption) for caption in captions} == {"moon", "coins"}
        assert set(captions) == {"old coins in rows", *photographs.columns("moon")["by_model"]}


def test_an_encoder_left_out_is_zero_and_has_no_slot(stored):
    whole, part = opened(stored), opened(stored, encoders=("clip_g",))
    a, b = whole.examples(np.arange(4), "train"), part.examples(np.arange(4), "train")
    assert np.array_equal(b.context[:, :5, 6:14], a.context[:, :5, 6:14]) and np.array_equal(
        b.pooled[:, 4:], a.pooled[:, 4:]
    )
    assert not b.context[:, 5:].any() and not b.context[:, :, :6].any() and not b.pooled[:, :4].any()
    assert b.context.shape == a.context.shape and [slot.name for slot in part.shapes.encoders] == ["clip_g"]


def test_what_does_not_match_the_config_is_refused_by_name(stored, tmp_path):
    from dataclasses import replace

    good = data_config(stored)
    for changed, words in (
        ({"channels": 16}, "config.data.channels is 16, and the corpus has 3"),
        ({"image_size": 8}, "config.data.image_size is 8, and the corpus has 4"),
        (
            {"context_tokens": 154, "pooled_size": 2048},
            "context_tokens is 154, and the corpus has 12; config.data.pooled_size is 2048",
        ),
        ({"prepared": replace(good.prepared, latent_scale=1.5305)}, "latent_scale is 1.5305, and the corpus has 2.0"),
        (
            {"prepared": replace(good.prepared, encoders=("clip_h",))},
            "'clip_h', which .* lacks; it has clip_l, clip_g, t5",
        ),
        ({"prepared": replace(good.prepared, path=str(tmp_path))}, "it has no manifest.json"),
        ({"prepared": replace(good.prepared, path="")}, "prepared.path names no folder"),
    ):
        with pytest.raises(ConfigError, match=words):
            load_corpus(replace(good, **changed), 0)
    assert load_corpus(replace(good, prepared=replace(good.prepared, latent_scale=2.0, latent_shift=0.25)), 0)


def test_a_corpus_without_synthetic_captions_or_with_lost_files_is_refused(monkeypatch, stored, folder, tmp_path):
    assert prepare(monkeypatch, folder, f"--out={tmp_path / 'plain'}") == 0
    with pytest.raises(ConfigError, match="has no synthetic captions"):
        opened(tmp_path / "plain", synthetic_captions=0.5)
    broken = tmp_path / "broken"
    shutil.copytree(stored, broken)
    lost = sorted(broken.glob("*.captions.array_record"))[0]
    kept = lost.read_bytes()
    lost.write_bytes(kept[:-1])
    with pytest.raises(ConfigError, match=f"{lost.name} has {len(kept) - 1} bytes"):
        opened(broken)
    lost.unlink()
    with pytest.raises(ConfigError, match=f"{lost.name}, which manifest.json names"):
        opened(broken)
    about = json.loads((stored / "manifest.json").read_text())
    (broken / "manifest.json").write_text(json.dumps(about | {"version": 1}))
    with pytest.raises(ConfigError, match="rfjax-prepared version 1, and this rfjax reads rfjax-prepared version 2"):
        opened(broken)


def test_a_damaged_record_is_named_when_it_is_read(stored, tmp_path):
    broken = tmp_path / "broken"
    shutil.copytree(stored, broken)
    path = sorted(broken.glob("*.train.captions.array_record"))[0]
    data = bytearray(path.read_bytes())
    data[200] ^= 1
    path.write_bytes(bytes(data))
    named = f"{path.name}: one of 9 records read together, the first of them record 3, cannot be read.*rfjax inspect"
    with pytest.raises(RfjaxError, match=named):
        opened(broken).examples(np.arange(40), "train")


def test_more_validation_examples_than_there_are_are_refused_before_training(stored, tmp_path, capsys):
    """A repeated example would make the standard error too small; and training would be over before it was noticed."""
    corpus = opened(stored)
    count = corpus.manifest.count("validation")
    with pytest.raises(
        ConfigError, match=f"has {count} validation images.*evaluation.validation.examples to at most {count}"
    ):
        corpus.examples(np.array([count]), "validation")
    assert train(stored, tmp_path / "run", f"--config.evaluation.validation.examples={count + 1}") == 2
    assert "validation images" in capsys.readouterr().err and not (tmp_path / "run").exists()


@pytest.mark.full  # it compiles a training step; the next test is the quick one
def test_a_corpus_without_validation_images_is_trained_on_with_what_is_printed_for_it(
    monkeypatch, folder, tmp_path, capsys
):
    """Catches a run that asks for a validation example all the same."""
    out, printed = tmp_path / "out", "--config.evaluation.validation.examples=0"
    assert prepare(monkeypatch, folder, f"--out={out}", "--validation-share=0", "--synthetic-column=by_model") == 0
    assert printed in capsys.readouterr().out and train(out, tmp_path / "run", printed) == 0
    assert not list((tmp_path / "run").glob("evaluations/*")) and main(["eval", str(tmp_path / "run")]) == 2
    assert "asks for no evaluation" in capsys.readouterr().err


def test_what_is_printed_without_validation_images_is_no_config_that_training_refuses(
    monkeypatch, folder, tmp_path, capsys
):
    """A single image has no standard error, so it counts as no image."""
    from rfjax import config
    from rfjax.evaluation.evaluate import due_at

    out, printed = tmp_path / "out", "--config.evaluation.validation.examples=0"
    assert prepare(monkeypatch, folder, f"--out={out}", "--validation-share=0", "--synthetic-column=by_model") == 0
    assert printed in capsys.readouterr().out
    evaluation = {"validation": {"examples": 0}, "geneval": {"prompts_per_task": 0}}
    assert due_at(config.from_dict({"evaluation": evaluation}), "run", 2000) == []
    for words, said in (
        (["--config.evaluation.validation.examples=1"], "examples is 1; a standard error needs 2 examples or more"),
        (
            [printed, "--config.evaluation.geneval.prompts_per_task=1"],
            "a score without its validation loss can be compared with nothing",
        ),
    ):
        assert train(out, tmp_path / "other", *words) == 2
        assert said in capsys.readouterr().err
    one = photographs.write_folder(tmp_path / "one", ("moon",))
    assert prepare(monkeypatch, one, f"--out={tmp_path / 'single'}", "--validation-share=1") == 0
    assert printed in capsys.readouterr().out


def test_few_open_files_are_enough(stored, tmp_path):
    """A corpus of a thousand shards must not need a thousand file descriptors, nor one of many buckets as many
    times a limit."""
    found = manifest.read(stored)
    files = found.files("train", "32x32", "captions")
    paths = [stored / name for name in files.names]
    one, all_ = Readers(1), Readers(100)
    few, again, many = (Shards(paths, files.counts, readers=readers) for readers in (one, one, all_))
    order = np.random.default_rng(0).integers(0, len(many), 60)
    descriptors = [len(os.listdir("/proc/self/fd"))]
    read = []
    for shards in (few, again, many):
        read.append(shards.read(order))
        descriptors.append(len(os.listdir("/proc/self/fd")))
    assert read[0] == read[1] == read[2] and len(many) == sum(files.counts)
    assert np.diff(descriptors).tolist() == [1, 0, len(files.names)] and len(files.names) > 2


def test_what_has_no_meaning_here_is_refused_and_the_rest_needs_models(stored):
    corpus = opened(stored)
    assert corpus.evaluation_prompts(4, 0) == [] and corpus.unknown_words(["anything"]) == []
    with pytest.raises(ConfigError, match="no scenes to render"):
        corpus.render_prompt({}, 0)
    with pytest.raises(ConfigError, match="config.data.prepared.models"):
        corpus.to_images(np.zeros((1, 1, 4, 4, 3), np.float32))
    assert corpus.name == "prepared:photos"  # tables tell prepared corpora apart


def train(stored, workdir, *more):
    config = Path(workdir).parent / "tiny.py"
    config.write_text(
        "from ml_collections import ConfigDict\n"
        "def get_config():\n"
        "    return ConfigDict({'model': {'depth': 1, 'hidden': 16, 'head_size': 8, 'position_grid': 4, "
        "'position_tokens': 2},\n"
        "        'train': {'steps': 12, 'batch_size': 4, 'warmup_steps': 2, 'learning_rate': 3e-3, "
        "'checkpoint_every': 6, 'log_every': 6},\n"
        "        'data': {'corpus': 'prepared', 'image_size': 4, 'context_tokens': 12, 'context_size': 20, "
        "'pooled_size': 7,\n"
        f"            'prepared': {{'path': {str(stored)!r}, 'synthetic_captions': 0.5}}}},\n"
        "        'evaluation': {'weights': ('ema',), 'geneval': {'prompts_per_task': 0, 'weights': ('ema',)}, "
        "'validation': {'examples': 2, 'batch_size': 2}}})\n"
    )
    return main(["train", f"--config={config}", f"--workdir={workdir}", *more])


def test_a_run_trains_resumes_and_is_measured_on_it_without_pytorch(stored, tmp_path, capsys, monkeypatch):
    """The process has no PyTorch. The corpus may have moved; its content may not have changed.

    Catches a record that says "prepared" alone: losses on two corpora would share a column.
    """
    script = (
        "import importlib.abc, sys\n"
        "class Without(importlib.abc.MetaPathFinder):\n"
        "    def find_spec(self, name, *_):\n"
        "        if name in ('torch', 'transformers', 'diffusers'): raise ImportError(name)\n"
        "sys.meta_path.insert(0, Without())\n"
        f"sys.path.insert(0, {str(Path(__file__).parent)!r}); from test_prepared_corpus import train; "
        f"sys.exit(train({str(stored)!r}, {str(tmp_path / 'run')!r}))\n"
    )
    environment = child_process.quick_environment()
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    records = [json.loads(path.read_text()) for path in (tmp_path / "run").glob("evaluations/*.json")]
    assert {record["key"]["corpus"] for record in records} == {"prepared:photos"} and len(records) == 1
    measured = mlperf_loss.AssignedLoss(tuple(i / 8 for i in range(8)), np.arange(8), np.ones(8, np.float32))
    monkeypatch.setattr(
        mlperf_loss, "assigned_loss", lambda *_, **__: measured
    )  # the corpus has too few for eight levels
    (tmp_path / "levels.txt").write_text("0 1 2 3 4 5 6 7")
    assert main(["eval", str(tmp_path / "run"), f"--mlperf-levels={tmp_path / 'levels.txt'}"]) == 0
    records = [json.loads(path.read_text()) for path in (tmp_path / "run").glob("evaluations/*.json")]
    assert {record["key"]["corpus"] for record in records} == {"prepared:photos"} and len(records) == 2
    moved = tmp_path / "elsewhere" / "photos"
    shutil.copytree(stored, moved)
    about = json.loads((moved / "manifest.json").read_text())
    about["latents"]["scale"] = 1.0
    about.pop(seals.SEAL)
    (moved / "manifest.json").write_text(json.dumps(seals.seal(about)))
    assert main(["eval", str(tmp_path / "run"), f"--config.data.prepared.path={moved}"]) == 2
    assert "another version of the corpus prepared:photos" in capsys.readouterr().err


def test_prepared_fields_with_another_corpus_are_refused(stored):
    from rfjax import config

    with pytest.raises(ConfigError, match="config.data.prepared.path is .*which the corpus shapes does not read"):
        config.from_dict({"data": {"prepared": {"path": str(stored)}}})
    with pytest.raises(ConfigError, match="config.data.prepared.synthetic_captions is 1.5"):
        config.from_dict({"data": {"corpus": "prepared", "prepared": {"synthetic_captions": 1.5}}})
