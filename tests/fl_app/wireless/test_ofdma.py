"""Bits over the band: shares, power, cap, and the margin for what is not known."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from fl_app.wireless.channel import ChannelState, Fading, draw_state
from fl_app.wireless.errors import ChannelError
from fl_app.wireless.ofdma import (
    Band,
    capacity_bits_per_use,
    matched_shares,
    planned_bits_per_use,
    send_cost,
)
from tests.oracles.air_digital import share_rate


def _drawn(num_devices: int, noise_power: float = 0.1, **more: Any) -> ChannelState:
    errors = {"csi_error": more.pop("csi_error", 0.0)}
    return draw_state(
        Fading(**more), 3, 0, mean_gains=np.ones(num_devices), noise_power=noise_power, **errors
    )


@pytest.mark.parametrize(
    ("power", "noise_power"), [("whole", 10.0), ("whole", 0.01), ("density", 1.0)]
)
def test_matched_shares_fill_the_band_and_make_rates_equal(power: Any, noise_power: float) -> None:
    """Rates by a loop over subcarriers, from very low to high SNR; bisection leaves 1e-11 of 1."""
    state, band = _drawn(6, noise_power, num_subcarriers=3), Band(power=power, max_bits_per_use=9.0)
    limits = np.linspace(0.5, 2.0, 6)
    shares = matched_shares(state, limits, band)
    assert shares.sum() == pytest.approx(1.0, rel=1e-12)
    gains = np.abs(state.gains) ** 2
    rates = []
    for share, row, limit in zip(shares, gains, limits, strict=True):
        density = limit / noise_power * (1.0 if power == "whole" else share)
        rates.append(share_rate(float(share), row.tolist(), density, 9.0))
    assert min(shares) > 1e-4
    assert rates == pytest.approx([rates[0]] * 6, rel=1e-6)


def test_a_device_without_gain_gets_no_share() -> None:
    gains = np.array([[1.0], [0.0], [0.5j]])
    shares = matched_shares(ChannelState(gains, gains, 0.1, np.ones(3)), np.ones(3), Band())
    assert shares[1] == 0.0
    assert shares.sum() == pytest.approx(1.0)
    dead = ChannelState(gains * 0.0, gains * 0.0, 0.1, np.ones(3))
    assert not matched_shares(dead, np.ones(3), Band()).any()


def test_whole_power_costs_what_the_air_costs_and_density_a_share_of_it() -> None:
    """P times the time on air, or P beta of it, from first principles."""
    shares, power = np.array([0.25, 0.75]), np.array([2.0, 2.0])
    bits, per_use = np.array([300, 1]), np.array([3.0, 2.0])
    for name, radiated in (("whole", [2.0, 2.0]), ("density", [0.5, 1.5])):
        cost = send_cost(bits, per_use, shares, power, Band(bandwidth_hz=1e3, power=name))  # type: ignore[arg-type]
        assert cost.uses.tolist() == [100, 1]
        assert cost.seconds == pytest.approx(100 / 250)
        assert cost.joules == pytest.approx([radiated[0] * 0.4, radiated[1] * 0.5 / 750])
    nobody = send_cost(bits, np.zeros(2), shares, power, Band())
    assert (nobody.uses.tolist(), nobody.seconds) == ([0, 0], 0.0)


def test_every_subcarrier_is_capped_and_no_noise_is_the_cap() -> None:
    gains = np.array([[1.0, 0.0], [1.0, 10.0]])
    capped = capacity_bits_per_use(gains, 1.0, np.ones(2), 3.0)
    assert capped.tolist() == pytest.approx([0.5, (1.0 + 3.0) / 2.0])
    assert capacity_bits_per_use(gains, 0.0, np.ones(2), 3.0).tolist() == [1.5, 3.0]


@pytest.mark.parametrize("outage", [0.01, 0.1])
@pytest.mark.parametrize("csi_error", [0.05, 0.3])
@pytest.mark.parametrize("num_subcarriers", [1, 8])
def test_outage_is_what_was_asked_for_over_rayleigh_fading(
    outage: float, csi_error: float, num_subcarriers: int
) -> None:
    """Within five standard errors, of 1500 devices and of the 1000 channels behind the quantile.

    Without a margin every second device would be in outage.
    """
    state = _drawn(1500, num_subcarriers=num_subcarriers, csi_error=csi_error)
    band, ones = Band(outage=outage), np.ones(1500)
    true = capacity_bits_per_use(state.gains, 0.1, ones)
    lost = float((planned_bits_per_use(state, ones, band) > true).mean())
    error = math.sqrt(outage * (1.0 - outage) * (1.0 / 1500 + 1.0 / 1000))
    assert abs(lost - outage) <= 5.0 * error
    naive = planned_bits_per_use(replace(state, csi_error=0.0), ones, band)
    assert (naive > true).mean() > 0.4


@pytest.mark.parametrize("more", [{"kind": "awgn"}, {"kind": "rician", "rician_k": 3.0}])
def test_outage_stays_small_for_other_laws_and_small_errors(more: dict[str, Any]) -> None:
    """The margin is Rayleigh's: for these laws it may lose a little more, but no tenth of it."""
    state = _drawn(1000, csi_error=0.05, **more)
    true = capacity_bits_per_use(state.gains, 0.1, np.ones(1000))
    assert (planned_bits_per_use(state, np.ones(1000), Band()) > true).mean() <= 0.03


def test_the_margin_is_what_the_error_asks_for() -> None:
    """None at 0; it grows with the error, and at eps = 0.05 most of the rate remains."""
    ones = np.ones(200)
    kept = []
    for csi_error in (0.0, 0.02, 0.05, 0.2):
        state = _drawn(200, csi_error=csi_error, num_subcarriers=16)
        known = capacity_bits_per_use(state.known_gains, 0.1, ones)
        kept.append(float((planned_bits_per_use(state, ones, Band()) / known).mean()))
    assert kept[0] == 1.0
    assert kept == sorted(kept, reverse=True)
    assert kept[2] > 0.9


def test_what_a_band_cannot_be_is_refused() -> None:
    bad: list[dict[str, Any]] = [
        {"bandwidth_hz": math.inf},
        {"power": "most"},
        {"max_bits_per_use": math.inf},
        {"outage": 0.0},
    ]
    for options in bad:
        with pytest.raises(ChannelError, match=next(iter(options))):
            Band(**options)
