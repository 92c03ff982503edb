"""Opens files of moving pictures, and gives their pictures one by one, each with its time.

GIF and WebP are read by PIL, which composes their pictures, and all other files by PyAV, whose wheels hold FFmpeg. The
number of pictures in a file's header is not trusted: pictures are decoded one after another when they are asked for,
and none is kept. The lengths of the file's outermost elements are compared with the file's size, so a file whose end is
missing is refused before it is decoded.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from rfjax.errors import RfjaxError
from rfjax.inputs.files import NoPlainFile, why_not_plain
from rfjax.prepare.images import CorruptImage, to_rgb

FORMATS = "mov,matroska,avi"  # demuxers of FFmpeg: none of them opens another file or address
MOST_PIXELS = 2 * Image.MAX_IMAGE_PIXELS  # of one picture: PIL's own limit
HDR = {16: "PQ", 18: "HLG"}  # transfer functions (ITU-T H.273) whose range 8 bits of RGB do not hold
TURNS = {0: None, -90: Image.Transpose.ROTATE_270, 90: Image.Transpose.ROTATE_90, 180: Image.Transpose.ROTATE_180}
TURNS[-180] = TURNS[180]
# In seconds. A GIF's delay below the first is read as the second.
LEAST_DELAY, USUAL_DELAY = Fraction(2, 100), Fraction(1, 10)
NO_VIDEO, SIZE_CHANGES, NO_TIMES, BRIGHT = "no video", "size that changes", "pictures without times", "HDR"

Made = tuple[Image.Image, tuple[str, ...]]  # an upright RGB picture, and the names of its conversions


class Unfit(ValueError):
    """Raised for a file that is undamaged but cannot be used, with the `reason` under which it is counted."""

    def __init__(self, reason: str, detail: str = ""):
        super().__init__(detail)
        self.reason = reason


@dataclass(frozen=True)
class Shown:
    """A picture of a file, and when it is on the screen, in seconds since the file's first picture."""

    start: Fraction
    lasts: Fraction | None  # seconds, as the file says; None if it does not say
    tick: Fraction  # seconds: the unit in which the file stores times, as whole numbers
    make: Callable[[], Made]  # returns the picture; call it before you ask for a second later picture


@contextlib.contextmanager
def opened(file: bytes | Path) -> Iterator[io.BufferedIOBase]:
    """Opens a file, given as bytes or as a path. A decoder's error inside the context is raised as `CorruptImage`.

    Raises `NoPlainFile` for a path that is not a plain file, and any other `OSError` of the system.
    """
    if isinstance(file, Path) and (why := why_not_plain(file)):
        raise NoPlainFile(f"it is {why}")
    with open(file, "rb") if isinstance(file, Path) else io.BytesIO(file) as stream:
        try:
            yield stream
        except (CorruptImage, Unfit, RfjaxError, MemoryError):
            raise
        except UnidentifiedImageError:  # its message has an address in memory, which differs in every run
            raise CorruptImage("no format that PIL knows") from None
        except Exception as error:
            of_av = type(error).__module__.startswith("av.")
            if getattr(error, "errno", None) and not of_av:  # the system's error: a failing disk
                raise
            why = getattr(error, "strerror", None) if of_av else str(error)  # PyAV's text may name an address, too
            raise CorruptImage(f"{type(error).__name__}: {why}") from None


def pictures(stream: io.BufferedIOBase) -> Iterator[Shown]:
    """Yields the pictures of a file in their order.

    Raises `CorruptImage` for a file that cannot be decoded to its end, and `Unfit` for a file that has no video, that
    is HDR, or in which the pictures differ in size or have no times.
    """
    head = stream.read(16)
    size = stream.seek(0, os.SEEK_END)
    if not size:
        raise CorruptImage("no bytes at all")
    is_gif, is_webp = head[:3] == b"GIF", head[:4] == b"RIFF" and head[8:12] == b"WEBP"
    lengths = _gif_length if is_gif else _riff_length if head[:4] == b"RIFF" else _outermost_length
    said = lengths(stream, size)
    if said > size:
        raise CorruptImage(f"it is cut off: it has {size:,} of {said:,} bytes")
    stream.seek(0)
    yield from _by_pil(stream, is_gif) if is_gif or is_webp else _by_av(stream)


def _by_pil(stream: io.BufferedIOBase, is_gif: bool) -> Iterator[Shown]:
    tick = Fraction(1, 100 if is_gif else 1000)
    with Image.open(stream) as image:
        start = Fraction(0)
        for number in itertools.count():
            try:
                image.seek(number)
            except EOFError:
                return
            image.load()
            lasts, notes = Fraction(image.info.get("duration", 0)) / 1000, ()
            if is_gif and lasts < LEAST_DELAY:
                lasts, notes = USUAL_DELAY, ("delays below 0.02 s, read as 0.1 s",)
            rgb, how = to_rgb(image.copy(), of_png=False)  # a copy: the next picture is drawn over this one
            made = rgb, (*how, *notes)
            yield Shown(start, lasts, tick, lambda made=made: made)
            start += lasts


def _by_av(stream: io.BufferedIOBase) -> Iterator[Shown]:
    import av

    # Titles that are no UTF-8 are no reason to refuse a file. From version 19 on PyAV reads them without being told.
    told = {"metadata_errors": "replace"} if int(av.__version__.partition(".")[0]) < 19 else {}
    with av.open(stream, options={"format_whitelist": FORMATS}, **told) as container:
        shown = [each for each in container.streams.video if not each.disposition & av.stream.Disposition.attached_pic]
        if not shown:
            raise Unfit(NO_VIDEO, "it has audio alone" if container.streams.audio else "it has no stream of pictures")
        video, notes = shown[0], ("several videos: the first",) if len(shown) > 1 else ()
        video.codec_context.thread_count = 1  # files are read side by side
        if video.codec_context.width * video.codec_context.height > MOST_PIXELS:
            raise CorruptImage(f"its pictures have more than {MOST_PIXELS:,} pixels")
        aspect = Fraction(video.codec_context.sample_aspect_ratio or video.sample_aspect_ratio or 1)
        first = last = form = None
        for frame in container.decode(video):
            if frame.is_corrupt:
                raise CorruptImage("a picture is damaged")
            if frame.pts is None:
                raise Unfit(NO_TIMES)
            time = frame.pts * frame.time_base
            first = time if first is None else first
            if last is not None and time <= last:
                raise CorruptImage("its times do not grow")
            this = (frame.width, frame.height, frame.rotation)
            if form is not None and this != form:
                raise Unfit(SIZE_CHANGES, f"{form[0]}x{form[1]} becomes {this[0]}x{this[1]}")
            if frame.color_trc in HDR:
                raise Unfit(BRIGHT, HDR[frame.color_trc])
            if this[2] not in TURNS:
                raise CorruptImage(f"it is turned by {this[2]} degrees, which is no right angle")
            last, form = time, this
            lasts = frame.duration * frame.time_base if frame.duration else None
            make = lambda frame=frame: _upright(frame, aspect, notes)  # noqa: E731
            yield Shown(time - first, lasts, Fraction(frame.time_base), make)


def _upright(frame, aspect: Fraction, notes: tuple[str, ...]) -> Made:
    """Returns a frame of FFmpeg as upright 8-bit RGB with square pixels, and the names of its conversions."""
    image, how = Image.fromarray(frame.to_ndarray(format="rgb24")), list(notes)
    if (bits := max(part.bits for part in frame.format.components)) > 8:
        how.append(f"{bits}-bit")
    if frame.interlaced_frame:
        how.append("interlaced")
    if aspect > 0 and aspect != 1:
        width, height = image.size
        wider = (round(width * aspect), height) if aspect > 1 else (width, round(height / aspect))
        image = image.resize(wider, Image.Resampling.LANCZOS)
        how.append("pixels that are not square")
    if turn := TURNS[frame.rotation]:
        image = image.transpose(turn)
        how.append("turned upright")
    return image, tuple(how)


def _gif_length(stream: io.BufferedIOBase, size: int) -> int:
    """Returns how many bytes the whole GIF would have: `size`, or `size` + 1 (at least) if its end is missing. A GIF
    ends in ";", after which some programs write zeros."""
    stream.seek(max(0, size - 1024))
    return size if stream.read().rstrip(b"\0").endswith(b";") else size + 1


def _riff_length(stream: io.BufferedIOBase, size: int) -> int:
    stream.seek(4)
    return 8 + int.from_bytes(stream.read(4), "little")


def _outermost_length(stream: io.BufferedIOBase, size: int) -> int:
    """Returns the position, in bytes, at which the last outermost element of a file ends. Elements are boxes in mp4 and
    mov (ISO 14496-12), and EBML elements in Matroska and WebM.

    Returns `size` for other formats, and if a length is given as unknown.
    """
    stream.seek(0)
    measure = _element if stream.read(4) == b"\x1aE\xdf\xa3" else _box
    place = 0
    while place < size:
        stream.seek(place)
        length = measure(stream.read(16))
        if length is None:
            return size
        place += length
    return place


def _box(head: bytes) -> int | None:
    """The size in bytes of a box of ISO 14496-12, from its `head`; None if the box reaches to the end of the file, or
    if `head` does not begin a box."""
    length, name = int.from_bytes(head[:4], "big"), head[4:8]
    if len(name) < 4 or not all(32 <= byte < 127 for byte in name):
        return None
    if length == 1:
        length = int.from_bytes(head[8:16], "big")
    return length if length >= 8 else None


def _element(head: bytes) -> int | None:
    """The size in bytes of an element of EBML (RFC 8794), from its `head`; None if its length is unknown or `head` does
    not begin an element."""
    if not head or not head[0]:
        return None
    name = 9 - head[0].bit_length()
    if len(head) <= name or not head[name]:
        return None
    width = 9 - head[name].bit_length()
    value = int.from_bytes(head[name : name + width], "big") & ((1 << 7 * width) - 1)
    return None if value == (1 << 7 * width) - 1 else name + width + value
