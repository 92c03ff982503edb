"""`rfjax plan --sample` by formula. Nothing is compiled."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from rfjax.bench import sampling
from rfjax.bench.sampling import sample_lines, sample_summary
from rfjax.cli import main
from rfjax.config import from_dict
from rfjax.data.batch import BatchShapes
from rfjax.models.flops import forward_flops
from rfjax.plan.estimate import OVER_TIME
from rfjax.plan.sample_command import notes
from rfjax.plan.sampling import LOGITS_TRAFFIC, TRAFFIC, Request, describe_latents, estimate_sampling, plan_sampling
from rfjax.plan.targets import parse_target
from rfjax.study.size import size_of
from rfjax.study.study import Point, load_study
from rfjax.training.chips import GIB
from rfjax.training.run import make_run

FAMILY = Path(__file__).parents[2] / "configs" / "sd3_family.py"
LATENTS = (1, 128, 128, 16)
SHAPES = BatchShapes(latents=LATENTS, context=(154, 4096), pooled=2048, encoders=())
PUBLISHED_SECONDS = 34.0  # Stability AI's announcement of SD3: 8B, 1024x1024, 50 steps, on an RTX 4090 of 24 GB


def config(point="2b", **overrides):
    return load_study(FAMILY, {key.replace("__", "."): value for key, value in overrides.items()}).point(point).config


def estimated(settings, target="rtx4090x1", weights="bfloat16", batch=1, latents=LATENTS):
    return estimate_sampling(settings, parse_target(target), Request(weights, batch, latents))


def test_the_family_has_the_published_sizes():
    """Counts of parameters as in the released checkpoints; stored positions are not trained."""
    counts = [size_of(config(point)).params for point in ("2b", "8b", "3.5-medium")]
    assert counts == [2_028_328_000, 8_056_617_792, 2_243_171_520]


def test_operations_are_those_of_every_evaluation():
    """Catches guidance counted as one evaluation, Heun's method as one a step, and a batch counted whole on each
    device."""
    each = forward_flops(config().model, SHAPES)
    assert estimated(config()).flops == 50 * 2 * each and estimated(config()).evaluations == 100
    assert estimated(config(evaluation__sampler__guidance_scale=1.0)).flops == 50 * each
    part = config(evaluation__sampler__guidance_from=0.5, timestep_shift=1.0)  # 1, 0.98 ... 0.5: 26 of 50 steps
    assert estimated(part).flops == pytest.approx((50 + 26) * each) and estimated(part).evaluations == 76
    heun = config(evaluation__sampler__method="heun", evaluation__sampler__steps=10)
    assert estimated(heun).flops == 10 * 2 * 2 * each
    assert estimated(config(), "rtx4090x4", batch=8).flops == 2 * 50 * 2 * each


def test_stored_weights_take_their_bytes_and_their_room():
    """Catches int8 that is counted as bfloat16, and a type that is converted without the room for it."""
    small = (1, 16, 16, 16)  # of few tokens, so that a layer's weights are larger than its activations
    types = ("float32", "bfloat16", "int8")
    found = {weights: estimated(config(), weights=weights, latents=small) for weights in types}
    sizes = [found[weights].weight_bytes / 2_028_328_000 for weights in found]
    assert sizes == pytest.approx([4.0, 2.0, 1.0], rel=0.02) and sizes[0] > 2 * sizes[1] * 0.99
    rest = [found[weights].peak_bytes - found[weights].weight_bytes for weights in found]
    assert rest[0] == rest[2] > 2 * rest[1]
    assert len({found[weights].flops for weights in found}) == 1


def test_logits_count_where_the_attention_keeps_them():
    """Catches a plan for a GPU with cuDNN that holds 4,250 x 4,250 logits of each head, and one for AMD without."""
    fused, kept = estimated(config()), estimated(config(), "mi300x1")
    assert fused.logits_bytes == 0 and kept.logits_bytes == 4 * 2 * 24 * 4250**2
    assert kept.peak_bytes - fused.peak_bytes >= kept.logits_bytes


def clips(attention="joint"):
    """A config of clips of 16 frames and 16 tokens a frame, with texts of 333 tokens."""
    model = {"depth": 2, "hidden": 128, "head_size": 64, "position_tokens": 4, "temporal_attention": attention}
    data = {"corpus": "random", "frames": 16, "image_size": 8, "channels": 16, "context_tokens": 333}
    return from_dict({"model": model, "data": data | {"context_size": 256, "pooled_size": 64}})


def test_attention_over_space_and_over_time_count_apart():
    """Catches a clip with factorised attention planned with the logits of all its tokens in one sequence: each frame
    attends to its own tokens and to the text, and then all frames' tokens attend to each other."""
    frame, clip, text = 4 * 4, 16 * 4 * 4, 333
    logits = 4 * 2 * 2  # bytes, guided examples, heads
    found = {
        name: estimated(clips(name), "mi300x1", "float32", latents=(16, 8, 8, 16)) for name in ("joint", "factorised")
    }
    assert found["joint"].logits_bytes == logits * (clip + text) ** 2
    assert found["factorised"].logits_bytes == logits * 16 * (frame + text) ** 2
    tokens = {"joint": clip + text, "factorised": 16 * (frame + text) + OVER_TIME * clip}
    squares = {"joint": (clip + text) ** 2, "factorised": 16 * (frame + text) ** 2 + clip**2}
    for name, each in found.items():
        block = TRAFFIC * 2 * tokens[name] * 128 * 4 + LOGITS_TRAFFIC * logits * squares[name]
        read = each.weight_bytes  # float32 weights are used as they are
        assert each.hbm_bytes == pytest.approx(50 * (read + 2 * block))


@pytest.mark.parametrize("latents, sizes", [((1, 8, 12, 16), [8, 12]), ((16, 8, 12, 16), [16, 8, 12])])
def test_latents_are_named_with_their_frames(monkeypatch, latents, sizes):
    """Catches a plan or a benchmark of clips that reads as one of images."""
    said = f"latents of {'x'.join(map(str, sizes))}, 64x96 pixels if the autoencoder divides by 8"
    assert describe_latents(latents) == said
    monkeypatch.setattr(sampling, "sample_seconds", lambda *_: [])
    run, shapes = make_run(clips()), replace(SHAPES, latents=latents)
    found = sampling.measure_samples(run, shapes, None, ("float32",), 1, {"flops_per_second": 1.0}, print)
    assert found["latent_size"] == sizes


def test_weights_that_are_split_are_gathered_for_each_evaluation():
    found = estimated(config(mesh__fsdp=4), "v5e-4", batch=4)
    (gather,) = found.collectives
    assert (gather.kind, gather.ways, gather.times) == ("all-gather", 4, 50) and found.limits.links > 0
    assert found.weight_bytes < 0.27 * estimated(config(), "v5e-4", batch=4).weight_bytes


def test_the_published_time_is_above_the_roofline_and_the_weights_fit():
    """The claim that 8B fits 24 GB and makes an image in 34 s: possible, at 53 % of the peak."""
    found = estimated(config("8b"))
    assert found.limits.slowest == "compute" and 0.5 < found.limits.step / PUBLISHED_SECONDS < 0.55
    assert 15 * GIB < found.weight_bytes < found.peak_bytes < 24_000_000_000
    assert estimated(config("8b"), weights="float32").weight_bytes > 24_000_000_000


def test_the_command_writes_what_it_prints(tmp_path, capsys):
    out = tmp_path / "samples.json"
    command = ["plan", "--sample", f"--config={FAMILY}", "--target=v7x-8", "--no-compile", "--point=2b"]
    assert main([*command, "--weights=bfloat16,int8", "--latent-size=64x96", "--batch=16", f"--out={out}"]) == 0
    printed = capsys.readouterr().out
    assert "8 TensorCores, 8 devices" in printed and "512x768 pixels" in printed and "splash" in printed
    first, second = json.loads(out.read_text())["samples"]
    assert [row["request"]["weights"] for row in (first, second)] == ["bfloat16", "int8"]
    assert first["seconds_per_image"] == first["batch_seconds"] / 16
    assert first["images_per_chip_hour"] == pytest.approx(3600 / (4 * first["seconds_per_image"]))  # four chips
    assert main([*command, f"--out={out}", "--weights=int8"]) == 0  # its own output is written again


def test_points_that_sample_otherwise_are_described_apart():
    """Catches a line on the first point's latents and steps that stands for all points."""
    target, one = parse_target("rtx4090x1"), config("800m")
    few = {"evaluation__sampler__steps": 10, "evaluation__sampler__guidance_scale": 1.0}
    points = [Point(id, settings) for id, settings in (("a", one), ("b", one), ("c", config("800m", **few)))]
    request = Request("bfloat16", 1, LATENTS)
    plans = [plan_sampling(point.id, point.config, target, request, None) for point in points]
    said = [line for line in notes(plans, points, target, False) if "steps of euler" in line]
    assert [line.partition(":")[0] for line in said] == ["a, b", "c"]
    assert "50 steps of euler, guidance 5: 100 evaluations" in said[0] and "10 steps of euler, guidance 1." in said[1]
    (alone,) = (line for line in notes(plans[:1], points, target, False) if "steps of euler" in line)
    assert said[0] == f"a, b: {alone}"


def test_what_does_not_fit_ends_with_status_one(capsys):
    command = ["plan", "--sample", f"--config={FAMILY}", "--target=rtx4090x1", "--no-compile", "--point=8b"]
    assert main([*command, "--weights=float32"]) == 1
    assert "NO" in capsys.readouterr().out


@pytest.mark.parametrize(
    "options, message",
    [
        (("--weights=int8",), "--weights belongs to --sample"),
        (("--sample", "--weights=int4"), "--weights has 'int4'; it takes float32, bfloat16, int8"),
        (("--sample", "--search"), "--search is for the plan of a training"),
        (("--sample", "--batch=3"), "--batch is 3; it must be a multiple of the 4 devices"),
        (("--sample", "--batch=0"), "--batch is 0"),
        (("--sample", "--latent-size=128"), "--latent-size is '128'; it must be height x width"),
        (("--sample", "--latent-size=129x128"), "the height 129 is not divisible by"),
    ],
)
def test_what_cannot_be_sampled_is_refused(options, message, capsys):
    command = ["plan", f"--config={FAMILY}", "--target=v5e-4", "--no-compile", "--point=2b"]
    assert main([*command, *options]) == 2
    assert message in capsys.readouterr().err


def test_the_benchs_numbers_are_arithmetic_on_what_was_measured():
    """Catches seconds of a batch given as those of an image, and a chip of two devices that counts twice."""
    row = {"weights": "int8", "batch_seconds": 8.0, "weight_bytes": 1, "compiled_peak_bytes": None}
    row |= {"device_peak_bytes": None, "error_of_latents": 0.003}
    given = {"batch": 16, "evaluations": 100, "forward": 10, "devices": 8, "peak": 4000.0}
    (found,) = sample_summary([row], device_kind="TPU7x", **given)
    assert found["seconds_per_image"] == 0.5 and found["images_per_chip_hour"] == 1800  # four chips
    assert found["share_of_measured_peak"] == 16 * 100 * 10 / 8.0 / 4000.0
    (other,) = sample_summary([row], device_kind="cpu", **given)
    assert other["images_per_chip_hour"] == 900 and other["share_of_datasheet_peak"] is None
    record = {"hardware": {"devices": 8, "device_kind": "TPU7x"}, "params": 5, "batch": 16, "latent_size": [8, 8]}
    record |= {"sampler": {"steps": 50, "method": "euler", "guidance_scale": 5.0}, "attention": "splash"}
    printed = "\n".join(sample_lines(record | {"samples": [found]}))
    assert "1,800" in printed and "0.003" in printed
