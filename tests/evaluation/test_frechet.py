"""The Frechet distance against closed forms and scipy, and the features against planted corruption."""

import numpy as np
import pytest
import scipy.linalg
from scipy.ndimage import gaussian_filter

from rfjax.config import DataConfig
from rfjax.data.corpus import load_corpus
from rfjax.data.geneval_names import TASKS
from rfjax.errors import ConfigError
from rfjax.evaluation import image_features
from rfjax.evaluation.frechet import Moments, as_uint8, frechet_distance, moments, reference_of


@pytest.fixture(scope="module", params=["shapes", "digits"])
def corpus(request):
    return load_corpus(DataConfig(corpus=request.param, image_size={"shapes": 16, "digits": 20}[request.param]), 0)


def covariance(rng, d, scale=1.0):
    root = rng.normal(size=(d, d)) * scale
    return root @ root.T


# The distance.


def test_in_one_dimension_it_is_that_of_means_and_deviations():
    """Would catch a variance taken for a standard deviation, or a factor 2 that is missing."""
    a, b = Moments(np.array([1.0]), np.array([[4.0]])), Moments(np.array([-2.0]), np.array([[0.25]]))
    assert frechet_distance(a, b) == pytest.approx(3.0**2 + (2.0 - 0.5) ** 2, rel=1e-13)


def test_commuting_covariances_have_a_closed_form():
    """Would catch a root of S1 + S2, or of the eigenvalues twice."""
    rng = np.random.default_rng(1)
    axes, _ = np.linalg.qr(rng.normal(size=(6, 6)))
    first, second = rng.uniform(0.1, 5, (2, 6))
    means = rng.normal(size=(2, 6))
    a, b = (Moments(mean, (axes * values) @ axes.T) for mean, values in zip(means, (first, second), strict=True))
    expected = np.square(means[0] - means[1]).sum() + np.square(np.sqrt(first) - np.sqrt(second)).sum()
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-12)


def test_of_any_covariances_it_is_scipys():
    """Would catch S1^1/2 S2 multiplied on one side only, which the commuting ones forgive."""
    rng = np.random.default_rng(2)
    for d in (2, 5, 48):
        a, b = (Moments(rng.normal(size=d), covariance(rng, d)) for _ in range(2))
        root = scipy.linalg.sqrtm(a.covariance @ b.covariance)
        expected = np.square(a.mean - b.mean).sum() + np.trace(a.covariance + b.covariance - 2 * root.real)
        assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-8)
        assert frechet_distance(b, a) == pytest.approx(expected, rel=1e-8)


def test_many_at_once_are_each_one_alone_and_a_singular_covariance_is_no_trouble():
    """Would catch a trace over the wrong axes of a batch, and a nan from eigenvalues a little below zero."""
    rng = np.random.default_rng(3)
    a = Moments(rng.normal(size=7), covariance(rng, 7))
    flat = np.outer(*[rng.normal(size=7)] * 2)
    several = np.stack([covariance(rng, 7), flat, np.zeros((7, 7))])
    means = rng.normal(size=(3, 7))
    found = frechet_distance(a, Moments(means, several))
    assert found.shape == (3,)
    for index in range(3):
        assert found[index] == pytest.approx(frechet_distance(a, Moments(means[index], several[index])), rel=1e-12)
    assert found[2] == pytest.approx(np.square(a.mean - means[2]).sum() + np.trace(a.covariance), rel=1e-12)


def test_a_gaussian_is_at_no_distance_from_itself():
    """Would catch a root that loses digits: what is left over must be rounding, far below the distances between
    models."""
    rng = np.random.default_rng(4)
    same = Moments(rng.normal(size=48), covariance(rng, 48))
    assert 0 <= frechet_distance(same, same) < 1e-9 * np.trace(same.covariance)


def test_moments_are_numpys_and_weights_count_as_repetitions():
    """Would catch a mean without its weights, or a divisor of n."""
    rng = np.random.default_rng(5)
    values = rng.normal(size=(30, 4))
    plain = moments(values)
    np.testing.assert_allclose(plain.covariance, np.cov(values.T), rtol=1e-12)
    counts = rng.integers(1, 4, 30)
    repeated = np.repeat(values, counts, axis=0)
    weighted = moments(values, counts.astype(float))
    np.testing.assert_allclose(weighted.mean, repeated.mean(0), rtol=1e-12)
    np.testing.assert_allclose(weighted.covariance * 29 / 30, np.cov(repeated.T, bias=True), rtol=1e-12)
    np.testing.assert_allclose(moments(values, counts * 0.001).covariance, weighted.covariance, rtol=1e-12)


# The features.

N = 2048


@pytest.fixture(scope="module")
def halves(corpus):
    """Two halves of real images in [0, 1], and the first half's Gaussian."""
    images = corpus.to_images(corpus.examples(np.arange(2 * N), "validation").latents).astype(float)
    return moments(image_features.features(as_uint8(images[:N]))), images[N:]


def noise(images, strength):
    return images + strength * np.random.default_rng(0).normal(size=images.shape)


def blur(images, strength):
    return gaussian_filter(images, (0, strength, strength, 0))


def hue(images, strength):
    """Each colour a little of the next: its channels turned round."""
    return (1 - strength) * images + strength * images[..., [1, 2, 0]]


def shift(images, pixels):
    """What stands in the middle of a quadrant moves across its border."""
    return np.roll(images, pixels, axis=(1, 2))


def tiles(images, share):
    """A share of the images with the tiles of a 4 x 4 grid permuted, each image in its own way."""
    rng, out, side = np.random.default_rng(0), images.copy(), images.shape[1] // 4
    for image in out[: int(share * len(out))]:
        parts = image.reshape(4, side, 4, side, 3).transpose(0, 2, 1, 3, 4).reshape(16, side, side, 3)
        parts = parts[rng.permutation(16)].reshape(4, 4, side, side, 3).transpose(0, 2, 1, 3, 4)
        image[:] = parts.reshape(image.shape)
    return out


def alike(images, share):
    """A model that draws one image in a share of all cases."""
    out = images.copy()
    out[: int(share * len(out))] = out[0]
    return out


@pytest.mark.parametrize(
    ("corruption", "strengths"),
    [
        (noise, (0.02, 0.05, 0.1, 0.2)),
        (blur, (0.5, 0.8, 1.2, 2.0)),
        (hue, (0.1, 0.2, 0.3, 0.4)),  # beyond a half it turns into whole colours again
        (shift, (1, 2, 3, 4)),
        (tiles, (0.2, 0.4, 0.7, 1.0)),
        (alike, (0.2, 0.4, 0.7, 1.0)),
    ],
)
def test_the_distance_grows_with_what_is_wrong_and_is_small_between_real_images(corruption, strengths, halves):
    """Would catch features blind to sharpness, colour or layout, or so noisy that real images look as bad."""
    reference, images = halves
    real = frechet_distance(reference, moments(image_features.features(as_uint8(images))))
    found = [
        frechet_distance(reference, moments(image_features.features(as_uint8(corruption(images, s)))))
        for s in strengths
    ]
    assert real < found[0] / 1.5 and real < found[-1] / 8, (real, found)
    assert all(a < b for a, b in zip(found, found[1:], strict=False)), found


def test_exchanged_quadrants_are_a_symmetry_of_the_corpora(halves, corpus):
    """Not a corruption: most scenes' objects are put into quadrants in any order, so sets whose quadrants
    are permuted can be told apart by their position tasks at most. A distance that saw more would see what is not
    there."""
    reference, images = halves
    side, rng = images.shape[1] // 2, np.random.default_rng(0)
    parts = images.reshape(-1, 2, side, 2, side, 3).transpose(0, 1, 3, 2, 4, 5).reshape(-1, 4, side, side, 3)
    parts = np.stack([part[rng.permutation(4)] for part in parts]).reshape(-1, 2, 2, side, side, 3)
    permuted = parts.transpose(0, 1, 3, 2, 4, 5).reshape(images.shape)
    real, found = (
        frechet_distance(reference, moments(image_features.features(as_uint8(i)))) for i in (images, permuted)
    )
    assert found < 2 * real


def test_covariance_of_real_images_is_well_conditioned(halves):
    """Would catch a feature that is a sum of others, or a group in a unit of its own."""
    values = np.linalg.eigvalsh(halves[0].covariance)
    assert values[-1] / values[0] < 1e4
    deviations = np.sqrt(np.diag(halves[0].covariance))
    assert deviations.max() / deviations.min() < 5


def test_features_are_fixed():
    """Would catch a change of the map under its old name: what one version wrote must not be compared with
    another's."""
    rng = np.random.default_rng(7)
    found = image_features.features(rng.integers(0, 256, (2, 18, 18, 3), dtype=np.uint8))
    assert image_features.NAME == "grid-colour-edge-1" and found.shape == (2, image_features.SIZE) == (2, 48)
    np.testing.assert_allclose(found[0, [0, 17, 24, 30, 33, 40, 47]], FIXED, rtol=1e-9)
    assert found.sum() == pytest.approx(FIXED_SUM, rel=1e-9)


FIXED = [4.5798644396, 0.139594932623, 2.09465284507, 1.9098964752, 4.99227706989, 4.22303829369, 3.46407678017]
FIXED_SUM = 304.71627255543547


def test_cells_are_of_equal_area_whatever_the_side():
    """Would catch pixels on a border between cells counted for one of them, or for none."""
    ramp = np.tile(np.arange(18.0), (1, 18, 1))
    np.testing.assert_allclose(
        image_features._cells(ramp, 4)[0, :4], [8 / 4.5, 28 / 4.5, 48.5 / 4.5, 68.5 / 4.5], rtol=1e-12
    )
    assert image_features._cells(ramp, 4).mean() == pytest.approx(8.5, rel=1e-12)
    np.testing.assert_allclose(image_features._shares(18, 4).sum(1), 1.0, rtol=1e-12)
    np.testing.assert_allclose(image_features._shares(18, 4).sum(0), 4 / 18, rtol=1e-12)


def test_too_small_images_are_refused():
    with pytest.raises(ConfigError, match="at least 8"):
        image_features.features(np.zeros((1, 6, 6, 3), np.uint8))


# The reference.


def test_reference_has_the_prompts_shares_of_tasks(corpus):
    """Would catch a reference of the corpus's own mixture of tasks, or weights given to the wrong images."""
    n = 600
    ids = np.arange(n)
    task = corpus.scenes(ids, "validation")[0].task
    found = image_features.features(as_uint8(corpus.to_images(corpus.examples(ids, "validation").latents)))
    asked = ["counting"] * 3 + ["colors"]
    expected = 0.75 * found[task == TASKS.index("counting")].mean(0) + 0.25 * found[task == TASKS.index("colors")].mean(
        0
    )
    reference = reference_of(corpus, asked, n)
    np.testing.assert_allclose(reference.moments.mean, expected, rtol=1e-10)
    assert reference_of(corpus, asked, n) is reference  # made once
    assert reference_of(corpus, ["colors"] * 4, n).sha1 != reference.sha1
    with pytest.raises(ConfigError, match="the first 1 validation images of .* have no task"):
        reference_of(corpus, list(TASKS), 1)
