"""Training many small runs together, each in a folder of its own.

Runs of one study that differ in their formulation alone share every shape, every batch and every random
number, so one compiled program trains them (`cohort_step`): compiled once instead of once for each, and
with products large enough to fill a device. A member's folder is that of a run trained alone, to
rounding, and either may be resumed as the other. What a member meets (divergence) ends that member.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec as P

from rfjax import config as schema
from rfjax.config import Config
from rfjax.data.corpus import Corpus
from rfjax.data.loader import batches
from rfjax.errors import ConfigError, Diverged, Preempted, RfjaxError
from rfjax.models import parameter_count
from rfjax.training import checkpoint, hardware, run_folder, watch
from rfjax.training.checkpoint import Checkpoints
from rfjax.training.cohort_step import cohort_mesh, make_cohort_step, stack
from rfjax.training.loop import claim, evaluation_steps
from rfjax.training.loss import run_keys
from rfjax.training.metrics import MetricsWriter
from rfjax.training.monitor import Monitor, Spending
from rfjax.training.optimizer import make_optimizer
from rfjax.training.progress import Progress
from rfjax.training.run_folder import RunFacts
from rfjax.training.state import TrainState, init_state
from rfjax.training.step import parameter_groups

# The fields in which members may differ.
OWN = ("formulation", "timestep_shift")


class Member(NamedTuple):
    config: Config
    workdir: Path
    facts: RunFacts


# (step, the members that go on, a function of a member that gives its {"ema": ..., "raw": ...} on the host)
OnCheckpoint = Callable[[int, Sequence[Member], Callable[[Member], dict]], None]


def may_join(config: Config) -> tuple:
    """What two runs must have in common to be trained together: all but `OWN`."""
    return tuple(sorted((key, str(value)) for key, value in schema.flatten(config).items() if key not in OWN))


def train_cohort(
    members: Sequence[Member],
    *,
    corpus: Corpus,
    backbone,
    on_checkpoint: OnCheckpoint,
    stop: Callable[[], bool],
    log_seconds: float = 30.0,
) -> dict[Path, RfjaxError]:
    """Trains every member from wherever it stands to its last step; the failures by folder.

    `on_checkpoint` is called at each evaluated step with all checkpoints on disk. Members that have no
    checkpoint in common, as after a kill between two saves where one is kept, go on in parts.

    Raises `ConfigError` for a folder of another config, `Preempted` when told to stop, after saving,
    and `RfjaxError` where checkpoints can be neither read nor written: the next start goes on from there.
    """
    with contextlib.ExitStack() as folders:
        failures, ahead = {}, []
        for member in members:
            try:
                done = claim(folders, member.config, member.workdir, backbone, None)
            except (Diverged, ConfigError) as error:
                failures[member.workdir] = error
            else:
                ahead += [] if done else [member]
        if not ahead:
            return failures
        name = f"{len(ahead)} runs in {ahead[0].workdir.parent}"
        remedy = "look at that, then give the same command again; it goes on from the last checkpoints"
        folders.enter_context(watch.over(ahead[0].config.train.stall_seconds, name, remedy))
        for part in _that_start_together(ahead):
            cohort = _Cohort(part, corpus, backbone)
            with jax.default_matmul_precision(part[0].config.train.matmul_precision):
                failures |= cohort.train(on_checkpoint, stop, log_seconds)
        return failures


def _that_start_together(members: Sequence[Member]) -> list[list[Member]]:
    """The members in parts, each with a checkpoint that all in it have, or none at all."""
    saved = {member: frozenset(checkpoint.steps_saved(member.workdir)) for member in members}
    if frozenset.intersection(*saved.values()) or not any(saved.values()):
        return [list(members)]
    newest = {member: max(steps, default=-1) for member, steps in saved.items()}
    return [[m for m in members if newest[m] == step] for step in sorted(set(newest.values()))]


class _Quiet(Progress):
    """A member's progress: what must be said goes to the cohort's, with its name."""

    def __init__(self, name: str, progress: Progress):
        self._name, self._progress = name, progress

    def note(self, text: str) -> None:
        self._progress.note(f"{self._name}: {text}")

    def step(self, step: int) -> None: ...
    def row(self, row: dict) -> None: ...


class _Cohort:
    """One attempt at the runs that start at one step."""

    def __init__(self, members, corpus, backbone):
        self.members, self.corpus, self.backbone = list(members), corpus, backbone
        self.config = self.members[0].config
        self.mesh = cohort_mesh()
        self.step, self.failures = 0, {}
        self.evaluated = evaluation_steps(self.config)
        optimizer = make_optimizer(self.config.train)
        self.init = lambda key: init_state(backbone.init, optimizer, key)
        self.abstract = jax.eval_shape(self.init, run_keys(self.config.seed)[0])
        self.alone = NamedSharding(cohort_mesh(jax.devices()[:1]), P())
        self.records = {member: self._record(member) for member in self.members}

    def _record(self, member):
        record = run_folder.read_json(member.workdir / "run.json")
        if record and record["parent"]:
            raise ConfigError(
                f"{member.workdir} began with the weights of another run, and is to be trained alone: --config.train.together=1"
            )
        record = record or run_folder.describe(
            member.config, member.facts, member.workdir, self.corpus, parameter_count(self.backbone), None
        )
        if record["corpus_fingerprint"] != self.corpus.fingerprint:
            raise ConfigError(
                f"{member.workdir} was trained on another version of the corpus {self.corpus.name}; use another --workdir"
            )
        return record

    @property
    def live(self) -> list[int]:
        """The places of the members that go on."""
        return [place for place, member in enumerate(self.members) if member.workdir not in self.failures]

    def train(self, on_checkpoint, stop, log_seconds) -> dict[Path, RfjaxError]:
        try:
            self._train(on_checkpoint, stop, log_seconds)
        except BaseException as error:
            state = "stopped" if isinstance(error, Preempted) else "failed"
            for place in self.live:
                with contextlib.suppress(RfjaxError):
                    run_folder.write_status(self.members[place].workdir, state, self.step, str(error) or type(error).__name__)
            raise
        for place in self.live:
            run_folder.write_status(self.members[place].workdir, "done", self.step)
        return self.failures

    def _train(self, on_checkpoint, stop, log_seconds):
        states, facts, messages = self._first_states()
        train = self.config.train
        for place, member in enumerate(self.members):
            if not (member.workdir / "config.json").exists():
                run_folder.write_json(member.workdir / "config.json", schema.to_dict(member.config))
            self.records[member] = run_folder.started(self.records[member], self.step, self.mesh) | {
                "trained_together": len(self.members)
            }
            self._write_record(member, facts[place])
            run_folder.write_status(member.workdir, "running", self.step)
        with contextlib.ExitStack() as stacked:
            names = [self.records[member]["run"] for member in self.members]
            title = names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"
            progress = stacked.enter_context(Progress(title, self.step, train.steps, messages, every_seconds=log_seconds))
            progress.note(f"{title}: compiling the training step")
            program = make_cohort_step(
                [member.config for member in self.members], self.backbone.apply, self.corpus.shapes.encoders, self.mesh,
                self.abstract.params,
            )  # fmt: skip
            spendings = [
                Spending(train.batch_size, member.facts.flops_per_image, None, facts[place].get("train_seconds", 0.0),
                         share=1 / len(self.members))
                for place, member in enumerate(self.members)
            ]  # fmt: skip
            peak = hardware.peak_flops([device.device_kind for device in self.mesh.devices.flat])
            monitors = [
                Monitor(
                    train, member.workdir, spendings[place], None, step=self.step,
                    groups=parameter_groups(self.abstract.params), window=facts[place].get("window"), peak_flops=peak,
                    writer=stacked.enter_context(MetricsWriter(member.workdir, self.step)),
                    progress=_Quiet(names[place], progress),
                )
                for place, member in enumerate(self.members)
            ]  # fmt: skip
            pace = _Pace(self.step, train.batch_size, self.members[0].facts.flops_per_image, peak)

            def evaluate():
                if self.step in self.evaluated and self.live:
                    host = jax.device_get({"ema": states.ema, "raw": states.params})
                    weights = lambda member: jax.tree.map(lambda a: a[self.members.index(member)], host)
                    with contextlib.ExitStack() as paused:
                        for spending in (*spendings, pace):
                            paused.enter_context(spending.paused())
                        on_checkpoint(self.step, [self.members[place] for place in self.live], weights)

            def observe(metrics):
                metrics = jax.device_get(metrics)
                for place in self.live:
                    own = jax.tree.map(lambda a: a[place], metrics)
                    try:
                        monitors[place].observe(self.step, own, lambda place=place: self._params(states, place))
                    except Diverged as error:
                        self._ended(place, error, progress)
                progress.step(self.step)
                if self.step % train.log_every == 0 or self.step == train.steps:
                    progress.row(pace.row(self.step, metrics.loss[self.live], len(self.live)))

            if self.step:
                progress.note(f"{title}: resumed at step {self.step} of {train.steps}")
                evaluate()
            pending, stopping = None, stop()
            for batch in () if stopping else self._batches():
                states, metrics = program(states, batch, np.int32(self.step))
                if pending is not None:
                    observe(pending)
                pending, self.step = metrics, self.step + 1
                stopping = stop()
                if stopping or self.step % train.checkpoint_every == 0 or self._keeps(self.step):
                    observe(pending)
                    pending = None
                    self._save(states, monitors, spendings)
                if stopping or not self.live:
                    break
                evaluate()
        if stopping and self.live:
            raise Preempted(f"told to stop at step {self.step} of {train.steps}; the same command goes on from there")

    def _ended(self, place, error, progress):
        member = self.members[place]
        self.failures[member.workdir] = error
        run_folder.write_status(member.workdir, "diverged", self.step, str(error))
        progress.note(f"{self.records[member]['run']}: {error}")

    def _first_states(self):
        """(stacked states, each member's facts, messages) of the newest checkpoint that all have, or new."""
        messages, step = [], None
        while step is None:
            common = frozenset.intersection(*(frozenset(checkpoint.steps_saved(m.workdir)) for m in self.members))
            if not common:
                key, _ = run_keys(self.config.seed)
                first = jax.jit(self.init)(key)
                return stack([first] * len(self.members), self.mesh), [{}] * len(self.members), messages
            step, restored = max(common), []
            for member in self.members:
                if checkpoint.read_facts(member.workdir, step).get("weights_alone"):
                    raise ConfigError(f"{member.workdir} was imported, and is to be trained alone: --config.train.together=1")
                try:
                    restored.append(checkpoint.restore_step(member.workdir, step, self._target()))
                except RfjaxError as error:
                    checkpoint.set_aside(member.workdir, [step])
                    messages.append(f"{error}; all {len(self.members)} fall back to an earlier checkpoint")
                    step = None
                    break
        self.step = step
        trees, facts = zip(*restored)
        return stack([TrainState(**tree) for tree in trees], self.mesh), list(facts), messages

    def _target(self):
        target = lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=self.alone)
        return jax.tree.map(target, self.abstract)._asdict()

    def _params(self, states, place):
        return jax.tree.map(lambda leaf: np.asarray(leaf[place]), states.params)

    def _batches(self):
        whole = NamedSharding(self.mesh, P())
        size, steps = self.config.train.batch_size, self.config.train.steps
        for batch in batches(self.corpus, batch_size=size, start_step=self.step, stop_step=steps):
            yield jax.device_put(batch, whole)

    def _keeps(self, step):
        every = self.config.train.keep_every
        return step in self.evaluated or (every > 0 and step % every == 0)

    def _save(self, states, monitors, spendings):
        host = jax.device_get(states)
        for place in self.live:
            member = self.members[place]
            monitors[place].sync()
            facts = {"schema": 1, "step": self.step} | spendings[place].at(self.step)
            facts |= {"skipped_in_row": monitors[place].skipped_in_row, "window": monitors[place].window.sums()}
            watch.beat()
            if self.step not in checkpoint.steps_saved(member.workdir):  # a member may be ahead after a kill
                state = jax.device_put(jax.tree.map(lambda leaf: leaf[place], host), self.alone)
                with Checkpoints(member.workdir, keep_last=self.config.train.keep_last, kept=self._keeps) as writer:
                    writer.save(state, self.step, facts)
                    writer.wait()
            self._write_record(member, facts)

    def _write_record(self, member, facts):
        self.records[member] |= {"step": self.step} | (checkpoint.spent(facts) if facts else {})
        run_folder.write_json(member.workdir / "run.json", self.records[member])


class _Pace:
    """What the cohort's line of progress says of speed."""

    def __init__(self, step, batch_size, flops_per_image, peak):
        self._batch, self._flops, self._peak = batch_size, flops_per_image, peak
        self._step, self._at = step, time.monotonic()

    @contextlib.contextmanager
    def paused(self):
        began = time.monotonic()
        try:
            yield
        finally:
            self._at += time.monotonic() - began

    def row(self, step, losses, members) -> dict:
        now = time.monotonic()
        rate = (step - self._step) / max(now - self._at, 1e-9)
        self._step, self._at = step, now
        images = rate * self._batch * members
        flops = images * self._flops or None
        finite = losses[np.isfinite(losses)]
        return {
            "step": step, "loss": float(finite.mean()) if len(finite) else None, "images_per_second": images,
            "steps_per_second": rate, "flops_per_second": flops, "mfu": flops / self._peak if flops and self._peak else None,
        }  # fmt: skip
