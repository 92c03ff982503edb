"""Floors: scores that a model gets without doing the task. Only a score above its floors shows that the model can do
the task.

There are three sorts of floors: the scores of the model's clips with their frames in another order, of its clips judged
by another prompt, and of clips made without a caption. For example, if clips are judged correct as often backwards as
forwards, they do not show that the model can do a task about order. The table `FLOORS` lists the floors of each task.
It leaves out orders that change nothing: a clip without motion is the same in any order, and a bounce is the same
backwards.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Int

from rfjax.data import hashing
from rfjax.data.motion_worlds import AT_REST, TASKS


def _shuffled(frames: int, clip: int) -> np.ndarray:
    """Returns a permutation of the frames that depends on the clip's number, and is neither the original order nor its
    reverse. For two frames the reverse is returned, because no other permutation is left."""
    for again in range(100):
        order = np.argsort(hashing.uniforms(hashing.key("shuffled", clip, again), np.arange(frames), 1)[:, 0])
        if frames > 2 and not (np.all(np.diff(order) == 1) or np.all(np.diff(order) == -1)):
            return order
    return np.arange(frames)[::-1]


# floor -> function of (number of frames, the clip's number) that gives the order of the frames
ORDERS: dict[str, Callable[[int, int], np.ndarray]] = {
    "reversed": lambda frames, clip: np.arange(frames)[::-1],
    "shuffled": _shuffled,
    "first_held": lambda frames, clip: np.zeros(frames, int),
}
OTHER_PROMPTS = "other_prompts"  # the clip as it is, judged by the next other prompt of its task
NOTHING = "null"  # a clip that a model makes under the null condition, judged by a prompt

FLOORS: dict[str, tuple[str, ...]] = {
    task: (
        *(name for name in ORDERS if task not in ("still", "position") and (task, name) != ("bounce", "reversed")),
        OTHER_PROMPTS,
        NOTHING,
    )
    for task in TASKS
}

# The two groups are scored apart, because a model that only makes stills does well in "still", whatever the prompt.
GROUPS: dict[str, tuple[str, ...]] = {
    "moving": tuple(task for task in TASKS if task not in AT_REST),
    "still": AT_REST,
}


def order_of(floor: str, frames: int, clip: int) -> Int[np.ndarray, " frames"]:
    """Returns the numbers of a clip's frames in the order in which a floor shows them. `clip` is the clip's number."""
    return ORDERS[floor](frames, clip)


def other_prompts(rows: Sequence[dict]) -> list[int | None]:
    """Returns for each row the index of the next row of its task that has a different prompt, or None if the task has
    only one prompt. After the last row the search goes on from the first."""
    result = []
    for index, row in enumerate(rows):
        following = (*range(index + 1, len(rows)), *range(index))
        mine = (i for i in following if rows[i]["tag"] == row["tag"] and rows[i]["prompt"] != row["prompt"])
        result.append(next(mine, None))
    return result
