"""Receive beams by brute force: two antennas and two angles, on a grid."""

import cmath
import math
from collections.abc import Sequence


def heard(beam: Sequence[complex], gains: Sequence[complex]) -> complex:
    """Returns f^H h, antenna by antenna."""
    return sum(f.conjugate() * h for f, h in zip(beam, gains, strict=True))


def best_of_two_antennas(
    gains: Sequence[Sequence[complex]], amplitudes: Sequence[float], points: int
) -> float:
    """Returns max over beams (cos a, sin a e^jb) of min_k |f^H h_k|^2 / a_k^2, on a grid.

    A beam's common phase changes no gain, so these are all beams of two antennas.

    Args:
        gains: [device][2].
        amplitudes: [device].
        points: grid points of either angle.
    """
    best = 0.0
    for i in range(points + 1):
        angle = math.pi / 2.0 * i / points
        for j in range(points):
            beam = (math.cos(angle), math.sin(angle) * cmath.exp(2j * math.pi * j / points))
            weakest = min(
                abs(heard(beam, h)) ** 2 / a**2 for h, a in zip(gains, amplitudes, strict=True)
            )
            best = max(best, weakest)
    return best
