"""Tiny files of clips, written by PyAV and PIL: each picture is of one grey, which tells its number."""

import io
import struct
from fractions import Fraction

import numpy as np
from PIL import Image

STEP = 8  # between the greys of two pictures
AVC = {"codec": "libx264rgb", "pix_fmt": "rgb24", "options": {"qp": "0"}}  # without loss
VP9 = {"codec": "libvpx-vp9", "pix_fmt": "gbrp", "options": {"lossless": "1"}}


def greys(count, height=16, width=16, first=0):
    """[count, height, width, 3]; the picture of number i has the grey STEP i."""
    values = (STEP * (first + np.arange(count)) % 256).astype(np.uint8)
    return np.broadcast_to(values[:, None, None, None], (count, height, width, 3)).copy()


def numbers(pixels):
    """The numbers of a clip's pictures, from their greys."""
    return np.rint(pixels[:, 4, 4, 0] / STEP).astype(int).tolist()


def video(pictures, kind="mp4", rate=10, codec="libx264rgb", pix_fmt="rgb24", options=None, times=None, trc=None):
    """The bytes of a video. `times` are in thousandths of a second, in place of a rate."""
    import av

    buffer = io.BytesIO()
    with av.open(buffer, "w", format={"webm": "webm", "mkv": "matroska"}.get(kind, kind)) as container:
        stream = container.add_stream(
            codec, rate=rate, options=dict(options or (AVC["options"] if "264" in codec else {}))
        )
        stream.height, stream.width, stream.pix_fmt = *pictures.shape[1:3], pix_fmt
        if times is not None:
            stream.codec_context.time_base = Fraction(1, 1000)
        if trc is not None:
            stream.codec_context.color_trc = trc
        for number, picture in enumerate(pictures):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            if times is not None:
                frame.pts, frame.time_base = times[number], Fraction(1, 1000)
            for packet in stream.encode(frame):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)
    return buffer.getvalue()


def sound():
    """An m4a of silence, without a video."""
    import av

    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        stream = container.add_stream("aac", rate=8000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 8000
        for packet in (*stream.encode(frame), *stream.encode()):
            container.mux(packet)
    return buffer.getvalue()


def turned(mp4):
    """The same mp4, to be turned clockwise by a right angle when shown, as a telephone writes it."""
    data = bytearray(mp4)
    place = data.index(b"tkhd") + 4 + 4 + (32 if data[data.index(b"tkhd") + 4] else 20) + 16
    assert struct.unpack(">9i", data[place : place + 36])[0] == 0x10000
    data[place : place + 36] = struct.pack(">9i", 0, 0x10000, 0, -0x10000, 0, 0, 0, 0, 0x40000000)
    return bytes(data)


def animation(pictures, kind="WEBP", milliseconds=100):
    """The bytes of an animated WebP or GIF. `milliseconds` may be a list."""
    first, *others = map(Image.fromarray, pictures)
    buffer = io.BytesIO()
    how = {"lossless": True} if kind == "WEBP" else {"loop": 0}
    first.save(buffer, kind, save_all=True, append_images=others, duration=milliseconds, **how)
    return buffer.getvalue()
