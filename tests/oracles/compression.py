"""Pruning, quantisation and bit packing the slow way: sorted lists, all levels, text of bits."""

import math
from collections.abc import Sequence
from fractions import Fraction


def pruned_positions(values: Sequence[float], count: int) -> set[int]:
    """Returns the positions of the ``count`` smallest magnitudes; ties go in order."""
    ranked = sorted(range(len(values)), key=lambda i: (abs(values[i]), i))
    return set(ranked[:count])


def nearest_level_error(values: Sequence[float], bits: int) -> float:
    """Returns the largest distance to the nearest of 2^bits even levels from min to max."""
    low, high = Fraction(min(values)), Fraction(max(values))
    step = (high - low) / (2**bits - 1)
    levels = [low + step * i for i in range(2**bits)]
    return float(max(min(abs(Fraction(v) - level) for level in levels) for v in values))


def packed(codes: Sequence[int], bits: int) -> bytes:
    """Writes each code with ``bits`` binary digits, most significant first; zeros at the end."""
    text = "".join(format(code, f"0{bits}b") for code in codes)
    text += "0" * (-len(text) % 8)
    return bytes(int(text[i : i + 8], 2) for i in range(0, len(text), 8))


def packed_size(size: int, sparsity: float, bits: int | None, value_bytes: int) -> int:
    """Returns the bytes of one packed matrix: mask, then codes with [min, scale], or values.

    Args:
        size: entries of the matrix.
        sparsity: share pruned; ``sparsity * size`` must be exact in binary.
        bits: bits per kept entry, None for no quantisation.
        value_bytes: bytes of one entry that is not quantised.
    """
    kept = size - math.floor(Fraction(sparsity) * size)
    mask = math.ceil(size / 8) if sparsity else 0
    return mask + (kept * value_bytes if bits is None else math.ceil(kept * bits / 8) + 2 * 4)
