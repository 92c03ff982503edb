"""Power-function averages of the parameters, from which an average of another width is made after training.

After T steps such an average weighs the parameters of step t by t^gamma. Its width, sigma_rel, is the standard
deviation of t under these weights, divided by T. So the width is a fixed share of the run, whatever the run's length.
`train.power_averages` lists the widths whose averages are kept while training; `snapshots.py` stores these averages
from time to time, and makes averages of other widths.

Karras et al. 2024, "Analyzing and Improving the Training Dynamics of Diffusion Models" (EDM2, arXiv 2312.02696),
section 3 and appendix C.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from rfjax.config import TrainConfig
from rfjax.training.state import OptState, Params, TrainState


class AveragedState(NamedTuple):
    """A `TrainState` with power-function averages."""

    step: Int[Array, ""]
    params: Params
    ema: Params
    opt_state: OptState
    skipped: Int[Array, ""]
    skipped_in_row: Int[Array, ""]
    power: dict[str, Params]  # `name_of` a width -> the average of this width
    power_step: Int[Array, ""]  # the step after which the averages were last updated; 0 before the first update


class Snapshot(NamedTuple):
    """The part of a state that a snapshot holds."""

    power: dict[str, Params]
    power_step: Int[Array, ""]


def name_of(width: float) -> str:
    """The name under which a state holds the average of a width: "rel0p05"."""
    return f"rel{width:g}".replace(".", "p")


def exponent_of(width: float) -> float:
    """Returns gamma, the exponent of the weights t^gamma whose relative standard deviation (sigma_rel) is `width`.

    With g for gamma and w for `width`, EDM2, equation 123, is w = sqrt(g + 1) / ((g + 2) sqrt(g + 3)). So gamma is the
    largest root of g^3 + 7 g^2 + (16 - w^-2) g + (12 - w^-2).
    """
    squared = width**-2
    return float(np.roots([1.0, 7.0, 16.0 - squared, 12.0 - squared]).real.max())


def begin(state: TrainState, config: TrainConfig) -> TrainState | AveragedState:
    """Adds the config's power-function averages to a state at step 0. Until their first update they equal the
    parameters."""
    if not config.power_averages:
        return state
    power = {name_of(width): jax.tree.map(jnp.copy, state.params) for width in config.power_averages}
    return AveragedState(*state, power, jnp.zeros((), jnp.int32))


def state_of(tree: dict) -> TrainState | AveragedState:
    """The state with the fields of a checkpoint's tree."""
    return (AveragedState if "power" in tree else TrainState)(**tree)


def update_weight(exponent: float, step: Int[Array, "*n"], since: Int[Array, "*n"]) -> Float[Array, "*n"]:
    """Returns the weight of the newest parameters in an update after `step` steps: 1 - (1 - D / t)^(gamma + 1).

    t is `step` and gamma is `exponent`. D is the number of steps since the last update, which was after `since` steps
    (EDM2, equation 127, where D is 1). In the first update D = t, and the weight is 1.
    """
    share = (step - since).astype(jnp.float32) / step.astype(jnp.float32)
    first = since <= 0
    return jnp.where(first, 1.0, -jnp.expm1((exponent + 1.0) * jnp.log1p(-jnp.where(first, 0.5, share))))


def with_averages(update: Callable, config: TrainConfig) -> Callable:
    """Returns the `update` of `make_update`, extended by the config's power-function averages.

    They are updated together with the ordinary average: every `average_every` steps, except after a step that was
    skipped. Without power-function averages, `update` itself is returned.
    """
    if not config.power_averages:
        return update
    exponents = {name_of(width): exponent_of(width) for width in config.power_averages}

    def updated(state: AveragedState, *given):
        new, metrics = update(state, *given)
        number = new.step // config.average_every
        finite = new.skipped == state.skipped
        averaging = finite & ((new.step % config.average_every == 0) | (number == 0))

        def average(power, params):
            weights = {name: update_weight(each, new.step, state.power_step) for name, each in exponents.items()}
            return {
                name: jax.tree.map(lambda e, p, w=weights[name]: jnp.where(w == 1, p, e + w * (p - e)), tree, params)
                for name, tree in power.items()
            }

        power = jax.lax.cond(averaging, average, lambda power, params: power, state.power, new.params)
        last = jnp.where(averaging & (number > 0), new.step, state.power_step)
        return new._replace(power=power, power_step=last), metrics

    return updated


def snapshot_steps(config: TrainConfig) -> frozenset[int]:
    """Returns the steps whose averages are stored: `average_snapshots` steps, evenly spread over the run, each at an
    update of the averages. They are fewer if there are fewer updates, and none without power-function averages."""
    if not config.power_averages:
        return frozenset()
    every, count = config.average_every, config.average_snapshots
    updates = config.steps // every
    count = min(count, updates)
    return frozenset(every * max(1, round(number * updates / count)) for number in range(1, count + 1))


class Mixture(NamedTuple):
    """The coefficients that make an average from the stored ones. They sum to 1."""

    coefficients: Float[np.ndarray, " held"]
    misfit: float  # relative error of the weights over steps, root of the mean square


def product(
    ends: Float[np.ndarray, "*#m"],
    exponents: Float[np.ndarray, "*#m"],
    end: Float[np.ndarray, "*#m"],
    exponent: Float[np.ndarray, "*#m"],
) -> Float[np.ndarray, "*m"]:
    """The inner product, over steps, of the weights of two averages (EDM2, equation 151).

    One average ends at step `ends` and has the exponent `exponents`; the other has `end` and `exponent`.
    """
    smaller, larger = np.minimum(ends, end), np.maximum(ends, end)
    power = np.where(ends < end, exponent, exponents)
    both = (exponents + 1) * (exponent + 1) * (smaller / larger) ** power
    return both / ((exponents + exponent + 1) * larger)


def mix(ends: Sequence[float], exponents: Sequence[float], end: float, exponent: float) -> Mixture:
    """Finds the coefficients that make one average (`end`, `exponent`) from stored averages (`ends`, `exponents`).

    An average ends at a step, and has the exponent of its weights over steps. The method is that of EDM2, appendix C.3.
    The coefficients are divided by their sum, as in EDM2's code, so that the average of constant parameters is exactly
    these parameters.
    """
    t, g = np.asarray(ends, np.float64), np.asarray(exponents, np.float64)
    gram = product(t[:, None], g[:, None], t[None], g[None])
    last = np.array([end]), np.array([exponent])
    wanted = product(t, g, *last)
    scale = np.sqrt(np.diag(gram))
    solved = np.linalg.lstsq(gram / np.outer(scale, scale), wanted / scale, rcond=1e-13)[0] / scale
    solved = solved / solved.sum()
    own = float(product(*last, *last)[0])
    error = own - 2 * float(solved @ wanted) + float(solved @ gram @ solved)
    return Mixture(solved, float(np.sqrt(max(error, 0.0) / own)))
