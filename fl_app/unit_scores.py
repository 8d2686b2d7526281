"""AdaLoRA's scores of units, taken while a device tunes (Zhang et al. 2023, arXiv:2303.10512).

A unit is one rank of a block: a row of A and a column of B in every adapted map of the block. Its
score is the mean over these maps of AdaLoRA's: that of the row plus that of the column. What is not
tuned has no gradient and adds nothing: with A frozen the column of B alone says what a unit is
worth. A bottleneck adapter, with D for A and U for B, counts as one map.
"""

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray

from fl_app.errors import ModelError
from fl_app.layout.prefix import block_number, unit_axis
from fl_app.layout.sensitivity import Sensitivity


class UnitScores:
    """Scores units by the steps of one round; nothing is kept from earlier ones.

    The gradient is that of the loss at the values it is multiplied with, before clipping: theta *
    gradient is to first order what setting the entry to 0 would change of the loss.

    Args:
        parameters: those that are tuned, by canonical name; those with units are looked at.
        beta1: smoothing of the importance, in [0, 1).
        beta2: smoothing of its uncertainty, in [0, 1).
    """

    def __init__(
        self, parameters: Mapping[str, torch.nn.Parameter], *, beta1: float, beta2: float
    ) -> None:
        self._factors = {
            name: (parameter, axis)
            for name, parameter in parameters.items()
            if (axis := unit_axis(name)) is not None
        }
        self._sensitivity = Sensitivity(beta1=beta1, beta2=beta2)

    def update(self) -> None:
        """Takes one step; to be called between back-propagation and the optimiser.

        Raises:
            ModelError: a factor has no gradient.
        """
        values, gradients = {}, {}
        for name, (parameter, _) in self._factors.items():
            if parameter.grad is None:
                raise ModelError(f"'{name}' has no gradient to score; call after back-propagation")
            values[name] = parameter.detach().numpy()
            gradients[name] = parameter.grad.numpy()
        self._sensitivity.update(values, gradients)

    def by_block(self) -> dict[int, NDArray[np.float64]]:
        """Returns block of the full model to the scores [rank] of its units."""
        sums: dict[int, NDArray[np.float64]] = {}
        maps: dict[int, set[str]] = {}
        for name, (_, axis) in self._factors.items():
            block = block_number(name)
            scores = self._sensitivity.score(name).mean(axis=1 - axis)
            sums[block] = sums.get(block, np.zeros_like(scores)) + scores
            maps.setdefault(block, set()).add(name.rsplit(".", 2)[0])
        return {block: total / len(maps[block]) for block, total in sorted(sums.items())}
