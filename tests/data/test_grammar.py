import itertools
import json

import numpy as np
import pytest

from rfjax.data import digits, grammar, shapes
from rfjax.data.geneval_names import TASKS

VOCABULARY = shapes.VOCABULARY


def index(name):
    return VOCABULARY.classes.index(name)


def color(name):
    return VOCABULARY.colors.index(name)


def test_rows_follow_the_official_schema():
    # Key for key, and in their order, as in the official evaluation_metadata.jsonl.
    rows = [
        (
            ("single_object", [index("bar")], [], 1, 0),
            '{"tag": "single_object", "include": [{"class": "bar", "count": 1}], '
            '"prompt": "a photo of a bar", "held_out": false}',
        ),
        (
            ("two_object", [index("bar"), index("ring")], [], 2, 0),
            '{"tag": "two_object", "include": [{"class": "bar", "count": 1}, {"class": "ring", "count": 1}], '
            '"prompt": "a photo of a bar and a ring", "held_out": false}',
        ),
        (
            ("counting", [index("cross")], [], 3, 0),
            '{"tag": "counting", "include": [{"class": "cross", "count": 3}], '
            '"exclude": [{"class": "cross", "count": 4}], "prompt": "a photo of three crosses", "held_out": false}',
        ),
        (
            ("colors", [index("square")], [color("red")], 1, 0),
            '{"tag": "colors", "include": [{"class": "square", "count": 1, "color": "red"}], '
            '"prompt": "a photo of a red square", "held_out": true}',
        ),
        (
            ("position", [index("ring"), index("bar")], [], 2, 1),
            '{"tag": "position", "include": [{"class": "ring", "count": 1}, '
            '{"class": "bar", "count": 1, "position": ["right of", 0]}], '
            '"prompt": "a photo of a bar right of a ring", "held_out": false}',
        ),
        (
            ("color_attr", [index("ring"), index("bar")], [color("red"), color("blue")], 2, 0),
            '{"tag": "color_attr", "include": [{"class": "ring", "count": 1, "color": "red"}, '
            '{"class": "bar", "count": 1, "color": "blue"}], '
            '"prompt": "a photo of a red ring and a blue bar", "held_out": false}',
        ),
    ]
    for arguments, line in rows:
        assert json.dumps(grammar.row(VOCABULARY, *arguments)) == line


def test_articles_follow_the_sound():
    names = ("orange bar", "eight", "one", "zero", "ring")
    assert [grammar.with_article(name) for name in names] == ["an orange bar", "an eight", "a one", "a zero", "a ring"]


@pytest.mark.parametrize("vocabulary", [shapes.VOCABULARY, digits.VOCABULARY], ids=["shapes", "digits"])
def test_every_prompt_of_a_task_is_distinct(vocabulary):
    k, c = len(vocabulary.classes), len(vocabulary.colors)
    counts = (k, k * (k - 1), 3 * k, k * c, 4 * k * (k - 1), k * (k - 1) * c * (c - 1))
    for task, count in zip(TASKS, counts, strict=True):
        assert len({row["prompt"] for row in grammar.all_rows(vocabulary, task)}) == count


def test_evaluation_prompts():
    prompts = grammar.evaluation_prompts(VOCABULARY, 40, seed=3)
    assert [row["tag"] for row in prompts] == [task for task in TASKS for _ in range(40)]
    assert prompts == grammar.evaluation_prompts(VOCABULARY, 40, seed=3)
    assert prompts != grammar.evaluation_prompts(VOCABULARY, 40, seed=4)
    for task in TASKS:
        texts = [row["prompt"] for row in prompts if row["tag"] == task]
        times = {texts.count(prompt) for prompt in texts}
        distinct = min(40, len(grammar.all_rows(VOCABULARY, task)))
        assert len(set(texts)) == distinct
        assert max(times) - min(times) <= 1
        # The floor scores an image against the next prompt of its task, which must be another.
        assert all(a != b for a, b in zip(texts, texts[1:], strict=False))


def test_rows_can_be_changed_without_harm():
    prompts = grammar.evaluation_prompts(VOCABULARY, 8, seed=0)
    prompts[0]["include"][0]["count"] = 99
    assert all(row["include"][0]["count"] != 99 for row in prompts[1:])


def test_held_out_marks_the_unseen_pairs():
    unseen = {(VOCABULARY.classes[k], VOCABULARY.colors[c]) for k, c in enumerate(VOCABULARY.held_out)}
    for row in itertools.chain.from_iterable(grammar.all_rows(VOCABULARY, task) for task in TASKS):
        named = {(item["class"], item["color"]) for item in row["include"] if "color" in item}
        assert row["held_out"] == bool(named & unseen)
    share = np.mean([row["held_out"] for row in grammar.all_rows(VOCABULARY, "colors")])
    assert share == pytest.approx(1 / 6)
