"""Designs a preference study: its pairs, which rater is asked which pairs, the checks, the order, and which image is on
the left.

Every random choice is computed from the study's id, which is a hash of the study's content and seed. So the same study
is designed the same way each time. No JAX here.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rfjax.compare.pictures import Picture
from rfjax.compare.prompts import questions_of
from rfjax.compare.study_files import NOISE, SCHEMA, Check, Key, KeyImage, Name, Pair, Prompt, Question, Study
from rfjax.errors import ConfigError

# The criteria of SD3's section 5.4, in the order in which they are asked. A page calls the prompt "the text".
TEXTS: dict[Name, str] = {
    "aesthetics": "Which image is of higher quality and more pleasing to look at?",
    "prompt": "Which image shows what the text says, and follows it more faithfully?",
    "typography": "Which image writes the words that the text asks for more accurately? Judge the spelling alone.",
}
LEAST_ANSWERS = 3  # fewest questions about noise for each rater, if there are checks: judging needs so many answers
REPEATED_FROM = 0.4  # repeated pairs are chosen from this first share of a rater's pairs
REPEATED_AFTER = 0.5  # repeats are shown after this share of the pairs


@dataclass(frozen=True, kw_only=True)
class Wish:
    """The wanted size of a study."""

    seed: int
    raters: int
    pairs: int  # pairs for each rater, without checks
    checks: float  # number of checks, as a share of `pairs`; they are added to the pairs
    questions: tuple[Name, ...]


def hash_of(*parts: object) -> bytes:
    """Returns the SHA-256 of a list of texts and numbers. The list is hashed as JSON, so that lists which differ have
    different texts."""
    return hashlib.sha256(json.dumps(parts, ensure_ascii=True).encode()).digest()


def draw(*parts: object) -> float:
    """Returns a pseudorandom number in [0, 1), computed from the hash of the arguments."""
    return int.from_bytes(hash_of(*parts)[:6], "big") / 2**48


def image_id(study: str, side: str, prompt: int, sha256: str) -> str:
    """Returns the id of an image, from which a rater cannot tell what made it: a hash of the study's id, the name of
    the run or folder that the image comes from (`side`), the prompt's number and the hash of the pixels (`sha256`)."""
    return hash_of(study, "image", side, prompt, sha256).hex()[:12]


def make_study(
    wish: Wish,
    prompts: Sequence[Prompt],
    pictures: Mapping[str, Mapping[int, Picture]],
    facts: Mapping[str, Mapping[str, object]],
    webp: Mapping[str, object],
) -> tuple[Study, Key, dict[str, Picture | None]]:
    """Makes a study. Returns (the study, its key, {image's blind id: its picture, or None for noise}).

    `pictures` is {side's name: {prompt's id: picture}}, `facts` is {side's name: what made the side's pictures}, and
    `webp` says how pictures are encoded. Raises `ConfigError` for fewer than two sides, if no pair has a question, and
    if two sides' pictures of a prompt differ in size, since raters could recognise a side by the size.
    """
    if len(pictures) < 2:
        raise ConfigError("one side has nothing to be compared with; give two runs or folders of images, or more")
    _check_sizes(prompts, pictures)
    content = {name: {str(place): one.sha256 for place, one in some.items()} for name, some in pictures.items()}
    rows = [(one.id, one.prompt, one.category, one.challenge) for one in prompts]
    texts = [(name, TEXTS[name]) for name in wish.questions]
    of_wish = (wish.seed, wish.raters, wish.pairs, wish.checks, texts)
    study_id = hash_of("study", *of_wish, rows, content, dict(webp)).hex()[:16]
    images = {
        (name, place): image_id(study_id, name, place, one.sha256)
        for name, some in pictures.items()
        for place, one in some.items()
    }
    raters = [f"r{number + 1:0{max(2, len(str(wish.raters)))}d}" for number in range(wish.raters)]
    pairs: dict[str, Pair] = {}
    noises: dict[str, int] = {}
    grid = _grid(study_id, prompts, images, list(pictures), wish.questions)
    assigned = {}
    for number, rater in enumerate(raters):
        dealt = _deal(grid, number, wish.pairs)
        repeats, wrongs = _count_checks(wish, len(dealt))
        like = sorted(dealt, key=lambda pair: draw(study_id, rater, "wrong", pair.pair))[:wrongs]
        wrong = [_wrong(study_id, rater, pair) for pair in like]
        noises |= {noise: pair.prompt for pair, noise in wrong}
        shown = in_order(study_id, rater, [*dealt, *(pair for pair, _ in wrong)], repeats)
        pairs |= {pair.pair: pair for pair in (*dealt, *shown)}
        assigned[rater] = [pair.pair for pair in shown]
    blind = {name: hash_of(study_id, "run", name, sorted(content[name].values())).hex()[:12] for name in pictures}
    key_images = {images[at]: KeyImage(blind[at[0]], pictures[at[0]][at[1]].source) for at in images}
    key_images |= {noise: KeyImage(None, NOISE) for noise in noises}
    study = Study(
        schema=SCHEMA,
        study=study_id,
        seed=wish.seed,
        questions=[Question(name, TEXTS[name]) for name in wish.questions],
        prompts=list(prompts),
        raters=raters,
        pairs=sorted(pairs.values(), key=lambda pair: pair.pair),
        assigned=assigned,
        webp=dict(webp),
    )
    sides = {blind[name]: dict(facts.get(name, {})) for name in blind}
    key = Key(schema=SCHEMA, study=study_id, runs={blind[n]: n for n in blind}, images=key_images, sides=sides)
    shown_images = {images[at]: pictures[at[0]][at[1]] for at in images} | dict.fromkeys(noises)
    return study, key, shown_images


def _check_sizes(prompts, pictures):
    for prompt in prompts:
        sizes = {name: some[prompt.id].size for name, some in pictures.items()}
        if len(set(sizes.values())) > 1:
            listed = ", ".join(f"{name} {width} x {height}" for name, (width, height) in sizes.items())
            raise ConfigError(
                f"the images of prompt {prompt.id} ({prompt.prompt[:40]!r}) have different sizes, by which raters "
                f"could tell the sides apart: {listed}; resize them to one size"
            )


def _grid(study, prompts, images, names, questions):
    """Lists all pairs of the study, in the order in which they are dealt to raters: every two sides on every prompt. A
    pair without a question is left out.

    Neighbours in the list differ in prompt and cycle through the combinations of two sides. So any stretch of the list,
    such as the pairs of one rater, holds all prompts and all sides about equally often.
    """
    order = sorted(prompts, key=lambda prompt: draw(study, "prompt", prompt.id))
    both = sorted(itertools.combinations(names, 2), key=lambda two: draw(study, "sides", *two))
    pairs = []
    for turn in range(len(both)):
        for place, prompt in enumerate(order):
            shown = sorted(images[name, prompt.id] for name in both[(place + turn) % len(both)])
            pair = hash_of(study, "pair", *shown).hex()[:12]
            pairs.append(Pair(pair, prompt.id, shown, questions_of(prompt, questions)))
    asked = [pair for pair in pairs if pair.questions]
    if not asked:
        raise ConfigError("no prompt asks for text, so typography alone has nothing to ask; add questions or prompts")
    return asked


def _deal(grid, number, count):
    """Returns the pairs of rater `number` (from 0): the `count` pairs of the list `grid` that follow those of the rater
    before. After the last pair of the list comes its first.

    So all pairs are shown to equally many raters, to within one.
    """
    count = min(count, len(grid))
    return [grid[(number * count + k) % len(grid)] for k in range(count)]


def _count_checks(wish, dealt):
    """Returns (number of repeats, number of pairs with noise) for a rater who is dealt `dealt` pairs; (0, 0) without
    checks. Half of the checks are of each kind, but there is at least one repeat, and there are always enough pairs
    with noise to judge the rater."""
    if not wish.checks:
        return 0, 0
    checks = round(wish.checks * dealt)
    about_noise = len([name for name in wish.questions if name != "typography"]) or 1
    return max(1, checks // 2), max(math.ceil(checks / 2), math.ceil(LEAST_ANSWERS / about_noise))


def _wrong(study, rater, like):
    """Makes a check: a pair of noise and an image of the pair `like`. Returns (the check, the noise's image id).

    Raters are not asked about typography in this check, unless the pair has no other question: noise has no text, and
    the other image may have none either.
    """
    image = like.images[int(draw(study, rater, "better", like.pair) * 2)]
    noise = hash_of(study, "noise", like.pair).hex()[:12]
    asked = [name for name in like.questions if name != "typography"] or list(like.questions)
    pair = hash_of(study, "wrong", image, noise).hex()[:12]
    return Pair(pair, like.prompt, sorted((image, noise)), asked, Check(right=image)), noise


def in_order(study: str, rater: str, pairs: Sequence[Pair], repeats: int) -> list[Pair]:
    """Puts a rater's pairs into the order shown. Up to `repeats` of the early pairs are shown again later, under new
    ids."""
    once = {pair.pair: pair for pair in pairs}
    ordered = sorted(once.values(), key=lambda pair: draw(study, rater, "order", pair.pair))
    early = [pair for pair in ordered[: max(1, math.floor(REPEATED_FROM * len(ordered)))] if pair.check is None]
    early = early or [next(pair for pair in ordered if pair.check is None)]
    chosen = sorted(early, key=lambda pair: draw(study, rater, "repeat", pair.pair))[:repeats]
    placed = [((place + 0.5) / len(ordered), pair) for place, pair in enumerate(ordered)]
    for pair in chosen:
        again = hash_of(study, "repeat", pair.pair).hex()[:12]
        late = REPEATED_AFTER + (1 - REPEATED_AFTER) * draw(study, rater, "later", pair.pair)
        late = max(late, (ordered.index(pair) + 1) / len(ordered))
        placed.append((late, Pair(again, pair.prompt, pair.images, pair.questions, Check(repeats=pair.pair))))
    return [pair for _, pair in sorted(placed, key=lambda one: one[0])]


def left_and_right(study: str, rater: str, pair: Pair) -> tuple[str, str]:
    """Returns (left image, right image) of a pair for a rater. In a repeat, left and right are exchanged."""
    original = (pair.check or {}).get("repeats")
    swapped = draw(study, rater, "side", original or pair.pair) < 0.5
    left, right = pair.images
    return (right, left) if swapped != bool(original) else (left, right)
