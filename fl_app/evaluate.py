"""Measures a model on prepared examples."""

from typing import Any

import numpy as np
import torch

from fl_app.errors import DataError
from fl_app.tasks import Encoded, Task


def evaluate(model: Any, task: Task, encoded: Encoded, *, batch_size: int = 64) -> float:
    """Returns the task's measure over all examples (accuracy in [0, 1], or perplexity).

    Examples of like length share a batch, so little time goes into padding.

    Raises:
        DataError: there is nothing to measure on.
    """
    if len(encoded) == 0:
        raise DataError("the test set is empty; data.path must hold test rows")
    order = np.argsort(encoded.lengths, kind="stable")
    total = count = 0.0
    with torch.inference_mode():
        for start in range(0, len(order), batch_size):
            batch = task.batch(encoded, [int(i) for i in order[start : start + batch_size]])
            part, size = task.score(model, batch)
            total, count = total + part, count + size
    if count == 0:
        raise DataError("the test set has no token to predict; its texts are empty")
    return task.measure(total, count)
