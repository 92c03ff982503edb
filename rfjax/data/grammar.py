"""Words for scenes: captions, and evaluation prompts in GenEval's JSON-lines schema.

The official wording and schema are those of GenEval's `evaluation_metadata.jsonl` (Ghosh et al.
2023). Training captions mix that wording with paraphrases of the same meaning.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import Float

from rfjax.data import hashing
from rfjax.data.scenes import MAX_OBJECTS, RELATIONS, TASKS, Contents, Vocabulary, pick

NUMBERS = ("zero", "one", "two", "three", "four")
OFFICIAL_OPENING = "a photo of"
OFFICIAL_JOIN = "and"

# The share of training captions in the official wording throughout, and of captions of
# uncoloured tasks that name the colours all the same.
OFFICIAL_SHARE = 0.5
DETAIL_SHARE = 0.25

OPENINGS = (OFFICIAL_OPENING, "an image of", "a picture of", "")
JOINS = (OFFICIAL_JOIN, "with", "beside")
RELATION_PHRASES = {
    "left of": ("left of", "to the left of"),
    "right of": ("right of", "to the right of"),
    "above": ("above", "over"),
    "below": ("below", "under"),
}

WORDING_SLOTS = 5


def captions(vocabulary: Vocabulary, contents: Contents, u: Float[np.ndarray, "n slots"]) -> list[str]:
    """A caption per scene, from `WORDING_SLOTS` uniforms each; true of the scene by GenEval's rules."""
    return [
        _caption(vocabulary, task, count, classes, colors, relation, wording)
        for task, count, classes, colors, relation, wording in zip(
            contents.task.tolist(),
            contents.count.tolist(),
            contents.classes.tolist(),
            contents.colors.tolist(),
            contents.relation.tolist(),
            u.tolist(),
            strict=True,
        )
    ]


def _caption(vocabulary, task, count, classes, colors, relation, wording):
    official, opening, join, phrase, detail = wording
    if official < OFFICIAL_SHARE:
        opening = join = phrase = 0.0
    task = TASKS[task]
    if task in ("colors", "color_attr") or (detail < DETAIL_SHARE and official >= OFFICIAL_SHARE):
        adjectives = [vocabulary.colors[c] for c in colors]
    else:
        adjectives = [""] * len(colors)
    return sentence(
        task,
        [vocabulary.plurals[c] if task == "counting" else vocabulary.classes[c] for c in classes],
        adjectives,
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
    """One caption; an empty adjective is left out. For `position`, nouns[0] is the target."""
    names = [f"{adjective} {noun}".strip() for adjective, noun in zip(adjectives, nouns, strict=False)]
    if task == "counting":
        body = f"{NUMBERS[count]} {names[0]}"
    elif task == "position":
        body = f"{with_article(names[1])} {relation} {with_article(names[0])}"
    else:
        body = f" {join} ".join(with_article(name) for name in names[:count])
    return f"{opening} {body}".strip()


def with_article(name: str) -> str:
    """The name with "a" or "an" before it, by sound: "an eight", but "a one"."""
    vowel = name[0] in "aeiou" and not name.startswith("one")
    return f"{'an' if vowel else 'a'} {name}"


def row(
    vocabulary: Vocabulary, task: str, classes: Sequence[int], colors: Sequence[int], count: int, relation: int
) -> dict:
    """A metadata row in the official wording and schema, with "held_out" added.

    "held_out" is true where the prompt names a (class, colour) pair that training never shows.
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
    """`prompts_per_task` rows for each task, in the official order of the tasks.

    A seeded shuffle of all the task's prompts, begun anew when they run out: rows repeat only
    where a task has fewer distinct prompts, and then as evenly as can be.
    """
    prompts = []
    for task in TASKS:
        rows = all_rows(vocabulary, task)
        order = np.argsort(hashing.uniforms(hashing.key("prompts", seed, task), np.arange(len(rows)), 1)[:, 0])
        prompts += [_copy(rows[order[i % len(rows)]]) for i in range(prompts_per_task)]
    return prompts


def _copy(source):
    copied = {**source, "include": [dict(item) for item in source["include"]]}
    if "exclude" in source:
        copied["exclude"] = [dict(item) for item in source["exclude"]]
    return copied


def contents_of_row(vocabulary: Vocabulary, row: dict, u: Float[np.ndarray, " slots"]) -> Contents:
    """A scene satisfying a metadata row: what the row names, and the rest drawn as in training."""
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
    return Contents(
        task=np.array([task]),
        count=np.array([count]),
        classes=np.array([_four(classes)]),
        colors=np.array([_four(colors)]),
        relation=np.array([relation]),
    )


def _four(values):
    return list(values) + [values[-1]] * (MAX_OBJECTS - len(values))


def words(vocabulary: Vocabulary) -> frozenset[str]:
    """Every word that a caption of this grammar can hold, in lower case."""
    return frozenset(word for caption in specimens(vocabulary) for word in caption.split())


def specimens(vocabulary: Vocabulary) -> Iterator[str]:
    """Captions that together hold every word of the grammar, for training a tokenizer."""
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
