"""Receive beams against bounds and random search, and the sum behind them."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fl_app.wireless.aggregate import aggregate
from fl_app.wireless.channel import Fading, draw_antenna_gains
from fl_app.wireless.errors import ChannelError
from fl_app.wireless.power import ZeroForcing
from fl_app.wireless.simo import beamformed_state, receive_beam, receive_beams
from tests.oracles.air_beam import best_of_two_antennas


def _weakest(gains: np.ndarray, amplitudes: np.ndarray, beam: np.ndarray) -> float:
    """min_k |f^H h_k|^2 / a_k^2 as a loop."""
    return min(
        abs(np.vdot(beam, h)) ** 2 / a**2 for h, a in zip(gains, amplitudes, strict=True) if a > 0.0
    )


@given(seed=st.integers(0, 1000), num_devices=st.integers(1, 8), num_antennas=st.integers(1, 8))
@settings(derandomize=True, max_examples=40, deadline=None)
def test_a_beam_lies_between_the_best_antenna_and_the_bound(
    seed: int, num_devices: int, num_antennas: int
) -> None:
    """min_k |h_k|^2 / a_k^2 bounds every beam (Cauchy-Schwarz); permutations change no gain."""
    gains = draw_antenna_gains(Fading(), seed, 0, range(num_devices), num_antennas)[:, 0]
    amplitudes = np.random.default_rng(seed).uniform(0.2, 2.0, num_devices)
    beam = receive_beam(gains, amplitudes)
    assert np.linalg.norm(beam) == pytest.approx(1.0)
    reached = _weakest(gains, amplitudes, beam)
    antennas = [_weakest(gains, amplitudes, e) for e in np.eye(num_antennas)]
    bound = float(((np.abs(gains) ** 2).sum(axis=1) / amplitudes**2).min())
    assert max(antennas) * (1 - 1e-9) <= reached <= bound * (1 + 1e-9)
    if num_devices == 1:
        assert reached == pytest.approx(bound)
    order = np.random.default_rng(seed).permutation(num_devices)
    again = receive_beam(gains[order], amplitudes[order])
    assert _weakest(gains, amplitudes, again) == pytest.approx(reached, rel=1e-6)


def test_two_antennas_come_close_to_the_best_of_all_beams() -> None:
    """A grid of 60 x 60 angles holds every beam of two antennas, to a step of 1.5 and 6 degrees.

    Over 12 channels the design reaches the grid's best within 2 % on average, and never misses it
    by more than a tenth.
    """
    ratios = []
    for seed in range(12):
        gains = draw_antenna_gains(Fading(), seed, 2, range(4), 2)[:, 0]
        amplitudes = np.random.default_rng(seed).uniform(0.5, 1.5, 4)
        best = best_of_two_antennas(gains.tolist(), amplitudes.tolist(), 60)
        ratios.append(_weakest(gains, amplitudes, receive_beam(gains, amplitudes)) / best)
    assert np.mean(ratios) >= 0.98
    assert min(ratios) >= 0.9


def test_many_beams_at_once_are_each_designed_alone() -> None:
    """Silent devices and dead channels among them."""
    gains = draw_antenna_gains(Fading(num_subcarriers=5), 9, 0, range(4), 3).swapaxes(0, 1)
    gains[1, 2] = 0.0
    gains[3] = 0.0
    amplitudes = np.array([1.0, 0.0, 0.5, 2.0])
    together = receive_beams(gains, amplitudes)
    for beam, channel in zip(together, gains, strict=True):
        assert beam == pytest.approx(receive_beam(channel, amplitudes), rel=1e-9)
    assert np.isfinite(together).all()


def test_random_search_seldom_finds_a_much_better_beam() -> None:
    """Over 20 channels, the best of 5000 random beams is on average below the designed one."""
    ratios = []
    for seed in range(20):
        gains = draw_antenna_gains(Fading(), seed, 1, range(6), 4)[:, 0]
        rng = np.random.default_rng(seed)
        tries = rng.standard_normal((5000, 4)) + 1j * rng.standard_normal((5000, 4))
        tries /= np.linalg.norm(tries, axis=1, keepdims=True)
        best = (np.abs(gains @ tries.conj().T) ** 2).min(axis=0).max()
        ratios.append(_weakest(gains, np.ones(6), receive_beam(gains, np.ones(6))) / best)
    assert np.mean(ratios) >= 1.0
    assert min(ratios) >= 0.95


def test_the_sum_behind_a_beam_is_exact_and_its_error_is_the_closed_form() -> None:
    """MSE = sigma^2 max_k a_k^2 / |f^H h_k|^2, averaged over subcarriers."""
    rng = np.random.default_rng(1)
    updates, weights = rng.standard_normal((5, 60)), rng.uniform(1.0, 2.0, 5)
    gains = draw_antenna_gains(Fading(num_subcarriers=2), 1, 0, range(5), 4)
    amplitudes = weights / weights.sum() * updates.std(axis=1)
    quiet = beamformed_state(gains, gains, amplitudes, noise_power=0.0, mean_gains=np.ones(5))
    mean, _ = aggregate(updates, weights, quiet, ZeroForcing(), rng)
    assert mean is not None
    assert np.allclose(mean, weights @ updates / weights.sum(), rtol=1e-12)
    noisy = beamformed_state(gains, gains, amplitudes, noise_power=0.2, mean_gains=np.ones(5))
    _, report = aggregate(updates, weights, noisy, ZeroForcing(), rng)
    closed = [
        0.2 / _weakest(gains[:, m], amplitudes, receive_beam(gains[:, m], amplitudes))
        for m in range(2)
    ]
    assert report.predicted_mse == pytest.approx(np.mean(closed), rel=1e-9)


def test_noise_behind_a_beam_has_the_power_of_one_antenna() -> None:
    """E|f^H n|^2 = |f|^2 sigma^2; catches a beam that is not normalised."""
    gains = draw_antenna_gains(Fading(), 2, 0, range(3), 6)[:, 0]
    beam = receive_beam(gains, np.ones(3))
    rng = np.random.default_rng(3)
    noise = np.sqrt(0.5) * (
        rng.standard_normal((20_000, 6)) + 1j * rng.standard_normal((20_000, 6))
    )
    power = np.abs(noise @ beam.conj()) ** 2
    assert abs(power.mean() - 1.0) <= 5.0 * power.std() / np.sqrt(20_000)


def test_more_antennas_make_less_error() -> None:
    gains = draw_antenna_gains(Fading(), 4, 0, range(6), 16)[:, 0]
    reached = [
        _weakest(gains[:, :n], np.ones(6), receive_beam(gains[:, :n], np.ones(6)))
        for n in (1, 4, 16)
    ]
    assert reached[0] < reached[1] < reached[2]


def test_devices_that_send_nothing_or_are_not_received_do_not_steer() -> None:
    gains = np.array([[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]], dtype=complex)
    beam = receive_beam(gains, np.array([1.0, 0.0, 1.0]))
    assert abs(beam[0]) == pytest.approx(1.0)
    assert np.linalg.norm(receive_beam(gains, np.zeros(3))) == 1.0


def test_shapes_and_amplitudes_are_checked() -> None:
    gains = np.ones((2, 3), complex)
    with pytest.raises(ChannelError, match="amplitudes"):
        receive_beam(gains, np.ones(3))
    with pytest.raises(ChannelError, match="amplitudes"):
        receive_beam(gains, np.array([1.0, -1.0]))
    with pytest.raises(ChannelError, match="gains"):
        receive_beam(gains[0], np.ones(3))
    with pytest.raises(ChannelError, match="known_gains"):
        beamformed_state(gains, gains, np.ones(2), noise_power=0.1, mean_gains=np.ones(2))
