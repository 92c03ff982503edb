"""Who is asked what: pairs dealt evenly, ordered and sided by hashes, with checks that have a right answer."""

import itertools
from collections import Counter
from pathlib import Path

import pytest

from rfjax.compare.design import Wish, hash_of, in_order, left_and_right, make_study
from rfjax.compare.pictures import Picture
from rfjax.compare.study_files import NOISE, Pair, Prompt
from rfjax.errors import ConfigError

QUESTIONS = ("aesthetics", "prompt", "typography")


def a_study(prompts=30, sides=3, size=(8, 8), **wish):
    wish = {"seed": 0, "raters": 4, "pairs": 20, "checks": 0.2, "questions": QUESTIONS} | wish
    names = [f"side{number}" for number in range(sides)]
    rows = [Prompt(n, f'prompt "{n}"' if n % 2 else f"prompt {n}") for n in range(prompts)]
    found = {
        name: {row.id: Picture(f"{row.id}.png", Path("x"), hash_of(name, row.id).hex(), size) for row in rows}
        for name in names
    }
    return make_study(Wish(**wish), rows, found, {}, {})


def shown_to(study, rater):
    by_id = {pair.pair: pair for pair in study.pairs}
    return [by_id[name] for name in study.pairs_of(rater)]


@pytest.mark.parametrize(("raters", "pairs"), [(4, 20), (7, 40), (3, 90), (5, 37), (2, 500)])
def test_pairs_are_dealt_evenly(raters, pairs):
    """Catches pairs that some raters see twice as often, a rater with one prompt again and again, sides left out."""
    study, key, _ = a_study(raters=raters, pairs=pairs, checks=0.0)
    asked = Counter(name for rater in study.raters for name in study.pairs_of(rater))
    assert max(asked.values()) - (min(asked.values()) if len(asked) == 90 else 1) <= 1
    sides_of = {image: one.run for image, one in key.images.items()}
    for rater in study.raters:
        shown = shown_to(study, rater)
        assert len(shown) == len({pair.pair for pair in shown}) == min(pairs, 90)
        prompts = Counter(pair.prompt for pair in shown)
        assert max(prompts.values()) <= -(-len(shown) // 30) + 1
        sides = Counter(frozenset(sides_of[image] for image in pair.images) for pair in shown)
        assert len(sides) == 3 and max(sides.values()) - min(sides.values()) <= 2


def test_each_pair_has_two_sides_of_one_prompt():
    study, key, _ = a_study(raters=1, pairs=90, checks=0.0)
    found = set()
    for pair in study.pairs:
        sources = [key.images[image] for image in pair.images]
        assert {one.source for one in sources} == {f"{pair.prompt}.png"}
        found.add((pair.prompt, *sorted(key.runs[one.run] for one in sources)))
        assert ("typography" in pair.questions) == bool(pair.prompt % 2)
    pairs = itertools.combinations(("side0", "side1", "side2"), 2)
    assert found == {(prompt, *two) for prompt, two in itertools.product(range(30), pairs)}


def test_checks_are_the_stated_share_and_have_a_right_answer():
    """A repeat comes later and with its sides swapped. Catches a check whose right image is the noise."""
    study, key, shown = a_study()
    for rater in study.raters:
        pairs = shown_to(study, rater)
        repeats = [pair for pair in pairs if "repeats" in (pair.check or {})]
        wrong = [pair for pair in pairs if "right" in (pair.check or {})]
        assert (len(repeats), len(wrong)) == (2, 2) and len(pairs) == 24
        for pair in repeats:
            original = next(one for one in pairs if one.pair == pair.check["repeats"])
            assert pairs.index(pair) > pairs.index(original) + 1 and original.questions == pair.questions
            left, right = left_and_right(study.study, rater, original)
            assert left_and_right(study.study, rater, pair) == (right, left)
        for pair in wrong:
            (noise,) = set(pair.images) - {pair.check["right"]}
            assert key.images[noise].source == NOISE and key.images[noise].run is None and shown[noise] is None
            assert key.images[pair.check["right"]].run in key.runs and "typography" not in pair.questions


def test_order_and_sides_follow_from_hashes():
    """Raters differ; each side is on the left about half of the time. Catches the order of the command line, and a
    side that stands on the left for all raters."""
    study, key, _ = a_study(prompts=300, sides=2, raters=3, pairs=300, checks=0.0)
    by_id = {pair.pair: pair for pair in study.pairs}
    first = min(key.runs)
    left = {}
    for rater in study.raters:
        seen = [left_and_right(study.study, rater, by_id[name])[0] for name in sorted(by_id)]
        left[rater] = [key.images[image].run == first for image in seen]
        assert 115 < sum(left[rater]) < 185  # four standard deviations of 300 coins
    assert left["r01"] != left["r02"] and study.pairs_of("r01") != study.pairs_of("r02")
    places = [by_id[name].prompt for name in study.pairs_of("r01")]
    assert sum(a < b for a, b in itertools.pairwise(places)) < 200  # not in the order of the file


def test_the_same_command_makes_the_same_study_and_any_change_another():
    study, key, _ = a_study()
    assert a_study()[:2] == (study, key)
    ids = {a_study(**change)[0].study for change in ({"seed": 1}, {"raters": 5}, {"checks": 0.1}, {"prompts": 29})}
    assert len(ids | {study.study}) == 5


@pytest.mark.parametrize(("questions", "least"), [(QUESTIONS, 2), (("prompt",), 3)])
def test_every_rater_gets_enough_checks_to_be_judged(questions, least):
    """Catches a small study whose raters see one picture of noise, by which nobody is judged."""
    study, _, _ = a_study(pairs=5, checks=0.1, questions=questions)
    for rater in study.raters:
        pairs = [pair for pair in shown_to(study, rater) if "right" in (pair.check or {})]
        assert len(pairs) == least and sum(len(pair.questions) for pair in pairs) >= 3
        assert sum("repeats" in (pair.check or {}) for pair in shown_to(study, rater)) == 1


def test_one_pair_can_be_repeated():
    """Catches a rater of one pair whose repeat would come first."""
    pair = Pair("0" * 12, 0, ["1" * 12, "2" * 12], ["prompt"])
    for rater in map(str, range(20)):
        assert [one.check is None for one in in_order("s", rater, [pair], 1)] == [True, False]


def test_what_cannot_be_compared_is_refused():
    with pytest.raises(ConfigError, match="one side has nothing to be compared with"):
        a_study(sides=1)
    prompts = [Prompt(0, "a cube")]
    found = {name: {0: Picture("0.png", Path("x"), name, (side, 8))} for name, side in (("a", 8), ("b", 16))}
    wish = Wish(seed=0, raters=1, pairs=1, checks=0.0, questions=QUESTIONS)
    with pytest.raises(ConfigError, match=r"prompt 0 \('a cube'\) have different sizes.*a 8 x 8, b 16 x 8"):
        make_study(wish, prompts, found, {}, {})
    found["b"] = {0: Picture("0.png", Path("x"), "b", (8, 8))}
    with pytest.raises(ConfigError, match="no prompt asks for text"):
        make_study(Wish(**(vars(wish) | {"questions": ("typography",)})), prompts, found, {}, {})
