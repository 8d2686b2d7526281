"""FLOPs and memory of one local step as a function of the layout.

The exact count behind the rule of thumb that a block costs 24 S d^2 + 4 S^2 d FLOPs forward
and as much again backward if it stands between the deepest tuned block and the loss.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from fl_app.resources.architecture import Architecture
from fl_app.resources.errors import ResourceError
from fl_app.resources.parts import behind_block
from fl_app.resources.tally import Input, Tally
from fl_app.resources.tuning import Tuning

_F32_BYTES = 4
_ADAMW_BYTES = 16
"""A tuned parameter in float32 with its gradient and AdamW's two moments."""


@dataclass(frozen=True)
class StepCost:
    """What one local step costs on any device.

    Attributes:
        forward_flops: FLOPs of the forward pass.
        backward_flops: FLOPs of the backward pass.
        tuned_params: tuned parameters, the head's included; an update holds as many reals.
        weight_bytes: all frozen weights.
        tuned_bytes: tuned parameters in float32 with gradient and AdamW's moments.
        activation_bytes: kept from forward to backward.
        workspace_bytes: the largest tensors that live for a moment only.
    """

    forward_flops: int
    backward_flops: int
    tuned_params: int
    weight_bytes: int
    tuned_bytes: int
    activation_bytes: int
    workspace_bytes: int

    @property
    def flops(self) -> int:
        """FLOPs of the step."""
        return self.forward_flops + self.backward_flops

    @property
    def memory_bytes(self) -> int:
        """Peak memory of the step."""
        return self.weight_bytes + self.tuned_bytes + self.activation_bytes + self.workspace_bytes


class StepModel:
    """Prices layouts of one model for one shape of batch.

    Args:
        architecture: the model's shapes.
        tuning: what a block's size means.
        batch: rows of a step, >= 1.
        sequence: tokens of a row, >= 1; models of images have their own number.
        target_tokens: tokens of a row of an encoder-decoder's decoder; None for ``sequence``.
        weight_bytes: bytes of a frozen weight, > 0 (2 for half precision, 0.5 for four bits).
        activation_bytes: bytes of an activation, > 0.

    Raises:
        ResourceError: a value out of range, or LoRA's targets name no map of the model.
    """

    def __init__(
        self,
        architecture: Architecture,
        tuning: Tuning,
        *,
        batch: int,
        sequence: int,
        target_tokens: int | None = None,
        weight_bytes: float = 4.0,
        activation_bytes: float = 4.0,
    ) -> None:
        target = sequence if target_tokens is None else target_tokens
        for name, count in (("batch", batch), ("sequence", sequence), ("target_tokens", target)):
            if count < 1:
                raise ResourceError(f"{name}={count} must be >= 1")
        for name, size in (("weight_bytes", weight_bytes), ("activation_bytes", activation_bytes)):
            if not 0.0 < size <= 8.0:
                raise ResourceError(f"{name}={size} must be above 0 and at most 8")
        if unknown := tuning.targets - architecture.map_names:
            raise ResourceError(
                f"targets {sorted(unknown)} name no map of a {architecture.model_type} model; "
                f"choose among {sorted(architecture.map_names)}"
            )
        self.architecture, self.tuning = architecture, tuning
        self._weight_bytes, self._activation_bytes = weight_bytes, activation_bytes
        read = architecture.fixed_tokens or sequence
        split = architecture.num_encoder_blocks
        self._encoder = Input(batch, read)
        self._last = Input(batch, target, read) if split else Input(batch, read)
        # Equal blocks share their accounts: a layout is priced by a few look-ups.
        shapes = {block: index for index, block in enumerate(dict.fromkeys(architecture.blocks))}
        self._shapes = [shapes[block] for block in architecture.blocks]
        self._accounts: dict[tuple[int, int, bool, bool], tuple[Tally, bool]] = {}
        self._fixed = self._head_tally(in_grad=False), self._head_tally(in_grad=True)
        self._workspace = self._workspace_reals()

    @property
    def num_blocks(self) -> int:
        """Blocks a layout must give a size."""
        return self.architecture.num_blocks

    def _account(self, index: int, size: int, grad: bool, memory_grad: bool) -> tuple[Tally, bool]:
        key = (self._shapes[index], size, grad, memory_grad)
        if key not in self._accounts:
            is_encoder = index < self.architecture.num_encoder_blocks
            at, tally, flow = self._encoder if is_encoder else self._last, Tally(), grad
            for part in self.architecture.blocks[index]:
                flow = part.walk(tally, at, self.tuning, size, grad=flow, memory_grad=memory_grad)
            width = self.architecture.width
            flow = behind_block(tally, at, self.tuning, width, size, grad=flow)
            self._accounts[key] = tally, flow
        return self._accounts[key]

    def _head_tally(self, *, in_grad: bool) -> Tally:
        """Counts everything outside the blocks; logits are counted apart."""
        tally, head, at = Tally(), self.architecture.head, self._last
        if self.architecture.patches is not None:  # one token of an image is no patch
            patches = at.batch * (at.tokens - 1)
            tally.frozen_map(self.architecture.patches, patches, in_grad=False)
        if self.architecture.norm is not None:
            tally.norm(self.architecture.norm, at.batch * at.tokens, in_grad=in_grad)
        rows = at.batch * (at.tokens if head.every_token else 1)
        for each in head.frozen:
            tally.frozen_map(each, rows, in_grad=in_grad)
        flow = in_grad
        views = at.batch * (at.tokens - 1) * self.architecture.width
        tally.saved_reals += views * (head.keeps_stream and bool(head.tuned))
        for each in head.tuned:
            flops = 2 * rows * each.d_in * each.d_out
            tally.forward_flops += flops
            tally.backward_flops += flops * (1 + flow)
            tally.saved_reals += rows * each.d_in
            tally.tuned_params += each.num_params
            flow = True
        return tally

    @property
    def _logits(self) -> int:
        """Reals of the logits that enter the loss: a classifier's are one row of each input."""
        head, at = self.architecture.head, self._last
        return at.batch * (1 if head.tuned else at.tokens) * head.num_logits

    def _workspace_reals(self) -> int:
        widest = max(
            max(each.d_in, each.d_out)
            for block in set(self.architecture.blocks)
            for part in block
            for each in part.maps
        )
        at = self._last
        # A tensor and its gradient, in the widest map or at the logits.
        return 2 * max(at.batch * max(at.tokens, at.memory_tokens) * widest, self._logits)

    def by_block(self, sizes: Sequence[int]) -> list[Tally]:
        """Returns what every block costs in this layout; do not change the accounts.

        Args:
            sizes: size of every block, in forward order; all 0 tunes the head alone.

        Raises:
            ResourceError: another number of blocks, or a negative size.
        """
        return self._walk(sizes)[0]

    def _walk(self, sizes: Sequence[int]) -> tuple[list[Tally], bool, bool]:
        """Returns the blocks' accounts, and who needs a gradient: last state, encoder's output."""
        chosen = [int(size) for size in sizes]
        if len(chosen) != self.num_blocks or min(chosen) < 0:
            raise ResourceError(
                f"sizes {chosen}: give {self.num_blocks} numbers >= 0, one for each block"
            )
        split = self.architecture.num_encoder_blocks
        tallies, grad, memory_grad = [], False, False
        for index, size in enumerate(chosen):
            if index == split and split > 0:
                memory_grad, grad = grad, False
            tally, grad = self._account(index, size, grad, memory_grad)
            tallies.append(tally)
        return tallies, grad, memory_grad

    def cost(self, sizes: Sequence[int]) -> StepCost:
        """Returns the cost of a step with this layout; arguments and errors as in ``by_block``."""
        tallies, grad, memory_grad = self._walk(sizes)
        total, shape, at = Tally(), self.architecture, self._last
        for tally in (*tallies, self._fixed[grad]):
            _add(total, tally)
        if memory_grad and shape.norm is not None:
            total.norm(shape.norm, self._encoder.batch * self._encoder.tokens, in_grad=True)
        total.saved_reals += total.keeps_memory * at.batch * at.memory_tokens * shape.width
        total.saved_reals += total.keeps_shared * at.tokens * shape.shared_per_token
        kept = total.saved_reals * self._activation_bytes
        return StepCost(
            forward_flops=total.forward_flops,
            backward_flops=total.backward_flops,
            tuned_params=total.tuned_params,
            weight_bytes=round((shape.num_params - shape.head.num_tuned) * self._weight_bytes),
            tuned_bytes=total.tuned_params * _ADAMW_BYTES,
            activation_bytes=round(kept) + (total.tuned_params > 0) * self._logits * _F32_BYTES,
            workspace_bytes=round(self._workspace * self._activation_bytes),
        )


def _add(total: Tally, more: Tally) -> None:
    total.forward_flops += more.forward_flops
    total.backward_flops += more.backward_flops
    total.saved_reals += more.saved_reals
    total.tuned_params += more.tuned_params
    total.keeps_memory |= more.keeps_memory
    total.keeps_shared |= more.keeps_shared
