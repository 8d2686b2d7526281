"""Majority votes in the air, one channel use at a time, and the chance that noise turns one."""

import math
from collections.abc import Sequence


def sign(value: float) -> int:
    """Returns -1, 0 or 1."""
    return (value > 0) - (value < 0)


def noise_free_votes(
    updates: Sequence[Sequence[float]],
    gains: Sequence[Sequence[complex]],
    precoders: Sequence[Sequence[complex]],
) -> list[int]:
    """Returns the signs of what arrives, [device][subcarrier] channels and precoders."""
    size, num_sub = len(updates[0]), len(gains[0])
    votes: list[int] = []
    for use in range((size + 1) // 2):
        air = 0j
        for k, update in enumerate(updates):
            odd = sign(update[2 * use + 1]) if 2 * use + 1 < size else 0
            symbol = complex(sign(update[2 * use]), odd) / math.sqrt(2.0)
            air += gains[k][use % num_sub] * precoders[k][use % num_sub] * symbol
        votes += [sign(round(air.real, 12)), sign(round(air.imag, 12))]
    return votes[:size]


def error_chance(in_favour: int, num_devices: int, amplitude: float, noise_power: float) -> float:
    """Returns Q((2 k - K) amplitude / sigma) by integrating the Gaussian density numerically.

    A QPSK symbol of unit power carries amplitude / sqrt(2) per real, against noise of
    noise_power / 2 per real.
    """
    margin = (2 * in_favour - num_devices) * amplitude / math.sqrt(2.0)
    deviation = math.sqrt(noise_power / 2.0)
    start, steps = margin / deviation, 200_000
    width = (12.0 - start) / steps
    density = (
        math.exp(-((start + (i + 0.5) * width) ** 2) / 2.0) / math.sqrt(2.0 * math.pi)
        for i in range(steps)
    )
    return width * math.fsum(density)
