"""Sending bits to the server: every device alone on its share of the band, at its Shannon rate.

Of B channel uses a second device k gets the share beta_k, spread evenly over the M subcarriers. One
channel use of its own carries C_k bits, so its rate is beta_k B C_k (coding is ideal), with

    C_k = mean_m min(log2(1 + P_k' |h_km|^2 / sigma^2), C_max).

The power P_k' of its own channel uses is P_k / beta_k if the device puts all of its power P_k into
its share ("whole"), and P_k if it radiates with the power density P_k / B of a device that fills
the band ("density"; it then radiates beta_k P_k).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from fl_app.seeding import generator
from fl_app.wireless.channel import ChannelState, complex_normal
from fl_app.wireless.errors import ChannelError

Floats = NDArray[np.float64]

_LIKELY_CHANNELS = 1000
"""Channels drawn around an estimate to find the rate that a given share of them carries."""

_HALVINGS = 36
"""Steps of a bisection; what is left of the interval is 1.5e-11."""


@dataclass(frozen=True, kw_only=True)
class Band:
    """A band and the rules by which devices code for it.

    Attributes:
        bandwidth_hz: complex channel uses a second, B, > 0.
        power: "whole" or "density", see the module; with "whole" a device spends per second what it
            spends in the air.
        max_bits_per_use: C_max, finite and > 0: the densest constellation. 16 only counts beyond
            48 dB.
        outage: share of channels, 0 to 1, that may carry less than a device codes for when it knows
            its channel imperfectly. The device goes by channels h = sqrt(1 - eps^2) h-hat + eps
            sqrt(gbar) CN(0, 1), which is the law of h given its estimate for Rayleigh fading and
            close to it for others while eps is small.
    """

    bandwidth_hz: float = 1e6
    power: Literal["whole", "density"] = "whole"
    max_bits_per_use: float = 16.0
    outage: float = 0.01

    def __post_init__(self) -> None:
        """Raises ChannelError on a value out of range."""
        if not 0.0 < self.bandwidth_hz < np.inf:
            raise ChannelError(f"bandwidth_hz={self.bandwidth_hz} must be finite and > 0")
        if self.power not in ("whole", "density"):
            raise ChannelError(f"power={self.power!r}; choose whole or density")
        if not 0.0 < self.max_bits_per_use < np.inf:
            raise ChannelError(f"max_bits_per_use={self.max_bits_per_use} must be finite and > 0")
        if not 0.0 < self.outage < 1.0:
            raise ChannelError(f"outage={self.outage} must lie between 0 and 1")

    def use_power(self, power: Floats, shares: Floats) -> Floats:
        """Returns [num_devices] the power of a device's own channel uses; 0 without a share."""
        if self.power == "density":
            return np.where(shares > 0.0, power, 0.0)
        return np.divide(power, shares, out=np.zeros_like(power), where=shares > 0.0)


@dataclass(frozen=True)
class Cost:
    """What sending took.

    Attributes:
        uses: [num_devices] whole channel uses.
        seconds: until the last device is done.
        joules: [num_devices] transmit energy.
    """

    uses: NDArray[np.int64]
    seconds: float
    joules: Floats


def capacity_bits_per_use(
    gains: NDArray[Any], noise_power: float, power: Floats, max_bits: float = np.inf
) -> Floats:
    """Returns [num_devices] mean over subcarriers of min(log2(1 + P |h|^2 / sigma^2), max_bits).

    Args:
        gains: [num_devices, num_subcarriers] complex coefficients.
        noise_power: sigma^2 of a channel use; with 0 every gain carries ``max_bits``.
        power: [num_devices] P of a channel use, >= 0.
        max_bits: cap of every subcarrier; ``inf`` for none.
    """
    received = power[:, None] * np.abs(gains) ** 2
    if noise_power == 0.0:
        bits = np.where(received > 0.0, max_bits, 0.0)
    else:
        bits = np.minimum(np.log2(1.0 + received / noise_power), max_bits)
    return np.asarray(bits.mean(axis=1), dtype=np.float64)


def planned_bits_per_use(state: ChannelState, power: Floats, band: Band) -> Floats:
    """Returns [num_devices] the bits per use that devices code for, from what they know.

    With perfect knowledge that is the capacity; else the ``band.outage`` quantile of the capacities
    of channels that agree with the estimate.

    Args:
        state: known gains, their error, noise power and mean gains.
        power: [num_devices] power of a channel use, >= 0.
        band: cap and outage.
    """
    noise_power, cap = state.noise_power, band.max_bits_per_use
    if state.csi_error == 0.0:
        return capacity_bits_per_use(state.known_gains, noise_power, power, cap)
    eps, num_sub = state.csi_error, state.known_gains.shape[1]
    errors = eps * complex_normal(generator(0, "rate margin"), (_LIKELY_CHANNELS, num_sub))
    planned = np.zeros(len(power))
    for k, known in enumerate(state.known_gains):
        likely = np.sqrt(1.0 - eps**2) * known + np.sqrt(state.mean_gains[k]) * errors
        same = np.full(_LIKELY_CHANNELS, power[k])
        carried = capacity_bits_per_use(likely, noise_power, same, cap)
        planned[k] = np.quantile(carried, band.outage)
    return planned


def matched_shares(state: ChannelState, power: Floats, band: Band) -> Floats:
    """Divides the band so that all devices have the same rate, by known gains.

    Args:
        state: known gains and noise power.
        power: [num_devices] P_k, > 0; a device without any gain gets no share.
        band: cap and use of power.

    Returns:
        [num_devices] beta_k with sum 1 (all 0 if nobody has any gain).
    """

    def rate(shares: Floats) -> Floats:
        return shares * capacity_bits_per_use(
            state.known_gains,
            state.noise_power,
            band.use_power(power, shares),
            band.max_bits_per_use,
        )

    whole = rate(np.ones(len(power)))
    is_able = whole > 0.0
    if not is_able.any():
        return np.zeros(len(power))
    low, high = 0.0, float(whole[is_able].min())
    shares = np.zeros(len(power))
    for _ in range(_HALVINGS):
        wanted = 0.5 * (low + high)
        shares = _shares_for(rate, wanted, is_able)
        low, high = (wanted, high) if shares.sum() < 1.0 else (low, wanted)
    return np.asarray(shares / shares.sum(), dtype=np.float64)


def _shares_for(
    rate: Callable[[Floats], Floats], wanted: float, is_able: NDArray[np.bool_]
) -> Floats:
    """Returns the least shares that reach a rate; a rate never falls with its share."""
    low, high = np.zeros(len(is_able)), np.where(is_able, 1.0, 0.0)
    for _ in range(_HALVINGS):
        middle = 0.5 * (low + high)
        is_enough = rate(middle) >= wanted
        low, high = np.where(is_enough, low, middle), np.where(is_enough, middle, high)
    return high


def send_cost(
    bits: NDArray[np.int64], bits_per_use: Floats, shares: Floats, power: Floats, band: Band
) -> Cost:
    """Returns what it takes to send.

    Args:
        bits: [num_devices] bits, >= 0.
        bits_per_use: [num_devices]; a device with 0 does not transmit.
        shares: [num_devices] of the band.
        power: [num_devices] P_k.
        band: see ``Band``.
    """
    speaks = (bits_per_use > 0.0) & (shares > 0.0)
    uses = np.divide(bits, bits_per_use, out=np.zeros(len(bits)), where=speaks)
    seconds = np.divide(uses, band.bandwidth_hz * shares, out=np.zeros(len(bits)), where=speaks)
    return Cost(
        uses=np.ceil(uses).astype(np.int64),
        seconds=float(seconds.max()),
        joules=band.use_power(power, shares) * shares * seconds,
    )
