"""Captions of the corpus `motion`, read by a parser of their own and held against what the objects do."""

import re

import numpy as np
import pytest

from rfjax.config import DataConfig
from rfjax.data import motion_captions, text
from rfjax.data.corpus import load_corpus
from rfjax.data.motion import PIECES
from rfjax.data.motion_worlds import SIDE, TASKS, WORLDS
from rfjax.data.scenes import PALETTE
from rfjax.data.shapes import CLASSES
from rfjax.evaluation.geneval.rules import relation

COLOR = f"(?:{'|'.join(PALETTE)})"
THING = f"an? (?:(?P<{{0}}color>{COLOR}) )?(?P<{{0}}class>{'|'.join(CLASSES)})"
WAY = "(?:to the )?(?P<{0}>left|right|up|down)(?:wards)?"
GOES = "(?:moving|going|sliding)"
SEEN = "(?:to the )?(?P<{0}>left|right|above|over|below|under)(?: of)?"
A, B = THING.format(""), THING.format("b_")
MANNER = "(?P<manner>slowly|gently|quickly|fast)"
FORMS = {
    "still": f"{A} (?:(?:staying|standing) still|not moving)",
    "motion": f"{A} {GOES} {WAY.format('way')}",
    "speed": f"{A} {GOES} (?:{MANNER} )?{WAY.format('way')}(?: {MANNER.replace('manner', 'manner2')})?",
    "stop": f"{A} {GOES} {WAY.format('way')} (?:and|then) stopping",
    "bounce": f"{A} {GOES} {WAY.format('way')} and bouncing(?: back)?",
    "permanence": f"{A} {GOES} {WAY.format('way')} (?:behind|past) a screen",
    "change": f"{A} (?:(?:turning|changing) from (?P<from>{COLOR}) to|turning) (?P<to>{COLOR})",
    "motion_binding": f"{A} {GOES} {WAY.format('way')} (?:and|with) {B} {GOES} {WAY.format('b_way')}",
    "relation_change": f"{A} {GOES} from {SEEN.format('before')} to {SEEN.format('after')} {B}",
    "position": f"{A} {SEEN.format('seen')} {B}",
}
RELATION = {"left": "left of", "right": "right of", "over": "above", "under": "below"}

OF_SHAPES = [name for name, world in WORLDS.items() if not world.of_scans]


def parse(caption):
    """(task, what the caption says) by regular expressions that were written apart from the grammar."""
    body = re.sub("^(?:a (?:video|clip|film) of )?", "", caption)
    found = [(task, match.groupdict()) for task, form in FORMS.items() if (match := re.fullmatch(form, body))]
    assert found, caption
    if len(found) > 1:  # without a manner `speed` has the form of `motion`
        found = [(task, said) for task, said in found if task != "speed"]
    assert len(found) == 1, (caption, found)
    return found[0]


def facts(layout, velocity, boxes, i):
    """What clip i shows, by its boxes, colours and centres alone."""
    velocity = velocity[i]
    moves = np.abs(velocity).max(axis=-1) > 1e-6  # [interval, object]
    names = [CLASSES[kind] for kind in layout.classes[i]]
    colors = [[list(PALETTE)[color] for color in layout.colors[i, :, k]] for k in (0, 1)]
    ways = []
    for k in (0, 1):
        seen = []
        for step in velocity[moves[:, k], k]:
            assert np.abs(step).min() < 1e-9  # along an axis
            way = ("left", "right") if abs(step[0]) > 1e-9 else ("up", "down")
            seen.append(way[int(step.sum() > 0)])
        ways.append(list(dict.fromkeys(seen)))
    seen = [relation(*boxes[i, t].astype(np.float32)) for t in (0, -1)]
    return {"moves": moves, "names": names, "colors": colors, "ways": ways, "relations": seen}


@pytest.mark.parametrize("world, frames", [("first", 4), ("full", 8), ("full", 13)])
def test_captions_say_what_the_objects_do_and_all_of_it(world, frames):
    """Both ways: what is said is seen, and the task that a parser reads is the one whose facts the clip has. Catches a
    caption of another clip, left for right, a first colour for the second, and a bounce that is told as a motion."""
    corpus = load_corpus(DataConfig(corpus="motion", world=world, frames=frames), 0)
    contents, layout, captions = corpus.clips(np.arange(2500), "train")
    middle, velocity, boxes = {}, layout.velocity, layout.boxes
    for i, caption in enumerate(captions):
        task, said = parse(caption)
        assert task == TASKS[contents.task[i]], caption
        seen, present = facts(layout, velocity, boxes, i), layout.present[i]
        assert said["class"] == seen["names"][0] and said.get("b_class", seen["names"][1]) == seen["names"][1]
        assert said["color"] in (None, seen["colors"][0][0])
        assert said.get("b_color", seen["colors"][1][0]) == seen["colors"][1][0]
        assert present.tolist() == [True, "b_class" in said]
        moves = seen["moves"][:, present]
        rests = task in ("still", "position", "change")
        assert moves.any() != rests and (rests or moves[0].all())
        ways = seen["ways"]
        if "way" in said:
            assert ways[0][0] == said["way"]
        if "b_way" in said:
            assert ways[1] == [said["b_way"]] and said["b_way"] != said["way"]
        assert (len(ways[0]) == 2) == (task == "bounce")
        assert (not moves[-1].any() and moves[0].any()) == (task == "stop")
        hidden = (layout.screen[i, 2:] > layout.screen[i, :2]).all()
        assert hidden == (task == "permanence")
        hues = list(dict.fromkeys(seen["colors"][0]))
        assert (len(hues) == 2) == (task == "change")
        if task == "change":
            assert hues == [said["from"] or said["color"], said["to"]]
        if task == "position":
            assert seen["relations"][0] == seen["relations"][1] == (RELATION.get(said["seen"], said["seen"]),)
        if task == "relation_change":
            before, after = (RELATION.get(said[key], said[key]) for key in ("before", "after"))
            first, last = seen["relations"]
            assert before in first and after in last and before not in last and after not in first
        if task in ("motion", "speed"):
            length = np.abs(layout.centre[i, -1, 0] - layout.centre[i, 0, 0]).sum()
            manner = said.get("manner") or said.get("manner2")
            slow = length < 0.5 * (WORLDS[world].slow[1] + WORLDS[world].fast[0])
            middle.setdefault(slow, []).append(length)
            assert manner is None or (manner in ("slowly", "gently")) == slow
    assert min(middle[False]) - max(middle[True]) > 2.0  # a gap between slow and fast, which 3 pixels a clip are
    assert max(middle[False]) < SIDE


@pytest.mark.parametrize("world", OF_SHAPES)
def test_rows_captions_and_contents_are_one(world):
    """Catches a row whose clip shows another prompt: contents -> row -> contents -> caption go around unchanged."""
    corpus = load_corpus(DataConfig(corpus="motion", world=world, frames=WORLDS[world].frames[0]), 0)
    contents, _, _ = corpus.clips(np.arange(1500), "validation")
    contents = contents.rows(np.arange(1500))
    clips = motion_captions.plain(contents)
    for clip in clips:
        row = motion_captions.row(clip, False)
        (again,) = motion_captions.plain(motion_captions.contents_of_row(row, 0.3))
        assert motion_captions.row(again, False) == row
        task, said = parse(row["prompt"])
        items = {item["class"]: item for item in row["include"]}
        first = items[said["class"]]
        assert task == row["tag"] == again["task"] == clip["task"]
        assert first["color"] == (said.get("color") or said["from"])
        assert first["motion"] == said.get("way", first["motion"])
        assert ("becomes" in first, "speed" in first, "behind" in first) == tuple(
            task == name for name in ("change", "speed", "permanence")
        )


@pytest.mark.parametrize("world", WORLDS)
def test_evaluation_prompts(world):
    """Catches repeated prompts, a wrong mark of what is unseen, and tasks that the world never shows."""
    prompts = motion_captions.evaluation_prompts(WORLDS[world], 40, 3)
    assert [row["tag"] for row in prompts] == [task for task in WORLDS[world].tasks for _ in range(40)]
    assert prompts == motion_captions.evaluation_prompts(WORLDS[world], 40, 3)
    assert prompts != motion_captions.evaluation_prompts(WORLDS[world], 40, 4)
    for task in WORLDS[world].tasks:
        mine = [row for row in prompts if row["tag"] == task]
        distinct = min(40, 6 * len(WORLDS[world].vocabulary.classes)) if task == "still" else 40
        assert len({row["prompt"] for row in mine}) == distinct
        assert all(a["prompt"] != b["prompt"] for a, b in zip(mine, mine[1:], strict=False))
        unseen = [row["held_out"] for row in mine]
        assert any(unseen) == (task not in ("still", "position", "change")) and not all(unseen)


def test_every_word_is_one_piece_and_every_caption_fits():
    """Catches a paraphrase that is too long for the context, which would end a training after hours."""
    encoder = text.TextEncoder.fit(list(motion_captions.specimens(TASKS)), PIECES)
    longest = list(motion_captions.specimens(TASKS))
    ids, lengths = encoder.tokenize(longest)
    assert lengths.max() == text.CONTEXT_TOKENS
    assert all(length == len(caption.split()) + 1 for caption, length in zip(longest, lengths, strict=True))


@pytest.mark.parametrize("world", OF_SHAPES)
def test_every_word_of_the_captions_is_known_and_others_are_named(world):
    """A word missing from the vocabulary would raise false warnings; a word too many would hide that `first` has none
    of it."""
    corpus = load_corpus(DataConfig(corpus="motion", world=world, frames=WORLDS[world].frames[0]), 0)
    captions = corpus.captions(np.arange(4000), "train") + [row["prompt"] for row in corpus.evaluation_prompts(9, 0)]
    assert corpus.unknown_words(captions) == []
    assert motion_captions.words(WORLDS[world].tasks) == {word for caption in captions for word in caption.split()}
    unknown = ["bouncing"] if world == "first" else []
    assert corpus.unknown_words(["A Video of a bouncing dog"]) == [*unknown, "dog"]
