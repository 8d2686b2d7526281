"""Conversions between decibels and linear quantities."""

import math

import pytest

from fl_app.wireless.units import db_to_linear, dbm_to_watt, linear_to_db, noise_power_from_tx_snr


@pytest.mark.parametrize(
    ("value_db", "ratio"), [(0.0, 1.0), (10.0, 10.0), (-20.0, 0.01), (math.inf, math.inf)]
)
def test_decibels_and_ratios_convert_both_ways(value_db: float, ratio: float) -> None:
    assert db_to_linear(value_db) == pytest.approx(ratio)
    assert linear_to_db(ratio) == pytest.approx(value_db)


def test_nothing_is_minus_infinity_decibels() -> None:
    assert linear_to_db(0.0) == -math.inf
    assert db_to_linear(-math.inf) == 0.0


def test_23_dbm_is_a_fifth_of_a_watt() -> None:
    """10^2.3 mW = 199.5 mW."""
    assert dbm_to_watt(23.0) == pytest.approx(0.19953, rel=1e-4)
    assert dbm_to_watt(30.0) == 1.0


def test_noise_power_follows_from_the_tx_snr() -> None:
    assert noise_power_from_tx_snr(20.0, power=3.0) == pytest.approx(0.03)
    assert noise_power_from_tx_snr(math.inf) == 0.0
