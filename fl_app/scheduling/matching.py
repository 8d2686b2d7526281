"""Which device tunes which block: the assignment whose slowest pair is fastest."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from scipy.sparse import csr_array
from scipy.sparse.csgraph import maximum_bipartite_matching

from fl_app.scheduling.errors import ScheduleError

Floats = NDArray[np.float64]
Assignment = NDArray[np.int64]
"""[num_blocks] the device of every block."""


def check_costs(costs: Floats) -> None:
    """Checks costs of pairs.

    Raises:
        ScheduleError: not a matrix, NaN or negative, or more blocks than devices.
    """
    if costs.ndim != 2 or 0 in costs.shape or np.isnan(costs).any() or (costs < 0.0).any():
        raise ScheduleError(f"costs {costs.shape} must be [num_devices, num_blocks], all >= 0")
    num_devices, num_blocks = costs.shape
    if num_blocks > num_devices:
        raise ScheduleError(
            f"{num_blocks} blocks for {num_devices} devices: a device tunes one block a round; "
            "tune fewer blocks or let more devices take part"
        )


def crunch(costs: Floats) -> Assignment:
    """Solves the bottleneck assignment where depth orders the costs (CRUNCH).

    Cut: below a threshold every device keeps its cheapest blocks, a prefix. Recount: sort the
    lengths of these prefixes. Check: all blocks find a device exactly if the j-th longest prefix
    reaches the j-th deepest block. The least threshold that passes is found by bisection over the
    costs themselves; O(K L log(K L)).

    Args:
        costs: [num_devices, num_blocks] latencies, not falling along any row; ``inf`` forbids.

    Returns:
        An assignment whose greatest cost is the least possible. Deep blocks go to the devices
        that reach deepest.

    Raises:
        ScheduleError: see ``check_costs``; a row falls; or no assignment is allowed.
    """
    check_costs(costs)
    if not is_depth_ordered(costs):
        raise ScheduleError(
            "costs must not fall along a device's row; sort blocks by depth from the loss, or use "
            "bottleneck_assignment, which needs no order"
        )
    num_blocks = costs.shape[1]
    least_reach = np.arange(num_blocks, 0, -1)

    def reaches(threshold: float) -> NDArray[np.int64]:
        return np.asarray((costs <= threshold).sum(axis=1), dtype=np.int64)

    def passes(threshold: float) -> bool:
        longest = np.sort(reaches(threshold))[::-1][:num_blocks]
        return bool((longest >= least_reach).all())

    reach = reaches(_least_threshold(costs, passes))
    deepest_first = np.argsort(-reach, kind="stable")[:num_blocks]
    return np.asarray(deepest_first[::-1], dtype=np.int64)


def bottleneck_assignment(costs: Floats) -> Assignment:
    """Solves the bottleneck assignment for any costs, by threshold and maximum matching.

    Arguments, result and errors are those of ``crunch``; rows need no order.
    """
    check_costs(costs)

    def match(threshold: float) -> Assignment:
        allowed = csr_array((costs <= threshold).T)
        return np.asarray(maximum_bipartite_matching(allowed, perm_type="column"), dtype=np.int64)

    threshold = _least_threshold(costs, lambda value: bool((match(value) >= 0).all()))
    return match(threshold)


def cheapest_assignment(costs: Floats) -> Assignment:
    """Returns the allowed assignment with the least sum of costs (Hungarian method).

    Raises:
        ScheduleError: see ``check_costs``, or no assignment is allowed.
    """
    check_costs(costs)
    try:
        blocks, devices = linear_sum_assignment(costs.T)
    except ValueError as error:
        raise _impossible() from error
    assignment = np.empty(len(blocks), dtype=np.int64)
    assignment[blocks] = devices
    return assignment


def random_assignment(costs: Floats, rng: np.random.Generator) -> Assignment:
    """Returns a random allowed assignment, a baseline.

    Without forbidden pairs all assignments are equally likely.

    Raises:
        ScheduleError: see ``check_costs``, or no assignment is allowed.
    """
    check_costs(costs)
    if np.isfinite(costs).all():
        return rng.permutation(costs.shape[0])[: costs.shape[1]].astype(np.int64)
    return cheapest_assignment(np.where(np.isinf(costs), np.inf, rng.exponential(size=costs.shape)))


def is_depth_ordered(costs: Floats) -> bool:
    """Tells whether no row falls; pairs that are forbidden may only be followed by such."""
    return bool((costs[:, 1:] >= costs[:, :-1]).all())


def _least_threshold(costs: Floats, passes: Callable[[float], bool]) -> float:
    values = np.unique(costs[np.isfinite(costs)])
    if values.size == 0 or not passes(float(values[-1])):
        raise _impossible()
    low, high = 0, len(values) - 1
    while low < high:
        middle = (low + high) // 2
        if passes(float(values[middle])):
            high = middle
        else:
            low = middle + 1
    return float(values[low])


def _impossible() -> ScheduleError:
    return ScheduleError(
        "no assignment gives every block a device that can hold it; tune fewer or nearer blocks, "
        "lower batch or sequence, or add devices with more memory"
    )
