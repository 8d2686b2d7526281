"""Puts neural connections into a transformer through the block table, and takes them out again.

Hooks do it all: no module is added or renamed, so state dicts, PEFT names and saved adapters stay
as they are, and a model whose connection is removed is the model it was, bit for bit.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from fl_app.errors import ModelError
from fl_app.fomo.blocks import block_of, stack_paths
from fl_app.fomo.connection import Connection
from fl_app.fomo.connection_air import AirModule, ConnectionBook, MeasuredErrors
from fl_app.fomo.connection_learned import LearnedLink
from fl_app.fomo.connection_link import LinkSpec

_LORA_A = ".lora_A.default"


class Insertion:
    """The connections of one model; use as a context manager to remove them at the end.

    Args:
        connections: by the path of the block list or map they belong to.
        handles: what takes the hooks out again.
    """

    def __init__(self, connections: Mapping[str, AirModule], handles: Sequence[Any]) -> None:
        self.connections = dict(connections)
        self._handles = list(handles)

    def redraw(self, round: int, *, device: int = 0) -> None:
        """Draws the channel of a round and device; see ``AirModule.redraw``."""
        for connection in self.connections.values():
            connection.redraw(round, device=device)

    def measure(self) -> None:
        """From here on every pass is drawn to measure; see ``measure`` of the connection's kind."""
        for connection in self.connections.values():
            connection.measure()

    def figures(self) -> dict[str, float]:
        """Returns the errors measured since ``measure``, all connections together."""
        accounts = (connection.measured for connection in self.connections.values())
        return sum(accounts, MeasuredErrors()).figures()

    @property
    def book(self) -> ConnectionBook:
        """Channel uses and side information of all connections together."""
        return sum((c.book for c in self.connections.values()), ConnectionBook())

    def close_book(self) -> ConnectionBook:
        """Returns the book and opens a new one."""
        closed = self.book
        for connection in self.connections.values():
            connection.book = ConnectionBook()
        return closed

    @property
    def parameters(self) -> dict[str, nn.Parameter]:
        """What a learned link tunes, by name; nothing otherwise."""
        return {
            f"{path}.connection.{name}": parameter
            for path, connection in self.connections.items()
            for name, parameter in connection.named_parameters()
        }

    def remove(self) -> None:
        """Takes the connections out; doing it twice does no harm."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def __enter__(self) -> "Insertion":
        """Returns itself."""
        return self

    def __exit__(self, *_exc: object) -> None:
        """Removes the connections."""
        self.remove()


def insert_connection(
    model: Any,
    *,
    block: int,
    spec: LinkSpec,
    seed: int,
    blocks: Sequence[int] | None = None,
    learned: bool = False,
) -> Insertion:
    """Sends the hidden states that enter a block over the air: device in front, server behind.

    Every stack of an encoder-decoder gets a connection of its own. Its decoder is given no padding
    mask, so all decoder positions are sent; images have no padding at all. What goes around the
    cut (the encoder's output into decoder blocks, position biases) stays digital and is not booked.

    Args:
        model: a ``transformers`` model of a family in the block table, as loaded; PEFT may wrap it
            before or after.
        block: the first block behind the cut, by its index in the full model.
        spec: the link.
        seed: the run's seed.
        blocks: indices, in the full model, of the model's blocks in order; None if it is full.
        learned: tune precoder and combiner instead of computing them from CSI.

    Raises:
        ModelError: the model does not have that block.
    """
    stacks = stack_paths(model)
    place = _place_of(model, block, blocks)
    kind: type[Connection] | type[LearnedLink] = LearnedLink if learned else Connection
    connections: dict[str, AirModule] = {}
    handles = []
    for stack in stacks:
        connection = kind(width=model.config.hidden_size, spec=spec, seed=seed, name=stack)
        module = model.get_submodule(f"{stack}.{place}")
        connections[stack] = connection
        handles.append(
            module.register_forward_pre_hook(_transport(module, connection), with_kwargs=True)
        )
    return Insertion(connections, handles)


def insert_down_projections(
    model: Any,
    *,
    block: int,
    spec: LinkSpec,
    seed: int,
    blocks: Sequence[int] | None = None,
) -> Insertion:
    """Computes A x of every LoRA layer in a block over the air: W = A, B is digital at the server.

    Channel uses are ceil(rank A / min(num_tx, num_rx)) per token and map; the frozen W0 x stays
    where it was. Rotation has no effect on such a map, see ``LinkSpec``.

    Args:
        model: as for ``insert_connection``, already wrapped by PEFT in place, A frozen.
        block: the block, by its index in the full model.
        spec: the link.
        seed: the run's seed.
        blocks: indices, in the full model, of the model's blocks in order; None if it is full.

    Raises:
        ModelError: the block is not there, has no LoRA layer, or its A is being tuned.
    """
    stacks = stack_paths(model)
    place = _place_of(model, block, blocks)
    connections: dict[str, AirModule] = {}
    handles = []
    masks: dict[str, torch.Tensor | None] = {}
    for name, module in model.named_modules():
        found = block_of(name, stacks)
        if found is None or found[1] != place or not name.endswith(_LORA_A):
            continue
        if module.weight.requires_grad:
            raise ModelError(
                f"connection.carries=lora_a: the channel computes A of '{name}', which is being "
                "tuned; choose peft.aggregation=freeze-a"
            )
        connection = Connection(
            width=module.weight.shape[1], spec=spec, seed=seed, name=name, weight=module.weight
        )
        connections[name] = connection
        handles.append(module.register_forward_hook(_projection(connection, found[0], masks)))
    if not connections:
        raise ModelError(
            f"connection.block={block} has no LoRA layer for connection.carries=lora_a; choose a "
            "tuned block (strategy.emulator.left and right say which) and peft=lora"
        )
    for stack in stacks:
        module = model.get_submodule(f"{stack}.{place}")
        handles.append(
            module.register_forward_pre_hook(_remember(module, stack, masks), with_kwargs=True)
        )
    return Insertion(connections, handles)


def gradients_return(model: Any, *, block: int, blocks: Sequence[int] | None = None) -> bool:
    """Tells whether anything in front of a cut is tuned, so that gradients cross it too.

    Args:
        model: as for ``insert_connection``, with its adapter; what is tuned requires gradients.
        block: the first block behind the cut, by its index in the full model.
        blocks: indices, in the full model, of the model's blocks in order; None if it is full.

    Raises:
        ModelError: the model does not have that block.
    """
    stacks = stack_paths(model)
    place = _place_of(model, block, blocks)
    for name, parameter in model.named_parameters():
        found = block_of(name, stacks)
        if found is None or not parameter.requires_grad:
            continue
        is_last = found[0] == stacks[-1]
        # whatever a decoder's blocks in front of the cut read of a tuned encoder counts
        if place > 0 and (found[1] < place or not is_last):
            return True
    return False


def padding_mask(attention_mask: torch.Tensor | None) -> torch.Tensor | None:
    """Returns [batch, tokens], true for real tokens, from what a block is given; None if all are.

    Args:
        attention_mask: [batch, tokens] with 0 for padding; or [batch, heads, queries, keys],
            boolean or added to the scores: a key that no query may look at is padding.
    """
    if attention_mask is None:
        return None
    if attention_mask.ndim == 2:
        return attention_mask != 0
    seen = attention_mask
    if attention_mask.dtype != torch.bool:
        seen = attention_mask > torch.finfo(attention_mask.dtype).min / 2
    return seen.flatten(1, 2).any(1)


def _place_of(model: Any, block: int, blocks: Sequence[int] | None) -> int:
    """Returns the index, in this model, of a block of the full model."""
    depth = len(model.get_submodule(stack_paths(model)[0]))
    there = list(range(depth)) if blocks is None else list(blocks)
    if block not in there:
        raise ModelError(
            f"connection.block={block} is not in this model, which holds the blocks {there}; "
            "choose one of them, or keep it with strategy.emulator.left, middle or right"
        )
    return there.index(block)


def _mask_reader(module: nn.Module) -> Callable[..., torch.Tensor | None]:
    """Returns what finds the padding mask among a block's arguments."""
    signature = inspect.signature(module.forward)

    def read(args: Any, kwargs: Any) -> torch.Tensor | None:
        given = signature.bind(*args, **kwargs).arguments
        return padding_mask(given.get("attention_mask"))

    return read


def _transport(module: nn.Module, connection: AirModule) -> Callable[..., Any]:
    """Returns the hook that sends a block's hidden states."""
    read = _mask_reader(module)

    def hook(_module: nn.Module, args: Any, kwargs: Any) -> Any:
        mask = read(args, kwargs)
        if args:
            return (connection(args[0], mask), *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": connection(kwargs["hidden_states"], mask)}

    return hook


def _remember(
    module: nn.Module, stack: str, masks: dict[str, torch.Tensor | None]
) -> Callable[..., None]:
    """Returns the hook that keeps a block's padding mask for the maps inside."""
    read = _mask_reader(module)

    def hook(_module: nn.Module, args: Any, kwargs: Any) -> None:
        masks[stack] = read(args, kwargs)

    return hook


def _projection(
    connection: Connection, stack: str, masks: dict[str, torch.Tensor | None]
) -> Callable[..., torch.Tensor]:
    """Returns the hook that puts a connection's output in place of a map's."""

    def hook(_module: nn.Module, args: Any, _output: torch.Tensor) -> torch.Tensor:
        mask = masks.get(stack)
        vectors = args[0]
        if mask is not None and mask.shape != vectors.shape[:-1]:
            mask = None  # cross-attention reads the other stack's states
        out: torch.Tensor = connection(vectors, mask)
        return out

    return hook
