"""Means and spreads of updates, and what is refused before anything is sent."""

import numpy as np
import pytest

from fl_app.wireless.errors import ChannelError
from fl_app.wireless.standardise import block_bounds, check_updates, moments
from tests.oracles.air_sum import root_mean_square, standardised


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("offset", [0.0, 3.0, 300.0])
def test_moments_are_those_of_the_definition(dtype: type, offset: float) -> None:
    """Over several chunks; an offset catches E u^2 - m^2, which loses digits."""
    updates = (np.random.default_rng(1).standard_normal((2, 40_001)) + offset).astype(dtype)
    side = moments(updates, None, removes_mean=True)
    tolerance = 2e-6 if dtype is np.float32 else 1e-12
    for k in range(2):
        mean, spread, _ = standardised(updates[k].tolist())
        assert abs(side.means[k] - mean) <= tolerance * max(1.0, abs(offset))
        assert side.spreads[k] == pytest.approx(spread, rel=tolerance)
        _, square, _ = root_mean_square(updates[k].tolist())
        kept = moments(updates, None, removes_mean=False)
        assert kept.means[k] == 0.0
        assert kept.spreads[k] == pytest.approx(square, rel=tolerance)


def test_absent_entries_are_not_looked_at() -> None:
    updates = np.array([[1.0, np.nan, 3.0], [np.inf, np.nan, np.nan]])
    presence = np.array([[True, False, True], [False, False, False]])
    side = moments(updates, presence, removes_mean=True)
    assert side.means.tolist() == [2.0, 0.0]
    assert side.spreads.tolist() == [1.0, 0.0]
    assert side.present.tolist() == [2 / 3, 0.0]


@pytest.mark.parametrize("scale", [1e-30, 1e25])
def test_float32_updates_too_small_or_large_to_square_are_squared_in_float64(scale: float) -> None:
    """(1e-30)^2 is 0 in float32, which would look like a constant update."""
    updates = (np.array([[1.0, -2.0, 4.0]]) * scale).astype(np.float32)
    _, spread, _ = standardised([1.0, -2.0, 4.0])
    assert moments(updates, None, True).spreads[0] == pytest.approx(spread * scale, rel=1e-6)


@pytest.mark.parametrize("value", [0.0, 0.1, -1e6])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_constant_update_has_no_spread(value: float, dtype: type) -> None:
    """Also where the mean of equal numbers is not quite that number."""
    side = moments(np.full((1, 50_001), value, dtype=dtype), None, removes_mean=True)
    assert side.spreads[0] == 0.0
    assert side.means[0] == pytest.approx(value, rel=1e-6)


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e200])
def test_an_update_that_is_not_finite_names_its_device(bad: float) -> None:
    updates = np.ones((3, 4))
    updates[1, 2] = bad
    with pytest.raises(ChannelError, match="device 1"):
        moments(updates, None, removes_mean=True)


def test_blocks_must_tile_the_update() -> None:
    assert block_bounds(None, 5) == [(0, 5)]
    assert block_bounds([2, 3], 5) == [(0, 2), (2, 5)]
    for blocks in ([2, 2], [5, 0], []):
        with pytest.raises(ChannelError, match="blocks"):
            block_bounds(blocks, 5)


def test_weights_and_updates_are_checked() -> None:
    good = np.ones((2, 3))
    assert check_updates(good, np.array([1.0, 3.0])).tolist() == [0.25, 0.75]
    for weights in ([1.0], [1.0, -1.0], [0.0, 0.0], [1.0, np.nan]):
        with pytest.raises(ChannelError, match="weights"):
            check_updates(good, np.array(weights))
    for updates in (np.ones(3), np.ones((0, 3)), np.ones((2, 0)), np.ones((2, 3), int)):
        with pytest.raises(ChannelError, match="updates"):
            check_updates(updates, np.ones(2))
