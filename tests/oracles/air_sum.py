"""One weighted mean in the air, one channel use at a time, in Python complex numbers.

The received sum is computed from what each antenna radiates, never from effective coefficients.
"""

import cmath
import math
from collections.abc import Sequence


def standardised(update: Sequence[float]) -> tuple[float, float, list[float]]:
    """Returns mean, standard deviation and (u - mean) / deviation; zeros if constant."""
    mean = math.fsum(update) / len(update)
    spread = math.sqrt(math.fsum((u - mean) ** 2 for u in update) / len(update))
    if spread <= 1e-12 * abs(mean):
        return mean, 0.0, [0.0] * len(update)
    return mean, spread, [(u - mean) / spread for u in update]


def root_mean_square(update: Sequence[float]) -> tuple[float, float, list[float]]:
    """Returns 0, the root mean square and u over it: what is sent if means stay in the update."""
    spread = math.sqrt(math.fsum(u * u for u in update) / len(update))
    return 0.0, spread, [u / spread if spread else 0.0 for u in update]


def zero_forcing_eta(
    gains: Sequence[complex], amplitudes: Sequence[float], power: Sequence[float]
) -> float:
    """Returns min_k P_k |h_k|^2 / a_k^2 of one subcarrier; devices that are mute do not count."""
    return min(
        p * abs(h) ** 2 / a**2
        for h, a, p in zip(gains, amplitudes, power, strict=True)
        if a > 0.0 and h != 0.0
    )


def inverting_precoders(
    known: Sequence[complex], amplitudes: Sequence[float], eta: float, silent: Sequence[bool]
) -> list[complex]:
    """Returns b_k = sqrt(eta) a_k h_k* / |h_k|^2, and 0 for silent devices."""
    return [
        0j if mute or a == 0.0 else math.sqrt(eta) * a * h.conjugate() / abs(h) ** 2
        for h, a, mute in zip(known, amplitudes, silent, strict=True)
    ]


def noise_free_mean(
    updates: Sequence[Sequence[float]],
    weights: Sequence[float],
    gains: Sequence[Sequence[complex]],
    precoders: Sequence[Sequence[complex]],
    eta: Sequence[float],
    counted: Sequence[Sequence[bool]],
    *,
    heard_share: float = 1.0,
    centres: bool = True,
    peak_power: float = math.inf,
) -> list[float]:
    """Returns what the server makes of one block without noise.

    Args:
        updates: [device][entry].
        weights: [device], any scale.
        gains: [device][subcarrier] true channel.
        precoders: [device][subcarrier].
        eta: [subcarrier].
        counted: [device][subcarrier] whose weight and mean the server counts.
        heard_share: share of the counted weights it expects in the sum.
        centres: means travel digitally.
        peak_power: symbols louder than this are clipped, phase kept.
    """
    total = math.fsum(weights)
    shares = [w / total for w in weights]
    parts = [(standardised if centres else root_mean_square)(u) for u in updates]
    size, num_sub = len(updates[0]), len(eta)
    received: list[float] = []
    for use in range((size + 1) // 2):
        m = use % num_sub
        air = 0j
        for k, (_, _, symbols) in enumerate(parts):
            odd = symbols[2 * use + 1] if 2 * use + 1 < size else 0.0
            radiated = precoders[k][m] * complex(symbols[2 * use], odd) / math.sqrt(2.0)
            if abs(radiated) ** 2 > peak_power:
                radiated = cmath.rect(math.sqrt(peak_power), cmath.phase(radiated))
            air += gains[k][m] * radiated
        weight = math.fsum(s for k, s in enumerate(shares) if counted[k][m])
        digital = math.fsum(shares[k] * parts[k][0] for k in range(len(shares)) if counted[k][m])
        for part in (air.real, air.imag):
            if weight == 0.0:
                received.append(0.0)
                continue
            analog = math.sqrt(2.0) * part / math.sqrt(eta[m]) / heard_share
            received.append((analog + digital) / weight)
    return received[:size]


def exact_mean(updates: Sequence[Sequence[float]], weights: Sequence[float]) -> list[float]:
    """Returns the weighted mean entry by entry."""
    total = math.fsum(weights)
    return [
        math.fsum(w * u for w, u in zip(weights, column, strict=True)) / total
        for column in zip(*updates, strict=True)
    ]
