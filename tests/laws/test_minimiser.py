"""The batched minimiser: derivatives, minima confirmed by other optimisers, weights, small deltas."""

import numpy as np
import pytest
from scipy import optimize, special
from test_fitting import planted, random_law

from rfjax.laws import minimiser
from rfjax.laws.fitting import fit
from rfjax.laws.laws import LAWS, PARAMETRIC, SATURATING
from rfjax.laws.misfits import HUBER, LOSSES, huber


def noisy(law, seed):
    """(centred log x, log loss) of a random law with heavy-tailed noise of one per cent."""
    rng = np.random.default_rng(seed)
    table, _ = random_law(law, rng)
    log_loss = np.log(table["loss"].to_numpy()) + 0.01 * rng.standard_t(3, len(table))
    log_x = np.log(table[list(law.variables)].to_numpy())
    return log_x - log_x.mean(axis=0), log_loss


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
@pytest.mark.parametrize("law", LAWS.values(), ids=LAWS)
def test_derivatives_are_those_of_the_objective(law, loss):
    """Against central differences, away from kinks: any wrong sign or missing term."""
    z, y = noisy(law, 0)
    delta = min(loss.smooth_delta() if loss.delta else 1e-3, 10.0)
    scale = np.exp(y.min()).reshape(1, 1)
    problem = minimiser._Problem(law, loss, delta, z, y[None], np.ones((1, len(y))), scale)
    theta = minimiser.starts(law, z, y)[[len(minimiser.starts(law, z, y)) // 3]]
    theta[:, :1] /= scale if law.offset else 1.0
    state = minimiser._evaluate(problem, theta)
    gradient, hessian, _, _ = minimiser._derivatives(problem, theta, state)

    def derivatives(point):
        return minimiser._derivatives(problem, point, minimiser._evaluate(problem, point))[0][0]

    for k in range(theta.shape[1]):
        step = np.zeros_like(theta)
        step[0, k] = 1e-6
        up, down = theta + step, theta - step
        slope = (minimiser._evaluate(problem, up)[0] - minimiser._evaluate(problem, down)[0]) / 2e-6
        assert gradient[0, k] == pytest.approx(slope[0], rel=1e-5, abs=1e-7 * np.abs(gradient).max())
        column = (derivatives(up) - derivatives(down)) / 2e-6
        np.testing.assert_allclose(hessian[0, :, k], column, rtol=1e-4, atol=1e-6 * np.abs(hessian).max() + 1e-12)


def test_no_other_optimiser_goes_lower():
    # The objective written again from scipy's own pieces, minimised by scipy from our optimum and
    # from elsewhere: a wrong Huber loss, or a minimum that is none, would show.
    rng = np.random.default_rng(3)
    table, _ = random_law(PARAMETRIC, rng)
    table["loss"] *= np.exp(0.01 * rng.standard_t(3, len(table)))
    found = fit(table, PARAMETRIC, resamples=4, held_out=False)
    x, y = np.log(table[["params", "images"]].to_numpy()), np.log(table["loss"].to_numpy())

    def objective(theta):
        log_e, log_a, alpha, log_b, beta = theta
        logs = np.stack([np.full(len(y), log_e), log_a - alpha * x[:, 0], log_b - beta * x[:, 1]])
        return special.huber(1e-3, special.logsumexp(logs, axis=0) - y).sum()

    e, *rest = found.parameters
    ours = np.array([np.log(e), *rest])
    assert objective(ours) == pytest.approx(found.objective, rel=1e-9)
    for start in (ours, ours + 0.3 * rng.standard_normal(5)):
        options = {"xatol": 1e-10, "fatol": 1e-16, "maxiter": 20_000, "maxfev": 20_000}
        theirs = optimize.minimize(objective, start, method="Nelder-Mead", options=options)
        assert theirs.fun > found.objective * (1 - 1e-6)


@pytest.mark.parametrize("seed", range(3))
def test_absolute_values_end_at_a_vertex_that_linear_programming_confirms(seed):
    """Linearised at the minimum, the sum of absolute values is a linear programme whose best step
    is none. A delta that was left too large, or an early stop at a kink, leaves room for one."""
    z, y = noisy(PARAMETRIC, seed)
    found = minimiser.minimise(PARAMETRIC, minimiser.starts(PARAMETRIC, z, y), z, y, LOSSES["l1"])
    best = found.objective.argmin()
    theta, n = found.parameters[best], len(y)
    residuals = PARAMETRIC.log_loss(theta, z) - y
    assert found.converged[best] and found.objective[best] == pytest.approx(np.abs(residuals).sum(), rel=1e-12)
    assert np.sort(np.abs(residuals))[4] < 1e-7  # five parameters pass through five points
    jacobian = PARAMETRIC.jacobian(theta, z)
    eye = np.eye(n)
    programme = optimize.linprog(
        np.r_[np.zeros(5), np.ones(n)],
        A_ub=np.block([[jacobian, -eye], [-jacobian, -eye]]),
        b_ub=np.r_[-residuals, residuals],
        bounds=[(-1e-3, 1e-3)] * 5 + [(0, None)] * n,
    )
    assert programme.fun == pytest.approx(found.objective[best], rel=1e-6)


def test_a_small_delta_tends_to_absolute_values():
    z, y = noisy(PARAMETRIC, 1)
    start = minimiser.starts(PARAMETRIC, z, y)
    small, absolute = (
        minimiser.minimise(PARAMETRIC, start, z, y, loss, gradual=True) for loss in (huber(1e-6), LOSSES["l1"])
    )
    a, b = small.objective.argmin(), absolute.objective.argmin()
    np.testing.assert_allclose(small.parameters[a], absolute.parameters[b], rtol=1e-3)
    assert small.objective[a] / 1e-6 == pytest.approx(absolute.objective[b], rel=1e-3)


@pytest.mark.parametrize("law", (SATURATING, PARAMETRIC), ids=("saturating", "parametric"))
def test_most_starts_reach_the_minimum(law):
    """A step rule that stalled, as plain gradient descent does here, would leave most starts behind."""
    z, y = noisy(law, 2)
    found = minimiser.minimise(law, minimiser.starts(law, z, y), z, y, HUBER, gradual=True)
    assert (found.objective <= found.objective.min() * (1 + 1e-6)).mean() > 0.9


def test_resamples_have_the_minima_that_scipy_finds_one_by_one():
    """The batch, started from the point estimate, against BFGS from the same place on each resample."""
    z, y = noisy(PARAMETRIC, 3)
    point = minimiser.minimise(PARAMETRIC, minimiser.starts(PARAMETRIC, z, y), z, y, HUBER)
    best = point.parameters[point.objective.argmin()]
    weights = np.random.default_rng(0).multinomial(len(y), np.full(len(y), 1 / len(y)), 12).astype(float)
    batch = minimiser.minimise(PARAMETRIC, np.tile(best, (12, 1)), z, y, HUBER, weights=weights)
    assert batch.converged.all()
    for row, count in enumerate(weights):

        def objective(theta, count=count):
            natural = np.r_[np.exp(theta[0]), theta[1:]]
            return (count * special.huber(1e-3, PARAMETRIC.log_loss(natural, z) - y)).sum() * 1e3

        start = np.r_[np.log(best[0]), best[1:]]
        theirs = optimize.minimize(
            objective,
            start,
            method="Nelder-Mead",
            options={"xatol": 1e-9, "fatol": 1e-12, "maxfev": 20_000, "maxiter": 20_000},
        )
        assert batch.objective[row] * 1e3 <= theirs.fun * (1 + 1e-6)


def test_resampling_weights_are_repeated_runs():
    # A bootstrap that ignored its weights, or used the wrong rows, would give the unweighted fit.
    table = planted(8, 0.02, np.random.default_rng(2))
    counts = np.array([2, 0, 1, 1, 2, 0, 1, 1])
    x, y = np.log(table[["flops"]].to_numpy()), np.log(table["loss"].to_numpy())
    x = x - x.mean()
    start = minimiser.starts(SATURATING, x, y)
    weighted = minimiser.minimise(SATURATING, start, x, y, HUBER, weights=counts)
    rows = np.repeat(np.arange(8), counts)
    repeated = minimiser.minimise(SATURATING, start, x[rows], y[rows], HUBER)
    assert weighted.objective.min() == pytest.approx(repeated.objective.min(), rel=1e-9)
    plain = minimiser.minimise(SATURATING, start, x, y, HUBER)
    assert abs(weighted.objective.min() / plain.objective.min() - 1) > 0.01


def test_a_point_where_no_derivative_is_finite_is_no_minimum():
    """Catches the decomposition of a matrix of infinities, which LAPACK does not end."""
    log_x = np.log(np.array([[1e-290], [1e-100], [1.0], [1e290]]))
    start = np.array([[1e300, 700.0, 300.0]])
    found = minimiser.minimise(LAWS["saturating"], start, log_x, np.zeros(4), LOSSES["huber"])
    assert not np.asarray(found.converged).any()
