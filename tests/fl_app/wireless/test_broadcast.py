"""One transmission to all devices over the reciprocal channel."""

import math

import numpy as np
import pytest

from fl_app.wireless.broadcast import broadcast
from fl_app.wireless.channel import ChannelState, Fading, draw_state
from fl_app.wireless.errors import ChannelError
from tests.oracles.air_broadcast import broadcast_once


def state_of(
    num_devices: int = 3, noise_power: float = 0.0, csi_error: float = 0.0
) -> ChannelState:
    """Three subcarriers that fade apart."""
    return draw_state(
        Fading(num_subcarriers=3),
        4,
        0,
        mean_gains=np.ones(num_devices),
        noise_power=noise_power,
        csi_error=csi_error,
    )


@pytest.mark.parametrize("num_reals", [1, 2, 11])
@pytest.mark.parametrize("csi_error", [0.0, 0.3])
def test_without_noise_devices_have_what_the_slow_reference_has(
    num_reals: int, csi_error: float
) -> None:
    """Perfect CSI: what was sent. A wrong phase mixes the two reals of a use."""
    values = 5.0 * np.random.default_rng(0).standard_normal(num_reals)
    before = values.tobytes()
    state = state_of(csi_error=csi_error)
    heard = np.ones(state.gains.shape, np.bool_)
    received, report = broadcast(values, state, heard, np.random.default_rng(1), power=2.0)
    for k, row in enumerate(received):
        wanted = broadcast_once(list(values), list(state.gains[k]), list(state.known_gains[k]))
        assert np.allclose(row, wanted, rtol=1e-12)
    if csi_error == 0.0:
        assert np.allclose(received, values, rtol=1e-12)
    assert report.channel_uses == math.ceil(num_reals / 2)
    assert values.tobytes() == before


def test_the_error_is_its_closed_form() -> None:
    """sigma^2 rms^2 / (P |h_k|^2) per real, mean over subcarriers; five standard errors."""
    values = 3.0 * np.random.default_rng(2).standard_normal(6)  # one use on each subcarrier
    state = state_of(noise_power=0.5)
    heard = np.ones(state.gains.shape, np.bool_)
    closed = 0.5 * np.mean(values**2) * np.mean(1.0 / np.abs(state.gains) ** 2, axis=1) / 1.5
    rng = np.random.default_rng(3)
    rows = [broadcast(values, state, heard, rng, power=1.5) for _ in range(2000)]
    assert np.allclose(rows[0][1].predicted_mse, closed, rtol=1e-12)
    errors = np.array([np.mean((received - values) ** 2, axis=1) for received, _ in rows])
    spread = errors.std(axis=0, ddof=1) / math.sqrt(len(rows))
    assert (np.abs(errors.mean(axis=0) - closed) <= 5.0 * spread).all()


def test_what_a_device_does_not_listen_to_is_0() -> None:
    state = state_of(num_devices=2)
    heard = np.array([[True, False, True], [False, False, False]])
    values = np.arange(1.0, 7.0)
    received, report = broadcast(values, state, heard, np.random.default_rng(0))
    assert np.allclose(received[0], [1.0, 2.0, 0.0, 0.0, 5.0, 6.0])
    assert not received[1].any()
    assert np.allclose(report.predicted_mse, [(9 + 16) / 6, np.mean(values**2)])
    nothing, silent = broadcast(np.zeros(5), state, heard, np.random.default_rng(0))
    assert not nothing.any()
    assert silent.channel_uses == 0


def test_what_cannot_be_sent_is_refused() -> None:
    state, rng = state_of(num_devices=2), np.random.default_rng(0)
    heard = np.ones((2, 3), np.bool_)
    with pytest.raises(ChannelError, match="num_reals"):
        broadcast(np.ones((2, 3)), state, heard, rng)
    with pytest.raises(ChannelError, match="is_heard"):
        broadcast(np.ones(3), state, heard[:1], rng)
    with pytest.raises(ChannelError, match="finite"):
        broadcast(np.array([1.0, math.nan]), state, heard, rng)
    with pytest.raises(ChannelError, match="power=0"):
        broadcast(np.ones(3), state, heard, rng, power=0.0)
