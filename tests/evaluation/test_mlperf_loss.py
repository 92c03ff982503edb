"""MLPerf's validation loss: each example at the one level that a file gives it."""

import math

import jax.numpy as jnp
import numpy as np
import pytest
from test_validation import FakeCorpus, config, network, weights

from rfjax.errors import ConfigError
from rfjax.evaluation import mlperf_loss
from rfjax.evaluation.validation import make_validation_step, validation_loss
from rfjax.flow.formulation import parse_formulation

N = 24
LEVELS = np.random.default_rng(0).permutation(np.arange(N) % 8)


@pytest.mark.parametrize("name", ["rf/lognorm(0.00,1.00)", "eps/linear"])
def test_each_example_is_at_its_own_level(name):
    """Its loss is what the grid's has for that example and level: the same noise, the same t, the same
    formulation. Catches an example at its neighbour's level, and noise of another key."""
    formulation = parse_formulation(name)
    params = weights(0)
    grid = make_validation_step(network, config(examples=N, grid="mlperf"), formulation=formulation)
    every = validation_loss(grid, params, FakeCorpus()).per_example
    found = mlperf_loss.assigned_loss(
        network, config(batch_size=7), params, FakeCorpus(), LEVELS, formulation=formulation
    )
    np.testing.assert_allclose(found.losses, every[np.arange(N), LEVELS], rtol=2e-6)
    assert found.levels == tuple(i / 8 for i in range(8))


def test_the_mean_is_of_the_levels_means():
    """By hand, with its error. Catches a mean over examples that is called one over levels, and an error that
    takes the levels for one sample."""
    numbers = np.array([0, 1, 1, 0, 0, 1])
    losses = np.array([1, 10, 14, 2, 3, 12], np.float32)
    result = mlperf_loss.AssignedLoss((0.0, 0.5), numbers, losses)
    assert result.level_losses == (2.0, 12.0)
    assert result.loss == 7.0
    assert result.level_stderrs == pytest.approx((1 / math.sqrt(3), 2 / math.sqrt(3)))
    assert result.stderr == pytest.approx(math.sqrt(1 / 3 + 4 / 3) / 2)
    uneven = mlperf_loss.AssignedLoss((0.0, 0.5), np.array([0, 1, 1]), np.array([0, 3, 6], np.float32))
    assert uneven.loss == 2.25 and math.isnan(uneven.level_stderrs[0])


def test_its_error_is_that_of_draws():
    """Over many draws of examples the loss scatters as its standard error says, whatever the levels' own means."""
    generator = np.random.default_rng(1)
    numbers = np.tile(np.arange(8), 30)
    draws = [
        mlperf_loss.AssignedLoss(
            tuple(map(float, range(8))), numbers, (numbers + generator.normal(0, 1 + numbers)).astype(np.float32)
        )
        for _ in range(400)
    ]
    assert np.std([draw.loss for draw in draws]) == pytest.approx(np.mean([draw.stderr for draw in draws]), rel=0.1)


def test_levels_files(tmp_path):
    """Catches levels counted from 1, other numbers of levels, and counts that differ."""
    file = tmp_path / "levels.txt"
    file.write_text("".join(f"{level}\n" for level in LEVELS))
    assert mlperf_loss.read_levels(file).tolist() == LEVELS.tolist()
    for text, message in (
        ("0\n8\n", r":2 is '8'; it must be a level, an integer from 0 to 7"),
        ("0\n-1\n", r":2 is '-1'"),
        ("0.5\n", r":1 is '0.5'"),
        ("0 1 2 3 4 5 6 7 7", "1, 1, 1, 1, 1, 1, 1, 2 examples"),
        ("0 1 2 3 4 5 6", "equally many"),
        ("", "equally many"),
    ):
        file.write_text(text)
        with pytest.raises(ConfigError, match=message):
            mlperf_loss.read_levels(file)
    with pytest.raises(ConfigError, match="levels .* cannot be read"):
        mlperf_loss.read_levels(tmp_path / "none.txt")


def test_filling_a_batch_changes_nothing():
    """Catches the last batch's repeats counted."""
    params = weights(1)
    one, other = (
        mlperf_loss.assigned_loss(network, config(batch_size=size), params, FakeCorpus(), LEVELS).losses
        for size in (24, 5)
    )
    np.testing.assert_allclose(one, other, rtol=1e-6)
    assert jnp.isfinite(one).all() and len(other) == N
