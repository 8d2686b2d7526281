"""How devices' updates become the next adapter where they may hold unequal ranks.

Every update is in the server's coordinates, zero where its device holds none. One yardstick serves
all rules: the mean over devices of the server's model as each device changed it, W + s B A plus the
change s (B_k' A_k' - B_k A_k), with k's factors cut to its layout. What a device does not hold it
does not change, so a round without local progress leaves the adapter as it is; the mean of the
devices' bare products (FlexLoRA as published, arXiv:2402.11505) would shrink it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from fl_app import updates
from fl_app.layout.prefix import Layout, presence, unit_axis
from fl_app.updates import Update
from strategies.lora_space import LoraSpace, discarded, untouched
from strategies.uplink import Received

Apply = Callable[[Sequence[Update], NDArray[np.float64]], Update]
"""The server's rule: rows in the LoRA space and their weights to the next adapter there."""


@dataclass(frozen=True)
class Gathered:
    """What a round brought, all in the server's coordinates.

    Attributes:
        adapter: the server's, as the round began.
        tuned: of it, the parameters that travelled.
        received: what the uplink made of the updates.
        presence: [num_heard, num_params] bool: who holds which entry of ``tuned``; None where
            everybody holds all.
        weights: [num_heard] numbers of examples, > 0.
    """

    adapter: Update
    tuned: Update
    received: Received
    presence: NDArray[np.bool_] | None
    weights: NDArray[np.float64]


class Combine(Protocol):
    """One way to combine."""

    def next_adapter(
        self, gathered: Gathered, space: LoraSpace, apply: Apply
    ) -> tuple[Update, dict[str, float]]:
        """Returns the next adapter, and figures for the round's metrics."""
        ...


class Whole:
    """Everybody holds every coordinate: the rows go to the server's rule as they are."""

    def next_adapter(
        self, gathered: Gathered, space: LoraSpace, apply: Apply
    ) -> tuple[Update, dict[str, float]]:
        """See ``Combine``."""
        rows = [
            updates.add(gathered.adapter, updates.unstack(row, gathered.tuned))
            for row in gathered.received.rows
        ]
        space = space.around(rows)
        entered = [space.enter(row) for row in rows]
        return space.leave(apply(entered, gathered.received.weights)), {}


@dataclass(frozen=True)
class Padded:
    """Zero padding: one mean, entry by entry.

    Attributes:
        all_weights: divide by the weights of all devices. With A frozen (or A and B in turn) that
            is the yardstick itself; an entry that few hold moves slowly. Otherwise by those of the
            devices that hold the entry: its full step, and so W / W_present times the yardstick's.
    """

    all_weights: bool

    def next_adapter(
        self, gathered: Gathered, space: LoraSpace, apply: Apply
    ) -> tuple[Update, dict[str, float]]:
        """See ``Combine``."""
        total = float(gathered.weights.sum())
        mean = _mean(gathered)
        if self.all_weights:
            mean = mean * (_held_weight(gathered) / total)
        change = updates.unstack(mean.astype(np.float32), gathered.tuned)
        row = space.enter(updates.add(gathered.adapter, change))
        return space.leave(apply([row], np.array([total]))), {}


class Flexible:
    """Mean of products, SVD back to the server's ranks: the yardstick but for what SVD discards.

    A device is next sent the first units of that SVD: the best approximation of its rank. The
    figure ``discarded`` is the share of the products' norm that the server's ranks cannot hold.
    """

    def next_adapter(
        self, gathered: Gathered, space: LoraSpace, apply: Apply
    ) -> tuple[Update, dict[str, float]]:
        """See ``Combine``; needs a row for every device."""
        masks = (
            np.ones(gathered.received.rows.shape)
            if gathered.presence is None
            else gathered.presence
        )
        pairs = []
        for row, mask in zip(gathered.received.rows, masks, strict=True):
            held = updates.unstack(mask.astype(np.float32), gathered.tuned)
            before = {name: gathered.adapter[name] * held[name] for name in gathered.adapter}
            pairs.append((before, updates.add(before, updates.unstack(row, gathered.tuned))))
        # what a device held before is a part of the server's factors
        space = space.around([gathered.adapter, *(after for _, after in pairs)])
        whole = space.enter(gathered.adapter)
        rows = [
            updates.add(whole, updates.subtract(space.enter(after), space.enter(before)))
            for before, after in pairs
        ]
        combined = apply(rows, gathered.received.weights)
        adapter = space.leave(combined)
        for name in untouched(whole, combined):
            adapter[name] = gathered.adapter[name]
        return adapter, {"discarded": discarded(combined, space.enter(adapter))}


class Stacked:
    """The devices' factors one below the other, weights folded into B: the yardstick itself.

    For rounds that begin with B = 0 (``strategies.round_start.Stacking``): what a device changes of
    the product is its product. Of rank sum_k r_k, and nothing is discarded. What is no factor goes
    to the server's rule.
    """

    def next_adapter(
        self, gathered: Gathered, space: LoraSpace, apply: Apply
    ) -> tuple[Update, dict[str, float]]:
        """See ``Combine``; needs a row for every device."""
        rows, weights = gathered.received.rows, gathered.received.weights
        masks = np.ones(rows.shape) if gathered.presence is None else gathered.presence
        others: list[Update] = []
        stack: dict[str, list[NDArray[np.float32]]] = {name: [] for name in gathered.adapter}
        for row, mask, share in zip(rows, masks, weights / weights.sum(), strict=True):
            tuned = updates.add(gathered.adapter, updates.unstack(row, gathered.tuned))
            held = updates.unstack(mask.astype(np.float32), gathered.tuned)
            others.append({n: array for n, array in tuned.items() if unit_axis(n) is None})
            for name, array in tuned.items():
                axis = unit_axis(name)
                if axis is not None:
                    units = held[name].any(axis=1 - axis)
                    part = np.compress(units, array, axis=axis)
                    stack[name].append(part * np.float32(share) if axis == 1 else part)
        stacked = {n: np.concatenate(own, axis=unit_axis(n)) for n, own in stack.items() if own}
        head = apply(others, weights) if others[0] else {}
        return dict(sorted((head | stacked).items())), {"discarded": 0.0}


def build_combine(name: str, *, is_shared: bool) -> Combine:
    """Turns ``peft.combine`` into what combines.

    Where all hold the same there is one way, but for stacks.
    """
    if name == "stack":
        return Stacked()
    if is_shared:
        return Whole()
    return Flexible() if name == "flex" else Padded(all_weights=name == "zero")


def held_by(layouts: Sequence[Layout], like: Update) -> NDArray[np.bool_]:
    """Returns [num_layouts, num_params] which entries of ``like`` each layout holds."""
    masks = [presence(like, layout) for layout in layouts]
    rows = [np.concatenate([mask[name].ravel() for name in sorted(mask)]) for mask in masks]
    return np.stack(rows)


def _held_weight(gathered: Gathered) -> NDArray[np.float64]:
    """Returns [num_params] (or one number) the weight of the devices that hold an entry."""
    if gathered.presence is None:
        return np.array(gathered.weights.sum())
    return gathered.weights @ gathered.presence


def _mean(gathered: Gathered) -> NDArray[np.float64]:
    """Returns [num_params] the mean over the devices that hold an entry; 0 where nobody does."""
    rows = gathered.received.rows.astype(np.float64)
    if len(rows) == 1:  # of one device, or what a radio uplink made the mean of
        return np.asarray(rows[0])
    held = _held_weight(gathered)
    return np.asarray((gathered.weights @ rows) / np.where(held > 0.0, held, 1.0))
