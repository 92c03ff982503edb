"""The corpus `motion`: clips of the shapes of `shapes`, or of the scans of `digits`, which move in a small world.

A clip is a function of (seed, index). What happens is in `motion_worlds`, where objects are in `motion_paths`, words in
`motion_captions`. Beside the pixels `MotionCorpus.clips` gives the truth: places, velocities and colours, by frame.
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
PIECES = 240  # of the tokenizer: with so many every word is one piece
APART = 2**27  # examples between the beginnings of two buckets; ids have 32 bits, so there may be 32 buckets
SCREEN_COLOR = 0.0  # black: darker than any background, and so no mixture of it and a colour


@dataclass(frozen=True)
class MotionCorpus:
    """Clips of one world, or stills if there is one frame; see `corpus.Corpus` for the methods.

    The splits are separate streams of one generator. Training never shows a (class, colour, direction) of
    `motion_worlds.held_out_triples`; validation shows all. Examples and their ids begin at `first` of the streams, so
    that several buckets of one run show different scenes.
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
        """The world, with the tasks that its frames can show."""
        world = WORLDS[self.world]
        return world.of_stills() if self.is_still else world

    @property
    def fingerprint(self) -> str:
        facts = (VERSION, self.world, WORLDS[self.world], self.frames, *seed_facts(self.seed), self.image_size)
        facts += (self.first,) * bool(self.first)
        return hashlib.sha256(f"{facts!r}|{self._encoder.fingerprint}".encode()).hexdigest()

    def clips(self, indices: Integer[np.ndarray, " n"], split: str) -> tuple[Contents, Layout, list[str]]:
        """What happens in clips, where their objects are in each frame (in pixels of `SIDE` a side), and captions."""
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
        """Rows of the world's tasks, with fields for what happens (`motion_captions`); of stills GenEval's rows."""
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
        """Pixels in [0, 1] of every frame."""
        world = WORLDS[self.world]
        return np.clip(np.asarray(latents, np.float32) * np.float32(world.std) + np.float32(world.mean), 0.0, 1.0)

    def to_latents(self, images: Float[np.ndarray, "n *frames h w 3"]) -> Float[np.ndarray, "n frames h w 3"]:
        """The latents of clips; of stills, if the pixels have no axis of frames."""
        world = WORLDS[self.world]
        scaled = (np.asarray(images, np.float32) - np.float32(world.mean)) / np.float32(world.std)
        return scaled if scaled.ndim == 5 else scaled[:, None]


def draw(
    layout: Layout, image_size: int, alphas: Float[np.ndarray, "objects n frames h w"] | None = None
) -> Float[np.ndarray, "n frames h w 3"]:
    """Draws clips in [0, 1]: over the background the objects in their order, each over those before it, and over all of
    them the screen. The objects cover what `alphas` say, by default as shapes."""
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
    """How much of each pixel each shape covers."""
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
    """The same of scans of a split. A scan is drawn between pixels, and so blurred a little, as it moves on."""
    scale, groups = image_size / SIDE, scans(split)
    step = SCAN_SIDE / (2 * motion_paths.SCAN_HALF * scale)  # pixels of a scan in one of the picture
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
    """The text encoder of a vocabulary. It is trained on the captions of all tasks, so that a run in one world can go
    on in another of the same things, and once per process."""
    return text.TextEncoder.fit(list(motion_captions.specimens(TASKS, vocabulary=vocabulary)), PIECES)


def make(data: DataConfig, seed: int) -> MotionCorpus | BucketedCorpus:
    """The corpus of the config's world; with `data.buckets` a part for each of them, in which frames may be 1.

    Raises `ConfigError` for frames that the world does not have, a picture at which shapes cannot be told apart or that
    is no square, and any other size that is not the corpus's own: it would be ignored.
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
    """The corpus of `data.buckets`. The counts of a part's examples are its share, in whole numbers."""
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
