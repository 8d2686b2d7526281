"""A pool of directions, and a walk along some of them."""

import numpy as np
import pytest

from fl_app.errors import ModelError
from fl_app.seed_pool import SeedPool, Walk
from fl_app.updates import Update
from fl_app.zeroth_order import Pair, direction, perturbed, rebuild, shapes_of

_THETA: Update = {
    name: np.random.default_rng(3).normal(0, 1, shape).astype(np.float32)
    for name, shape in {"b": (4,), "a": (2, 3)}.items()
}
_POOL = SeedPool(8, seed=1)


def test_pools_of_one_seed_are_equal_and_begin_alike() -> None:
    assert SeedPool(8, seed=1).seeds == _POOL.seeds
    assert SeedPool(4, seed=1).seeds == _POOL.seeds[:4]
    assert not set(SeedPool(8, seed=2).seeds) & set(_POOL.seeds)
    assert len(set(SeedPool(1024, seed=0).seeds)) == 1024
    assert all(0 <= seed < 2**63 for seed in _POOL.seeds)


def test_coefficients_are_sums_by_direction() -> None:
    pairs = [Pair(_POOL.seeds[5], 0.25), Pair(_POOL.seeds[0], -1.5), Pair(_POOL.seeds[5], 0.5)]
    sums = _POOL.coefficients(pairs)
    assert sums.dtype == np.float32
    assert sums.tolist() == [-1.5, 0, 0, 0, 0, 0.75, 0, 0]
    assert _POOL.pairs(sums) == [Pair(_POOL.seeds[0], -1.5), Pair(_POOL.seeds[5], 0.75)]


def test_a_strange_seed_is_refused() -> None:
    with pytest.raises(ModelError, match="not of the pool of 8"):
        _POOL.coefficients([Pair(1, 0.5)])


def test_a_walk_looks_to_both_sides_of_where_it_stands() -> None:
    walk = Walk(_THETA, _POOL.seeds[:2], lr=0.5, eps=0.125)
    above, below = walk.sides()
    for name in _THETA:
        assert np.array_equal(above[name], perturbed(_THETA, _POOL.seeds[0], 0.125)[name])
        assert np.array_equal(below[name], perturbed(_THETA, _POOL.seeds[0], -0.125)[name])
    walk.step(2.0)
    z = direction(_POOL.seeds[0], shapes_of(_THETA))
    second = direction(_POOL.seeds[1], shapes_of(_THETA))
    above, below = walk.sides()
    for name, array in _THETA.items():
        wanted = array.astype(np.float64) - 0.5 * 2.0 * z[name]
        np.testing.assert_allclose(walk.theta()[name], wanted, rtol=1e-6)
        np.testing.assert_allclose((above[name] + below[name]) / 2, wanted, rtol=1e-6, atol=1e-7)
        np.testing.assert_allclose(
            (above[name] - below[name]) / 0.25, second[name], rtol=1e-5, atol=1e-5
        )


def test_a_walk_ends_where_its_pairs_are_rebuilt() -> None:
    """To the last digit of float32: a thousand steps, each below that digit."""
    seeds = [_POOL.seeds[i % 8] for i in range(1000)]
    walk = Walk(_THETA, seeds, lr=1e-9, eps=0.1)
    while not walk.is_done:
        walk.sides()
        walk.step(1.0)
    assert len(walk.pairs) == 1000
    rebuilt = rebuild(_THETA, walk.pairs, 1e-9)
    for name, array in walk.theta().items():
        np.testing.assert_allclose(array, rebuilt[name], rtol=2e-7)
        assert not np.array_equal(array, _THETA[name])


def test_slopes_are_those_that_are_sent() -> None:
    walk = Walk(_THETA, _POOL.seeds[:1], lr=1.0, eps=0.1)
    walk.sides()
    walk.step(0.1)
    assert walk.pairs == [Pair(_POOL.seeds[0], float(np.float32(0.1)))]


@pytest.mark.parametrize("slope", [float("nan"), float("inf"), -1e39])
def test_a_slope_that_is_no_float32_is_refused(slope: float) -> None:
    walk = Walk(_THETA, _POOL.seeds[:1], lr=1.0, eps=0.1)
    walk.sides()
    with pytest.raises(ModelError, match="slope of step 0"):
        walk.step(slope)
    assert walk.pairs == []


def test_what_overflows_is_infinite() -> None:
    """Silently: who uses it checks that it is finite."""
    walk = Walk(_THETA, _POOL.seeds[:2], lr=1e10, eps=0.1)
    walk.sides()
    walk.step(1e38)
    assert not all(np.isfinite(array).all() for array in walk.theta().values())
    assert not all(np.isfinite(array).all() for side in walk.sides() for array in side.values())
