"""Simulated preference studies whose strengths, rater effects, prompt effects and ties are known."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from scipy.special import expit

from rfjax.compare import study_files
from rfjax.compare.study_files import Pair
from rfjax.votes.ballots import Ballots
from rfjax.votes.reading import Vote
from rfjax.votes.study import KeyedStudy, read_keyed_study


@dataclass(frozen=True, kw_only=True)
class Planted:
    """A population of votes. Effects are standard deviations, in log odds, of each rater's and each prompt's own
    difference between two runs; `threshold` is log theta of Rao and Kupper; `side` favours the left image."""

    strengths: tuple[float, ...] = (0.6, 0.1, -0.7)
    raters: int = 12
    prompts: int = 60
    share: float = 0.5  # of all pairs that a rater votes on
    rater_effect: float = 0.0
    prompt_effect: float = 0.0
    side: float = 0.3
    threshold: float = 0.25

    @property
    def runs(self) -> tuple[str, ...]:
        return tuple(f"run{place}" for place in range(len(self.strengths)))


def draw(planted: Planted, seed: int) -> Ballots:
    """The votes of one study."""
    rng = np.random.default_rng(seed)
    count = len(planted.strengths)
    # A difference of two runs' effects has twice the variance of one.
    of_raters = rng.normal(0, planted.rater_effect / np.sqrt(2), (planted.raters, count))
    of_prompts = rng.normal(0, planted.prompt_effect / np.sqrt(2), (planted.prompts, count))
    one, other = np.triu_indices(count, 1)
    rater, prompt, pair = (
        axis.ravel() for axis in np.meshgrid(np.arange(planted.raters), np.arange(planted.prompts), np.arange(len(one)))
    )
    kept = rng.random(len(rater)) < planted.share
    rater, prompt, pair = rater[kept], prompt[kept], pair[kept]
    swapped = rng.random(len(rater)) < 0.5
    left, right = np.where(swapped, other[pair], one[pair]), np.where(swapped, one[pair], other[pair])
    value = np.array(planted.strengths) + of_raters[rater] + of_prompts[prompt]
    place = np.arange(len(rater))
    return Ballots(
        planted.runs, rater, prompt, left, right, _choose(planted, value[place, left] - value[place, right], rng)
    )


def _choose(planted, difference, rng):
    d = difference + planted.side
    shown = rng.random(len(d))
    won, lost = expit(d - planted.threshold), expit(-d - planted.threshold)
    return np.where(shown < won, 1, np.where(shown > 1 - lost, -1, 0))


def population(planted: Planted, seed: int = 0, votes: int = 400_000) -> Ballots:
    """So many votes, each by another rater on another prompt, that their fit is what a study estimates."""
    rng = np.random.default_rng(seed)
    count = len(planted.strengths)
    one, other = np.triu_indices(count, 1)
    pair, swapped = np.arange(votes) % len(one), (np.arange(votes) // len(one)) % 2 == 1
    left, right = np.where(swapped, other[pair], one[pair]), np.where(swapped, one[pair], other[pair])
    spread = np.hypot(planted.rater_effect, planted.prompt_effect)
    difference = np.array(planted.strengths)[left] - np.array(planted.strengths)[right] + rng.normal(0, spread, votes)
    alone = np.arange(votes)
    return Ballots(planted.runs, alone, alone, left, right, _choose(planted, difference, rng))


def with_lazy_raters(ballots: Ballots, lazy: int, seed: int) -> Ballots:
    """The votes, of which those of the first `lazy` raters are given without looking."""
    rng = np.random.default_rng([seed, 1])
    choice = np.where(ballots.rater < lazy, rng.integers(-1, 2, len(ballots)), ballots.choice)
    return Ballots(ballots.runs, ballots.rater, ballots.prompt, ballots.left, ballots.right, choice)


def name_of(*parts, digits: int = 12) -> str:
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:digits]


def image_of(run: int, prompt: int) -> str:
    return name_of("image", run, prompt)


def pair_of(one: int, other: int, prompt: int) -> str:
    return name_of("pair", min(one, other), max(one, other), prompt)


def files_of(planted: Planted, checks: int = 6, made: dict | None = None, question: str = "aesthetics"):
    """The files of the study in which every rater is asked about every pair: (study, key).

    `checks` pairs have an image of noise, and as many repeat a pair. `made` has for a run's name what made its images.
    """
    count, prompts = len(planted.strengths), range(planted.prompts)
    pairs = [
        Pair(pair_of(one, other, prompt), prompt, sorted((image_of(one, prompt), image_of(other, prompt))), [question])
        for prompt in prompts
        for one in range(count)
        for other in range(one + 1, count)
    ]
    for check in range(checks):
        like, noise = pairs[check], name_of("noise", check)
        images = sorted((like.images[0], noise))
        plain = Pair(name_of("plain", check), like.prompt, images, [question], {"right": like.images[0]})
        again = Pair(name_of("again", check), like.prompt, like.images, [question], {"repeats": like.pair})
        pairs += [plain, again]
    study = study_files.Study(
        schema=1,
        study=name_of("study", planted, question, digits=16),
        seed=0,
        questions=[study_files.Question(question, "Which?")],
        prompts=[
            study_files.Prompt(one, f"prompt {one}", "Animals" if one % 2 else "Vehicles", "Basic") for one in prompts
        ],
        raters=[f"r{one:02d}" for one in range(planted.raters)],
        pairs=pairs,
    )
    blind = {run: name_of("run", run) for run in planted.runs}
    images = {
        image_of(place, prompt): study_files.KeyImage(blind[run], f"{prompt}.png")
        for place, run in enumerate(planted.runs)
        for prompt in prompts
    }
    images |= {name_of("noise", check): study_files.KeyImage(None, study_files.NOISE) for check in range(checks)}
    sides = {blind[run]: (made or {}).get(run, {"given": "a folder"}) for run in planted.runs}
    key = study_files.Key(
        schema=1, study=study.study, runs={blind[run]: run for run in planted.runs}, images=images, sides=sides
    )
    return study, key


def votes_of(study: study_files.Study, ballots: Ballots, lazy: int = 0, seed: int = 0) -> list[Vote]:
    """The ballots as votes, and answers to the checks: all raters pass them but the first `lazy`, who guess."""
    rng = np.random.default_rng([seed, 2])
    question, at = study.questions[0].name, datetime(2026, 11, 27, tzinfo=UTC)
    columns = (ballots.rater, ballots.prompt, ballots.left, ballots.right, ballots.choice)
    votes, chosen = [], {}
    for place, (rater, prompt, left, right, choice) in enumerate(zip(*(c.tolist() for c in columns), strict=True)):
        images, pair = (image_of(left, prompt), image_of(right, prompt)), pair_of(left, right, prompt)
        votes.append(Vote(study.raters[rater], pair, question, *images, choice, 2.0, at, f"row {place}"))
        chosen[study.raters[rater], pair] = votes[-1]
    for rater, name in enumerate(study.raters):
        for pair in study.pairs:
            if pair.check is None:
                continue
            right = pair.check.get("right")
            if right is None and (before := chosen.get((name, pair.check["repeats"]))):
                sides, choice = (before.right, before.left), -before.choice
            elif right is not None:
                sides, choice = pair.images, 1 if pair.images[0] == right else -1
            else:
                continue
            choice = int(rng.integers(-1, 2)) if rater < lazy else choice
            votes.append(Vote(name, pair.pair, question, *sides, choice, 2.0, at, f"{name} {pair.pair}"))
    return votes


def keyed(planted: Planted, folder: Path, **more) -> KeyedStudy:
    """The study in a folder, as the analysis reads it."""
    study_files.write_study(folder, *files_of(planted, **more))
    return read_keyed_study(folder)


def write_votes(path: Path, study: study_files.Study, votes) -> Path:
    """Writes votes as the pages do."""
    named = {1: "left", 0: "tie", -1: "right"}
    rows = [
        (study.study, v.rater, v.pair, v.question, v.left, v.right, named[v.choice], v.seconds, v.at.isoformat())
        for v in votes
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [study_files.VOTE_COLUMNS, *rows]
    path.write_text("".join(",".join(map(str, row)) + "\n" for row in lines))
    return path
