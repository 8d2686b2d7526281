"""AdaLoRA's importance scores and its falling budget (Zhang et al. 2023, arXiv:2303.10512).

An adapted map is W + B diag(e) A; a unit is one triplet (row of A, entry of e, column of B). Where
the reference code leaves a choice to chance this module does not: exactly as many units survive as
the budget says, ties included, and a budget equal to the start prunes nothing.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fl_app.layout.errors import LayoutError

Floats = NDArray[np.float64]


class Sensitivity:
    """Smoothed importance of every tuned entry, and its uncertainty.

    With I = |theta * gradient|: mean <- b1 mean + (1 - b1) I, spread <- b2 spread + (1 - b2)
    |I - mean|, score = mean * spread.

    Args:
        beta1: smoothing of the importance, in [0, 1).
        beta2: smoothing of the uncertainty, in [0, 1).

    Raises:
        LayoutError: a value out of range.
    """

    def __init__(self, *, beta1: float = 0.85, beta2: float = 0.85) -> None:
        if not (0.0 <= beta1 < 1.0 and 0.0 <= beta2 < 1.0):
            raise LayoutError(f"beta1={beta1} and beta2={beta2} must be in [0, 1)")
        self._beta1, self._beta2 = beta1, beta2
        self._mean: dict[str, Floats] = {}
        self._spread: dict[str, Floats] = {}

    def update(
        self,
        values: Mapping[str, NDArray[np.float32]],
        gradients: Mapping[str, NDArray[np.float32]],
    ) -> None:
        """Takes one step's parameters and gradients by name, equal shapes."""
        for name, value in values.items():
            now = np.abs(value.astype(np.float64) * gradients[name])
            mean = (
                self._beta1 * self._mean.get(name, np.zeros_like(now)) + (1.0 - self._beta1) * now
            )
            spread = self._spread.get(name, np.zeros_like(now))
            self._spread[name] = self._beta2 * spread + (1.0 - self._beta2) * np.abs(now - mean)
            self._mean[name] = mean

    def score(self, name: str) -> Floats:
        """Returns the scores of one array, in its shape.

        Raises:
            LayoutError: it was never updated.
        """
        if name not in self._mean:
            raise LayoutError(f"no score of '{name}'; call update with it first")
        return self._mean[name] * self._spread[name]


def triplet_scores(a: Floats, b: Floats, e: Floats | None = None) -> Floats:
    """Returns [rank] scores of a map's units: s(e_i) + mean_j s(A_ij) + mean_j s(B_ji).

    Args:
        a: [rank, d_in] scores of A.
        b: [d_out, rank] scores of B.
        e: [rank] scores of e; None for plain LoRA, which has none.
    """
    scores: Floats = a.mean(axis=1) + b.mean(axis=0)
    return scores if e is None else scores + e


@dataclass(frozen=True, kw_only=True)
class BudgetSchedule:
    """AdaLoRA's cubic schedule of the number of units.

    Attributes:
        start: units R0 at first, >= end.
        end: units R_T at last, >= 1.
        warmup: steps t_i that keep ``start``, >= 0.
        final: last steps t_f that keep ``end``, >= 0.
        steps: all steps T, > warmup + final.
    """

    start: int
    end: int
    warmup: int
    final: int
    steps: int

    def __post_init__(self) -> None:
        """Raises LayoutError on a value out of range."""
        if not 1 <= self.end <= self.start:
            raise LayoutError(f"end={self.end} must be 1 to start={self.start}")
        if min(self.warmup, self.final) < 0 or self.steps <= self.warmup + self.final:
            raise LayoutError(
                f"steps={self.steps} must be more than warmup={self.warmup} and final={self.final} "
                "together, both >= 0"
            )

    def units(self, step: int) -> int:
        """Returns R(t) = floor(R_T + (R0 - R_T) (1 - (t - t_i) / (T - t_f - t_i))^3), clipped."""
        span = self.steps - self.final - self.warmup
        left = span - min(max(step - self.warmup, 0), span)
        # In whole numbers: a float just below one would lose a unit.
        return self.end + (self.start - self.end) * left**3 // span**3


def keep_best(scores: Sequence[Floats], num_units: int) -> list[NDArray[np.bool_]]:
    """Returns for each map which units stay: the best ``num_units`` of all.

    Equal scores take turns over the maps, the units of a map in their order.

    Args:
        scores: [rank] finite scores of each map.
        num_units: units that stay, 0 to all.

    Raises:
        LayoutError: another number of units, or a score that is not finite.
    """
    total = sum(len(row) for row in scores)
    if not 0 <= num_units <= total:
        raise LayoutError(f"num_units={num_units} must be 0 to {total}, the units that there are")
    ranked = []
    for place, row in enumerate(scores):
        if not np.isfinite(row).all():
            raise LayoutError(f"scores of map {place} must be finite")
        ranked += [(-float(score), index, place) for index, score in enumerate(row)]
    masks = [np.zeros(len(row), dtype=np.bool_) for row in scores]
    for _, index, place in sorted(ranked)[:num_units]:
        masks[place][index] = True
    return masks
