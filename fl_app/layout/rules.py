"""Rules: from a number of units to a layout.

Profiles know nothing of data and are the baselines; a nested rule spends units in one fixed order,
so that every smaller layout is contained in every larger one.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fl_app.layout.errors import LayoutError
from fl_app.layout.nested import Unit, sizes_of
from fl_app.layout.rounding import Sizes, apportion

Floats = NDArray[np.float64]


class Rule(Protocol):
    """How units are spread."""

    @property
    def fewest(self) -> int:
        """Fewest units that the rule can spread, >= 1."""
        ...

    @property
    def most(self) -> int:
        """Most units that it can spread."""
        ...

    def sizes(self, num_units: int) -> Sizes:
        """Returns the layout of ``num_units`` units, ``fewest`` to ``most``."""
        ...


@dataclass(frozen=True)
class Profile:
    """Units in proportion to fixed weights; see ``apportion``.

    Attributes:
        weights: one for each block, >= 0.
        smallest: least size of a block with weight.
        largest: greatest size of a block.
    """

    weights: tuple[float, ...]
    smallest: int
    largest: int

    @property
    def fewest(self) -> int:
        """Units of the smallest layout that tunes anything."""
        return max(1, self.smallest * int(np.count_nonzero(self.weights)))

    @property
    def most(self) -> int:
        """Units of the largest layout."""
        return self.largest * int(np.count_nonzero(self.weights))

    def sizes(self, num_units: int) -> Sizes:
        """Returns the layout."""
        return apportion(self.weights, num_units, smallest=self.smallest, largest=self.largest)


@dataclass(frozen=True)
class Nested:
    """Units in one fixed order.

    Attributes:
        order: all units, best first; see ``order_units``.
        num_blocks: blocks of the layout.
    """

    order: tuple[Unit, ...]
    num_blocks: int

    @property
    def fewest(self) -> int:
        """One unit."""
        return 1

    @property
    def most(self) -> int:
        """All units."""
        return len(self.order)

    def sizes(self, num_units: int) -> Sizes:
        """Returns the layout of the first units."""
        return sizes_of(self.order[:num_units], self.num_blocks)


def uniform(num_blocks: int) -> Floats:
    """Equal weights."""
    return np.ones(num_blocks)


def top_n(num_blocks: int, num_tuned: int) -> Floats:
    """Equal weights for the ``num_tuned`` blocks nearest to the loss.

    Raises:
        LayoutError: not 1 to ``num_blocks``.
    """
    if not 1 <= num_tuned <= num_blocks:
        raise LayoutError(f"top {num_tuned} of {num_blocks} blocks: give 1 to {num_blocks}")
    return (np.arange(num_blocks) >= num_blocks - num_tuned).astype(np.float64)


def linear_up(num_blocks: int) -> Floats:
    """Weights 1, 2, ... towards the loss."""
    return np.arange(1.0, num_blocks + 1.0)


def linear_down(num_blocks: int) -> Floats:
    """Weights that fall to 1 towards the loss."""
    return linear_up(num_blocks)[::-1].copy()


def u_shape(num_blocks: int) -> Floats:
    """Weights that rise linearly from the middle to both ends, the least of them 1."""
    from_middle = np.abs(np.arange(num_blocks) - (num_blocks - 1) / 2.0)
    weights: Floats = 1.0 + from_middle - from_middle.min()
    return weights


PROFILES: dict[str, Callable[[int], Floats]] = {
    "uniform": uniform,
    "linear_up": linear_up,
    "linear_down": linear_down,
    "u_shape": u_shape,
}
"""Profiles that need nothing but the number of blocks."""


def profile(weights: ArrayLike, *, smallest: int = 0, largest: int) -> Profile:
    """Returns the rule of these weights; bounds as in ``apportion``."""
    row = tuple(float(weight) for weight in np.asarray(weights, dtype=np.float64))
    rule = Profile(row, smallest, largest)
    rule.sizes(rule.most)  # refuses impossible weights and bounds now
    return rule


def nested(order: Sequence[Unit], num_blocks: int) -> Nested:
    """Returns the rule of this order.

    Raises:
        LayoutError: an empty order, a unit beyond the blocks, or one before its predecessor.
    """
    if not order:
        raise LayoutError("the order holds no unit; give every block at least one score")
    seen = [0] * num_blocks
    for unit in order:
        if not 0 <= unit.block < num_blocks or unit.number != seen[unit.block]:
            raise LayoutError(
                f"unit {unit.number} of block {unit.block} is out of place; order units as "
                "order_units does"
            )
        seen[unit.block] += 1
    return Nested(tuple(order), num_blocks)
