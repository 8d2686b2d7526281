"""A look at the gradient before the first round: what LoRA could gain in which block.

To first order a rank-r change of a frozen map W lowers the loss in proportion to the sum of the r
largest squared singular values of the loss's gradient with respect to W. A unit is one rank in
every adapted map of a block, so its gain is the sum over these maps. That is the gain of a unit
whose A and B are both free; with A frozen a unit cannot turn to the best direction, and the gains
are those of the maps, not of the A that was drawn. For bottleneck adapters the map is one of zeros
that is added behind the block, see ``Bottlenecks.probed``.
"""

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray

from fl_app.finetune import LocalTuning, local_batches, tune
from fl_app.fomo.adapter import Adapter, is_head
from fl_app.layout.greedy import first_order_gains
from fl_app.layout.prefix import block_number
from fl_app.tasks import Encoded, Task

Gains = Mapping[int, NDArray[np.float64]]
"""Block of the full model to the gains [largest] of its units, falling."""


def gradient_gains(
    adapter: Adapter,
    task: Task,
    encoded: Encoded,
    tuning: LocalTuning,
    *,
    batches: int,
    largest: int,
    rng: np.random.Generator,
) -> dict[int, NDArray[np.float64]]:
    """Returns the gains of all tuned blocks; the adapter is left as it was.

    Args:
        adapter: at its start, where B is 0 and the model computes as if frozen.
        task: gives batches and the loss.
        encoded: the rows, at least one.
        tuning: of the head, which is tuned alone for ``max_steps`` steps first, and then put back;
            0 steps, or no head, leave it as drawn. Its batch size is that of the gradient, too.
        batches: batches that the gradient is the mean of; fewer where there are fewer rows.
        largest: gains a block, filled up with 0 where its maps have fewer singular values.
        rng: orders the rows.
    """
    head = {name: p for name, p in adapter.parameters.items() if is_head(name)}
    start = {name: p.detach().clone() for name, p in head.items()}
    if head and tuning.max_steps != 0:
        tune(adapter.model, head, task, encoded, tuning, rng)
    order = local_batches(encoded, batch_size=tuning.batch_size, epochs=1, rng=rng)
    taken = [indices for indices, _ in zip(order, range(batches), strict=False)]
    loss_of = task.local_loss(encoded, tuning.logit_adjustment)
    try:
        with adapter.probed() as maps:
            for indices in taken:
                loss = loss_of(adapter.model, task.batch(encoded, indices)) / len(taken)
                loss.backward()  # type: ignore[no-untyped-call]
            gains = _gains_of(maps, largest)
    finally:
        for parameter in adapter.parameters.values():
            parameter.grad = None
        with torch.no_grad():
            for name, parameter in head.items():
                parameter.copy_(start[name])
    return gains


def _gains_of(
    maps: Mapping[str, torch.nn.Parameter], largest: int
) -> dict[int, NDArray[np.float64]]:
    """Returns the gains of every block's units from the gradients of its maps."""
    gains: dict[int, NDArray[np.float64]] = {}
    for name, weight in maps.items():
        row = np.zeros(largest)
        if weight.grad is not None:  # none flows in front of what only hidden heads would read
            found = first_order_gains(weight.grad.double().numpy(), largest)
            row[: len(found)] = found
        block = block_number(name)
        gains[block] = gains.get(block, np.zeros(largest)) + row
    return dict(sorted(gains.items()))
