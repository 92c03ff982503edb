"""The files of `rfjax sample --prompt`, as a table: what each suffix holds of images and of clips."""

from __future__ import annotations

import io
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from rfjax.data.corpus import Corpus
from rfjax.errors import ConfigError
from rfjax.evaluation.pictures import FRAME_MILLISECONDS, png_bytes, strip, webp_bytes

SIDE, GAP = 128, 2  # pixels: the least height at which an image is shown, and the space between two images
Samples = Float[np.ndarray, "prompts samples frames h w 3"]  # in [0, 1]; an image has one frame


class Format(NamedTuple):
    """How samples are written to a file."""

    write: Callable[[Samples, Fraction], bytes]  # (samples, frames a second) -> the file
    moves: bool  # whether the format is for clips alone


def rows(samples: Samples) -> list[Float[np.ndarray, "height width 3"]]:
    """Arranges samples into one picture for each frame. A picture has a row for each prompt, with the prompt's samples
    side by side."""
    frames = []
    for number in range(samples.shape[2]):
        prompts = [strip(images, gap=GAP, side=SIDE)[0] for images in samples[:, :, number]]
        below = ((0, GAP), (0, 0), (0, 0))
        frames.append(np.concatenate([np.pad(row, below, constant_values=1.0) for row in prompts]))
    return frames


def _png(samples: Samples, rate: Fraction) -> bytes:
    """Makes a PNG: the frames of a prompt's samples below each other, then those of the next prompt."""
    return png_bytes(np.concatenate([frame for prompt in samples for frame in rows(prompt[None])]))


def _webp(samples: Samples, rate: Fraction) -> bytes:
    return webp_bytes(rows(samples), milliseconds=round(1000 / rate))


def _mp4(samples: Samples, rate: Fraction) -> bytes:
    """H.264 in RGB without loss."""
    import av

    pictures = [np.round(255 * frame).astype(np.uint8) for frame in rows(samples)]
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        stream = container.add_stream("libx264rgb", rate=rate, options={"qp": "0"})
        stream.height, stream.width, stream.pix_fmt = *pictures[0].shape[:2], "rgb24"
        for picture in pictures:
            for packet in stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)
    return buffer.getvalue()


def _npy(samples: Samples, rate: Fraction) -> bytes:
    """Makes an .npy of uint8 [prompts, samples, frames, height, width, 3]. Images have no axis of frames."""
    values = np.round(255 * np.clip(samples, 0.0, 1.0)).astype(np.uint8)
    buffer = io.BytesIO()
    np.save(buffer, values[:, :, 0] if values.shape[2] == 1 else values, allow_pickle=False)
    return buffer.getvalue()


FORMATS = {
    ".png": Format(_png, moves=False),
    ".npy": Format(_npy, moves=False),
    ".webp": Format(_webp, moves=True),
    ".mp4": Format(_mp4, moves=True),
}


def find_format(out: Path) -> Format:
    """Returns the format of a file's suffix. Raises `ConfigError` for a suffix that is not in `FORMATS`, and for .mp4
    if PyAV is not installed."""
    suffix = out.suffix.lower()
    if suffix not in FORMATS:
        raise ConfigError(f"--out is {out}; its name must end in one of {', '.join(FORMATS)}")
    if suffix == ".mp4":
        try:
            import av  # noqa: F401
        except ImportError as error:
            raise ConfigError(
                f"writing mp4 needs PyAV ({error}): pip install 'rfjax[video]', or name a .webp"
            ) from None
    return FORMATS[suffix]


def frame_rate(corpus: Corpus) -> Fraction:
    """Returns the frames a second of a corpus's clips. If the corpus has no such rate, returns the rate at which
    evaluations show clips (`FRAME_MILLISECONDS`)."""
    return getattr(corpus.parts[0], "frame_rate", None) or Fraction(1000, FRAME_MILLISECONDS)
