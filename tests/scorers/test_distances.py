"""FID and CMMD against closed forms and brute force; features in files; T2I-CompBench's files. No torch."""

import json
import math

import numpy as np
import pytest
from scipy import integrate, linalg

from rfjax.errors import ConfigError
from rfjax.evaluation.frechet import Moments, frechet_distance
from rfjax.evaluation.image_folders import compbench
from rfjax.scorers import distances, folder_features
from rfjax.scorers.cmmd import SCALE, SIGMA, cmmd


def with_moments(generator, n, mean, root):
    """n points whose mean and covariance (divisor n - 1) are exactly `mean` and root root^T."""
    values = generator.normal(size=(n, len(mean)))
    values -= values.mean(0)
    covariance = values.T @ values / (n - 1)
    return values @ np.linalg.inv(linalg.cholesky(covariance)) @ root.T + mean


def fid(tmp_path, a, b):
    np.save(tmp_path / "a.npy", a)
    np.save(tmp_path / "b.npy", b)
    return distances.measure(
        "fid-inception", tmp_path / "a.npy", tmp_path / "b.npy", tmp_path, embed=None, model="", batch_size=1
    ).value


def test_fid_is_the_closed_form(tmp_path):
    """Equal covariances: |m1 - m2|^2. Commuting ones: plus the squared differences of the standard deviations.
    Any: scipy's square root of the product. Catches a divisor of n, and a root of another product."""
    generator = np.random.default_rng(0)
    d, n = 6, 50
    root = np.tril(generator.normal(size=(d, d)))
    mean = generator.normal(size=d)
    first = with_moments(generator, n, np.zeros(d), root)
    assert fid(tmp_path, with_moments(generator, 80, mean, root), first) == pytest.approx(mean @ mean, rel=1e-9)
    assert fid(tmp_path, first, first) == pytest.approx(0, abs=1e-9)
    s, t = generator.uniform(0.5, 2, d), generator.uniform(0.5, 2, d)
    turn = linalg.qr(generator.normal(size=(d, d)))[0]
    both = [with_moments(generator, n, m, turn @ np.diag(sd)) for m, sd in ((mean, s), (0 * mean, t))]
    assert fid(tmp_path, *both) == pytest.approx(mean @ mean + ((s - t) ** 2).sum(), rel=1e-9)
    other = np.tril(generator.normal(size=(d, d)))
    product = root @ root.T @ other @ other.T
    general = mean @ mean + np.trace(root @ root.T + other @ other.T) - 2 * np.trace(linalg.sqrtm(product)).real
    assert fid(
        tmp_path, with_moments(generator, n, mean, root), with_moments(generator, n, 0 * mean, other)
    ) == pytest.approx(general, rel=1e-7)


def test_fid_of_a_stored_gaussian(tmp_path):
    """pytorch-fid's `mu` and `sigma` replace the real images. Catches `mu` and `sigma` taken for features."""
    generator = np.random.default_rng(1)
    values = generator.normal(size=(30, 4))
    np.savez(tmp_path / "stats.npz", mu=values.mean(0), sigma=np.cov(values, rowvar=False))
    np.save(tmp_path / "values.npy", values)
    found = distances.measure(
        "fid-inception", tmp_path / "values.npy", tmp_path / "stats.npz", tmp_path, embed=None, model="", batch_size=1
    )
    assert found.value == pytest.approx(0, abs=1e-9) and found.images.n == 30 and found.reference.n is None
    assert frechet_distance(Moments(np.zeros(1), np.eye(1) * 4.0), Moments(np.ones(1), np.eye(1))) == pytest.approx(2.0)


def test_cmmd_is_every_pair_one_by_one():
    """The published estimator: the diagonal is in the means. Catches the unbiased one, another sigma, and blocks
    that are lost or counted twice."""
    generator = np.random.default_rng(2)
    x, y = generator.normal(size=(7, 5)) * 4, generator.normal(size=(4, 5)) * 4 + 3

    def kernel(a, b):
        return math.exp(-sum((p - q) ** 2 for p, q in zip(a, b, strict=True)) / (2 * 10**2))

    def mean(a, b):
        return sum(kernel(p, q) for p in a for q in b) / (len(a) * len(b))

    assert cmmd(x, y) == pytest.approx(1000 * (mean(x, x) + mean(y, y) - 2 * mean(x, y)), rel=1e-10)
    assert cmmd(x, x) == pytest.approx(0, abs=1e-9)
    long = generator.normal(size=(4500, 3))
    assert cmmd(long, y[:, :3]) == pytest.approx(cmmd(y[:, :3], long[::-1]), rel=1e-9)


def test_cmmd_of_half_floats(tmp_path):
    """Catches squares that overflow in float16, which made all vectors 0 and so the distance 0; and a row without a
    direction, which made it nan."""
    generator = np.random.default_rng(2)
    a, b = 30 * generator.normal(size=(2, 20, 64)) + np.array([0, 20])[:, None, None]
    for name, values in (("a", a), ("b", b), ("zero", a * (np.arange(20) != 3)[:, None])):
        np.save(tmp_path / f"{name}.npy", (10 * values).astype(np.float16))
    measure = lambda a, b: distances.measure(  # noqa: E731
        "cmmd", tmp_path / f"{a}.npy", tmp_path / f"{b}.npy", tmp_path, embed=None, model="", batch_size=1
    )
    expected = cmmd(*(values / np.linalg.norm(values, axis=1, keepdims=True) for values in (a, b)))
    assert measure("a", "b").value == pytest.approx(expected, rel=1e-3)
    with pytest.raises(ConfigError, match="row 3 of the features is all zeros"):
        measure("zero", "b")


def test_cmmd_of_gaussians_is_its_integral():
    """Two Gaussians on a line: the kernel's mean over normal differences, in closed form and by quadrature. A large
    sample comes near it, from above by the diagonal's share."""
    m, s, t, n = 6.0, 3.0, 5.0, 6000

    def expected(mean, variance):  # of k(difference), difference ~ N(mean, variance)
        return SIGMA / math.sqrt(SIGMA**2 + variance) * math.exp(-(mean**2) / 2 / (SIGMA**2 + variance))

    def density(u):
        return math.exp(-((u - m) ** 2) / 2 / (s * s + t * t)) / math.sqrt(2 * math.pi * (s * s + t * t))

    quadrature = integrate.quad(lambda u: math.exp(-(u**2) / 2 / SIGMA**2) * density(u), -80, 90)[0]
    assert quadrature == pytest.approx(expected(m, s * s + t * t), rel=1e-9)
    population = expected(0, 2 * s * s) + expected(0, 2 * t * t) - 2 * expected(m, s * s + t * t)
    diagonal = (1 - expected(0, 2 * s * s)) / n + (1 - expected(0, 2 * t * t)) / n
    generator = np.random.default_rng(3)
    found = cmmd(generator.normal(0, s, (n, 1)), generator.normal(m, t, (n, 1)))
    assert found == pytest.approx(SCALE * (population + diagonal), rel=0.05)


def features_file(path, values, model):
    np.savez(path, features=values, model=np.array(model))
    return path


def test_features_of_two_models_are_not_compared(tmp_path):
    """Catches a distance between CLIP's and Inception's features, which is a number like any other."""
    values = np.random.default_rng(4).normal(size=(9, 3)).astype(np.float32)
    ours = features_file(tmp_path / "ours.npz", values, "cmmd ViT-L/14@336 aa")
    theirs = features_file(tmp_path / "theirs.npz", values, "cmmd other bb")
    measure = lambda kind, a, b: distances.measure(kind, a, b, tmp_path, embed=None, model="", batch_size=1)  # noqa: E731
    with pytest.raises(ConfigError, match="distances between them mean nothing"):
        measure("cmmd", ours, theirs)
    assert measure("cmmd", ours, ours).standard
    assert not measure("cmmd", theirs, theirs).standard
    assert not measure("fid-clip", ours, ours).standard  # of ViT-L/14 at 224
    resized = features_file(tmp_path / "resized.npz", values, "fid-clip ViT-L/14@336 aa")
    assert not measure("cmmd", resized, resized).standard  # the right model, and images resized for another metric
    np.save(tmp_path / "longer.npy", np.ones((4, 5)))
    with pytest.raises(ConfigError, match="3 numbers and the reference's 5"):
        measure("fid-clip", ours, tmp_path / "longer.npy")
    for name, content, message in (
        ("whole.npy", np.ones((3, 2), int), "must be floats"),
        ("flat.npy", np.ones(3), "must be floats"),
        ("nan.npy", np.full((3, 2), np.nan), "not finite"),
        ("object.npy", np.array([{}]), "plain numbers"),
    ):
        np.save(tmp_path / name, content, allow_pickle=True)
        with pytest.raises(ConfigError, match=message):
            folder_features.from_file(tmp_path / name, None)
    with pytest.raises(ConfigError, match="only the mean and covariance of the features"):
        np.savez(tmp_path / "stats.npz", mu=np.zeros(3), sigma=np.eye(3))
        measure("cmmd", ours, tmp_path / "stats.npz")


@pytest.fixture
def pictures(tmp_path):
    folder = tmp_path / "pictures"
    (folder / "b").mkdir(parents=True)
    for index in range(5):
        (folder / ("b" if index % 2 else ".") / f"{index}.png").write_bytes(bytes([index]))
    (folder / "b" / "grid.png").write_bytes(b"passed over")
    (folder / "notes.txt").write_text("passed over")
    return folder


def test_features_go_on_where_they_were_stopped(pictures, tmp_path, monkeypatch):
    """Shards that are whole are kept while their images are the same. Catches features of another image, lost,
    doubled or out of order."""
    monkeypatch.setattr(folder_features, "SHARD", 2)
    seen = []

    def embed(paths):
        if len(seen) == 3 and not stopped:
            stopped.append(True)
            raise KeyboardInterrupt
        seen.extend(path.name for path in paths)
        return np.array([[path.read_bytes()[0], 1.0] for path in paths], np.float32)

    stopped, out = [], tmp_path / "out"
    run = lambda model="m": folder_features.of_folder(pictures, out, model, embed, name="n", batch_size=1)  # noqa: E731
    with pytest.raises(KeyboardInterrupt):
        run()
    assert seen == ["0.png", "2.png", "4.png"]
    found = run()
    assert seen[3:] == ["4.png", "1.png", "3.png"]
    assert found.values[:, 0].tolist() == [0, 2, 4, 1, 3] and found.n == 5
    again = folder_features.from_file(out / "features.npz", "m")
    assert (again.values == found.values).all() and again.sha256 == found.sha256
    (pictures / "4.png").write_bytes(bytes([9]))
    (out / "shards" / "00002.npz").write_bytes(b"torn")
    changed = run()
    assert changed.values[:, 0].tolist() == [0, 2, 9, 1, 3]
    assert seen[6:] == ["4.png", "1.png", "3.png"]
    assert changed.sha256 != found.sha256
    with pytest.raises(ConfigError, match="was begun with model 'm', and this is 'other'"):
        run("other")


@pytest.fixture
def scored(tmp_path):
    """A category as its scorers leave it: two prompts, two images each."""
    folder = tmp_path / "bench"
    prompts = ["a red apple and a green bowl", "a round clock"]
    images = ((index, sample, b"png") for index in range(2) for sample in range(2))
    compbench.write(folder / "color", prompts, images, images_per_prompt=2)
    place = folder / "color" / "annotation_blip" / "vqa_result.json"
    place.parent.mkdir()
    place.write_text(
        json.dumps([{"question_id": n, "answer": f"{answer:.4f}"} for n, answer in enumerate((0.5, 0.7, 0.1, 0.3))])
    )
    return folder


def test_compbench_layout_and_scores(scored, capsys):
    """By hand: mean 0.4, and clusters of residuals +0.4 and -0.4, so sqrt(2 * 0.32) / 4. Catches a number that
    starts anew at each prompt, which their scorers sort by, and answers read as text."""
    names = sorted(path.name for path in (scored / "color" / "samples").iterdir())
    assert names == [
        "a red apple and a green bowl_000000.png",
        "a red apple and a green bowl_000001.png",
        "a round clock_000002.png",
        "a round clock_000003.png",
    ]
    category = compbench.read(scored)["color"]
    assert category.score == pytest.approx(0.4)
    assert category.stderr == pytest.approx(math.sqrt(2 * 0.32) / 4)
    assert (category.images, category.prompts) == (4, 2)
    for prompt in ("a_b", "a/b", "", "x" * 250):
        with pytest.raises(ConfigError, match="names files by prompts"):
            compbench.image_name(prompt, 0)
    from rfjax.cli import main

    assert main(["score", str(scored), "--metric=compbench"]) == 0
    assert "color            0.4000" in capsys.readouterr().out
    assert main(["score", str(scored), "--metric=compbench", "--clip=x"]) == 2
    assert "does not take --clip" in capsys.readouterr().err


def test_compbench_answers_are_one_for_each_image(scored):
    """Catches a score of half the images, of images that are gone, and of a damaged file."""
    file = scored / "color" / "annotation_blip" / "vqa_result.json"
    rows = json.loads(file.read_text())
    for content, message in (
        (json.dumps(rows[:3]), "3 answers for the 4 images"),
        (json.dumps([*rows, rows[0]]), "two answers for image 0"),
        (json.dumps(rows)[:-9], "cannot be read"),
        (json.dumps([{"question_id": 0, "answer": "nan"}]), "answers 'nan'"),
        ("[]", "no answers"),
    ):
        file.write_text(content)
        with pytest.raises(ConfigError, match=message):
            compbench.read(scored)
    file.unlink()
    with pytest.raises(ConfigError, match="no scores of T2I-CompBench"):
        compbench.read(scored)
