"""Budgets, and the largest layout of a rule that keeps them."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from fl_app.layout.errors import LayoutError
from fl_app.layout.rounding import Sizes
from fl_app.layout.rules import Rule
from fl_app.resources.price import Price

PriceOf = Callable[[Sequence[int]], Price]
"""What a layout costs; ``fl_app.resources.price.Pricer`` is one."""

_REMEDIES = {
    "params": "allow more parameters or smaller units (fewer target maps)",
    "uplink_bytes": "allow more bytes or send fewer bytes a value",
    "memory_bytes": "use a smaller batch or sequence, fewer bits a weight, an emulator of fewer "
    "blocks, or another device",
    "step_s": "use a smaller batch or sequence, an emulator of fewer blocks, or a faster device",
    "round_s": "allow a later deadline, fewer local steps, a smaller batch, an emulator of fewer "
    "blocks, or a better link",
}


@dataclass(frozen=True, kw_only=True)
class Budgets:
    """Upper limits by the names of ``Price``; None is no limit.

    Attributes:
        params: tuned parameters.
        uplink_bytes: bytes of an update.
        memory_bytes: memory of a local step.
        step_s: seconds of a local step.
        round_s: seconds of a round, its deadline.
    """

    params: int | None = None
    uplink_bytes: int | None = None
    memory_bytes: float | None = None
    step_s: float | None = None
    round_s: float | None = None

    def __post_init__(self) -> None:
        """Raises LayoutError on a limit that is not above 0."""
        for name, limit in self.limits.items():
            if not limit > 0.0 or math.isnan(limit):
                raise LayoutError(f"budget {name}={limit} must be > 0, or None for no limit")

    @property
    def limits(self) -> dict[str, float]:
        """The limits that there are, by name."""
        return {
            name: value for name, value in dataclasses.asdict(self).items() if value is not None
        }

    def exceeded(self, price: Price) -> list[str]:
        """Returns the names of the limits that a price exceeds."""
        return [name for name, limit in self.limits.items() if getattr(price, name) > limit]

    def refusal(self, price: Price) -> LayoutError:
        """Returns the error that names what even the smallest layout exceeds."""
        texts = [
            f"budget {name}={self.limits[name]:.6g}: the smallest layout takes "
            f"{getattr(price, name):.6g}; {_REMEDIES[name]}"
            for name in self.exceeded(price)
        ]
        return LayoutError(". ".join(texts))


def fit(rule: Rule, price_of: PriceOf, budgets: Budgets) -> Sizes:
    """Returns the largest layout of a rule that keeps all budgets.

    The number of units is found by bisection; every layout that is kept was priced, so no budget
    is ever exceeded.

    Args:
        rule: how units are spread.
        price_of: what a layout costs on this device and link.
        budgets: the limits.

    Raises:
        LayoutError: the rule's smallest layout exceeds a budget; the text names which.
    """
    best = rule.sizes(rule.fewest)
    smallest = price_of(best.tolist())
    if budgets.exceeded(smallest):
        raise budgets.refusal(smallest)
    low, high = rule.fewest, rule.most + 1
    while high - low > 1:
        middle = (low + high) // 2
        sizes = rule.sizes(middle)
        if budgets.exceeded(price_of(sizes.tolist())):
            high = middle
        else:
            low, best = middle, sizes
    return best
