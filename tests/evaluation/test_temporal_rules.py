"""The rules of temporal GenEval: ground truth meets every clause, and a planted fault fails the clauses it breaks."""

import numpy as np
import pytest

from helpers.planted_clips import FAULTS, SEEN_FAULTS, WORLD, detect, layout_of
from rfjax.data import motion_captions
from rfjax.data.motion_worlds import TASKS, WORLDS
from rfjax.errors import ConfigError
from rfjax.evaluation.geneval.rules import Detections
from rfjax.evaluation.temporal.rules import CLAUSES, TemporalOptions, judge

PROMPTS = 12  # of each task

# fault -> task -> the clauses that fail, in every clip; those with a question mark fail in some. "-": the fault cannot
# be planted in clips of the task.
TABLE = {
    "none": ("", "", "", "", "", "", "", "", "", ""),
    "reversed": (
        *("", "", "direction onward", "direction onward", "direction onward stop", ""),
        *("direction onward", "change", "direction onward", "direction onward relation_change"),
    ),
    "shuffled": (
        *("", "", "direction onward steady?", "direction onward steady? speed?", "direction onward stop steady?"),
        *("bounce direction? steady?", "direction onward line count? color?", "change", "direction onward steady?"),
        "direction onward steady relation_change",
    ),
    "frozen": (
        *("", "", "direction", "direction speed?", "direction stop", "direction bounce", "direction hidden"),
        *("change", "direction", "direction relation_change"),
    ),
    "teleporting": (
        *("rest", "rest position?", "steady", "steady speed?", "steady", "steady", "line", "rest", "steady"),
        "onward steady",
    ),
    "recoloured": (*(7 * ("color",)), "change", "color", "color"),
    "swapped": ("-", "color", "-", "-", "-", "-", "-", "-", "color", "color"),
    "other speed": ("-", "-", "-", "speed", "-", "-", "-", "-", "-", "-"),
    "unhidden": ("-", "-", "-", "-", "-", "-", "hidden", "-", "-", "-"),
    "drifting": ("rest", "rest", "-", "-", "-", "-", "-", "rest", "-", "-"),
    "vanished": (
        *("count", "count position", "count", "count", "count", "count", "count direction? onward? line?", "count"),
        *("count", "count relation_change"),
    ),
    "doubled": 10 * ("count",),
}
CELLS = [(fault, task, cell) for fault, cells in TABLE.items() for task, cell in zip(TASKS, cells, strict=True)]


@pytest.fixture(scope="module")
def rows():
    return motion_captions.evaluation_prompts(WORLDS[WORLD], PROMPTS, 1)


@pytest.fixture(scope="module")
def failures(rows):
    """(fault, task) -> the sets of clauses that fail, one for each clip that has the fault."""
    drawn = {fault: [] for fault in FAULTS}
    for n, row in enumerate(rows):
        contents, layout = layout_of(row, n)
        for fault, plant in FAULTS.items():
            if (planted := plant(contents, layout)) is not None:
                drawn[fault].append((row, planted))
    found = {
        fault: [(row, frames) for (row, _), frames in zip(pairs, detect([clip for _, clip in pairs]), strict=True)]
        for fault, pairs in drawn.items()
    }
    found |= {fault: [(row, see(row, frames)) for row, frames in found["none"]] for fault, see in SEEN_FAULTS.items()}
    result = {}
    for fault, pairs in found.items():
        for row, frames in pairs:
            result.setdefault((fault, row["tag"]), []).append(set(judge(frames, 16, row).failed))
    return result


@pytest.mark.parametrize(("fault", "task", "cell"), CELLS, ids=[f"{fault}-{task}" for fault, task, _ in CELLS])
def test_a_planted_fault_fails_the_clauses_it_breaks_and_no_other(failures, fault, task, cell):
    """Catches a clause that no fault can fail, and one that fails with another's fault, through the pixel detector."""
    sets = failures.get((fault, task), [])
    if cell == "-":
        assert not sets
        return
    assert len(sets) >= PROMPTS // 4
    must = {name for name in cell.split() if not name.endswith("?")}
    may = {name.rstrip("?") for name in cell.split()}
    for failed in sets:
        assert must <= failed <= may


def test_every_fault_and_every_clause_is_in_the_table():
    """Catches a clause that is never planted against."""
    assert set(TABLE) == set(FAULTS) | set(SEEN_FAULTS)
    broken = {name for _, _, cell in CELLS for name in cell.split() if cell != "-" and not name.endswith("?")}
    assert broken == set(CLAUSES) | {"position", "relation_change"}


def box(x, y, half=2.5, score=0.9):
    return [x - half, y - half, x + half, y + half, score]


def frames_of(places, color="red", name="square"):
    """Detections of one square at each place; a place may be None, and a colour a list with one for each frame."""
    colors = [color] * len(places) if isinstance(color, str) else color
    return [
        Detections.from_lists({name: [box(*at)]}, {name: [hue]}) if at else Detections.from_lists({}, {})
        for at, hue in zip(places, colors, strict=True)
    ]


def ask(**fields):
    return {"tag": "motion", "include": [{"class": "square", "count": 1, "color": "red", **fields}], "prompt": "p"}


LINE = [(3 + t, 8.0) for t in range(8)]


@pytest.mark.parametrize(
    ("places", "fields", "failed"),
    [
        (LINE, {"motion": "right"}, ()),
        (LINE, {"motion": "left"}, ("direction", "onward")),
        (LINE, {"motion": "up"}, ("direction",)),
        (LINE, {"motion": "still"}, ("rest",)),
        ([(3 + t, 3 + 0.9 * t) for t in range(8)], {"motion": "right"}, ()),  # 42 degrees
        ([(3 + t, 3 + 1.1 * t) for t in range(8)], {"motion": "right"}, ("direction",)),  # 48 degrees
        ([(3 + 0.13 * t, 8) for t in range(8)], {"motion": "right"}, ("direction",)),  # 0.91 of the 1.0 it must exceed
        ([(3 + 0.15 * t, 8) for t in range(8)], {"motion": "right"}, ()),
        ([(8 + 0.9 * (-1) ** t / 2, 8) for t in range(8)], {"motion": "still"}, ()),
        ([*LINE[:5], None, *LINE[6:]], {"motion": "right"}, ("count",)),
        ([None] * 8, {"motion": "right"}, ("count", "color", "direction", "onward", "steady")),
        ([None] * 7 + [(8, 8)], {"motion": "still"}, ("count", "rest")),
        (LINE, {"motion": "right", "speed": "fast"}, ()),  # 7 of 16 pixels
        (LINE, {"motion": "right", "speed": "slow"}, ("speed",)),
        ([(3 + 0.5 * t, 8) for t in range(8)], {"motion": "right", "speed": "slow"}, ("speed",)),  # between the bins
        ([(3 + 0.5 * t, 8) for t in range(8)], {"motion": "right", "speed": "fast"}, ("speed",)),
        (LINE, {"motion": "right", "then": "stops"}, ("stop",)),
        ([(3 + min(t, 4), 8) for t in range(8)], {"motion": "right", "then": "stops"}, ()),
        ([(9.5 + t - 2 * max(0, t - 4), 8) for t in range(8)], {"motion": "right", "then": "bounces"}, ()),
        ([(7.5 + t - 2 * max(0, t - 4), 8) for t in range(8)], {"motion": "right", "then": "bounces"}, ("bounce",)),
        ([(9.5 + t - 1.3 * max(0, t - 4), 8) for t in range(8)], {"motion": "right", "then": "bounces"}, ("bounce",)),
        (LINE, {"motion": "right", "behind": "screen"}, ("hidden",)),
        ([*LINE[:3], None, None, *LINE[5:]], {"motion": "right", "behind": "screen"}, ()),
        ([*LINE[:3], None, None, (3, 8), (4, 8), (5, 8)], {"motion": "right", "behind": "screen"}, ("onward", "line")),
        ([*LINE[:3], *[None] * 5], {"motion": "right", "behind": "screen"}, ("count", "line")),
    ],
)
def test_single_tracks(places, fields, failed):
    """Planted answers on boxes alone, on both sides of each tolerance."""
    frames, row = frames_of(places), ask(**fields)
    assert judge(frames, 16, row).failed == failed
    # The rules have no unit: twenty times as large, the same.
    large = [
        Detections.from_lists(
            {
                name: [[20 * v for v in rows[:4]] + [rows[4]] for rows in boxes.tolist()]
                for name, boxes in f.boxes.items()
            },
            f.colors,
        )
        for f in frames
    ]
    assert judge(large, 320, row).failed == failed


@pytest.mark.parametrize(
    ("hues", "holds"),
    [
        (["red"] * 3 + ["blue"] * 5, True),
        (["blue"] * 3 + ["red"] * 5, False),
        (["red"] * 8, False),
        (["blue"] * 8, False),
        (["red", "blue"] * 4, False),
        (["red"] * 3 + ["green"] + ["blue"] * 4, False),
        (["red"] * 3 + ["blue"] * 4 + ["green"], False),
    ],
)
def test_a_colour_changes_once(hues, holds):
    result = judge(frames_of([(8, 8)] * 8, hues), 16, ask(motion="still", becomes="blue"))
    assert result.clauses == {"count": True, "change": holds, "rest": True}


def test_relations_are_asked_in_the_frames_they_are_said_of():
    """Catches a relation that is read in one frame for all, and a pair that is said to pass and never does."""

    def pair(xs, ys=3, **fields):
        frames = [
            Detections.from_lists({"ring": [box(x, y)], "bar": [box(8, 10)]}, {"ring": ["red"], "bar": ["blue"]})
            for x, y in np.broadcast(xs, ys)
        ]
        first = {"class": "bar", "count": 1, "color": "blue", "motion": "still"}
        second = {"class": "ring", "count": 1, "color": "red", **fields}
        return judge(frames, 16, {"tag": "relation_change", "include": [first, second], "prompt": "p"}).clauses

    passes = {"position": ["left of", 0], "position_last": ["right of", 0]}
    there = np.linspace(-2, 18, 8)
    assert pair(there, motion="right", **passes)["relation_change"]
    assert not pair(there[::-1], motion="right", **passes)["relation_change"]
    assert not pair(there[:5], motion="right", **passes)["relation_change"]
    # Relations need not be opposites. Where both hold at one end, as in a corner, nothing has turned.
    turns = {"motion": "right", "position": ["left of", 0], "position_last": ["above", 0]}
    assert pair([0, 4, 8], [10, 2, 2], **turns)["relation_change"]
    assert not pair([0, 4, 8], [2, 2, 2], **turns)["relation_change"]  # above from the first frame on
    assert not pair([0, 0, 0], [10, 6, 2], **turns)["relation_change"]  # left until the last
    assert pair([8] * 3, motion="still", position=["above", 0])["position"]
    assert not pair([8, 8, 18, 8], motion="still", position=["above", 0])["position"]


@pytest.mark.parametrize("wanted", [("left of", "left of"), ("right of", "left of"), ("left of", "right of")])
def test_every_object_with_a_position_must_be_there(wanted):
    """Catches a failed relation that the next object's overwrites: both rings are left of the bar."""
    boxes, colors = {"bar": [box(10, 8)]}, {"bar": ["blue"]}
    items = [{"class": "bar", "count": 1, "color": "blue", "motion": "still"}]
    for name, y, relation in zip(("ring", "disc"), (3, 12), wanted, strict=True):
        boxes[name], colors[name] = [box(2, y)], ["red"]
        items.append({"class": name, "count": 1, "color": "red", "motion": "still", "position": [relation, 0]})
    row = {"tag": "still", "include": items, "prompt": "p"}
    result = judge([Detections.from_lists(boxes, colors)] * 3, 16, row)
    assert result.clauses["position"] == (wanted == ("left of", "left of"))


def test_what_cannot_be_judged_is_refused():
    with pytest.raises(ConfigError, match="a clip of 1 frames; give at least two"):
        judge(frames_of(LINE[:1]), 16, ask(motion="right"))
    bare = [Detections.from_lists({"square": [box(*at)]}) for at in LINE]
    with pytest.raises(ConfigError, match="frame 0: no colors for 'square'"):
        judge(bare, 16, ask(motion="right"))
    weak = [Detections.from_lists({"square": [box(*at, score=0.35)]}, {"square": ["red"]}) for at in LINE]
    assert judge(weak, 16, ask(motion="right")).correct
    assert judge(weak, 16, ask(motion="right"), TemporalOptions(threshold=0.4)).failed[0] == "count"
