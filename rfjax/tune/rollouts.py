"""Samples and rewards the images of a round, with the sampling policy's weights."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from jaxtyping import Float, Int

from rfjax.config import SamplerConfig
from rfjax.errors import RfjaxError
from rfjax.evaluation.generate import compile_sampler, generator_of, prompt_ids, whole_batch
from rfjax.evaluation.schedule import Programs
from rfjax.training.run import Run
from rfjax.tune import grpo
from rfjax.tune import prompts as prompt_lists
from rfjax.tune.config import TuneConfig
from rfjax.tune.method import Groups
from rfjax.tune.methods import METHODS
from rfjax.tune.rewards import RewardFn

MOST_DRAWS = 4  # the most times that a round's images are sampled, for other prompts each time, until rewards differ


def noise_seed(tune: TuneConfig) -> np.uint32:
    """The seed of the noise of a tuning's images. Evaluations use another seed, so tuning never sees their images."""
    return np.uint32(zlib.crc32(f"rollouts {tune.seed}".encode()))


def generator(run: Run, sampler: SamplerConfig, batch_size: int, programs: Programs) -> Callable:
    """Returns `generate(params, seed, ids, conditions)`, which samples latents. Evaluations with the same sampler and
    batch size share its compiled program."""
    size = whole_batch(run, batch_size)
    if (sampler, size) not in programs:
        programs[sampler, size] = compile_sampler(
            run.backbone.apply, sampler, run.corpus.shapes.latents, batch_sharding=run.batch_sharding
        )
    return generator_of(run, sampler, size, program=programs[sampler, size])


def path_generator(run: Run, tune: TuneConfig, programs: Programs) -> Callable:
    """Returns `generate(params, seed, ids, conditions)`, which samples by stochastic steps and returns all noisy
    latents of each image: [images, levels, ...]."""
    sampler, size = tune.sampler(run.config.evaluation.sampler), whole_batch(run, tune.rollout.batch_size)
    key = (sampler, size, "paths")
    if key not in programs:
        programs[key] = grpo.compile_paths(
            run.backbone.apply,
            sampler,
            run.corpus.shapes.latents,
            tune.grpo.noise,
            batch_sharding=run.batch_sharding,
        )
    return generator_of(run, sampler, size, program=programs[key])


class Rollouts:
    """Samples the images of rounds. A round's images are a function of (config, number of the round, parameters)."""

    facts: Mapping[str, object] = {}  # none: the config says everything

    def __init__(
        self,
        run: Run,
        tune: TuneConfig,
        tuned: Mapping[str, Sequence[dict]],
        reward: RewardFn,
        programs: Programs,
    ):
        self._run, self._tune, self._tuned, self._reward = run, tune, tuned, reward
        self._stochastic = METHODS[tune.method].stochastic
        if self._stochastic:
            self._generate = path_generator(run, tune, programs)
        else:
            sampler = tune.sampler(run.config.evaluation.sampler)
            self._generate = generator(run, sampler, tune.rollout.batch_size, programs)

    def examples(self, params: Callable, number: int):
        """Returns the method's examples of a round; `params()` gives the parameters of the sampling policy.

        If no group has rewards that differ, images are sampled for other prompts. Raises `RfjaxError` after
        `MOST_DRAWS` such attempts.
        """
        params = params()
        for draw in range(MOST_DRAWS):
            groups = self.groups(params, number + draw * 2**20)
            examples = METHODS[self._tune.method].examples(groups, self._tune)
            if len(examples.latents):
                return examples
        values = sorted(set(groups.rewards.reshape(-1).tolist()))
        said = f"is {values[0]:g} for every image" if len(values) == 1 else "is the same for all images of each prompt"
        raise RfjaxError(
            f"the reward {self._tune.reward} {said} of {MOST_DRAWS} rounds of {groups.rewards.size} images, so there "
            "is nothing to learn from; take a graded reward, or more config.rollout.images_per_prompt"
        )

    def rows(self, examples, step: int) -> Int[np.ndarray, " batch"]:
        """Returns the indices of the examples that a step takes, among the examples of its round."""
        return rows_of_step(self._tune, len(examples.latents), *divmod(step, self._tune.rollout.steps_per_round))

    def groups(self, params, number: int) -> Groups:
        """Samples the images of a round and computes their rewards."""
        tune, corpus = self._tune, self._run.corpus
        rows, count = prompt_lists.of_round(self._tuned, tune, number), tune.rollout.images_per_prompt
        ids = prompt_ids(len(rows), count) + np.array([number * tune.rollout.prompts % 2**30, 0])
        each = np.repeat(np.arange(len(rows)), count)
        conditions = corpus.encode([row["prompt"] for row in rows])
        made = self._generate(params, noise_seed(tune), ids, conditions.rows(each))
        states, latents = (made, made[:, -1]) if self._stochastic else (None, made)
        rewards: Float[np.ndarray, " images"] = self._reward(corpus.to_images(latents), [rows[row] for row in each])
        shape = len(rows), count
        return Groups(
            latents.reshape(*shape, *latents.shape[1:]),
            ids.reshape(*shape, 2).astype(np.int32),
            conditions,
            rewards.reshape(shape),
            None if states is None else states.reshape(*shape, *states.shape[1:]),
        )


def rows_of_step(tune: TuneConfig, examples: int, number: int, place: int) -> np.ndarray:
    """The indices of the examples that a step takes; `place` is the step's number in its round. The steps of a round go
    through all of its examples in a shuffled order, again and again."""
    order = np.random.default_rng((tune.seed, number)).permutation(examples)
    return order[np.arange(place * tune.batch_size, (place + 1) * tune.batch_size) % examples]
