"""The head: everything behind the last block, run on the few states it reads."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from types import SimpleNamespace
from typing import Any

import torch

from fl_app.fomo.blocks import stack_paths
from fl_app.fomo.parts import DevicePart, head_inputs, last_blocks

Batch = dict[str, torch.Tensor]
LossFunction = Callable[[Any, Batch], torch.Tensor]
_PROBE_SEED = 0


class Head:
    """Final norms, pooler, classifier or language-model head of one device part.

    It can be called like a model, so a task's loss and score work on it with the batch that
    ``batch`` makes. It needs no token ids; labels enter only through the loss. The same object runs
    at the server where labels are there.

    Args:
        part: the device part; an adapter may wrap its model in place before or after.
    """

    def __init__(self, part: DevicePart) -> None:
        self._part = part
        self._cuts_prompt = part.task == "causal_lm" and part.num_stacks == 1
        self._filler, self._mark = _marker_ids(part.model.config)

    def __call__(
        self,
        *,
        states: torch.Tensor,
        readout: torch.Tensor,
        num_prompt: torch.Tensor | int = 0,
        **_unused: Any,
    ) -> Any:
        """Returns the model's output; only logits that depend on read states mean anything.

        Args:
            states: [num_readout, d] last states in the order of ``readout``.
            readout: bool [B, S'], see ``Features``.
            num_prompt: m; a decoder's logits at the prompt's positions are cut off.
        """
        empty = states.new_zeros(*readout.shape, states.shape[-1])
        full = empty.index_put((readout,), states)
        ids = torch.where(readout, self._mark, self._filler)
        return self._run(full, ids, int(num_prompt))

    def batch(
        self, states: torch.Tensor, readout: torch.Tensor, labels: torch.Tensor, num_prompt: int = 0
    ) -> Batch:
        """Returns what a task's ``loss`` and ``score`` take beside this head; arguments as above.

        Args:
            states: see ``__call__``.
            readout: see ``__call__``.
            labels: as in the task's own batch.
            num_prompt: see ``__call__``.
        """
        length = torch.tensor(num_prompt)
        return {"states": states, "readout": readout, "num_prompt": length, "labels": labels}

    def loss_gradient(
        self,
        states: torch.Tensor,
        readout: torch.Tensor,
        labels: torch.Tensor,
        loss: LossFunction,
        num_prompt: int = 0,
    ) -> tuple[float, torch.Tensor]:
        """Computes the loss and adds up ``.grad`` on the head's tunable parameters.

        Args:
            states: [num_readout, d], as received.
            readout: bool [B, S'].
            labels: as in the task's own batch.
            loss: the task's ``loss`` or ``local_loss``.
            num_prompt: m.

        Returns:
            (loss, its gradient with respect to ``states``).
        """
        leaf = states.detach().clone().requires_grad_()
        leaf.grad = torch.zeros_like(leaf)
        value = loss(self, self.batch(leaf, readout, labels, num_prompt))
        value.backward()  # type: ignore[no-untyped-call]
        return float(value.detach()), leaf.grad

    def readout(
        self, shape: torch.Size, batch: Batch, loss: LossFunction, num_prompt: int = 0
    ) -> torch.Tensor:
        """Finds the states of the last stack that the loss depends on.

        The head runs on random states, and the loss is differentiated at logits of zero, where no
        softmax is saturated; states with a gradient other than zero are read.

        Args:
            shape: [B, S', d] of the last stack's states.
            batch: the task's batch; token ids tell some classifiers which state to pool.
            loss: the task's loss.
            num_prompt: m.

        Returns:
            bool [B, S'].
        """
        source = torch.Generator().manual_seed(_PROBE_SEED)
        dtype = self._part.model.dtype
        states = torch.randn(shape, generator=source, dtype=dtype).requires_grad_()
        ids = torch.full(shape[:2], self._filler)
        if "input_ids" in batch and self._part.task != "causal_lm":
            ids[:, :num_prompt] = self._mark
            ids[:, num_prompt:] = batch["input_ids"]
        logits = self._run(states, ids, num_prompt).logits
        zero = torch.zeros_like(logits).requires_grad_()
        value = loss(lambda **_inputs: SimpleNamespace(logits=zero), batch)
        (slope,) = torch.autograd.grad(value, zero)
        (gradient,) = torch.autograd.grad(logits, states, slope)
        return (gradient != 0).any(-1)

    def _run(self, states: torch.Tensor, ids: torch.Tensor, num_prompt: int) -> Any:
        with _blocks_skipped(self._part.model), last_blocks(self._part.model)[-1].giving(states):
            output = self._part.model(**head_inputs(self._part, ids))
        if self._cuts_prompt:
            output.logits = output.logits[:, num_prompt:]
        return output


@contextmanager
def _blocks_skipped(model: Any) -> Iterator[None]:
    """Leaves only the taps in the stacks: what the blocks would compute is thrown away anyway."""
    with ExitStack() as restored:
        for path in stack_paths(model):
            stack = model.get_submodule(path)
            model.set_submodule(path, torch.nn.ModuleList([stack[-1]]))
            restored.callback(model.set_submodule, path, stack)
        yield


def _marker_ids(config: Any) -> tuple[int, int]:
    """Returns the ids of no token and of a read one, for heads that look for the text's end."""
    pad, end = getattr(config, "pad_token_id", None), getattr(config, "eos_token_id", None)
    filler = pad if isinstance(pad, int) and pad >= 0 else 0
    if isinstance(end, int) and end != filler:
        return filler, end
    return filler, 1 if filler == 0 else 0
