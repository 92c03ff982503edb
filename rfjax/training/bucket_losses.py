"""Averages the training loss of each bucket, if a run has several latent shapes, for the rows of the curve."""

from __future__ import annotations

from collections.abc import Mapping

from rfjax.data.buckets import format_shape, trained_parts
from rfjax.training.run import Run
from rfjax.training.step import StepMetrics


class BucketLosses:
    """Averages the loss of each bucket over the bucket's steps since the last row. Skipped steps do not count.

    The run's step plus `stream_offset` is the step of the stream of batches. `memory` is {bucket: [steps, sum of
    losses]} from the checkpoint that the run resumes from, so that a resumed run writes the same rows.
    """

    def __init__(self, run: Run, stream_offset: int, memory: Mapping[str, list] | None = None):
        corpus, self._schedule, self._offset = run.corpus, run.stream.schedule, stream_offset
        self._names = {part: format_shape(corpus.parts[part].shapes.latents) for part in trained_parts(corpus)}
        self._sums = {name: list(pair) for name, pair in (memory or {}).items()}

    def see(self, step: int, metrics: StepMetrics) -> None:
        """Adds the metrics of the update that ended at `step`. The metrics must be on the host."""
        if len(self._names) > 1 and not metrics.skipped_in_row:
            part, _ = self._schedule.at(step - 1 + self._offset)
            steps, total = self._sums.get(self._names[part], (0, 0.0))
            self._sums[self._names[part]] = [steps + 1, total + float(metrics.loss)]

    def memory(self) -> dict[str, dict]:
        """Returns the facts for a checkpoint, from which a resumed run goes on; empty for a run of one latent shape."""
        return {"bucket_losses": dict(self._sums)} if len(self._names) > 1 else {}

    def close(self) -> dict[str, dict]:
        """Begins new sums. Returns {"loss_by_bucket": {bucket: its mean loss, or None if no step counted}}.

        Returns {} for a run of one latent shape.
        """
        sums, self._sums = self._sums, {}
        if len(self._names) == 1:
            return {}
        means = {name: sums[name][1] / sums[name][0] if name in sums else None for name in self._names.values()}
        return {"loss_by_bucket": means}
