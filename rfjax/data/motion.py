"""The corpus `motion`: clips in which the shapes of `shapes`, or the scans of `digits`, move.

A clip is a function of (seed, index). `motion_worlds` decides what happens in it, `motion_paths` where the objects are
in each frame, and `motion_captions` what the caption says; this module draws the pixels. `MotionCorpus.clips` returns
the ground truth beside the pixels: positions, velocities and colours in each frame.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import ClassVar

import numpy as np
from jaxtyping import Float, Integer

from rfjax.config import DataConfig
from rfjax.config_rules import parse_bucket
from rfjax.data import hashing, motion_captions, motion_paths, motion_worlds, text
from rfjax.data.batch import Batch, BatchShapes, Conditions, stills
from rfjax.data.buckets import BucketedCorpus
from rfjax.data.corpus import seed_facts, split_seed
from rfjax.data.digits import SCAN_SIDE, resampling, scans
from rfjax.data.embedded import GROUND_TRUTH, IMAGE_SIZES, OWN_SIZES, SPLITS
from rfjax.data.motion_paths import Layout
from rfjax.data.motion_worlds import SIDE, TASKS, WORLDS, Contents, World
from rfjax.data.scenes import BACKGROUNDS
from rfjax.data.shapes import CLASSES, VOCABULARY, coverage
from rfjax.errors import ConfigError

VERSION = "motion-1"  # to be raised whenever the data of a seed change
PIECES = 240  # the size of the tokenizer's vocabulary; with so many pieces, every word is one piece
APART = 2**27  # examples between the beginnings of two buckets; ids have 32 bits, so there may be 32 buckets
SCREEN_COLOR = 0.0  # black: darker than any mixture of a background and a colour


@dataclass(frozen=True)
class MotionCorpus:
    """Clips of one world, or stills if there is only one frame; see `corpus.Corpus` for the methods.

    The two splits are separate random streams of one generator. Training never shows a (class, colour, direction) of
    `motion_worlds.held_out_triples`; validation shows all. Indices and example ids are counted from `first`, so that
    the buckets of one run can show different scenes.
    """

    name: str
    world: str
    frames: int
    seed: int
    image_size: int
    first: int = 0
    made_with: ClassVar[Mapping[str, object]] = {}

    @property
    def shapes(self) -> BatchShapes:
        return BatchShapes(
            latents=(self.frames, self.image_size, self.image_size, 3),
            context=(text.CONTEXT_TOKENS, text.CONTEXT_SIZE),
            pooled=text.POOLED_SIZE,
            encoders=(text.SLOT,),
        )

    @property
    def parts(self) -> tuple[MotionCorpus]:
        return (self,)

    @property
    def is_still(self) -> bool:
        return self.frames == 1

    @property
    def drawn_from(self) -> World:
        """The corpus's world. For a corpus of stills, the world has only the tasks that a single frame can show."""
        world = WORLDS[self.world]
        return world.of_stills() if self.is_still else world

    @property
    def fingerprint(self) -> str:
        facts = (VERSION, self.world, WORLDS[self.world], self.frames, *seed_facts(self.seed), self.image_size)
        facts += (self.first,) * bool(self.first)
        return hashlib.sha256(f"{facts!r}|{self._encoder.fingerprint}".encode()).hexdigest()

    def clips(self, indices: Integer[np.ndarray, " n"], split: str) -> tuple[Contents, Layout, list[str]]:
        """Returns (what happens in clips, where objects are in each frame, captions). Lengths are in pixels of a
        picture that is `SIDE` pixels wide."""
        if split not in SPLITS:
            raise ConfigError(f"split {split!r} is unknown; it must be one of {', '.join(SPLITS)}")
        key = hashing.key(VERSION, self.world, split_seed(self.seed, split), split)
        slots = (motion_worlds.CONTENT_SLOTS, motion_paths.LAYOUT_SLOTS, motion_captions.WORDING_SLOTS)
        places = np.asarray(indices, np.uint64) + np.uint64(self.first)
        content, layout, wording = np.split(hashing.uniforms(key, places, sum(slots)), np.cumsum(slots)[:-1], axis=1)
        world = self.drawn_from
        contents = motion_worlds.draw_contents(world, content, held_out=split != "train")
        placed = motion_paths.place(world, self.frames, contents, layout)
        spoken = {"vocabulary": world.vocabulary, "still": self.is_still}
        return contents, placed, motion_captions.captions(contents, wording, **spoken)

    def examples(self, indices: Integer[np.ndarray, " n"], split: str) -> Batch:
        indices = np.asarray(indices, np.uint64)
        _, layout, captions = self.clips(indices, split)
        latents = self.to_latents(self._draw(layout, split))
        return Batch(latents, *self.encode(captions), (indices + np.uint64(self.first)).astype(np.uint32))

    def captions(self, indices: Integer[np.ndarray, " n"], split: str) -> list[str]:
        return self.clips(np.asarray(indices, np.uint64), split)[2]

    def encode(self, captions: Sequence[str]) -> Conditions:
        return self._encoder(captions)

    def unknown_words(self, captions: Sequence[str]) -> list[str]:
        known = motion_captions.words(self.drawn_from.tasks, vocabulary=self.drawn_from.vocabulary, still=self.is_still)
        used = (word for caption in captions for word in caption.split())
        return [word for word in dict.fromkeys(used) if word.casefold() not in known]

    def evaluation_prompts(self, prompts_per_task: int, seed: int) -> list[dict]:
        """Prompts of the world's tasks, as rows with fields for the motion (`motion_captions`). Rows for stills lack
        these fields."""
        return motion_captions.evaluation_prompts(self.drawn_from, prompts_per_task, seed, still=self.is_still)

    def render_prompt(self, row: dict, seed: int) -> Float[np.ndarray, "*frames h w 3"]:
        """A ground-truth clip or still in [0, 1] that satisfies a row of `evaluation_prompts`."""
        u = hashing.uniforms(
            hashing.key("ground truth", row["prompt"]), np.array([seed]), 1 + motion_paths.LAYOUT_SLOTS
        )
        contents = motion_captions.contents_of_row(row, float(u[0, 0]), self.drawn_from.vocabulary)
        clip = self._draw(motion_paths.place(self.drawn_from, self.frames, contents, u[:, 1:]), GROUND_TRUTH)[0]
        return clip[0] if self.is_still else clip

    @property
    def _encoder(self):
        return _encoder(WORLDS[self.world].vocabulary)

    def _draw(self, layout, split):
        alpha = scan_alpha(layout, self.image_size, split) if self.drawn_from.of_scans else None
        return draw(layout, self.image_size, alpha)

    def to_images(self, latents: Float[np.ndarray, "n frames h w 3"]) -> Float[np.ndarray, "n h w 3"]:
        return self.to_clips(stills(latents)[:, None])[:, 0]

    def to_clips(self, latents: Float[np.ndarray, "n frames h w 3"]) -> Float[np.ndarray, "n frames h w 3"]:
        """Converts every frame of latents to pixels in [0, 1]."""
        world = WORLDS[self.world]
        return np.clip(np.asarray(latents, np.float32) * np.float32(world.std) + np.float32(world.mean), 0.0, 1.0)

    def to_latents(self, images: Float[np.ndarray, "n *frames h w 3"]) -> Float[np.ndarray, "n frames h w 3"]:
        """Converts clips to latents; pixels without an axis of frames are stills."""
        world = WORLDS[self.world]
        scaled = (np.asarray(images, np.float32) - np.float32(world.mean)) / np.float32(world.std)
        return scaled if scaled.ndim == 5 else scaled[:, None]


def draw(
    layout: Layout, image_size: int, alphas: Float[np.ndarray, "objects n frames h w"] | None = None
) -> Float[np.ndarray, "n frames h w 3"]:
    """Draws clips in [0, 1]: first the background, then the objects in their order, and the screen on top.

    `alphas` says how much of each pixel each object covers; by default the objects are drawn as shapes (`shape_alpha`).
    """
    alphas = shape_alpha(layout, image_size) if alphas is None else alphas
    n, frames = layout.centre.shape[:2]
    scale = image_size / SIDE
    grid = np.arange(image_size) + 0.5
    low, high = BACKGROUNDS
    clip = np.empty((n, frames, image_size, image_size, 3))
    clip[:] = (low + (high - low) * layout.background)[:, None, None, None, None]
    palette = np.array(VOCABULARY.palette)
    for k, alpha in enumerate(alphas):
        clip += alpha[..., None] * (palette[layout.colors[:, :, k]][:, :, None, None] - clip)
    inside = np.clip(grid + 0.5 - scale * layout.screen[:, :2, None], 0, 1) - np.clip(
        grid + 0.5 - scale * layout.screen[:, 2:, None], 0, 1
    )
    screen = (inside[:, 1, :, None] * inside[:, 0, None, :])[:, None, ..., None]
    return (clip + screen * (SCREEN_COLOR - clip)).astype(np.float32)


def shape_alpha(layout: Layout, image_size: int) -> Float[np.ndarray, "objects n frames h w"]:
    """Returns the share of each pixel that each shape covers."""
    scale, grid = image_size / SIDE, np.arange(image_size) + 0.5
    alphas = np.zeros((layout.present.shape[1], *layout.centre.shape[:2], image_size, image_size))
    for k, alpha in enumerate(alphas):
        x = (grid - scale * layout.centre[:, :, k, 0, None])[:, :, None, :]
        y = (grid - scale * layout.centre[:, :, k, 1, None])[:, :, :, None]
        for index, name in enumerate(CLASSES):
            mine = layout.present[:, k] & (layout.classes[:, k] == index)
            alpha[mine] = coverage(name, x[mine], y[mine], scale * layout.radius[mine, k][:, None, None, None])
    return alphas


def scan_alpha(layout: Layout, image_size: int, split: str) -> Float[np.ndarray, "objects n frames h w"]:
    """Returns the share of each pixel that each object covers, if objects are scans of handwritten digits. Each
    object's scan is one of the scans of `split`.

    A moving scan is at fractions of a pixel, so resampling blurs it a little.
    """
    scale, groups = image_size / SIDE, scans(split)
    step = SCAN_SIDE / (2 * motion_paths.SCAN_HALF * scale)  # the side of a pixel of the picture, in pixels of a scan
    alphas = np.zeros((layout.present.shape[1], *layout.centre.shape[:2], image_size, image_size))
    for k, alpha in enumerate(alphas):
        mine = np.flatnonzero(layout.present[:, k])
        drawn = zip(layout.classes[mine, k].tolist(), layout.variant[mine, k].tolist(), strict=True)
        chosen = np.stack([groups[kind][int(u * len(groups[kind]))] for kind, u in drawn]) if len(mine) else None
        if chosen is not None:
            middles = SCAN_SIDE / 2 + (image_size / 2 - scale * layout.centre[mine, :, k]) * step
            across, down = (
                resampling(middles[..., axis].reshape(-1), SCAN_SIDE, image_size, step).reshape(
                    len(mine), -1, image_size, SCAN_SIDE
                )
                for axis in (0, 1)
            )
            alpha[mine] = np.minimum(down @ chosen[:, None] @ across.swapaxes(2, 3), 1.0)
    return alphas


@cache
def _encoder(vocabulary):
    """The text encoder of a vocabulary, made once per process.

    Its tokenizer is trained on captions of all tasks, not only of one world's tasks. So worlds with the same vocabulary
    share an encoder, and a run in one of them can start from the weights of a run in another.
    """
    return text.TextEncoder.fit(list(motion_captions.specimens(TASKS, vocabulary=vocabulary)), PIECES)


def make(data: DataConfig, seed: int) -> MotionCorpus | BucketedCorpus:
    """Makes the corpus of the config's world. With `data.buckets` the corpus has a part for each bucket. A bucket of
    one frame has stills.

    Raises `ConfigError` for a number of frames that the world does not have, for a bucket that is not square, and for a
    side that is odd or outside `IMAGE_SIZES`. The other sizes of the config (`OWN_SIZES`) must be the corpus's own,
    since other values would be ignored; otherwise `ConfigError` is raised, too.
    """
    common = {"name": data.label, "world": data.world, "seed": seed}
    if data.buckets:
        corpus = _bucketed(data, common)
    else:
        _check_frames(data.world, data.frames, f"config.data.frames is {data.frames}")
        corpus = MotionCorpus(**common, frames=data.frames, image_size=data.image_size)
    _check_side(data.image_size, f"config.data.image_size is {data.image_size}")
    for field, own in OWN_SIZES.items():
        if field != "frames" and getattr(data, field) != own:
            given = f"config.data.{field} is {getattr(data, field)}; the motion corpus has {own}"
            raise ConfigError(f"{given}: leave it out, or set config.data.corpus=random, which takes any")
    return corpus


def _bucketed(data, common):
    """Makes the corpus of `data.buckets`, with a part for each bucket. The corpus is unlimited, so its numbers of
    images are only the buckets' shares, scaled to whole numbers."""
    parts, shares = [], []
    for number, written in enumerate(data.buckets):
        (frames, height, width), share = parse_bucket(written)
        given = f"config.data.buckets has {written}"
        if height != width:
            raise ConfigError(f"{given}; the pictures of the motion corpus are squares")
        if frames > 1:
            _check_frames(data.world, frames, given)
        _check_side(height, given)
        parts.append(MotionCorpus(**common, frames=frames, image_size=height, first=number * APART))
        shares.append(share)
    if len(parts) == 1:
        return parts[0]
    whole = math.lcm(*(share.denominator for share in shares))
    counts = tuple(int(share * whole) for share in shares)
    return BucketedCorpus(data.label, tuple(parts), common["seed"], counts, tuple(count * APART for count in counts))


def _check_frames(world: str, frames: int, given: str) -> None:
    low, high = WORLDS[world].frames
    if not low <= frames <= high:
        have = ", ".join(
            f"{name} has {a}" if a == b else f"{name} has {a} to {b}" for name, (a, b) in _frames_of_worlds()
        )
        remedy = "set config.data.frames to one that it has, or change config.data.world"
        raise ConfigError(f"{given}, which the world {world} of the motion corpus does not have; {remedy}: {have}")


def _check_side(size: int, given: str) -> None:
    smallest, largest = IMAGE_SIZES
    if size % 2 or not smallest <= size <= largest:
        raise ConfigError(f"{given}; the motion corpus needs an even one from {smallest} to {largest}")


def _frames_of_worlds():
    return [(name, world.frames) for name, world in WORLDS.items()]
