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

import numpy as np
from numpy.typing import NDArray

from fl_app.wireless.channel import ChannelState, Complex
from fl_app.wireless.errors import ChannelError

Floats = NDArray[np.float64]

_STEPS = 80
"""Steps of the climb; twice as many raise the weakest gain of random channels by under 1 %."""


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
    if gains.ndim != 2 or gains.shape[1] == 0:
        raise ChannelError(f"gains {gains.shape} must be [num_devices, num_antennas]")
    if amplitudes.shape != gains.shape[:1]:
        raise ChannelError(f"amplitudes {amplitudes.shape} must be [{len(gains)}], one per device")
    if not (np.isfinite(amplitudes).all() and (amplitudes >= 0.0).all()):
        raise ChannelError("amplitudes must be finite and >= 0")
    speaks = (amplitudes > 0.0) & (np.abs(gains).max(axis=1) > 0.0)
    num_antennas = gains.shape[1]
    first: Complex = np.eye(num_antennas, dtype=np.complex128)[0]
    if not speaks.any():
        return first
    wanted = gains[speaks] / amplitudes[speaks, None]
    wanted = wanted / np.abs(wanted).max()
    norms = np.linalg.norm(wanted, axis=1)
    matched = wanted / norms[:, None]
    # Rows of wanted are g_k^T, so this is sum_k g_k g_k^H / |g_k|^2.
    dominant = np.linalg.eigh(matched.T @ matched.conj())[1][:, -1:].T
    beams = np.concatenate([np.eye(num_antennas), matched, dominant])
    best, best_gain = first, -1.0
    for step in range(_STEPS):
        heard = beams.conj() @ wanted.T
        gain = np.abs(heard) ** 2
        weakest = gain.min(axis=1)
        winner = int(weakest.argmax())
        if weakest[winner] > best_gain:
            best, best_gain = beams[winner], float(weakest[winner])
        floored = np.maximum(gain, 1e-9 * gain.max(axis=1, keepdims=True) + 1e-300)
        emphasis = (floored.min(axis=1, keepdims=True) / floored) ** (2.0 + step / 4.0)
        uphill = (emphasis * heard.conj()) @ wanted
        length = np.linalg.norm(uphill, axis=1, keepdims=True)
        # A beam that hears nobody has no gradient and stays.
        beams = beams + 0.95**step * uphill / np.maximum(length, 1e-300)
        beams /= np.linalg.norm(beams, axis=1, keepdims=True)
    return np.asarray(best / np.linalg.norm(best), dtype=np.complex128)


def beamformed_state(
    gains: Complex,
    known_gains: Complex,
    amplitudes: Floats,
    *,
    noise_power: float,
    mean_gains: Floats,
    csi_error: float = 0.0,
) -> ChannelState:
    """Combines the antennas; the result goes into any aggregation in place of one antenna.

    Args:
        gains: [num_devices, num_subcarriers, num_antennas] true coefficients, path loss included.
        known_gains: same shape; beams are designed from these.
        amplitudes: see ``receive_beam``; the weights of the mean when spreads are not known yet.
        noise_power: sigma^2 at one antenna, independent between antennas.
        mean_gains: [num_devices] E|h|^2 at one antenna; gain floors stay relative to that.
        csi_error: eps of the known coefficients; a beam of length 1 leaves it as it is.

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
    beams = np.stack(
        [receive_beam(known_gains[:, m], amplitudes) for m in range(gains.shape[1])]
    ).conj()
    return ChannelState(
        gains=np.einsum("kmn,mn->km", gains, beams),
        known_gains=np.einsum("kmn,mn->km", known_gains, beams),
        noise_power=noise_power,
        mean_gains=mean_gains,
        csi_error=csi_error,
    )
