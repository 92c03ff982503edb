"""Defines scaling laws in a table: an offset, if any, plus one falling term for each variable.

    L(x) = E + sum_k exp( g_k(theta_k, log x_k) )

A term's g is `log A - e log x` (a power), or a power with a smooth break. A law is a value: the
minimiser (`rfjax.laws.minimiser`) and the fit (`rfjax.laws.fitting`) use only the functions of this
file. Units: `flops` is training FLOPs (2 per multiply-accumulate, 3x the forward pass), `params` and
`images` are counts.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

MAX_EXPONENT = 10.0
Theta = Float[np.ndarray, "*batch p"]  # the parameters of one term
Points = Float[np.ndarray, " n"]  # the natural logarithm of one variable


@dataclass(frozen=True, kw_only=True)
class PowerTerm:
    """The term A * x^-e, with parameters (log A, e)."""

    variable: str
    coefficient: str
    exponent: str

    logarithmic = (True, False)  # which parameters are kept as logarithms

    @property
    def parameters(self) -> tuple[str, ...]:
        return self.coefficient, self.exponent

    @property
    def formula(self) -> str:
        return f"{self.coefficient}·{self.variable}^-{self.exponent}"

    def log_value(self, theta: Theta, log_x: Points) -> Float[np.ndarray, "*batch n"]:
        """Returns g, the logarithm of the term, at each natural logarithm of the variable."""
        return theta[..., 0:1] - theta[..., 1:2] * log_x

    def gradient(self, theta: Theta, log_x: Points) -> Float[np.ndarray, "#*batch p n"]:
        return np.stack([np.ones_like(log_x), -log_x])[None]

    def hessian(self, theta: Theta, log_x: Points) -> Float[np.ndarray, "*batch p p n"] | None:
        """Returns the second derivatives of g by the parameters; None if g is linear in the parameters."""
        return None

    def shift(self, theta: Theta, log_shift: float) -> Theta:
        """Returns the parameters that at log x + `log_shift` give the same value as `theta` at log x."""
        result = np.array(theta, dtype=float)
        result[..., 0] += result[..., 1] * log_shift
        return result

    def bounds(self, log_x: Points) -> tuple[list[float], list[float]]:
        """Lower and upper bounds of the parameters."""
        return [-np.inf, 0.0], [np.inf, MAX_EXPONENT]

    def starts(self, log_x: Points, dense: bool) -> Iterator[tuple[float, ...]]:
        """Yields starting values of the term's parameters without the coefficient, which the minimiser sets from the
        level of the loss. `dense` asks for more of them."""
        yield from ((e,) for e in np.geomspace(0.02, 2.0, 7 if dense else 5))


@dataclass(frozen=True, kw_only=True)
class BrokenTerm:
    """The term a x^-c0 (1 + (x/d)^(1/f))^(-c1 f): a power of slope -c0 that bends to -(c0 + c1) about x = d.

    The parameters are (log a, c0, c1, log d, log f), where f is the width of the bend in units of log x. This is eq. 1
    of Caballero et al. 2022, with one break.
    """

    variable: str
    coefficient: str = "a"
    exponent: str = "c0"

    logarithmic = (True, False, False, True, True)

    @property
    def parameters(self) -> tuple[str, ...]:
        return self.coefficient, self.exponent, "c1", "d", "f"

    @property
    def formula(self) -> str:
        return f"{self.coefficient}·{self.variable}^-{self.exponent}·(1 + ({self.variable}/d)^(1/f))^(-c1·f)"

    def _parts(self, theta, log_x):
        """Returns (f, u, softplus(u), sigmoid(u)) with u = (log x - log d)/f."""
        width = np.exp(theta[..., 4:5])
        u = (log_x - theta[..., 3:4]) / width
        return width, u, np.logaddexp(0.0, u), 0.5 * (1 + np.tanh(0.5 * u))

    def log_value(self, theta: Theta, log_x: Points) -> Float[np.ndarray, "*batch n"]:
        width, _, softplus, _ = self._parts(theta, log_x)
        return theta[..., 0:1] - theta[..., 1:2] * log_x - theta[..., 2:3] * width * softplus

    def gradient(self, theta: Theta, log_x: Points) -> Float[np.ndarray, "#*batch p n"]:
        width, u, softplus, sigmoid = self._parts(theta, log_x)
        slope = theta[..., 2:3]
        bend = width * (softplus - sigmoid * u)  # d(f softplus)/d(log f)
        ones = np.ones_like(u)
        return np.stack([ones, -log_x * ones, -width * softplus, slope * sigmoid, -slope * bend], axis=-2)

    def hessian(self, theta: Theta, log_x: Points) -> Float[np.ndarray, "*batch p p n"] | None:
        width, u, softplus, sigmoid = self._parts(theta, log_x)
        slope, peak = theta[..., 2:3], sigmoid * (1 - sigmoid)
        bend = width * (softplus - sigmoid * u)
        result = np.zeros((*u.shape[:-1], 5, 5, u.shape[-1]))
        result[..., 2, 3, :] = sigmoid
        result[..., 2, 4, :] = -bend
        result[..., 3, 3, :] = -slope * peak / width
        result[..., 3, 4, :] = -slope * peak * u
        result[..., 4, 4, :] = -slope * (bend + width * peak * u**2)
        for i, j in ((2, 3), (2, 4), (3, 4)):
            result[..., j, i, :] = result[..., i, j, :]
        return result

    def shift(self, theta: Theta, log_shift: float) -> Theta:
        result = np.array(theta, dtype=float)
        result[..., 0] += result[..., 1] * log_shift
        result[..., 3] += log_shift
        return result

    def bounds(self, log_x: Points) -> tuple[list[float], list[float]]:
        span = float(np.ptp(log_x))
        # The data cannot show a break outside their range, or a bend wider than it.
        lower = [-np.inf, 0.0, -MAX_EXPONENT, float(log_x.min()), np.log(1e-2 * span)]
        return lower, [np.inf, MAX_EXPONENT, MAX_EXPONENT, float(log_x.max()), np.log(span)]

    def starts(self, log_x: Points, dense: bool) -> Iterator[tuple[float, ...]]:
        span = float(np.ptp(log_x))
        for before in (0.05, 0.2, 0.6):
            for change in (-0.6 * before, 0.3, 1.0):
                for place in (0.25, 0.5, 0.75):
                    yield before, change, float(log_x.min()) + place * span, float(np.log(0.08 * span))


@dataclass(frozen=True, kw_only=True)
class Law:
    """The form of the loss as a function of its variables.

    The parameters are an array, whose last axis has E (if `offset`), then the parameters of each term.
    Coefficients are kept as logarithms, because A overflows over twenty decades of compute and
    log A does not.
    """

    name: str
    terms: tuple[PowerTerm | BrokenTerm, ...]
    offset: bool
    source: str

    @property
    def variables(self) -> tuple[str, ...]:
        return tuple(term.variable for term in self.terms)

    @property
    def parameters(self) -> tuple[str, ...]:
        """The parameters' names, in the order of the parameter array; log A has the name A."""
        names = [name for term in self.terms for name in term.parameters]
        return (("E",) if self.offset else ()) + tuple(names)

    @property
    def formula(self) -> str:
        return " + ".join((["E"] if self.offset else []) + [term.formula for term in self.terms])

    @property
    def logarithmic(self) -> tuple[bool, ...]:
        """Whether each parameter is stored as a logarithm, in the order of `parameters`."""
        return ((False,) if self.offset else ()) + tuple(flag for term in self.terms for flag in term.logarithmic)

    @property
    def exponents(self) -> tuple[int, ...]:
        """Indices of the terms' (first) exponents in the parameter array."""
        return tuple(part.start + 1 for part in self.slices)

    @property
    def profiled(self) -> tuple[int, ...]:
        """The indices of the parameters that get a profile likelihood: E and the exponents. A coefficient gets none,
        because it is the value of a term at x = 1, far outside all data."""
        return (*([0] if self.offset else []), *self.exponents)

    @property
    def slices(self) -> tuple[slice, ...]:
        """For each term, the slice of the parameter array that holds its parameters."""
        ends = np.cumsum([int(self.offset), *(len(term.parameters) for term in self.terms)])
        return tuple(slice(int(a), int(b)) for a, b in zip(ends[:-1], ends[1:], strict=True))

    def log_loss(
        self, parameters: Float[np.ndarray, "*batch k"], log_x: Float[np.ndarray, "n v"]
    ) -> Float[np.ndarray, "*batch n"]:
        """Returns the natural logarithm of the law's loss, the log-sum-exp of its terms' logarithms and log E.

        `log_x` is the natural logarithm of the variables, in the order of `variables`.
        """
        parameters = np.asarray(parameters, dtype=float)
        logs = [
            term.log_value(parameters[..., part], log_x[:, column])
            for column, (term, part) in enumerate(zip(self.terms, self.slices, strict=True))
        ]
        if self.offset:
            with np.errstate(divide="ignore"):  # E = 0 is log E = -inf: the term is absent
                log_offset = np.log(parameters[..., :1])
            logs.append(np.broadcast_to(log_offset, logs[0].shape))
        return np.logaddexp.reduce(np.stack(logs), axis=0)

    def jacobian(
        self, parameters: Float[np.ndarray, " k"], log_x: Float[np.ndarray, "n v"]
    ) -> Float[np.ndarray, "n k"]:
        """Returns the derivatives of `log_loss` by each parameter, a row for each point of `log_x`."""
        log_loss = self.log_loss(parameters, log_x)
        columns = [np.exp(-log_loss)] if self.offset else []
        for column, (term, part) in enumerate(zip(self.terms, self.slices, strict=True)):
            theta, z = parameters[part], log_x[:, column]
            share = np.exp(term.log_value(theta, z) - log_loss)
            columns += list(share * term.gradient(theta[None], z)[0])
        return np.stack(columns, axis=1)

    def recentre(
        self, parameters: Float[np.ndarray, "*batch k"], log_shift: Float[np.ndarray, " v"]
    ) -> Float[np.ndarray, "*batch k"]:
        """Returns the parameters that at log x + `log_shift` give the same loss as `parameters` at log x.

        Fits use centred log x, which nearly removes the correlation of A and e. For reports the
        centre is added back.
        """
        result = np.array(parameters, dtype=float)
        for term, part, shift in zip(self.terms, self.slices, np.asarray(log_shift, float), strict=True):
            result[..., part] = term.shift(result[..., part], shift)
        return result


POWER = Law(
    name="power",
    terms=(PowerTerm(coefficient="a", exponent="b", variable="flops"),),
    offset=False,
    source="a straight line in log-log; the comparator of every fit with an offset",
)
SATURATING = Law(
    name="saturating",
    terms=(PowerTerm(coefficient="a", exponent="b", variable="flops"),),
    offset=True,
    source="Henighan et al. 2020, eq. 1.1; E is the loss no compute removes",
)
PARAMETRIC = Law(
    name="parametric",
    terms=(
        PowerTerm(coefficient="A", exponent="alpha", variable="params"),
        PowerTerm(coefficient="B", exponent="beta", variable="images"),
    ),
    offset=True,
    source="Hoffmann et al. 2022, approach 3, with images for tokens",
)
BROKEN = Law(
    name="broken", terms=(BrokenTerm(variable="flops"),), offset=True, source="Caballero et al. 2022, eq. 1, one break"
)
LAWS = {law.name: law for law in (POWER, SATURATING, PARAMETRIC, BROKEN)}
