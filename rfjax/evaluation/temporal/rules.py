"""The rules of temporal GenEval: clauses on what a detector found in the frames of a clip.

A prompt is a row of `data.motion_captions`: a row of GenEval's with more fields, which say what happens. Each field
asks for clauses (the table `CLAUSES`), and a clip is correct if all of them hold. So every failure has a name, such as
"direction" or "color". The rules see only boxes and colours, from any detector. Tolerances of positions are shares of
an object's own size, as in GenEval's relations (Ghosh et al. 2023). Only the bins of speed, and the distance from the
wall at a bounce, are shares of the picture's side.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from jaxtyping import Bool, Float

from rfjax.data.motion_worlds import DIRECTIONS, STEPS
from rfjax.errors import ConfigError
from rfjax.evaluation.geneval.rules import DEFAULT_OPTIONS, Detections, ImageResult, keep, relation


@dataclass(frozen=True, kw_only=True)
class TemporalOptions:
    """Settings of the rules; `threshold` and `position_threshold` are GenEval's."""

    threshold: float = DEFAULT_OPTIONS.threshold  # an object counts where its score is above this
    position_threshold: float = DEFAULT_OPTIONS.position_threshold
    moved: float = 0.1  # positions further apart than this share of the object's summed sizes count as different
    slow: float = 0.2  # a speed up to this is slow; in sides of the picture, from the clip's first frame to its last
    fast: float = 0.28  # a speed from this on is fast; in the same unit
    same_speed: float = 0.35  # share by which the speeds before and after a bounce may differ
    wall: float = 0.08  # an object this near to the wall touches it; in sides of the picture
    whole: float = 0.8  # near a screen, an object with at least this share of its first frame's area is wholly visible
    hidden: float = 0.5  # and an object with less than this share is hidden


DEFAULT = TemporalOptions()


@dataclass(frozen=True)
class ClipResult:
    """The judgement of one clip: for each clause that the clip's prompt asks for, whether the clause holds."""

    metadata: Mapping[str, object]
    clauses: Mapping[str, bool]

    @property
    def correct(self) -> bool:
        return all(self.clauses.values())

    @property
    def failed(self) -> tuple[str, ...]:
        return tuple(name for name, holds in self.clauses.items() if not holds)

    def as_image(self) -> ImageResult:
        """The judgement in the form that GenEval's scores and intervals take."""
        return ImageResult(self.metadata, self.correct, "\n".join(self.failed), {})


@dataclass(frozen=True)
class Track:
    """The boxes of one object of a prompt, one for each frame; nan in frames in which the object was not found."""

    item: Mapping[str, object]
    counts: tuple[int, ...]  # how many objects of the item's class were found in each frame
    boxes: Float[np.ndarray, "frames 4"]
    colors: tuple[str, ...]  # of the object in each frame; "" if the object was not found
    side: float  # of the picture, in pixels
    options: TemporalOptions

    @property
    def found(self) -> Bool[np.ndarray, " frames"]:
        return ~np.isnan(self.boxes[:, 0])

    @cached_property
    def judged(self) -> Bool[np.ndarray, " frames"]:
        """The frames in which class and colour are judged: all frames, or only the first and the last if the object
        passes behind a screen."""
        ends = np.isin(np.arange(len(self.boxes)), (0, len(self.boxes) - 1))
        return ends if "behind" in self.item else np.ones(len(self.boxes), bool)

    @cached_property
    def areas(self) -> Float[np.ndarray, " frames"]:
        """The area of the object's box in each frame, divided by its area in the first frame."""
        width, height = (self.boxes[:, 2:] - self.boxes[:, :2]).T
        return width * height / (width * height)[0]

    @cached_property
    def times(self) -> np.ndarray:
        """The frames in which the object's position counts: the frames in which the object was found. If the object
        passes behind a screen, frames in which the screen hides a large part of the object do not count."""
        return np.flatnonzero(self.found & (self.areas >= self.options.whole if "behind" in self.item else True))

    @cached_property
    def centres(self) -> Float[np.ndarray, "times 2"]:
        return (self.boxes[self.times, :2] + self.boxes[self.times, 2:]) / 2

    @cached_property
    def allowed(self) -> Float[np.ndarray, " 2"]:
        """The distances along x and along y within which two positions of the object count as equal: a share of the sum
        of its sizes in the first and the last frame that count (`times`)."""
        first, last = self.boxes[self.times[0]], self.boxes[self.times[-1]]
        return self.options.moved * (first[2:] - first[:2] + last[2:] - last[:2])

    @cached_property
    def way(self) -> tuple[np.ndarray, np.ndarray, float]:
        """Returns (positions along the asked direction, positions across it, the `allowed` distance along it).
        Positions are relative to the first position."""
        step = STEPS[DIRECTIONS.index(self.item["motion"])]
        along, across = self.centres @ step, self.centres @ step[::-1]
        return along - along[0], across - across[0], float(self.allowed @ np.abs(step))

    @cached_property
    def typical_step(self) -> float:
        """The object's typical speed in pixels a frame: the median over its moves between frames that count."""
        return float(np.median(np.linalg.norm(np.diff(self.centres, axis=0), axis=1) / np.diff(self.times)))


def _counted(track: Track) -> bool:
    return all(n == track.item["count"] for n in np.array(track.counts)[track.judged])


def _colored(track: Track) -> bool:
    """Whether the object has its colour in every judged frame that shows it. The clause `count` asks whether it is
    shown."""
    seen = np.array(track.colors)[track.judged & track.found]
    return len(seen) > 0 and bool((seen == track.item["color"]).all())


def _changes(track: Track) -> bool:
    """Whether the object has its first colour, changes once to the second, and keeps the second to the end."""
    hues = [color for color in track.colors if color]
    turns = [b for a, b in zip(hues, hues[1:], strict=False) if a != b]
    return bool(hues) and hues[0] == track.item["color"] and turns == [track.item["becomes"]]


def _rests(track: Track) -> bool:
    return bool((np.abs(track.centres - track.centres[0]) <= track.allowed).all())


def _goes(track: Track) -> bool:
    """Whether the object's last position lies from its first position in the asked direction, within 45 degrees and
    further than `allowed`. For a bounce the furthest position is taken in place of the last."""
    along, across, allowed = track.way
    end = int(np.argmax(along)) if track.item.get("then") == "bounces" else -1
    return bool(along[end] > allowed and abs(across[end]) <= along[end])


def _goes_on(track: Track) -> bool:
    """Whether the object never moves back, by more than half of `allowed`, from the furthest position that it has
    reached in the asked direction."""
    along, _, allowed = track.way
    return bool((np.maximum.accumulate(along) - along <= allowed / 2).all())


def _is_steady(track: Track) -> bool:
    """Whether the object's path has no jump. Each position is compared with the interpolation, in time, between the
    position before and the position after. Their distance may be as large as the object's typical move in a frame, plus
    `allowed`."""
    times, centres = track.times, track.centres
    share = ((times[1:-1] - times[:-2]) / (times[2:] - times[:-2]))[:, None]
    off = np.linalg.norm(centres[1:-1] - (1 - share) * centres[:-2] - share * centres[2:], axis=1)
    return bool((off <= track.typical_step + track.allowed.max()).all())


def _has_speed(track: Track) -> bool:
    sides = track.typical_step * (len(track.boxes) - 1) / track.side
    return sides <= track.options.slow if track.item["speed"] == "slow" else sides >= track.options.fast


def _stops(track: Track) -> bool:
    """Whether the object has moved in the asked direction, and rests in the last third of the clip."""
    late = track.times >= np.ceil(2 / 3 * (len(track.boxes) - 1))
    still = np.abs(track.centres[late] - track.centres[-1]) <= track.allowed / 2
    return bool(late.sum() > 1 and still.all() and track.way[0][-1] > track.way[2])


def _bounces(track: Track) -> bool:
    """Whether the object goes to the wall and back at one speed, and turns nowhere else."""
    along, _, allowed = track.way
    top = int(np.argmax(along))
    if top in (0, len(along) - 1):
        return False
    rise, fall = np.diff(along[: top + 1]), -np.diff(along[top:])
    times = np.diff(track.times)
    before, after = along[top] / times[:top].sum(), (along[top] - along[-1]) / times[top:].sum()
    box, step = track.boxes[track.times[top]], STEPS[DIRECTIONS.index(track.item["motion"])]
    edge = {-1: box[:2], 1: track.side - box[2:]}[int(step.sum())][int(np.flatnonzero(step)[0])]
    return bool(
        min(rise.min(), fall.min()) >= -allowed / 2
        and along[top] - along[-1] > allowed
        and abs(before - after) <= track.options.same_speed * max(before, after)
        and edge <= track.options.wall * track.side
    )


def _hides(track: Track) -> bool:
    return bool((~track.found | (track.areas < track.options.hidden)).any())


def _keeps_its_line(track: Track) -> bool:
    """Whether an object that passes behind a screen moves at constant velocity along the asked axis, without drifting
    sideways. The clause `direction` tests which way the object moves. Only frames that show the whole object are
    judged; if the second half of the clip has no such frame, the answer is no."""
    if len(track.times) < 2 or track.times[-1] < len(track.boxes) // 2:
        return False
    share = (track.times - track.times[0]) / (track.times[-1] - track.times[0])
    expected = track.centres[0] + share[:, None] * (track.centres[-1] - track.centres[0])
    across = np.abs(track.way[1]).max() <= track.allowed @ np.abs(STEPS[DIRECTIONS.index(track.item["motion"])][::-1])
    return bool((np.abs(track.centres - expected) <= track.allowed).all() and across)


def _moves(item) -> bool:
    return item["motion"] in DIRECTIONS


# clause -> (whether an item of a row asks for it, whether an object's track meets it). A clause of `PLACES` fails if
# the object's position counts in fewer than two frames (`Track.times`).
CLAUSES: dict[str, tuple[Callable[[Mapping], bool], Callable[[Track], bool]]] = {
    "count": (lambda item: True, _counted),
    "color": (lambda item: "color" in item and "becomes" not in item, _colored),
    "change": (lambda item: "becomes" in item, _changes),
    "rest": (lambda item: item["motion"] == "still", _rests),
    "direction": (_moves, _goes),
    "onward": (lambda item: _moves(item) and item.get("then") != "bounces", _goes_on),
    "steady": (lambda item: _moves(item) and "behind" not in item, _is_steady),
    "speed": (lambda item: "speed" in item, _has_speed),
    "stop": (lambda item: item.get("then") == "stops", _stops),
    "bounce": (lambda item: item.get("then") == "bounces", _bounces),
    "hidden": (lambda item: "behind" in item, _hides),
    "line": (lambda item: "behind" in item, _keeps_its_line),
}
PLACES = ("rest", "direction", "onward", "steady", "speed", "stop", "bounce", "line")
RELATIONS_ASKED = ("position", "relation_change")  # clauses on two tracks


def tracks_of(
    frames: Sequence[Detections], side: float | int, row: Mapping[str, object], options: TemporalOptions = DEFAULT
) -> list[Track]:
    """Returns a track for each `include` item of a prompt's row. In each frame the track has the box of the most
    confident object of the item's class; objects in one of the item's colours come before all others. Raises
    `ConfigError` for a class that has boxes but no colours if the prompt asks for its colour."""
    kept = [keep(found, "motion", _geneval(options)) for found in frames]
    tracks = []
    for item in row["include"]:
        name, wanted = item["class"], {item.get("color"), item.get("becomes")}
        boxes, colors = np.full((len(frames), 4), np.nan), []
        for t, (found, order) in enumerate(zip(frames, kept, strict=True)):
            order = order.get(name, ())
            if len(order) and name not in found.colors and "color" in item:
                raise ConfigError(f"frame {t}: no colors for {name!r}, whose prompt asks for one; give one per box")
            hues = found.colors.get(name, ("",) * len(found.boxes.get(name, ())))
            best = next((i for i in order if hues[i] in wanted), order[0] if len(order) else None)
            colors.append("" if best is None else hues[best])
            if best is not None:
                boxes[t] = found.boxes[name][best, :4]
        counts = tuple(len(order.get(name, ())) for order in kept)
        tracks.append(Track(item, counts, boxes, tuple(colors), float(side), options))
    return tracks


def judge(
    frames: Sequence[Detections], side: float | int, row: Mapping[str, object], options: TemporalOptions = DEFAULT
) -> ClipResult:
    """Judges which clauses of its prompt's row a clip meets, from the objects found in each frame.

    `side` is the height and width of the frames in the unit of the boxes, pixels. Raises `ConfigError` for fewer than
    two frames, and for a class that has boxes but no colours if the prompt asks for its colour.
    """
    if len(frames) < 2:
        raise ConfigError(f"a clip of {len(frames)} frames; give at least two, or score stills with rfjax geneval")
    tracks = tracks_of(frames, side, row, options)
    clauses: dict[str, bool] = {}
    for name, (asks, holds) in CLAUSES.items():
        asked = [track for track in tracks if asks(track.item)]
        if asked:
            clauses[name] = all((name not in PLACES or len(track.times) > 1) and holds(track) for track in asked)
    for track in tracks:
        if "position" in track.item:
            wanted, target = track.item["position"]
            after = track.item.get("position_last", [None])[0]
            name = "position" if after is None else "relation_change"
            clauses[name] = clauses.get(name, True) and _related(track, tracks[target], wanted, after)
    return ClipResult(row, clauses)


def _related(track, target, before, after):
    """Whether the relation `before` holds in every frame. With `after`: whether, of the two relations, only `before`
    holds in the first frame, and only `after` in the last frame; other frames do not count."""

    def seen(t):
        boxes = (track.boxes[t].astype(np.float32), target.boxes[t].astype(np.float32))
        both = track.found[t] and target.found[t]
        return relation(*boxes, track.options.position_threshold) if both else ()

    if after is None:
        return all(before in seen(t) for t in range(len(track.boxes)))
    first, last = seen(0), seen(-1)
    return before in first and after not in first and after in last and before not in last


def _geneval(options):
    """Returns GenEval's default options with the `threshold` of `options`."""
    return replace(DEFAULT_OPTIONS, threshold=options.threshold)
