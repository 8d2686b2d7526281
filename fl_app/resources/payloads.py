"""Closed forms of what the DEFT modes send, in reals; times bytes per real they are bytes."""

from fl_app.resources.architecture import Architecture
from fl_app.resources.parts import num_params


def prompt_reals(num_tokens: int, width: int) -> int:
    """Returns the reals of a soft prompt: one row of the stream's width for each token."""
    return num_tokens * width


def activation_reals(batch: int, tokens: int, width: int) -> int:
    """Returns the reals that cross a cut between blocks one way, for one step."""
    return batch * tokens * width


def lora_reals(architecture: Architecture, rank: int, targets: frozenset[str]) -> int:
    """Returns the reals of LoRA of one rank in every block, both factors."""
    return sum(
        rank * (each.d_in + each.d_out)
        for block in architecture.blocks
        for part in block
        for each in part.maps
        if each.name in targets
    )


def block_params(architecture: Architecture) -> tuple[int, ...]:
    """Returns the frozen parameters of every block; an emulator's size is a sum of them."""
    return tuple(num_params(block) for block in architecture.blocks)
