import numpy as np
import pytest
import scipy.stats

from rfjax.data import hashing


def test_mix_is_splitmix64():
    # The published generator's first output from state 0: mix(golden ratio).
    assert int(hashing.mix(np.array([0x9E3779B97F4A7C15], np.uint64))[0]) == 0xE220A8397B1DCDAF


def test_rows_depend_on_their_own_index_only():
    whole = hashing.uniforms(5, np.arange(100), 7)
    assert np.array_equal(hashing.uniforms(5, np.array([42, 3]), 7), whole[[42, 3]])
    assert np.array_equal(hashing.uniforms(5, np.arange(100), 3), whole[:, :3])


def test_keys_tell_types_and_splits_apart():
    assert hashing.key("a", 1) == hashing.key("a", 1)
    assert len({hashing.key("a", 1), hashing.key("a", "1"), hashing.key("a", 11), hashing.key("a", 1, 1)}) == 4


@pytest.mark.parametrize("draw, cdf", [(hashing.uniforms, "uniform"), (hashing.normals, "norm")])
def test_distribution_and_independence(draw, cdf):
    values = draw(hashing.key("test"), np.arange(20000), 6)
    for slot in range(6):
        assert scipy.stats.kstest(values[:, slot], cdf).pvalue > 1e-4
    # Neighbours in slot and in index, where a weak mixer shows.
    correlations = np.corrcoef(np.concatenate([values[:-1], values[1:]], axis=1).T)
    assert np.abs(correlations - np.eye(12)).max() < 0.04
