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
