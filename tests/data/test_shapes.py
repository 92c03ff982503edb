import numpy as np
import pytest

from rfjax.config import DataConfig
from rfjax.data.corpus import load_corpus
from rfjax.data.scenes import BACKGROUNDS, PALETTE
from rfjax.data.shapes import CLASSES, SIGNED_DISTANCES, coverage


def grid(side):
    axis = np.arange(side) + 0.5 - side / 2
    return np.meshgrid(axis, axis)


@pytest.mark.parametrize("name", CLASSES)
def test_area_survives_subpixel_moves(name):
    # Hard edges would change the area by whole pixels, some ten per cent of a shape this small.
    x, y = grid(16)
    areas = [coverage(name, x - dx, y - dy, 3.1).sum() for dx in (0, 0.25, 0.5) for dy in (0, 0.25, 0.5)]
    assert np.ptp(areas) / np.mean(areas) < 0.07


@pytest.mark.parametrize("name", CLASSES)
def test_edges_are_a_pixel_wide(name):
    x, y = grid(64)
    alpha = coverage(name, x, y, 22.3)
    partial = (alpha > 0) & (alpha < 1)
    perimeter_like = np.abs(np.diff(alpha > 0.5, axis=0)).sum() + np.abs(np.diff(alpha > 0.5, axis=1)).sum()
    assert 0.4 * perimeter_like < partial.sum() < 2.0 * perimeter_like


@pytest.mark.parametrize("name", CLASSES)
def test_signed_distance_grows_by_one_a_pixel_at_most(name):
    x, y = grid(64)
    distance = SIGNED_DISTANCES[name](x, y, 20.0)
    steps = np.abs(np.diff(distance, axis=1))
    assert steps.max() <= 1.0 + 1e-9
    assert distance.min() < -3.0 and distance[0, 0] > 5.0


def test_shapes_are_far_apart():
    x, y = grid(8)
    pictures = [coverage(name, x, y, 3.0) for name in CLASSES]
    for i, a in enumerate(pictures):
        for b in pictures[:i]:
            assert np.sum((a - b) ** 2) / min(a.sum(), b.sum()) > 0.25


def test_colors_stand_out_from_each_other_and_from_the_background():
    palette = np.array([*PALETTE.values(), *[(level,) * 3 for level in BACKGROUNDS]])
    distances = np.linalg.norm(palette[:, None] - palette[None], axis=-1)
    assert distances[:6, :6][~np.eye(6, dtype=bool)].min() > 0.6
    assert distances[:6, 6:].min() > 0.55


@pytest.mark.parametrize("size", [16, 22, 32])
def test_objects_keep_apart_and_inside(size):
    corpus = load_corpus(DataConfig(image_size=size), 0)
    _, layout, _ = corpus.scenes(np.arange(400), "train")
    images = corpus.to_images(corpus.examples(np.arange(400), "train").latents)
    half = size // 2
    background = BACKGROUNDS[0] + (BACKGROUNDS[1] - BACKGROUNDS[0]) * layout.background[:, None, None]
    toward = np.array(corpus.vocabulary.palette)[layout.colors] - background
    cells = images.reshape(400, 2, half, 2, half, 3).transpose(0, 1, 3, 2, 4, 5).reshape(400, 4, half, half, 3)
    alpha = ((cells - background[..., None, None]) * toward[:, :, None, None]).sum(-1)
    alpha /= (toward**2).sum(-1)[:, :, None, None]
    # Faint rims at most along a cell's border, so that two objects never touch.
    border = np.concatenate([alpha[:, :, [0, -1], :].ravel(), alpha[:, :, :, [0, -1]].ravel()])
    assert 0.05 < border.max() <= 0.51
    # Something in every cell that has an object, nothing in the others.
    assert np.array_equal(alpha.max(axis=(2, 3)) > 0.9, layout.present)
    assert np.abs(alpha[~layout.present]).max() < 1e-5


def test_size_position_and_background_vary():
    corpus = load_corpus(DataConfig(), 0)
    rows = [row for row in corpus.evaluation_prompts(6, 0) if row["tag"] == "colors"][:1]
    images = np.stack([corpus.render_prompt(rows[0], seed) for seed in range(60)])
    backgrounds = np.median(images.reshape(60, -1, 3), axis=1)
    assert np.ptp(backgrounds[:, 0]) > 0.1 and np.abs(np.ptp(backgrounds, axis=1)).max() < 1e-6
    ink = np.abs(images - backgrounds[:, None, None]).sum(axis=(1, 2, 3)) / (1 - backgrounds[:, 0])
    assert ink.max() / ink.min() > 1.3
    assert len({image.tobytes() for image in images}) == 60
