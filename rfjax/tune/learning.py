"""Gives a tuning to the training loop as a `Work`: its state, its step and its batches."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Int

from rfjax.flow.objective import draw
from rfjax.flow.resolution import formulation_at
from rfjax.flow.samplers import EVALUATIONS_PER_STEP
from rfjax.models import lora
from rfjax.models.flops import forward_flops, training_flops
from rfjax.training import adapted
from rfjax.training.loss import ExampleLosses, run_keys
from rfjax.training.mesh import places_here, put_batch, shardings
from rfjax.training.optimizer import make_optimizer
from rfjax.training.processes import distributed
from rfjax.training.run import Run
from rfjax.training.run_folder import AdapterFacts
from rfjax.training.state import Optimizer
from rfjax.training.step import step_parts
from rfjax.training.work import Work
from rfjax.tune.config import TuneConfig, to_dict
from rfjax.tune.method import Draws, Networks, take
from rfjax.tune.methods import METHODS
from rfjax.tune.rollouts import noise_seed
from rfjax.tune.state import TuneState, init_tuning


def tuning_key(tune: TuneConfig) -> jax.Array:
    """Returns the random key from which a tuning's training steps draw t and noise.

    Tunings with the same seed draw the same t and noise, whatever the method.
    """
    return run_keys(tune.seed)[1]


def optimizer_of(run: Run) -> Optimizer:
    """AdamW with the settings of the tuned run's config, and with one rate for all factors.

    The parametrisation of the network does not apply, because it has no rules for an adapter.
    """
    return make_optimizer(replace(run.config, model=replace(run.config.model, parametrization="standard")))


def make_loss(run: Run, tune: TuneConfig) -> Callable:
    """Returns `loss(adapter, base, sampler, batch, step, places) -> (mean loss, ExampleLosses)`.

    Three networks share the parameters `base`. The policy has `adapter` merged into them, the sampling policy has
    `sampler` merged into them, and the reference has no adapter. There is no condition dropout.
    """
    method, key, scale = METHODS[tune.method], tuning_key(tune), tune.scale
    sampler_config = tune.sampler(run.config.evaluation.sampler)
    shape = run.corpus.shapes.latents
    formulation = formulation_at(run.config, shape)

    def network(params):
        return lambda *given: run.backbone.apply(params, *given)

    def loss(adapter, base, sampler, batch, step, places):
        base = jax.lax.stop_gradient(base)
        policy = lora.merge(base, adapter, scale)
        old = lora.merge(base, jax.lax.stop_gradient(sampler), scale)
        draws = draw(key, step, places, shape, 1, 0.0)
        t = formulation.density.quantile(draws.u)
        networks = Networks(network(policy), network(base), network(old))
        given = Draws(t, draws.noise, noise_seed(tune))
        losses, t, measures = method.loss(networks, formulation, given, batch, tune, sampler_config)
        return jnp.mean(losses), ExampleLosses(t, losses, jax.lax.stop_gradient(measures))

    return loss


def make_step(run: Run, tune: TuneConfig, abstract: TuneState) -> Callable:
    """Returns `step(state, base, batch) -> (state, metrics)`, not compiled.

    After the last step of a round, the sampling policy's adapter becomes a mixture of itself and the trained adapter,
    in the shares that the method says.
    """
    method, loss, optimizer = METHODS[tune.method], make_loss(run, tune), optimizer_of(run)
    every = tune.rollout.steps_per_round

    def step(state, base, batch):
        def loss_fn(adapter, batch, step, places):
            return loss(adapter, base, state.sampler, batch, step, places)

        parts = step_parts(loss_fn, optimizer, run.config.train, run.mesh, abstract)
        trained, metrics = parts.update(state, *parts.gradients(state.params, batch, state.step))
        ends, number = trained.step % every == 0, trained.step // every
        kept = jnp.where(ends, jnp.asarray(method.kept(tune, number), jnp.float32), 1.0)
        sampler = jax.tree.map(
            # Written in this form, the mixture is exact if the share that is kept is 0 or 1.
            lambda old, new: jnp.where(kept == 1, old, new + kept * (old - new)),
            state.sampler,
            trained.params,
        )
        return trained._replace(sampler=sampler), metrics

    return step


def base_shapes(run: Run):
    """Returns the shapes, dtypes and shardings of the network's parameters."""
    shapes = jax.eval_shape(run.backbone.init, jax.random.key(0))
    return jax.tree.map(_placed, shapes, shardings(run.mesh, shapes))


def _placed(leaf, sharding):
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


@runtime_checkable
class Source(Protocol):
    """Where a tuning's examples come from: `rollouts.Rollouts`, or `voted_pairs.VotedExamples`."""

    facts: Mapping[str, object]  # for run.json

    def examples(self, params: Callable, number: int):
        """Returns the training examples of round `number`. `params()` gives the parameters of the sampling policy, for
        a source that samples images."""

    def rows(self, examples, step: int) -> Int[np.ndarray, " batch"]:
        """Returns the indices of the examples that a step takes."""


class Learning:
    """Makes the `Work` of a tuning, which `rfjax.training.loop.train` trains."""

    def __init__(self, run: Run, tune: TuneConfig, facts: AdapterFacts, source: Source, watch: Callable):
        self._run, self._tune, self._facts, self._source, self._watch = run, tune, facts, source, watch
        shapes = base_shapes(run)
        self._init = functools.partial(init_tuning, base=shapes, rank=tune.lora.rank, optimizer=optimizer_of(run))
        state = jax.eval_shape(self._init, self._init_key)
        self.abstract = jax.tree.map(_placed, state, shardings(run.mesh, state))
        self._base = None

    @property
    def _init_key(self):
        return run_keys(self._tune.seed)[0]

    @property
    def work(self) -> Work:
        count = sum(leaf.size for leaf in jax.tree.leaves(self.abstract.params))
        return Work(
            abstract=self.abstract,
            first_state=self._first_state,
            compile=self._compile,
            batches=self._batches,
            flops_per_image=flops_per_example(self._run, self._tune),
            facts={"adapter": dict(self._facts), "adapter_params": count, "tune": to_dict(self._tune)}
            | dict(self._source.facts),
            alarms=functools.partial(alarms, self._tune),
        )

    def base(self):
        """The base run's parameters on the tuned run's mesh. They are read from disk once."""
        if self._base is None:
            self._base = adapted.restore_base(
                Path(self._run.workdir), self._facts, lambda shapes: shardings(self._run.mesh, shapes)
            )
        return self._base

    def merged(self, adapter):
        """The network's parameters with `adapter` merged into the base run's parameters."""
        return adapted.merged(self.base(), adapter, self._tune.scale)

    def _first_state(self) -> TuneState:
        places = jax.tree.map(lambda leaf: leaf.sharding, self.abstract)
        lowered = jax.jit(self._init, out_shardings=places).lower(self._init_key)
        return distributed.compiled("the adapter", lowered)(self._init_key)

    def _compile(self, note: Callable[[str], None]):
        for rank, kernels in lora.cut_ranks(self.base(), self._tune.lora.rank).items():
            named = ", ".join(kernels[:3]) + (f" and {len(kernels) - 3} more" if len(kernels) > 3 else "")
            note(f"{self._run.name}: rank {rank} in place of {self._tune.lora.rank} for {named}")
        mesh, size = self._run.mesh, self._tune.batch_size
        put = functools.partial(put_batch, mesh, size, places_here(mesh, size))
        step, program = make_step(self._run, self._tune, self.abstract), None
        places = jax.tree.map(lambda leaf: leaf.sharding, self.abstract)

        def take(state, batch):
            nonlocal program
            batch = put(batch)
            if program is None:
                note(f"{self._run.name}: compiling the tuning step")
                outputs = (places, NamedSharding(mesh, P()))
                lowered = jax.jit(step, out_shardings=outputs, donate_argnums=0).lower(state, self.base(), batch)
                program = distributed.compiled("the tuning step", lowered)
            return program(state, self.base(), batch)

        return take

    def _batches(self, first: int, newest: Callable[[], TuneState]) -> Iterator[tuple]:
        """Yields this process's rows of each step's batch.

        The examples of a round are made before its first step. If the run resumes inside a round, the examples of
        this round are made again.
        """
        tune, steps = self._tune, self._tune.steps
        places = places_here(self._run.mesh, tune.batch_size)
        each, examples = tune.rollout.steps_per_round, None
        for step in range(first, steps):
            number, place = divmod(step, each)
            self._watch(step, lambda: self.merged(newest().ema))
            if examples is None or place == 0:
                examples = self._source.examples(lambda: self.merged(newest().sampler), number)
            yield take(examples, self._source.rows(examples, step)[places])


def flops_per_example(run: Run, tune: TuneConfig) -> int:
    """FLOPs for each example of a training step: forward and backward passes, plus the example's share of the FLOPs
    that sample the round's images."""
    forward, both = (count(run.config.model, run.corpus.shapes) for count in (forward_flops, training_flops))
    method = METHODS[tune.method]
    sampler, rollout = tune.sampler(run.config.evaluation.sampler), tune.rollout
    guided = 1 if sampler.guidance_scale == 1 else 2
    plain, trained = (count * (guided if method.stochastic else 1) for count in method.evaluations)
    evaluations = sampler.steps * guided * (1 if method.stochastic else EVALUATIONS_PER_STEP[sampler.method])
    images = rollout.prompts * rollout.images_per_prompt / (rollout.steps_per_round * tune.batch_size)
    images *= not tune.votes.folder  # people voted on images that exist already: none are sampled
    return round(plain * forward + trained * both + images * evaluations * forward)


ALARM_ERRORS = 3.0  # a rise of the error on winners gives a warning if it is more than this many standard errors


def alarms(tune: TuneConfig, row: Mapping) -> Iterable[str]:
    """Yields a warning for a row of DPO's curve in which the policy's error on the winners exceeds the reference's.

    The excess must be more than `ALARM_ERRORS` standard errors, computed over the pairs of the row's steps.
    """
    measures = row.get("measures", {})
    rise, square = measures.get("winner_rise"), measures.get("winner_rise_square")
    if rise is None or square is None:
        return
    pairs = min(tune.log_every, row["step"]) * tune.batch_size
    if rise > ALARM_ERRORS * math.sqrt(max(0.0, square - rise**2) / pairs):
        yield (
            f"step {row['step']}: the policy's error on the winners has risen above the reference's, from "
            f"{measures['winner_error_reference']:.5g} to {measures['winner_error']:.5g}: the policy only moves away "
            "from the losers faster; lower config.learning_rate, raise config.dpo.beta, or stop"
        )
