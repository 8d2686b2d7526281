"""Placement, path loss and noise of a cell."""

import math

import numpy as np
import pytest

from fl_app.wireless.cell import Cell, path_loss_db
from fl_app.wireless.errors import ChannelError


def test_path_loss_at_one_kilometre_and_ten_times_that() -> None:
    """128.1 dB, and 37.6 dB more per decade."""
    losses = path_loss_db(np.array([1000.0, 10_000.0]))
    assert losses.tolist() == pytest.approx([128.1, 165.7])


def test_devices_are_spread_evenly_over_the_area() -> None:
    """(d^2 - r0^2) / (r^2 - r0^2) is uniform, mean 1/2 and standard deviation 1 / sqrt(12)."""
    cell = Cell(radius_m=400.0, min_distance_m=100.0)
    distances = cell.distances_m(1, range(3000))
    assert distances.min() >= 100.0
    assert distances.max() <= 400.0
    shares = (distances**2 - 1e4) / (16e4 - 1e4)
    assert abs(shares.mean() - 0.5) < 5.0 / math.sqrt(12.0 * 3000)


def test_shadowing_is_gaussian_in_decibels_around_the_path_loss() -> None:
    cell = Cell(shadowing_db=6.0)
    shadows = -10.0 * np.log10(cell.mean_gains(2, range(3000))) - path_loss_db(
        cell.distances_m(2, range(3000))
    )
    assert abs(shadows.mean()) < 5.0 * 6.0 / math.sqrt(3000)
    assert abs((shadows**2).mean() - 36.0) < 5.0 * 36.0 * math.sqrt(2.0 / 3000)


def test_noise_of_one_megahertz() -> None:
    """-174 + 60 + 5 = -109 dBm."""
    cell = Cell(bandwidth_hz=1e6, noise_figure_db=5.0, shadowing_db=0.0)
    assert 10.0 * math.log10(cell.noise_power_w() * 1000.0) == pytest.approx(-109.0)


def test_a_device_stays_where_it_is_when_others_join() -> None:
    cell = Cell()
    assert np.array_equal(cell.mean_gains(4, range(9))[[1, 7]], cell.mean_gains(4, [1, 7]))


@pytest.mark.parametrize(
    ("field", "value"),
    [("min_distance_m", 0.0), ("shadowing_db", -1.0), ("bandwidth_hz", 0.0), ("radius_m", 20.0)],
)
def test_a_cell_refuses_values_out_of_range(field: str, value: float) -> None:
    with pytest.raises(ChannelError, match=field):
        Cell(**{field: value})
