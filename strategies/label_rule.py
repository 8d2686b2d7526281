"""What labels may be where devices send them to the server."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fl_app.errors import WireError
from fl_app.features_wire import COUNTS
from fl_app.tasks.language import IGNORED

LABELS = "labels"
"""Array name: labels of the batch."""
_MOST = 10**9
"""Examples of a class; sums of them then are exact."""


def label_rule(model: Any, task: str, *, with_counts: bool) -> "LabelRule":
    """Returns what labels may be.

    Args:
        model: with its head.
        task: the model's task.
        with_counts: whether the loss depends on a device's class counts.
    """
    per_token = task == "causal_lm"
    config = model.config
    return LabelRule(config.vocab_size if per_token else config.num_labels, per_token, with_counts)


@dataclass(frozen=True)
class LabelRule:
    """Labels of one task.

    Attributes:
        num_classes: C classes, or C tokens of the vocabulary.
        per_token: a label for every position of the last stack, ``IGNORED`` where there is no
            loss; otherwise one a row.
        with_counts: the device's examples of each class are needed beside them.
    """

    num_classes: int
    per_token: bool
    with_counts: bool

    def read(
        self, arrays: Mapping[str, NDArray[Any]], shape: tuple[int, ...]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Reads a batch's labels and the device's class counts.

        Args:
            arrays: of the payload.
            shape: rows and positions of the last stack, without a prompt.

        Returns:
            (labels [rows] or [rows, positions], counts [C]; none unless ``with_counts``).

        Raises:
            WireError: ``missing``, ``wrong-dtype``, ``wrong-shape`` or ``bad-labels``.
        """
        labels = _integers(arrays, LABELS, tuple(shape if self.per_token else shape[:1]))
        known = labels[labels != IGNORED] if self.per_token else labels
        if ((known < 0) | (known >= self.num_classes)).any():
            raise WireError("bad-labels", f"a label is not in 0..{self.num_classes - 1}")
        if not self.with_counts:
            return labels, np.zeros(0, np.int64)
        counts = _integers(arrays, COUNTS, (self.num_classes,))
        # without an example a device has no balance to adjust for
        if counts.min() < 0 or counts.max() > _MOST or counts.max() == 0:
            raise WireError("bad-labels", f"counts must be 0..{_MOST} and not all 0")
        return labels, counts


def _integers(
    arrays: Mapping[str, NDArray[Any]], name: str, shape: tuple[int, ...]
) -> NDArray[np.int64]:
    if name not in arrays:
        raise WireError("missing", f"no '{name}', and strategy.labels=server")
    if arrays[name].dtype != np.int64:
        raise WireError("wrong-dtype", f"'{name}' is {arrays[name].dtype}, must be int64")
    if arrays[name].shape != shape:
        raise WireError("wrong-shape", f"'{name}' is {arrays[name].shape}, must be {shape}")
    return arrays[name].copy()
