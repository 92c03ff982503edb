"""Makes the compiled training step of many runs (members) that differ only in the fields `cohort.OWN`.

The states of the members are stacked along a leading axis, which is split over the devices. So each member is whole on
one device, and devices do not wait for each other. All members see the same batch, noise, condition dropout and uniform
numbers that decide t, just as if each were trained alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from rfjax.flow.objective import example_losses, examples_at
from rfjax.flow.resolution import formulation_at
from rfjax.training.loss import ExampleLosses, step_inputs
from rfjax.training.optimizer import make_optimizer
from rfjax.training.power_averages import with_averages
from rfjax.training.run import Run
from rfjax.training.state import State
from rfjax.training.step import make_update, parameter_groups, time_bins

MEMBER = P("member")


def cohort_mesh(devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Makes a mesh with one axis, over which members are split. `devices` are by default all devices."""
    devices = jax.devices() if devices is None else list(devices)
    return jax.make_mesh((len(devices),), ("member",), axis_types=(AxisType.Auto,), devices=devices)


def lanes(members: int, mesh: Mesh) -> list[int]:
    """Returns, for each position in the stack of states, the index of the member whose state stands there.

    All devices get equally many positions. Positions left over repeat the last member; their results are discarded.
    """
    return [min(place, members - 1) for place in range(-(-members // mesh.size) * mesh.size)]


def stack(states: Sequence[State], mesh: Mesh) -> State:
    """Stacks the members' states along a new leading axis, split over the mesh."""
    places = lanes(len(states), mesh)
    host = jax.device_get(list(states))
    whole = jax.tree.map(lambda *leaves: np.stack([leaves[place] for place in places]), *host)
    return jax.device_put(whole, NamedSharding(mesh, MEMBER))


def make_cohort_step(runs: Sequence[Run], mesh: Mesh, abstract_params) -> Callable:
    """Returns the jitted `step(states, batch, number) -> (states, metrics)`. States and metrics have a leading axis of
    members, as `stack` makes it; `states` are donated.

    `number` is the step that decides the random numbers. `abstract_params` are those of one member. A member whose loss
    or gradient is not finite keeps its parameters; the others are not affected.
    """
    shared, apply, encoders = runs[0].config, runs[0].backbone.apply, runs[0].corpus.shapes.encoders
    update = make_update(make_optimizer(shared), shared.train, parameter_groups(abstract_params))
    update = with_averages(update, shared.train)

    def member(state, peak, t, examples, noise, latents, conditions):
        def loss_fn(params):
            losses = example_losses(lambda *given: apply(params, *given), examples, noise, latents, conditions)
            return jnp.mean(losses), ExampleLosses(t, losses)

        (loss, aux), grads = jax.value_and_grad(loss_fn, has_aux=True)(state.params)
        return update(state, grads, loss, time_bins(aux), peak)

    members = jax.vmap(member, in_axes=(0, 0, 0, 0, None, None, None))

    def step(states, batch, number):
        formulations = [formulation_at(runs[place].config, batch.latents.shape[1:]) for place in lanes(len(runs), mesh)]
        peaks = jnp.asarray([runs[place].config.train.learning_rate for place in lanes(len(runs), mesh)], jnp.float32)
        inputs = step_inputs(shared, encoders, batch, number, jnp.arange(shared.train.batch_size, dtype=jnp.int32))
        times = [formulation.density.quantile(inputs.u) for formulation in formulations]
        rows = [examples_at(formulation, t) for formulation, t in zip(formulations, times, strict=True)]
        # A coefficient may be one number for all examples in one formulation, and one number per example in another.
        # Here each coefficient becomes one number per example, so that the rows can be stacked.
        rows = [
            jax.tree.map(lambda number, t=t: jnp.broadcast_to(jnp.float32(number), t.shape), row)
            for row, t in zip(rows, times, strict=True)
        ]
        examples = jax.tree.map(lambda *values: jnp.stack(values), *rows)
        split = jax.shard_map(
            members,
            mesh=mesh,
            in_specs=(MEMBER, MEMBER, MEMBER, MEMBER, P(), P(), P()),
            out_specs=MEMBER,
            check_vma=False,
        )
        return split(states, peaks, jnp.stack(times), examples, inputs.noise, batch.latents, inputs.conditions)

    return jax.jit(step, donate_argnums=0)
