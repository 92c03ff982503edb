"""Image tokens, tokens per parameter and how often an image was seen, from run.json and config.json."""

import json

import numpy as np
import pytest

from helpers import planted_study
from rfjax.data.buckets import Schedule
from rfjax.results import merge
from rfjax.results.tokens import COLUMNS, UNKNOWN, read_tokens

CONFIG = {
    "model": {"backbone": "mmdit", "patch_size": 2},
    "data": {"corpus": "shapes", "image_size": 16, "context_tokens": 16},
}
RUN = {"params": 1000, "batch_size": 10, "seed": 3, "parent": None, "buckets": None, "config": CONFIG}
NOTHING = dict.fromkeys(COLUMNS)


def changed(**sections):
    return RUN | {"config": {name: CONFIG[name] | sections.get(name, {}) for name in CONFIG}}


def test_square_latents_are_counted_by_the_config():
    """64 tokens of an image, 16 of its text, 50 images, 1,000 parameters."""
    seen = read_tokens(RUN).seen(5, 50)
    assert seen == {
        "image_tokens": 3200,
        "image_tokens_per_param": 3.2,
        "tokens_per_param": 4.0,
        "times_seen": None,  # shapes draws its images
    }
    video = changed(model={"temporal_patch_size": 2}, data={"frames": 8})
    assert read_tokens(video).seen(5, 50)["image_tokens"] == 4 * 3200
    copies = changed(model={"temporal_patch_size": 2, "temporal_attention": "factorised"}, data={"frames": 8})
    assert read_tokens(copies).seen(5, 50) == read_tokens(video).seen(5, 50)  # a caption counts once


def test_run_json_tells_what_the_config_does_not():
    """A prepared corpus's latents need not be square: image_size is their longer side."""
    prepared = changed(data={"corpus": "prepared"})
    assert read_tokens(prepared).seen(5, 50) == NOTHING
    told = prepared | {"image_tokens": [40], "training_images": 25}
    assert read_tokens(told).seen(5, 50) == {
        "image_tokens": 2000,
        "image_tokens_per_param": 2.0,
        "tokens_per_param": 2.8,
        "times_seen": 2.0,
    }


@pytest.mark.parametrize("step", [1, 7, 999, 1000, 2345])
def test_aspect_buckets_are_counted_step_by_step(step):
    """Catches the mean over a cycle, which is a wrong number amid one."""
    quotas, sizes = (500, 300, 200), ([4, 4], [2, 8], [6, 4])
    buckets = [{"latent_size": size, "steps_of_cycle": q} for size, q in zip(sizes, quotas, strict=True)]
    schedule = Schedule(quotas, 3)
    tokens = sum((4, 4, 6)[schedule.at(place)[0]] for place in range(step))
    for facts in ({}, {"image_tokens": [4, 4, 6]}):
        seen = read_tokens(RUN | {"buckets": buckets} | facts).seen(step, 10 * step)
        assert seen["image_tokens"] == 10 * tokens


@pytest.mark.parametrize(
    "facts",
    [
        RUN | {"parent": {"run": "x", "step": 9, "images": 90}},
        changed(model={"patch_size": 0}),
        RUN | {"config": {}},
        {"params": 1000},
        RUN | {"buckets": [{"latent_size": [4, 4], "steps_of_cycle": 1}]},
        RUN | {"buckets": [{}], "image_tokens": [1, 2]},
        RUN | {"batch_size": None},
    ],
)
def test_what_is_not_told_is_empty(facts):
    """Catches a guess: a parent's images in the child's sizes, or one shape where there are several."""
    seen = read_tokens(facts).seen(5, 50)
    assert {name: seen[name] for name in COLUMNS[:3]} == dict.fromkeys(COLUMNS[:3])


def test_images_that_are_not_steps_times_batch_are_not_counted():
    assert read_tokens(RUN).seen(5, 51) == NOTHING == UNKNOWN.seen(0, 0)


@pytest.mark.parametrize("backbone", ["crossdit", "dit_class"])
def test_text_that_is_not_in_the_sequence_has_no_ratio(backbone):
    seen = read_tokens(changed(model={"backbone": backbone})).seen(5, 50)
    assert seen["tokens_per_param"] is None and seen["image_tokens_per_param"] == 3.2


def test_the_table_has_the_columns(tmp_path):
    """Catches a column that is lost between the run's files and the wide table, and a number for a run without it."""
    for name in ("new", "old"):
        planted_study.write_run(tmp_path / name, name, 1, 500, samples=False)
    facts = json.loads((tmp_path / "new" / "run.json").read_text())
    (tmp_path / "new" / "run.json").write_text(json.dumps(facts | {"image_tokens": [64], "training_images": 1000}))
    (tmp_path / "new" / "config.json").write_text(json.dumps(CONFIG))
    wide = merge.collect([tmp_path / "new", tmp_path / "old"], tmp_path / "results").wide
    last = wide[wide["final"] == 1].drop_duplicates("run").set_index("run")
    assert last.loc["new", "image_tokens"] == 64 * 500 * 64 == 64 * last.loc["new", "images"]
    assert last.loc["new", "image_tokens_per_param"] == pytest.approx(64 * 500 * 64 / planted_study.params_of(1))
    assert last.loc["new", "tokens_per_param"] == pytest.approx(80 / 64 * last.loc["new", "image_tokens_per_param"])
    assert last.loc["new", "times_seen"] == 32.0
    assert last.loc["old", list(COLUMNS)].isna().all() and np.isfinite(last.loc["old", "images"])
