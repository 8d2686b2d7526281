"""Settings of local tuning that take plain steps, and rows; tests change what matters to them."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from fl_app.finetune import LocalTuning
from fl_app.tasks import Encoded


def tuning_of(**changes: Any) -> LocalTuning:
    """Returns two steps on batches of four, without decay, adjustment or pull, with changes."""
    plain: dict[str, Any] = {
        "epochs": 1,
        "max_steps": 2,
        "batch_size": 4,
        "lr": 0.01,
        "head_lr": 0.01,
        "lr_final": 1.0,
        "eps": 1e-8,
        "weight_decay": 0.0,
        "clip_norm": 1.0,
        "logit_adjustment": 0.0,
        "proximal_mu": 0.0,
    }
    return LocalTuning(**(plain | changes))


def free_tuning(**changes: Any) -> LocalTuning:
    """Returns one epoch of as many steps as it has, two learning rates and no clipping."""
    return tuning_of(**({"max_steps": None, "head_lr": 0.002, "clip_norm": 1e9} | changes))


def token_rows(lengths: Sequence[int]) -> Encoded:
    """Returns rows of these lengths; their tokens do not matter."""
    size = len(lengths)
    return Encoded([[0]] * size, [0] * size, np.array(lengths, np.int64))
