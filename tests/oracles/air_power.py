"""Power control by brute force: the least error of a sum over every scaling, on a grid."""

import math
from collections.abc import Sequence


def sum_mse(
    eta: float, reach: Sequence[float], amplitudes: Sequence[float], noise_power: float
) -> float:
    """Returns the MSE at one denoising factor when every device does its best.

    Args:
        eta: denoising factor.
        reach: [device] sqrt(P_k) |h_k|, the loudest that the server can hear the device.
        amplitudes: [device] wanted amplitudes a_k.
        noise_power: sigma^2.
    """
    error = noise_power / eta
    for r, a in zip(reach, amplitudes, strict=True):
        error += max(0.0, a - r / math.sqrt(eta)) ** 2
    return error


def least_sum_mse(
    reach: Sequence[float], amplitudes: Sequence[float], noise_power: float, points: int = 4000
) -> float:
    """Returns the least MSE over a logarithmic grid of denoising factors."""
    ratios = [(r / a) ** 2 for r, a in zip(reach, amplitudes, strict=True)]
    low = math.log(min(ratios) / 10.0)
    high = math.log(max(ratios) * 10.0 + 10.0 * noise_power / min(a * a for a in amplitudes))
    return min(
        sum_mse(math.exp(low + (high - low) * i / points), reach, amplitudes, noise_power)
        for i in range(points + 1)
    )


def truncated_mean_variance(
    values: Sequence[float], gain_floor: float, noise_variance: float
) -> float:
    """Returns the variance of y / (K p): p / K^2 sum (1 - p) / p^2 u^2 + noise / (K p)^2.

    Each of K devices is heard with probability p = exp(-gain_floor), independently.

    Args:
        values: [device] the entry each device sends.
        gain_floor: g_th of unit-mean Rayleigh fading.
        noise_variance: variance of the noise in the sum per real entry.
    """
    p, count = math.exp(-gain_floor), len(values)
    silence = (1.0 - p) / p * math.fsum(v * v for v in values) / count**2
    return silence + noise_variance / (count * p) ** 2


def rician_inverse_mean(factor: float, floor: float) -> float:
    """Returns E[1/g; g >= floor] of a unit-mean Rician gain.

    (1 + K) g is a gamma variable of shape J + 1, J Poisson with mean K; for shape n >= 1 the
    expectation of 1 / x above x_0 is Gamma(n - 1, x_0) / Gamma(n), E1(x_0) for n = 1.
    """
    start, total = (1.0 + factor) * floor, 0.0
    weight, tail, term = math.exp(-factor), math.exp(-start), math.exp(-start)
    total += weight * exponential_integral(start)
    # tail is Gamma(n, x) / Gamma(n) = exp(-x) sum_{i < n} x^i / i!, for n = j
    for j in range(1, int(factor + 12.0 * math.sqrt(factor + 1.0)) + 40):
        weight *= factor / j
        total += weight * tail / j
        term *= start / j
        tail += term
    return (1.0 + factor) * total


def exponential_integral(x: float) -> float:
    """Returns E1(x), x > 0, by the midpoint rule of exp(-x / u) / u over u in (0, 1)."""
    steps = 20_000
    return math.fsum(math.exp(-x * steps / (i + 0.5)) / (i + 0.5) for i in range(steps))


def cotaf_plan(
    gains: Sequence[complex],
    amplitudes: Sequence[float],
    mean_gains: Sequence[float],
    power: Sequence[float],
    gain_floor: float,
) -> tuple[float, list[complex]]:
    """Returns eta and precoders of one subcarrier: one scale for all, set by the loudest update.

    The device with the largest a_k^2 / (P_k g_min,k) reaches its power exactly at its gain floor.
    """
    eta = min(
        p * gain_floor * mean / a**2
        for a, mean, p in zip(amplitudes, mean_gains, power, strict=True)
        if a > 0.0
    )
    sent = []
    for h, a, mean in zip(gains, amplitudes, mean_gains, strict=True):
        is_heard = abs(h) ** 2 >= gain_floor * mean
        sent.append(math.sqrt(eta) * a / h if is_heard else 0j)
    return eta, sent
