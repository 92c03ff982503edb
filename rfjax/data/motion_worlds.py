"""Decides what happens in the clips of the corpus `motion`: its tasks, its worlds, and the contents of clips.

A world says how many frames a clip has, how often training draws each task, and how far objects move. `motion_captions`
writes the captions, `motion_paths` places the objects, and `motion` draws the pixels. Arrays have a leading clip axis
`n`. Lengths are in pixels of a picture that is `SIDE` pixels wide and high; a larger picture shows the same, enlarged.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, field, replace

import numpy as np
from jaxtyping import Bool, Float, Int

from rfjax.data import digits
from rfjax.data.geneval_names import RELATIONS
from rfjax.data.scenes import Vocabulary, pick
from rfjax.data.shapes import VOCABULARY

SIDE = 16
DIRECTIONS = ("left", "right", "up", "down")
STEPS = np.array([[-1, 0], [1, 0], [0, -1], [0, 1]])  # (x right, y down) of each direction
OPPOSITE = np.array([1, 0, 3, 2])
SPEEDS = ("slow", "fast")
STILL = -1  # the direction of an object that does not move

# What a caption is about. The tasks in PAIRS have two objects, all other tasks have one.
TASKS = (
    "still",
    "position",  # two objects at rest, one in a relation to the other
    "motion",
    "speed",  # motion, and the caption says how fast
    "stop",  # motion, then rest
    "bounce",  # motion to the wall and back
    "permanence",  # motion past a screen, which hides the object on its way
    "change",  # an object at rest has another colour from some frame on
    "motion_binding",  # two objects in two directions
    "relation_change",  # two objects pass each other, so that a relation turns into its opposite
)
PAIRS = ("position", "motion_binding", "relation_change")
AT_REST = ("still", "position", "change")
# The tasks whose objects keep one velocity from the first frame to the last, and the speeds that the world may give to
# an object whose caption names none.
CONSTANT_VELOCITY: dict[str, tuple[str, ...]] = {"motion": SPEEDS, "speed": SPEEDS, "motion_binding": ("slow",)}


@functools.cache
def held_out_triples(vocabulary: Vocabulary) -> Bool[np.ndarray, "classes colors 4"]:
    """The triples (class, colour, direction) that training never shows: those with (class + direction) mod colours =
    colour, as indices.

    Training still shows every pair of two of the three: each (class, direction) with all colours but one, each (class,
    colour) with all directions or all but one, and each (colour, direction) with most classes.
    """
    kind, color, way = np.ogrid[: len(vocabulary.classes), : len(vocabulary.colors), :4]
    return (kind + way) % len(vocabulary.colors) == color


HELD_OUT = held_out_triples(VOCABULARY)

STILL_TASKS = ("still", "position")  # those that a single frame can show

CONTENT_SLOTS = 9


@dataclass(frozen=True, kw_only=True)
class World:
    """The frames, tasks, speeds and objects of clips, which decide how difficult the clips are."""

    frames: tuple[int, int]  # the smallest and the largest number of frames
    shares: tuple[tuple[str, float], ...]  # of the tasks in training; other tasks never occur
    slow: tuple[float, float]  # the least and the most pixels that a slow object moves from first frame to last
    fast: tuple[float, float]
    mean: tuple[float, float, float]  # of training frames per channel, so that latents have about zero mean
    std: tuple[float, float, float]  # and unit variance
    # What moves: shapes of many sizes, or scans of one size. The vocabulary is not in the repr, which a corpus's
    # fingerprint hashes, because the fingerprint also hashes the text encoder, which depends on the vocabulary.
    vocabulary: Vocabulary = field(default=VOCABULARY, repr=False)

    @property
    def of_scans(self) -> bool:
        return self.vocabulary is digits.VOCABULARY

    @property
    def tasks(self) -> tuple[str, ...]:
        return tuple(task for task in TASKS if task in dict(self.shares))

    def speeds(self, task: str, named: str | None = None) -> tuple[tuple[float, float], ...]:
        """The speeds that an object of a task may have, as intervals in pixels from a clip's first frame to its last.
        If the caption names a speed (`named`), only that speed's interval is returned. () for a task in which objects
        do not keep one velocity."""
        allowed = CONSTANT_VELOCITY.get(task, ())
        return tuple(getattr(self, speed) for speed in allowed if named in (None, speed))

    def of_stills(self) -> World:
        """This world with one frame: only the tasks that a still can show, with shares scaled to add up to 1."""
        kept = [(task, share) for task, share in self.shares if task in STILL_TASKS]
        total = sum(share for _, share in kept)
        return replace(self, frames=(1, 1), shares=tuple((task, share / total) for task, share in kept))


# One object, still or in a straight line, in few frames: for networks that train in minutes on a CPU.
FIRST = World(
    frames=(4, 4),
    shares=(("still", 0.2), ("motion", 0.4), ("speed", 0.4)),
    slow=(1.8, 2.4),
    fast=(5.1, 6.3),
    mean=(0.253, 0.244, 0.244),
    std=(0.154, 0.134, 0.143),
)

WORLDS = {
    "first": FIRST,
    "full": World(
        frames=(8, 16),
        shares=(
            ("still", 0.08),
            ("position", 0.10),
            ("motion", 0.14),
            ("speed", 0.14),
            ("stop", 0.10),
            ("bounce", 0.10),
            ("permanence", 0.08),
            ("change", 0.10),
            ("motion_binding", 0.10),
            ("relation_change", 0.06),
        ),
        slow=(2.1, 2.6),
        fast=(6.3, 8.0),
        mean=(0.251, 0.241, 0.241),
        std=(0.166, 0.145, 0.154),
    ),
    # As `first`, with the real scans of the corpus `digits`: those set aside are in validation and ground truth alone.
    "digits": replace(FIRST, mean=(0.245, 0.238, 0.238), std=(0.121, 0.106, 0.112), vocabulary=digits.VOCABULARY),
}


@dataclass(frozen=True)
class Contents:
    """What happens in clips, as arrays. Object 0 is the object that the caption names first."""

    task: Int[np.ndarray, " n"]  # index in TASKS
    classes: Int[np.ndarray, "n 2"]
    colors: Int[np.ndarray, "n 2"]  # in the task `change`, the colours before and after
    directions: Int[np.ndarray, "n 2"]  # index in DIRECTIONS, or STILL; of the first move
    speed: Int[np.ndarray, " n"]  # index in SPEEDS; only `motion` and `speed` use it
    relation: Int[np.ndarray, " n"]  # index in RELATIONS, of object 0 to object 1; only `position` uses it

    def rows(self, places: Int[np.ndarray, " m"]) -> Contents:
        """The clips at `places`."""
        return Contents(*(field[places] for field in vars(self).values()))

    def of(self, *tasks: str) -> Bool[np.ndarray, " n"]:
        """Whether a clip is of one of these tasks."""
        return np.isin(self.task, [TASKS.index(task) for task in tasks])

    @property
    def present(self) -> Bool[np.ndarray, "n 2"]:
        return np.stack([np.ones(len(self.task), bool), self.of(*PAIRS)], axis=1)


def draw_contents(world: World, u: Float[np.ndarray, "n slots"], *, held_out: bool) -> Contents:
    """Draws the contents of clips of a world. `u` has `CONTENT_SLOTS` uniform numbers for each clip.

    Without `held_out`, no object shows a (class, colour, direction) of `held_out_triples`, not even on its way back
    from a wall.
    """
    tasks, shares = zip(*world.shares, strict=True)
    task = np.array([TASKS.index(name) for name in tasks])[
        np.searchsorted(np.cumsum(shares)[:-1], u[:, 0], side="right")
    ]
    kinds, hues = len(world.vocabulary.classes), len(world.vocabulary.colors)
    first = (kinds * u[:, 1]).astype(int)
    classes = np.stack([first, (first + 1 + ((kinds - 1) * u[:, 2]).astype(int)) % kinds], axis=1)
    directions = directions_of(task, (4 * u[:, 3]).astype(int), (3 * u[:, 4]).astype(int))
    shown = shown_directions(task, directions)
    allowed = ~(held_out_triples(world.vocabulary)[classes] & shown[:, :, None, :] & (not held_out)).any(axis=-1)
    first_color = pick(allowed[:, 0], u[:, 5])
    other = np.arange(hues) != first_color[:, None]
    colors = np.stack([first_color, pick(allowed[:, 1] & other, u[:, 6])], axis=1)
    speed, relation = (2 * u[:, 7]).astype(int), (len(RELATIONS) * u[:, 8]).astype(int)
    return Contents(task, classes, colors, directions, speed, relation)


def directions_of(
    task: Int[np.ndarray, " n"], first: Int[np.ndarray, " n"], turn: Int[np.ndarray, " n"]
) -> Int[np.ndarray, "n 2"]:
    """The directions of both objects, given the first object's direction `first`.

    For `motion_binding`, the second object has one of the other three directions; `turn`, from 0 to 2, chooses it.
    """
    second = np.full(len(task), STILL)
    second = np.where(task == TASKS.index("motion_binding"), (first + 1 + turn) % 4, second)
    second = np.where(task == TASKS.index("relation_change"), OPPOSITE[first], second)
    rests = np.isin(task, [TASKS.index(name) for name in AT_REST])
    return np.stack([np.where(rests, STILL, first), second], axis=1)


def shown_directions(task: Int[np.ndarray, " n"], directions: Int[np.ndarray, "n 2"]) -> Bool[np.ndarray, "n 2 4"]:
    """The directions in which each object moves at some time: two for an object that bounces."""
    shown = directions[..., None] == np.arange(4)
    back = (task == TASKS.index("bounce"))[:, None] & (OPPOSITE[directions[:, :1]] == np.arange(4))
    shown[:, 0] |= back
    return shown


def is_held_out(contents: Contents, vocabulary: Vocabulary = VOCABULARY) -> Bool[np.ndarray, " n"]:
    """Whether a clip shows a triple that training never shows."""
    colors = np.where(contents.of("change")[:, None], contents.colors[:, :1], contents.colors)
    shown = shown_directions(contents.task, contents.directions) & contents.present[..., None]
    return (held_out_triples(vocabulary)[contents.classes, colors] & shown).any(axis=(1, 2))
