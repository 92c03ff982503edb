"""Defines the misfits that fits minimise: Huber's loss, squares or absolute values, of log or raw residuals.

    minimise over theta:  sum_i rho_delta( r_i ),   r_i = log L(x_i) - log L_i   or   L(x_i) - L_i

rho is Huber's: r^2/2 inside delta and delta(|r| - delta/2) outside. delta = inf is least squares; as delta goes to 0,
rho / delta goes to |r|, the absolute value. The objective is a sum: a mean can shrink it below an optimiser's
tolerance, and a published fit stopped early for this reason (Besiroglu et al. 2024). The minimiser here has no such
tolerance; `reduction` only scales the reported objective.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float

from rfjax.errors import ConfigError

# Absolute values are minimised as Huber's loss with this delta, which is reached through larger deltas. The kinks are
# then rounded over a billionth of the loss, and the minimum moves by as much.
L1_DELTA = 1e-9


@dataclass(frozen=True, kw_only=True)
class Loss:
    """One kind of misfit. `delta` is Huber's threshold for residuals: of log loss if `logarithmic`, else of loss."""

    name: str
    delta: float  # inf: least squares; 0: absolute values
    logarithmic: bool = True  # residuals of log loss, not of the loss itself
    reduction: str = "sum"

    def __post_init__(self):
        if not self.delta >= 0:
            raise ConfigError(
                f"Huber's delta is {self.delta}; it must be 0 (absolute values), positive, or inf (squares)"
            )
        if self.reduction not in ("sum", "mean"):
            raise ConfigError(f"reduction is {self.reduction!r}; it must be 'sum' or 'mean'")

    def __str__(self) -> str:
        shape = {np.inf: "squares", 0.0: "absolute values"}.get(self.delta, f"Huber(delta={self.delta:g})")
        return f"{self.reduction} of {shape} of {'log' if self.logarithmic else 'raw'} residuals"

    def smooth_delta(self) -> float:
        """Returns the delta used in minimising: `delta`, or `L1_DELTA` for absolute values."""
        return self.delta if self.delta > 0 else L1_DELTA

    def rho(self, residuals: Float[np.ndarray, "*shape"]) -> Float[np.ndarray, "*shape"]:
        """The misfit of each residual."""
        return np.abs(residuals) if self.delta == 0 else rho(residuals, self.delta)


def rho(residuals: Float[np.ndarray, "*shape"], delta: float) -> Float[np.ndarray, "*shape"]:
    """Huber's rho, elementwise."""
    if np.isinf(delta):
        return 0.5 * residuals**2
    # c (|r| - c/2) with c = min(|r|, delta) equals both pieces of Huber's rho.
    size = np.abs(residuals)
    clipped = np.minimum(size, delta)
    return clipped * (size - 0.5 * clipped)


HUBER = Loss(name="huber", delta=1e-3)  # Hoffmann et al. 2022, section 3.3
LOSSES = {
    loss.name: loss
    for loss in (
        HUBER,
        Loss(name="squares-log", delta=np.inf),
        Loss(name="squares-raw", delta=np.inf, logarithmic=False),
        Loss(name="l1", delta=0.0),
    )
}


def huber(delta: float) -> Loss:
    """Returns Huber's loss of log residuals with the threshold `delta`."""
    return replace(HUBER, delta=delta)
