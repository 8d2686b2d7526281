"""Prices that can be worked out by hand."""

import dataclasses
from collections.abc import Sequence

from fl_app.resources.price import Price

FREE = Price(
    params=0,
    uplink_bytes=0,
    downlink_bytes=0,
    memory_bytes=0,
    flops=0,
    step_s=0.0,
    compute_s=0.0,
    uplink_s=0.0,
    downlink_s=0.0,
    round_s=0.0,
    joules=0.0,
)


def toy_price(unit_params: Sequence[int], span_s: float = 0.0) -> "ToyPrice":
    """Parameters a unit by block; every block behind the deepest open one costs ``span_s``."""
    return ToyPrice(tuple(unit_params), span_s)


@dataclasses.dataclass(frozen=True)
class ToyPrice:
    unit_params: tuple[int, ...]
    span_s: float

    def __call__(self, sizes: Sequence[int]) -> Price:
        params = sum(unit * size for unit, size in zip(self.unit_params, sizes, strict=True))
        opened = [block for block, size in enumerate(sizes) if size > 0]
        depth = len(sizes) - opened[0] if opened else 0
        seconds = self.span_s * depth
        return dataclasses.replace(
            FREE, params=params, uplink_bytes=4 * params, step_s=seconds, round_s=seconds
        )
