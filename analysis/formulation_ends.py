"""Computes a sampler's errors at its start, at its end and by its steps, for each formulation, on Gaussian data.

    python analysis/formulation_ends.py

prints the table of docs/formulations.md. The data are N(0.7, 0.3^2), the network is the optimal one, so
the exact flow and its marginals are known. Three errors are measured, each without the other two:

- start: sampling from N(0, b^2) instead of the exact marginal at the noisiest level, then flowing exactly;
- end: the last step, to sigma = 0, from the exact marginal at the cleanest level that the network knows;
- steps: Euler and Heun over the sampler's own levels, from the exact marginal, last step included.

Each error is a change of the final mean and of the final standard deviation, relative to the data's standard deviation.
"""

from __future__ import annotations

import jax
import numpy as np

from rfjax.flow.formulation import Formulation, parse_formulation
from rfjax.flow.samplers import integrate, sampling_levels

MEAN, STD = 0.7, 0.3
NAMES = ("rf", "eps/linear", "v/linear", "eps/cos", "v/cos", "edm(-1.20,1.20)", "fm/ot(0.00001)", "fm/vp", "fm/ve")
STEPS = (("euler", 50), ("euler", 5), ("heun", 25))


def _spread(s):
    return np.sqrt((1 - s) ** 2 * STD**2 + s * s)


def velocity(y, s):
    """E[eps - x0 | y, s], the velocity that an optimal network of any formulation gives
    (tests/flow/test_formulation_samplers.py)."""
    innovation = (y - (1 - s) * MEAN) / ((1 - s) ** 2 * STD**2 + s * s)
    return s * innovation - (MEAN + (1 - s) * STD**2 * innovation)


def start_bias(s: float) -> tuple[float, float]:
    """(change of the mean, of the standard deviation) over the data's standard deviation."""
    return -(1 - s) * MEAN / _spread(s), s / _spread(s) - 1


def end_bias(s: float) -> float:
    """The change of the standard deviation by one Euler step from s to 0, over the data's."""
    return (1 - s) * STD / _spread(s) - 1


def step_bias(formulation: Formulation, method: str, steps: int) -> float:
    """The relative error of the data's standard deviation after `steps` sampler steps.

    The flow is affine, so the error follows from two trajectories: from the mean, and from one standard deviation above
    it. The mean has no error: along its trajectory the velocity is constant.
    """
    levels = sampling_levels(formulation, steps)
    begin = (1 - levels[0]) * MEAN + _spread(levels[0]) * np.array([0.0, 1.0])

    def known(y, s):
        return velocity(y, jax.numpy.maximum(s, formulation.rectified_span[0]))

    mean, one = np.asarray(integrate(known, jax.numpy.asarray(begin), levels, method))
    return (one - mean) / STD - 1


def table() -> list[str]:
    """The Markdown rows."""
    lines = [
        "| formulation | σ, from | to | start: mean | start: s.d. | end: s.d. | "
        + " | ".join(f"{method} {steps}: s.d." for method, steps in STEPS)
        + " |",
        "|---|" + "---|" * (5 + len(STEPS)),
    ]
    for name in NAMES:
        formulation = parse_formulation(name)
        low, high = formulation.rectified_span
        sigma = [f"{s / (1 - s):.3g}" if s < 1 else "∞" for s in (high, low)]
        cells = [*start_bias(high), end_bias(low)]
        for method, steps in STEPS:
            cells.append(step_bias(formulation, method, steps))
        lines.append(
            f"| `{name}` | {sigma[0]} | {sigma[1]} | "
            + " | ".join(f"{100 * cell + 0.0:.2f} %" for cell in cells)
            + " |"
        )
    return [line.replace("-0.00 %", "0.00 %") for line in lines]


def main() -> None:
    with jax.enable_x64(True):
        print("\n".join(table()))


if __name__ == "__main__":
    main()
