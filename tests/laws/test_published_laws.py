"""Published laws give the figures of their papers, in the units of their papers."""

import numpy as np
import pytest

from rfjax.errors import ConfigError
from rfjax.laws.published_laws import ABRA, COUNTS, HUNYUAN_IMAGE, HUNYUAN_VIDEO, LIANG, LIANG_CROSS, PUBLISHED


@pytest.mark.parametrize(
    ("law", "flops", "params", "tokens_per_param"),
    [
        (LIANG, 1e21, 766e6, 286),
        (ABRA, 1e21, 751e6, 201),
        (HUNYUAN_IMAGE, 1e21, 1.32e9, 97),
        (LIANG, 1e18, 15e6, 734),
        (ABRA, 1e18, 25e6, 188),
        (HUNYUAN_IMAGE, 1e18, 27e6, 240),
    ],
)
def test_sizes_at_a_compute(law, flops, params, tokens_per_param):
    """Catches a wrong coefficient or exponent, and PFLOP or billions taken for FLOP and ones."""
    assert law.params.at(flops) == pytest.approx(params, rel=0.02)
    assert law.tokens_per_param(flops) == pytest.approx(tokens_per_param, rel=0.01)


@pytest.mark.parametrize(
    ("law", "share"), [(LIANG, 1.009), (ABRA, 0.682), (HUNYUAN_IMAGE, 1.007), (HUNYUAN_VIDEO, 1.08)]
)
def test_size_and_tokens_spend_the_compute_as_the_paper_counts_it(law, share):
    """6 N* D* over C: catches a law whose D is in another unit than its N, and says what `COUNTS` says."""
    assert 6 * law.params.at(1e21) * law.tokens.at(1e21) / 1e21 == pytest.approx(share, rel=0.01)
    assert COUNTS[law.count].six_nd == (abs(share - 1) < 0.1)


def test_exponents_of_size_and_data_add_up_to_1():
    """C = k N D leaves no other choice; the papers' digits are fitted apart, so within 1 %."""
    for law in PUBLISHED:
        if law.tokens is not None:
            assert law.params.exponent + law.tokens.exponent == pytest.approx(1, abs=0.01), law.name


def test_losses_and_ranges():
    """Catches an exponent of a loss without its sign, and a range that does not hold the law's own sizes."""
    assert LIANG.loss.at(1e21) == pytest.approx(2.3943 * 10 ** (-21 * 0.0273)) and LIANG.loss.at(1e18) > LIANG.loss.at(
        1e21
    )
    assert ABRA.loss.at(1e21) + ABRA.offset == pytest.approx(0.615, abs=0.001)
    for law in PUBLISHED:
        assert law.arxiv and law.setting and law.count in COUNTS
        if law.range is not None and law.params.coefficient is not None:
            assert 0.2 * law.sizes[0] < law.params.at(law.range[0]) < law.params.at(law.range[1]) < 2 * law.sizes[1]
    least, most = HUNYUAN_IMAGE.range
    assert np.allclose(HUNYUAN_IMAGE.params.at(np.array([least, most])), [92e6, 6.6e9])


def test_a_slope_alone_has_no_value():
    with pytest.raises(ConfigError, match="the slope alone is known"):
        LIANG_CROSS.params.at(1e20)
