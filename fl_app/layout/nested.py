"""Units in one order, so that a device may send as many of the first as its channel carries.

A layout cut off anywhere is contained in every longer one: its payload is a prefix of theirs, and a
server fills what is missing with zeros (nested dropout of ranks as in DyLoRA, Valipour et al. 2022,
arXiv:2210.07558; truncation by rate is ours).
"""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fl_app.layout.errors import LayoutError
from fl_app.layout.rounding import Sizes


class Unit(NamedTuple):
    """One unit: the ``number``-th of a block, counted from 0."""

    block: int
    number: int


def order_units(scores: Sequence[ArrayLike]) -> tuple[Unit, ...]:
    """Orders all units by falling score.

    A block's units come in the order given, whatever their scores: a unit's place is that of the
    least score up to it. Equal scores take turns over the blocks, nearest to the loss first, so
    equal scores everywhere make uniform layouts.

    Args:
        scores: for each block the scores of its units, finite; blocks may have none.

    Raises:
        LayoutError: a score is not finite.
    """
    ranked = []
    for block, row in enumerate(scores):
        values = np.asarray(row, dtype=np.float64)
        if not np.isfinite(values).all():
            raise LayoutError(f"scores of block {block} must be finite")
        for index, score in enumerate(np.minimum.accumulate(values) if values.size else values):
            ranked.append((-float(score), index, -block))
    return tuple(Unit(-block, index) for _, index, block in sorted(ranked))


def sizes_of(units: Sequence[Unit], num_blocks: int) -> Sizes:
    """Returns the layout [num_blocks] of some units."""
    counts = np.bincount([unit.block for unit in units], minlength=num_blocks)
    return counts.astype(np.int64)


def allowance_bytes(rate_bps: float, deadline_s: float, busy_s: float) -> int:
    """Returns the bytes that a round's rate carries: R (tau - T) / 8, at least 0.

    Args:
        rate_bps: uplink rate R in bit/s, >= 0.
        deadline_s: end of the round tau in s.
        busy_s: seconds T before the uplink can start.
    """
    return max(0, math.floor(rate_bps * (deadline_s - busy_s) / 8.0))


def units_within(order: Sequence[Unit], unit_bytes: Sequence[int], allowance: int) -> int:
    """Returns how many of the first units fit into a number of bytes.

    Args:
        order: all units.
        unit_bytes: bytes of one unit in each block, >= 0.
        allowance: bytes that may be sent, >= 0.
    """
    totals = np.cumsum([unit_bytes[unit.block] for unit in order], dtype=np.int64)
    return int(np.searchsorted(totals, allowance, side="right"))


def pack(order: Sequence[Unit], rows: Mapping[Unit, NDArray[np.float32]]) -> bytes:
    """Returns the payload of some units: their reals one after the other, little-endian float32.

    Args:
        order: the units to send; ``pack(order[:n])`` is a prefix of ``pack(order)``.
        rows: reals of every unit, any shape (a row of A beside a column of B).
    """
    return b"".join(np.ascontiguousarray(rows[unit], dtype="<f4").tobytes() for unit in order)
