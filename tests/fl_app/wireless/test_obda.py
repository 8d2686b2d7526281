"""One-bit aggregation: votes without noise, the chance of an error with it, and its edges."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import exp1

from fl_app.wireless.channel import ChannelState, Fading, draw_state
from fl_app.wireless.errors import ChannelError
from fl_app.wireless.obda import majority_vote
from fl_app.wireless.power import TruncatedInversion
from tests.oracles.air_votes import error_chance, noise_free_votes

_CONTROL = TruncatedInversion(gain_floor=0.05)


def _state(seed: int, num_devices: int, noise_power: float, **errors: float) -> ChannelState:
    return draw_state(
        Fading(num_subcarriers=3),
        seed,
        0,
        mean_gains=np.ones(num_devices),
        noise_power=noise_power,
        **errors,
    )


@given(seed=st.integers(0, 1000), num_devices=st.integers(1, 7), num_params=st.integers(1, 20))
@settings(derandomize=True, max_examples=40, deadline=None)
def test_without_noise_votes_are_the_signs_of_what_antennas_radiate(
    seed: int, num_devices: int, num_params: int
) -> None:
    """With CSI error and jitter; abstentions and ties among the entries."""
    updates = np.random.default_rng(seed).integers(-2, 3, (num_devices, num_params)).astype(float)
    state = _state(seed, num_devices, 0.0, csi_error=0.1, jitter_rad=0.2)
    plan = _CONTROL.plan(state, np.ones(num_devices), np.ones(num_devices))
    votes, report = majority_vote(updates, state, _CONTROL, np.random.default_rng(0))
    expected = noise_free_votes(updates.tolist(), state.gains.tolist(), plan.precoders.tolist())
    if votes is None:
        assert report.unheard_reals == num_params
        assert not any(expected)
        return
    assert votes.dtype == np.int8
    unsure = [i for i in range(num_params) if not expected[i]]  # rounding decides exact ties
    sure = np.setdiff1d(np.arange(num_params), unsure)
    assert np.array_equal(votes[sure], np.array(expected, np.int8)[sure])
    assert report.realised_error_rate == pytest.approx(report.predicted_error_rate)


@pytest.mark.parametrize("in_favour", [4, 5, 7])
def test_vote_error_is_the_q_function(in_favour: int) -> None:
    """Closed form, its prediction in the report, and 40000 votes within five standard errors."""
    num_devices, num_params, noise_power = 7, 40_000, 2.0
    signs = np.where(np.arange(num_devices) < in_favour, 1.0, -1.0)
    flips = np.random.default_rng(1).choice([-1.0, 1.0], num_params)
    gains = np.exp(1j * np.arange(num_devices))[:, None]
    state = ChannelState(gains, gains, noise_power, np.ones(num_devices))
    votes, report = majority_vote(signs[:, None] * flips, state, _CONTROL, np.random.default_rng(2))
    amplitude = math.sqrt(1.0 / exp1(0.05))
    closed = error_chance(in_favour, num_devices, amplitude, noise_power)
    assert report.predicted_error_rate == pytest.approx(closed, rel=1e-6)
    deviation = math.sqrt(closed * (1 - closed) / num_params)
    assert report.predicted_deviation == pytest.approx(deviation, rel=1e-5)
    assert abs(report.realised_error_rate - closed) <= 5.0 * deviation
    assert votes is not None
    assert np.mean(votes != flips) == report.realised_error_rate


def test_votes_ignore_magnitudes_and_weigh_devices_alike() -> None:
    """One large entry against two small ones loses."""
    updates = np.array([[100.0, -1e-9], [-1e-6, -5.0], [-1e-12, 3.0]])
    state = _state(3, 3, 0.0)
    ones = ChannelState(np.ones((3, 3), complex), np.ones((3, 3), complex), 0.0, np.ones(3))
    votes, _ = majority_vote(updates, ones, _CONTROL, np.random.default_rng(0))
    assert votes is not None
    assert votes.tolist() == [-1, -1]
    before = updates.tobytes()
    majority_vote(updates, state, _CONTROL, np.random.default_rng(0))
    assert updates.tobytes() == before


def test_permuting_devices_or_scaling_updates_changes_no_vote() -> None:
    updates = np.random.default_rng(4).standard_normal((5, 33))
    state = _state(4, 5, 0.3)
    order = np.array([3, 1, 4, 0, 2])
    turned = ChannelState(state.gains[order], state.known_gains[order], 0.3, np.ones(5))
    votes, one = majority_vote(updates, state, _CONTROL, np.random.default_rng(5))
    other, two = majority_vote(1e5 * updates[order], turned, _CONTROL, np.random.default_rng(5))
    assert votes is not None
    assert other is not None
    assert np.array_equal(votes, other)
    assert one.predicted_error_rate == pytest.approx(two.predicted_error_rate)
    assert np.allclose(one.tx_power[order], two.tx_power)


def test_two_votes_share_a_channel_use_and_power_is_kept() -> None:
    updates = np.random.default_rng(6).standard_normal((4, 101))
    control = TruncatedInversion(gain_floor=0.05, budget="per_use")
    _, report = majority_vote(
        updates, _state(6, 4, 0.1), control, np.random.default_rng(0), power=2.0
    )
    assert report.channel_uses == 51
    assert report.announced_bytes == 3 * 4  # a factor of every subcarrier
    assert (report.tx_power <= 2.0 + 1e-12).all()
    _, steady = majority_vote(updates, _state(6, 4, 0.1), _CONTROL, np.random.default_rng(0))
    assert steady.announced_bytes == 4  # one for all
    ones = ChannelState(np.ones((4, 1), complex), np.ones((4, 1), complex), 0.1, np.ones(4))
    _, full = majority_vote(updates[:, :100], ones, control, np.random.default_rng(0), power=2.0)
    assert full.tx_power.tolist() == pytest.approx([2.0] * 4)  # E|c|^2 = 1 of two signs
    updates[0] = 0.0
    _, quiet = majority_vote(updates, _state(6, 4, 0.1), control, np.random.default_rng(0))
    assert quiet.tx_power[0] == 0.0


def test_silence_and_loss() -> None:
    updates = np.ones((2, 4))
    deep = np.full((2, 1), 1e-9 + 0j)
    votes, report = majority_vote(
        updates, ChannelState(deep, deep, 0.1, np.ones(2)), _CONTROL, np.random.default_rng(0)
    )
    assert votes is None
    assert report.is_silent.all()
    assert report.unheard_reals == 4
    assert report.realised_error_rate == 1.0
    ones = ChannelState(np.ones((2, 1), complex), np.ones((2, 1), complex), 0.0, np.ones(2))
    updates[0] = -1.0
    votes, report = majority_vote(
        updates, ones, _CONTROL, np.random.default_rng(0), is_lost=np.array([True, False])
    )
    assert votes is not None
    assert votes.tolist() == [1, 1, 1, 1]
    assert report.is_silent.tolist() == [True, False]
    assert report.decided_reals == 0  # the scheduled devices tie


def test_what_cannot_be_sent_is_refused() -> None:
    state = _state(7, 2, 0.1)
    rng = np.random.default_rng(0)
    with pytest.raises(ChannelError, match="device 1"):
        majority_vote(np.array([[1.0], [np.nan]]), state, _CONTROL, rng)
    with pytest.raises(ChannelError, match="2 devices"):
        majority_vote(np.ones((3, 1)), state, _CONTROL, rng)
    with pytest.raises(ChannelError, match="power"):
        majority_vote(np.ones((2, 1)), state, _CONTROL, rng, power=-1.0)
    with pytest.raises(ChannelError, match="is_lost"):
        majority_vote(np.ones((2, 1)), state, _CONTROL, rng, is_lost=np.ones(3, bool))
    with pytest.raises(ChannelError, match="updates"):
        majority_vote(np.ones(3), state, _CONTROL, rng)
