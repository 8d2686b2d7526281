"""Counts what a real step of a real model does: FLOPs, kept activations, tuned parameters."""

from typing import Any, NamedTuple

import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count


class Counted(NamedTuple):
    """Counts of one step; ``saved_bytes`` are distinct storages that are no weights."""

    forward_flops: int
    backward_flops: int
    saved_bytes: int
    tuned_params: int


def _fused(q: Any, k: Any, v: Any, *rest: Any, out_shape: Any = None, **options: Any) -> int:
    return int(sdpa_flop_count(q, k, v))


def _fused_back(out: Any, q: Any, k: Any, v: Any, *rest: Any, **options: Any) -> int:
    return int(sdpa_backward_flop_count(out, q, k, v))


_FUSED_ON_CPU = {  # torch counts the kernels of other devices only
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _fused,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _fused_back,
}


def count_step(model: Any, inputs: dict[str, Any]) -> Counted:
    """Runs one forward and one backward pass of ``model(**inputs).loss`` and counts."""
    own = [*model.parameters(), *model.buffers()]
    known = {tensor.untyped_storage().data_ptr() for tensor in own}
    held: dict[int, tuple[int, torch.Tensor]] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if tensor.is_floating_point() and storage.data_ptr() not in known:
            held[storage.data_ptr()] = storage.nbytes(), tensor  # held: an address is not reused
        return tensor

    forward = FlopCounterMode(display=False, custom_mapping=_FUSED_ON_CPU)
    with forward, torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = model(**inputs).loss
    backward = FlopCounterMode(display=False, custom_mapping=_FUSED_ON_CPU)
    with backward:
        loss.backward()
    return Counted(
        forward_flops=forward.get_total_flops(),
        backward_flops=backward.get_total_flops(),
        saved_bytes=sum(size for size, _ in held.values()),
        tuned_params=sum(p.numel() for p in model.parameters() if p.requires_grad),
    )
