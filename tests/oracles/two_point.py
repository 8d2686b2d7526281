"""Federated zeroth-order steps the slow way: the whole model, two forwards a direction, float64.

Written from the formulas: theta_k <- theta_k - lr g z with g = (L(theta_k + eps z) -
L(theta_k - eps z)) / (2 eps), then the mean of theta_k weighted by examples.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from fl_app.fomo.adapter import Adapter
from fl_app.seeding import generator

Theta = dict[str, np.ndarray[Any, np.dtype[np.float64]]]


def z_of(seed: int, theta: Mapping[str, np.ndarray[Any, Any]]) -> Theta:
    """Returns the direction of a seed, rounded to float32 as it is defined."""
    return {
        name: generator(seed, "direction", name)
        .standard_normal(array.shape)
        .astype(np.float32)
        .astype(np.float64)
        for name, array in theta.items()
    }


def loss_at(adapter: Adapter, theta: Theta, loss: Callable[[Any], torch.Tensor]) -> float:
    """Returns the loss of the whole model (float64) with these tuned values."""
    with torch.no_grad():
        for name, parameter in adapter.parameters.items():
            parameter.copy_(torch.from_numpy(theta[name]))
        return float(loss(adapter.model))


def walked(
    adapter: Adapter,
    theta: Theta,
    seeds: Sequence[int],
    losses: Sequence[Callable[[Any], torch.Tensor]],
    *,
    lr: float,
    eps: float,
) -> Theta:
    """Returns one device's values after a step for each seed, each with a batch of its own."""
    now = {name: array.copy() for name, array in theta.items()}
    for seed, loss in zip(seeds, losses, strict=True):
        z = z_of(seed, theta)
        above = loss_at(adapter, {n: now[n] + eps * z[n] for n in now}, loss)
        below = loss_at(adapter, {n: now[n] - eps * z[n] for n in now}, loss)
        slope = (above - below) / (2 * eps)
        now = {name: now[name] - lr * slope * z[name] for name in now}
    return now


def mean(thetas: Sequence[Theta], weights: Sequence[int]) -> Theta:
    """Returns the weighted mean."""
    total = sum(weights)
    return {
        name: sum(w * theta[name] for w, theta in zip(weights, thetas, strict=True)) / total
        for name in thetas[0]
    }
