"""Pairs of many devices: combined, weighed, small on the wire, refused where they cannot be."""

import math
from collections.abc import Sequence

import numpy as np
import pytest
import safetensors.numpy

from fl_app.errors import ConfigError, WireError
from fl_app.seeding import torch_seed
from fl_app.zeroth_order import (
    Pair,
    accumulated,
    combine,
    from_arrays,
    rebuild,
    to_arrays,
)
from tests.pair_fixtures import EPS32, EPS64, SHAPES, THETA, flat


def _devices(num_devices: int, num_pairs: int, *, shared: bool = False) -> list[list[Pair]]:
    rng = np.random.default_rng(4)
    return [
        [
            Pair(torch_seed(0, "test", 0 if shared else device, i), float(rng.normal(0, 2)))
            for i in range(num_pairs)
        ]
        for device in range(num_devices)
    ]


@pytest.mark.parametrize("shared", [False, True])
def test_combined_pairs_rebuild_the_mean_of_the_devices(shared: bool) -> None:
    """FedAvg of the adapters, in float64, without one of them being sent."""
    devices, weights, lr = _devices(4, 6, shared=shared), [1.0, 5.0, 2.0, 2.0], 0.1
    both = combine(devices, weights)
    assert len(both) == (6 if shared else 24)
    sums = [flat(accumulated(pairs, SHAPES)) for pairs in devices]
    mean = sum(w * total for w, total in zip(weights, sums, strict=True)) / sum(weights)
    wanted = flat(THETA) - lr * mean
    reach = np.abs(flat(THETA)) + lr * sum(np.abs(total) for total in sums)
    bound = EPS32 / 2 * np.abs(wanted) + 200 * EPS64 * reach
    assert (np.abs(flat(rebuild(THETA, both, lr)) - wanted) <= bound).all()
    turned = combine(devices[::-1], weights[::-1])
    assert turned == both


@pytest.mark.parametrize("weights", [[1.0], [1.0, -1.0], [0.0, 0.0], [1.0, math.nan]])
def test_weights_that_are_none_are_refused(weights: Sequence[float]) -> None:
    with pytest.raises(ConfigError, match="2 devices"):
        combine(_devices(2, 1), weights)


def test_a_round_of_ten_devices_and_fifty_directions_is_small() -> None:
    """500 pairs of 16 bytes and a header; what arrives is what was sent, to the bit."""
    pairs = combine(_devices(10, 50), [1.0] * 10)
    blob = safetensors.numpy.save(to_arrays(pairs))
    assert 500 * 16 <= len(blob) < 500 * 16 + 300 < 20_000
    assert from_arrays(safetensors.numpy.load(blob)) == pairs


@pytest.mark.parametrize(
    ("seeds", "coefficients", "reason"),
    [
        (np.array([1.0]), np.array([1.0]), "wrong-shape"),
        (np.array([1]), np.array([1.0], np.float32), "wrong-shape"),
        (np.array([[1]]), np.array([[1.0]]), "wrong-shape"),
        (np.array([1, 2]), np.array([1.0]), "wrong-shape"),
        (np.array([-1]), np.array([1.0]), "damaged"),
        (np.array([1]), np.array([math.nan]), "not-finite"),
        (np.array([1, 1]), np.array([1e308, 1e308]), "not-finite"),
    ],
)
def test_pairs_that_cannot_be_are_refused(
    seeds: np.ndarray, coefficients: np.ndarray, reason: str
) -> None:
    with pytest.raises(WireError) as error:
        from_arrays({"seeds": seeds, "coefficients": coefficients})
    assert error.value.reason == reason
