"""Cost-aware allocation: unit by unit, the most gain for what it costs.

A unit's cost is the share of every budget that it uses up, added over the budgets. Its first unit
opens a block; a block deeper than all open ones pays the backward pass of every block in between,
units in the open span are cheap.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from fl_app.layout.budgets import Budgets, PriceOf
from fl_app.layout.errors import LayoutError
from fl_app.layout.rounding import Sizes
from fl_app.resources.price import Price

Floats = NDArray[np.float64]

_FREE = 1e-12
"""Cost of a unit that no budget notices."""


def first_order_gains(gradient: Floats, largest: int) -> Floats:
    """Returns gains of the first LoRA ranks of one map: squared singular values of its gradient.

    Args:
        gradient: [d_out, d_in] gradient of the loss with respect to the frozen weights.
        largest: number of gains, at most min(d_out, d_in).
    """
    values = np.linalg.svd(gradient, compute_uv=False)[:largest]
    return np.asarray(values**2, dtype=np.float64)


def exact_gains(cross: Floats, second_moment: Floats, largest: int) -> Floats:
    """Returns exact gains of the first ranks for the squared loss 1/2 E||y - (W + D) x||^2.

    The best D of rank r lowers the loss by half the sum of the r largest squared singular values
    of G S^(-1/2) (reduced-rank regression).

    Args:
        cross: [d_out, d_in] G = E[(y - W x) x^T].
        second_moment: [d_in, d_in] S = E[x x^T], positive definite.
        largest: number of gains.
    """
    roots, vectors = np.linalg.eigh(second_moment)
    whitened = cross @ (vectors / np.sqrt(roots)) @ vectors.T
    return first_order_gains(whitened, largest) / 2.0


def cost_aware(gains: Sequence[Floats], price_of: PriceOf, budgets: Budgets) -> Sizes:
    """Returns a layout by greedy choice.

    Args:
        gains: for each block the gains of its units, >= 0 and falling; their number is the
            block's greatest size. A unit without gain is never taken.
        price_of: what a layout costs. The cost of a unit may depend on its block, that block's
            size and the deepest open block, on nothing else.
        budgets: the limits; at least one.

    Returns:
        A layout that keeps all budgets. Where every unit costs the same it has the greatest
        gain of all that do (exchange argument).

    Raises:
        LayoutError: no budget, gains that are negative, rising or not finite, or budgets that not
            even one unit keeps.
    """
    if not budgets.limits:
        raise LayoutError("budgets are all None; cost-aware allocation needs at least one limit")
    for block, row in enumerate(gains):
        if not np.isfinite(row).all() or (np.diff(row) > 0.0).any() or (np.asarray(row) < 0).any():
            raise LayoutError(f"gains of block {block} must be finite, >= 0 and falling")
    sizes = np.zeros(len(gains), dtype=np.int64)
    base = price_of(sizes.tolist())
    if budgets.exceeded(base):
        raise budgets.refusal(base)
    is_open = np.array([len(row) > 0 and row[0] > 0.0 for row in gains])
    costs: dict[tuple[int, int, int], float] = {}
    refused: Price | None = None
    current = base
    while is_open.any():
        deepest = int(np.flatnonzero(sizes)[0]) if sizes.any() else len(gains)
        best, best_ratio = -1, -1.0
        for block in np.flatnonzero(is_open)[::-1]:  # on equal ratios the nearest to the loss
            key = (int(block), int(sizes[block]), deepest)
            if key not in costs:
                costs[key] = _cost(budgets, current, price_of(_more(sizes, block)))
            ratio = gains[block][sizes[block]] / costs[key]
            if ratio > best_ratio * (1.0 + 1e-9):
                best, best_ratio = int(block), float(ratio)
        price = price_of(_more(sizes, best))
        if budgets.exceeded(price):
            is_open[best], refused = False, price
            continue
        sizes[best] += 1
        current = price
        row = gains[best]
        is_open[best] = sizes[best] < len(row) and row[sizes[best]] > 0.0
    if not sizes.any():
        if refused is None:
            raise LayoutError("gains are all 0; there is no unit worth its cost")
        raise budgets.refusal(refused)
    return sizes


def _more(sizes: Sizes, block: int) -> list[int]:
    grown = [int(size) for size in sizes]
    grown[block] += 1
    return grown


def _cost(budgets: Budgets, before: Price, after: Price) -> float:
    spent = [
        (getattr(after, name) - getattr(before, name)) / limit
        for name, limit in budgets.limits.items()
    ]
    return max(float(sum(spent)), _FREE)
