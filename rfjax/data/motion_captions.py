"""Writes captions of clips, and evaluation prompts as GenEval's rows with further fields.

A row is a row of GenEval (`grammar.row`) in which each object also has "motion", and some objects have further fields:

    "motion"         left, right, up, down or still: the motion from each frame to the next, until it stops or bounces
    "speed"          slow or fast
    "then"           stops or bounces
    "behind"         screen: the object passes behind a screen
    "becomes"        the colour that the object takes after "color"
    "position"       [relation, 0]: the relation to the row's first object in every frame; with
                     "position_last", only in the first frame
    "position_last"  [relation, 0]: the relation in the last frame

The prompt of a still picture is a plain row of GenEval, of the task `colors` or `position`, without "motion". Training
captions use the official wording of the rows or paraphrases; some paraphrases leave out the first object's colour.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import Float

from rfjax.data import hashing
from rfjax.data.geneval_names import RELATIONS
from rfjax.data.grammar import RELATION_PHRASES, with_article
from rfjax.data.motion_worlds import (
    AT_REST,
    DIRECTIONS,
    PAIRS,
    SPEEDS,
    STILL,
    TASKS,
    Contents,
    World,
    directions_of,
    is_held_out,
)
from rfjax.data.scenes import Vocabulary
from rfjax.data.shapes import VOCABULARY

OFFICIAL_SHARE = 0.5  # of training captions: these have the official wording throughout
COLORLESS_SHARE = 0.25  # of the other captions of the tasks in COLORLESS: these leave out the first object's colour

# Tasks whose row has the second object first, as the target of a relation.
RELATED = ("position", "relation_change")
COLORLESS = ("still", "motion", "speed", "stop", "bounce", "permanence")
SPECIMENS = 300  # the most clips of each task that `specimens` describes
STRIDE = 7919  # from one specimen to the next: a prime, so that all choices vary

# The first text of each group is the official wording. {a} and {b} are the objects with their articles and colours.
OPENINGS = ("a video of", "a clip of", "a film of", "")
TEMPLATES = {
    "still": ("{a} staying still", "{a} standing still", "{a} not moving"),
    "position": ("{a} {relation} {b}",),
    "motion": ("{a} {moving} {left}",),
    "speed": ("{a} {moving} {slowly} {left}", "{a} {moving} {left} {slowly}"),
    "stop": ("{a} {moving} {left} and stopping", "{a} {moving} {left} then stopping"),
    "bounce": ("{a} {moving} {left} and bouncing back", "{a} {moving} {left} and bouncing"),
    "permanence": ("{a} {moving} {left} behind a screen", "{a} {moving} {left} past a screen"),
    "change": (
        "{a thing} turning from {red} to {blue}",
        "{a thing} changing from {red} to {blue}",
        "{a} turning {blue}",
    ),
    "motion_binding": tuple(
        f"{{a}} {{moving}} {{short left}} {join} {{b}} {{moving}} {{short up}}" for join in ("and", "with")
    ),
    "relation_change": ("{a} {moving} from {before} to {after} {b}",),
}
# For stills, whose captions say nothing of motion. All words of these captions also occur in captions of clips.
STILL_OPENINGS = ("a still of", "")
STILL_TEMPLATES = {"still": ("{a}",), "position": TEMPLATES["position"]}
STILL_TAGS = {"still": "colors", "position": "position"}  # GenEval's names of a still's tasks
VERBS = ("moving", "going", "sliding")
DIRECTION_PHRASES = {
    "left": ("left", "to the left"),
    "right": ("right", "to the right"),
    "up": ("up", "upwards"),
    "down": ("down", "downwards"),
}
SPEED_PHRASES = {"slow": ("slowly", "gently"), "fast": ("quickly", "fast")}

# The relation of object 0 to object 1 before and after the two pass each other, by the direction of object 0.
PASSES = {
    "left": ("right of", "left of"),
    "right": ("left of", "right of"),
    "up": ("below", "above"),
    "down": ("above", "below"),
}

WORDING_SLOTS = 6
OFFICIAL = (0.0,) * WORDING_SLOTS


def captions(
    contents: Contents, u: Float[np.ndarray, "n slots"], *, vocabulary: Vocabulary = VOCABULARY, still: bool = False
) -> list[str]:
    """Writes a true caption of each clip or still. `u` has `WORDING_SLOTS` uniform numbers for each caption."""
    clips = zip(plain(contents, vocabulary), u.tolist(), strict=True)
    return [sentence(clip, wording, still=still) for clip, wording in clips]


def plain(contents: Contents, vocabulary: Vocabulary = VOCABULARY) -> list[dict]:
    """Converts the indices in contents to names. Returns a dict for each clip, with the fields of `Contents`; the name
    of a direction is "" for an object that does not move."""
    names = {
        "classes": vocabulary.classes,
        "colors": vocabulary.colors,
        "directions": (*DIRECTIONS, ""),  # STILL is -1, so it selects the last name
    }
    pairs = {
        field: [[table[a], table[b]] for a, b in getattr(contents, field).tolist()] for field, table in names.items()
    }
    singles = {"task": TASKS, "speed": SPEEDS, "relation": RELATIONS}
    single = {field: [table[i] for i in getattr(contents, field).tolist()] for field, table in singles.items()}
    columns = pairs | single
    return [dict(zip(columns, clip, strict=True)) for clip in zip(*columns.values(), strict=True)]


def sentence(clip: dict, wording: Sequence[float] = OFFICIAL, *, still: bool = False) -> str:
    """Writes one caption of a clip, or of a still, from its contents (see `plain`).

    The uniforms `wording` choose among paraphrases.
    """
    _, opening, template, verb, phrase, detail = OFFICIAL if wording[0] < OFFICIAL_SHARE else wording
    task, (kind, partner), (hue, other) = clip["task"], clip["classes"], clip["colors"]
    # "left" stands in where an object has no direction; no template of such a clip uses the word.
    first, second = (direction or "left" for direction in clip["directions"])
    bare = detail > 1.0 - COLORLESS_SHARE and task in COLORLESS
    before, after = PASSES[first]
    words = {
        "a": with_article(kind if bare else f"{hue} {kind}"),
        "b": with_article(f"{other} {partner}"),
        "a thing": with_article(kind),
        "red": hue,
        "blue": other,
        "moving": _choose(VERBS, verb),
        "left": _choose(DIRECTION_PHRASES[first], phrase),
        "short left": first,  # the longer phrases twice would be too long for the context
        "short up": second,
        "slowly": _choose(SPEED_PHRASES[clip["speed"]], phrase),
        "relation": _choose(RELATION_PHRASES[clip["relation"]], phrase),
        "before": before.removesuffix(" of"),  # "from left to right of", not "from left of to right of"
        "after": after,
    }
    openings, templates = (STILL_OPENINGS, STILL_TEMPLATES) if still else (OPENINGS, TEMPLATES)
    body = _choose(templates[task], template).format_map(words)
    return f"{_choose(openings, opening)} {body}".strip()


def _choose(options, u):
    return options[int(u * len(options))]


def row(clip: dict, held_out: bool) -> dict:
    """The row of an evaluation prompt, in the official wording."""
    task, (kind, partner), (hue, other), directions = (clip[key] for key in ("task", "classes", "colors", "directions"))
    include = [{"class": kind, "count": 1, "color": hue, "motion": directions[0] or "still"}]
    second = {"class": partner, "count": 1, "color": other, "motion": directions[1] or "still"}
    more = {
        "speed": {"speed": clip["speed"]},
        "stop": {"then": "stops"},
        "bounce": {"then": "bounces"},
        "permanence": {"behind": "screen"},
        "change": {"becomes": other},
    }
    include[0] |= more.get(task, {})
    if task in RELATED:  # in a row of GenEval the target comes first, and a later object has the relation to it
        before, after = PASSES.get(directions[0], (clip["relation"], None))
        include = [second, include[0] | {"position": [before, 0]}]
        if after:
            include[1]["position_last"] = [after, 0]
    elif task in PAIRS:
        include.append(second)
    return {"tag": task, "include": include, "prompt": sentence(clip), "held_out": held_out}


def still_row(clip: dict) -> dict:
    """GenEval's row of a still's evaluation prompt, in the official wording."""
    things = zip(clip["classes"], clip["colors"], strict=True)
    first, second = ({"class": kind, "count": 1, "color": hue} for kind, hue in things)
    related = [second, first | {"position": [clip["relation"], 0]}]  # the target comes first, as in `row`
    include = related if clip["task"] in RELATED else [first]
    return {
        "tag": STILL_TAGS[clip["task"]],
        "include": include,
        "prompt": sentence(clip, still=True),
        "held_out": False,
    }


def contents_of_row(row: dict, speed: float, vocabulary: Vocabulary = VOCABULARY) -> Contents:
    """Makes contents of a clip or still that satisfy a row. If the row names no speed, the uniform `speed` decides."""
    task, include = next((own for own, tag in STILL_TAGS.items() if tag == row["tag"]), row["tag"]), row["include"]
    first = include[1] if task in RELATED else include[0]
    second = next((item for item in include if item is not first), first)
    directions = [
        DIRECTIONS.index(item["motion"]) if item.get("motion") in DIRECTIONS else STILL for item in (first, second)
    ]
    fields = (
        TASKS.index(task),
        [vocabulary.classes.index(item["class"]) for item in (first, second)],
        [vocabulary.colors.index(hue) for hue in (first["color"], first.get("becomes", second["color"]))],
        directions if task in PAIRS else [directions[0], STILL],
        SPEEDS.index(first["speed"]) if "speed" in first else int(len(SPEEDS) * speed),
        RELATIONS.index(first["position"][0]) if task == "position" else 0,
    )
    return Contents(*(np.array([field]) for field in fields))


def evaluation_prompts(world: World, prompts_per_task: int, seed: int, *, still: bool = False) -> list[dict]:
    """Makes `prompts_per_task` rows for each task of a world, for clips or for stills.

    A task's rows are a seeded shuffle of all its prompts, repeated if the task has too few prompts.
    """
    prompts = []
    for task in world.tasks:
        everything = _all_contents(task, world.vocabulary)
        n = len(everything.task)
        order = np.argsort(hashing.uniforms(hashing.key("motion prompts", seed, task), np.arange(n), 1)[:, 0])
        chosen = order[np.arange(prompts_per_task) % n]
        contents = everything.rows(chosen)
        rows = zip(plain(contents, world.vocabulary), is_held_out(contents, world.vocabulary).tolist(), strict=True)
        prompts += [still_row(clip) if still else row(clip, unseen) for clip, unseen in rows]
    return prompts


@functools.cache
def _all_contents(task: str, vocabulary: Vocabulary) -> Contents:
    """The contents of a task's distinct prompts, in a fixed order."""
    kinds, hues, ways = range(len(vocabulary.classes)), range(len(vocabulary.colors)), range(len(DIRECTIONS))
    moves = task not in AT_REST
    choices = itertools.product(
        itertools.permutations(kinds, 2) if task in PAIRS else ((kind, kind) for kind in kinds),
        itertools.permutations(hues, 2) if task in PAIRS or task == "change" else ((hue, hue) for hue in hues),
        ways if moves else (0,),
        range(3) if task == "motion_binding" else (0,),
        range(len(SPEEDS)) if task == "speed" else (0,),
        range(len(RELATIONS)) if task == "position" else (0,),
    )
    classes, colors, first, turn, speed, relation = map(np.array, zip(*choices, strict=True))
    tasks = np.full(len(first), TASKS.index(task))
    return Contents(tasks, classes, colors, directions_of(tasks, first, turn), speed, relation)


@functools.lru_cache(maxsize=8)
def words(tasks: tuple[str, ...], *, vocabulary: Vocabulary = VOCABULARY, still: bool = False) -> frozenset[str]:
    """The set of all words that captions of these tasks can contain, for clips or for stills."""
    return frozenset(
        word for caption in specimens(tasks, vocabulary=vocabulary, still=still) for word in caption.split()
    )


def specimens(tasks: Sequence[str], *, vocabulary: Vocabulary = VOCABULARY, still: bool = False) -> Iterator[str]:
    """Captions that together contain every word of the tasks' captions, for training a tokenizer."""
    for task in tasks:
        clips = plain(_all_contents(task, vocabulary), vocabulary)
        for index in range(min(SPECIMENS, len(clips))):
            clip = clips[index * STRIDE % len(clips)]
            yield sentence(clip, still=still)
            for k in range(12):  # together they take every option of every choice, in different combinations
                steps = (1, k % 4 / 4, k % 3 / 3, (k + index) % 3 / 3, (k // 3 + index) % 2 / 2, k // 4 % 2 * 0.99)
                yield sentence(clip, (OFFICIAL_SHARE, *steps[1:]), still=still)
