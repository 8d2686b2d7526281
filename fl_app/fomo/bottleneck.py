"""Bottleneck adapters: a narrow two-layer network behind every tuned block.

Houlsby et al. 2019, arXiv:1902.00751; one behind a whole block, as Pfeiffer et al. 2021,
arXiv:2005.00247, have it. A block's output h becomes h + U act(D h), D [width, d], U [d, width],
without biases. One unit is a row of D and a column of U. U starts at zero, so that a new adapter
changes no output. What a block puts out is found by a hook, the same way in every model family.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from typing_extensions import override

from fl_app.errors import ModelError
from fl_app.fomo.unit_layers import require_layout
from fl_app.layout.prefix import DOWN, Layout, block_number
from fl_app.seeding import generator

ACTIVATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "relu": nn.functional.relu,
    "gelu": nn.functional.gelu,
}
"""act by name."""


@dataclass(frozen=True)
class BottleneckSpec:
    """What a bottleneck adapter adds behind a block: h + U act(D h).

    Attributes:
        width: rows of D >= 1 in every block, until ``Bottlenecks.resize`` says otherwise.
        activation: one of ``ACTIVATIONS``.
    """

    width: int
    activation: str = "gelu"


class Bottleneck(nn.Module):
    """One adapter; its parameters are None where its width is 0.

    Args:
        activation: one of ``ACTIVATIONS``.
    """

    down: nn.Parameter | None
    up: nn.Parameter | None
    probe: nn.Parameter | None

    def __init__(self, activation: str) -> None:
        super().__init__()
        self.register_parameter("down", None)
        self.register_parameter("up", None)
        self.register_parameter("probe", None)
        self._activation = activation

    @override
    def forward(self, states: torch.Tensor) -> torch.Tensor:
        """Returns h + U act(D h), [..., d] like ``states``; at width 0 the very tensor given."""
        changed = states
        if self.down is not None and self.up is not None:
            inner = ACTIVATIONS[self._activation](nn.functional.linear(states, self.down))
            changed = changed + nn.functional.linear(inner, self.up)
        if self.probe is not None:
            changed = changed + nn.functional.linear(states, self.probe)
        return changed


def down_drawn(seed: int, name: str, shape: tuple[int, int]) -> NDArray[np.float32]:
    """Returns D [width, d] as drawn: U(-1/sqrt(d), 1/sqrt(d)), as ``nn.Linear`` draws.

    Row after row from one stream, so that D of a smaller width is the first rows of a larger one.
    """
    bound = 1.0 / np.sqrt(shape[1])
    return generator(seed, "bottleneck", name).uniform(-bound, bound, shape).astype(np.float32)


class Bottlenecks:
    """The bottleneck adapters of one model, put behind its blocks; see ``UnitLayers``.

    Args:
        named: (canonical name, block) of each; an adapter becomes the block's submodule
            ``bottleneck``.
        width: d of the hidden states.
        spec: width and activation.
        seed: draws D.

    Raises:
        ModelError: unknown activation.
    """

    sends_whole_units = True

    def __init__(
        self, named: Iterable[tuple[str, nn.Module]], width: int, spec: BottleneckSpec, seed: int
    ) -> None:
        if spec.activation not in ACTIVATIONS:
            raise ModelError(
                f"peft.activation={spec.activation!r} is unknown; choose one of "
                f"{', '.join(ACTIVATIONS)}"
            )
        self._seed, self._states = seed, width
        self._layers: dict[str, Bottleneck] = {}
        for name, block in named:
            block.bottleneck = self._layers[name] = Bottleneck(spec.activation)
            block.register_forward_hook(_behind)
        self._sizes = {block_number(name): 0 for name in self._layers}
        self.resize(dict.fromkeys(self.layout, spec.width))

    @property
    def layout(self) -> dict[int, int]:
        """Width of every block that can have one, by index in the full model."""
        return dict(sorted(self._sizes.items()))

    def resize(self, layout: Layout, units: Mapping[int, Sequence[int]] | None = None) -> None:
        """See ``UnitLayers.resize``: new units have D as drawn and U 0, so no output changes.

        Units are never named: all of a unit is tuned and travels.

        Raises:
            ModelError: other blocks, a negative width, or units that are named.
        """
        require_layout(layout, self._sizes)
        if units:
            raise ModelError(f"units {dict(units)}: those of bottleneck adapters travel whole")
        for name, layer in self._layers.items():
            block = block_number(name)
            if layout[block] != self._sizes[block]:
                self._resize(name, layer, layout[block])
        self._sizes = dict(layout)

    def _resize(self, name: str, layer: Bottleneck, width: int) -> None:
        if width == 0:
            layer.down = layer.up = None
            return
        drawn = down_drawn(self._seed, f"{name}{DOWN}", (width, self._states))
        down, up = torch.from_numpy(drawn), torch.zeros(self._states, width)
        if layer.down is not None and layer.up is not None:
            kept = min(width, len(layer.down))
            down[:kept], up[:, :kept] = layer.down.detach()[:kept], layer.up.detach()[:, :kept]
        layer.down, layer.up = nn.Parameter(down), nn.Parameter(up)

    @contextmanager
    def probed(self) -> Iterator[dict[str, nn.Parameter]]:
        """Adds M h, M = 0 [d, d], behind every block: see ``UnitLayers.probed``.

        U act(D h) of few units is, to first order and up to act's slope at 0, the same for all
        units, an M of low rank: the singular values of M's gradient rank units as those of a frozen
        map's gradient rank LoRA's.
        """
        for layer in self._layers.values():
            layer.probe = nn.Parameter(torch.zeros(self._states, self._states))
        try:
            yield {name: layer.get_parameter("probe") for name, layer in self._layers.items()}
        finally:
            for layer in self._layers.values():
                layer.probe = None


def _behind(block: Any, _inputs: Any, output: Any) -> Any:
    """Passes a block's output through its adapter; a copy of the block takes its own one along."""
    if isinstance(output, tuple):
        return (block.bottleneck(output[0]), *output[1:])
    return block.bottleneck(output)
