"""Places the objects of the corpus `motion` in each frame, inside the picture and apart from each other.

There is no trial and error. A path is first made relative to its start; then the start is drawn from the positions for
which the whole path stays inside. Two objects cannot touch: along one axis, everything that the first object ever
covers lies before everything that the second object ever covers, with `GAP` between.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

from rfjax.data.digits import drawn_side
from rfjax.data.motion_worlds import SIDE, STEPS, STILL, TASKS, Contents, World
from rfjax.data.shapes import CLASSES, RADII

# Half the width and half the height of a shape, in radii.
_HALVES = {
    "square": (0.92, 0.92),
    "triangle": (0.96, 1.0),
    "cross": (1.0, 1.0),
    "ring": (1.0, 1.0),
    "bar": (1.0, 0.42),
    "pillar": (0.42, 1.0),
}
HALVES = np.array([_HALVES[name] for name in CLASSES])

EDGE = 0.25  # pixels between an object's box and the picture's edge; an object that bounces touches the edge
GAP = 1.5  # pixels between the boxes of two objects
SCAN_HALF = drawn_side(SIDE // 2) / 2  # half the side of every scan: as large as in a cell of `digits`
SMALLEST, LARGEST = (share * SIDE / 2 for share in RADII)  # radii, as in a cell of `shapes`
LARGEST_OF_TASK = {  # the largest radius in tasks in which LARGEST would not fit
    "permanence": SMALLEST,
    **dict.fromkeys(("position", "motion_binding", "relation_change"), SMALLEST + 0.15),
}
PASSING = (9.0, 5.0)  # pixels that object 0 and object 1 of `relation_change` travel, past each other
PASSING_SLACK = 0.6  # the most pixels beyond GAP between the two, so that they count as beside each other at both ends
BESIDE = 0.1  # pixels between the object of `permanence` and the screen, in the first frame and in the last
SIDEWAYS = 1.0  # pixels, how far the objects of `position` may be off one line

LAYOUT_SLOTS = 14


@dataclass(frozen=True)
class Layout:
    """The ground truth of clips, with which a detector's tracks are compared.

    Lengths are in pixels of a picture that is `SIDE` pixels wide and high.
    """

    present: Bool[np.ndarray, "n 2"]
    classes: Int[np.ndarray, "n 2"]
    colors: Int[np.ndarray, "n frames 2"]
    radius: Float[np.ndarray, "n 2"]
    half: Float[np.ndarray, "n 2 2"]  # half the width and height of each object's box
    variant: Float[np.ndarray, "n 2"]  # in [0, 1): which scan of its class, where scans move
    centre: Float[np.ndarray, "n frames 2 2"]  # x, y
    screen: Float[np.ndarray, "n 4"]  # x1, y1, x2, y2 of the screen; all zero in clips without one
    background: Float[np.ndarray, " n"]  # in [0, 1): from the darkest to the lightest

    def rows(self, places: Int[np.ndarray, " m"]) -> Layout:
        """The clips at `places`."""
        return Layout(*(field[places] for field in vars(self).values()))

    @property
    def boxes(self) -> Float[np.ndarray, "n frames 2 4"]:
        """x1, y1, x2, y2."""
        half = self.half[:, None]
        return np.concatenate([self.centre - half, self.centre + half], axis=-1)

    @property
    def velocity(self) -> Float[np.ndarray, "n intervals 2 2"]:
        """The displacement (x right, y down) from each frame to the next, in pixels."""
        return np.diff(self.centre, axis=1)


def place(world: World, frames: int, contents: Contents, u: Float[np.ndarray, "n slots"]) -> Layout:
    """Makes layouts of clips in which the contents happen. `u` has `LAYOUT_SLOTS` uniform numbers for each clip."""
    largest = np.array([LARGEST_OF_TASK.get(name, LARGEST) for name in TASKS])[contents.task]
    if world.of_scans:
        radius = np.full((len(u), 2), SCAN_HALF)
        half = np.repeat(radius[..., None], 2, axis=2)
    else:
        radius = _between(SMALLEST, largest[:, None], u[:, 0:2])
        half = HALVES[contents.classes] * radius[..., None]
    path, turn = _relative_paths(world, frames, contents, half, u[:, 2:5])

    room_low = EDGE + half - path.min(axis=1)
    room_high = SIDE - EDGE - half - path.max(axis=1)
    start = _between(room_low, room_high, u[:, 5:9].reshape(-1, 2, 2))
    start = np.where(contents.of("bounce")[:, None, None], _against_the_wall(start, contents, half, path), start)
    behind = contents.of("permanence")
    start = np.where(behind[:, None, None], _either_side(start, contents, path), start)
    pair = contents.present[:, 1]
    start = np.where(pair[:, None, None], _apart(start, room_low, room_high, contents, half, path, u[:, 9:13]), start)

    changes = contents.of("change")[:, None] & (np.arange(frames) >= turn[:, None])
    first = np.where(changes, contents.colors[:, 1:], contents.colors[:, :1])
    second = np.broadcast_to(contents.colors[:, 1:], first.shape)
    return Layout(
        present=contents.present,
        classes=contents.classes,
        colors=np.stack([first, second], axis=-1),
        radius=radius,
        half=half,
        variant=u[:, 0:2],
        centre=start[:, None] + path,
        screen=np.where(behind[:, None], _screen(contents, half), 0.0),
        background=u[:, 13],
    )


def _between(low, high, u):
    return low + (high - low) * u


def _relative_paths(world, frames, contents, half, u):
    """Returns (positions relative to the first frame [n, frames, 2, 2], the frame of a turn or change [n])."""
    time, last = np.arange(frames), max(frames - 1, 1)
    turn = frames // 2 - 1 + (2 * u[:, 2]).astype(int)  # for an even number of frames, one of the two in the middle
    quick = np.where(contents.of("speed", "motion"), contents.speed == 1, ~contents.of("motion_binding"))
    low, high = (np.where(quick, world.fast[end], world.slow[end])[:, None] for end in (0, 1))
    travel = _between(low, high, u[:, 0:2])  # pixels, if the object moves on from the first frame to the last
    along = _along(contents, half)
    hidden = contents.of("permanence")
    travel[:, 0] = np.where(hidden, SIDE - 2 * (EDGE + along), travel[:, 0])
    travel = np.where(contents.of("relation_change")[:, None], np.array(PASSING), travel)

    after = np.maximum(time - turn[:, None], 0)  # frames since the turn
    progress = np.broadcast_to(time, after.shape).astype(float)
    progress = np.where(contents.of("stop")[:, None], progress - after, progress)
    progress = np.where(contents.of("bounce")[:, None], progress - 2.0 * after, progress)
    step = np.where(contents.directions == STILL, 0, 1)[..., None] * STEPS[contents.directions]
    return progress[:, :, None, None] * (travel / last)[:, None, :, None] * step[:, None], turn


def _along(contents, half):
    """Half the size of object 0 along its direction [n]."""
    return np.take_along_axis(half[:, 0], _axis(contents.directions[:, :1]), axis=1)[:, 0]


def _axis(direction):
    """The axis that each direction runs along: 0 (x) for left, right and no direction, 1 (y) for up and down."""
    return np.maximum(direction, 0) // 2


def _against_the_wall(start, contents, half, path):
    """Returns `start` with the start of object 0 changed, for clips in which object 0 bounces: it then touches the
    picture's edge where its path turns. The start of object 1 stays as it is."""
    wall = np.where(STEPS[contents.directions[:, 0]] > 0, SIDE - half[:, 0], half[:, 0])
    furthest = np.where(STEPS[contents.directions[:, 0]] > 0, path[:, :, 0].max(axis=1), path[:, :, 0].min(axis=1))
    moves = np.arange(2) == _axis(contents.directions[:, 0])[:, None]
    return np.stack([np.where(moves, wall - furthest, start[:, 0]), start[:, 1]], axis=1)


def _either_side(start, contents, path):
    """Returns `start` with the start of object 0 changed, for clips in which object 0 passes behind the screen: its
    start and its end are then equally far from the picture's middle. The start of object 1 stays as it is."""
    moves = np.arange(2) == _axis(contents.directions[:, 0])[:, None]
    return np.stack([np.where(moves, SIDE / 2 - path[:, -1, 0] / 2, start[:, 0]), start[:, 1]], axis=1)


def _screen(contents, half):
    """Returns the box of each clip's screen, a strip across the whole picture at right angles to object 0's path.

    In the first and the last frame object 0 is completely visible beside the screen. In the middle frame the screen
    hides the object, except for a pixel of a large object.
    """
    along = _along(contents, half)
    width = np.minimum(SIDE / 2 - EDGE - BESIDE - 2 * along, along + 1.0)
    moves = np.arange(2) == _axis(contents.directions[:, 0])[:, None]
    low = np.where(moves, SIDE / 2 - width[:, None], 0.0)
    return np.concatenate([low, SIDE - low], axis=1)


def _apart(start, room_low, room_high, contents, half, path, u):
    """Returns the starts of two objects, chosen so that the objects' boxes are at least GAP apart along one axis. This
    holds even for the boxes of two different frames."""
    n = np.arange(len(start))
    first, second = (_axis(contents.directions[:, k]) for k in (0, 1))
    axis = np.where(first == second, 1 - first, (2 * u[:, 0]).astype(int))  # if the paths are parallel, across them
    axis = np.where(contents.of("position"), contents.relation // 2, axis)
    lower = (2 * u[:, 1]).astype(int)  # the object at the smaller coordinates
    lower = np.where(contents.of("position"), contents.relation % 2, lower)
    lows, highs = (path.min(axis=1) - half)[n, :, axis], (path.max(axis=1) + half)[n, :, axis]
    length = highs - lows
    slack = SIDE - 2 * EDGE - GAP - length.sum(axis=1)
    before = slack * u[:, 2]
    more = np.where(contents.of("relation_change"), np.minimum(PASSING_SLACK, slack - before), slack - before) * u[:, 3]
    begin = np.empty_like(lows)  # where all that each object ever covers begins, along `axis`
    begin[n, lower] = EDGE + before
    begin[n, 1 - lower] = EDGE + before + more + GAP + length[n, lower]

    # Along the other axis: the objects of `position` are nearly on a line, and those of `relation_change` start on
    # either side of each other, at the same distance as they end.
    other, result = 1 - axis, start.copy()
    beside = np.clip(start[n, 0, other] + SIDEWAYS * (2 * u[:, 0] - 1), room_low[n, 1, other], room_high[n, 1, other])
    ends = start[n, 0, other] + (path[n, -1, 0, other] - path[n, -1, 1, other]) / 2
    partner = np.where(contents.of("position"), beside, start[n, 1, other])
    result[n, 1, other] = np.where(contents.of("relation_change"), ends, partner)
    result[n, :, axis] = begin - lows
    return result
