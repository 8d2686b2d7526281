"""A broadcast symbol by symbol, without noise: what a device makes of what it hears."""

import math
from collections.abc import Sequence


def broadcast_once(
    values: Sequence[float], gains: Sequence[complex], known: Sequence[complex]
) -> list[float]:
    """Returns the reals one device has, given its gain and its belief on every subcarrier."""
    scale = math.sqrt(math.fsum(v * v for v in values) / len(values))
    received: list[float] = []
    for use, start in enumerate(range(0, len(values), 2)):
        pair = [v / scale for v in values[start : start + 2]] + [0.0]
        symbol = complex(pair[0], pair[1]) / math.sqrt(2.0)
        place = use % len(gains)
        found = gains[place] * symbol / known[place] * math.sqrt(2.0) * scale
        received += [found.real, found.imag]
    return received[: len(values)]
