"""Computes how many images a run's steps take, and which steps' checkpoints are kept and evaluated."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from rfjax.config import Config, TrainConfig
from rfjax.data.stream import Stream
from rfjax.training.lineage import Skip
from rfjax.training.run import Run


def images_before(stream: Stream, stream_offset: int, step: int, skips: Sequence[Skip] = ()) -> tuple[int, ...]:
    """Returns, for each bucket, the number of its images in the first `step` steps of a run.

    The run takes batches from step `stream_offset` of the stream on, and passes over the batches of `skips`.
    """
    total, begun = (0,) * len(stream.sizes), 0
    for ends, skipped in (*skips, Skip(step, 0)):
        ends = min(ends, step)
        before, after = (stream.examples_of_parts(stream_offset + place) for place in (begun, ends))
        total = tuple(sum + new - old for sum, old, new in zip(total, before, after, strict=True))
        begun, stream_offset = ends, stream_offset + skipped
    return total


def evaluation_steps(config: Config, after: int = 0) -> frozenset[int]:
    """Returns the steps after `after` whose checkpoints are evaluated, and therefore never deleted.

    They are the multiples of `every`, `geneval_every` and `temporal.every` in `config.evaluation`, and the last step.
    `every` counts only with validation examples, `temporal.every` only with prompts. For a branch, `after` is the step
    at which it left its trunk.
    """
    evaluation, steps = config.evaluation, config.train.steps
    validated = evaluation.every if evaluation.validation.examples else 0
    of_clips = evaluation.temporal.every if evaluation.temporal.prompts_per_task else 0
    cadences = [every for every in (validated, evaluation.geneval_every, of_clips) if every]
    due = {step for every in cadences for step in range(every, steps + 1, every)}
    return frozenset(step for step in due if step > after) | {steps}


def evaluated_steps(run: Run) -> frozenset[int]:
    """The `evaluation_steps` of a run. Those of a branch come after the step at which it left its trunk."""
    return evaluation_steps(run.config, run.trunk.step if run.trunk else 0)


def saves(train: TrainConfig, kept: Collection[int], snapshots: Collection[int], step: int) -> bool:
    """Whether a step's checkpoint is saved: the step is a multiple of `checkpoint_every`, the step is in `snapshots`,
    or the checkpoint is kept."""
    return step % train.checkpoint_every == 0 or step in snapshots or keeps(train, kept, step)


def keeps(train: TrainConfig, kept: Collection[int], step: int) -> bool:
    """Whether a step's checkpoint is never deleted: the step is in `kept`, or a multiple of `keep_every`."""
    return step in kept or (train.keep_every > 0 and step % train.keep_every == 0)
