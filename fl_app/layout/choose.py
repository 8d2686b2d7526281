"""Rules by name: from a word and budgets to a layout."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from fl_app.layout.budgets import Budgets, PriceOf, fit
from fl_app.layout.errors import LayoutError
from fl_app.layout.greedy import cost_aware
from fl_app.layout.nested import order_units
from fl_app.layout.rounding import Sizes
from fl_app.layout.rules import PROFILES, Rule, nested, profile, top_n

SCORED = ("sensitivity", "cost_aware", "channel_aware")
"""Rules that need scores of units."""
RULES = (*PROFILES, "top_n", *SCORED)


def choose(
    rule: str,
    *,
    price_of: PriceOf,
    budgets: Budgets,
    num_blocks: int,
    largest: int,
    smallest: int = 0,
    num_tuned: int | None = None,
    scores: Sequence[ArrayLike] | None = None,
) -> Sizes:
    """Returns the layout that a rule makes of the budgets.

    Args:
        rule: one of ``RULES``. ``sensitivity`` takes units by score, ``cost_aware`` by score over
            cost; ``channel_aware`` is ``sensitivity`` cut off at what this round's rate carries
            until the deadline ``budgets.round_s``, so its layouts of all rounds are nested.
        price_of: what a layout costs.
        budgets: the limits.
        num_blocks: blocks of the layout.
        largest: greatest size of a block.
        smallest: least size of a tuned block (profiles only).
        num_tuned: blocks of ``top_n``.
        scores: for each block the scores or gains of its units, falling for ``cost_aware``.

    Raises:
        LayoutError: an unknown rule, what the rule needs is missing, or the budgets are too small.
    """
    if rule not in RULES:
        raise LayoutError(f"rule '{rule}' is unknown; choose one of {', '.join(RULES)}")
    if rule == "channel_aware" and budgets.round_s is None:
        raise LayoutError("rule 'channel_aware' needs a deadline; set the budget round_s")
    if rule in SCORED:
        rows = _checked(rule, scores, num_blocks, largest)
        if rule == "cost_aware":
            return cost_aware(rows, price_of, budgets)
        return fit(nested(order_units(rows), num_blocks), price_of, budgets)
    if rule == "top_n":
        if num_tuned is None:
            raise LayoutError("rule 'top_n' needs the number of blocks to tune; set num_tuned")
        weights = top_n(num_blocks, num_tuned)
    else:
        weights = PROFILES[rule](num_blocks)
    spread: Rule = profile(weights, smallest=smallest, largest=largest)
    return fit(spread, price_of, budgets)


def _checked(
    rule: str, scores: Sequence[ArrayLike] | None, num_blocks: int, largest: int
) -> list[np.ndarray[tuple[int], np.dtype[np.float64]]]:
    if scores is None or len(scores) != num_blocks:
        given = "none" if scores is None else str(len(scores))
        raise LayoutError(
            f"rule '{rule}' needs scores of {num_blocks} blocks, {given} given; measure them on "
            "a profiling pass"
        )
    return [np.asarray(row, dtype=np.float64)[:largest] for row in scores]
