"""Clips cut from files of moving pictures: which pictures, at which times, and the files that give none."""

import io
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from helpers.tiny_clips import VP9, animation, greys, numbers, sound, turned, video
from rfjax.errors import ConfigError
from rfjax.prepare import clip_files, clips
from rfjax.prepare.clip_files import BRIGHT, NO_VIDEO, SIZE_CHANGES, Unfit
from rfjax.prepare.clips import LONGER, REPEATED, SLOW, VARIABLE, ClipRule, cut, parse_rule
from rfjax.prepare.images import CorruptImage

THIRTY = video(greys(30), rate=30)
UNEVEN = video(greys(6), "mkv", times=[0, 100, 200, 500, 600, 700])


def cut_of(data, frames=4, rate="", most=1, size=16):
    return cut(data, ClipRule(frames, rate, most), [(size, size)], "lanczos")


@pytest.mark.parametrize(
    "data, rate, wanted",
    [
        (THIRTY, "", [0, 1, 2, 3]),
        (THIRTY, "30", [0, 1, 2, 3]),
        (THIRTY, "10", [0, 3, 6, 9]),
        (THIRTY, "20", [0, 1, 3, 4]),  # at 0, 0.05, 0.1, 0.15 s: what is on the screen then
        (video(greys(8), "webm", 30, **VP9), "30", [0, 1, 2, 3]),  # its times are rounded to thousandths
        (video(greys(30), rate=30, options={"qp": "0", "bf": "2"}), "10", [0, 3, 6, 9]),  # stored in another order
        (animation(greys(8)), "10", [0, 1, 2, 3]),
        (animation(greys(8), "GIF"), "5", [0, 2, 4, 6]),
        (animation(greys(4), "GIF", [100, 100, 200, 100]), "10", [0, 1, 2, 2]),
        (UNEVEN, "10", [0, 1, 2, 2]),
        (video(greys(8), "avi", 10, codec="ffv1", pix_fmt="bgr0"), "", [0, 1, 2, 3]),
    ],
)
def test_frames_are_the_pictures_on_the_screen_at_their_times(data, rate, wanted):
    """Catches a clip that plays faster or slower than its file, a picture too early, and the order of storage."""
    (clip,) = cut_of(data, rate=rate)
    assert numbers(clip.pixels) == wanted and clip.pixels.shape == (4, 16, 16, 3)
    assert np.array_equal(clip.pixels, clip.pixels[:, :1, :1] + 0 * clip.pixels)
    assert (REPEATED in clip.converted) == (len(set(wanted)) < 4)


def test_clips_of_a_file_follow_each_other_and_what_is_left_is_counted():
    """Catches clips that overlap, a gap, a last clip that is shorter, and a rest that nobody is told of."""
    found = cut_of(THIRTY, 4, "10", most=5)
    assert [numbers(clip.pixels) for clip in found] == [[0, 3, 6, 9], [12, 15, 18, 21]]
    assert [round(clip.start, 6) for clip in found] == [0, 0.4] and LONGER in found[1].converted
    (whole,) = cut_of(THIRTY, 10, "10", most=5)
    assert LONGER not in whole.converted  # ten at 10 a second are all of it
    assert len(cut_of(THIRTY, 4, "", most=7)) == 7 and len(cut_of(THIRTY, 4, "", most=8)) == 7


def test_a_telephones_clip_is_upright_and_odd_sizes_ten_bits_and_alpha_are_read():
    """Catches a turn left out or made the other way round."""
    pictures = greys(4, 15, 23, first=4)
    pictures[:, :4, :4] = 255  # the upper left corner, which a turn clockwise puts to the upper right
    (flat,), (upright,) = cut_of(video(pictures), size=15), cut_of(turned(video(pictures)), size=15)
    assert (flat.width, flat.height, upright.width, upright.height) == (23, 15, 15, 23)
    rule = ClipRule(4)
    (flat,) = cut(video(pictures), rule, [(15, 23)], "lanczos")
    (upright,) = cut(turned(video(pictures)), rule, [(23, 15)], "lanczos")
    assert np.array_equal(flat.pixels, pictures) and "turned upright" in upright.converted
    assert np.array_equal(upright.pixels, np.rot90(pictures, -1, (1, 2)))
    (ten,) = cut_of(video(greys(4), codec="libx264", pix_fmt="yuv444p10le"))
    assert "10-bit" in ten.converted and np.abs(ten.pixels.astype(int) - greys(4)).max() <= 3


def jpegs(sides):
    """A Matroska file of JPEGs with these sides: one file may hold pictures of several sizes."""
    import av

    buffer = io.BytesIO()
    with av.open(buffer, "w", format="matroska") as container:
        stream = container.add_stream("mjpeg", rate=10)
        stream.height, stream.width, stream.pix_fmt = sides[0], sides[0], "yuvj420p"
        for number, side in enumerate(sides):
            jpeg = io.BytesIO()
            Image.new("RGB", (side, side)).save(jpeg, "JPEG")
            packet = av.Packet(jpeg.getvalue())
            packet.stream, packet.pts, packet.dts, packet.time_base = stream, number, number, Fraction(1, 10)
            container.mux(packet)
    return buffer.getvalue()


CUT_OFF = {
    "mp4": video(greys(8)),
    "mov": video(greys(8), "mov"),
    "webm": video(greys(8), "webm", **VP9),
    "avi": video(greys(8), "avi", codec="ffv1", pix_fmt="bgr0"),
    "gif": animation(greys(8), "GIF"),
    "webp": animation(greys(8)),
}


@pytest.mark.parametrize("kind", CUT_OFF)
@pytest.mark.parametrize("share", [0.1, 0.6, 0.98])
def test_a_file_whose_end_is_missing_is_corrupt_even_if_its_beginning_is_there(kind, share):
    """Catches the few pictures before the cut taken for all there were: FFmpeg gives them without an error."""
    data = CUT_OFF[kind]
    assert len(cut_of(data, 8)) == 1
    with pytest.raises(CorruptImage, match="it is cut off"):
        cut_of(data[: int(share * len(data))], 2)


@pytest.mark.parametrize(
    "data, reason",
    [
        (UNEVEN, VARIABLE),
        (animation(greys(4), "GIF", [100, 100, 200, 100]), VARIABLE),
        (sound(), NO_VIDEO),
        (jpegs([16, 16, 32, 32]), SIZE_CHANGES),
        (video(greys(3)), "fewer than 4 frames"),
        (animation(greys(1), "GIF"), "fewer than 4 frames"),
        (
            video(greys(4), codec="libx265", pix_fmt="yuv420p10le", trc=16, options={"x265-params": "log-level=none"}),
            BRIGHT,
        ),
    ],
)
def test_a_whole_file_that_gives_no_clip_is_named_with_its_reason(data, reason):
    with pytest.raises(Unfit) as told:
        cut_of(data)
    assert told.value.reason == reason


def test_a_slow_file_is_not_blown_up():
    """Catches a slide show of one picture a second taken for moving pictures at 8 a second."""
    with pytest.raises(Unfit) as told:
        cut_of(animation(greys(3), "WEBP", 1000), rate="8")
    assert told.value.reason == SLOW


@pytest.mark.parametrize("data", [b"", b"words", b"#EXTM3U\n#EXTINF:1,\n/etc/hostname\n", b"\x1aE\xdf\xa3" + bytes(40)])
def test_what_is_no_video_is_corrupt(data):
    """Catches a list of other files, which FFmpeg would open."""
    with pytest.raises(CorruptImage, match="no bytes at all|InvalidDataError") as told:
        cut_of(data)
    assert "0x" not in str(told.value)  # no address in memory: the same file gives the same line


def test_a_long_file_is_read_no_further_than_its_clips(monkeypatch, tmp_path):
    """Catches a file that is decoded whole, and a header that is believed: this one says that it lasts for months."""
    data = bytearray(video(greys(900), rate=30))
    place = data.index(b"mvhd") + 4 + 4 + 12
    data[place : place + 4] = (2**31).to_bytes(4, "big")
    path, asked = tmp_path / "long.mp4", []
    path.write_bytes(data)

    def counted(stream):
        for shown in clip_files.pictures(stream):
            asked.append(shown)
            yield shown

    monkeypatch.setattr(clips, "pictures", counted)
    assert len(cut_of(path, 4, "10", most=2)) == 2 and len(asked) <= 3 * 8 + 2


def test_options_that_say_nothing_are_refused():
    assert parse_rule(None, None, None) is None and parse_rule(17, "30000/1001", 3) == ClipRule(17, "30000/1001", 3)
    for given, word in (
        ((None, "8", None), "--fps"),
        ((None, None, 2), "--clips"),
        ((1, None, None), "--frames"),
        ((8, "0", None), "--fps"),
        ((8, "fast", None), "--fps"),
        ((8, "1/0", None), "--fps"),
        ((8, "nan", None), "--fps"),
        ((8, None, 0), "--clips"),
    ):
        with pytest.raises(ConfigError, match=word):
            parse_rule(*given)


def test_a_path_that_is_no_file_is_the_systems_error(tmp_path):
    with pytest.raises(OSError):
        cut_of(Path(tmp_path))
    with pytest.raises(OSError):
        cut_of(tmp_path / "nothing.mp4")
