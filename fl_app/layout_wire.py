"""A LoRA layout inside a message, and the scores of its units in an answer."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fl_app.errors import WireError
from fl_app.layout.prefix import Layout

BLOCKS, RANKS, UNITS = "blocks", "ranks", "units"
"""Indices of blocks in the full model, the rank of each, and, block after block, the units."""

RANK_BYTES = 2
"""What one block's rank, or the number of one unit, is booked as, where devices must be told."""

SCORE_BYTES = 4
"""One score on the wire."""

Scores = Mapping[int, NDArray[np.float64]]
"""Block of the full model to the scores [rank] of its units."""


def layout_fields(
    layout: Layout, units: Mapping[int, Sequence[int]] | None = None
) -> dict[str, list[int]]:
    """Returns what a message's config record says of a layout.

    Args:
        layout: rank by block.
        units: for every block its units by their row in A as drawn; None or empty for the first
            rows in their order.
    """
    fields = {BLOCKS: list(layout), RANKS: list(layout.values())}
    if units:
        fields[UNITS] = [int(unit) for block in layout for unit in units[block]]
    # an empty list breaks Flower's byte count; read_layout and read_units know
    return {name: numbers for name, numbers in fields.items() if numbers}


def read_layout(config: Mapping[str, Any]) -> dict[int, int]:
    """Reads a layout; {} where the message says nothing of one.

    Raises:
        WireError: ``missing``, or ``damaged`` where the lists do not make a layout.
    """
    if BLOCKS not in config and RANKS not in config:
        return {}
    blocks, ranks = _numbers(config, BLOCKS), _numbers(config, RANKS)
    if not len(blocks) == len(ranks) == len(set(blocks)):
        raise WireError("damaged", f"blocks {blocks} with ranks {ranks} are no layout")
    return dict(zip(blocks, ranks, strict=True))


def read_units(config: Mapping[str, Any], layout: Layout) -> dict[int, tuple[int, ...]]:
    """Reads the units of a layout's blocks; {} where none are listed.

    Raises:
        WireError: ``missing`` or ``damaged`` where there are not as many as the ranks say, or one
            twice.
    """
    if UNITS not in config:
        return {}
    listed = _numbers(config, UNITS)
    ends = np.cumsum(list(layout.values())).tolist()
    starts = [0, *ends[:-1]]
    units = {
        block: tuple(listed[start:end])
        for block, start, end in zip(layout, starts, ends, strict=True)
    }
    if ends[-1] != len(listed) or any(len(set(own)) != len(own) for own in units.values()):
        raise WireError("damaged", f"units {listed} do not fit the ranks {dict(layout)}")
    return units


def pack_scores(scores: Scores, layout: Layout) -> bytes:
    """Returns scores block after block, little-endian float32 and nothing around them."""
    rows = [np.asarray(scores[block], "<f4") for block, rank in layout.items() if rank]
    return b"".join(row.tobytes() for row in rows)


def read_scores(blob: bytes, layout: Layout) -> dict[int, NDArray[np.float64]]:
    """Reads the scores of a layout's units; blocks of rank 0 have none.

    Raises:
        WireError: ``wrong-shape`` where there are not as many as units, ``not-finite``, or
            ``bad-score`` for one below 0.
    """
    total = sum(layout.values())
    if len(blob) != SCORE_BYTES * total:
        raise WireError("wrong-shape", f"{len(blob)} bytes of scores for {total} units")
    values = np.frombuffer(blob, "<f4").astype(np.float64)
    if not np.isfinite(values).all():
        raise WireError("not-finite", "a unit's score is NaN or infinite")
    if (values < 0.0).any():
        raise WireError("bad-score", f"a unit's score is {values.min()}, and should be >= 0")
    ends = np.cumsum(list(layout.values()))
    rows = np.split(values, ends[:-1])
    return {block: row for block, row in zip(layout, rows, strict=True) if row.size}


def _numbers(config: Mapping[str, Any], key: str) -> list[int]:
    numbers = config.get(key)
    if type(numbers) is not list:
        raise WireError("missing", f"'{key}' should be a list")
    if not all(type(number) is int and number >= 0 for number in numbers):
        raise WireError("damaged", f"'{key}' should hold whole numbers >= 0, got {numbers[:9]}")
    return numbers
