"""Layouts on named arrays: prefix slices, padding, and who holds which coordinate.

A layout gives every tuned block one size: a rank, the same for all of its maps, the width of a
bottleneck adapter, or the length of a deep prompt. Units are kept in nested order, so a smaller
layout is a prefix of a larger one: A[:r] and B[:, :r]. Size 0 leaves a block's arrays out
altogether; what is not there is not sent.

Below, a *factor* is an array that is counted in units, and a *rank* its number of them.
"""

import re
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from fl_app.layout.errors import LayoutError
from fl_app.updates import Update

Layout = Mapping[int, int]
"""Block of the full model to rank >= 0; encoder and decoder of one model have one layout."""

DOWN, UP = ".bottleneck.down", ".bottleneck.up"
"""Ends of the names of a bottleneck adapter's D [width, d] and U [d, width]."""
KEYS, VALUES = ".prompt.keys", ".prompt.values"
"""The same of a deep prompt's keys [length, w] and values [length, w]."""
_AXES = {".lora_A.weight": 0, ".lora_B.weight": 1, DOWN: 0, UP: 1, KEYS: 0, VALUES: 0}
"""End of a factor's name to the axis that counts units."""
_NUMBER = re.compile(r"\.(\d+)(?:\.|$)")


def unit_axis(name: str) -> int | None:
    """Returns the axis of an array that counts units: 0 for A, 1 for B, None where none does."""
    return next((axis for end, axis in _AXES.items() if name.endswith(end)), None)


def block_number(name: str) -> int:
    """Returns the block of a factor: the first number in its name, in every model family.

    Raises:
        LayoutError: there is none.
    """
    found = _NUMBER.search(name)
    if found is None:
        raise LayoutError(f"'{name}' names no block; give parameters inside numbered blocks")
    return int(found[1])


def layout_of(adapter: Mapping[str, NDArray[np.float32]]) -> dict[int, int]:
    """Returns the layout of the factors that are there; blocks of rank 0 are not among them."""
    axes = {name: axis for name in adapter if (axis := unit_axis(name)) is not None}
    return {
        block_number(name): adapter[name].shape[axis]
        for name, axis in sorted(axes.items(), key=lambda each: block_number(each[0]))
    }


def is_within(inner: Layout, outer: Layout) -> bool:
    """Tells whether the first layout is contained in the second, block by block."""
    return all(rank <= outer.get(block, 0) for block, rank in inner.items())


def cut(adapter: Mapping[str, NDArray[np.float32]], layout: Layout) -> Update:
    """Returns the prefix slices of a layout; what is no factor stays whole.

    Args:
        adapter: by canonical name; not changed, and slices are views.
        layout: rank of every block that has factors, at most theirs.

    Raises:
        LayoutError: the layout leaves a block out, or asks for more units than there are.
    """
    kept: Update = {}
    for name, array in adapter.items():
        axis = unit_axis(name)
        if axis is None:
            kept[name] = array
        elif rank := _rank(name, layout, array.shape[axis]):
            kept[name] = array[:rank] if axis == 0 else array[:, :rank]
    return kept


def cut_units(units: Mapping[int, Sequence[int]], layout: Layout) -> dict[int, Sequence[int]]:
    """Returns the first units of every block, as many as its rank; {} of {}."""
    return {block: units[block][:rank] for block, rank in layout.items()} if units else {}


def pad(
    update: Mapping[str, NDArray[np.float32]], like: Mapping[str, NDArray[np.float32]]
) -> Update:
    """Returns an update in the shapes of ``like``, zero where it has no coordinate.

    Args:
        update: prefix slices, as ``cut`` makes them.
        like: the larger arrays.
    """
    padded: Update = {}
    for name, array in like.items():
        part = update.get(name)
        if part is not None and part.shape == array.shape:
            padded[name] = part
            continue
        padded[name] = np.zeros(array.shape, np.float32)
        if part is not None:
            padded[name][tuple(slice(size) for size in part.shape)] = part
    return padded


def reorder(
    adapter: Mapping[str, NDArray[np.float32]], order: Mapping[int, NDArray[np.int64]]
) -> Update:
    """Puts the units of blocks into another order; every product B A stays what it is.

    Args:
        adapter: by canonical name; not changed.
        order: for each block to be reordered the units [rank] in their new order, each once.
            Columns of B, and rows of A where A is among the arrays, move alike.
    """
    moved: Update = {}
    for name, array in adapter.items():
        axis = unit_axis(name)
        places = None if axis is None else order.get(block_number(name))
        moved[name] = array if places is None else np.take(array, places, axis=axis)
    return moved


def presence(
    like: Mapping[str, NDArray[np.float32]], layout: Layout
) -> dict[str, NDArray[np.bool_]]:
    """Returns which coordinates of ``like`` a layout holds, in its shapes.

    Raises:
        LayoutError: see ``cut``.
    """
    held = {}
    for name, array in like.items():
        axis = unit_axis(name)
        mask = np.ones(array.shape, dtype=np.bool_)
        if axis is not None:
            rank = _rank(name, layout, array.shape[axis])
            mask[(slice(None),) * axis + (slice(rank, None),)] = False
        held[name] = mask
    return held


def _rank(name: str, layout: Layout, most: int) -> int:
    block = block_number(name)
    rank = layout.get(block)
    if rank is None or not 0 <= rank <= most:
        raise LayoutError(
            f"rank {rank} of block {block} must be 0 to {most}, the units that '{name}' has"
        )
    return rank
