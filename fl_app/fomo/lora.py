"""LoRA layers block by block: starting values, and ranks that change in place.

PEFT makes the layers and computes with them. A device's layers are cut to the layout that its order
names and grow again for the next one: units are kept in nested order, the scale is always alpha /
rank of the configuration, whatever rank a block has.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from fl_app.errors import ModelError
from fl_app.fomo.unit_layers import require_layout
from fl_app.layout.prefix import Layout, block_number
from fl_app.seeding import generator
from fl_app.updates import Update

_NAME = "default"
"""What PEFT calls an adapter that was given no name."""


@dataclass(frozen=True)
class LoraSpec:
    """What LoRA adds (Hu et al. 2021, arXiv:2106.09685): W + (alpha / rank) B A.

    Attributes:
        rank: r >= 1 of every adapted map, until ``LoraLayers.resize`` says otherwise; the scale
            stays alpha / r.
        alpha: numerator of the scale alpha / rank.
        targets: names of the adapted maps inside a block; ``all-linear`` alone takes every linear
            map, empty the family's default.
        train_a: whether A is tuned too. Frozen, equal A on all devices make averaging B exact.
    """

    rank: int
    alpha: float
    targets: tuple[str, ...]
    train_a: bool


def lora_start(shapes: Mapping[str, tuple[int, ...]], seed: int, server_round: int = 0) -> Update:
    """Returns the starting values of LoRA factors: A as ``Adapter`` draws it, B zero.

    Args:
        shapes: shape of every factor by canonical name.
        seed: the run's seed.
        server_round: whose own draw A is; 0 for that of the whole run.
    """
    return {
        name: a_drawn(seed, name, shape, server_round)
        if ".lora_A." in name
        else np.zeros(shape, np.float32)
        for name, shape in shapes.items()
    }


def a_drawn(
    seed: int, name: str, shape: tuple[int, ...], server_round: int = 0
) -> NDArray[np.float32]:
    """Returns A [rank, d_in] as PEFT draws it, U(-1/sqrt(d_in), 1/sqrt(d_in)).

    Row after row from one stream, so that A of a smaller rank is the first rows of a larger one.
    """
    bound = 1.0 / np.sqrt(shape[1])
    stream = ("lora_A", name, server_round) if server_round else ("lora_A", name)
    draw = generator(seed, *stream).uniform(-bound, bound, shape)
    return draw.astype(np.float32)


@dataclass(frozen=True)
class _Layer:
    """One adapted map: PEFT's layer and its two factors, which outlive a rank of 0."""

    path: str
    canonical: str
    block: int
    peft: Any
    a: nn.Linear
    b: nn.Linear

    @property
    def rank(self) -> int:
        return int(self.a.weight.shape[0])


class LoraLayers:
    """The LoRA layers of one model; see ``UnitLayers``.

    Args:
        named: (path in the model, canonical name, PEFT's layer) of each.
        spec: what they were made as.
        seed: draws A.
    """

    def __init__(self, named: Iterable[tuple[str, str, Any]], spec: LoraSpec, seed: int) -> None:
        self._spec, self._seed = spec, seed
        self._layers = [
            _Layer(path, name, block_number(name), layer, layer.lora_A[_NAME], layer.lora_B[_NAME])
            for path, name, layer in named
        ]
        self._units: dict[int, tuple[int, ...]] = {}
        """Of blocks whose frozen A is not the first rows as drawn: which rows it is."""

    @property
    def frozen_maps(self) -> dict[str, nn.Parameter]:
        """The frozen weights that LoRA adapts, by canonical name of the map."""
        return {layer.canonical: layer.peft.get_base_layer().weight for layer in self._layers}

    @contextmanager
    def probed(self) -> Iterator[dict[str, nn.Parameter]]:
        """Has the frozen maps require gradients; see ``UnitLayers.probed``."""
        maps = self.frozen_maps
        for weight in maps.values():
            weight.requires_grad_(True)
        try:
            yield maps
        finally:
            for weight in maps.values():
                weight.requires_grad_(False)
                weight.grad = None

    @property
    def sends_whole_units(self) -> bool:
        """Whether A is tuned, and so travels with B."""
        return self._spec.train_a

    @property
    def layout(self) -> dict[int, int]:
        """Rank of every block that can have one, by index in the full model."""
        return dict(sorted({layer.block: layer.rank for layer in self._layers}.items()))

    def resize(self, layout: Layout, units: Mapping[int, Sequence[int]] | None = None) -> None:
        """Gives every block its rank, in place.

        Units that stay keep their values; new ones have their starting values (A as drawn, B 0),
        so growing changes no output. Rank 0 takes the layer's factors out: the block computes, bit
        for bit, what it does frozen.

        Args:
            layout: rank >= 0 of every block of ``self.layout``, and of no other.
            units: which rows of A as drawn a block's units are, for an A that is frozen and so
                never sent; where they change, B is of no use until it is written. None or empty
                for the first rows. A tuned A is written like B.

        Raises:
            ModelError: other blocks, a negative rank, or not as many units as ranks.
        """
        require_layout(layout, self.layout, units)
        for layer in self._layers:
            if layer.rank != layout[layer.block]:
                self._resize(layer, layout[layer.block])
        if not self._spec.train_a:
            self._place(layout, units or {})

    def _place(self, layout: Layout, units: Mapping[int, Sequence[int]]) -> None:
        """Makes the rows of a frozen A those of the units."""
        first = {block: tuple(range(rank)) for block, rank in layout.items()}
        wanted = first | {block: tuple(own) for block, own in units.items()}
        for layer in self._layers:
            rows = wanted[layer.block]
            is_first = rows == first[layer.block]
            if not rows or (is_first and layer.block not in self._units):
                continue
            if rows != self._units.get(layer.block):
                name = f"{layer.canonical}.lora_A.weight"
                shape = (max(rows) + 1, layer.a.weight.shape[1])
                drawn = a_drawn(self._seed, name, shape)[list(rows)]
                with torch.no_grad():
                    layer.a.weight.copy_(torch.from_numpy(drawn))
        self._units = {b: rows for b, rows in wanted.items() if rows != first[b]}

    def _resize(self, layer: _Layer, rank: int) -> None:
        kept = min(layer.rank, rank)
        a, b = layer.a.weight.detach(), layer.b.weight.detach()
        down, up = torch.empty(rank, a.shape[1]), torch.zeros(b.shape[0], rank)
        if rank > kept:
            name = f"{layer.canonical}.lora_A.weight"
            down[:] = torch.from_numpy(a_drawn(self._seed, name, tuple(down.shape)))
        down[:kept], up[:, :kept] = a[:kept], b[:, :kept]
        if layer.rank == 0:
            layer.peft.lora_A[_NAME], layer.peft.lora_B[_NAME] = layer.a, layer.b
        layer.a.weight = nn.Parameter(down, requires_grad=self._spec.train_a)
        layer.b.weight = nn.Parameter(up)
        layer.a.out_features = layer.b.in_features = layer.peft.r[_NAME] = rank
        if rank == 0:  # PEFT leaves out a layer that does not know the adapter's name
            del layer.peft.lora_A[_NAME], layer.peft.lora_B[_NAME]

    def merge(self, stack: Update) -> None:
        """Adds scale B A to the frozen weights; see ``Adapter.merge``."""
        factors = []
        for layer in self._layers:
            a, b = (stack.get(f"{layer.canonical}.lora_{which}.weight") for which in "AB")
            if a is None or b is None:
                continue
            wide, tall = layer.a.weight.shape[1], layer.b.weight.shape[0]
            if (a.shape[1:], b.shape) != ((wide,), (tall, a.shape[0])):
                raise ModelError(
                    f"{layer.canonical}: a stack of A {a.shape} and B {b.shape} does not fit a map "
                    f"of {tall} x {wide}; nothing of it is merged; it is of another model"
                )
            factors.append((layer, a, b))
        for layer, a, b in factors:
            change = torch.from_numpy(b) @ torch.from_numpy(a)
            change *= self._spec.alpha / self._spec.rank
            weight = layer.peft.get_base_layer().weight
            with torch.no_grad():
                weight += change.T if layer.peft.fan_in_fan_out else change

    def patterns(self) -> dict[str, Any]:
        """Returns what ``adapter_config.json`` says of these ranks; empty where all are alike.

        PEFT scales a map by alpha_l / r_l; alpha_l = r_l alpha / rank keeps the scale.
        """
        spec = self._spec
        ranks = {layer.path: layer.rank for layer in self._layers}
        unlike = {path: r for path, r in ranks.items() if r not in (0, spec.rank)}
        patterns: dict[str, Any] = {}
        if unlike:
            patterns["rank_pattern"] = unlike
            patterns["alpha_pattern"] = {p: r * spec.alpha / spec.rank for p, r in unlike.items()}
        if 0 in ranks.values():
            patterns["target_modules"] = sorted(path for path, rank in ranks.items() if rank)
        return patterns
