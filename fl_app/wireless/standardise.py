"""Checks and standardises updates before they are sent; what the receiver needs to undo it."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fl_app.wireless.errors import ChannelError

Floats = NDArray[np.float64]

_CHUNK_REALS = 1 << 13
"""Entries looked at together; temporaries of this size stay in the processor's cache. OpenBLAS
would set all threads on a dot product of more than 10000, which takes ten times as long."""

_CONSTANT = {np.dtype(np.float32): 1e-6, np.dtype(np.float64): 1e-13}
"""A spread below this times the mean is rounding noise: the update is constant."""

_SAFE_SQUARES = (1e-20, 1e20)
"""Mean squares that float32 arithmetic neither flushes to 0 nor overflows."""

_SAFE_RATIO = 0.1
"""Below this times the squared mean, E u^2 - m^2 loses too many of float32's digits."""


@dataclass(frozen=True)
class Moments:
    """Side information of one block, sent digitally.

    Attributes:
        means: [num_devices] m_k; zeros if means stay in the update. Any value near the mean will
            do, since it is a shift both sides know; for float32 updates it is a float32 number.
        spreads: [num_devices] nu_k, standard deviation (or root mean square); 0 for a constant. A
            scale that both sides know, rounded like the means.
        present: [num_devices] share of the block's entries that the device holds.
    """

    means: Floats
    spreads: Floats
    present: Floats


def check_updates(updates: NDArray[Any], weights: Floats) -> Floats:
    """Returns the weights scaled to sum 1.

    Raises:
        ChannelError: shapes or types disagree, or the weights cannot be used.
    """
    if updates.ndim != 2 or updates.shape[0] == 0 or updates.shape[1] == 0:
        raise ChannelError(f"updates {updates.shape} must be [num_devices, num_params], not empty")
    if updates.dtype not in _CONSTANT:
        raise ChannelError(f"updates are {updates.dtype}; send float32 or float64")
    if weights.shape != updates.shape[:1]:
        raise ChannelError(f"weights {weights.shape} must be [{updates.shape[0]}], one per device")
    if not (np.isfinite(weights).all() and (weights >= 0.0).all() and weights.sum() > 0.0):
        raise ChannelError("weights must be finite, >= 0 and not all 0")
    return np.asarray(weights / weights.sum(), dtype=np.float64)


def block_bounds(blocks: Sequence[int] | None, num_params: int) -> list[tuple[int, int]]:
    """Returns (start, end) of every block.

    Raises:
        ChannelError: the sizes are not positive or do not add up to ``num_params``.
    """
    sizes = [num_params] if blocks is None else list(blocks)
    if sum(sizes) != num_params or any(size < 1 for size in sizes):
        raise ChannelError(
            f"blocks {sizes} must be >= 1 and add up to the {num_params} parameters of an update"
        )
    ends = np.cumsum(sizes).tolist()
    return list(zip([0, *ends[:-1]], ends, strict=True))


def moments(
    updates: NDArray[Any], presence: NDArray[np.bool_] | None, removes_mean: bool
) -> Moments:
    """Takes every device's mean and spread over one block in one pass over the memory.

    Args:
        updates: [num_devices, block_size] float32 or float64; not changed.
        presence: same shape, or None; entries a device lacks are not looked at.
        removes_mean: False leaves means 0 and makes the spread a root mean square.

    Raises:
        ChannelError: an update is not finite (the text names the device).
    """
    num_devices = len(updates)
    means, spreads, present = np.zeros(num_devices), np.zeros(num_devices), np.zeros(num_devices)
    low, high = _SAFE_SQUARES
    for k in range(num_devices):
        mask = None if presence is None else presence[k]
        count = updates.shape[1] if mask is None else int(np.count_nonzero(mask))
        if count == 0:
            continue
        present[k] = count / updates.shape[1]
        # The slow way is for numbers that cannot be squared as they are or told from their mean.
        with np.errstate(over="ignore", invalid="ignore"):
            centre, square = _raw(_chunks(updates[k], mask), removes_mean)
            if not max(low, _SAFE_RATIO * centre * centre) < square < high:
                wide = (part.astype(np.float64) for part in _chunks(updates[k], mask))
                centre, square = _centred(wide, removes_mean)
        if not np.isfinite(square):
            raise ChannelError(
                f"the update of device {k} is not finite or too large to square; leave it out"
            )
        means[k] = updates.dtype.type(centre)
        is_constant = np.sqrt(square) <= _CONSTANT[updates.dtype] * abs(centre)
        spreads[k] = 0.0 if is_constant else updates.dtype.type(np.sqrt(square))
    return Moments(means=means, spreads=spreads, present=present)


def _raw(parts: Iterator[NDArray[Any]], removes_mean: bool) -> tuple[float, float]:
    """Returns mean and E u^2 - mean^2 (or 0 and E u^2) with two dot products per part."""
    count, total, squares = 0, 0.0, 0.0
    ones = np.ones(0)
    for part in parts:
        if part.size != ones.size:
            ones = np.ones(part.size, dtype=part.dtype)
        count += part.size
        squares += float(part @ part)
        if removes_mean:
            total += float(part @ ones)  # a good deal faster than a sum
    mean = total / count
    return mean, squares / count - mean * mean


def _centred(parts: Iterator[NDArray[Any]], removes_mean: bool) -> tuple[float, float]:
    """Returns the same without cancellation; parts are merged as Chan et al. (1983) do."""
    count, mean, squares = 0, 0.0, 0.0
    for part in parts:
        if part.size == 0:
            continue
        centre = float(part.mean()) if removes_mean else 0.0
        part = part - centre
        ahead, count = count, count + part.size
        step = centre - mean
        mean += step * part.size / count
        squares += float(part @ part) + step * step * ahead * part.size / count
    return mean, squares / count


def _chunks(row: NDArray[Any], mask: NDArray[np.bool_] | None) -> Iterator[NDArray[Any]]:
    """Yields the entries present, a cache-sized piece at a time."""
    for start in range(0, len(row), _CHUNK_REALS):
        part = row[start : start + _CHUNK_REALS]
        yield part if mask is None else part[mask[start : start + _CHUNK_REALS]]
