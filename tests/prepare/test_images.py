"""Images of all kinds are decoded, or converted under a name, or refused; no other exception comes out."""

import io
import itertools
import struct
import zlib
from fractions import Fraction

import numpy as np
import pytest
from PIL import Image

from helpers import photographs
from rfjax.prepare.images import CUT, CorruptImage, decode, name_changes, thumbnail


def saved(image, kind, **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def flat(mode, color, size=(40, 40)):
    return Image.new(mode, size, color)


def middle(data, size=16):
    """The colour of a decoded flat image, and the conversions."""
    picture = decode(data, size, "lanczos")
    assert picture.pixels.shape == (size, size, 3) and picture.pixels.dtype == np.uint8
    return picture.pixels[size // 2, size // 2].astype(int), picture.converted


def keyed(colour_type, depth, row, key):
    """A PNG of 40 x 40 pixels of one colour, which its tRNS chunk makes transparent where it is `key`."""
    header = struct.pack(">IIBBBBB", 40, 40, depth, colour_type, 0, 0, 0)
    pieces = ((b"IHDR", header), (b"tRNS", key), (b"IDAT", zlib.compress((b"\0" + row) * 40)), (b"IEND", b""))
    made = (
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in pieces
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(made)


# name -> the PNG's colour type and bits, a row of it, the transparent colour
KEYED = {
    "colour": (2, 8, b"\x09\x08\x07" * 40, b"\0\x09\0\x08\0\x07"),
    "16-bit colour": (2, 16, b"\x12\x34\0\x09\xff\0" * 40, b"\x12\x34\0\x09\xff\0"),
    "16-bit grey": (0, 16, b"\x40\x01" * 40, b"\x40\x01"),
    "grey": (0, 8, b"\x05" * 40, b"\0\x05"),
    "4-bit grey": (0, 4, b"\x33" * 20, b"\0\x03"),
    "2-bit grey": (0, 2, b"\x55" * 10, b"\0\x01"),
    "bilevel": (0, 1, b"\0" * 5, b"\0\0"),
}


@pytest.mark.parametrize("name", KEYED)
def test_a_transparent_colour_is_laid_over_white_and_no_other(name):
    """Catches a PNG's transparent colour that is kept as it stands beneath, and uncounted."""
    colour_type, depth, row, key = KEYED[name]
    found, how = middle(keyed(colour_type, depth, row, key))
    assert (found == 255).all() and "transparent" in how
    other = bytes(len(key) - 1) + (b"\1" if key[-1] == 0 else b"\0")
    assert (middle(keyed(colour_type, depth, row, other))[0] < 255).any()


@pytest.mark.parametrize(
    ("value", "kind", "grey", "converted"),
    [
        (200, np.int32, 200, ("32-bit of 8",)),
        (40_000, np.int32, 156, ("16-bit",)),
        (40_000, np.uint16, 156, ("16-bit",)),
        (200, np.uint16, 0, ("16-bit", "16-bit with no value above 255: black")),
    ],
)
def test_integers_keep_the_range_that_they_have(value, kind, grey, converted):
    """Catches 8 bits in a 32-bit TIFF made black, and a black picture that is counted as any other."""
    found, how = middle(saved(Image.fromarray(np.full((40, 40), value, kind)), "TIFF"))
    assert (found == grey).all() and how == converted


SIXTEEN = Image.fromarray(np.full((40, 40), 40_000, np.uint16))  # 40,000 / 256 = 156.25
CASES = {
    "rgb": (saved(flat("RGB", (10, 200, 90)), "PNG"), (10, 200, 90), ()),
    "grey": (saved(flat("L", 77), "PNG"), (77, 77, 77), ("grey",)),
    "bilevel": (saved(flat("1", 1), "PNG"), (255, 255, 255), ("grey",)),
    "palette": (
        saved(flat("RGB", (10, 200, 90)).convert("P", palette=Image.Palette.ADAPTIVE), "PNG"),
        (10, 200, 90),
        ("palette",),
    ),
    "CMYK": (saved(flat("CMYK", (0, 255, 255, 0)), "JPEG", quality=95), (254, 0, 0), ("CMYK",)),
    "16-bit": (saved(SIXTEEN, "PNG"), (156, 156, 156), ("16-bit",)),
    "half transparent": (saved(flat("RGBA", (0, 0, 0, 128)), "PNG"), (127, 127, 127), ("transparent",)),
    "all transparent": (saved(flat("RGBA", (200, 0, 0, 0)), "PNG"), (255, 255, 255), ("transparent",)),
    "a palette with a transparent entry": (
        saved(Image.new("P", (40, 40), 0), "PNG", transparency=0),
        (255, 255, 255),
        ("transparent",),
    ),
    "animated": (
        saved(flat("RGB", (255, 0, 0)), "GIF", save_all=True, append_images=[flat("RGB", (0, 0, 255))]),
        (255, 0, 0),
        ("animated", "palette"),
    ),
    "enlarged": (saved(flat("RGB", (10, 200, 90), (8, 16)), "PNG"), (10, 200, 90), ("enlarged",)),
    "enlarged and cut": (saved(flat("RGB", (10, 200, 90), (8, 30)), "PNG"), (10, 200, 90), ("enlarged", CUT)),
    "long": (saved(flat("RGB", (10, 200, 90), (64, 129)), "PNG"), (10, 200, 90), (CUT,)),
    "half": (saved(flat("RGB", (10, 200, 90), (128, 64)), "PNG"), (10, 200, 90), ()),
}


@pytest.mark.parametrize("name", CASES)
def test_odd_kinds_become_rgb_of_the_right_colour_and_are_named(name):
    """Catches 16 bits clipped to white (what PIL's own conversion does), transparency over black, CMYK inverted."""
    data, color, converted = CASES[name]
    found, how = middle(data)
    assert np.abs(found - color).max() <= 1
    if name == "animated":
        assert how[0] == "animated"
    else:
        assert how == converted


@pytest.mark.parametrize("bucket", [(32, 32), (32, 64), (48, 32)])
def test_a_crop_is_named_if_less_than_half_of_the_picture_is_left(bucket):
    """Against the area of the largest part of the bucket's shape. Catches sides exchanged, and a square that is taken
    for every bucket."""
    rows, columns = bucket
    for width, height in itertools.product((32, 63, 64, 65, 96, 200), repeat=2):
        scale = min(Fraction(width, columns), Fraction(height, rows))
        left = scale**2 * rows * columns / (width * height)
        assert (CUT in name_changes(width, height, bucket)) == (left < Fraction(1, 2))


JPEG = saved(Image.open(photographs.FILES["chelsea"][0]), "JPEG")
PNG = photographs.encoded("chelsea")
HUGE = b"IHDR" + struct.pack(">II", 60_000, 60_000) + PNG[24:29]  # a right header, which asks for ten gigabytes
CORRUPT = {
    "empty": b"",
    "text": b"<html>404 Not Found</html>",
    "half a JPEG": JPEG[: len(JPEG) // 2],
    "a JPEG less its end": JPEG[:-400],
    "half a PNG": PNG[: len(PNG) // 2],
    "a header alone": PNG[:40],
    "zeros": bytes(5000),
    "a PNG of 60,000 x 60,000": PNG[:12] + HUGE + struct.pack(">I", zlib.crc32(HUGE)) + PNG[33:],
    "floating-point": saved(Image.fromarray(np.ones((40, 40), np.float32)), "TIFF"),
}


@pytest.mark.parametrize("name", CORRUPT)
def test_what_cannot_be_decoded_whole_is_corrupt(name):
    """Catches a truncated image filled up with grey, and exceptions of decoders that are let through."""
    with pytest.raises(CorruptImage, match="."):
        decode(CORRUPT[name], 16, "lanczos")


def test_every_prefix_of_an_image_is_decoded_or_corrupt():
    """Catches other exceptions, wherever the file is cut. Without its last bytes an image may still be whole."""
    for data in (
        saved(Image.open(io.BytesIO(PNG)).resize((24, 24)), kind)
        for kind in ("PNG", "JPEG", "GIF", "WEBP", "TIFF", "BMP")
    ):
        for length in range(0, len(data), max(1, len(data) // 60)):
            try:
                decode(data[:length], 8, "lanczos")
            except CorruptImage:
                pass


def test_the_centre_is_kept_and_the_orientation_obeyed():
    """Catches a stretched image, a corner crop, and a camera's photograph on its side."""
    pixels = np.zeros((40, 120, 3), np.uint8)
    pixels[:, 40:80] = 255  # the middle third is white
    image = Image.fromarray(pixels)
    picture = decode(saved(image, "PNG"), 40, "lanczos")
    assert picture.pixels.min() == 255 and (picture.width, picture.height) == (120, 40)
    pixels[:20, 40:80] = (255, 0, 0)  # red above, white below
    upright = decode(saved(Image.fromarray(pixels), "PNG"), 40, "lanczos").pixels
    turned = Image.fromarray(pixels).rotate(90, expand=True)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    picture = decode(saved(turned, "PNG", exif=exif), 40, "lanczos")
    assert np.array_equal(picture.pixels, upright) and picture.columns["aspect"] == 3.0


def test_resizing_is_pils_filter_and_the_square_is_centred():
    """A second way: the whole image resized, then its middle. Also catches reduction that aliases, as nearest would."""
    image = Image.open(io.BytesIO(PNG)).convert("RGB")
    assert image.size == (144, 96)
    for name, resample in (("lanczos", Image.Resampling.LANCZOS), ("bicubic", Image.Resampling.BICUBIC)):
        middle = image.resize((48, 32), resample).crop((8, 0, 40, 32))
        assert np.array_equal(decode(PNG, 32, name).pixels, np.asarray(middle))
    stripes = np.zeros((96, 96, 3), np.uint8)
    stripes[:, ::2] = 255
    assert (
        np.abs(decode(saved(Image.fromarray(stripes), "PNG"), 24, "lanczos").pixels.astype(int) - 127.5)[:, 3:-3].max()
        < 3
    )


def test_a_thumbnail_is_a_jpeg_of_the_picture():
    pixels = decode(PNG, 64, "lanczos").pixels
    small = Image.open(io.BytesIO(thumbnail(pixels, 32)))
    expected = np.asarray(Image.fromarray(pixels).resize((32, 32), Image.Resampling.LANCZOS)).astype(float)
    assert small.format == "JPEG" and np.abs(np.asarray(small) - expected).mean() < 6


@pytest.mark.parametrize("error", [MemoryError(), OSError(24, "Too many open files")])
def test_what_says_nothing_of_the_image_is_no_corrupt_image(monkeypatch, error):
    """Catches an image that is dropped for good because memory ran out: the bytes would depend on the machine."""

    def fail(*_):
        raise error

    monkeypatch.setattr(Image, "open", fail)
    with pytest.raises(type(error)):
        decode(b"anything", ((16, 16),), "lanczos")
