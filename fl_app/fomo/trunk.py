"""The trunk: the server's blocks, forward and backward for many devices at once."""

import math
from collections.abc import Collection, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from fl_app.errors import ModelError
from fl_app.fomo.backbone import num_positions
from fl_app.fomo.features import FeatureGradient, Features, require_shapes
from fl_app.fomo.parts import TrunkPart, first_blocks, last_blocks
from fl_app.fomo.passes import grouped
from fl_app.fomo.rowwise import Weights, linear_maps, own_weights
from fl_app.fomo.taps import entering, reach, stop_behind

WANTED = ("prompt", "hidden", "parameters")
"""What gradients can be asked for."""


@dataclass(frozen=True)
class _Leaves:
    """What one device's gradients are taken with respect to; graph starts here."""

    hidden: tuple[torch.Tensor, ...]
    prompt: torch.Tensor | None
    parameters: dict[str, torch.Tensor]

    @property
    def wanted(self) -> list[torch.Tensor]:
        """Every leaf that requires a gradient, in the order of the fields."""
        prompt = [] if self.prompt is None else [self.prompt]
        every = [*self.hidden, *prompt, *self.parameters.values()]
        return [leaf for leaf in every if leaf.requires_grad]


class Held:
    """What the server keeps of a step until the gradients of the last states arrive.

    Attributes:
        states: for each device, detached last states [num_readout, d] in the order of its readout.
    """

    def __init__(self, states: Sequence[torch.Tensor], leaves: Sequence[_Leaves]) -> None:
        self.states = [state.detach() for state in states]
        self._graph: tuple[Sequence[torch.Tensor], Sequence[_Leaves]] | None = (states, leaves)

    def release(self) -> None:
        """Frees the graph; doing it twice does no harm."""
        self._graph = None

    def take(self) -> tuple[Sequence[torch.Tensor], Sequence[_Leaves]]:
        """Hands the graph out once.

        Raises:
            ModelError: it was released or used before.
        """
        if self._graph is None:
            raise ModelError("the graph of this step is gone: a step has one backward pass")
        graph, self._graph = self._graph, None
        return graph


class Trunk:
    """Runs the blocks behind the cut on features of many devices.

    Args:
        part: the server's blocks; an adapter may have wrapped the model in place.
        parameters: tunable weights inside, by canonical name (``Adapter.parameters``).

    Raises:
        ModelError: a parameter is no weight of a linear map.
    """

    def __init__(
        self, part: TrunkPart, parameters: Mapping[str, nn.Parameter] | None = None
    ) -> None:
        self._model = part.model
        self._parameters = dict(parameters or {})
        self._maps = linear_maps(part.model, self._parameters)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of the tunable weights inside, by canonical name."""
        return {name: tuple(value.shape) for name, value in self._parameters.items()}

    @property
    def width(self) -> int:
        """Width d of the states that enter and leave."""
        return int(self._model.config.hidden_size)

    def forward(
        self,
        features: Sequence[Features],
        *,
        want: Collection[str] = ("prompt",),
        parameters: Sequence[Weights] | None = None,
    ) -> Held:
        """Computes every device's last states.

        Devices of like length (``fl_app.fomo.passes``) share a pass: stacked along the rows, padded
        on the right to the longest and masked; no device's states depend on who else is there.

        Args:
            features: at least one; batch sizes, lengths and numbers of prompt tokens may differ.
            want: which of ``WANTED`` to differentiate with respect to; no graph is built for none.
            parameters: for each device, values of all tunable weights by canonical name; None takes
                those in the model for every device. They too share the one pass.

        Raises:
            ModelError: an unknown name in ``want``, or features or parameters that do not fit.
        """
        if strange := set(want) - set(WANTED):
            raise ModelError(f"want={sorted(strange)}; choose among {list(WANTED)}")
        if parameters is None:
            parameters = [self._parameters] * len(features)
        for one in features:
            self.require_fit(one)
        if any(set(own) != set(self._parameters) for own in parameters):
            raise ModelError("a device's parameters are not those the trunk tunes")
        leaves = [_leaves(one, own, want) for one, own in zip(features, parameters, strict=True)]
        states: dict[int, torch.Tensor] = {}
        for group in grouped(
            [len(one.readout) for one in features],
            [sum(mask.shape[1] for mask in one.masks) + one.num_prompt for one in features],
        ):
            read = self._read([features[i] for i in group], [leaves[i] for i in group])
            states |= dict(zip(group, read, strict=True))
        return Held([states[i] for i in range(len(features))], leaves)

    def _read(self, features: Sequence[Features], leaves: Sequence[_Leaves]) -> list[torch.Tensor]:
        """Runs one pass; returns the read states of each device."""
        blocks = first_blocks(self._model)
        prompts = [leaf.prompt for leaf in leaves]
        states = [
            _stacked([leaf.hidden[i] for leaf in leaves], prompts if i == 0 else None)
            for i in range(len(blocks))
        ]
        masks = [_masks(features, i) for i in range(len(blocks))]
        num_rows = [len(one.readout) for one in features]
        with ExitStack() as context:
            context.enter_context(torch.set_grad_enabled(any(leaf.wanted for leaf in leaves)))
            context.enter_context(entering(blocks, states))
            context.enter_context(stop_behind(last_blocks(self._model)[-1]))
            if self._maps:
                own = [leaf.parameters for leaf in leaves]
                context.enter_context(own_weights(self._maps, own, num_rows))
            last = reach(self._model.base_model, **self._inputs(masks))
            return [
                rows[:, : one.readout.shape[1]][one.readout]
                for rows, one in zip(torch.split(last, num_rows), features, strict=True)
            ]

    def require_fit(self, features: Features) -> None:
        """Checks shapes, so that a strange message fails alone and early.

        Raises:
            ModelError: they do not fit each other or the model.
        """
        require_shapes(features, len(first_blocks(self._model)), self.width)
        given = features.num_prompt + features.masks[0].shape[1]
        fewest, most = self._lengths()
        if len(features.readout) < 1 or not fewest <= given <= most:
            raise ModelError(
                f"features of {len(features.readout)} rows and {given} positions; the model takes "
                f"at least 1 row, and {fewest} to {most:g} positions"
            )

    def backward(
        self, held: Held, gradients: Sequence[torch.Tensor | None]
    ) -> list[FeatureGradient | None]:
        """Computes every device's gradients in one pass and frees the graph.

        Args:
            held: of ``forward``; used up.
            gradients: for each device, the gradient [num_readout, d] of its loss with respect to
                its ``held.states``; None for a device that vanished.

        Returns:
            For each device what was wanted, None for those that vanished. Devices' gradients are
            apart: a device that sends NaN gets NaN, and no other does.

        Raises:
            ModelError: the graph is gone, or a gradient's shape differs from its states'.
        """
        states, leaves = held.take()
        there = [i for i, gradient in enumerate(gradients) if gradient is not None]
        for i in there:
            if gradients[i].shape != states[i].shape:  # type: ignore[union-attr]
                raise ModelError(
                    f"gradient {i} of the last states has shape {list(gradients[i].shape)}, "  # type: ignore[union-attr]
                    f"expected {list(states[i].shape)}"
                )
        wanted = [leaf for i in there for leaf in leaves[i].wanted]
        found = (
            torch.autograd.grad(
                [states[i] for i in there],
                wanted,
                [gradients[i] for i in there],
                allow_unused=True,
                materialize_grads=True,
            )
            if wanted
            else ()
        )
        by_leaf = {id(leaf): value for leaf, value in zip(wanted, found, strict=True)}
        answers: list[FeatureGradient | None] = [None] * len(leaves)
        for i in there:
            answers[i] = _answer(leaves[i], by_leaf)
        return answers

    def _lengths(self) -> tuple[int, float]:
        """Returns the fewest and the most positions of stack 0."""
        config = self._model.config
        if self._model.main_input_name == "pixel_values":
            patches = (config.image_size // config.patch_size) ** 2 + 1  # and the class token
            return patches, patches
        positions = num_positions(config)
        return 1, math.inf if positions is None else positions

    def _inputs(self, masks: Sequence[torch.Tensor]) -> dict[str, Any]:
        """Returns inputs of the right shape; their states are replaced in front of block one."""
        config, like = self._model.config, torch.zeros((), dtype=self._model.dtype)
        if self._model.main_input_name == "pixel_values":
            side = config.image_size
            return {"pixel_values": like.new_zeros(len(masks[0]), config.num_channels, side, side)}
        width = self._model.get_input_embeddings().weight.shape[1]
        names = ("", "decoder_")
        inputs: dict[str, Any] = {}
        for name, mask in zip(names, masks, strict=False):
            inputs[f"{name}inputs_embeds"] = like.new_zeros(*mask.shape, width)
            inputs[f"{name}attention_mask"] = mask.long()
        return inputs


def _leaves(one: Features, own: Weights, want: Collection[str]) -> _Leaves:
    """Returns copies that start a graph where a gradient is wanted."""

    def leaf(tensor: torch.Tensor, kind: str) -> torch.Tensor:
        return tensor.detach().clone().requires_grad_(kind in want)

    return _Leaves(
        hidden=tuple(leaf(state, "hidden") for state in one.hidden),
        prompt=None if one.prompt is None else leaf(one.prompt, "prompt"),
        parameters={name: leaf(value, "parameters") for name, value in own.items()},
    )


def _answer(leaves: _Leaves, by_leaf: Mapping[int, torch.Tensor]) -> FeatureGradient:
    hidden = [by_leaf[id(state)] for state in leaves.hidden if state.requires_grad]
    return FeatureGradient(
        hidden=tuple(hidden) or None,
        prompt=by_leaf.get(id(leaves.prompt)),
        parameters={
            name: by_leaf[id(value)]
            for name, value in leaves.parameters.items()
            if value.requires_grad
        },
    )


def _stacked(
    hidden: Sequence[torch.Tensor], prompts: Sequence[torch.Tensor | None] | None
) -> torch.Tensor:
    """Puts prompts in front, pads on the right, and stacks the devices' rows."""
    whole = list(hidden)
    for i, prompt in enumerate(prompts or []):
        if prompt is not None:
            whole[i] = torch.cat([prompt.expand(len(whole[i]), -1, -1), whole[i]], 1)
    longest = max(state.shape[1] for state in whole)
    return torch.cat(
        [nn.functional.pad(state, (0, 0, 0, longest - state.shape[1])) for state in whole]
    )


def _masks(features: Sequence[Features], stack: int) -> torch.Tensor:
    """Returns bool [rows of all devices, longest], laid out as ``_stacked``."""
    whole = [
        nn.functional.pad(one.masks[stack], (one.num_prompt if stack == 0 else 0, 0), value=True)
        for one in features
    ]
    longest = max(mask.shape[1] for mask in whole)
    return torch.cat([nn.functional.pad(mask, (0, longest - mask.shape[1])) for mask in whole])
