"""Scaling laws as a table: an offset, if any, plus one falling power of each variable.

    L(x) = E + sum_k A_k * x_k^-e_k

A law is a value; what fits it (`rfjax.scaling.optimise`) and what judges the fit
(`rfjax.scaling.fits`) know only the functions of this file. Variables carry units: `flops` is
training FLOPs (2 per multiply-accumulate, 3x the forward pass), `params` and `images` are counts.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float


@dataclass(frozen=True, kw_only=True)
class Term:
    """coefficient * variable^-exponent, by name."""

    coefficient: str
    exponent: str
    variable: str


@dataclass(frozen=True, kw_only=True)
class Law:
    """A form of loss against its variables.

    Parameters travel as an array whose last axis is (E if `offset`, then log A_k, e_k of each
    term). Coefficients are kept as logarithms: over twenty decades of compute A overflows long
    before log A loses a digit.
    """

    name: str
    terms: tuple[Term, ...]
    offset: bool
    source: str

    @property
    def variables(self) -> tuple[str, ...]:
        return tuple(term.variable for term in self.terms)

    @property
    def parameters(self) -> tuple[str, ...]:
        """Names in the order of the parameter array; coefficients by their own name, not log."""
        names = [name for term in self.terms for name in (term.coefficient, term.exponent)]
        return (("E",) if self.offset else ()) + tuple(names)

    @property
    def formula(self) -> str:
        terms = [f"{t.coefficient}·{t.variable}^-{t.exponent}" for t in self.terms]
        return " + ".join((["E"] if self.offset else []) + terms)

    def is_coefficient(self, index: int) -> bool:
        """Whether the parameter at `index` is stored as a logarithm."""
        return (index - self.offset) % 2 == 0 and index >= self.offset

    def log_terms(
        self, parameters: Float[np.ndarray, "*batch k"], log_x: Float[np.ndarray, "*batch n v"]
    ) -> Float[np.ndarray, "*batch n v"]:
        """log(A_k x_k^-e_k) of each term; `log_x` is the natural logarithm of the variables."""
        free = parameters[..., self.offset :]
        coefficients, exponents = free[..., 0::2], free[..., 1::2]
        return coefficients[..., None, :] - exponents[..., None, :] * log_x

    def log_loss(
        self, parameters: Float[np.ndarray, "*batch k"], log_x: Float[np.ndarray, "*batch n v"]
    ) -> Float[np.ndarray, "*batch n"]:
        """Natural logarithm of the law's loss, as log-sum-exp of its terms and of log E."""
        logs = self.log_terms(parameters, log_x)
        if self.offset:
            with np.errstate(divide="ignore"):  # E = 0 is log E = -inf: the term is absent
                log_offset = np.log(parameters[..., :1])
            shape = (*logs.shape[:-1], 1)
            logs = np.concatenate([np.broadcast_to(log_offset[..., None, :], shape), logs], axis=-1)
        return np.logaddexp.reduce(logs, axis=-1)

    def recentred(
        self, parameters: Float[np.ndarray, "*batch k"], log_shift: Float[np.ndarray, "*#batch v"]
    ) -> Float[np.ndarray, "*batch k"]:
        """The same law in terms of log x + log_shift: log A_k grows by e_k * log_shift_k.

        Fits are made with `log_shift` = -mean(log x), which all but removes the correlation of
        A and e, and reported with it added back.
        """
        result = np.array(parameters, dtype=float)
        result[..., self.offset :: 2] += result[..., self.offset + 1 :: 2] * log_shift
        return result


POWER = Law(
    name="power",
    terms=(Term(coefficient="a", exponent="b", variable="flops"),),
    offset=False,
    source="a straight line in log-log; the comparator of every fit with an offset",
)
SATURATING = Law(
    name="saturating",
    terms=(Term(coefficient="a", exponent="b", variable="flops"),),
    offset=True,
    source="Henighan et al. 2020, eq. 1.1; E is the loss no compute removes",
)
PARAMETRIC = Law(
    name="parametric",
    terms=(
        Term(coefficient="A", exponent="alpha", variable="params"),
        Term(coefficient="B", exponent="beta", variable="images"),
    ),
    offset=True,
    source="Hoffmann et al. 2022, approach 3, with images for tokens",
)
LAWS = {law.name: law for law in (POWER, SATURATING, PARAMETRIC)}
