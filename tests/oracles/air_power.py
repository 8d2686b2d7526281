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
