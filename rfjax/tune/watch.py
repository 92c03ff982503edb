"""Measures a tuning on prompts that it never uses, to reveal reward hacking.

The measures are the trained reward, a reward that is not trained on, and diversity. A row of `held_out.jsonl` has one
measure on one set of prompts, with one guidance scale, at one step. The images of all steps start from the same noise,
so two steps are compared prompt by prompt.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float

from rfjax.config import SamplerConfig
from rfjax.evaluation.generate import prompt_ids
from rfjax.training.processes import distributed
from rfjax.training.run import Run
from rfjax.tune import held_out
from rfjax.tune.config import TuneConfig
from rfjax.tune.held_out import Row, task_mean
from rfjax.tune.rewards import RewardFn
from rfjax.tune.rollouts import generator


def diversity(images: Float[np.ndarray, "prompts images h w 3"]) -> Float[np.ndarray, " prompts"]:
    """The root-mean-square difference in pixels between two images of a prompt, averaged over pairs of images."""
    flat = np.asarray(images, np.float64).reshape(*images.shape[:2], -1)
    first, second = np.triu_indices(images.shape[1], 1)
    return np.sqrt(np.square(flat[:, first] - flat[:, second]).mean(axis=2)).mean(axis=1)


class Watch:
    """Measures a tuning at the steps that its config names. Steps whose rows exist are not measured again."""

    def __init__(
        self,
        run: Run,
        tune: TuneConfig,
        prompts: Mapping[str, Sequence[dict]],
        rewards: Mapping[str, RewardFn],
        programs: dict,
    ):
        self._run, self._tune, self._prompts, self._rewards, self._programs = run, tune, prompts, rewards, programs
        self._done = {row["step"] for row in distributed.from_first(lambda: held_out.read(run.workdir))}

    @property
    def samplers(self) -> list[SamplerConfig]:
        """The base run's sampler, and, if the config asks for it, the same sampler without guidance."""
        own = self._run.config.evaluation.sampler
        plain = SamplerConfig(**{**vars(own), "guidance_scale": 1.0})
        return [own, plain] if self._tune.watch.unguided and own.guidance_scale != 1 else [own]

    def due(self, step: int) -> bool:
        every = self._tune.watch.every
        return step in (0, self._tune.steps) or bool(every) and step % every == 0

    def __call__(self, step: int, params) -> None:
        """Measures the network at `step` if a measurement is due there; `params()` returns the network's parameters."""
        if not self.due(step) or step in self._done:
            return
        rows = [row for sampler in self.samplers for row in self._measure(step, params(), sampler)]
        if distributed.is_first():
            held_out.add(self._run.workdir, rows)
        self._done.add(step)

    def _measure(self, step, params, sampler) -> list[Row]:
        watch, corpus = self._tune.watch, self._run.corpus
        generate = generator(self._run, sampler, self._tune.rollout.batch_size, self._programs)
        rows = []
        for name, prompts in self._prompts.items():
            count = watch.images_per_prompt
            ids = prompt_ids(len(prompts), count)
            conditions = corpus.encode([row["prompt"] for row in prompts]).rows(ids[:, 0])
            images = corpus.to_images(generate(params, np.uint32(watch.seed), ids, conditions))
            of_image, tasks = [prompts[index] for index in ids[:, 0]], [row["tag"] for row in prompts]
            values = {
                reward: function(images, of_image).reshape(-1, count).mean(axis=1)
                for reward, function in self._rewards.items()
            }
            values["diversity"] = diversity(images.reshape(-1, count, *images.shape[1:]))
            for measure, each in values.items():
                by_task = {task: [float(v) for v, t in zip(each, tasks, strict=True) if t == task] for task in tasks}
                value, low, high = task_mean(by_task)
                about = {"step": step, "prompts": name, "guidance_scale": sampler.guidance_scale, "measure": measure}
                numbers = {"value": value, "low": low, "high": high, "images": len(images), "by_task": by_task}
                rows.append({**about, **numbers})
        return rows
