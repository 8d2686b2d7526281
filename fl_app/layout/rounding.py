"""Whole numbers in given proportions, by the method of largest remainders."""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fl_app.layout.errors import LayoutError

Sizes = NDArray[np.int64]
"""[num_blocks] size of every block."""

_HALVINGS = 200
_FAINTEST = 1e-12


def apportion(weights: ArrayLike, total: int, *, smallest: int = 0, largest: int) -> Sizes:
    """Spreads ``total`` units over blocks in proportion to their weights.

    Blocks of weight 0 get nothing, all others ``smallest`` to ``largest``. What the bounds leave
    is shared in proportion; fractions are rounded down and the units left over go to the largest
    remainders, among equal ones to the block nearest to the loss. Equal weights give sizes that
    differ by at most one. As with every largest-remainder method, one more unit in total may
    cost a single block one of its own.

    Args:
        weights: [num_blocks], finite and >= 0, at least one > 0; a weight above 0 counts at least
            1e-12 of the greatest.
        total: units to spread.
        smallest: least size of a block with weight, >= 0.
        largest: greatest size of a block, >= max(1, smallest).

    Returns:
        Sizes with exactly the sum ``total``.

    Raises:
        LayoutError: a value out of range, or bounds that no layout of this total keeps.
    """
    shares = np.asarray(weights, dtype=np.float64)
    if shares.ndim != 1 or not np.isfinite(shares).all() or (shares < 0.0).any():
        raise LayoutError("weights must be one row of finite numbers >= 0, one for each block")
    active = np.flatnonzero(shares)
    if active.size == 0:
        raise LayoutError("weights are all 0; give at least one block a weight above 0")
    if not 0 <= smallest <= largest or largest < 1:
        raise LayoutError(f"sizes from {smallest} to {largest}: give 0 <= smallest <= largest >= 1")
    least, most = smallest * active.size, largest * active.size
    if not least <= total <= most:
        raise LayoutError(
            f"{total} units do not fit {active.size} blocks of {smallest} to {largest}; "
            f"give {least} to {most}"
        )
    relative = np.maximum(shares[active] / shares.max(), _FAINTEST)
    quotas = _quotas(relative, total, smallest, largest)
    floors = np.clip(np.floor(quotas + 1e-9), smallest, largest).astype(np.int64)
    # Stable and reversed: among equal remainders the last block comes first. Rounding of the
    # quotas themselves must not decide between equal weights.
    remainders = np.round(quotas - floors, 9)
    order = np.lexsort((-active, -remainders))
    sizes = np.zeros(len(shares), dtype=np.int64)
    missing = total - int(floors.sum())
    step, candidates = (1, order) if missing > 0 else (-1, order[::-1])
    while missing:
        for place in candidates:
            if missing and smallest <= floors[place] + step <= largest:
                floors[place] += step
                missing -= step
    sizes[active] = floors
    return sizes


def _quotas(
    shares: NDArray[np.float64], total: int, smallest: int, largest: int
) -> NDArray[np.float64]:
    """Returns real sizes clip(scale * share) with the sum ``total``, by bisection on the scale."""
    low, high = 0.0, 1.0
    while np.clip(high * shares, smallest, largest).sum() < total:
        high *= 2.0
    for _ in range(_HALVINGS):
        middle = (low + high) / 2.0
        if np.clip(middle * shares, smallest, largest).sum() < total:
            low = middle
        else:
            high = middle
    quotas: NDArray[np.float64] = np.clip(high * shares, smallest, largest)
    return quotas
