"""The digital baseline: OFDMA with Shannon rates, stochastic rounding and outage.

Of B channel uses a second and M subcarriers every device gets an equal share, spread evenly over
the band, and transmits with power P per channel use of its own. Device k therefore carries at most

    R_k = B / K * mean_m log2(1 + P_k |h_km|^2 / sigma^2)   bit/s

(capacity of its share; coding is ideal). Against aggregation in the air at the same B and receive
SNR g of every device, q reals of Q bits take T_OFDMA / T_Air = 2 K Q / log2(1 + g) as long.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fl_app.wireless.channel import ChannelState
from fl_app.wireless.checks import check_devices
from fl_app.wireless.errors import ChannelError
from fl_app.wireless.quantise import quantise
from fl_app.wireless.report import Relative
from fl_app.wireless.standardise import check_updates

Floats = NDArray[np.float64]

_CHUNK_REALS = 1 << 14
"""Entries quantised together; float64 temporaries of this size stay in the cache."""

SIDE_BITS = 128
"""Bits of each device's lowest value and step, two float64 numbers."""


@dataclass(frozen=True)
class DigitalReport(Relative):
    """Figures of one digital round; errors are against the mean of all scheduled devices.

    Attributes:
        predicted_mse: closed form sum_k w_k^2 step_k^2 / 6 plus what outage takes away, known only
            once the round is over.
        expected_mse: the same with the mean fractions that a device's entries really have.
        realised_mse: what happened.
        mean_energy: mean square of the exact weighted mean.
        is_silent: [num_devices] bool; in outage, rationed to nothing, or lost.
        rates_bps: [num_devices] rate in bit/s that a device transmits at; 0 if it keeps silent.
        seconds: until the last device is done; 0 if nobody transmits.
        joules: [num_devices] transmit energy, P in W provided: P / B a channel use, as in the air,
            so a device on 1/K of the band radiates P / K. A failed packet costs as much.
        tx_power: [num_devices] mean transmit power of the device's own channel uses.
        channel_uses: complex symbols spent by all devices together.
        payload_bytes: [num_devices] bytes sent, side information included.
    """

    predicted_mse: float
    expected_mse: float
    realised_mse: float
    mean_energy: float
    is_silent: NDArray[np.bool_]
    rates_bps: Floats
    seconds: float
    joules: Floats
    tx_power: Floats
    channel_uses: int
    payload_bytes: NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Ofdma:
    """How a digital round is set up.

    Attributes:
        bits: bits per real, 1 to 24.
        bandwidth_hz: complex channel uses a second, B, > 0.
        target_bits_per_use: spectral efficiency that everybody codes for, > 0; a device whose
            channel carries less is in outage. None adapts to the known channel: outage only
            happens where that is better than the true one.
        gain_floor: devices with a known mean gain below this times their long-term one keep silent.
        max_uses_per_real: channel uses of all devices together per real of the update, > 0; None
            for no limit (aggregation in the air spends 1/2). Devices then send the first entries,
            as many as their rates allow, of one random order that all share (Konečný et al. 2016,
            arXiv:1610.05492); the mean divides per entry by the weights that arrived.
    """

    bits: int = 8
    bandwidth_hz: float = 1e6
    target_bits_per_use: float | None = None
    gain_floor: float = 0.0
    max_uses_per_real: float | None = None

    def __post_init__(self) -> None:
        """Raises ChannelError on a value out of range."""
        if not 1 <= self.bits <= 24:
            raise ChannelError(f"bits={self.bits} must be 1..24")
        if not 0.0 < self.bandwidth_hz < np.inf:
            raise ChannelError(f"bandwidth_hz={self.bandwidth_hz} must be finite and > 0")
        target = self.target_bits_per_use
        if target is not None and not 0.0 < target < np.inf:
            raise ChannelError(f"target_bits_per_use={target} must be finite and > 0, or None")
        if not 0.0 <= self.gain_floor < np.inf:
            raise ChannelError(f"gain_floor={self.gain_floor} must be finite and >= 0")
        limit = self.max_uses_per_real
        if limit is not None and not 0.0 < limit < np.inf:
            raise ChannelError(f"max_uses_per_real={limit} must be finite and > 0, or None")

    def entries(self, per_use: Floats, num_params: int) -> NDArray[np.int64]:
        """Returns [num_devices] how many entries each device may send at its bits per use."""
        if self.max_uses_per_real is None:
            return np.where(per_use > 0.0, num_params, 0)
        uses = self.max_uses_per_real * num_params / len(per_use)
        fit = np.floor((np.minimum(uses * per_use, 1e18) - SIDE_BITS) / self.bits)
        return np.clip(fit, 0, num_params).astype(np.int64)


def capacity_bits_per_use(gains: NDArray[Any], noise_power: float, power: Floats) -> Floats:
    """Returns [num_devices] mean over subcarriers of log2(1 + P |h|^2 / sigma^2).

    Args:
        gains: [num_devices, num_subcarriers] complex coefficients.
        noise_power: sigma^2 of a channel use; with 0 a device with any gain has rate ``inf``.
        power: [num_devices] P of a channel use, > 0.
    """
    received = power[:, None] * np.abs(gains) ** 2
    if noise_power == 0.0:
        return np.where(received.max(axis=1) > 0.0, np.inf, 0.0)
    capacity: Floats = np.log2(1.0 + received / noise_power).mean(axis=1)
    return capacity


def aggregate_digitally(
    updates: NDArray[Any],
    weights: NDArray[np.float64],
    state: ChannelState,
    setup: Ofdma,
    rng: np.random.Generator,
    *,
    power: float | NDArray[np.float64] = 1.0,
    is_lost: NDArray[np.bool_] | None = None,
) -> tuple[NDArray[Any] | None, DigitalReport]:
    """Receives the weighted mean of quantised updates, device by device.

    Args:
        updates: [num_devices, num_params] float32 or float64, any scale; not changed.
        weights: [num_devices] >= 0, not all 0; those of devices in outage are left out.
        state: the round's channel; the tx-SNR is ``power / state.noise_power``.
        setup: bits, bandwidth and rate.
        rng: draws the roundings, and nothing else.
        power: transmit power P_k of a channel use, one for all or [num_devices], > 0.
        is_lost: [num_devices] bool; devices that fail after rates were announced.

    Returns:
        ([num_params] mean in the type of ``updates``, or None if nobody got through, and a report).

    Raises:
        ChannelError: shapes disagree, a value is out of range, or an update is not finite (the text
            names the device).
    """
    shares = check_updates(updates, np.asarray(weights, dtype=np.float64))
    num_devices, num_params = updates.shape
    limits, lost = check_devices(num_devices, state, power, is_lost)

    known = capacity_bits_per_use(state.known_gains, state.noise_power, limits)
    true = capacity_bits_per_use(state.gains, state.noise_power, limits)
    gains = (np.abs(state.known_gains) ** 2).mean(axis=1)
    transmits = (known > 0.0) & (gains >= setup.gain_floor * state.mean_gains) & (shares > 0.0)
    transmits &= ~lost
    wanted = (
        known
        if setup.target_bits_per_use is None
        else np.full_like(known, setup.target_bits_per_use)
    )
    per_use = np.where(transmits, wanted, 0.0)
    entries = setup.entries(per_use, num_params)
    transmits &= entries > 0
    per_use = np.where(transmits, per_use, 0.0)
    arrives = transmits & (per_use <= true * (1.0 + 1e-12))

    spans = [_span(k, row) for k, row in enumerate(updates)]
    is_rationed = bool((entries[arrives] < num_params).any())
    places = rng.permutation(num_params) if is_rationed else np.zeros(num_params, np.int64)
    mean = np.zeros(num_params, dtype=updates.dtype)
    squares, variances = np.zeros(num_devices), np.zeros(num_devices)
    sums = np.zeros(3)  # what outage takes away, realised error, energy
    for lo in range(0, num_params, _CHUNK_REALS):
        part = updates[:, lo : lo + _CHUNK_REALS].astype(np.float64)
        is_sent = arrives[:, None] & (places[lo : lo + _CHUNK_REALS] < entries[:, None])
        weight = shares @ is_sent
        ratios = np.divide(
            shares[:, None] * is_sent, weight, out=np.zeros_like(part), where=is_sent
        )
        exact, received = shares @ part, np.zeros(part.shape[1])
        for k in np.flatnonzero(is_sent.any(axis=1)):
            sent = quantise(part[k], setup.bits, rng, span=spans[k])
            received += ratios[k] * sent.values()
            share = float(np.sum(ratios[k] ** 2))
            squares[k] += share
            variances[k] += share * sent.variance
        sums[0] += np.sum(((ratios * part).sum(axis=0) - exact) ** 2)
        sums[1] += np.sum((received - exact) ** 2)
        sums[2] += np.sum(exact**2)
        mean[lo : lo + _CHUNK_REALS] = received
    steps = np.array([(high - low) / (2**setup.bits - 1) for low, high in spans])
    outage, realised, energy = (sums / num_params).tolist()
    bits = np.where(transmits, setup.bits * entries + SIDE_BITS, 0)
    rates = setup.bandwidth_hz / num_devices * per_use
    seconds = np.divide(bits, rates, out=np.zeros_like(rates), where=rates > 0.0)
    uses = np.ceil(np.divide(bits, per_use, out=np.zeros_like(rates), where=per_use > 0.0))
    report = DigitalReport(
        predicted_mse=float(squares @ steps**2) / 6.0 / num_params + outage,
        expected_mse=float(variances.sum()) / num_params + outage,
        realised_mse=realised,
        mean_energy=energy,
        is_silent=~arrives & (shares > 0.0),
        rates_bps=rates,
        seconds=float(seconds.max()),
        joules=limits * seconds / num_devices,
        tx_power=np.where(transmits, limits, 0.0),
        channel_uses=int(uses.sum()),
        payload_bytes=-(-bits // 8),
    )
    return (mean if arrives.any() else None), report


def _span(device: int, row: NDArray[Any]) -> tuple[float, float]:
    """Returns minimum and maximum of one update."""
    low, high = float(row.min()), float(row.max())
    if not np.isfinite(high - low):
        raise ChannelError(f"the update of device {device} is not finite; leave it out")
    return low, high
