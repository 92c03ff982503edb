import numpy as np
import pytest

from rfjax.config import DataConfig
from rfjax.data.corpus import load_corpus
from rfjax.data.digits import drawn_scans, resampling, scans
from rfjax.data.scenes import BACKGROUNDS


def as_bytes(scan):
    return np.round(scan * 16).astype(np.uint8).tobytes()


def test_splits_share_no_scan():
    known = {split: [as_bytes(scan) for group in scans(split) for scan in group] for split in ("train", "validation")}
    assert len(known["train"]) + len(known["validation"]) == 1797
    assert 0.2 < len(known["validation"]) / 1797 < 0.3
    assert not set(known["train"]) & set(known["validation"])
    assert min(len(group) for group in scans("validation")) >= 30


@pytest.mark.parametrize("split", ["train", "validation"])
def test_images_show_their_splits_scans_as_scanned(split):
    corpus = load_corpus(DataConfig(corpus="digits", image_size=20), 0)
    _, layout, _ = corpus.scenes(np.arange(60), split)
    images = corpus.to_images(corpus.examples(np.arange(60), split).latents)
    pool = [{as_bytes(scan) for scan in group} for group in scans(split)]
    for n, cell in np.argwhere(layout.present):
        y, x = 10 * (cell // 2), 10 * (cell % 2)
        background = BACKGROUNDS[0] + (BACKGROUNDS[1] - BACKGROUNDS[0]) * layout.background[n]
        color = np.array(corpus.vocabulary.palette[layout.colors[n, cell]])
        channel = np.argmax(np.abs(color - background))
        alpha = (images[n, y : y + 10, x : x + 10, channel] - background) / (color[channel] - background)
        places = [alpha[dy : dy + 8, dx : dx + 8] for dy in range(3) for dx in range(3)]
        assert any(as_bytes(place) in pool[layout.classes[n, cell]] for place in places)


def test_ground_truth_uses_validation_scans():
    corpus = load_corpus(DataConfig(corpus="digits", image_size=20), 0)
    row = {
        "tag": "colors",
        "include": [{"class": "six", "count": 1, "color": "white"}],
        "prompt": "a photo of a white six",
    }
    pool = {as_bytes(scan) for scan in scans("validation")[6]}
    for seed in range(10):
        image = corpus.render_prompt(row, seed)[..., 0]
        alpha = (image - image.min()) / (1 - image.min())
        windows = np.lib.stride_tricks.sliding_window_view(alpha, (8, 8)).reshape(-1, 8, 8)
        assert any(as_bytes(window) in pool for window in windows)


@pytest.mark.parametrize("side", [7, 8, 11, 13])
def test_resampling_keeps_ink_and_place(side):
    for scan, drawn in zip(scans("train")[4][:5], drawn_scans("train", side)[4][:5], strict=True):
        assert drawn.sum() / side**2 == pytest.approx(scan.sum() / 64, rel=0.12)
        centroid = [
            (image.sum(axis=0) @ (np.arange(len(image)) + 0.5)) / image.sum() / len(image) for image in (scan, drawn)
        ]
        assert centroid[0] == pytest.approx(centroid[1], abs=0.02)
    assert np.allclose(resampling(np.full(1, 4.0), 8, 8, 1.0)[0], np.eye(8))
