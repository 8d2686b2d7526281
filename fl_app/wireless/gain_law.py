"""Laws of the known power gain g = |h|^2 / E|h|^2, from which long-term power limits follow.

A device that inverts its channel wherever g >= g_th spends in proportion to E[1/g; g >= g_th]. That
is E1(g_th) for Rayleigh fading only; in AWGN it is 1, and behind a receive beam it is less.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from scipy.integrate import quad
from scipy.special import exp1
from scipy.stats import ncx2

from fl_app.wireless.errors import ChannelError


class GainLaw(Protocol):
    """Law of a gain with mean 1."""

    def heard_share(self, floor: float) -> float:
        """Returns P(g >= floor), ``floor`` > 0."""
        ...

    def mean_inverse_above(self, floor: float) -> float:
        """Returns E[1/g; g >= floor], ``floor`` > 0; 0 if the gain never gets there."""
        ...


@dataclass(frozen=True)
class RicianLaw:
    """Gain of a line of sight in scatter: 2 (1 + K) g is non-central chi-squared.

    Attributes:
        factor: K, power of the line of sight over that of the scatter, linear: 0 is Rayleigh
            fading, ``inf`` no fading at all.
    """

    factor: float = 0.0

    def __post_init__(self) -> None:
        """Raises ChannelError on a value out of range."""
        if not self.factor >= 0.0:
            raise ChannelError(f"rician factor={self.factor} must be >= 0, inf allowed")

    def heard_share(self, floor: float) -> float:
        """See ``GainLaw.heard_share``."""
        if self.factor == np.inf:
            return float(floor <= 1.0)
        if self.factor == 0.0:
            return float(np.exp(-floor))
        scale = 2.0 * (1.0 + self.factor)
        return float(ncx2.sf(scale * floor, 2, 2.0 * self.factor))

    def mean_inverse_above(self, floor: float) -> float:
        """See ``GainLaw.mean_inverse_above``."""
        return _rician_inverse(self.factor, floor)


RAYLEIGH = RicianLaw()
"""The law of CN(0, 1): exponential."""


@dataclass(frozen=True, eq=False)
class SampledLaw:
    """A law known by draws.

    Attributes:
        gains: [num_draws] gains > 0 with mean 1.
    """

    gains: NDArray[np.float64]

    def heard_share(self, floor: float) -> float:
        """See ``GainLaw.heard_share``."""
        return float((self.gains >= floor).mean())

    def mean_inverse_above(self, floor: float) -> float:
        """See ``GainLaw.mean_inverse_above``."""
        return float((1.0 / self.gains[self.gains >= floor]).sum() / self.gains.size)


@lru_cache(maxsize=256)
def _rician_inverse(factor: float, floor: float) -> float:
    """Integrates density / g numerically; ten digits."""
    if factor == np.inf:
        return float(floor <= 1.0)
    if factor == 0.0:
        return float(exp1(floor))
    scale = 2.0 * (1.0 + factor)
    # The gain has mean 1 and this deviation; beyond 40 of them the density is below 1e-17.
    deviation = np.sqrt(1.0 + 2.0 * factor) / (1.0 + factor)
    low, high = max(floor, 1.0 - 12.0 * deviation), max(floor, 1.0) + 40.0 * deviation

    def integrand(gain: float) -> float:
        return float(scale * ncx2.pdf(scale * gain, 2, 2.0 * factor) / gain)

    inner = [edge for edge in (1.0 - deviation, 1.0 + deviation) if low < edge < high]
    value, _ = quad(integrand, low, high, points=inner or None, limit=200, epsrel=1e-10)
    return float(value)
