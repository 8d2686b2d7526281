"""The digital baseline: rates, rounding, outage, time and energy."""

import math
from dataclasses import replace

import numpy as np
import pytest

from fl_app.wireless.aggregate import aggregate
from fl_app.wireless.channel import ChannelState, Fading, draw_state
from fl_app.wireless.codes import SIDE_BITS
from fl_app.wireless.digital import Ofdma, aggregate_digitally
from fl_app.wireless.errors import ChannelError
from fl_app.wireless.ofdma import capacity_bits_per_use
from fl_app.wireless.power import ZeroForcing
from fl_app.wireless.quantise import quantise
from tests.oracles.air_digital import (
    air_seconds,
    ofdma_seconds,
    rayleigh_outage,
    rounding_variance,
)


def _flat(num_devices: int, noise_power: float) -> ChannelState:
    ones = np.ones((num_devices, 2), complex)
    return ChannelState(ones, ones, noise_power, np.ones(num_devices))


def test_rounding_is_unbiased_with_its_closed_variance() -> None:
    """Five standard errors over 4000 roundings; the variance entry by entry from the levels."""
    update = np.random.default_rng(1).standard_normal(40)
    rng = np.random.default_rng(2)
    rounds = [quantise(update, 3, rng) for _ in range(4000)]
    values = np.array([r.values() for r in rounds])
    closed = rounding_variance(update.tolist(), 3)
    assert rounds[0].variance == pytest.approx(closed, rel=1e-9)
    error = values.std(axis=0, ddof=1) / math.sqrt(4000)
    assert (np.abs(values.mean(axis=0) - update) <= 5.0 * error + 1e-12).all()
    squares = ((values - update) ** 2).mean(axis=1)
    assert abs(squares.mean() - closed) <= 5.0 * squares.std() / math.sqrt(4000)
    assert {int(c) for r in rounds for c in r.codes} <= set(range(8))


def test_entries_on_levels_and_constants_are_kept_exactly() -> None:
    rng = np.random.default_rng(3)
    grid = quantise(np.array([0.0, 1.0, 3.0, 2.0]), 2, rng)
    assert grid.codes.tolist() == [0, 1, 3, 2]
    assert grid.variance == 0.0
    still = quantise(np.full(3, -0.7), 4, rng)
    assert still.values().tolist() == [-0.7] * 3
    for bits in (0, 25):
        with pytest.raises(ChannelError, match="bits"):
            quantise(np.ones(2), bits, rng)
    with pytest.raises(ChannelError, match="finite"):
        quantise(np.array([np.nan]), 4, rng)


def test_uniform_fractions_make_a_sixth_of_a_squared_step() -> None:
    """E f (1 - f) = 1/6 for uniform f; five standard errors over 100000 entries."""
    update = np.random.default_rng(4).random(100_000)
    sent = quantise(update, 4, np.random.default_rng(5))
    fraction = (update - sent.low) / sent.step % 1.0
    error = (fraction * (1 - fraction)).std() * sent.step**2 / math.sqrt(100_000)
    assert abs(sent.variance - sent.step**2 / 6.0) <= 5.0 * error


def test_time_against_aggregation_in_the_air_is_the_identity() -> None:
    """T_OFDMA / T_Air = 2 K Q / log2(1 + g): 92.5 for 10 devices, 16 bits and 10 dB."""
    num_devices, num_params, bits = 10, 20_000, 16
    updates = np.random.default_rng(6).standard_normal((num_devices, num_params))
    state = _flat(num_devices, 0.1)
    setup = Ofdma(bits=bits, bandwidth_hz=2e6, power="density")
    _, digital = aggregate_digitally(
        updates, np.ones(num_devices), state, setup, np.random.default_rng(0)
    )
    expected = ofdma_seconds(num_devices, num_params, bits, SIDE_BITS, 2e6, 10.0)
    assert digital.seconds == pytest.approx(expected, rel=1e-12)
    _, air = aggregate(
        updates, np.ones(num_devices), state, ZeroForcing(), np.random.default_rng(0)
    )
    assert air.channel_uses / 2e6 == pytest.approx(air_seconds(num_params, 2e6))
    identity = 2.0 * num_devices * bits / math.log2(11.0)
    assert identity == pytest.approx(92.5, abs=0.01)
    with_side = identity * (1.0 + SIDE_BITS / (bits * num_params))
    assert digital.seconds / (air.channel_uses / 2e6) == pytest.approx(with_side, rel=1e-12)
    # both radiate P / B joules a channel use
    assert digital.joules == pytest.approx(np.full(num_devices, expected / num_devices))
    assert digital.payload_bytes.tolist() == [num_params * bits // 8] * num_devices
    assert digital.control_bytes.tolist() == [SIDE_BITS // 8] * num_devices
    assert digital.channel_uses == num_devices * math.ceil(num_params * bits / math.log2(11.0))
    assert digital.control_uses == num_devices * math.ceil(SIDE_BITS / math.log2(11.0))


def test_capacity_averages_over_subcarriers() -> None:
    gains = np.array([[1.0, 2.0j], [0.0, 0.0]])
    capacity = capacity_bits_per_use(gains, 0.5, np.array([1.0, 1.0]))
    assert capacity.tolist() == pytest.approx([(math.log2(3.0) + math.log2(9.0)) / 2.0, 0.0])
    assert capacity_bits_per_use(gains, 0.0, np.ones(2)).tolist() == [math.inf, 0.0]


def test_outage_at_a_fixed_rate_is_that_of_rayleigh_fading() -> None:
    """Five standard errors over 4000 devices; survivors are renormalised."""
    state = draw_state(Fading(), 7, 0, mean_gains=np.ones(4000), noise_power=0.1)
    setup = Ofdma(bits=24, target_bits_per_use=1.5, power="density")
    updates = np.random.default_rng(8).standard_normal((4000, 2))
    mean, report = aggregate_digitally(
        updates, np.ones(4000), state, setup, np.random.default_rng(0), power=2.0
    )
    share = rayleigh_outage(1.5, 0.1, 2.0)
    assert abs(report.is_silent.mean() - share) <= 5.0 * math.sqrt(share * (1 - share) / 4000)
    assert mean is not None
    assert np.allclose(mean, updates[~report.is_silent].mean(axis=0), atol=1e-6)
    # a failed packet costs as much
    assert np.allclose(report.joules, 2.0 * report.seconds / 4000)


def test_adapting_to_a_wrong_estimate_fails_where_it_promised_too_much() -> None:
    """Where nobody knows that the estimate is wrong."""
    drawn = draw_state(Fading(), 9, 0, mean_gains=np.ones(200), noise_power=0.1, csi_error=0.3)
    state = replace(drawn, csi_error=0.0)
    updates = np.random.default_rng(9).standard_normal((200, 3))
    _, report = aggregate_digitally(updates, np.ones(200), state, Ofdma(), np.random.default_rng(0))
    too_much = np.abs(state.known_gains[:, 0]) > np.abs(state.gains[:, 0])
    assert np.array_equal(report.is_silent, too_much)
    right = ChannelState(state.gains, state.gains, 0.1, np.ones(200))
    _, sure = aggregate_digitally(updates, np.ones(200), right, Ofdma(), np.random.default_rng(0))
    assert not sure.is_silent.any()


def test_predicted_error_is_met_and_shrinks_fourfold_per_bit() -> None:
    """Mean over 200 rounds within five standard errors of the expected one."""
    rng = np.random.default_rng(10)
    updates, weights = rng.standard_normal((3, 2000)), np.array([1.0, 2.0, 5.0])
    state = _flat(3, 0.1)
    reports = [
        aggregate_digitally(updates, weights, state, Ofdma(bits=4), rng)[1] for _ in range(200)
    ]
    realised = np.array([r.realised_mse for r in reports])
    error = realised.std(ddof=1) / math.sqrt(200)
    assert abs(realised.mean() - reports[0].expected_mse) <= 5.0 * error
    # E f (1 - f) = 1 / 6 has a variance of 1 / 30 - 1 / 36 over uniform fractions f
    shares = (weights / 8.0 * np.ptp(updates, axis=1) / 15.0) ** 2
    spread = math.sqrt((1.0 / 30.0 - 1.0 / 36.0) * float(shares @ shares) / 2000)
    assert abs(reports[0].predicted_mse - reports[0].expected_mse) <= 5.0 * spread
    _, finer = aggregate_digitally(updates, weights, state, Ofdma(bits=5), rng)
    ratio = reports[0].predicted_mse / finer.predicted_mse
    assert ratio == pytest.approx((31 / 15) ** 2, rel=1e-9)


def test_floors_losses_and_nobody() -> None:
    gains = np.array([[1.0], [0.1], [1.0], [0.0]], dtype=complex)
    state = ChannelState(gains, gains, 0.1, np.ones(4))
    updates = np.arange(8.0).reshape(4, 2)
    lost = np.array([False, False, True, False])
    mean, report = aggregate_digitally(
        updates,
        np.ones(4),
        state,
        Ofdma(gain_floor=0.2),
        np.random.default_rng(0),
        is_lost=lost,
    )
    assert report.is_silent.tolist() == [False, True, True, True]
    assert mean is not None
    assert np.allclose(mean, updates[0])
    assert report.joules[1:].tolist() == [0.0, 0.0, 0.0]
    mean, report = aggregate_digitally(
        updates, np.ones(4), state, Ofdma(gain_floor=2.0), np.random.default_rng(0)
    )
    assert mean is None
    assert report.seconds == 0.0
    assert report.realised_nmse == pytest.approx(1.0)


def test_inputs_are_unchanged_and_types_kept() -> None:
    updates = np.random.default_rng(11).standard_normal((2, 5)).astype(np.float32)
    before = updates.tobytes()
    mean, _ = aggregate_digitally(
        updates, np.ones(2), _flat(2, 0.0), Ofdma(bits=24), np.random.default_rng(0)
    )
    assert mean is not None
    assert mean.dtype == np.float32
    assert np.allclose(mean, updates.mean(axis=0), atol=1e-6)
    assert updates.tobytes() == before


def test_what_cannot_be_sent_is_refused() -> None:
    rng = np.random.default_rng(0)
    for field, value in (
        ("bits", 0),
        ("bandwidth_hz", 0.0),
        ("target_bits_per_use", -1.0),
        ("gain_floor", math.nan),
    ):
        with pytest.raises(ChannelError, match=field):
            Ofdma(**{field: value})  # type: ignore[arg-type]
    with pytest.raises(ChannelError, match="device 1"):
        aggregate_digitally(np.array([[1.0], [np.inf]]), np.ones(2), _flat(2, 0.1), Ofdma(), rng)
    with pytest.raises(ChannelError, match="2 devices"):
        aggregate_digitally(np.ones((3, 1)), np.ones(3), _flat(2, 0.1), Ofdma(), rng)
    with pytest.raises(ChannelError, match="is_lost"):
        aggregate_digitally(
            np.ones((2, 1)), np.ones(2), _flat(2, 0.1), Ofdma(), rng, is_lost=np.ones(1, bool)
        )
