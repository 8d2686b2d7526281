"""A model as the resource model sees it: parts of blocks, and what surrounds them."""

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from fl_app.resources.errors import ResourceError
from fl_app.resources.parts import Part, num_params
from fl_app.resources.tally import Map, Norm

Block = tuple[Part, ...]


@dataclass(frozen=True, kw_only=True)
class Head:
    """What stands between the last block and the loss.

    Attributes:
        frozen: frozen maps, in order.
        tuned: maps tuned in full with every adapter, in order.
        every_token: whether they read every token or one of each row.
        is_tied: whether the first frozen map shares the embedding's weights.
        keeps_stream: whether the one token that the first tuned map reads is a view, which keeps
            the whole last state.
    """

    frozen: tuple[Map, ...] = ()
    tuned: tuple[Map, ...] = ()
    every_token: bool = False
    is_tied: bool = False
    keeps_stream: bool = False

    @property
    def num_logits(self) -> int:
        """Width of the logits; 0 without a head."""
        return (*self.frozen, *self.tuned)[-1].d_out if self.frozen or self.tuned else 0

    @property
    def num_tuned(self) -> int:
        """Tuned parameters."""
        return sum(each.num_params for each in self.tuned)

    @property
    def num_params(self) -> int:
        """Parameters of its own, tied weights excepted."""
        frozen = self.frozen[1:] if self.is_tied else self.frozen
        return self.num_tuned + sum(each.num_params for each in frozen)


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """Shapes of one model.

    Attributes:
        model_type: its family, as ``transformers`` names it.
        width: width d of the stream.
        blocks: parts of every block in forward order, the encoder's first.
        num_encoder_blocks: how many of them are an encoder's, whose output the others read; 0 for
            models of one stack.
        outer_params: frozen parameters of embeddings and everything else outside blocks and head.
        norm: the norm behind the last block; None without one.
        head: the task head.
        default_targets: maps that LoRA adapts where nothing else is asked for.
        fixed_tokens: tokens of a row where the model itself fixes them (images), else None.
        patches: map of every patch of an image into the stream; None for text.
        shared_per_token: reals a token of one row that all blocks share (rotary positions).
    """

    model_type: str
    width: int
    blocks: tuple[Block, ...]
    num_encoder_blocks: int
    outer_params: int
    norm: Norm | None
    head: Head
    default_targets: tuple[str, ...]
    fixed_tokens: int | None = None
    patches: Map | None = None
    shared_per_token: int = 0

    @property
    def num_blocks(self) -> int:
        """Blocks of all stacks together."""
        return len(self.blocks)

    @cached_property
    def num_params(self) -> int:
        """All parameters, the head's included and adapters not."""
        counts = {block: num_params(block) for block in set(self.blocks)}
        return self.outer_params + self.head.num_params + sum(counts[each] for each in self.blocks)

    @cached_property
    def map_names(self) -> frozenset[str]:
        """Names that LoRA's targets may take."""
        return frozenset(
            each.name for block in set(self.blocks) for part in block for each in part.maps
        )


def emulator(shapes: Architecture, left: int, middle: int, right: int) -> Architecture:
    """Returns the emulator of a split: the first, some middle and the last blocks of every stack.

    Args:
        shapes: the full model.
        left: blocks of A1, >= 0.
        middle: middle blocks that are kept, >= 0.
        right: blocks of A2, >= 0.

    Raises:
        ResourceError: more blocks than a stack has, or none.
    """
    counts = [shapes.num_encoder_blocks, shapes.num_blocks - shapes.num_encoder_blocks]
    stacks = [count for count in counts if count]
    kept = left + middle + right
    if min(left, middle, right) < 0 or not 1 <= kept <= min(stacks):
        raise ResourceError(
            f"split {left}-{middle}-{right}: give three numbers >= 0 that add up to 1 to "
            f"{min(stacks)}, the blocks of a stack"
        )
    blocks = (
        shapes.blocks[:kept]
        if len(stacks) == 1
        else (
            *shapes.blocks[:kept],
            *shapes.blocks[-kept:],
        )
    )
    return dataclasses.replace(
        shapes,
        blocks=tuple(blocks),
        num_encoder_blocks=kept if len(stacks) > 1 else 0,
    )


HeadBuilder = Callable[[Any, int], Head]
"""Makes a head from a configuration and a number of labels."""


@dataclass(frozen=True)
class FamilyRow:
    """How to read one family's configuration.

    Attributes:
        read: makes the architecture from configuration and head.
        head: makes the head of a language model (``num_labels`` 0) or of a classifier.
        defaults: configuration fields that a configuration file may leave out.
    """

    read: Callable[[Any, Head], Architecture]
    head: HeadBuilder
    defaults: Mapping[str, Any]
