"""What devices begin a round with: the server's adapter itself, or a new one on merged weights.

Stacking (FLoRA, Wang et al. 2024, arXiv:2409.05976) begins every round with LoRA as drawn. The
round's updates, one below the other with the weights folded in, are a *stack*: its product is the
mean of the devices' products, whatever their ranks. Devices are sent the stack and merge it into
their frozen weights; the server keeps the sum of all stacks as its own adapter.
"""

from collections.abc import Mapping
from typing import Protocol

import numpy as np

from fl_app.fomo.lora import lora_start
from fl_app.fomo.package import content_hash
from fl_app.layout.prefix import Layout, block_number, layout_of, pad, unit_axis
from fl_app.records import to_blob
from fl_app.updates import Update
from strategies.layouts import Layouts
from strategies.lora_space import ProductSpace


class RoundStart(Protocol):
    """Opens and ends rounds around what combines updates."""

    @property
    def stacks(self) -> Mapping[str, bytes] | None:
        """What devices have to merge, by content hash in order; None where LoRA goes on."""
        ...

    def begin(self, server_round: int, adapter: Update) -> Update:
        """Returns what devices begin a round with, in the server's coordinates.

        Args:
            server_round: the round.
            adapter: the server's; not changed.
        """
        ...

    def end(self, server_round: int, combined: Update) -> Update:
        """Returns the server's adapter after a round in which updates were combined.

        Raises:
            RunError: it overflows; everything is as the round before left it.
        """
        ...


class Continued:
    """Every round goes on from the server's adapter."""

    stacks: Mapping[str, bytes] | None = None

    def begin(self, server_round: int, adapter: Update) -> Update:
        """Returns the adapter."""
        return adapter

    def end(self, server_round: int, combined: Update) -> Update:
        """Returns what was combined."""
        return combined


class Stacking:
    """Rounds of stacks; also the run's ``Layouts``, of which the server's grows.

    The sum's rank is that of all stacks together, until it reaches the smaller side of a block's
    smallest map; from there on it is re-factored to that rank, which any sum has at most.

    Args:
        layouts: of the devices; the server's is the largest that one begins a round with.
        seed: the run's seed, which draws LoRA's A anew in every round, on server and devices.
    """

    def __init__(self, layouts: Layouts, seed: int) -> None:
        self._layouts, self._seed = layouts, seed
        self._first = dict(layouts.server)
        self._sum: Update = {}
        self._stacks: dict[str, bytes] = {}

    @property
    def stacks(self) -> Mapping[str, bytes] | None:
        """See ``RoundStart``."""
        return self._stacks

    @property
    def server(self) -> Layout:
        """Ranks of the sum; before the first stack those that devices begin with."""
        grown = layout_of(self._sum)
        return {block: max(rank, grown.get(block, 0)) for block, rank in self._first.items()}

    @property
    def is_shared(self) -> bool:
        """Whether all devices begin a round with the same ranks."""
        return self._layouts.is_shared

    def at(self, server_round: int, device: int) -> Layout:
        """Returns the ranks that a device begins a round with."""
        return self._layouts.at(server_round, device)

    def begin(self, server_round: int, adapter: Update) -> Update:
        """Returns LoRA as drawn for the round, beside what else is tuned."""
        shapes = {}
        for name, array in adapter.items():
            axis = unit_axis(name)
            if axis is not None:
                rank = self._first[block_number(name)]
                shapes[name] = (rank, array.shape[1]) if axis == 0 else (array.shape[0], rank)
        kept = {name: array for name, array in adapter.items() if name not in shapes}
        return dict(sorted((kept | lora_start(shapes, self._seed, server_round)).items()))

    def end(self, server_round: int, combined: Update) -> Update:
        """Adds a stack to the sum and to what devices have to merge."""
        stack = {name: array for name, array in combined.items() if unit_axis(name) is not None}
        grown: Update = {}
        for name, array in stack.items():
            before = self._sum.get(name)
            parts = [array] if before is None else [before, array]
            grown[name] = np.concatenate(parts, axis=unit_axis(name))
        self._sum = _bounded(grown)  # may raise, so in front of what devices have to merge
        filled = {name: array for name, array in stack.items() if array.size}
        if filled:
            blob = to_blob(filled)
            self._stacks[content_hash(blob)] = blob
        rest = {name: array for name, array in combined.items() if name not in stack}
        return dict(sorted((rest | _padded(self._sum, self._first)).items()))


def _bounded(adapter: Update) -> Update:
    """Returns the same products at ranks not above the smaller side of a block's smallest map."""
    most: dict[int, int] = {}
    for name, array in adapter.items():
        block, axis = block_number(name), unit_axis(name)
        size = array.shape[1 - (axis or 0)]
        most[block] = min(most.get(block, size), size)
    large = {b: most[b] for b, rank in layout_of(adapter).items() if rank > most[b]}
    if not large:
        return adapter
    part = {name: array for name, array in adapter.items() if block_number(name) in large}
    space = ProductSpace(0, large, has_cores=True).around([part])
    return adapter | space.leave(space.enter(part))


def _padded(adapter: Update, least: Layout) -> Update:
    """Returns the same products at ranks not below ``least``."""
    like: Update = {}
    for name, array in adapter.items():
        shape, axis = list(array.shape), unit_axis(name) or 0
        shape[axis] = max(shape[axis], least[block_number(name)])
        like[name] = np.zeros(shape, np.float32)
    return pad(adapter, like)
