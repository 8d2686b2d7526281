"""Makes a weight matrix small on the wire: magnitude pruning and uniform quantisation, packed.

NumPy only. A packed matrix really is smaller: codes take ``bits`` bits each and pruned entries take
one bit of a mask; nothing is a float32 array with fewer distinct values.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fl_app.errors import ModelError

Floats = NDArray[np.float32]
MAX_BITS = 16


@dataclass(frozen=True)
class Compression:
    """How matrices are compressed.

    Attributes:
        sparsity: share of entries set to zero, in [0, 1); the smallest magnitudes go.
        bits: bits per kept entry, 1 to 16, or None for no quantisation.
    """

    sparsity: float = 0.0
    bits: int | None = None

    def __post_init__(self) -> None:
        """Checks the ranges."""
        if not 0.0 <= self.sparsity < 1.0:
            raise ModelError(f"sparsity must be in [0, 1), got {self.sparsity}")
        if self.bits is not None and not 1 <= self.bits <= MAX_BITS:
            raise ModelError(f"bits must be in 1..{MAX_BITS} or null, got {self.bits}")

    @property
    def is_lossless(self) -> bool:
        """Whether nothing is changed."""
        return self.sparsity == 0.0 and self.bits is None


def keep_mask(matrix: Floats, sparsity: float) -> NDArray[np.bool_]:
    """Returns which entries survive magnitude pruning.

    Exactly ``floor(sparsity * size)`` entries go; ties go in memory order, so the count is exact.

    Args:
        matrix: any shape, float32.
        sparsity: share to drop, in [0, 1).
    """
    keep = np.ones(matrix.size, dtype=np.bool_)
    keep[np.argsort(np.abs(matrix), axis=None, kind="stable")[: int(sparsity * matrix.size)]] = (
        False
    )
    return keep.reshape(matrix.shape)


def quantise(values: Floats, bits: int) -> tuple[NDArray[np.uint16], Floats]:
    """Quantises uniformly between the extremes.

    scale = (max - min) / (2^bits - 1), code = round((value - min) / scale): 2^bits levels, largest
    error scale / 2.

    Args:
        values: any shape, float32, finite.
        bits: 1 to 16.

    Returns:
        (codes of the same shape, [min, scale] float32); scale is 0 where all values are equal.
    """
    if values.size == 0:
        return np.zeros(values.shape, np.uint16), np.zeros(2, np.float32)
    low = np.float32(values.min())
    scale = np.float32((float(values.max()) - float(low)) / (2**bits - 1))
    if scale == 0.0:
        return np.zeros(values.shape, np.uint16), np.array([low, 0.0], np.float32)
    codes = np.rint((values.astype(np.float64) - low) / scale)
    return np.clip(codes, 0, 2**bits - 1).astype(np.uint16), np.array([low, scale], np.float32)


def dequantise(codes: NDArray[np.uint16], span: Floats) -> Floats:
    """Returns ``min + scale * code`` in float32."""
    values: Floats = (span[0] + span[1] * codes.astype(np.float32)).astype(np.float32)
    return values


def pack_codes(codes: NDArray[np.uint16], bits: int) -> NDArray[np.uint8]:
    """Packs codes without gaps, ``ceil(size * bits / 8)`` bytes."""
    planes = np.unpackbits(codes.ravel().astype(">u2").view(np.uint8)).reshape(-1, MAX_BITS)
    return np.packbits(planes[:, MAX_BITS - bits :])


def unpack_codes(packed: NDArray[np.uint8], bits: int, size: int) -> NDArray[np.uint16]:
    """Inverts ``pack_codes`` for ``size`` codes."""
    planes = np.zeros((size, MAX_BITS), np.uint8)
    planes[:, MAX_BITS - bits :] = np.unpackbits(packed, count=size * bits).reshape(size, bits)
    return np.packbits(planes).view(">u2").astype(np.uint16)


def pack_matrix(matrix: Floats, how: Compression) -> dict[str, NDArray[np.generic]]:
    """Packs one matrix into named parts (``mask``, ``values`` or ``codes`` and ``span``).

    Pruning comes first; only the survivors are quantised, so that zeros stay exactly zero.
    """
    parts: dict[str, NDArray[np.generic]] = {}
    values = matrix.ravel()
    if how.sparsity > 0.0:
        keep = keep_mask(matrix, how.sparsity)
        parts["mask"] = np.packbits(keep)
        values = matrix[keep]
    if how.bits is None:
        parts["values"] = values
    else:
        codes, parts["span"] = quantise(values, how.bits)
        parts["codes"] = pack_codes(codes, how.bits)
    return parts


def unpack_matrix(
    parts: Mapping[str, NDArray[np.generic]], shape: tuple[int, ...], how: Compression
) -> Floats:
    """Inverts ``pack_matrix`` up to what pruning and quantisation lost.

    Raises:
        ModelError: a part is missing or has the wrong length.
    """
    size = int(np.prod(shape))
    try:
        keep = np.ones(size, np.bool_)
        if how.sparsity > 0.0:
            mask = _part(parts, "mask", -(-size // 8)).astype(np.uint8)
            keep = np.unpackbits(mask, count=size).astype(np.bool_)
        kept = int(keep.sum())
        if how.bits is None:
            values = _part(parts, "values", kept).astype(np.float32)
        else:
            packed = _part(parts, "codes", -(-kept * how.bits // 8)).astype(np.uint8)
            span = _part(parts, "span", 2).astype(np.float32)
            values = dequantise(unpack_codes(packed, how.bits, kept), span)
        matrix = np.zeros(size, np.float32)
        matrix[keep] = values
    except (KeyError, ValueError) as error:
        raise ModelError(f"a packed matrix of shape {shape} is damaged: {error}") from error
    return matrix.reshape(shape)


def _part(parts: Mapping[str, NDArray[np.generic]], name: str, length: int) -> NDArray[np.generic]:
    """Returns one part; NumPy would pad a short one with zeros, or stretch a single value."""
    if parts[name].shape != (length,):
        raise ValueError(f"'{name}' has shape {parts[name].shape}, expected ({length},)")
    return parts[name]
