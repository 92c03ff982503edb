"""Turns the network of any formulation into the velocity of a rectified flow at the same log-SNR.

Divided by a + b, a point z = a x0 + b eps of any path is the straight path's y = (1 - s) x0 + s eps at s = b / (a + b).
The network's prediction at z, solved for data and noise, gives the velocity eps - x0. So one sampler integrates every
formulation, and one validation loss compares all formulations: both see only (y, s) and a velocity. Five numbers for
each time (`Matched`) describe a formulation. A compiled program takes these numbers as arrays, and serves every
formulation.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from rfjax.data.batch import Conditions
from rfjax.flow.formulation import Formulation
from rfjax.flow.path import Times, expand_time


class Matched(NamedTuple):
    """The numbers that turn a formulation's network into the straight path's velocity at each time s (`time`).

    The network's inputs are `scale` times y and the time `condition`. The velocity at y is `of_prediction` times the
    network's prediction plus `of_point` times y. For rf the five numbers are (s, 1, s, 1, 0).
    """

    time: Times
    scale: Times
    condition: Times
    of_prediction: Times
    of_point: Times


def matched(formulation: Formulation, s: Times) -> Matched:
    """Returns the five numbers at times s in [0, 1]. For a time outside `formulation.rectified_span`, the numbers other
    than `time` are those of the nearer end of that span.

    With z = (a + b) y, the data and the noise that give z and the prediction p are (n z - b p) / det and
    (a p - m z) / det (`rfjax.flow.prediction`). The velocity is noise minus data.
    """
    if formulation.is_rectified_flow:
        one = 0.0 * s + 1.0
        return Matched(s, one, s, one, 0.0 * s)
    path, prediction = formulation.path, formulation.prediction
    t = path.time_at(s.clip(*formulation.rectified_span))
    a, b, m, n = mixing = prediction.mixing(path, t)
    total, determinant = a + b, mixing.determinant
    scale = prediction.input_scale(a, b) * total
    return Matched(s, scale, path.condition(t), total / determinant, -(m + n) * total / determinant)


def velocity_of(
    apply: Callable, params, y: Float[Array, "batch ..."], at: Matched, conditions: Conditions
) -> Float[Array, "batch ..."]:
    """Computes the velocity at y by a backbone's `apply`. Each field of `at` is one number, or a number per example."""
    each = Matched(*(jnp.broadcast_to(jnp.asarray(field, y.dtype), y.shape[:1]) for field in at))
    scale, of_prediction, of_point = (expand_time(f, y) for f in (each.scale, each.of_prediction, each.of_point))
    return of_prediction * apply(params, scale * y, each.condition, *conditions) + of_point * y


def own_loss_ratio(formulation: Formulation, s: Times) -> Times:
    """Returns the factor that turns the squared error of the rectified velocity at s into the formulation's own loss
    at s.

    The factor is (det / (a + b))^2 times the weight, with a, b and det of the formulation's path: the error of the
    prediction is det / a times the error of the noise, and the error of the rectified velocity is (a + b) / a times
    the error of the noise. So the formulation's own loss needs no second evaluation of the network.
    """
    t = formulation.path.time_at(s.clip(*formulation.rectified_span))
    mixing = formulation.prediction.mixing(formulation.path, t)
    return (mixing.determinant / (mixing.a + mixing.b)) ** 2 * formulation.weight.at(t)
