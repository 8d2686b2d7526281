"""Stochastic rounding to even levels: unbiased, and as small as one wants it."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fl_app.wireless.errors import ChannelError


@dataclass(frozen=True)
class Quantised:
    """One update as codes.

    Attributes:
        codes: [num_params] uint32 levels, 0 to 2^bits - 1.
        low: value of level 0.
        step: distance of two levels; 0 for a constant.
        variance: mean over entries of the rounding's variance, step^2 f (1 - f) for an entry that
            lies a fraction f above a level; step^2 / 6 on average over f.
    """

    codes: NDArray[np.uint32]
    low: float
    step: float
    variance: float

    def values(self) -> NDArray[np.float64]:
        """Returns [num_params] what the server decodes."""
        return self.low + self.step * self.codes.astype(np.float64)


def quantise(
    update: NDArray[Any],
    bits: int,
    rng: np.random.Generator,
    *,
    span: tuple[float, float] | None = None,
) -> Quantised:
    """Rounds every entry up or down to one of 2^bits even levels between minimum and maximum.

    An entry that lies a fraction f above a level is rounded up with probability f, so the decoded
    value is right on average (QSGD, Alistarh et al. 2017, arXiv:1610.02132).

    Args:
        update: [num_params] floats, finite; not changed.
        bits: 1 to 24.
        rng: draws the roundings.
        span: (lowest, highest) level; None for minimum and maximum. Given for parts of an update.

    Raises:
        ChannelError: ``bits`` is out of range, or the update is not finite, empty or beyond
            ``span``.
    """
    if not 1 <= bits <= 24:
        raise ChannelError(f"bits={bits} must be 1..24")
    wide = update.astype(np.float64)
    if wide.size == 0 or not np.isfinite(wide).all():
        raise ChannelError("an update to quantise must be finite and not empty")
    low, high = (float(wide.min()), float(wide.max())) if span is None else span
    if not low <= wide.min() <= wide.max() <= high:
        raise ChannelError(f"span={span} does not hold the update; take its minimum and maximum")
    step = high / (2**bits - 1) - low / (2**bits - 1)  # high - low may overflow
    if step == 0.0 or not math.isfinite(step):
        return Quantised(np.zeros(wide.shape, dtype=np.uint32), low, 0.0, 0.0)
    level = (wide - low) / step
    floor = np.floor(level)
    fraction = level - floor
    codes = np.minimum(floor + (rng.random(wide.shape) < fraction), 2**bits - 1)
    variance = step * step * float(np.mean(fraction * (1.0 - fraction)))
    return Quantised(codes.astype(np.uint32), low, step, variance)
