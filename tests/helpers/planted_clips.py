"""Ground-truth clips of the corpus `motion` with faults planted in their layout, and drawn again."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from rfjax.data import hashing, motion, motion_captions, motion_paths
from rfjax.data.motion_paths import EDGE, SIDE
from rfjax.data.motion_worlds import STEPS, WORLDS
from rfjax.data.shapes import VOCABULARY
from rfjax.evaluation.detectors.clips import detect_clips
from rfjax.evaluation.geneval.rules import Detections

WORLD, FRAMES = "full", 8
SHUFFLE = np.array([5, 1, 6, 0, 3, 7, 4, 2])


def layout_of(row, seed):
    """(contents, layout) of one clip that satisfies a row."""
    u = hashing.uniforms(hashing.key("planted", row["prompt"]), np.array([seed]), 1 + motion_paths.LAYOUT_SLOTS)
    contents = motion_captions.contents_of_row(row, float(u[0, 0]))
    return contents, motion_paths.place(WORLDS[WORLD], FRAMES, contents, u[:, 1:])


def reordered(layout, order):
    return replace(layout, centre=layout.centre[:, order], colors=layout.colors[:, order])


def teleported(contents, layout):
    """Object 0 is elsewhere in the third frame, or for a screen in the last: across its way, but ahead where another
    object is across. None where there is no room."""
    centre, half, frame = layout.centre.copy(), layout.half[0, 0], -1 if contents.of("permanence")[0] else 2
    place, ahead = centre[0, frame, 0], contents.of("relation_change")[0]
    line = contents.relation[0] if contents.of("position")[0] else max(contents.directions[0, 0], 0)
    axis = line // 2 if ahead else 1 - line // 2
    low, high = EDGE + half[axis], SIDE - EDGE - half[axis]
    up = STEPS[contents.directions[0, 0]].sum() > 0 if ahead else place[axis] < SIDE / 2
    place[axis] = high if up else low
    moved = replace(layout, centre=centre)
    return moved if not layout.present[0, 1] or _gap(moved.boxes[0, frame]) >= 1.0 else None


def _gap(boxes):
    a, b = boxes
    return np.maximum(a[:2] - b[2:], b[:2] - a[2:]).max()


def recolored(contents, layout):
    """Object 0 has a third colour in the last frame."""
    colors = layout.colors.copy()
    used = {*colors[0].ravel().tolist()}
    colors[:, -1, 0] = next(k for k in range(len(VOCABULARY.colors)) if k not in used)
    return replace(layout, colors=colors)


def swapped(contents, layout):
    """The two objects have each other's colours."""
    return replace(layout, colors=layout.colors[..., ::-1]) if layout.present[0, 1] else None


def held(contents, layout):
    return reordered(layout, np.zeros(FRAMES, int))


def paced(contents, layout):
    """It goes as far as the other speed does, in the same direction, or stays inside."""
    if not contents.of("speed")[0]:
        return None
    start, path = layout.centre[:, :1], layout.centre - layout.centre[:, :1]
    factor = (2.3 / 7.2) if contents.speed[0] == 1 else (7.2 / 2.3)
    centre = start + path * factor
    half = layout.half[:, None]
    over = np.maximum(centre + half - (SIDE - EDGE), 0).max(axis=1, keepdims=True)
    under = np.maximum(EDGE - (centre - half), 0).max(axis=1, keepdims=True)
    return replace(layout, centre=centre - over + under)


def shown_through(contents, layout):
    """The screen does not hide."""
    return replace(layout, screen=np.zeros_like(layout.screen)) if contents.of("permanence")[0] else None


def drifting(contents, layout):
    """What should rest goes 2.5 pixels towards the middle of the picture along one axis; a pair goes together."""
    if contents.directions[0, 0] >= 0:
        return None
    boxes = layout.boxes[0, 0][layout.present[0]]
    room = np.concatenate([boxes[:, :2].min(axis=0), SIDE - boxes[:, 2:].max(axis=0)])  # left, up, right, down
    way = np.array([[-1, 0], [0, -1], [1, 0], [0, 1]])[int(np.argmax(room))]
    return replace(layout, centre=layout.centre + way * np.linspace(0, 2.5, FRAMES)[:, None, None])


FAULTS = {
    "none": lambda contents, layout: layout,
    "reversed": lambda contents, layout: reordered(layout, np.arange(FRAMES)[::-1]),
    "shuffled": lambda contents, layout: reordered(layout, SHUFFLE),
    "frozen": held,
    "teleporting": teleported,
    "recoloured": recolored,
    "swapped": swapped,
    "other speed": paced,
    "unhidden": shown_through,
    "drifting": drifting,
}


def detect(layouts):
    """What the pixel detector finds in each frame of clips that are drawn from layouts."""
    clips = np.concatenate([motion.draw(layout, SIDE) for layout in layouts])
    return [
        [Detections.from_lists(frame["detections"], frame["colors"]) for frame in clip] for clip in detect_clips(clips)
    ]


def vanished(row, frames):
    """The first object of the row is not found in the last frame."""
    return [*frames[:-1], _with(frames[-1], row["include"][0]["class"], slice(0, 0))]


def doubled(row, frames):
    """The first object of the row is found twice in the first frame."""
    return [_with(frames[0], row["include"][0]["class"], np.array([0, 0])), *frames[1:]]


def _with(found, name, chosen):
    """Detections with these rows of a class alone."""
    colors = tuple(np.array(found.colors[name])[chosen].tolist())
    return Detections({**found.boxes, name: found.boxes[name][chosen]}, {**found.colors, name: colors})


SEEN_FAULTS = {"vanished": vanished, "doubled": doubled}
