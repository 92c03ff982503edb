"""Draws scenes of one to four objects on a grid of two by two cells: which objects there are, and where.

`grammar` writes captions of the scenes, and the corpora draw their pixels. A scene is drawn for one of GenEval's six
tasks, so that a caption of the task is true by GenEval's rules (Ghosh et al. 2023, "GenEval: an object-focused
framework for evaluating text-to-image alignment"). Arrays have a leading scene axis `n`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

from rfjax.data.geneval_names import RELATIONS, TASKS

MAX_OBJECTS = 4

# Shares of the tasks in training. Counting, position and attribution are hard, and also teach what easy tasks need.
PROPORTIONS = (0.10, 0.15, 0.20, 0.15, 0.20, 0.20)
COUNTS = (1, 2, 0, 1, 2, 2)  # objects in a scene of each task; 0: a random number from two to four

# [relation, lane] -> cells of (target, subject). A lane is one of the two rows, or columns, in which both objects can
# lie: there exactly one relation holds. Cells: 0 1 over 2 3.
_POSITION_CELLS = np.array(
    [
        [[1, 0], [3, 2]],  # subject left of target
        [[0, 1], [2, 3]],
        [[2, 0], [3, 1]],  # subject above target
        [[0, 2], [1, 3]],
    ]
)

# Those of GenEval's ten colours that are far apart in RGB, and far from every background.
PALETTE = {
    "red": (0.95, 0.10, 0.10),
    "yellow": (1.00, 0.90, 0.05),
    "green": (0.05, 0.80, 0.15),
    "blue": (0.10, 0.30, 1.00),
    "purple": (0.75, 0.05, 0.90),
    "white": (1.00, 1.00, 1.00),
}
BACKGROUNDS = (0.12, 0.32)  # the darkest and the lightest grey

CONTENT_SLOTS = 8
LAYOUT_SLOTS = 22


@dataclass(frozen=True)
class Vocabulary:
    """The words of a corpus, and the (class, colour) pairs that training never shows."""

    classes: tuple[str, ...]
    plurals: tuple[str, ...]
    colors: tuple[str, ...]  # among GenEval's ten
    palette: tuple[tuple[float, float, float], ...]  # RGB in [0, 1] of each colour
    held_out: tuple[int, ...]  # for each class, the colour that it never has in training or validation

    def seen(self) -> Bool[np.ndarray, "classes colors"]:
        """Whether training may show each pair of class and colour."""
        return np.arange(len(self.colors)) != np.array(self.held_out)[:, None]


@dataclass(frozen=True)
class Contents:
    """The objects of scenes, in the order of the caption. The task `position` is the exception: object 0 is the target
    of the relation, which the caption names last, and object 1 is the subject, whose position is stated."""

    task: Int[np.ndarray, " n"]  # index in TASKS
    count: Int[np.ndarray, " n"]  # how many of the four objects exist
    classes: Int[np.ndarray, "n 4"]
    colors: Int[np.ndarray, "n 4"]
    relation: Int[np.ndarray, " n"]  # index in RELATIONS; only `position` uses it


@dataclass(frozen=True)
class Layout:
    """Where the objects of scenes are and how they look: an entry for each of the four cells, in reading order."""

    present: Bool[np.ndarray, "n 4"]
    classes: Int[np.ndarray, "n 4"]
    colors: Int[np.ndarray, "n 4"]
    offset: Float[np.ndarray, "n 4 2"]  # (x, y) in [-1, 1), in units of the free room in the cell
    size: Float[np.ndarray, "n 4"]  # in [0, 1): from the smallest to the largest
    variant: Float[np.ndarray, "n 4"]  # in [0, 1): selects one of the class's pictures
    background: Float[np.ndarray, " n"]  # in [0, 1): from the darkest to the lightest


def draw_contents(vocabulary: Vocabulary, u: Float[np.ndarray, "n slots"]) -> Contents:
    """Draws the contents of training scenes. `u` has `CONTENT_SLOTS` uniform numbers for each scene."""
    task = np.searchsorted(np.cumsum(PROPORTIONS)[:-1], u[:, 0], side="right")
    counting = task == TASKS.index("counting")
    count = np.where(counting, 2 + (3 * u[:, 1]).astype(int), np.array(COUNTS)[task])

    first = (len(vocabulary.classes) * u[:, 2]).astype(int)
    step = 1 + ((len(vocabulary.classes) - 1) * u[:, 3]).astype(int)
    second = (first + step) % len(vocabulary.classes)

    seen = vocabulary.seen()
    first_color = pick(seen[first], u[:, 4])
    other = np.arange(len(vocabulary.colors)) != first_color[:, None]
    attribution = task == TASKS.index("color_attr")  # the two colours differ, as in the official prompts
    second_color = pick(seen[second] & (other | ~attribution[:, None]), u[:, 5])

    def pair(a, b):
        return np.where(counting[:, None], a[:, None], np.stack([a, b, b, b], axis=1))

    relation = (len(RELATIONS) * u[:, 6]).astype(int)
    return Contents(task, count, pair(first, second), pair(first_color, second_color), relation)


def pick(allowed: Bool[np.ndarray, "n choices"], u: Float[np.ndarray, " n"]) -> Int[np.ndarray, " n"]:
    """Picks one of the true entries in each row of `allowed`, all equally likely, from one uniform number `u` for each
    row. Every row must have a true entry."""
    rank = (u * allowed.sum(axis=1)).astype(int) + 1
    return np.argmax(np.cumsum(allowed, axis=1) == rank[:, None], axis=1)


def place(contents: Contents, u: Float[np.ndarray, "n slots"]) -> Layout:
    """Puts objects into cells so that the relations hold. `u` has `LAYOUT_SLOTS` uniform numbers for each scene."""
    n = len(contents.task)
    cells = np.argsort(u[:, 0:4], axis=1)
    lane = (2 * u[:, 4]).astype(int)
    related = _POSITION_CELLS[contents.relation, lane]
    rest = np.array([[c for c in range(4) if c not in pair] for pair in related.tolist()]).reshape(n, 2)
    position = contents.task == TASKS.index("position")
    cells = np.where(position[:, None], np.concatenate([related, rest], axis=1), cells)

    def by_cell(values):
        out = np.empty_like(values)
        np.put_along_axis(out, cells, values, axis=1)
        return out

    present = by_cell(np.arange(MAX_OBJECTS) < contents.count[:, None])
    return Layout(
        present=present,
        classes=by_cell(contents.classes),
        colors=by_cell(contents.colors),
        offset=2.0 * u[:, 5:13].reshape(n, 4, 2) - 1.0,
        size=u[:, 13:17],
        variant=u[:, 17:21],
        background=u[:, 21],
    )


def between(low: float, high: float, u: Float[np.ndarray, "*shape"]) -> Float[np.ndarray, "*shape"]:
    return low + (high - low) * u


def paint(
    vocabulary: Vocabulary, layout: Layout, alpha: Float[np.ndarray, "n 4 cell cell"]
) -> Float[np.ndarray, "n side side 3"]:
    """Draws scenes as images in [0, 1]. `alpha` mixes the colour of each cell's object with the background; it is 0
    where there is no object."""
    n, _, cell, _ = alpha.shape
    background = between(*BACKGROUNDS, layout.background)[:, None, None, None, None]
    color = np.array(vocabulary.palette)[layout.colors][:, :, None, None, :]
    cells = background + alpha[..., None] * (color - background)
    grid = cells.reshape(n, 2, 2, cell, cell, 3).transpose(0, 1, 3, 2, 4, 5)
    return grid.reshape(n, 2 * cell, 2 * cell, 3).astype(np.float32)
