"""Reads the prompts of temporal GenEval from a file, and refuses prompts that its rules would judge wrongly.

The metadata are JSON lines, one prompt a line, as `data.motion_captions.row` makes them. No numpy at import.
"""

from __future__ import annotations

import os

from rfjax.errors import ConfigError
from rfjax.evaluation.geneval.rows import (
    check_choice,
    check_item,
    check_position,
    check_row,
    check_text,
    json_lines,
)

METADATA_KEYS = {"tag": True, "prompt": True, "include": True, "held_out": False}  # key: required
INCLUDE_KEYS = {"class": True, "count": True, "motion": True} | dict.fromkeys(
    ("color", "becomes", "speed", "then", "behind", "position", "position_last"), False
)
VALUES = {
    "motion": ("left", "right", "up", "down", "still"),
    "speed": ("slow", "fast"),
    "then": ("stops", "bounces"),
    "behind": ("screen",),
}
# task: the fields that its items have beside class, count, color and motion, as `data.motion_captions.row` makes them;
# with the field's value where the task determines it
TASK_FIELDS: dict[str, dict[str, str | None]] = {
    "still": {},
    "position": {"position": None},
    "motion": {},
    "speed": {"speed": None},
    "stop": {"then": "stops"},
    "bounce": {"then": "bounces"},
    "permanence": {"behind": "screen"},
    "change": {"becomes": None},
    "motion_binding": {},
    "relation_change": {"position": None, "position_last": None},
}


def read_metadata(path: str | os.PathLike) -> list[dict]:
    """Reads and checks a metadata file; returns its rows. Raises `ConfigError`, naming the line, for a row of another
    form, and for one whose tag contradicts its fields: the tag decides the floors, and whether velocities are
    measured."""
    from rfjax.data.motion_worlds import TASKS

    rows = []
    for place, row in json_lines(path):
        check_row(place, row, METADATA_KEYS, TASKS)
        if not isinstance(row["include"], list) or not row["include"]:
            raise ConfigError(f"{place}: include is {row['include']!r}; it must be a list of one or more items")
        for index, item in enumerate(row["include"]):
            name = f"include[{index}]"
            check_item(place, name, item, INCLUDE_KEYS)
            _check_one_of_a_class(place, row["include"], index)
            for key in {"color", "becomes"} & set(item):
                check_text(place, f"{name} {key}", item[key])
            for key in set(VALUES) & set(item):
                check_choice(place, f"{name} {key}", item[key], VALUES[key])
            _check_events(place, name, item)
            for key in ("position", "position_last"):
                if key in item:
                    check_position(place, name, key, item[key], index)
        _check_motions(place, row)
        _check_fields(place, row)
        rows.append(row)
    return rows


def _check_one_of_a_class(place, include, index):
    """Raises `ConfigError` if item `index` of a row asks for several objects, or has the class of an earlier item.
    Clauses other than `count` see one box of a class in each frame (`rules.tracks_of`)."""
    count, name = include[index]["count"], include[index]["class"]
    rule = "temporal GenEval judges one object of a class"
    if count != 1:
        raise ConfigError(f"{place}: include[{index}] count is {count}; {rule}, so it must be 1")
    for earlier, item in enumerate(include[:index]):
        if item["class"] == name:
            both = f"include[{earlier}] and include[{index}] both have the class {name!r}"
            raise ConfigError(f"{place}: {both}; {rule}, so give items of different classes")


def _check_events(place, name, item):
    """Raises `ConfigError` for an item whose fields contradict each other."""
    for key in ("speed", "then", "behind"):
        if key in item and item["motion"] == "still":
            raise ConfigError(
                f"{place}: {name} is still and has {key}={item[key]!r}; give a direction, or leave it out"
            )
    for key, needs in (("becomes", "color"), ("position_last", "position")):
        if key in item and needs not in item:
            raise ConfigError(f"{place}: {name} has {key} and no {needs}; give both")
    if "position_last" in item and item["position_last"][1:] != item["position"][1:]:
        raise ConfigError(f"{place}: {name} has position and position_last to two targets; give one target")


def _check_motions(place, row):
    """Raises `ConfigError` if objects move in a task at rest, or too few objects move in another task."""
    from rfjax.data.motion_worlds import AT_REST

    tag, motions = row["tag"], [item["motion"] for item in row["include"]]
    moving = [index for index, motion in enumerate(motions) if motion != "still"]
    least = 2 if tag == "motion_binding" else 1
    if tag in AT_REST and moving:
        found = f"include[{moving[0]}] motion is {motions[moving[0]]!r}"
        raise ConfigError(f"{place}: tag is {tag!r}, but {found}; objects of this task are still. Give another tag")
    if tag not in AT_REST and len(moving) < least:
        raise ConfigError(
            f"{place}: tag is {tag!r}, but the motion of its items is {', '.join(motions)}; in this task at least "
            f"{least} must move. Give another tag"
        )


def _check_fields(place, row):
    """Raises `ConfigError` if a row's items lack a field of `TASK_FIELDS`, or have a field or a value of another
    task."""
    tag, own = row["tag"], TASK_FIELDS[row["tag"]]
    for key in dict.fromkeys(key for fields in TASK_FIELDS.values() for key in fields):
        having = [(index, item[key]) for index, item in enumerate(row["include"]) if key in item]
        if key in own and not having:
            raise ConfigError(f"{place}: tag is {tag!r}, but no item of include has {key!r}; add it, or change the tag")
        for index, value in having:
            if key not in own or own[key] not in (None, value):
                meant = " or ".join(task for task, of in TASK_FIELDS.items() if of.get(key, "") in (None, value))
                raise ConfigError(
                    f"{place}: tag is {tag!r}, but include[{index}] has {key}={value!r}; leave it out, or give the tag "
                    f"{meant}"
                )
