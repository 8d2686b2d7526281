"""Shares of the band: equal finish, and no optimiser finds better."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize

from fl_app.resources.links import rate_bps
from fl_app.scheduling.bandwidth import equal_finish, equal_split, needed_hz
from fl_app.scheduling.errors import ScheduleError
from fl_app.scheduling.uplinks import Shannon

_BAND = 1e6


def instance(seed: int, num_devices: int = 4) -> tuple[Any, Any, Any]:
    rng = np.random.default_rng(seed)
    bits = rng.uniform(1e5, 5e6, num_devices)
    return bits, rng.uniform(0.0, 2.0, num_devices), _BAND * 10.0 ** rng.uniform(-1, 3, num_devices)


@settings(deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 9))
def test_all_finish_together_on_the_whole_band(seed: int, num_devices: int) -> None:
    bits, compute_s, snr = instance(seed, num_devices)
    split = equal_finish(bits, compute_s, Shannon(snr), _BAND)
    np.testing.assert_allclose(split.finish_s, split.round_s, rtol=1e-6)
    assert split.bandwidths_hz.sum() == pytest.approx(_BAND, rel=1e-6)
    assert split.bandwidths_hz.sum() <= _BAND * (1.0 + 1e-12)
    by_hand = compute_s + bits / rate_bps(split.bandwidths_hz, snr)
    np.testing.assert_allclose(split.finish_s, by_hand)
    assert split.round_s <= equal_split(bits, compute_s, Shannon(snr), _BAND).round_s * (1.0 + 1e-9)


def test_no_optimiser_beats_it() -> None:
    for seed in range(10):
        bits, compute_s, snr = instance(seed)
        ours = equal_finish(bits, compute_s, Shannon(snr), _BAND).round_s

        def end(logits: Any, inst: Any = (bits, compute_s, snr)) -> float:
            shares = np.exp(logits - logits.max())
            payload, busy, link = inst
            return float((busy + payload / rate_bps(_BAND * shares / shares.sum(), link)).max())

        rng = np.random.default_rng(seed)
        found = [
            minimize(
                end,
                rng.standard_normal(4),
                method="Nelder-Mead",
                options={"maxiter": 4000, "maxfev": 4000, "xatol": 1e-10, "fatol": 1e-12},
            ).fun
            for _ in range(3)
        ]
        assert ours <= min(found) * (1.0 + 1e-9)
        assert ours == pytest.approx(min(found), rel=1e-2)  # and the optimiser comes near


@settings(deadline=None)
@given(st.integers(0, 2**32), st.floats(1.01, 20.0))
def test_more_band_and_more_power_make_rounds_shorter(seed: int, factor: float) -> None:
    bits, compute_s, snr = instance(seed)
    plain = equal_finish(bits, compute_s, Shannon(snr), _BAND).round_s
    assert equal_finish(bits, compute_s, Shannon(snr), factor * _BAND).round_s < plain
    assert equal_finish(bits, compute_s, Shannon(factor * snr), _BAND).round_s < plain


def test_equal_devices_share_equally() -> None:
    split = equal_finish(np.full(4, 1e6), np.ones(4), Shannon(np.full(4, 1e7)), _BAND)
    np.testing.assert_allclose(split.bandwidths_hz, _BAND / 4, rtol=1e-6)


def test_a_device_with_nothing_to_send_gets_no_band() -> None:
    bits, compute_s = np.array([0.0, 1e6]), np.array([9.0, 0.0])
    split = equal_finish(bits, compute_s, Shannon(np.full(2, 1e7)), _BAND)
    assert split.bandwidths_hz[0] == 0.0
    assert split.round_s == pytest.approx(9.0)
    silent = equal_finish(np.zeros(2), compute_s, Shannon(np.full(2, 1e7)), _BAND)
    assert (silent.round_s, silent.bandwidths_hz.sum()) == (9.0, 0.0)


def test_no_band_is_enough_beyond_the_limit_of_the_power() -> None:
    limit = 1e6 / np.log(2.0)  # bit/s at any band
    ends = np.array([0.9, 1.0, 1.1]) * 1e6 / limit
    bits, link = np.array([1e6]), Shannon(np.array([1e6]))
    needed = [float(needed_hz(bits, np.zeros(1), link, end)[0]) for end in ends]
    assert needed[:2] == [np.inf, np.inf]
    assert np.isfinite(needed[2])
    assert needed_hz(bits, np.array([2.0]), link, 1.0)[0] == np.inf


@pytest.mark.parametrize(
    ("bits", "band", "words"),
    [
        (np.array([1.0, -1.0]), _BAND, r"bits of devices \[1\] must be finite and >= 0"),
        (np.array([1.0, np.inf]), _BAND, r"bits of devices \[1\]"),
        (np.array([1.0]), _BAND, r"bits \(1,\), compute_s \(2,\)"),
        (np.array([1.0, 1.0]), 0.0, "bandwidth=0.0 must be finite and > 0"),
    ],
)
def test_impossible_requests_are_named(bits: Any, band: float, words: str) -> None:
    with pytest.raises(ScheduleError, match=words):
        equal_finish(bits, np.zeros(2), Shannon(np.ones(2)), band)
