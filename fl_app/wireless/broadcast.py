"""What a server sends to all devices at once over the reciprocal scalar channel, such as gradients.

The way back of ``partial_sums``: y = sum_k c_k z_k has dL/dz_k = c_k dL/dy, so one transmission of
m reals in ceil(m / 2) channel uses serves all devices. The server sends the reals s of unit power,
c_i = (s_{2i} + j s_{2i+1}) / sqrt(2), on subcarrier i mod M; device k hears h_k sqrt(P) c + n with
n ~ CN(0, sigma^2), and divides by the gain that it knows. Per real its error is sigma^2 / (P
|h_k|^2) times the mean square sent.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fl_app.wireless.channel import ChannelState, complex_normal
from fl_app.wireless.errors import ChannelError

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class BroadcastReport:
    """Figures of one broadcast.

    Attributes:
        predicted_mse: [num_devices] mean over the noise, per real, if known gains are true; a real
            that a device does not hear counts with its own square.
        channel_uses: complex symbols in time.
        control_bytes: the scale, one real of 8 bytes, sent digitally.
    """

    predicted_mse: Floats
    channel_uses: int
    control_bytes: int


def broadcast(
    values: NDArray[Any],
    state: ChannelState,
    is_heard: NDArray[np.bool_],
    rng: np.random.Generator,
    *,
    power: float = 1.0,
) -> tuple[Floats, BroadcastReport]:
    """Sends reals to every device.

    Args:
        values: [num_reals] to send; not changed.
        state: the channel; ``state.noise_power`` is that of a device.
        is_heard: [num_devices, num_subcarriers] where a device listens; elsewhere it has 0.
        rng: draws the devices' noise, and nothing else.
        power: mean transmit power P of a channel use, > 0.

    Returns:
        ([num_devices, num_reals] what devices have, report).

    Raises:
        ChannelError: a shape is wrong, a value is not finite or the power out of range.
    """
    if values.ndim != 1 or is_heard.shape != state.gains.shape:
        raise ChannelError(
            f"values {values.shape} must be [num_reals] and is_heard {is_heard.shape} must be "
            f"{state.gains.shape}"
        )
    if not np.isfinite(values).all():
        raise ChannelError("values to broadcast must be finite; drop the batch")
    if not 0.0 < power < np.inf:
        raise ChannelError(f"power={power} must be finite and > 0")
    num_devices, num_reals = len(state.gains), len(values)
    scale = float(np.sqrt(np.mean(np.square(values, dtype=np.float64)))) if num_reals else 0.0
    if scale == 0.0:
        silent = BroadcastReport(np.zeros(num_devices), 0, 8)
        return np.zeros((num_devices, num_reals)), silent
    padded = np.zeros(num_reals + num_reals % 2)
    padded[:num_reals] = values / scale
    symbols = padded.view(np.complex128) / np.sqrt(2.0)
    places = np.arange(len(symbols)) % state.gains.shape[1]
    listens = is_heard & (state.known_gains != 0.0)
    noise = complex_normal(rng, (num_devices, len(symbols)), state.noise_power)
    heard = state.gains[:, places] * np.sqrt(power) * symbols + noise
    divided = np.zeros_like(heard)
    known = np.sqrt(power) * state.known_gains
    np.divide(heard, known[:, places], out=divided, where=listens[:, places])
    received = (np.sqrt(2.0) * scale * divided).view(np.float64)[:, :num_reals]
    strength = np.zeros(state.gains.shape)
    np.divide(1.0, power * np.abs(state.known_gains) ** 2, out=strength, where=listens)
    errors = np.where(listens, scale**2 * state.noise_power * strength, 0.0)
    per_real = np.repeat(errors[:, places], 2, axis=1)[:, :num_reals]
    missing = np.where(np.repeat(listens[:, places], 2, axis=1)[:, :num_reals], 0.0, values**2)
    report = BroadcastReport((per_real + missing).mean(axis=1), len(symbols), 8)
    return received, report
