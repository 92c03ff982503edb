"""Watches a run: turns each step's metrics into rows of the curve and progress, and raises `Diverged` if need be."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import jax
import optax
from jax.sharding import Mesh

from rfjax.errors import Diverged, RfjaxError
from rfjax.training import checkpoint, hardware
from rfjax.training.bucket_losses import BucketLosses
from rfjax.training.diagnostics import Diagnostics
from rfjax.training.lineage import Parent
from rfjax.training.metrics import MetricsWriter, Window
from rfjax.training.progress import Progress
from rfjax.training.run import Run
from rfjax.training.spikes import SpikeDetector
from rfjax.training.state import Params
from rfjax.training.step import StepMetrics

SKIPPED_BEYOND = 100  # the command in a warning (`way_back`) skips batches until this many steps after the warning


class Spending:
    """Counts what a run has cost up to a step.

    Images and FLOPs include those of the run's ancestors. Seconds include those of earlier attempts at this run.

    `batch_size` and `flops_per_image` are numbers if all steps cost the same. Else they are functions of a step, and
    return a sum over all steps before it. `batch_size(step)` is the number of images. `flops_per_image(step)` is the
    FLOPs of these images if `batch_size` is also a function; if `batch_size` is a number, it is the FLOPs of one image
    for each step. If several runs are trained together, `share` is the fraction of the time that is counted for this
    run.
    """

    def __init__(
        self,
        batch_size: int | Callable[[int], int],
        flops_per_image: int | Callable[[int], int],
        parent: Parent | None,
        seconds: float,
        share: float = 1.0,
    ):
        flops = flops_per_image if callable(flops_per_image) else lambda step: step * flops_per_image
        if callable(batch_size):
            self.own_images, self.own_flops = batch_size, flops
        else:
            self.own_images, self.own_flops = lambda step: step * batch_size, lambda step: flops(step) * batch_size
        self._images = parent.images if parent else 0
        self._flops = parent.flops if parent else 0.0
        self.share, self._zero = share, time.monotonic() - seconds / share

    @contextlib.contextmanager
    def paused(self):
        """Stops the clock of training seconds, as for an evaluation."""
        began = time.monotonic()
        try:
            yield
        finally:
            self._zero += time.monotonic() - began

    def at(self, step: int) -> dict:
        return {
            "images": self._images + self.own_images(step),
            "flops": self._flops + self.own_flops(step),
            "train_seconds": (time.monotonic() - self._zero) * self.share,
        }


class Rates:
    """Measures steps, images and FLOPs per second of training time, and the MFU, since the last call of `at`."""

    def __init__(self, spending: Spending, step: int, mesh: Mesh):
        self.spending, self._from = spending, (step, spending.at(step)["train_seconds"])
        self._peak = hardware.peak_flops([device.device_kind for device in mesh.devices.flat])

    def at(self, step: int, runs: int = 1) -> dict:
        """Returns the speed of training since the step of the previous call: steps, images and FLOPs per second, and
        the MFU. If `runs` runs are trained together, their images and FLOPs are summed."""
        seconds = self.spending.at(step)["train_seconds"]
        since_step, since = self._from
        self._from = step, seconds
        wall = (seconds - since) / self.spending.share
        steps_per_second = (step - since_step) / max(wall, 1e-9)
        images = self.spending.own_images(step) - self.spending.own_images(since_step)
        flops = self.spending.own_flops(step) - self.spending.own_flops(since_step)
        flops_per_second = flops * runs / max(wall, 1e-9) or None
        return {
            "steps_per_second": steps_per_second,
            "images_per_second": images * runs / max(wall, 1e-9),
            "flops_per_second": flops_per_second,
            "mfu": flops_per_second / self._peak if flops_per_second and self._peak else None,
        }


class Monitor:
    """Turns the metrics of each step into rows of the curve, lines of progress and warnings.

    `writer` and `progress` are None except in process 0. `spikes` gives warnings of spikes and of a climbing loss. If
    the function `alarms` is given, it makes the warnings from each row of the curve instead. `buckets` averages the
    loss of each latent shape; it is None for a run whose batches do not come from its corpus.
    """

    def __init__(
        self,
        run: Run,
        rates: Rates,
        window: Window,
        writer: MetricsWriter | None,
        progress: Progress | None,
        spikes: SpikeDetector,
        alarms: Callable[[dict], Iterable[str]] | None = None,
        buckets: BucketLosses | None = None,
    ):
        self._spikes, self._buckets = spikes, buckets
        self._config, self._workdir, self._rates = run.config.train, run.workdir, rates
        self.window, self._writer, self._progress, self._alarms = window, writer, progress, alarms
        self.skipped_in_row = 0

    def observe(self, step: int, metrics: StepMetrics, params: Callable[[], Params]) -> None:
        """Takes the metrics of the update that ended at `step`, once the device has finished it.

        `params()` waits until every checkpoint is on disk, and returns the parameters of that step or a later one.
        Raises `Diverged` if too many steps in a row were not finite.
        """
        metrics = jax.device_get(metrics)
        self.window.add(metrics)
        if self._buckets:
            self._buckets.see(step, metrics)
        seen = {"loss": float(metrics.loss), "gradient norm": float(metrics.grad_norm)}
        if not self._alarms:
            self._warn(step, self._spikes.see(step, seen))
        self.skipped_in_row = int(metrics.skipped_in_row)
        if self.skipped_in_row:
            self.note(f"step {step}: loss {metrics.loss:g}, gradient norm {metrics.grad_norm:g}: skipped")
        if self.skipped_in_row >= self._config.max_skipped_in_row:
            raise self._diverged(step, metrics, params())
        if step % self._config.log_every == 0 or step == self._config.steps:
            self._row(step, metrics)
        if self._progress:
            self._progress.step(step)

    def facts(self, step: int) -> dict:
        """The facts that a checkpoint of `step` holds beside its arrays, so that a resumed run equals this run."""
        facts = {"schema": 1, "step": step} | self._rates.spending.at(step)
        return facts | {
            "skipped_in_row": self.skipped_in_row,
            "window": self.window.sums(),
            "spikes": self._spikes.memory(),
            **(self._buckets.memory() if self._buckets else {}),
        }

    def sync(self) -> None:
        """Waits until every row so far is on disk."""
        if self._writer:
            self._writer.sync()

    def diagnosed(self, step: int, found: Diagnostics) -> None:
        """Writes a row with the diagnostics of the update that ends at `step`."""
        found = jax.device_get(found)
        if self._writer:
            sizes = {name: _rounded(getattr(found, name)) for name in ("largest_logit", "rms")}
            self._writer.write_diagnostics({"step": step} | _rounded({"loss": found.loss}) | sizes)

    def _warn(self, step, warnings) -> None:
        for text in warnings:
            if self._writer:
                self._writer.write_diagnostics({"step": step, "warning": text})
            if self._progress:
                self._progress.note(f"step {step}: {text}{way_back(self._workdir, step)}")

    def note(self, text: str) -> None:
        """Shows a line to whoever follows the run."""
        if self._progress:
            self._progress.note(text)

    def _row(self, step, metrics):
        row = {"step": step} | self.window.close(metrics) | {"skipped": int(metrics.skipped)}
        row |= self._buckets.close() if self._buckets else {}
        row |= self._rates.spending.at(step) | self._rates.at(step)
        if self._writer:
            self._writer.write(row)
        if self._progress:
            self._progress.row(row)
        for alarm in self._alarms(row) if self._alarms else ():
            self.note(alarm)

    def _diverged(self, step, metrics, params) -> Diverged:
        # Where several gradient norms are infinite, the group with the largest parameters is named. The skipped steps
        # have not changed the parameters.
        sizes = jax.jit(lambda params: [optax.tree.norm(params[group]) for group in self.window.groups])(params)
        norms = [norm if math.isfinite(norm) else math.inf for norm in metrics.group_norms.tolist()]
        norm, _, group = max(zip(norms, map(float, sizes), self.window.groups, strict=True))
        good = last_good(self._workdir)
        rate = self._config.learning_rate
        remedy = (
            f"last good checkpoint: step {good}. Start a new run from it with a lower rate: --workdir=ANOTHER "
            f"--init={self._workdir}@{good} --config.train.learning_rate={rate / 2:g}"
            if good is not None
            else "no checkpoint was saved before. Start anew with a lower rate: --workdir=ANOTHER "
            f"--config.train.learning_rate={rate / 2:g}"
        )
        return Diverged(
            f"training diverged: {self.skipped_in_row} non-finite steps in a row up to step {step}; the largest "
            f"gradient norm is that of parameter group {group} ({norm:g}); {remedy}"
        )


def way_back(workdir: Path, step: int) -> str:
    """Returns the end of a warning: the command that goes back to the checkpoint `last_good`, before `step`. Returns ""
    if there is no such checkpoint."""
    good = last_good(workdir)
    if good is None:
        return ""
    again = f"--branch={workdir}@{good} --skip-batches={step - good + SKIPPED_BEYOND} --workdir=ANOTHER"
    return f"; if the run does not recover, go back and pass over these batches: rfjax train {again}"


def _rounded(values: dict) -> dict[str, float | None]:
    """Rounds numbers to seven digits for a row of diagnostics; None replaces numbers that are not finite."""
    return {name: float(f"{value:.7g}") if math.isfinite(value) else None for name, value in values.items()}


def last_good(workdir: Path) -> int | None:
    """The step of the newest readable checkpoint that was not saved during non-finite steps; None if there is none."""
    for step in reversed(checkpoint.steps_saved(workdir)):
        with contextlib.suppress(RfjaxError):
            if checkpoint.read_facts(workdir, step).get("skipped_in_row", 0) == 0:
                return step
    return None
