"""Blocks and band together (JBBA).

Two steps alternate: among all assignments take the one that needs the least band to end as early as
the present schedule does (a linear assignment problem); then share the band so that all finish
together, which ends the round earlier if any band was left over. When no assignment leaves any, no
assignment allows a shorter round, so the alternation ends at the optimum. Matching at the *rates*
of the present shares instead mostly stands still: all finish together there, so a device that gets
a deeper block ends later.

The follow-up paper calls its problem NP-hard; ours gives a device at most one block, which makes it
easy.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fl_app.scheduling.bandwidth import Split, equal_finish, equal_split, needed_hz
from fl_app.scheduling.errors import ScheduleError
from fl_app.scheduling.matching import (
    Assignment,
    bottleneck_assignment,
    cheapest_assignment,
    check_costs,
    crunch,
    is_depth_ordered,
)
from fl_app.scheduling.uplinks import Uplinks

Floats = NDArray[np.float64]

_PATIENCE = 1e-9
_SLACK = 1e-12


@dataclass(frozen=True)
class Cell:
    """What is to be scheduled.

    Attributes:
        compute_s: [num_devices, num_blocks] seconds that a device takes for a block's gradient;
            ``inf`` where the block does not fit its memory.
        bits: [num_blocks] payload of every block's update in bit, > 0.
        links: [num_devices] uplinks.
        bandwidth: the band in Hz.

    Raises:
        ScheduleError: shapes that do not fit, or see ``check_costs``.
    """

    compute_s: Floats
    bits: Floats
    links: Uplinks
    bandwidth: float

    def __post_init__(self) -> None:
        """Checks the shapes."""
        check_costs(self.compute_s)
        if self.compute_s.shape != (len(self.links), len(self.bits)):
            raise ScheduleError(
                f"compute_s {self.compute_s.shape} must be [num_devices, num_blocks], "
                f"[{len(self.links)}, {len(self.bits)}]"
            )

    def latencies(self, shares: Floats) -> Floats:
        """Returns [num_devices, num_blocks] seconds of every pair at [num_devices] shares."""
        rates = self.links.rate_bps(shares)
        with np.errstate(divide="ignore"):
            return np.asarray(self.compute_s + self.bits[None, :] / rates[:, None])

    def share(self, assignment: Assignment, *, equal: bool = False) -> "Schedule":
        """Returns the schedule of an assignment, its band shared for equal finish or equally."""
        blocks = np.arange(len(self.bits))
        rule = equal_split if equal else equal_finish
        compute_s = self.compute_s[assignment, blocks]
        return Schedule(
            assignment, rule(self.bits, compute_s, self.links.of(assignment), self.bandwidth)
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
    return match(cell.latencies(np.full(len(cell.links), cell.bandwidth / len(cell.bits))))


def jbba(cell: Cell, start: Assignment | None = None) -> Schedule:
    """Returns the schedule with the shortest round of all, by alternation.

    Args:
        cell: what is to be scheduled.
        start: an allowed assignment to start from; None for the matching at equal shares. It does
            not change the length of the round that comes out.

    Raises:
        ScheduleError: no assignment is allowed.
    """
    best = cell.share(matched_equal_share(cell) if start is None else start)
    bits = cell.bits[None, :]
    while True:
        needed = needed_hz(bits, cell.compute_s, cell.links, best.round_s * (1.0 + _SLACK))
        following = cell.share(cheapest_assignment(needed))
        if following.round_s >= best.round_s * (1.0 - _PATIENCE):
            return best
        best = following
