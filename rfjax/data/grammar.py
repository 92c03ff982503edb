"""Writes captions of scenes, and evaluation prompts in GenEval's JSON-lines schema.

"Official" means the wording and the schema of GenEval's `evaluation_metadata.jsonl` (Ghosh et al. 2023). Training
captions use the official wording or paraphrases of the same meaning.
"""

from __future__ import annotations

import copy
import functools
import itertools
from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import Float

from rfjax.data import hashing
from rfjax.data.geneval_names import RELATIONS, TASKS
from rfjax.data.scenes import MAX_OBJECTS, Contents, Vocabulary, pick

NUMBERS = ("zero", "one", "two", "three", "four")
OFFICIAL_OPENING = "a photo of"
OFFICIAL_JOIN = "and"

OFFICIAL_SHARE = 0.5  # the share of training captions that have the official wording throughout
DETAIL_SHARE = 0.25  # the share of the other captions that name colours even in tasks without colours

OPENINGS = (OFFICIAL_OPENING, "an image of", "a picture of", "")
JOINS = (OFFICIAL_JOIN, "with", "beside")
RELATION_PHRASES = {
    "left of": ("left of", "to the left of"),
    "right of": ("right of", "to the right of"),
    "above": ("above", "over"),
    "below": ("below", "under"),
}

WORDING_SLOTS = 5  # uniform numbers that decide the wording of one caption


def captions(vocabulary: Vocabulary, contents: Contents, u: Float[np.ndarray, "n slots"]) -> list[str]:
    """Writes a caption of each scene; the captions are true by GenEval's rules. `u` has `WORDING_SLOTS` uniform numbers
    for each scene."""
    fields = (contents.task, contents.count, contents.classes, contents.colors, contents.relation, u)
    return [_caption(vocabulary, *scene) for scene in zip(*(field.tolist() for field in fields), strict=True)]


def _caption(vocabulary, task, count, classes, colors, relation, wording):
    official, opening, join, phrase, detail = wording
    if official < OFFICIAL_SHARE:
        opening = join = phrase = 0.0
    task = TASKS[task]
    colored = task in ("colors", "color_attr") or (detail < DETAIL_SHARE and official >= OFFICIAL_SHARE)
    nouns = vocabulary.plurals if task == "counting" else vocabulary.classes
    return sentence(
        task,
        [nouns[c] for c in classes],
        [vocabulary.colors[c] if colored else "" for c in colors],
        count,
        opening=_choose(OPENINGS, opening),
        join=_choose(JOINS, join),
        relation=_choose(RELATION_PHRASES[RELATIONS[relation]], phrase),
    )


def _choose(options, u):
    return options[int(u * len(options))]


def sentence(
    task: str,
    nouns: Sequence[str],
    adjectives: Sequence[str],
    count: int,
    *,
    opening: str = OFFICIAL_OPENING,
    join: str = OFFICIAL_JOIN,
    relation: str = RELATIONS[0],
) -> str:
    """Returns one caption; empty adjectives are left out. In the task `position` the caption states where nouns[1] is
    relative to nouns[0]."""
    names = [f"{adjective} {noun}".strip() for adjective, noun in zip(adjectives, nouns, strict=False)]
    if task == "counting":
        body = f"{NUMBERS[count]} {names[0]}"
    elif task == "position":
        body = f"{with_article(names[1])} {relation} {with_article(names[0])}"
    else:
        body = f" {join} ".join(with_article(name) for name in names[:count])
    return f"{opening} {body}".strip()


def with_article(name: str) -> str:
    """Puts "a" or "an" before a name, by its sound: "an eight", "a one"."""
    vowel = name[0] in "aeiou" and not name.startswith("one")
    return f"{'an' if vowel else 'a'} {name}"


def row(
    vocabulary: Vocabulary, task: str, classes: Sequence[int], colors: Sequence[int], count: int, relation: int
) -> dict:
    """Makes a prompt's metadata row in the official wording and schema, from indices as in `scenes.Contents`.

    The key "held_out" is added: whether the prompt names a (class, colour) pair that training never shows.
    """
    objects = 1 if task == "counting" else count
    include = [{"class": vocabulary.classes[c], "count": 1} for c in classes[:objects]]
    adjectives = [""] * max(objects, 2)
    nouns = [vocabulary.classes[c] for c in classes]
    result = {"tag": task, "include": include}
    held_out = False
    if task in ("colors", "color_attr"):
        adjectives = [vocabulary.colors[c] for c in colors]
        for item, adjective in zip(include, adjectives, strict=True):
            item["color"] = adjective
        held_out = any(vocabulary.held_out[a] == b for a, b in zip(classes[:objects], colors[:objects], strict=True))
    if task == "position":
        include[1]["position"] = [RELATIONS[relation], 0]
    if task == "counting":
        include[0]["count"] = count
        result["exclude"] = [{"class": vocabulary.classes[classes[0]], "count": count + 1}]
        nouns = [vocabulary.plurals[c] for c in classes]
    result["prompt"] = sentence(task, nouns, adjectives, count, relation=RELATIONS[relation])
    result["held_out"] = held_out
    return result


def all_rows(vocabulary: Vocabulary, task: str) -> list[dict]:
    """Every distinct prompt of a task, in a fixed order."""
    kinds, shades = range(len(vocabulary.classes)), range(len(vocabulary.colors))
    pairs = list(itertools.permutations(kinds, 2))
    table = {
        "single_object": lambda: (((a,), (), 1, 0) for a in kinds),
        "two_object": lambda: ((pair, (), 2, 0) for pair in pairs),
        "counting": lambda: (((a,), (), n, 0) for n in range(2, MAX_OBJECTS + 1) for a in kinds),
        "colors": lambda: (((a,), (c,), 1, 0) for a in kinds for c in shades),
        "position": lambda: ((pair, (), 2, r) for pair in pairs for r in range(len(RELATIONS))),
        "color_attr": lambda: ((pair, shade, 2, 0) for pair in pairs for shade in itertools.permutations(shades, 2)),
    }
    return [row(vocabulary, task, *arguments) for arguments in table[task]()]


def evaluation_prompts(vocabulary: Vocabulary, prompts_per_task: int, seed: int) -> list[dict]:
    """Returns `prompts_per_task` metadata rows for each task, in the official order of tasks.

    A task's rows are a seeded shuffle of all its prompts, repeated if the task has too few prompts.
    """
    prompts = []
    for task in TASKS:
        rows = all_rows(vocabulary, task)
        order = np.argsort(hashing.uniforms(hashing.key("prompts", seed, task), np.arange(len(rows)), 1)[:, 0])
        prompts += [copy.deepcopy(rows[order[i % len(rows)]]) for i in range(prompts_per_task)]
    return prompts


def contents_of_row(vocabulary: Vocabulary, row: dict, u: Float[np.ndarray, " slots"]) -> Contents:
    """Makes a scene that satisfies a metadata row. If the row does not name an object's colour, an entry of `u` picks
    one that training shows with the object's class."""
    include = row["include"]
    task = TASKS.index(row["tag"])
    count = include[0]["count"] if row["tag"] == "counting" else len(include)
    classes = [vocabulary.classes.index(item["class"]) for item in include]
    relation = next((RELATIONS.index(item["position"][0]) for item in include if "position" in item), 0)
    free = pick(vocabulary.seen()[classes], u[: len(classes)])
    colors = [
        vocabulary.colors.index(item["color"]) if "color" in item else int(drawn)
        for item, drawn in zip(include, free, strict=True)
    ]
    return Contents(*(np.array([field]) for field in (task, count, _four(classes), _four(colors), relation)))


def _four(values):
    return list(values) + [values[-1]] * (MAX_OBJECTS - len(values))


@functools.lru_cache(maxsize=8)
def words(vocabulary: Vocabulary) -> frozenset[str]:
    """All words of this grammar's captions, in lower case."""
    return frozenset(word for caption in specimens(vocabulary) for word in caption.split())


def specimens(vocabulary: Vocabulary) -> Iterator[str]:
    """Captions that together contain every word of the grammar, for training a tokenizer."""
    relations = [phrase for phrases in RELATION_PHRASES.values() for phrase in phrases]
    kinds = range(len(vocabulary.classes))
    for opening in OPENINGS:
        for a, color in itertools.product(kinds, range(len(vocabulary.colors))):
            b = (a + 1 + color % (len(vocabulary.classes) - 1)) % len(vocabulary.classes)
            nouns = [vocabulary.classes[a], vocabulary.classes[b]]
            adjectives = [vocabulary.colors[color], vocabulary.colors[color - 1]]
            for words in (["", ""], adjectives):
                yield sentence("colors", nouns, words, 1, opening=opening)
                for count in range(2, MAX_OBJECTS + 1):
                    yield sentence("counting", [vocabulary.plurals[a]], words, count, opening=opening)
                for join in JOINS:
                    yield sentence("color_attr", nouns, words, 2, opening=opening, join=join)
                for relation in relations:
                    yield sentence("position", nouns, words, 2, opening=opening, relation=relation)
