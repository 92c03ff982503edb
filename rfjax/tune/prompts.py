"""Divides a corpus's prompts into prompts to tune on and prompts held out, and chooses the prompts of each round. No
JAX here."""

from __future__ import annotations

import hashlib
import math
import zlib
from collections.abc import Mapping, Sequence

import numpy as np

from rfjax.data.corpus import Corpus
from rfjax.errors import ConfigError
from rfjax.tune.config import TuneConfig

MOST_PER_TASK = 1000  # more than the number of distinct prompts of any task of an embedded corpus


def all_prompts(corpus: Corpus, needed: bool = True) -> dict[str, list[dict]]:
    """Returns {task: its distinct prompts} of a corpus, sorted by a hash of the prompt's text.

    Raises `ConfigError` for a corpus without prompts, if they are `needed`.
    """
    tasks: dict[str, dict[str, dict]] = {}
    for row in corpus.evaluation_prompts(MOST_PER_TASK, 0):
        tasks.setdefault(row["tag"], {}).setdefault(row["prompt"], row)
    if needed and not tasks:
        raise ConfigError(
            f"the corpus {corpus.name} has no prompts, so nothing can be tuned on it; use shapes or digits"
        )
    return {task: [rows[name] for name in sorted(rows, key=_place)] for task, rows in tasks.items()}


def _place(prompt: str) -> str:
    return hashlib.sha256(f"held out of tuning: {prompt}".encode()).hexdigest()


def split(prompts: Mapping[str, Sequence[dict]], share: float) -> tuple[dict[str, list[dict]], dict[str, list[dict]]]:
    """Returns (prompts to tune on, prompts held out), by task.

    Of each task's prompts, the first `share` (a fraction, at least one prompt) are held out. Prompts with a pair of
    class and colour that pretraining never showed are in neither part, because tuning must not teach these pairs.
    Raises `ConfigError` if a task has no prompt left to tune on.
    """
    tuned, held_out = {}, {}
    for task, rows in prompts.items():
        seen = [row for row in rows if not row.get("held_out")]
        first = max(1, math.ceil(share * len(seen)))
        if len(seen) <= first:
            raise ConfigError(
                f"config.held_out_prompts={share} leaves no prompt of the task {task} to tune on (it has {len(seen)}); "
                "lower it"
            )
        held_out[task], tuned[task] = seen[:first], seen[first:]
    return tuned, held_out


def of_round(tuned: Mapping[str, Sequence[dict]], tune: TuneConfig, number: int) -> list[dict]:
    """Chooses the prompts of a round.

    Tasks take turns, so that all weigh the same, as in GenEval's mean. Successive rounds go through the prompts of a
    task in a shuffled order.
    """
    tasks, chosen = list(tuned), []
    for place in range(number * tune.rollout.prompts, (number + 1) * tune.rollout.prompts):
        turn, index = divmod(place, len(tasks))
        task = tasks[index]
        rows = tuned[task]
        epoch, index = divmod(turn, len(rows))
        order = np.random.default_rng((tune.seed, zlib.crc32(task.encode()), epoch)).permutation(len(rows))
        chosen.append(rows[order[index]])
    return chosen


def to_watch(prompts: Mapping[str, Sequence[dict]], held_out: Mapping[str, Sequence[dict]], count: int) -> dict:
    """Returns {name: rows} of the prompts to measure on, at most `count` per task.

    The name `held_out` has prompts that are held out of tuning; the name `held_out_pairs` has prompts with pairs that
    the corpus itself holds out. A name without prompts is left out.
    """
    pairs = [row for rows in prompts.values() for row in [row for row in rows if row.get("held_out")][:count]]
    named = {"held_out": [row for rows in held_out.values() for row in rows[:count]], "held_out_pairs": pairs}
    return {name: rows for name, rows in named.items() if rows}
