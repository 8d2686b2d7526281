"""A LoRA layout inside a message: two lists of whole numbers."""

from collections.abc import Mapping
from typing import Any

from fl_app.errors import WireError
from fl_app.layout.prefix import Layout

BLOCKS, RANKS = "blocks", "ranks"
"""Indices of blocks in the full model, and the rank of each."""

RANK_BYTES = 2
"""What one block's rank is booked as, where devices must be told theirs."""


def layout_fields(layout: Layout) -> dict[str, list[int]]:
    """Returns what a message's config record says of a layout."""
    return {BLOCKS: list(layout), RANKS: list(layout.values())}


def read_layout(config: Mapping[str, Any]) -> dict[int, int]:
    """Reads a layout.

    Raises:
        WireError: ``missing``, or ``damaged`` where the lists do not make a layout.
    """
    blocks, ranks = config.get(BLOCKS), config.get(RANKS)
    if type(blocks) is not list or type(ranks) is not list:
        raise WireError("missing", f"'{BLOCKS}' and '{RANKS}' should be lists")
    numbers = [*blocks, *ranks]
    is_whole = all(type(number) is int and number >= 0 for number in numbers)
    if not is_whole or not len(blocks) == len(ranks) == len(set(blocks)):
        raise WireError("damaged", f"blocks {blocks} with ranks {ranks} are no layout")
    return dict(zip(blocks, ranks, strict=True))
