"""The running account of one pass through a block, and the maps that all parts are made of."""

from dataclasses import dataclass
from typing import NamedTuple


class Map(NamedTuple):
    """One linear map.

    Attributes:
        name: as inside the block; a layout's targets are such names.
        d_in: input width.
        d_out: output width.
        has_bias: whether it adds a bias.
    """

    name: str
    d_in: int
    d_out: int
    has_bias: bool = True

    @property
    def num_params(self) -> int:
        """Frozen parameters."""
        return self.d_in * self.d_out + self.has_bias * self.d_out


class Norm(NamedTuple):
    """One normalisation over the width.

    Attributes:
        width: normalised width.
        is_centred: LayerNorm (mean and variance, scale and shift) or RMSNorm (root mean square,
            scale only).
    """

    width: int
    is_centred: bool

    @property
    def num_params(self) -> int:
        """Frozen parameters."""
        return self.width * (1 + self.is_centred)

    @property
    def num_stats(self) -> int:
        """Reals a token that are kept beside the input."""
        return 1 + self.is_centred


class Input(NamedTuple):
    """What a local step reads.

    Attributes:
        batch: rows, >= 1.
        tokens: tokens of a row in the stack that a block belongs to, >= 1.
        memory_tokens: tokens of the encoder's output that a decoder block reads; 0 without one.
    """

    batch: int
    tokens: int
    memory_tokens: int = 0


@dataclass
class Tally:
    """Counts of one block.

    Attributes:
        forward_flops: of the forward pass.
        backward_flops: of the backward pass; frozen weights have no gradient of their own.
        saved_reals: activations kept from forward to backward.
        tuned_params: tuned parameters.
        keeps_memory: whether the encoder's output is kept; all blocks share one copy.
        keeps_shared: the same of what turns queries and keys (rotary positions).
    """

    forward_flops: int = 0
    backward_flops: int = 0
    saved_reals: int = 0
    tuned_params: int = 0
    keeps_memory: bool = False
    keeps_shared: bool = False

    def frozen_map(self, each: Map, tokens: int, *, in_grad: bool) -> None:
        """Counts a frozen map of ``tokens`` rows; ``in_grad``: its input needs a gradient."""
        flops = 2 * tokens * each.d_in * each.d_out
        self.forward_flops += flops
        self.backward_flops += flops * in_grad

    def lora(self, each: Map, tokens: int, rank: int, *, in_grad: bool, train_a: bool) -> None:
        """Counts what rank > 0 adds to a map, the copy of the map's input excepted."""
        down, up = 2 * tokens * each.d_in * rank, 2 * tokens * each.d_out * rank
        self.forward_flops += down + up
        self.backward_flops += up  # gradient of B
        self.backward_flops += up * (train_a or in_grad)  # gradient of A x
        self.backward_flops += down * train_a + down * in_grad
        self.saved_reals += tokens * rank
        self.tuned_params += rank * (each.d_out + train_a * each.d_in)

    def norm(self, each: Norm, tokens: int, *, in_grad: bool) -> None:
        """Counts what a norm keeps: its input and its statistics."""
        self.saved_reals += tokens * (each.width + each.num_stats) * in_grad
