"""One small loop that tunes what stands around frozen members: attention, projectors."""

from collections.abc import Callable, Sequence

import torch
from torch import nn

from fl_app.prompts.batched import Batch
from fl_app.prompts.errors import PromptError


def fit_parameters(
    loss_of: Callable[[Batch], torch.Tensor],
    parameters: Sequence[nn.Parameter],
    batches: Sequence[Batch],
    *,
    lr: float,
    epochs: int = 1,
) -> list[float]:
    """Tunes parameters in place with AdamW, without weight decay.

    Args:
        loss_of: the loss of a batch, in nats.
        parameters: what is tuned.
        batches: labelled batches, gone through in order.
        lr: learning rate, > 0.
        epochs: passes over the batches.

    Returns:
        The loss of every step, before it.

    Raises:
        PromptError: ``not-finite``, the loss or what was tuned.
    """
    optimiser = torch.optim.AdamW(parameters, lr=lr, weight_decay=0.0)
    losses = []
    for _ in range(epochs):
        for batch in batches:
            loss = loss_of(batch)
            if not torch.isfinite(loss):
                raise PromptError("not-finite", f"the loss is {loss.item()}; lower lr={lr}")
            losses.append(float(loss.detach()))
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
    if not all(bool(one.isfinite().all()) for one in parameters):
        raise PromptError("not-finite", f"what was tuned is not finite; lower lr={lr}")
    return losses
