"""OFDMA by the textbook: times, outage and stochastic rounding of single numbers."""

import math
from collections.abc import Sequence


def ofdma_seconds(
    num_devices: int, num_reals: int, bits: int, side_bits: int, bandwidth_hz: float, snr: float
) -> float:
    """Returns the time in s that every one of K equal devices needs in its share of the band."""
    share_hz = bandwidth_hz / num_devices
    return (num_reals * bits + side_bits) / (share_hz * math.log2(1.0 + snr))


def air_seconds(num_reals: int, bandwidth_hz: float) -> float:
    """Returns the time in s of two reals per channel use, all devices together."""
    return num_reals / 2.0 / bandwidth_hz


def rayleigh_outage(bits_per_use: float, noise_power: float, power: float) -> float:
    """Returns P(log2(1 + P g / sigma^2) < R) = 1 - exp(-(2^R - 1) sigma^2 / P)."""
    return 1.0 - math.exp(-(2.0**bits_per_use - 1.0) * noise_power / power)


def rounding_variance(update: Sequence[float], bits: int) -> float:
    """Returns the mean over entries of (upper - u) (u - lower), levels found one by one."""
    low, high = min(update), max(update)
    levels = [low + (high - low) * i / (2**bits - 1) for i in range(2**bits)]
    total = 0.0
    for value in update:
        below = max(level for level in levels if level <= value + 1e-15)
        above = min((level for level in levels if level > below), default=below)
        total += (above - value) * (value - below)
    return total / len(update)


def sign_code(tensor: Sequence[float]) -> list[float]:
    """Returns every entry as the mean of the entries on its side of the tensor's mean."""
    middle = math.fsum(tensor) / len(tensor)
    above = [u for u in tensor if u >= middle]
    below = [u for u in tensor if u < middle]
    return [math.fsum(s) / len(s) for u in tensor for s in [above if u >= middle else below]]


def share_rate(share: float, gains: Sequence[float], snr: float, cap: float) -> float:
    """Returns bits per use of the whole band for a device with all its power in its share.

    Args:
        share: share of the band.
        gains: [subcarrier] |h|^2.
        snr: P / sigma^2 at the density of a device that fills the band.
        cap: bits that one subcarrier can carry at most.
    """
    carried = [min(cap, math.log2(1.0 + snr * g / share)) for g in gains]
    return share * math.fsum(carried) / len(carried)
