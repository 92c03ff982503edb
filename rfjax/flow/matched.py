"""Any formulation's network as the velocity of a rectified flow, at equal log-SNR.

Divided by a + b, a point z = a x0 + b eps of any path is the straight path's y = (1 - s) x0 + s eps
at s = b / (a + b). There the network's prediction, as data and noise, is the velocity eps - x0. So
one sampler integrates every formulation, and one validation loss compares them: both see (y, s) and
a velocity. For a formulation of rectified flow nothing is done.
"""

from __future__ import annotations

from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array, Float

from rfjax.flow.formulation import Formulation
from rfjax.flow.path import Times, expand_time
from rfjax.flow.prediction import data_and_noise


def as_rectified_flow(formulation: Formulation, apply: Callable) -> Callable:
    """`velocity(params, y, s, context, pooled)` for a backbone's `apply` that was trained on the
    formulation: y Float[batch ...] on the straight path at times s Float[batch].

    Outside `formulation.rectified_span` a point is taken for one at the span's nearer end.
    """
    if formulation.is_rectified_flow:
        return apply
    path, prediction = formulation.path, formulation.prediction
    low, high = formulation.rectified_span

    def velocity(params, y: Float[Array, "batch ..."], s: Float[Array, "batch"], context, pooled):
        t = path.time_at(jnp.clip(s, low, high))
        mixing = prediction.mixing(path, expand_time(t, y))
        z = (mixing.a + mixing.b) * y
        seen = prediction.input_scale(mixing.a, mixing.b) * z
        predicted = apply(params, seen, path.condition(t), context, pooled)
        data, noise = data_and_noise(mixing, z, predicted.astype(y.dtype))
        return noise - data

    return velocity


def own_loss_ratio(formulation: Formulation, s: Times) -> Times:
    """The loss in the formulation's own terms over that of the rectified velocity of the same network
    at the same point: (det / (a + b))^2 and the weight, with a, b and det those of the own path.

    Both errors are the noise's times a factor, det / a and (a + b) / a, so that the loss in own terms
    needs no second evaluation.
    """
    t = formulation.path.time_at(s.clip(*formulation.rectified_span))
    mixing = formulation.prediction.mixing(formulation.path, t)
    return (mixing.determinant / (mixing.a + mixing.b)) ** 2 * formulation.weight.at(t)
