"""Assignments against brute force over all of them."""

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from fl_app.scheduling.errors import ScheduleError
from fl_app.scheduling.matching import (
    bottleneck_assignment,
    cheapest_assignment,
    crunch,
    random_assignment,
)

Floats = NDArray[np.float64]


def all_assignments(costs: Floats) -> list[Floats]:
    """Costs of every pair of every assignment."""
    num_devices, num_blocks = costs.shape
    blocks = np.arange(num_blocks)
    return [
        costs[list(devices), blocks]
        for devices in itertools.permutations(range(num_devices), num_blocks)
    ]


def chosen(costs: Floats, assignment: Any) -> Floats:
    assert len(set(assignment.tolist())) == costs.shape[1]
    row: Floats = costs[assignment, np.arange(costs.shape[1])]
    return row


def random_costs(seed: int, *, ordered: bool) -> Floats:
    """Up to 6 devices and as many blocks, ties and forbidden pairs among them."""
    rng = np.random.default_rng(seed)
    num_blocks = int(rng.integers(1, 6))
    num_devices = int(rng.integers(num_blocks, 7))
    costs = rng.integers(1, 12, (num_devices, num_blocks)).astype(np.float64)
    if ordered:
        costs = np.cumsum(rng.integers(0, 4, costs.shape), axis=1) + costs[:, :1]
        for device, fits in enumerate(rng.integers(0, 3 * num_blocks, num_devices)):
            costs[device, fits + 1 :] = np.inf  # memory: deep blocks first
    else:
        costs[rng.random(costs.shape) < 0.2] = np.inf
    return costs


@pytest.mark.parametrize("ordered", [True, False])
def test_bottleneck_is_that_of_brute_force_on_200_instances(ordered: bool) -> None:
    impossible = 0
    for seed in range(200):
        costs = random_costs(seed, ordered=ordered)
        best = min(row.max() for row in all_assignments(costs))
        solvers = [bottleneck_assignment, crunch] if ordered else [bottleneck_assignment]
        for solve in solvers:
            if np.isinf(best):
                impossible += 1
                with pytest.raises(ScheduleError, match="no assignment gives every block"):
                    solve(costs)
            else:
                assert chosen(costs, solve(costs)).max() == best
    assert 0 < impossible < 100


def test_cheapest_sum_is_that_of_brute_force() -> None:
    for seed in range(50):
        costs = random_costs(seed, ordered=False)
        best = min(row.sum() for row in all_assignments(costs))
        if np.isfinite(best):
            assert chosen(costs, cheapest_assignment(costs)).sum() == best


@settings(deadline=None)
@given(st.integers(0, 500))
def test_more_devices_never_make_a_round_longer(seed: int) -> None:
    rng = np.random.default_rng(seed)
    costs = np.cumsum(rng.random((6, 4)), axis=1)
    rounds = [chosen(costs[:count], crunch(costs[:count])).max() for count in (4, 5, 6)]
    assert rounds == sorted(rounds, reverse=True)


def test_random_assignments_are_equally_likely_and_keep_forbidden_pairs_out() -> None:
    rng, draws = np.random.default_rng(0), 6000
    seen: dict[tuple[int, ...], int] = {}
    for _ in range(draws):
        devices = tuple(random_assignment(np.ones((3, 2)), rng).tolist())
        seen[devices] = seen.get(devices, 0) + 1
    assert len(seen) == 6
    # Binomial: five standard deviations leave less than 1e-5 for all six together.
    tolerance = 5.0 * np.sqrt(draws * (1 / 6) * (5 / 6))
    assert all(abs(count - draws / 6) < tolerance for count in seen.values())
    costs = np.array([[1.0, np.inf], [1.0, 1.0]])
    assert all(random_assignment(costs, rng).tolist() == [0, 1] for _ in range(20))


@pytest.mark.parametrize(
    ("costs", "words"),
    [
        (np.ones((2, 3)), "3 blocks for 2 devices"),
        (np.ones(3), r"costs \(3,\) must be"),
        (np.array([[np.nan]]), "all >= 0"),
        (np.array([[2.0, 1.0], [1.0, 1.0]]), "must not fall along a device's row"),
        (np.full((2, 2), np.inf), "no assignment gives every block"),
    ],
)
def test_impossible_requests_are_named(costs: Floats, words: str) -> None:
    with pytest.raises(ScheduleError, match=words):
        crunch(costs)
