"""AdamW (Loshchilov and Hutter 2019, arXiv:1711.05101) with clipping and FedProx, by the book."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

Doubles = dict[str, NDArray[np.float64]]


def tuned(
    start: Mapping[str, NDArray[np.float32]],
    gradients: Callable[[Doubles, int], Doubles],
    rates: Mapping[str, float],
    *,
    num_steps: int,
    eps: float,
    weight_decay: float,
    clip_norm: float,
    proximal_mu: float,
    shares: Sequence[float] | None = None,
) -> tuple[Doubles, Sequence[float]]:
    """Runs AdamW (beta 0.9 and 0.999) in float64.

    Args:
        start: the received parameters by name.
        gradients: (parameters, step number from 0) to the gradient of the task's loss.
        rates: learning rate by name.
        num_steps: steps to take.
        eps: the denominator's constant.
        weight_decay: decoupled decay.
        clip_norm: largest norm of the whole gradient.
        proximal_mu: FedProx's pull towards ``start``.
        shares: of the rates, by step; None for constant rates.

    Returns:
        (parameters after the last step, gradient norm of each step before clipping).
    """
    origin: Doubles = {name: array.astype(np.float64) for name, array in start.items()}
    w = {name: array.copy() for name, array in origin.items()}
    m = {name: np.zeros_like(array) for name, array in w.items()}
    v = {name: np.zeros_like(array) for name, array in w.items()}
    norms = []
    for step in range(1, num_steps + 1):
        g = gradients(w, step - 1)
        g = {name: g[name] + proximal_mu * (w[name] - origin[name]) for name in w}
        norms.append(float(np.sqrt(sum((array**2).sum() for array in g.values()))))
        factor = min(1.0, clip_norm / (norms[-1] + 1e-6))
        share = 1.0 if shares is None else shares[step - 1]
        for name in w:
            clipped = factor * g[name]
            m[name] = 0.9 * m[name] + 0.1 * clipped
            v[name] = 0.999 * v[name] + 0.001 * clipped**2
            direction = (m[name] / (1 - 0.9**step)) / (np.sqrt(v[name] / (1 - 0.999**step)) + eps)
            rate = share * rates[name]
            w[name] = w[name] * (1 - rate * weight_decay) - rate * direction
    return w, norms
