"""How the band is shared: all devices finish at the same moment.

With the devices' payloads and computing times given, the end of the round is least when everybody
finishes together: were one earlier, its band would help the last. B_k(T) is the band that carries
s_k bits in T - T_k seconds; the least T with sum B_k(T) <= B is found by bisection.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fl_app.scheduling.errors import ScheduleError
from fl_app.scheduling.uplinks import Uplinks

Floats = NDArray[np.float64]

_HALVINGS = 100


class Split(NamedTuple):
    """A share of the band for everybody.

    Attributes:
        bandwidths_hz: [num_devices] shares in Hz; their sum is at most the band.
        finish_s: [num_devices] seconds at which each device is done.
    """

    bandwidths_hz: Floats
    finish_s: Floats

    @property
    def round_s(self) -> float:
        """Seconds of the round."""
        return float(self.finish_s.max())


def needed_hz(bits: Floats, compute_s: Floats, links: Uplinks, end_s: float) -> Floats:
    """Returns the band that lets devices end at ``end_s``; ``inf`` where no band is enough.

    Args:
        bits: payloads in bit, >= 0; of a shape that broadcasts with ``compute_s``.
        compute_s: [num_devices, ...] seconds before the uplink starts, >= 0, may be ``inf``.
        links: [num_devices] uplinks.
        end_s: end of the round in s.
    """
    left = end_s - compute_s
    with np.errstate(divide="ignore", invalid="ignore"):
        rates = np.where(bits > 0.0, bits / left, 0.0)
    needed = links.bandwidth_hz(np.maximum(rates, 0.0))
    possible = np.where(bits > 0.0, left > 0.0, left >= 0.0)
    return np.asarray(np.where(possible, needed, np.inf))


def equal_finish(bits: Floats, compute_s: Floats, links: Uplinks, bandwidth: float) -> Split:
    """Shares the band so that all devices with a payload finish together.

    Args:
        bits: [num_devices] payloads in bit, >= 0; a device without any gets no band.
        compute_s: [num_devices] seconds before the uplink starts, finite, >= 0.
        links: [num_devices] uplinks.
        bandwidth: the whole band in Hz, > 0.

    Returns:
        The split with the least ``round_s``.

    Raises:
        ScheduleError: a value out of range.
    """
    _check(bits, compute_s, links, bandwidth)
    low = float(compute_s.max())
    equal = np.full(len(bits), bandwidth / len(bits))
    # Twice what everybody would need on an equal share of their own.
    high = 2.0 * float(_finish(bits, compute_s, links, equal).max())
    if not bits.any():
        return Split(np.zeros(len(bits)), compute_s.astype(np.float64))
    for _ in range(_HALVINGS):
        middle = (low + high) / 2.0
        if needed_hz(bits, compute_s, links, middle).sum() <= bandwidth:
            high = middle
        else:
            low = middle
    shares = needed_hz(bits, compute_s, links, high)
    return Split(shares, _finish(bits, compute_s, links, shares))


def equal_split(bits: Floats, compute_s: Floats, links: Uplinks, bandwidth: float) -> Split:
    """Shares the band equally, a baseline; arguments and errors as in ``equal_finish``."""
    _check(bits, compute_s, links, bandwidth)
    shares = np.full(len(bits), bandwidth / len(bits))
    return Split(shares, _finish(bits, compute_s, links, shares))


def _finish(bits: Floats, compute_s: Floats, links: Uplinks, shares: Floats) -> Floats:
    rates = links.rate_bps(shares)
    airtime = np.divide(bits, rates, out=np.zeros_like(bits, dtype=np.float64), where=bits > 0.0)
    return np.asarray(compute_s + airtime)


def _check(bits: Floats, compute_s: Floats, links: Uplinks, bandwidth: float) -> None:
    if not bits.shape == compute_s.shape == (len(links),) or len(bits) == 0:
        raise ScheduleError(
            f"bits {bits.shape}, compute_s {compute_s.shape} and {len(links)} uplinks must be "
            "[num_devices] each"
        )
    if not 0.0 < bandwidth < np.inf:
        raise ScheduleError(f"bandwidth={bandwidth} must be finite and > 0")
    rates = links.rate_bps(np.full(len(bits), bandwidth))
    for name, values, least in (
        ("bits", bits, 0.0),
        ("compute_s", compute_s, 0.0),
        ("rates", rates, np.nextafter(0.0, 1.0)),
    ):
        if wrong := np.flatnonzero(~(np.isfinite(values) & (values >= least))).tolist():
            raise ScheduleError(f"{name} of devices {wrong} must be finite and >= 0 (rates > 0)")
