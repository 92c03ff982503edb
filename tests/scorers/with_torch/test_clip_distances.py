"""`rfjax score` of clips: FVD's I3D beside the same network written out, V-JEPA 2, what is read and refused."""

import math
import re
from fractions import Fraction

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from helpers import scored_runs, tiny_scorers
from rfjax.cli import main
from rfjax.errors import ConfigError
from rfjax.evaluation.frechet import frechet_distance, moments
from rfjax.evaluation.records import read_records
from rfjax.scorers import i3d, video_embedders, videos, vjepa
from rfjax.scorers.polynomial_mmd import polynomial_mmd

CPU = torch.device("cpu")
FRAMES = 10


@pytest.fixture(scope="module")
def weights():
    """Random, running means and variances too, scaled so that activations stay of order one."""
    torch.manual_seed(0)
    state = i3d.I3D().state_dict()
    for name, value in state.items():
        if name.endswith("conv3d.weight"):
            value.copy_(torch.randn_like(value) * (2 / value[0].numel()) ** 0.5)
        elif name.endswith(("bn.weight", "running_var")):
            value.uniform_(0.7, 1.3)
        elif name.endswith(("bias", "running_mean")):
            value.normal_(0, 0.1)
    return state


@pytest.fixture(scope="module")
def i3d_file(weights, tmp_path_factory):
    path = tmp_path_factory.mktemp("i3d") / "i3d_pretrained_400.pt"
    torch.save(weights, path)
    return path


@pytest.fixture(scope="module")
def vjepa_folder(tmp_path_factory):
    return tiny_scorers.vjepa(tmp_path_factory.mktemp("vjepa"))


def random_clips(count, seed, frames=FRAMES, side=(20, 26)):
    generator = np.random.default_rng(seed)
    shade = generator.integers(0, 200, (count, 1, 1, 1, 3)) + 4 * np.arange(frames)[:, None, None, None]
    return (shade + generator.integers(0, 30, (count, frames, *side, 3))).clip(0, 255).astype(np.uint8)


def save_webp(path, clip):
    first, *rest = (Image.fromarray(frame) for frame in clip)
    first.save(path, save_all=True, append_images=rest, duration=100, lossless=True)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Clips made, as an array of `rfjax sample`, and real ones, as animations."""
    root = tmp_path_factory.mktemp("clips")
    for name in ("made", "real"):
        (root / name).mkdir()
    np.save(root / "made" / "samples.npy", random_clips(6, 0).reshape(3, 2, FRAMES, 20, 26, 3))
    for number, clip in enumerate(random_clips(5, 1)):
        save_webp(root / "real" / f"{number}.webp", clip)
    return root


def written_out(s, x):
    """The network as published, layer by layer, with TensorFlow's padding computed from sizes."""

    def same(x, kernel, stride):
        pads = []
        for size, k, step in zip(x.shape[2:], kernel, stride, strict=True):
            whole = max((math.ceil(size / step) - 1) * step + k - size, 0)
            pads = [whole // 2, whole - whole // 2, *pads]
        return F.pad(x, pads)

    def unit(x, name, stride=(1, 1, 1)):
        kernel = s[f"{name}.conv3d.weight"]
        x = F.conv3d(same(x, kernel.shape[2:], stride), kernel, stride=stride)
        mean, variance = s[f"{name}.bn.running_mean"], s[f"{name}.bn.running_var"]
        x = (x - mean[:, None, None, None]) / torch.sqrt(variance[:, None, None, None] + 1e-5)
        return torch.relu(x * s[f"{name}.bn.weight"][:, None, None, None] + s[f"{name}.bn.bias"][:, None, None, None])

    def pool(x, kernel, stride):
        return F.max_pool3d(same(x, kernel, stride), kernel, stride)

    x = unit(x, "Conv3d_1a_7x7", (2, 2, 2))
    x = pool(x, (1, 3, 3), (1, 2, 2))
    x = unit(unit(x, "Conv3d_2b_1x1"), "Conv3d_2c_3x3")
    x = pool(x, (1, 3, 3), (1, 2, 2))
    for block in ("3b", "3c", "pool", "4b", "4c", "4d", "4e", "4f", "pool", "5b", "5c"):
        if block == "pool":
            size = 3 if x.shape[1] == 480 else 2
            x = pool(x, (size, size, size), (2, 2, 2))
            continue
        m = f"Mixed_{block}"
        branches = [unit(x, f"{m}.b0"), unit(unit(x, f"{m}.b1a"), f"{m}.b1b"), unit(unit(x, f"{m}.b2a"), f"{m}.b2b")]
        x = torch.cat([*branches, unit(pool(x, (3, 3, 3), (1, 1, 1)), f"{m}.b3b")], 1)
    pooled = F.avg_pool3d(x, (2, 7, 7), (1, 1, 1))
    return F.conv3d(pooled, s["logits.conv3d.weight"], s["logits.conv3d.bias"])[:, :, :, 0, 0].mean(2)


def test_i3d_is_the_published_network(weights, i3d_file):
    """Catches branches joined in another order, padding at the wrong end, another epsilon, and logits of one time."""
    loaded = i3d.load(i3d_file, CPU)
    clip = torch.rand(1, 3, 10, 224, 224, generator=torch.Generator().manual_seed(1)) * 2 - 1
    found, wanted = loaded.embed(clip), written_out(weights, clip)
    assert found.shape == (1, 400) and float(wanted.std()) > 0.05
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)
    # The published file has 50,939,526 bytes: 12,720,000 numbers of 4 bytes, and names.
    assert 12.6e6 < sum(value.numel() for value in loaded.model.state_dict().values()) < 12.735e6


def test_other_weights_and_programs_are_refused_or_named(weights, i3d_file, tmp_path, monkeypatch):
    """Catches other weights under FVD's name, a network left partly random, and a file's program that is run."""
    assert i3d.load(i3d_file, CPU).name == "other"
    monkeypatch.setattr(i3d, "OFFICIAL_SHA256", i3d.content_hash(i3d_file))
    assert i3d.load(i3d_file, CPU).name == "i3d-kinetics-400"
    torch.save({name: value for name, value in weights.items() if name != "Mixed_4c.b1b.bn.bias"}, tmp_path / "less.pt")
    with pytest.raises(ConfigError, match=r"1 tensors missing, unknown or of another shape \(Mixed_4c.b1b.bn.bias"):
        i3d.load(tmp_path / "less.pt", CPU)
    with pytest.deprecated_call():
        program = torch.jit.script(torch.nn.Linear(2, 2))
    program.save(str(tmp_path / "i3d_torchscript.pt"))
    with pytest.raises(ConfigError, match="cannot read .*i3d_torchscript.pt is a program, and is not run"):
        i3d.load(tmp_path / "i3d_torchscript.pt", CPU)


def test_frames_are_resized_as_tensorflow_did():
    """By hand: TensorFlow 1 puts output i at i * 2 / 4 = 0, 0.5, 1, 1.5; half-pixel centres would give 0, 25, 75, 100.
    Catches those, an antialias, rows taken for columns, and pixels in [0, 1]."""
    frames = np.zeros((1, 2, 2, 3), np.uint8)
    frames[..., 1, :] = 100
    found = video_embedders.fvd_transform(frames, 4)
    assert found.shape == (3, 1, 4, 4)
    expected = torch.tensor([0, 50, 100, 100]) * 2 / 255 - 1
    torch.testing.assert_close(found[0, 0], expected.expand(4, 4))
    down = video_embedders.fvd_transform(np.arange(48, dtype=np.uint8).reshape(1, 4, 4, 3), 2)
    torch.testing.assert_close((down[0, 0] + 1) * 127.5, torch.tensor([[0.0, 6.0], [24.0, 30.0]]))


def test_polynomial_mmd_is_the_published_one():
    """Against sums by hand, with pairs of a vector with itself. Catches an unbiased estimate, another degree or offset,
    products that are not divided by d, and a scale of 1."""
    generator = np.random.default_rng(0)
    x, y = generator.normal(size=(5, 3)), generator.normal(0.5, 1, size=(4, 3))

    def mean(a, b):
        return np.mean([[(float(u @ v) / 3) ** 2 for v in b] for u in a])

    assert polynomial_mmd(x, y) == pytest.approx(100 * (mean(x, x) + mean(y, y) - 2 * mean(x, y)))
    assert polynomial_mmd(x, x) == pytest.approx(0, abs=1e-12)


def score(folders, metric, network, out, *words):
    paths = [str(folders / "made"), f"--reference={folders / 'real'}"]
    return main(["score", *paths, f"--metric={metric}", network, f"--out={out}", "--batch-size=3", *words])


def small_features(_, inputs):
    """In place of I3D, which is slow: means over parts of a clip."""
    return F.adaptive_avg_pool3d(inputs, (2, 3, 3)).flatten(1)


def test_fvd_of_folders(folders, i3d_file, tmp_path, capsys, monkeypatch):
    """The verb's distance equals the definition on features taken clip by clip, of an array and of animations; stored
    features can replace their folder, but not those of other frames. Catches clips of an array that are mixed up."""
    monkeypatch.setattr(i3d.Loaded, "embed", small_features)
    assert score(folders, "fvd", f"--i3d={i3d_file}", tmp_path / "out", "--frames=9") == 0
    printed = capsys.readouterr().out
    made, real = (
        small_features(None, torch.stack([video_embedders.fvd_transform(clip[:9]) for clip in clips])).double().numpy()
        for clips in (random_clips(6, 0), random_clips(5, 1))
    )
    wanted = float(frechet_distance(moments(made), moments(real)))
    assert float(printed.split()[1].rstrip(":")) == pytest.approx(wanted, rel=1e-3)
    assert "6 clips against 5 of" in printed and "6 clips for features of 54 numbers" in printed
    assert "NOT the metric's own model: fvd other " in printed and "biased by the number of clips, 6" in printed
    kept = tmp_path / "out" / "clips" / "features.npz"
    words = ["score", str(kept), f"--reference={folders / 'real'}", "--metric=fvd", f"--i3d={i3d_file}"]
    assert main([*words, f"--out={tmp_path / 'again'}", "--frames=9"]) == 0
    assert float(capsys.readouterr().out.split()[1].rstrip(":")) == pytest.approx(wanted, rel=1e-3)
    assert main([*words, f"--out={tmp_path / 'other'}", "--frames=10"]) == 2
    assert "distances between them mean nothing" in capsys.readouterr().err


def test_jedis_distance_of_folders(folders, vjepa_folder, tmp_path, capsys):
    """Against JEDi's definition on the pooler's outputs as transformers computes them. Catches axes of time and channel
    exchanged, the classifier's logits or a mean over tokens taken for the pooler, and another column than its own."""
    run = scored_runs.write(tmp_path / "point")
    about = [f"--run={run}", "--step=100", "--sampler=euler-20-cfg4-shift1", "--seed=0"]
    assert score(folders, "mmd-vjepa2", f"--vjepa={vjepa_folder}", tmp_path / "out", *about) == 0
    printed = capsys.readouterr().out
    loaded = vjepa.load(vjepa_folder, CPU)
    pooled = []
    loaded.model.pooler.register_forward_hook(lambda module, given, output: pooled.append(output.double().numpy()))
    for clips in (random_clips(6, 0), random_clips(5, 1)):
        inputs = torch.stack([video_embedders.vjepa_transform(clip, 32) for clip in clips]).movedim(1, 2)
        with torch.no_grad():
            loaded.model(pixel_values_videos=inputs)
    assert pooled[0].shape == (6, 24)
    wanted = polynomial_mmd(*pooled)
    assert wanted > 0 and float(printed.split()[1].rstrip(":")) == pytest.approx(wanted, rel=1e-3)
    assert "biased" not in printed and "not vjepa2-vitl-fpc16-256-ssv2" in printed
    (record,) = (each for each in read_records(run) if each["key"]["evaluation"] == "mmd-vjepa2-other-model")
    (value,) = record["values"]
    assert (value["metric"], value["n"]) == ("mmd_vjepa2_other_model", 6) and value["value"] == pytest.approx(wanted)
    assert record["key"]["corpus"] == "real" and "10 frames" in record["extra"]["models"]["features"]


def test_the_middle_of_a_frame_is_kept_for_vjepa():
    """A frame of 16 x 32 becomes 36 x 72, and the middle 32 x 32 is kept. Catches the aspect lost, and a corner."""
    frames = np.zeros((2, 16, 32, 3), np.uint8)
    frames[:, :, 8:24] = 255
    found = video_embedders.vjepa_transform(frames, 32)
    assert found.shape == (3, 2, 32, 32)
    assert (found > 2).all() and float(found[0, 0, 5, 5]) == pytest.approx((1 - 0.485) / 0.229, abs=1e-5)


@pytest.mark.parametrize(
    ("metric", "words", "message"),
    [
        ("fvd", ["--frames=8"], "the clips have 8 frames, and FVD's I3D needs at least 9"),
        (
            "mmd-vjepa2",
            ["--frames=9"],
            "the clips have 9 frames, and V-JEPA 2 takes 2 at a time; give a --frames that 2",
        ),
        ("mmd-vjepa2", ["--frames=12"], "clip 0 of .* has 10 frames, and 12 are asked for"),
        ("mmd-vjepa2", ["--frames=1"], "--frames is 1; a clip has at least 2: score images with fid-inception"),
        ("mmd-vjepa2", ["--fps=5"], "clip 0 of .* has no times, and --fps asks for a rate; leave it out"),
        ("mmd-vjepa2", ["--fps=fast"], "--fps is 'fast'; it must be frames a second"),
        ("fid-clip", ["--frames=10"], "--metric=fid-clip does not take --frames; leave it out"),
    ],
)
def test_clips_that_cannot_be_scored_are_refused(
    folders, i3d_file, vjepa_folder, tmp_path, capsys, metric, words, message
):
    network = {"fvd": f"--i3d={i3d_file}", "mmd-vjepa2": f"--vjepa={vjepa_folder}", "fid-clip": "--clip=x"}[metric]
    assert score(folders, metric, network, tmp_path / "out", *words) == 2
    assert re.search(message, capsys.readouterr().err)


def test_sets_of_other_lengths_are_refused_and_a_still_is_no_clip(folders, vjepa_folder, tmp_path, capsys):
    """Catches a shorter clip that is compared in silence, and a still counted as a clip."""
    (tmp_path / "real").mkdir()
    (tmp_path / "made").symlink_to(folders / "made")
    save_webp(tmp_path / "real" / "short.webp", random_clips(1, 2, frames=8)[0])
    assert score(tmp_path, "mmd-vjepa2", f"--vjepa={vjepa_folder}", tmp_path / "out") == 2
    assert "short.webp has 8 frames and the first clip 10" in capsys.readouterr().err
    assert score(tmp_path, "mmd-vjepa2", f"--vjepa={vjepa_folder}", tmp_path / "first", "--frames=8") == 0
    Image.fromarray(random_clips(1, 3)[0, 0]).save(tmp_path / "real" / "a.webp")
    Image.fromarray(random_clips(1, 3)[0, 0]).save(tmp_path / "real" / "b.png")
    capsys.readouterr()
    assert score(tmp_path, "mmd-vjepa2", f"--vjepa={vjepa_folder}", tmp_path / "second", "--frames=8") == 2
    error = capsys.readouterr().err
    assert "a.webp has 1 frame, and 8 are asked for" in error and "b.png" in error


def test_files_are_read_at_a_rate_or_as_stored(tmp_path):
    """Catches a clip that is re-timed in silence, and arrays of other numbers."""
    clip = random_clips(1, 4, frames=4)[0]
    first, *rest = (Image.fromarray(frame) for frame in clip)
    first.save(
        tmp_path / "uneven.webp", save_all=True, append_images=rest, duration=[100, 300, 100, 100], lossless=True
    )
    (of,) = videos.clips_of(tmp_path).items
    with pytest.raises(ConfigError, match="variable frame rate.*--fps gives frames at one rate"):
        videos.Reader().read(of)
    np.testing.assert_array_equal(videos.Reader(rate=Fraction(10)).read(of), clip[[0, 1, 1, 1, 2, 3]])
    np.testing.assert_array_equal(videos.Reader(2, Fraction(5)).read(of), clip[[0, 1]])
    (tmp_path / "uneven.webp").unlink()
    np.save(tmp_path / "a.npy", np.zeros((4, 4, 4, 3)))
    with pytest.raises(ConfigError, match=r"has \(4, 4, 4, 3\) of type float64; clips are bytes"):
        videos.clips_of(tmp_path)
    (tmp_path / "a.npy").unlink()
    with pytest.raises(ConfigError, match="no clips .*; give the folder that has them"):
        videos.clips_of(tmp_path)
