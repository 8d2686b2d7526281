"""Reading and setting the hidden states between blocks, the same way for every model family.

A tap stands behind the last block a device holds: it stops the pass and hands out the state that
arrives there, or puts another state in its place. Inside the server's blocks hooks do the same.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from typing_extensions import override

from fl_app.errors import ModelError


class _Reached(BaseException):
    """Ends a pass; carries the state [batch, tokens, width] that was waited for.

    It is no error, and no ``except Exception`` on its way shall stop it.
    """

    def __init__(self, state: torch.Tensor) -> None:
        super().__init__()
        self.state = state


class Tap(nn.Module):
    """Stands in the place of a block and has no weights.

    Args:
        num_outputs: length of the tuple the family's blocks return, None where they return a
            tensor.
    """

    def __init__(self, num_outputs: int | None) -> None:
        super().__init__()
        self._num_outputs = num_outputs
        self._substitute: torch.Tensor | None = None

    @override
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Stops the pass, or returns the substitute as the family's blocks return a state."""
        if self._substitute is None:
            raise _Reached(args[0] if args else kwargs["hidden_states"])
        if self._num_outputs is None:
            return self._substitute
        return (self._substitute, *[None] * (self._num_outputs - 1))

    @contextmanager
    def giving(self, state: torch.Tensor) -> Iterator[None]:
        """Puts ``state`` in the place of what arrives, while the context lasts."""
        self._substitute = state
        try:
            yield
        finally:
            self._substitute = None


def reach(model: Any, **inputs: Any) -> torch.Tensor:
    """Runs a model until a tap, or the end given by ``stop_behind``, and returns the state there.

    Raises:
        ModelError: the model came to its end.
    """
    try:
        model(**inputs)
    except _Reached as reached:
        return reached.state
    raise ModelError(
        f"a {model.config.model_type} model ran past its last block; rebuild its parts"
    )


def num_outputs_of(block: nn.Module, model: Any, **inputs: Any) -> int | None:
    """Returns the length of the tuple a block returns, None if it returns a tensor."""
    seen: list[Any] = []
    handle = block.register_forward_hook(lambda _module, _args, output: seen.append(output))
    try:
        with torch.no_grad():
            model(**inputs)
    finally:
        handle.remove()
    return len(seen[0]) if isinstance(seen[0], tuple) else None


@contextmanager
def stop_behind(block: nn.Module) -> Iterator[None]:
    """Ends every pass of ``reach`` behind this block, while the context lasts."""

    def hook(_module: nn.Module, _args: Any, output: Any) -> None:
        raise _Reached(output[0] if isinstance(output, tuple) else output)

    handle = block.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def entering(blocks: Sequence[nn.Module], states: Sequence[torch.Tensor]) -> Iterator[None]:
    """Gives each block its state in the place of what arrives, while the context lasts."""

    def hook_of(state: torch.Tensor) -> Any:
        def hook(_module: nn.Module, args: Any, kwargs: Any) -> Any:
            if args:
                return (state, *args[1:]), kwargs
            return args, {**kwargs, "hidden_states": state}

        return hook

    handles = [
        block.register_forward_pre_hook(hook_of(state), with_kwargs=True)
        for block, state in zip(blocks, states, strict=True)
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
