"""What has a size in every tuned block, a number of units, and can change it in place.

LoRA, bottleneck adapters and deep prompts are three implementations. Whatever reads layouts (rules,
device classes, schedules, scores) knows this protocol and the names of arrays
(``fl_app.layout.prefix``), and no kind.
"""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Protocol

from torch import nn

from fl_app.errors import ModelError
from fl_app.layout.prefix import Layout


class UnitLayers(Protocol):
    """The layers of one model whose parameters are counted in units."""

    @property
    def layout(self) -> dict[int, int]:
        """Size of every block that can have one, by index in the full model."""
        ...

    @property
    def sends_whole_units(self) -> bool:
        """Whether all of a unit is tuned, and so travels; LoRA with A frozen sends half of it."""
        ...

    def resize(self, layout: Layout, units: Mapping[int, Sequence[int]] | None = None) -> None:
        """Gives every block its size, in place; units that stay keep their values.

        Args:
            layout: size >= 0 of every block of ``self.layout``, and of no other. Size 0 takes a
                block's layers out: it computes, bit for bit, what it does frozen.
            units: where half of a unit is frozen and never sent, which units as drawn a block has;
                None or empty for the first ones.

        Raises:
            ModelError: other blocks, a negative size, or units that do not fit.
        """
        ...

    def probed(self) -> AbstractContextManager[dict[str, nn.Parameter]]:
        """Gives the maps whose gradient says what a unit could gain, by canonical name.

        They require gradients while the context lasts, and are as they were afterwards.

        Raises:
            ModelError: units of this kind have no such map.
        """
        ...


def require_layout(
    layout: Layout, own: Layout, units: Mapping[int, Sequence[int]] | None = None
) -> None:
    """Checks a layout against the blocks that there are.

    Args:
        layout: size by block, as asked for.
        own: size by block, as it is.
        units: the units of every block, where they are named.

    Raises:
        ModelError: other blocks, a negative size, or not as many units as sizes.
    """
    if set(layout) != set(own) or min(layout.values(), default=0) < 0:
        raise ModelError(
            f"layout {dict(layout)} must give each of the tuned blocks {list(own)} a rank >= 0"
        )
    if units and any(len(units.get(block, ())) != rank for block, rank in layout.items()):
        raise ModelError(f"units {dict(units)} must be as many as the ranks {dict(layout)}")
