"""How one tensor of an update becomes bits: even levels, or signs with two levels.

Two bits and more round at random between even levels from minimum to maximum, so that what is
decoded is right on average. One bit cannot afford that: with the extremes as its only levels its
variance (max - u) (u - min) is many times the energy of the entries. It tells instead whether an
entry lies above the tensor's mean, and is decoded to the mean of all entries on that side. No other
two levels have less error for this threshold (1 - 2 / pi = 36 % of a Gaussian's variance), and the
tensor's mean is kept; single entries are biased towards it.
"""

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from fl_app.wireless.errors import ChannelError
from fl_app.wireless.quantise import quantise

Floats = NDArray[np.float64]

SIDE_BITS = 64
"""Side information of one tensor: two levels as float32 numbers."""


class TensorCode(Protocol):
    """What one device's tensor is sent as."""

    def send(self, part: Floats, rng: np.random.Generator) -> tuple[Floats, float]:
        """Codes and decodes entries.

        Args:
            part: [num_entries] entries of this tensor.
            rng: draws the roundings.

        Returns:
            (decoded entries, mean variance of the roundings).
        """
        ...


@dataclass(frozen=True)
class EvenLevels:
    """2^bits even levels and random rounding."""

    bits: int
    low: float
    high: float

    def send(self, part: Floats, rng: np.random.Generator) -> tuple[Floats, float]:
        """See ``TensorCode.send``."""
        sent = quantise(part, self.bits, rng, span=(self.low, self.high))
        return sent.values(), sent.variance


@dataclass(frozen=True)
class SignLevels:
    """One bit: on which side of the threshold an entry lies."""

    threshold: float
    below: float
    above: float

    def send(self, part: Floats, rng: np.random.Generator) -> tuple[Floats, float]:
        """See ``TensorCode.send``; nothing is random here."""
        decoded = np.where(part >= self.threshold, self.above, self.below)
        return decoded, 0.0


@dataclass(frozen=True)
class CodeBook:
    """One device's update: what every choice of bits would make of it.

    Attributes:
        signs: code of one bit per tensor.
        spans: (low, high) per tensor, minimum and maximum rounded outwards to float32.
        energy: mean square of the entries.
        sign_error: mean squared error of one bit.
        squared_spans: mean over entries of (high - low)^2.
    """

    signs: list[SignLevels]
    spans: list[tuple[float, float]]
    energy: float
    sign_error: float
    squared_spans: float

    def code(self, tensor: int, bits: int) -> TensorCode:
        """Returns the code of one tensor."""
        if bits == 1:
            return self.signs[tensor]
        return EvenLevels(bits, *self.spans[tensor])

    def predicted_error(self, bits: int) -> float:
        """Returns the mean squared error of an entry; step^2 / 6 from two bits on."""
        if bits == 1:
            return self.sign_error
        return self.squared_spans / 6.0 / float(2**bits - 1) ** 2


def code_book(device: int, row: NDArray[Any], bounds: list[tuple[int, int]]) -> CodeBook:
    """Looks at one update tensor by tensor.

    Args:
        device: named in the error's text.
        row: [num_params] floats.
        bounds: (start, end) of every tensor.

    Raises:
        ChannelError: an entry is not finite, or beyond float32.
    """
    signs, spans = [], []
    energy, sign_error, squared_spans = 0.0, 0.0, 0.0
    for start, end in bounds:
        part = row[start:end].astype(np.float64)
        low, high = float(part.min()), float(part.max())
        with np.errstate(over="ignore", invalid="ignore"):
            span = _outwards(low, -np.inf), _outwards(high, np.inf)
            is_sound = np.isfinite([low, high, span[0], span[1], span[1] - span[0]]).all()
        if not is_sound:
            raise ChannelError(
                f"the update of device {device} is not finite or beyond float32; leave it out"
            )
        threshold = float(part.mean())
        is_above = part >= threshold
        num_above = int(np.count_nonzero(is_above))
        above = float(part[is_above].mean()) if num_above else threshold
        below = float(part[~is_above].mean()) if num_above < part.size else threshold
        sign = SignLevels(threshold, float(np.float32(below)), float(np.float32(above)))
        missed = part - np.where(is_above, sign.above, sign.below)
        signs.append(sign)
        spans.append(span)
        energy += float(part @ part)
        sign_error += float(missed @ missed)
        squared_spans += part.size * (span[1] - span[0]) ** 2
    size = len(row)
    return CodeBook(signs, spans, energy / size, sign_error / size, squared_spans / size)


def _outwards(value: float, towards: float) -> float:
    """Returns the next float32 at or beyond a value."""
    near = np.float32(value)
    # As Python floats: NumPy would compare in float32.
    is_inside = float(near) > value if towards < 0.0 else float(near) < value
    return float(np.nextafter(near, np.float32(towards))) if is_inside else float(near)
