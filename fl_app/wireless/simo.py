"""A server with many antennas: one receive beam per subcarrier turns it into one good antenna.

With beam f, |f| = 1, the server hears f^H h_k from device k and noise of the same power sigma^2 as
at one antenna. Aligned devices then have, per real entry of the sum,

    MSE = sigma^2 / eta = |f|^2 sigma^2 max_k a_k^2 / (P_k |f^H h_k|^2),

so the best beam solves max_f min_k P_k |f^H h_k|^2 / a_k^2. That is multicast beamforming and
NP-hard (Sidiropoulos, Davidson, Luo 2006). The design here is a heuristic: every single antenna,
every device's matched filter and the dominant eigenvector of sum_k g_k g_k^H / |g_k|^2, with
g_k = h_k sqrt(P_k) / a_k, climb along the gradient of -sum_k |f^H g_k|^(-2 p) while p grows, so
that more and more the weakest device alone counts; the best beam met on the way wins. It is exact
for one device.
"""

from dataclasses import replace
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from fl_app.wireless.channel import (
    ChannelState,
    Complex,
    Fading,
    draw_antenna_gains,
    estimate_gains,
)
from fl_app.wireless.errors import ChannelError
from fl_app.wireless.gain_law import RAYLEIGH, GainLaw, SampledLaw

Floats = NDArray[np.float64]

_STEPS = 80
"""Steps of the climb; twice as many raise the weakest gain of random channels by under 1 %."""

_LAW_DRAWS, _LAW_ROUND = 2048, 1_000_000
"""Gains drawn for a law, and the round that they belong to, which no run gets to."""


def receive_beam(gains: Complex, amplitudes: Floats) -> Complex:
    """Designs one beam that the weakest device is heard well with.

    Args:
        gains: [num_devices, num_antennas] known coefficients h.
        amplitudes: [num_devices] a_k / sqrt(P_k) >= 0; a device with 0 sends nothing and counts for
            nothing, nor does one without any gain.

    Returns:
        [num_antennas] f with |f| = 1; f^H h_k is what the server hears of device k.

    Raises:
        ChannelError: shapes disagree or an amplitude is negative or not finite.
    """
    _check(gains, amplitudes)
    beam: Complex = receive_beams(gains[None], amplitudes)[0]
    return beam


def receive_beams(gains: Complex, amplitudes: Floats) -> Complex:
    """Designs one beam for each of many channels; see ``receive_beam``.

    Args:
        gains: [num_channels, num_devices, num_antennas].
        amplitudes: [num_devices].

    Returns:
        [num_channels, num_antennas].
    """
    num_channels, num_devices, num_antennas = gains.shape
    speaks = (amplitudes > 0.0) & (np.abs(gains).max(axis=2) > 0.0)
    scale = np.divide(1.0, amplitudes, out=np.zeros(num_devices), where=amplitudes > 0.0)
    wanted = gains * scale[:, None]
    largest = np.abs(wanted).max(axis=(1, 2), keepdims=True)
    wanted = np.divide(wanted, largest, out=np.zeros_like(wanted), where=largest > 0.0)
    norms = np.linalg.norm(wanted, axis=2, keepdims=True)
    matched = np.divide(wanted, norms, out=np.zeros_like(wanted), where=norms > 0.0)
    # Rows of wanted are g_k^T, so this is sum_k g_k g_k^H / |g_k|^2.
    spread = np.swapaxes(matched, 1, 2) @ matched.conj()
    dominant = np.linalg.eigh(spread)[1][:, :, -1:].swapaxes(1, 2)
    single = np.broadcast_to(
        np.eye(num_antennas, dtype=np.complex128), (num_channels, num_antennas, num_antennas)
    )
    # Who does not speak has no matched filter; the first antenna stands in for it.
    matched = np.where(speaks[:, :, None], matched, single[:, :1])
    beams = np.concatenate([single, matched, dominant], axis=1)
    best, best_gain = single[:, 0].copy(), np.full(num_channels, -1.0)
    heeds, rows = speaks[:, None, :], np.arange(num_channels)
    for step in range(_STEPS):
        heard = beams.conj() @ wanted.swapaxes(1, 2)
        gain = np.where(heeds, np.abs(heard) ** 2, np.inf)
        weakest = gain.min(axis=2)
        winner = weakest.argmax(axis=1)
        improves = (weakest[rows, winner] > best_gain) & speaks.any(axis=1)
        best[improves] = beams[rows, winner][improves]
        best_gain[improves] = weakest[rows, winner][improves]
        top = np.where(heeds, gain, 0.0).max(axis=2, keepdims=True)
        floored = np.maximum(gain, 1e-9 * top + 1e-300)
        least = floored.min(axis=2, keepdims=True)
        emphasis = np.divide(least, floored, out=np.zeros_like(floored), where=heeds)
        uphill = (emphasis ** (2.0 + step / 4.0) * heard.conj()) @ wanted
        length = np.linalg.norm(uphill, axis=2, keepdims=True)
        # A beam that hears nobody has no gradient and stays.
        beams = beams + 0.95**step * uphill / np.maximum(length, 1e-300)
        beams /= np.linalg.norm(beams, axis=2, keepdims=True)
    return np.asarray(best / np.linalg.norm(best, axis=1, keepdims=True), dtype=np.complex128)


@lru_cache(maxsize=32)
def balanced_law(
    num_devices: int, num_antennas: int, fading: Fading, csi_error: float
) -> tuple[float, SampledLaw]:
    """Draws the law of the gain behind a beam that treats all devices alike.

    It has a closed form for one device only (a gamma law, mean ``num_antennas``, over Rayleigh
    fading), so some 2000 gains are drawn, with lines of sight from random directions.

    Args:
        num_devices: devices of a round, whose mean gains the design divides out.
        num_antennas: of the server.
        fading: kind and line of sight; a subcarrier's law does not depend on the others.
        csi_error: eps of the known coefficients.

    Returns:
        (mean of |f^H h|^2 over that at one antenna, law of the known gain over its mean).
    """
    one = replace(fading, num_subcarriers=1, num_taps=None, correlation=0.0)
    devices = range(num_devices)
    num_channels = max(32, -(-_LAW_DRAWS // num_devices))
    known = np.concatenate(
        [
            estimate_gains(
                draw_antenna_gains(one, draw, _LAW_ROUND, devices, num_antennas),
                csi_error,
                draw,
                _LAW_ROUND,
            ).swapaxes(0, 1)
            for draw in range(num_channels)
        ]
    )
    beams = receive_beams(known, np.ones(num_devices))
    gains = np.abs(known @ beams.conj()[:, :, None]).ravel() ** 2
    mean = float(gains.mean())
    return mean, SampledLaw(gains / mean)


def beamformed_state(
    gains: Complex,
    known_gains: Complex,
    amplitudes: Floats,
    *,
    noise_power: float,
    mean_gains: Floats,
    csi_error: float = 0.0,
    law: GainLaw = RAYLEIGH,
) -> ChannelState:
    """Combines the antennas; the result goes into any aggregation in place of one antenna.

    Args:
        gains: [num_devices, num_subcarriers, num_antennas] true coefficients, path loss included.
        known_gains: same shape; beams are designed from these.
        amplitudes: see ``receive_beam``; the weights of the mean when spreads are not known yet,
            the roots of the mean gains to treat all devices alike.
        noise_power: sigma^2 at one antenna, independent between antennas.
        mean_gains: [num_devices] E|f^H h|^2, which gain floors are relative to.
        csi_error: eps of the known coefficients; a beam of length 1 leaves it as it is.
        law: of the known gain behind the beam over its mean.

    Returns:
        The channel behind the beams, same noise power.

    Raises:
        ChannelError: shapes disagree or a value is out of range.
    """
    if gains.ndim != 3 or gains.shape != known_gains.shape:
        raise ChannelError(
            f"gains {gains.shape} and known_gains {known_gains.shape} must be equal and "
            "[num_devices, num_subcarriers, num_antennas]"
        )
    _check(known_gains[:, 0], amplitudes)
    beams = receive_beams(known_gains.swapaxes(0, 1), amplitudes).conj()
    return ChannelState(
        gains=np.einsum("kmn,mn->km", gains, beams),
        known_gains=np.einsum("kmn,mn->km", known_gains, beams),
        noise_power=noise_power,
        mean_gains=mean_gains,
        csi_error=csi_error,
        law=law,
    )


def _check(gains: Complex, amplitudes: Floats) -> None:
    """Raises ChannelError on shapes that disagree or a bad amplitude."""
    if gains.ndim != 2 or gains.shape[1] == 0:
        raise ChannelError(f"gains {gains.shape} must be [num_devices, num_antennas]")
    if amplitudes.shape != gains.shape[:1]:
        raise ChannelError(f"amplitudes {amplitudes.shape} must be [{len(gains)}], one per device")
    if not (np.isfinite(amplitudes).all() and (amplitudes >= 0.0).all()):
        raise ChannelError("amplitudes must be finite and >= 0")
