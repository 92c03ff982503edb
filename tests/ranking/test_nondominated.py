"""Non-dominated sorting against its definition, with many ties."""

import numpy as np
import pytest

from rfjax.ranking.nondominated import nondominated_ranks


def by_the_definition(points):
    """Removes the Pareto-optimal points again and again, one comparison at a time."""
    ranks, left, rank = {}, [i for i, p in enumerate(points) if np.isfinite(p).all()], 0
    while left:
        rank += 1
        front = [
            i
            for i in left
            if not any(
                points[j][0] >= points[i][0] and points[j][1] <= points[i][1] and tuple(points[j]) != tuple(points[i])
                for j in left
            )
        ]
        ranks |= dict.fromkeys(front, rank)
        left = [i for i in left if i not in front]
    return [ranks.get(i, rank + 1) for i in range(len(points))]


@pytest.mark.parametrize("values", [3, 6, 1000])
def test_ranks_are_those_of_the_definition(values):
    """Points of 3 x 3, 6 x 6 and 1000 x 1000 places, so that ties in one measure and duplicates abound. Would
    catch a comparison that is strict in both, a distance taken as better up, and fronts counted from 0."""
    rng = np.random.default_rng(values)
    for n in (1, 2, 5, 20, 61):
        sets = rng.integers(0, values, (20, n, 2)).astype(float)
        sets[10:][rng.random((10, n)) < 0.15, 1] = np.nan
        found = nondominated_ranks(sets[..., 0], sets[..., 1])
        for points, ranks in zip(sets, found, strict=True):
            assert ranks.tolist() == by_the_definition(points)
            np.testing.assert_array_equal(nondominated_ranks(points[:, 0], points[:, 1]), ranks)


@pytest.mark.parametrize(
    ("alignment", "distance", "ranks"),
    [
        ([0.9, 0.9], [1.0, 1.0], [1, 1]),  # equal in both: one front
        ([0.9, 0.9], [1.0, 2.0], [1, 2]),  # equal in one, worse in the other
        ([0.8, 0.9], [1.0, 1.0], [2, 1]),
        ([0.9, 0.8], [2.0, 1.0], [1, 1]),  # a trade-off
        ([0.9, 0.8, 0.7, 0.8], [1.0, 2.0, 3.0, 2.0], [1, 2, 3, 2]),
        ([0.9, np.nan, 0.8, 0.7], [1.0, 2.0, 2.0, np.nan], [1, 3, 2, 3]),  # diverged: after the worst
        ([np.nan, np.nan], [np.nan, 1.0], [1, 1]),
    ],
)
def test_ties_trade_offs_and_what_diverged(alignment, distance, ranks):
    """Would catch duplicates that dominate each other, and a nan that wins because nothing compares with it."""
    assert nondominated_ranks(np.array(alignment), np.array(distance)).tolist() == ranks
