"""Trains many small runs together, each in a folder of its own.

Runs of one study that differ only in the fields `OWN` (formulation, timestep shift, learning rate) share all shapes,
batches and random numbers. So one program trains them all (`cohort_step`). The program is compiled once, and its matrix
products are large enough to keep a device busy. The runs are the members of a cohort. Up to rounding, a member's folder
is the same as if the run were trained alone, and the run may be resumed alone or in the cohort. A member that diverges
ends; the other members go on.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

import jax
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from rfjax import config as schema
from rfjax.config import Config
from rfjax.data.corpus import Corpus
from rfjax.data.loader import batches
from rfjax.errors import ConfigError, Diverged, Preempted, RfjaxError, disk_trouble
from rfjax.training import branches, checkpoint, run_folder
from rfjax.training.checkpoint import Checkpoints, save_again
from rfjax.training.cohort_step import cohort_mesh, make_cohort_step, stack
from rfjax.training.kept_steps import evaluated_steps, keeps, saves
from rfjax.training.loop import claim
from rfjax.training.loss import run_keys
from rfjax.training.metrics import MetricsWriter, Window
from rfjax.training.monitor import Monitor, Rates, Spending
from rfjax.training.power_averages import snapshot_steps, state_of
from rfjax.training.processes import distributed, watch
from rfjax.training.program import abstract_batch, first_state, state_shapes
from rfjax.training.progress import Progress, note
from rfjax.training.run import Run, begin, check_record, describe, write_record
from rfjax.training.snapshots import drop_later, save_snapshot
from rfjax.training.spikes import SpikeDetector
from rfjax.training.step import parameter_groups

# The fields in which members may differ.
OWN = ("formulation", "timestep_shift", "train.learning_rate")


# (step, the members still in training, a function from a member to its weights on the host: {"ema": ..., "raw": ...})
OnCheckpoint = Callable[[int, Sequence[Run], Callable[[Run], dict]], None]


def may_join(config: Config) -> tuple:
    """Returns the values that runs must have in common to be trained together: all fields except those in `OWN`."""
    return tuple(sorted((key, str(value)) for key, value in schema.flatten(config).items() if key not in OWN))


def check_may_be_together(config: Config, corpus: Corpus) -> None:
    """Raises `ConfigError` if the config trains runs together and the corpus has several latent shapes."""
    if config.train.together > 1 and len(corpus.parts) > 1:
        raise ConfigError(
            f"config.train.together is {config.train.together}, and the corpus {corpus.name} has {len(corpus.parts)} "
            "aspect buckets; "
            "runs are trained together on one latent shape: set config.train.together=1"
        )


def train_cohort(
    members: Sequence[Run],
    *,
    on_checkpoint: OnCheckpoint,
    keep_steps: Collection[int] = (),
    stop: Callable[[], bool],
    log_seconds: float = 30.0,
) -> dict[Path, Exception]:
    """Trains every member to its last step, from its newest checkpoint if it has one. Returns {folder: failure} for the
    members that failed.

    All members have the same corpus and network. `on_checkpoint` is called at each evaluated step, once all checkpoints
    are on disk. If members are at different steps, they are divided into parts (`_parts`) that are trained one after
    another. A problem of one member (another config in its folder, damage, divergence) ends only this member. A problem
    of a whole part (a full disk) ends the part. `keep_steps`, `stop` and `log_seconds` are those of `loop.train`.

    Raises `Preempted`, after saving, if `stop` says so; the next start resumes. Raises `ConfigError` for a corpus of
    several latent shapes.
    """
    check_may_be_together(members[0].config, members[0].corpus)
    with contextlib.ExitStack() as folders:
        failures: dict[Path, Exception] = {}
        ahead: list[Run] = []
        for member in members:
            try:
                done = claim(folders, member, None)
                _check_may_start(member)
            except Preempted:
                raise
            except RfjaxError as error:
                failures[member.workdir] = error
            else:
                ahead += [] if done else [member]
        if not ahead:
            return failures
        remedy = "look at that, then give the same command again; it goes on from the last checkpoints"
        name = f"{len(ahead)} runs in {ahead[0].workdir.parent}"
        folders.enter_context(watch.over(ahead[0].config.train.stall_seconds, name, remedy))
        with jax.default_matmul_precision(ahead[0].config.train.matmul_precision):
            while ahead:
                if stop():
                    raise Preempted(f"told to stop before {name} were done; the same command goes on from there")
                part, step = _parts(ahead)[0]
                cohort = _Cohort(part, step, keep_steps)
                try:
                    if not cohort.restore(failures):
                        ahead = [member for member in ahead if member.workdir not in failures]
                        continue  # a checkpoint was damaged, so members are grouped again
                    cohort.train(on_checkpoint, stop, log_seconds)
                except Preempted:
                    raise
                except Exception as error:
                    failures |= dict.fromkeys(
                        (member.workdir for member in cohort.live), disk_trouble(error, part[0].workdir) or error
                    )
                failures |= cohort.failures
                ahead = [member for member in ahead if member not in part]
        return failures


def _check_may_start(member: Run) -> None:
    """Raises `ConfigError` for a run that can only be trained alone, or not at all."""
    record = run_folder.read_run(member.workdir)
    if record and (record["parent"] or record.get("skips")):
        begun = "began with the weights of another run" if record["parent"] else "passed over batches of another run"
        raise ConfigError(f"{member.workdir} {begun}, so it must be trained alone; set --config.train.together=1")
    if record:
        branches.trunk_of_record(member, record)
        check_record(member)
        run_folder.check_corpus(member.workdir, record, member.corpus)


def _parts(members: Sequence[Run]) -> list[tuple[list[Run], int | None]]:
    """Groups the members by the checkpoint that they resume from (None: no checkpoint yet), the earliest step first.

    If a kill came between the saves of two members, some members are one save ahead. They resume from their previous
    checkpoint, if it still exists, so that all members stay in one group. No member goes back by more than
    `train.checkpoint_every` steps.
    """
    saved = {member: checkpoint.steps_saved(member.workdir) or _departure(member) for member in members}
    reach = members[0].config.train.checkpoint_every
    parts: dict[int | None, list[Run]] = {}
    for member in sorted(members, key=lambda member: max(saved[member], default=-1)):
        newest = max(saved[member], default=None)
        first = next((step for step in parts if step in saved[member] and newest - step <= reach), newest)
        parts.setdefault(first, []).append(member)
    order = {member: place for place, member in enumerate(members)}
    return [(sorted(part, key=order.__getitem__), step) for step, part in parts.items()]


def _departure(member: Run) -> list[int]:
    """Returns the steps from which a member without checkpoints can start: for a branch the step at which it leaves its
    trunk; none for any other run."""
    return [member.trunk.step] if member.trunk else []


class _Quiet(Progress):
    """A member's progress: shows no bar, and passes notes to the cohort's progress, with the member's name."""

    def __init__(self, name: str, progress: Progress):
        self._name, self._progress = name, progress

    def note(self, text: str) -> None:
        self._progress.note(f"{self._name}: {text}")

    def step(self, step: int) -> None: ...
    def row(self, row: dict) -> None: ...


class _Cohort:
    """One attempt to train the members that resume from the same step."""

    def __init__(self, members: Sequence[Run], step: int | None, keep_steps: Collection[int]):
        self.members, self.shared = list(members), members[0]  # `shared` stands for what all have in common
        self.config = self.shared.config
        self.mesh = cohort_mesh()
        self.first, self.step, self.failures, self.begun = step, step or 0, {}, False
        self.evaluated = evaluated_steps(self.shared)
        self.kept, self.snapshots = self.evaluated | set(keep_steps), snapshot_steps(self.config.train)
        self.abstract = state_shapes(self.shared)
        self.alone = NamedSharding(cohort_mesh(jax.devices()[:1]), P())
        self.records = [run_folder.read_run(member.workdir) or describe(member, None) for member in self.members]

    @property
    def places(self) -> list[int]:
        """The positions, in the stack of states, of the members that are still training."""
        return [place for place, member in enumerate(self.members) if member.workdir not in self.failures]

    @property
    def live(self) -> list[Run]:
        return [self.members[place] for place in self.places]

    def restore(self, failures: dict[Path, Exception]) -> bool:
        """Reads every member's state. Returns False if a checkpoint is damaged.

        In that case, if the member has another checkpoint, the damaged one is set aside; if not, the member is added to
        `failures`.
        """
        if self.first is None:
            state = jax.jit(first_state(self.shared))(run_keys(self.config.seed)[0])
            self.states = stack([state] * len(self.members), self.mesh)
            self.facts = [{}] * len(self.members)
            return True
        target = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=self.alone), self.abstract
        )
        restored = []
        for member in self.members:
            try:
                if member.trunk and not checkpoint.steps_saved(member.workdir):
                    restored.append(branches.restore(member.trunk, target._asdict()))
                else:
                    restored.append(checkpoint.restore_step(member.workdir, self.first, target._asdict()))
            except RfjaxError as error:
                if not checkpoint.steps_saved(member.workdir):
                    failures[member.workdir] = error
                    return False
                if checkpoint.steps_saved(member.workdir) == [self.first]:
                    failures[member.workdir] = RfjaxError(
                        f"{error}. There is no other; move that run's folder away to start it afresh"
                    )
                else:
                    note(f"{error}; it is set aside")
                    checkpoint.set_aside(member.workdir, [self.first])
                return False
        for member in self.members:
            drop_later(member.workdir, self.first, self.snapshots)
            for step in checkpoint.steps_saved(member.workdir):
                if step > self.first:  # training will write this checkpoint again, and the curve's rows up to it
                    checkpoint.drop(member.workdir, step)
        trees, self.facts = zip(*restored, strict=True)
        self.states = stack([state_of(tree) for tree in trees], self.mesh)
        return True

    def train(self, on_checkpoint, stop, log_seconds) -> None:
        """Trains the cohort. Members that diverge are added to `failures`.

        Raises `Preempted`, and any failure that ends all members.
        """
        try:
            self._train(on_checkpoint, stop, log_seconds)
        except BaseException as error:
            state = "stopped" if isinstance(error, Preempted) else "failed"
            for member in self.live:
                with contextlib.suppress(RfjaxError):
                    self._check_folder(member)
                    run_folder.write_status(member.workdir, state, self.step, str(error) or type(error).__name__)
            raise
        for member in self.live:
            run_folder.write_status(member.workdir, "done", self.step)

    def _train(self, on_checkpoint, stop, log_seconds):
        train, count = self.config.train, len(self.members)
        for place, member in enumerate(self.members):
            self.records[place] = begin(
                member, self.records[place], self.facts[place], self.step, self.mesh, together=count
            )
            if member.trunk:
                branches.copy_curve(member.trunk, member.workdir)
        self.begun = True
        with contextlib.ExitStack() as stacked:
            names = [record["run"] for record in self.records]
            title = names[0] if count == 1 else f"{names[0]} and {count - 1} more"
            progress = stacked.enter_context(Progress(title, self.step, train.steps, every_seconds=log_seconds))
            if self.shared.trunk and self.step == self.shared.trunk.step:
                progress.note(f"{title}: leaves its trunk at step {self.step} of {train.steps}")
            elif self.step:
                progress.note(f"{title}: resumed at step {self.step} of {train.steps}")
            progress.note(f"{title}: compiling the training step")
            program, states = self._compile(), self.states
            self.states = None  # the program now owns these buffers (donation)

            def spending(seconds, share):
                return Spending(train.batch_size, self.shared.flops_per_image, None, seconds, share)

            spendings = [spending(facts.get("train_seconds", 0.0), 1 / count) for facts in self.facts]
            groups = parameter_groups(self.abstract.params)
            monitors = [
                Monitor(
                    member,
                    Rates(spendings[place], self.step, self.mesh),
                    Window(groups, self.facts[place].get("window")),
                    stacked.enter_context(MetricsWriter(member.workdir, self.step)),
                    _Quiet(names[place], progress),
                    SpikeDetector(self.facts[place].get("spikes")),
                )
                for place, member in enumerate(self.members)
            ]
            clock = spending(0.0, 1.0)
            rates = Rates(clock, self.step, self.mesh)  # for the cohort's line of progress

            def evaluate():
                if self.step in self.evaluated and self.places:
                    host = jax.device_get({"ema": states.ema, "raw": states.params})

                    def weights(member):
                        return jax.tree.map(lambda a: a[self.members.index(member)], host)

                    with contextlib.ExitStack() as paused:
                        for timed in (*spendings, clock):
                            paused.enter_context(timed.paused())
                        on_checkpoint(self.step, self.live, weights)

            def observe(metrics):
                metrics = jax.device_get(metrics)
                for place in self.places:
                    own = jax.tree.map(lambda a, place=place: a[place], metrics)
                    try:
                        monitors[place].observe(self.step, own, lambda place=place: self._params(states, place))
                    except Diverged as error:
                        self._ended(place, error, progress)
                progress.step(self.step)
                if self.step % train.log_every == 0 or self.step == train.steps:
                    losses = metrics.loss[self.places]
                    finite = losses[np.isfinite(losses)]
                    mean = float(finite.mean()) if len(finite) else None
                    progress.row({"step": self.step, "loss": mean} | rates.at(self.step, len(self.places)))

            if self.step:
                evaluate()
            pending, stopping = None, stop()
            for batch in () if stopping else self._batches():
                states, metrics = program(states, batch, np.int32(self.step))
                if pending is not None:
                    observe(pending)
                pending, self.step = metrics, self.step + 1
                stopping = stop()
                if stopping or self._saves(self.step):
                    observe(pending)
                    pending = None
                    self._save(states, monitors, progress)
                if stopping or not self.places:
                    break
                evaluate()
        self._leave_out_gone(progress)
        if stopping and self.places:
            raise Preempted(f"told to stop at step {self.step} of {train.steps}; the same command goes on from there")

    def _ended(self, place, error, progress):
        workdir = self.members[place].workdir
        self.failures[workdir] = error
        run_folder.write_status(workdir, "diverged", self.step, str(error))
        progress.note(f"{self.records[place]['run']}: {error}")

    def _compile(self):
        step = make_cohort_step(self.members, self.mesh, self.abstract.params)
        batch = abstract_batch(self.shared, NamedSharding(self.mesh, P()))
        return distributed.compiled("the training step", step.lower(self.states, batch, np.int32(0)))

    def _params(self, states, place):
        return jax.tree.map(lambda leaf: np.asarray(leaf[place]), states.params)

    def _batches(self):
        whole = NamedSharding(self.mesh, P())
        size, steps = self.config.train.batch_size, self.config.train.steps
        for batch in batches(self.shared.corpus, batch_size=size, start_step=self.step, stop_step=steps):
            yield jax.device_put(batch, whole)

    def _saves(self, step):
        return saves(self.config.train, self.kept, self.snapshots, step)

    def _keeps(self, step):
        return keeps(self.config.train, self.kept, step)

    def _check_folder(self, member):
        if self.begun:
            run_folder.check_still_there(member.workdir, self.records[self.members.index(member)])

    def _leave_out_gone(self, progress):
        """Ends the members whose folders were moved or removed, and adds them to the failures. The others go on."""
        for member in self.live:
            try:
                self._check_folder(member)
            except RfjaxError as error:
                self.failures[member.workdir] = error
                progress.note(str(error))

    def _save(self, states, monitors, progress):
        self._leave_out_gone(progress)
        host = jax.device_get(states)
        for place in self.places:
            member = self.members[place]
            monitors[place].sync()  # rows first: a run that resumes from this checkpoint keeps the rows before it
            facts = monitors[place].facts(self.step)
            watch.beat()
            state = jax.device_put(jax.tree.map(lambda leaf, place=place: leaf[place], host), self.alone)

            def save(_, member=member, state=state, facts=facts):
                with Checkpoints(member.workdir, keep_last=self.config.train.keep_last, kept=self._keeps) as writer:
                    save_snapshot(member.workdir, state, self.step, facts, self.snapshots)
                    writer.save(state, self.step, facts)

            save_again(save, progress.note)
            self.records[place] = write_record(member, self.records[place], facts, self.step)
