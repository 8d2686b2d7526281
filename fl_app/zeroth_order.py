"""Tuning by scalars: a direction is a seed, its slope is one number, and no gradient is sent.

Two losses give the slope along a direction z(s) drawn from its seed s (two-point estimate; Spall
1992, Malladi et al. 2023, arXiv:2305.17333). Who knows seeds and slopes rebuilds the adapter (Qin
et al. 2023, FedKSeed, arXiv:2312.06353): theta = theta_0 - lr sum_s g(s) z(s). What is rebuilt does
not depend on the order in which pairs arrive, to the last bit, as long as nothing but such steps
moves the adapter (no weight decay, no momentum).
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fl_app.errors import ConfigError, ModelError, WireError
from fl_app.seeding import generator
from fl_app.updates import Update

Shapes = Mapping[str, tuple[int, ...]]
"""Shape of every array of an adapter by name."""
_SEEDS, _COEFFICIENTS = "seeds", "coefficients"
_LARGEST = float(np.finfo(np.float32).max)


class Pair(NamedTuple):
    """One step along one direction.

    Attributes:
        seed: s of the direction z(s), 0 <= s < 2**63.
        coefficient: g, the slope of the loss along it (times the weight of who measured it).
    """

    seed: int
    coefficient: float


def shapes_of(theta: Mapping[str, NDArray[np.float32]]) -> Shapes:
    """Returns the shape of every array by name."""
    return {name: array.shape for name, array in theta.items()}


def direction(seed: int, shapes: Shapes) -> Update:
    """Returns z(s) ~ N(0, I): for each name an array from a stream of that name alone.

    Neither the order of the names nor which other names there are changes an array. Drawn in
    float64 and rounded, so that the last digit of a machine's logarithm does not show.

    Args:
        seed: s >= 0.
        shapes: shape of every array by name.
    """
    return {
        name: generator(seed, "direction", name).standard_normal(shape).astype(np.float32)
        for name, shape in shapes.items()
    }


def perturbed(theta: Mapping[str, NDArray[np.float32]], seed: int, scale: float) -> Update:
    """Returns theta + scale z(s) in float32, each entry rounded once; theta is not changed."""
    drawn = direction(seed, shapes_of(theta))
    return {
        name: (array + scale * drawn[name].astype(np.float64)).astype(np.float32)
        for name, array in theta.items()
    }


def scalar(loss_plus: float, loss_minus: float, eps: float) -> float:
    """Returns the slope (L(theta + eps z) - L(theta - eps z)) / (2 eps).

    Slope times z estimates the gradient. It is exact for losses of degree two along z; else the
    error is eps^2 / 6 times the third derivative along z. Over z ~ N(0, I) it is unbiased, but for
    that error, with a variance that grows with the number of parameters.

    Args:
        loss_plus: loss at ``perturbed(theta, seed, eps)``.
        loss_minus: loss at ``perturbed(theta, seed, -eps)``, on the same examples.
        eps: step, > 0. Too small a step drowns in the float32 rounding of the losses.

    Raises:
        ConfigError: ``eps`` is not above 0.
        ModelError: a loss is not finite.
    """
    if not 0.0 < eps < math.inf:
        raise ConfigError(f"eps={eps} of the two-point estimate must be > 0 and finite")
    if not (math.isfinite(loss_plus) and math.isfinite(loss_minus)):
        raise ModelError(
            f"the losses on both sides are {loss_plus} and {loss_minus}; lower the learning rate, "
            f"or eps={eps}"
        )
    return (loss_plus - loss_minus) / (2.0 * eps)


def merged(pairs: Iterable[Pair]) -> list[Pair]:
    """Returns one pair per seed, sorted by seed.

    Coefficients of a seed are added exactly and rounded once, so their order does not matter.
    """
    by_seed: dict[int, list[float]] = {}
    for seed, coefficient in pairs:
        by_seed.setdefault(seed, []).append(coefficient)
    return [Pair(seed, math.fsum(by_seed[seed])) for seed in sorted(by_seed)]


def accumulated(pairs: Iterable[Pair], shapes: Shapes) -> dict[str, NDArray[np.float64]]:
    """Returns the sum of coefficient z(seed) over all pairs, in float64.

    Pairs may come in any order and repeat a seed: the bits of the result are the same.
    """
    total = {name: np.zeros(shape) for name, shape in shapes.items()}
    for seed, coefficient in merged(pairs):
        for name, array in direction(seed, shapes).items():
            total[name] += coefficient * array.astype(np.float64)
    return total


def rebuild(theta0: Mapping[str, NDArray[np.float32]], pairs: Iterable[Pair], lr: float) -> Update:
    """Returns theta = theta_0 - lr sum_s g(s) z(s), rounded to float32 once.

    Args:
        theta0: the adapter everybody started from; not changed.
        pairs: all steps since, in any order.
        lr: learning rate, the same for all.
    """
    moved = accumulated(pairs, shapes_of(theta0))
    return {
        name: (array.astype(np.float64) - lr * moved[name]).astype(np.float32)
        for name, array in theta0.items()
    }


def combine(devices: Sequence[Sequence[Pair]], weights: Sequence[float]) -> list[Pair]:
    """Returns the pairs whose rebuilt adapter is the weighted mean of the devices' adapters.

    Args:
        devices: each device's pairs, all from the same theta_0 and with the same learning rate.
        weights: w_k >= 0 of each device (its number of examples), not all 0.

    Returns:
        One pair per seed, sorted; coefficient sum_k (w_k / sum_j w_j) g_k(s). The order of devices
        does not change a bit.

    Raises:
        ConfigError: there is not one weight >= 0 for each device, or all are 0.
    """
    total = math.fsum(weights)
    if len(weights) != len(devices) or min(weights, default=0.0) < 0 or not 0 < total < math.inf:
        raise ConfigError(
            f"weights={list(weights)} of {len(devices)} devices: give one >= 0 for each, not all 0"
        )
    return merged(
        Pair(seed, weight / total * coefficient)
        for pairs, weight in zip(devices, weights, strict=True)
        for seed, coefficient in pairs
    )


def to_arrays(pairs: Sequence[Pair]) -> dict[str, NDArray[np.generic]]:
    """Returns the pairs as they are sent: ``seeds`` int64 [n] and ``coefficients`` float64 [n].

    16 bytes a pair; float64 so that sender and receiver rebuild the same bits.
    """
    return {
        _SEEDS: np.array([pair.seed for pair in pairs], np.int64),
        _COEFFICIENTS: np.array([pair.coefficient for pair in pairs], np.float64),
    }


def from_arrays(arrays: Mapping[str, NDArray[np.generic]]) -> list[Pair]:
    """Reads pairs that were sent.

    Raises:
        WireError: other names, types or lengths, a negative seed, or a coefficient that is NaN,
            infinite or more than float32 holds (sums of those cannot overflow).
    """
    layout = {name: (str(array.dtype), array.ndim) for name, array in arrays.items()}
    if layout != {_SEEDS: ("int64", 1), _COEFFICIENTS: ("float64", 1)}:
        raise WireError(
            "wrong-shape", f"pairs are seeds int64 and coefficients float64, not {layout}"
        )
    seeds, coefficients = arrays[_SEEDS].tolist(), arrays[_COEFFICIENTS].tolist()
    if len(seeds) != len(coefficients):
        raise WireError(
            "wrong-shape", f"{len(seeds)} seeds came with {len(coefficients)} coefficients"
        )
    if min(seeds, default=0) < 0:
        raise WireError("damaged", f"seed {min(seeds)} is negative")
    if not all(abs(coefficient) <= _LARGEST for coefficient in coefficients):
        raise WireError("not-finite", "a slope is NaN, infinite, or more than float32 holds")
    return [Pair(*pair) for pair in zip(seeds, coefficients, strict=True)]
