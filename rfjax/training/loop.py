"""Trains a run to its last step, and survives interruptions on the way.

`train`, called again, resumes from the newest undamaged checkpoint. All that a step does is a function of (config,
step), so a run that is killed at any moment and started again ends with the same bits.
"""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Callable, Collection
from pathlib import Path
from typing import NamedTuple

import jax

from rfjax.data.buckets import format_shape, trained_parts
from rfjax.data.loader import batches
from rfjax.errors import ConfigError, Diverged, Preempted, RfjaxError, disk_trouble
from rfjax.training import branches, checkpoint, lineage, power_averages, run_folder
from rfjax.training.bucket_losses import BucketLosses
from rfjax.training.checkpoint import Checkpoints, SaveFailed, save_again
from rfjax.training.diagnostics import compile_diagnostics, network_advice
from rfjax.training.kept_steps import evaluated_steps, images_before, keeps, saves
from rfjax.training.loss import run_keys
from rfjax.training.mesh import check_batch, places_here, put_batch
from rfjax.training.metrics import MetricsWriter, Window
from rfjax.training.monitor import Monitor, Rates, Spending
from rfjax.training.processes import distributed, watch
from rfjax.training.processes.preemption import StopSignal
from rfjax.training.program import abstract_state, first_state, inherited_state, lower_train_step
from rfjax.training.progress import Progress
from rfjax.training.run import Run, begin, check_record, describe, write_record
from rfjax.training.snapshots import drop_later, save_snapshot
from rfjax.training.spikes import SpikeDetector
from rfjax.training.state import State
from rfjax.training.step import parameter_groups
from rfjax.training.work import Work

OnCheckpoint = Callable[[int, State], None]


class TrainResult(NamedTuple):
    step: int
    state: State | None  # None if the run was done before
    images: int  # seen by the run and its ancestors
    flops: float  # spent on training the run and its ancestors
    train_seconds: float
    messages: tuple[str, ...]  # one for each damaged checkpoint passed over


def train(
    run: Run,
    *,
    init_from: str | None = None,
    on_checkpoint: OnCheckpoint | None = None,
    keep_steps: Collection[int] = (),
    stop: Callable[[], bool] | None = None,
    log_seconds: float = 30.0,
    work: Work | None = None,
) -> TrainResult:
    """Trains a run in its folder to its last step. If the folder has a checkpoint, training resumes from it.

    `init_from` is `RUN@STEP`, whose weights a new run starts with. `on_checkpoint(step, state)` is called for each
    evaluated step, once its checkpoint is on disk; if the call is interrupted, the next attempt repeats it.
    `keep_steps` are further steps whose checkpoints are saved and kept. `stop` is polled between steps; by default it
    becomes true on SIGTERM and SIGINT. If standard error is no terminal, progress is a line every `log_seconds`. `work`
    is what the attempt trains, by default the run's network on its corpus.

    Raises `ConfigError` for a folder of another config, and for a batch or parameters that do not fit the mesh;
    `Preempted`, after saving, if `stop` says so; `Diverged` if too many steps in a row were not finite, and at once in
    a folder where that has happened; `RfjaxError` if another process trains there, or files cannot be read or written.
    """
    workdir, train = run.workdir, run.config.train
    with contextlib.ExitStack() as stack:
        # Process 0 decides for all processes. It refuses another config before it touches the folder.
        done = distributed.from_first(lambda: claim(stack, run, init_from))
        if done:
            return _done_before(workdir, train.steps)
        remedy = f"look at that, then give the same command again; it goes on from the last checkpoint in {workdir}"
        stack.enter_context(watch.over(train.stall_seconds, f"{workdir}{_which_process()}", remedy))
        stop = stop or stack.enter_context(StopSignal())
        attempt = _Attempt(run, init_from, keep_steps, work)
        try:
            with run.computing():
                result = attempt.train(on_checkpoint, stop, log_seconds)
        except BaseException as error:
            told = distributed.explained(error)
            # The same command goes on from each of these states except divergence.
            state = "diverged" if isinstance(told, Diverged) else "stopped" if isinstance(told, Preempted) else "failed"
            with contextlib.suppress(RfjaxError):  # the disk may be what failed
                attempt.check_folder()
                run_folder.write_status(workdir, state, attempt.step, str(told) or type(told).__name__)
            if told is not error:
                raise told from error
            if trouble := disk_trouble(error, workdir):
                raise trouble from error
            raise
        run_folder.write_status(workdir, "done", result.step)
        return result


def claim(stack: contextlib.ExitStack, run: Run, init_from: str | None) -> bool:
    """Claims the run's folder until `stack` ends, or raises as `train` does. Returns whether the run is done."""
    workdir = run.workdir
    run_folder.check_config(workdir, run.config)
    if init_from and not (workdir / "run.json").exists():
        lineage.check_fits(lineage.read_parent(init_from), run)
    if run.trunk and not (workdir / "run.json").exists():
        branches.check_fits(run.trunk, run)
    try:
        workdir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = f"the run's folder {workdir} cannot be made: {error.strerror or error}; give another --workdir"
        raise disk_trouble(error, workdir) or RfjaxError(reason) from None
    stack.enter_context(run_folder.lock(workdir))
    status = run_folder.read_status(workdir)
    if status["state"] == "diverged":
        raise Diverged(status["message"])
    return status["state"] == "done" and run.config.train.steps in checkpoint.steps_saved(workdir)


def _which_process() -> str:
    return f" (process {jax.process_index()} of {jax.process_count()})" if distributed.many() else ""


def _done_before(workdir, step) -> TrainResult:
    saved = checkpoint.read_facts(workdir, step)
    return TrainResult(step, None, saved["images"], saved["flops"], saved["train_seconds"], ())


def _on_first_process(stack, make):
    """In process 0, enters the context manager `make()` on `stack` and returns it; elsewhere returns None."""
    return stack.enter_context(make()) if distributed.is_first() else None


class _Attempt:
    """One attempt to train a run, with the values that its methods share."""

    def __init__(self, run: Run, init_from: str | None, keep_steps: Collection[int], work: Work | None):
        train = run.config.train
        self.run, self.config, self.workdir, self.work = run, run.config, run.workdir, work
        self.step, self.begun = 0, False
        check_batch(run.mesh, train.batch_size, train.accumulate)
        self.places = [places_here(run.mesh, size) for size in run.stream.sizes]
        self.evaluated = evaluated_steps(run)
        self.kept, self.snapshots = self.evaluated | set(keep_steps), power_averages.snapshot_steps(train)
        self.abstract = work.abstract if work else abstract_state(run)
        self.shardings = jax.tree.map(lambda leaf: leaf.sharding, self.abstract)
        record = distributed.from_first(lambda: run_folder.read_run(run.workdir))
        self.parent = self._parent(record, init_from)
        self.record = (record or self._first_record(init_from)) | dict(work.facts if work else {})
        self.skips = lineage.skips_of(self.record)
        self.begins = lineage.stream_offset(self.parent, run.stream)
        self.stream_offset = self.begins + sum(skip.batches for skip in self.skips)
        self.trunk = branches.trunk_of_record(run, self.record)
        check_record(run)
        run_folder.check_corpus(run.workdir, self.record, run.corpus)

    def _parent(self, record, init_from) -> lineage.Parent | None:
        """Returns the parent in run.json (a new branch: its trunk's), else `init_from`. Both must agree."""
        if record is None and self.run.trunk:
            record = distributed.from_first(lambda: run_folder.read_run(Path(self.run.trunk.path)))
        if record is None:
            return lineage.read_parent(init_from) if init_from else None
        recorded = lineage.Parent.of(record["parent"]) if record["parent"] else None
        if init_from and (recorded is None or not recorded.is_named_by(init_from)):
            origin = f"started from {recorded.path}@{recorded.step}" if recorded else "not started from another"
            raise ConfigError(f"--init={init_from}: the run in {self.workdir} was {origin}; use another --workdir")
        return recorded

    def _first_record(self, init_from) -> dict:
        about = describe(self.run, self.parent and self.parent._asdict())
        return about | self._skips(init_from)

    def _skips(self, init_from) -> dict:
        """Returns the field `skips` of a new run.json, in a dict; the dict is empty if no batches are skipped."""

        def make():
            return lineage.new_skips(self.run.trunk, lineage.parse_origin(init_from)[0] if init_from else None)

        return distributed.from_first(make)

    def train(self, on_checkpoint, stop, log_seconds) -> TrainResult:
        state, saved, messages = self._first_state()
        first, steps = self.step, self.config.train.steps
        drop_later(self.workdir, first, self.snapshots)
        self.record = begin(self.run, self.record, saved, first, self.run.mesh)  # nothing is refused after this
        if self.trunk:
            branches.copy_curve(self.trunk, self.workdir)
        self.begun = True
        with contextlib.ExitStack() as stack:
            progress = _on_first_process(
                stack, lambda: Progress(self.record["run"], first, steps, messages, every_seconds=log_seconds)
            )
            checkpoints = stack.enter_context(
                Checkpoints(self.workdir, keep_last=self.config.train.keep_last, kept=self._keeps)
            )
            if progress:
                self._announce(progress)
            take, put = self._compile(progress)
            diagnose = self._compile_diagnostics(progress)
            spending = Spending(*self._costs(), self.parent, saved.get("train_seconds", 0.0))
            rates = Rates(spending, first, self.run.mesh)
            window = Window(parameter_groups(state.params), saved.get("window"))
            writer = _on_first_process(stack, lambda: MetricsWriter(self.workdir, first))
            spikes, alarms = SpikeDetector(saved.get("spikes")), self.work.alarms if self.work else None
            buckets = None if self.work else BucketLosses(self.run, self.stream_offset, saved.get("bucket_losses"))
            monitor = Monitor(self.run, rates, window, writer, progress, spikes, alarms, buckets)

            def observe(metrics, state):
                def params():
                    with contextlib.suppress(RfjaxError):
                        checkpoints.wait()  # the newest checkpoint may not be on disk yet
                    return state.params

                monitor.observe(self.step, metrics, params)

            def evaluate():
                if self.step in self.evaluated and on_checkpoint:
                    self._until_saved(state, checkpoints, monitor)
                    with spending.paused():
                        self.check_folder()
                        on_checkpoint(self.step, state)

            if first:
                evaluate()  # an earlier attempt may have ended after this save, before its evaluation
            pending, stopping = None, stop()
            for batch in () if stopping else self._batches(lambda: state):  # noqa: B023
                batch = put(batch)
                if diagnose and (self.step + 1) % self.config.train.diagnostics_every == 0:
                    if pending is not None:
                        observe(pending, state)
                        pending = None
                    with spending.paused():
                        shape = batch.latents.shape[1:]
                        monitor.diagnosed(self.step + 1, diagnose[shape](state.params, batch, state.step))
                state, metrics = take(state, batch)
                if pending is not None:
                    observe(pending, state)  # one step late, while the device computes the next
                pending, self.step = metrics, self.step + 1
                stopping = stop()
                if stopping or self._saves(self.step) or self._must_save_again(checkpoints):
                    observe(pending, state)
                    pending = None
                    self._save(state, checkpoints, monitor)
                if stopping:
                    break
                evaluate()
            self._until_saved(state, checkpoints, monitor)
            stopping = stopping or stop()  # a signal may have come during the last evaluation
        self.check_folder()
        if stopping and (self.step < steps or on_checkpoint):
            raise Preempted(
                f"told to stop at step {self.step} of {steps} in {self.workdir}; the same command goes on from there"
            )
        spent = spending.at(steps)
        return TrainResult(steps, state, spent["images"], spent["flops"], spent["train_seconds"], messages)

    def _first_state(self) -> tuple[State, dict, tuple[str, ...]]:
        """Returns (state, facts of its checkpoint, messages). The state is that of the newest checkpoint, else of the
        trunk (for a branch), else of `work`, else a new one, with imported or inherited weights if there are any."""
        origin, facts, messages = self.parent, {}, ()
        restored = checkpoint.restore_newest(self.workdir, self.abstract._asdict())
        if restored is not None:
            checkpoint.set_aside(self.workdir, restored.damaged)
            self.step, facts, messages = restored.step, restored.facts, restored.messages
            if restored.tree is not None:
                return type(self.abstract)(**restored.tree), facts, messages
            origin = lineage.Parent(str(self.workdir), self.record["run"], 0, self.parent.images, self.parent.flops)
        elif self.trunk:
            tree, facts = branches.restore(self.trunk, self.abstract._asdict())
            self.step = self.trunk.step
            return power_averages.state_of(tree), facts, messages
        if self.work:
            return self.work.first_state(), facts, messages
        if origin is not None:
            weights = lineage.inherit(origin, self.abstract.params, self.abstract.ema, self.run)
            make, inputs = inherited_state(self.run), weights
        else:
            make, inputs = first_state(self.run), run_keys(self.config.seed)[:1]
        made = distributed.compiled("the first state", jax.jit(make, out_shardings=self.shardings).lower(*inputs))
        return made(*inputs), facts, messages

    def _announce(self, progress) -> None:
        """Says where the run stands, before the wait for the compiler."""
        name, steps = self.record["run"], self.config.train.steps
        if self.trunk and self.step == self.trunk.step:
            progress.note(f"{name}: leaves {self.trunk.run} at step {self.step} of {steps}")
        elif self.step:
            progress.note(f"{name}: resumed at step {self.step} of {steps}")
        elif self.parent:
            progress.note(f"{name}: starts with the weights of {self.parent.path}@{self.parent.step}")
        for advice in () if self.step else network_advice(self.run):
            progress.note(f"{name}: {advice}")

    def _compile(self, progress):
        """Compiles the step for each latent shape. Returns (`take(state, batch) -> (state, metrics)`, `put(batch)`);
        `put` puts this process's part of a batch on its devices."""
        if self.work:
            return self.work.compile(progress.note if progress else lambda text: None), lambda batch: batch
        parts, compiled, puts = trained_parts(self.run.corpus), {}, {}
        for number, part in enumerate(parts, 1):
            run, latents = self.run.on_part(part), self.run.corpus.parts[part].shapes.latents
            which = f" ({number} of {len(parts)}: {format_shape(latents)})" if len(parts) > 1 else ""
            if progress:
                progress.note(f"{self.record['run']}: compiling the training step{which}")
            lowered = lower_train_step(run, stream_offset=self.stream_offset)
            compiled[latents] = distributed.compiled(f"the training step{which}", lowered)
            size, places = self.run.stream.sizes[part], self.places[part]
            puts[latents] = functools.partial(put_batch, self.run.mesh, size, places)
        take = lambda state, batch: compiled[batch.latents.shape[1:]](state, batch)  # noqa: E731
        return take, lambda batch: puts[batch.latents.shape[1:]](batch)

    def _compile_diagnostics(self, progress):
        """Returns {latent shape: compiled diagnostic forward pass}; {} with `work`, or if the config asks for none."""
        if self.work or not self.config.train.diagnostics_every:
            return {}
        if progress:
            progress.note(f"{self.record['run']}: compiling the diagnostics")
        return compile_diagnostics(self.run, stream_offset=self.stream_offset)

    def _costs(self):
        """Returns (images of a step, FLOPs of an image) for `Spending`; for buckets, two functions of the step."""
        if self.work:
            return self.config.train.batch_size, self.work.flops_per_image
        if not self.record.get("buckets"):
            return self.config.train.batch_size, self.record["flops_per_image"]
        each = [bucket["flops_per_image"] for bucket in self.record["buckets"]]
        images = functools.partial(images_before, self.run.stream, self.begins, skips=self.skips)
        return lambda step: sum(images(step)), lambda step: sum(map(math.prod, zip(each, images(step), strict=True)))

    def _batches(self, newest):
        """Yields this process's part of each remaining batch; `newest()` returns the state before the next step."""
        if self.work:
            return self.work.batches(self.step, newest)
        return batches(
            self.run.corpus,
            batch_size=self.run.stream.sizes,
            start_step=self.step + self.stream_offset,
            stop_step=self.config.train.steps + self.stream_offset,
            places=self.places,
        )

    def _saves(self, step: int) -> bool:
        return saves(self.config.train, self.kept, self.snapshots, step)

    def _keeps(self, step: int) -> bool:
        return keeps(self.config.train, self.kept, step)

    def check_folder(self) -> None:
        """Raises `RfjaxError` if the run's folder was moved or removed since this attempt began."""
        if self.begun:
            run_folder.check_still_there(self.workdir, self.record)

    def _save(self, state, checkpoints, monitor) -> None:
        self.check_folder()
        monitor.sync()  # rows first: a run that resumes from this checkpoint keeps the rows before it
        facts = monitor.facts(self.step)

        def save(again):
            if again:
                checkpoints.open_again()
            save_snapshot(self.workdir, state, self.step, facts, self.snapshots, checkpoints.wait)
            checkpoints.save(state, self.step, facts)
            if again:
                checkpoints.wait()

        save_again(save, monitor.note)
        self.record = write_record(self.run, self.record, facts, self.step)

    def _must_save_again(self, checkpoints) -> bool:
        """Whether a background save failed and must be repeated. False between log steps and with many processes."""
        if distributed.many() or self.step % self.config.train.log_every:
            return False
        try:
            checkpoints.check()
        except SaveFailed:
            return True
        return False

    def _until_saved(self, state, checkpoints, monitor) -> None:
        try:
            checkpoints.wait()
        except SaveFailed as error:
            if distributed.many() or not error.may_pass:
                raise
            monitor.note(str(error))
            checkpoints.open_again()
            self._save(state, checkpoints, monitor)
            checkpoints.wait()
