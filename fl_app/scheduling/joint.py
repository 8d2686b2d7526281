"""Blocks and band together.

``jbba`` alternates: match blocks to devices at the present rates, then share the band so that all
finish together, and again. ``jbba_exact`` solves the same problem: a round of T seconds is possible
exactly if some assignment needs no more than the band, and the one that needs least is a linear
assignment problem, so a bisection over T ends at the optimum. The follow-up paper calls its problem
NP-hard; ours gives a device at most one block, which makes it easy.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fl_app.resources.links import rate_bps
from fl_app.scheduling.bandwidth import Split, equal_finish, equal_split, needed_hz
from fl_app.scheduling.errors import ScheduleError
from fl_app.scheduling.matching import (
    Assignment,
    bottleneck_assignment,
    cheapest_assignment,
    check_costs,
    crunch,
    is_depth_ordered,
    random_assignment,
)

Floats = NDArray[np.float64]

_HALVINGS = 60
_PATIENCE = 1e-9


@dataclass(frozen=True)
class Cell:
    """What is to be scheduled.

    Attributes:
        compute_s: [num_devices, num_blocks] seconds that a device takes for a block's gradient;
            ``inf`` where the block does not fit its memory.
        bits: [num_blocks] payload of every block's update in bit, > 0.
        snr_hz: [num_devices] p g / N0 of every uplink in Hz.
        bandwidth: the band in Hz.

    Raises:
        ScheduleError: shapes that do not fit, or see ``check_costs``.
    """

    compute_s: Floats
    bits: Floats
    snr_hz: Floats
    bandwidth: float

    def __post_init__(self) -> None:
        """Checks the shapes."""
        check_costs(self.compute_s)
        if self.compute_s.shape != (len(self.snr_hz), len(self.bits)):
            raise ScheduleError(
                f"compute_s {self.compute_s.shape} must be [num_devices, num_blocks], "
                f"[{len(self.snr_hz)}, {len(self.bits)}]"
            )

    def latencies(self, shares: Floats | float) -> Floats:
        """Returns [num_devices, num_blocks] seconds of every pair at these shares of the band."""
        rates = np.broadcast_to(rate_bps(shares, self.snr_hz), self.snr_hz.shape)
        with np.errstate(divide="ignore"):
            return np.asarray(self.compute_s + self.bits[None, :] / rates[:, None])

    def share(self, assignment: Assignment, *, equal: bool = False) -> "Schedule":
        """Returns the schedule of an assignment, its band shared for equal finish or equally."""
        blocks = np.arange(len(self.bits))
        rule = equal_split if equal else equal_finish
        compute_s = self.compute_s[assignment, blocks]
        return Schedule(
            assignment, rule(self.bits, compute_s, self.snr_hz[assignment], self.bandwidth)
        )


@dataclass(frozen=True)
class Schedule:
    """Who tunes what, on how much of the band.

    Attributes:
        assignment: [num_blocks] the device of every block.
        split: shares and ends in the order of blocks.
    """

    assignment: Assignment
    split: Split

    @property
    def round_s(self) -> float:
        """Seconds of the round."""
        return self.split.round_s


def match(costs: Floats) -> Assignment:
    """Returns the bottleneck assignment, by CRUNCH where depth orders the costs."""
    return crunch(costs) if is_depth_ordered(costs) else bottleneck_assignment(costs)


def matched_equal_share(cell: Cell) -> Assignment:
    """Returns the matching at equal shares of the band, one for each block."""
    return match(cell.latencies(cell.bandwidth / len(cell.bits)))


def improve(cell: Cell, start: Assignment) -> Schedule:
    """Alternates matching and sharing from one assignment until no round gets shorter.

    A device without a block is rated at the mean share, so that it can come in.
    """
    best = cell.share(start)
    while True:
        shares = np.full(len(cell.snr_hz), cell.bandwidth / len(cell.bits))
        shares[best.assignment] = best.split.bandwidths_hz
        following = cell.share(match(cell.latencies(shares)))
        if following.round_s >= best.round_s * (1.0 - _PATIENCE):
            return best
        best = following


def jbba(cell: Cell, rng: np.random.Generator) -> Schedule:
    """Returns the better of two alternations, from a matching at equal shares and from chance.

    Its round is never longer than either start's with the band shared for equal finish.

    Args:
        cell: what is to be scheduled.
        rng: draws the second start.

    Raises:
        ScheduleError: no assignment is allowed.
    """
    starts = [matched_equal_share(cell), random_assignment(cell.compute_s, rng)]
    return min((improve(cell, start) for start in starts), key=lambda each: each.round_s)


def jbba_exact(cell: Cell) -> Schedule:
    """Returns the schedule with the shortest round of all.

    Raises:
        ScheduleError: no assignment is allowed.
    """
    best = cell.share(matched_equal_share(cell))
    low, high = 0.0, best.round_s
    bits, snr_hz = cell.bits[None, :], cell.snr_hz[:, None]
    for _ in range(_HALVINGS):
        middle = (low + high) / 2.0
        needed = needed_hz(bits, cell.compute_s, snr_hz, middle)
        assignment = _cheapest_within(needed, cell.bandwidth)
        if assignment is None:
            low = middle
        else:
            high = middle
            found = cell.share(assignment)
            best = min(best, found, key=lambda each: each.round_s)
            high = min(high, best.round_s)
    return best


def _cheapest_within(needed: Floats, bandwidth: float) -> Assignment | None:
    """Returns the assignment that needs least band, or None if that is too much."""
    try:
        assignment = cheapest_assignment(np.where(needed <= bandwidth, needed, np.inf))
    except ScheduleError:
        return None
    total = needed[assignment, np.arange(needed.shape[1])].sum()
    return assignment if total <= bandwidth else None
