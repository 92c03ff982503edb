"""The input of the scorers' networks, compared to the last level of a pixel."""

import math
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from rfjax.errors import ConfigError
from rfjax.scorers import images


def pattern(height, width):
    values = (np.arange(height * width * 3) * 37) % 256
    return values.astype(np.uint8).reshape(height, width, 3)


def test_the_levels_are_opencvs():
    """`cv2.resize` of OpenCV gave these numbers. Catches its rounding lost, which moves one level in eight."""
    larger = images.opencv_bilinear(pattern(4, 5), 6, 7)
    assert larger[..., 0].tolist() == [
        [0, 63, 143, 222, 118, 124, 188],
        [22, 85, 128, 116, 103, 146, 210],
        [50, 113, 120, 16, 95, 156, 195],
        [79, 142, 148, 45, 124, 112, 53],
        [108, 171, 177, 74, 153, 122, 40],
        [129, 192, 199, 95, 174, 144, 61],
    ]
    smaller = images.opencv_bilinear(pattern(4, 5), 3, 3)
    assert smaller[..., 1].tolist() == [[81, 10, 167], [139, 68, 82], [125, 125, 139]]


@pytest.mark.parametrize("size", [(300, 500), (500, 300), (229, 224), (60, 61), (1, 40)])
def test_clip_sees_pillows_bicubic_middle(size):
    """Pillow's own numbers, and the middle by hand: (side - 224) / 2, halves to even. Catches another filter, the
    longer side scaled to 224, a middle rounded down, and channels normalised by another's numbers."""
    image = Image.fromarray(pattern(*size))
    width, height = image.size
    if width < height:
        scaled = image.resize((224, math.floor(224 * height / width)), Image.BICUBIC)
    else:
        scaled = image.resize((math.floor(224 * width / height), 224), Image.BICUBIC)
    left, top = (int(round((side - 224) / 2.0)) for side in scaled.size)
    wanted = np.asarray(scaled)[top : top + 224, left : left + 224] / 255.0
    wanted = (wanted - [0.48145466, 0.4578275, 0.40821073]) / [0.26862954, 0.26130258, 0.27577711]
    found = images.clip_transform(image).permute(1, 2, 0).numpy()
    assert np.abs(found - wanted).max() < 1e-6


def cubic(x, a):
    x = abs(x)
    if x < 1:
        return (a + 2) * x**3 - (a + 3) * x**2 + 1
    return a * x**3 - 5 * a * x**2 + 8 * a * x - 4 * a if x < 2 else 0.0


def bicubic_at(values, i, j, rows, columns):
    """Keys' kernel with a = -0.75 over the sixteen pixels about a place, edges repeated; not antialiased."""
    y, x = (i + 0.5) * values.shape[0] / rows - 0.5, (j + 0.5) * values.shape[1] / columns - 0.5
    total = 0.0
    for m in range(math.floor(y) - 1, math.floor(y) + 3):
        for n in range(math.floor(x) - 1, math.floor(x) + 3):
            row, column = min(max(m, 0), values.shape[0] - 1), min(max(n, 0), values.shape[1] - 1)
            total += values[row, column] * cubic(y - m, -0.75) * cubic(x - n, -0.75)
    return total


@pytest.mark.parametrize("size", [(40, 50), (700, 600)])
def test_cmmd_sees_bicubic_without_antialiasing(size):
    """Catches Pillow's resizing (antialiased, a = -0.5), values cut to [0, 1], and a middle cut out."""
    image = pattern(*size)
    found = images.cmmd_transform(Image.fromarray(image))
    assert found.shape == (3, 336, 336)
    for i, j in ((0, 0), (3, 200), (100, 17), (250, 335), (335, 335)):
        value = bicubic_at(image[..., 2] / 255.0, i, j, 336, 336)
        assert float(found[2, i, j]) == pytest.approx((value - 0.40821073) / 0.27577711, abs=1e-4)


def test_inception_sees_floats_of_pillow():
    """clean-fid's: every channel as floats, antialiased, not rounded, cut to [0, 255]; (x - 128) / 128."""
    image = pattern(400, 350)
    found = images.inception_transform(Image.fromarray(image))
    wanted = np.asarray(Image.fromarray(image[..., 1].astype(np.float32)).resize((299, 299), Image.BICUBIC)).clip(
        0, 255
    )
    assert np.abs(found[1].numpy() - (wanted - 128) / 128).max() < 1e-6
    assert len(np.unique(wanted % 1)) > 100  # unrounded


def test_images_of_every_kind_are_read_alike(tmp_path):
    """Catches transparency that shines through, a palette's numbers taken for levels, EXIF's turn left out, and
    colours of 16 bits cut to 8."""
    image = Image.fromarray(pattern(9, 7) // 64 * 64)
    image.save(tmp_path / "rgb.png")
    alpha = image.copy()
    alpha.putalpha(Image.fromarray(np.arange(63, dtype=np.uint8).reshape(9, 7)))
    alpha.save(tmp_path / "rgba.png")
    image.quantize(256).save(tmp_path / "palette.png")
    turned = image.transpose(Image.Transpose.ROTATE_90)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown turned clockwise
    turned.save(tmp_path / "turned.png", exif=exif)
    for name in ("rgb", "rgba", "palette", "turned"):
        assert (images.pixels(images.read(tmp_path / f"{name}.png")) == np.asarray(image)).all(), name
    grey = Image.fromarray(pattern(9, 7)[..., 0])
    grey.save(tmp_path / "grey.png")
    assert (images.pixels(images.read(tmp_path / "grey.png")) == np.asarray(grey)[..., None]).all()
    header, body = struct.pack(">IIBBBBB", 2, 1, 16, 2, 0, 0, 0), zlib.compress(b"\0" + b"\x7f\xff" * 6)
    chunks = [(b"IHDR", header), (b"IDAT", body), (b"IEND", b"")]
    parts = [struct.pack(">I", len(c)) + kind + c + struct.pack(">I", zlib.crc32(kind + c)) for kind, c in chunks]
    (tmp_path / "deep.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))
    with pytest.raises(ConfigError, match="deep.png is an image of mode 16-bit RGB; save it with eight bits"):
        images.read(tmp_path / "deep.png")
    (tmp_path / "empty.png").write_bytes(b"")
    with pytest.raises(ConfigError, match="cannot read the image"):
        images.read(tmp_path / "empty.png")
    assert torch.is_tensor(images.clip_transform(image))
