"""Stills and clips in one run: batches by a budget of tokens, closed in (seed, step), at every way of cutting a run."""

import json
import shutil
import signal
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from helpers import child_process, mixed_tiny
from helpers.bucketed_tiny import stop_at
from helpers.mixed_tiny import SETTINGS, mixed_config, mixed_run, mixed_train
from helpers.training_tiny import rows
from rfjax.config import apply_overrides
from rfjax.data.buckets import CYCLE
from rfjax.data.loader import batch_of_step
from rfjax.data.stream import batch_sizes, stream_of
from rfjax.errors import ConfigError, Preempted
from rfjax.evaluation import step_sweep
from rfjax.evaluation.evaluate import Evaluator, due_at
from rfjax.evaluation.records import read_records, write_record
from rfjax.models.flops import training_flops
from rfjax.results import merge
from rfjax.study.size import size_of
from rfjax.training import checkpoint
from rfjax.training.loss import make_loss, run_keys
from rfjax.training.run import plan_run

STEPS = SETTINGS["train.steps"]
SIZES = (20, 4, 4)  # 640 tokens: 4 examples of 144 + 16; 20 of 16 + 16; 4 of 128 + 16, since 5 would be no multiple


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("mixed") / "undisturbed"
    return workdir, mixed_train(workdir)


def steps_of(run, steps=STEPS, offset=0):
    """By step, (part, first example), counted one by one."""
    seen, found = [0] * len(run.corpus.parts), []
    for step in range(offset + steps):
        part, _ = run.stream.schedule.at(step)
        found.append((part, seen[part]))
        seen[part] += run.stream.sizes[part]
    return found[offset:]


def test_a_budget_gives_whole_multiples_of_the_batch_size():
    """By hand. Catches a batch beyond the budget, one that a mesh cannot divide, and an empty one."""
    assert batch_sizes((80, 32, 48, 200), 32, 32 * 80) == (32, 64, 32, 32)
    assert batch_sizes((3,), 4, 100) == (32,)


def test_the_stream_counts_examples(undisturbed):
    """Catches a place in a part that counts steps of another batch size, and a child that begins too late or early."""
    run = plan_run(mixed_config())
    assert run.stream.sizes == SIZES
    found = steps_of(run, 3 * CYCLE // 2)
    assert [run.stream.at(step) for step in range(len(found))] == found
    taken = np.cumsum([0, *(SIZES[part] for part, _ in found)])
    assert [run.stream.examples_before(step) for step in (0, 1, 7, CYCLE, len(found))] == [
        taken[step] for step in (0, 1, 7, CYCLE, len(found))
    ]
    for step in (0, 1, 5, 1203):
        assert (
            run.stream.step_after(int(taken[step])) == step and run.stream.step_after(int(taken[step]) + 1) == step + 1
        )


def test_shares_are_those_of_the_examples():
    """Catches shares of the steps: larger batches of stills would be most of what is seen."""
    run = plan_run(mixed_config())
    images = np.array(run.images_of_cycle)
    assert np.abs(images / images.sum() - [0.5, 0.25, 0.25]).max() < 0.005
    even = stream_of(run.corpus, 4).schedule.quotas
    assert even == (500, 250, 250) and run.stream.schedule.quotas == (167, 417, 416)


def test_a_batch_is_its_parts_own_examples_and_no_scene_is_in_two():
    """Catches places that start over, and the still of a clip that is shown as well."""
    run = plan_run(mixed_config())
    for step, (part, first) in enumerate(steps_of(run, 6)):
        batch = batch_of_step(run.corpus, step, batch_size=run.stream.sizes)
        alone = run.corpus.parts[part].examples(np.arange(first, first + SIZES[part]), "train")
        assert np.array_equal(batch.latents, alone.latents) and np.array_equal(batch.example_ids, alone.example_ids)
    ids = [part.examples(np.arange(3), "validation").example_ids for part in run.corpus.parts]
    assert len(np.unique(ids)) == 9
    backgrounds = [part.clips(np.arange(9), "train")[1].background for part in run.corpus.parts]
    assert len(np.unique(backgrounds)) == 27


def test_images_and_flops_are_those_of_the_steps(undisturbed, tmp_path):
    """Against a sum over steps. Catches batch_size times steps, and a mean over steps in place of images."""
    run = plan_run(mixed_config())
    each = [training_flops(run.config.model, part.shapes) for part in run.corpus.parts]
    parts = [part for part, _ in steps_of(run)]
    seen = rows(undisturbed[0])
    assert [row["images"] for row in seen] == np.cumsum([SIZES[part] for part in parts]).tolist()
    assert [row["flops"] for row in seen] == np.cumsum([SIZES[part] * each[part] for part in parts]).tolist()
    record = json.loads((undisturbed[0] / "run.json").read_text())
    assert [bucket["batch_size"] for bucket in record["buckets"]] == list(SIZES)
    cycle = [bucket["steps_of_cycle"] * bucket["batch_size"] for bucket in record["buckets"]]
    assert record["flops_per_image"] == round(np.dot(cycle, each) / sum(cycle))
    size = size_of(run.config)
    assert size.images == seen[-1]["images"] and size.flops == seen[-1]["flops"]
    child = mixed_train(tmp_path, {"train.steps": 3}, init_from=f"{undisturbed[0]}@{STEPS}")
    assert child.images == seen[-1]["images"] + sum(SIZES[part] for part, _ in steps_of(run, 3, STEPS))


def test_stopped_runs_resume_to_the_same_bits_and_rows(undisturbed, tmp_path):
    """Catches a count of examples or a mean by bucket that starts anew with an attempt."""
    while True:
        try:
            mixed_train(tmp_path, stop=stop_at(3))
            break
        except Preempted:
            continue
    assert len(json.loads((tmp_path / "run.json").read_text())["starts"]) > 2
    assert rows(tmp_path) == rows(undisturbed[0])
    sums = [checkpoint.read_facts(path, STEPS)["checksums"] for path in (tmp_path, undisturbed[0])]
    assert sums[0] == sums[1]


def test_a_steps_loss_is_that_of_its_bucket_and_its_shift(tmp_path):
    """Catches noise of the first places alone, frames of the pixels for those of the latent, and a shift that training
    has and the loss by bucket forgets: against the loss by hand, at parameters that do not move."""
    still = {"train.learning_rate": 0.0, "timestep_shift_frames": 0.5}
    mixed_train(tmp_path, still)
    run = mixed_run(apply_overrides(mixed_config(), still), tmp_path)
    plain = apply_overrides(mixed_config(), {"train.learning_rate": 0.0})
    params, by_bucket = run.backbone.init(run_keys(run.config.seed)[0]), {}
    for step, (part, first) in enumerate(steps_of(run)):
        corpus, size = run.corpus.parts[part], SIZES[part]
        shifted = apply_overrides(plain, {"timestep_shift": corpus.frames**0.5})
        loss = make_loss(shifted, run.backbone.apply, corpus.shapes.encoders)
        batch = corpus.examples(np.arange(first, first + size), "train")
        expected, _ = jax.jit(loss)(params, batch, jnp.int32(step), jnp.arange(size, dtype=jnp.int32))
        row = rows(tmp_path)[step]
        assert row["loss"] == pytest.approx(float(expected), rel=1e-5)
        shown = {name: value for name, value in row["loss_by_bucket"].items() if value is not None}
        assert shown == {["16x16", "8x16x16", "9x16x16"][part]: row["loss"]}
        by_bucket[part] = row["loss"]
    assert set(by_bucket) == {0, 1, 2}


def test_counts_of_sampling_steps_are_measured_on_the_stills(undisturbed, tmp_path, monkeypatch):
    """Catches a corpus of several shapes where one shape is sampled."""
    shutil.copytree(undisturbed[0], tmp_path / "run")
    more = {"evaluation.geneval.prompts_per_task": 2, "evaluation.geneval.batch_size": 4}
    run = mixed_run(mixed_config(more), tmp_path / "run")
    monkeypatch.setattr(step_sweep, "open_run", lambda workdir, overrides: run)
    records = step_sweep.measure_sampling_steps(tmp_path / "run", {}, (1, 2), step=None, weights="ema")
    prompts = run.corpus.parts[0].evaluation_prompts(2, 0)
    images = len(prompts) * run.config.evaluation.geneval.images_per_prompt
    assert [record["values"][0]["n"] for record in records] == [images, images]
    assert {record["key"]["corpus"] for record in records} == {run.config.data.label}


def test_stills_and_clips_to_look_at_are_both_kept(undisturbed, tmp_path):
    """Catches clips that replace GenEval's stills of the same sampler and seed: their record, their picture, and their
    sheet in the results folder. Clips that such a run once recorded as "samples" are one sheet, not two."""
    workdir = shutil.copytree(undisturbed[0], tmp_path / undisturbed[0].name)
    sizes = {"geneval.images_per_prompt": 1, "temporal.clips_per_prompt": 1, "sampler.steps": 1}
    for kind in ("geneval", "temporal"):
        sizes |= {f"{kind}.prompts_per_task": 2, f"{kind}.batch_size": 4}
    run = mixed_run(mixed_config({f"evaluation.{name}": value for name, value in sizes.items()}), workdir)
    due = [each for each in due_at(run.config, run.name, STEPS) if each.kind != "validation" and each.weights == "ema"]
    assert len({(each.key["sampler"], each.key["seed"]) for each in due}) == 1 and len(due) == 2
    Evaluator(run).measure(due)
    found = {r["key"]["evaluation"]: r for r in read_records(workdir) if r["extra"].get("png")}
    assert set(found) == {"samples", "temporal_samples"}
    old = found["temporal_samples"]
    write_record(workdir, old | {"key": old["key"] | {"evaluation": "samples", "weights": "raw"}})
    write_record(workdir, old | {"key": old["key"] | {"weights": "raw"}})
    sheets = merge.collect([workdir], tmp_path / "results").samples
    assert len(sheets) == len({sheet.png for sheet in sheets}) == 3
    stills, clips = sorted((sheet for sheet in sheets if sheet.weights == "ema"), key=lambda sheet: sheet.webp)
    assert not stills.webp and all(prompt.startswith("a still of") for prompt in stills.prompts)
    assert clips.webp and all(prompt.startswith("a video of") for prompt in clips.prompts)


@pytest.mark.parametrize(
    "overrides, message",
    [
        ({"train.tokens_per_batch": 639}, "is 639.*have 640 tokens; give at least 640 and below 1280"),
        ({"train.tokens_per_batch": 1280}, "is 1280.*at least 640 and below 1280, or -1 for 640"),
        ({"train.tokens_per_batch": -2}, "config.train.tokens_per_batch is -2; it must be at least -1"),
        ({"data.buckets": ("16x16@0.5", "8x16x16@0.4")}, "config.data.buckets.*their shares add up to 1"),
        ({"data.buckets": ("16x16@0.5", "16x16@0.5")}, "each shape once"),
        ({"data.buckets": ("16x16@0.5", "8x16x16")}, "config.data.buckets has '8x16x16'; a bucket is FRAMESx"),
        ({"data.buckets": ("16x16@0.5", "7x16x16@0.5")}, "has 7x16x16@0.5, which the world full .* does not have"),
        ({"data.buckets": ("16x16@0.5", "8x16x18@0.5")}, "has 8x16x18@0.5; the pictures .* are squares"),
        ({"data.buckets": ("17x17@1",)}, "has 17x17@1; the motion corpus needs an even one from 16 to 32"),
        ({"data.frames": 8}, "data.buckets is .* and config.data.frames is 8; buckets say their frames themselves"),
        ({"data.corpus": "random", "data.world": "first"}, "config.data.corpus is random; only these corpora"),
        (
            {"model.temporal_patch_size": 4},
            "latents of 9 frames .* not divisible by config.model.temporal_patch_size=4",
        ),
    ],
)
def test_refused_by_name(overrides, message):
    with pytest.raises(ConfigError, match=message):
        plan_run(apply_overrides(mixed_config(), overrides))


def test_a_bucket_with_fewer_images_than_its_batch_is_refused(tmp_path):
    """Catches batches that show the same image several times in a step."""
    from helpers.bucketed_tiny import SETTINGS as SMALL
    from helpers.bucketed_tiny import bucketed, pixelwise
    from helpers.training_tiny import run_in, tiny_config
    from rfjax.data.buckets import BucketedCorpus

    config = tiny_config(SMALL | {"train.tokens_per_batch": -1})
    whole = bucketed(config)

    class Few(type(whole.parts[0])):
        training_images = 3

    parts = (*whole.parts[:2], Few(**vars(whole.parts[2])))
    corpus = BucketedCorpus("few", parts, 0, (50, 30, 3), (9, 6, 3))
    with pytest.raises(ConfigError, match="the bucket 6x4 of few has 3 training images, and .* batches of 4"):
        run_in(tmp_path, config, corpus, pixelwise(config))


@pytest.mark.full
@pytest.mark.parametrize("mesh", ["1x8", "2x4", "4x2"])
def test_every_mesh_resumes_with_the_same_bits(mesh, undisturbed, tmp_path):
    """Catches batches laid out by another bucket's size, and a resumed run on a mesh that sees other data."""
    command = [sys.executable, mixed_tiny.__file__, str(tmp_path), mesh]
    ended = subprocess.run(command, env=child_process.quick_environment(8), capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    out = json.loads(ended.stdout)
    assert out["devices"] == 8 and out["sums"][0] == out["sums"][1]
    assert [row["images"] for row in out["rows"]] == [2 * row["images"] for row in rows(undisturbed[0])]
    assert np.std([row["loss"] for row in out["rows"]]) > 1e-3


@pytest.mark.full
def test_killed_runs_end_with_the_same_bits(tmp_path):
    """Really killed, twice. Catches a position that is kept in memory alone."""
    steps = 200
    mixed_train(tmp_path / "whole", {"train.steps": steps, "train.checkpoint_every": 10})
    folder = tmp_path / "killed"
    command = [sys.executable, mixed_tiny.__file__, str(folder), str(steps)]
    for beyond in (10, 60):
        with subprocess.Popen(command, env=child_process.quick_environment(1)) as process:
            while process.poll() is None and max([0, *checkpoint.steps_saved(folder)]) < beyond:
                time.sleep(0.01)
            process.kill()
        assert process.returncode == -signal.SIGKILL
    mixed_train(folder, {"train.steps": steps, "train.checkpoint_every": 10})
    assert len(json.loads((folder / "run.json").read_text())["starts"]) == 3
    sums = [checkpoint.read_facts(path, steps)["checksums"] for path in (folder, tmp_path / "whole")]
    assert sums[0] == sums[1] and rows(folder) == rows(tmp_path / "whole")
