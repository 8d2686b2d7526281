"""Blocks and band together, against brute force over all assignments."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fl_app.scheduling.errors import ScheduleError
from fl_app.scheduling.joint import Cell, jbba, match, matched_equal_share
from fl_app.scheduling.matching import random_assignment
from fl_app.scheduling.uplinks import Shannon


def random_cell(seed: int, num_devices: int, num_blocks: int, *, tight: bool = False) -> Cell:
    """Compute grows with depth; where memory is tight weak devices hold near blocks only."""
    rng = np.random.default_rng(seed)
    speed = 10.0 ** rng.uniform(-0.7, 0.7, (num_devices, 1))
    compute_s = np.cumsum(rng.uniform(0.1, 0.5, (1, num_blocks)), axis=1) / speed
    if tight:
        for device, fits in enumerate(rng.integers(num_blocks // 2, num_blocks + 1, num_devices)):
            compute_s[device, fits:] = np.inf
        compute_s[0] = compute_s[0, 0] * np.arange(1.0, num_blocks + 1.0)
    bits = rng.uniform(1e5, 2e6, num_blocks)
    snr_hz = 1e6 * 10.0 ** rng.uniform(-0.5, 2.5, num_devices)
    return Cell(compute_s, bits, Shannon(snr_hz), 1e6)


def brute_force(cell: Cell) -> float:
    num_devices, num_blocks = cell.compute_s.shape
    ends = [
        cell.share(np.array(devices)).round_s
        for devices in itertools.permutations(range(num_devices), num_blocks)
        if np.isfinite(cell.compute_s[list(devices), np.arange(num_blocks)]).all()
    ]
    return min(ends, default=np.inf)


@pytest.mark.parametrize("tight", [False, True])
def test_joint_schedule_is_that_of_brute_force(tight: bool) -> None:
    beyond_matching = 0
    for seed in range(15):
        cell = random_cell(seed, 4 + seed % 2, 2 + seed % 3, tight=tight)
        best = brute_force(cell)
        if np.isinf(best):
            with pytest.raises(ScheduleError, match="no assignment gives every block"):
                jbba(cell)
            continue
        assert jbba(cell).round_s == pytest.approx(best, rel=1e-9)
        matched = cell.share(matched_equal_share(cell))
        beyond_matching += matched.round_s > best * (1.0 + 1e-6)
    assert beyond_matching >= 1  # else this would not tell the alternation from its start


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 2**32), st.integers(2, 8), st.integers(0, 4))
def test_joint_schedule_is_never_worse_than_either_start_and_forgets_it(
    seed: int, num_blocks: int, idle: int
) -> None:
    cell = random_cell(seed, num_blocks + idle, num_blocks)
    matched = matched_equal_share(cell)
    drawn = random_assignment(cell.compute_s, np.random.default_rng(seed))
    joint = jbba(cell)
    for start in (matched, drawn):
        assert joint.round_s <= cell.share(start).round_s * (1.0 + 1e-9)
        assert joint.round_s <= cell.share(start, equal=True).round_s * (1.0 + 1e-9)
        assert jbba(cell, start).round_s == pytest.approx(joint.round_s, rel=1e-7)
    assert joint.split.bandwidths_hz.sum() <= cell.bandwidth * (1.0 + 1e-9)
    np.testing.assert_allclose(joint.split.finish_s, joint.round_s, rtol=1e-6)


def test_one_device_less_never_makes_a_round_shorter() -> None:
    for seed in range(5):
        cell = random_cell(seed, 6, 3)
        rounds = [
            jbba(Cell(cell.compute_s[:n], cell.bits, cell.links.of(np.arange(n)), 1e6)).round_s
            for n in (6, 5, 4, 3)
        ]
        assert all(b >= a * (1.0 - 1e-9) for a, b in itertools.pairwise(rounds))


def test_depth_order_is_not_needed_but_used() -> None:
    rising = np.array([[1.0, 2.0], [3.0, 9.0]])
    assert match(rising).tolist() == [1, 0]
    falling = np.array([[2.0, 1.0], [9.0, 3.0]])
    assert match(falling).tolist() == [0, 1]


def test_an_idle_device_comes_in_where_it_helps() -> None:
    """The start uses the two slowest of three devices."""
    compute_s = np.array([[1.0, 2.0], [5.0, 10.0], [6.0, 12.0]])
    cell = Cell(compute_s, np.full(2, 1e5), Shannon(np.full(3, 1e7)), 1e6)
    better = jbba(cell, np.array([1, 2]))
    assert better.round_s == pytest.approx(brute_force(cell))
    assert better.assignment.tolist() == [1, 0]


def test_shapes_that_do_not_fit_are_named() -> None:
    with pytest.raises(ScheduleError, match=r"compute_s \(3, 2\) must be"):
        Cell(np.ones((3, 2)), np.ones(2), Shannon(np.ones(4)), 1e6)
    with pytest.raises(ScheduleError, match="3 blocks for 2 devices"):
        Cell(np.ones((2, 3)), np.ones(3), Shannon(np.ones(2)), 1e6)
