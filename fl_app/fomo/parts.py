"""Cuts a FoMo into what a device holds (front and head) and what the server holds (trunk).

Both are ordinary ``transformers`` models with fewer blocks, built through the block table. The
device's model has the first c blocks of stack 0 and a tap at the end of each stack; front and head
are two ways to run it, so one adapter tunes both, and PEFT may wrap it in place. The decoder of an
encoder-decoder is always cut in front of its first block. The trunk shares its weights with the
model it was cut from.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from fl_app.errors import ModelError
from fl_app.fomo.blocks import family_of, renumber, stack_paths
from fl_app.fomo.emulator import empty_model
from fl_app.fomo.taps import Tap, num_outputs_of

Ranges = tuple[tuple[int, ...], ...]
"""Indices, in the full model, of a part's blocks: one tuple for each stack."""


@dataclass(frozen=True)
class DevicePart:
    """Front and head as one model.

    Attributes:
        model: frozen float32 model in ``eval`` mode, a tap at the end of each stack.
        task: the model's task.
        cut: c, the number of blocks in the front.
    """

    model: Any
    task: str
    cut: int

    @property
    def blocks(self) -> tuple[int, ...]:
        """Indices for ``Adapter``; the last one is the tap, which has nothing to tune."""
        return tuple(range(self.cut + 1))

    @property
    def num_stacks(self) -> int:
        """1, or 2 for an encoder-decoder."""
        return len(stack_paths(self.model))

    @property
    def reads_images(self) -> bool:
        """Whether inputs are images rather than tokens."""
        return bool(self.model.main_input_name == "pixel_values")


@dataclass(frozen=True)
class TrunkPart:
    """The server's blocks.

    Attributes:
        model: frozen model in ``eval`` mode without the first c blocks of stack 0.
        blocks: indices, in the full model, of its blocks for each stack, for ``Adapter``.
    """

    model: Any
    blocks: Ranges


def build_device_part(model: Any, task: str, cut: int) -> DevicePart:
    """Returns a new model with embeddings, the first ``cut`` blocks and the head of ``model``.

    Args:
        model: the full model, not wrapped by PEFT; not changed.
        task: its task.
        cut: c, 0 <= c < number of blocks of stack 0.

    Raises:
        ModelError: ``cut`` is out of range.
    """
    ranges = _device_ranges(model.config, cut)
    part = empty_device_part(_config_of(model.config, ranges), task)
    state = {name: model.state_dict()[name].clone() for name in part.model.state_dict()}
    part.model.load_state_dict(state)
    part.model.eval().requires_grad_(False)
    return part


def empty_device_part(config: Any, task: str) -> DevicePart:
    """Builds a device's model from its configuration; its weights are meant to be overwritten.

    Args:
        config: of a device's model: its stacks count the tap as a block.
        task: the model's task.
    """
    model = empty_model(config, task).eval()
    stacks = [model.get_submodule(path) for path in stack_paths(model)]
    part = DevicePart(model=model, task=task, cut=len(stacks[0]) - 1)
    dummy = torch.zeros(1, 2, dtype=torch.long)
    num_outputs = num_outputs_of(stacks[-1][-1], model.base_model, **head_inputs(part, dummy))
    for stack in stacks:
        stack[-1] = Tap(num_outputs)
    return part


def build_trunk_part(model: Any, task: str, cut: int) -> TrunkPart:
    """Returns a model with the blocks behind the cut; it shares its weights with ``model``.

    What a family keeps only in its first block (T5's shared position bias) goes to the trunk's
    first block whichever block that was.

    Raises:
        ModelError: ``cut`` is out of range, or a weight has no source.
    """
    depths = _depths(model.config)
    _require_cut(cut, depths[0])
    ranges = (tuple(range(cut, depths[0])), *(tuple(range(depth)) for depth in depths[1:]))
    trunk = empty_model(_config_of(model.config, ranges), task)
    source = model.state_dict()
    state = {}
    for name in trunk.state_dict():
        full_name = name
        for stack, blocks in zip(stack_paths(trunk), ranges, strict=True):
            full_name = renumber(full_name, (stack,), dict(enumerate(blocks)))
        origin = full_name if full_name in source else name
        if origin not in source:
            raise ModelError(f"the full model has no weight for the trunk's '{name}'")
        state[name] = source[origin]
    trunk.load_state_dict(state, assign=True)
    return TrunkPart(model=trunk.eval().requires_grad_(False), blocks=ranges)


def adopt(model: Any, part: DevicePart) -> None:
    """Writes a device part's weights into the full model, in place.

    A device part on the wire may be rounded to half precision. The server packs it, unpacks what it
    packed, adopts that, and only then cuts its trunk: from there on the full model is the one the
    federation tunes, and what the server measures on it is what devices have.

    Args:
        model: the full model the part was cut from, not wrapped by PEFT.
        part: as a device unpacks it, not wrapped by PEFT.

    Raises:
        ModelError: the part was cut from another kind of model.
    """
    target = model.state_dict()
    for name, tensor in part.model.state_dict().items():
        if name not in target or target[name].shape != tensor.shape:
            raise ModelError(f"the device part does not fit the model: weight '{name}' differs")
        target[name].copy_(tensor)


def head_inputs(part: DevicePart, ids: torch.Tensor) -> dict[str, Any]:
    """Returns inputs for a pass whose states a tap will substitute.

    Args:
        part: whose family says what a pass needs.
        ids: [B, S'] token ids, of which only shape and markers matter; of images only B does.
    """
    config, like = part.model.config, torch.zeros((), dtype=part.model.dtype)
    if part.reads_images:
        side = config.image_size
        return {"pixel_values": like.new_zeros(len(ids), config.num_channels, side, side)}
    inputs: dict[str, Any] = {"input_ids": ids}
    if part.num_stacks == 2:
        inputs["decoder_input_ids"] = ids
        inputs["encoder_outputs"] = (like.new_zeros(len(ids), 1, config.hidden_size),)
    return inputs


def last_blocks(model: nn.Module) -> list[Any]:
    """Returns the last block of each stack."""
    return [model.get_submodule(path)[-1] for path in stack_paths(model)]  # type: ignore[index]


def first_blocks(model: nn.Module) -> list[Any]:
    """Returns the first block of each stack."""
    return [model.get_submodule(path)[0] for path in stack_paths(model)]  # type: ignore[index]


def _depths(config: Any) -> list[int]:
    return [int(getattr(config, field)) for field in family_of(config).depth_fields]


def _device_ranges(config: Any, cut: int) -> Ranges:
    depths = _depths(config)
    _require_cut(cut, depths[0])
    return (tuple(range(cut + 1)), *((0,) for _ in depths[1:]))


def _require_cut(cut: int, depth: int) -> None:
    if not 0 <= cut < depth:
        raise ModelError(
            f"strategy.cut={cut} must be in 0..{depth - 1}: the server keeps at least one of the "
            f"model's {depth} blocks"
        )


def _config_of(config: Any, ranges: Sequence[Sequence[int]]) -> Any:
    """Returns a copy of a configuration with only these blocks, and without a key-value cache."""
    small = copy.deepcopy(config)
    for field, blocks in zip(family_of(config).depth_fields, ranges, strict=True):
        setattr(small, field, len(blocks))
    if getattr(config, "layer_types", None):  # attention kind per block: sliding or full
        small.layer_types = [config.layer_types[i] for i in ranges[0]]
    if hasattr(small, "use_cache"):
        small.use_cache = False
    return small
