"""An emulator without building one: the full model, told to pass by the dropped blocks."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch


@contextmanager
def skipping(model: Any, stacks: Sequence[str], dropped: Sequence[int]) -> Iterator[None]:
    """Lets the dropped blocks run but hands on their input in place of their output.

    What a block passes on besides hidden states (T5's position bias) is kept, for that belongs to
    the stack and not to the block.
    """

    def pass_by(_module: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        states = args[0] if args else kwargs["hidden_states"]
        return states if torch.is_tensor(output) else (states, *output[1:])

    handles = [
        model.get_submodule(f"{stack}.{index}").register_forward_hook(pass_by, with_kwargs=True)
        for stack in stacks
        for index in dropped
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
