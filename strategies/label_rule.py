"""What labels may be where devices send them to the server."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fl_app.errors import WireError
from fl_app.tasks.language import IGNORED

LABELS, TARGETS = "labels", "targets"
"""Array names: labels of the batch, classes of all the device's examples."""


def label_rule(model: Any, task: str) -> "LabelRule":
    """Returns what labels may be.

    Args:
        model: with its head.
        task: the model's task.
    """
    per_token = task == "causal_lm"
    config = model.config
    return LabelRule(config.vocab_size if per_token else config.num_labels, per_token)


@dataclass(frozen=True)
class LabelRule:
    """Labels of one task.

    Attributes:
        num_classes: C classes, or C tokens of the vocabulary.
        per_token: a label for every position of the last stack, ``IGNORED`` where there is no
            loss; otherwise one a row.
    """

    num_classes: int
    per_token: bool

    def read(
        self, arrays: Mapping[str, NDArray[Any]], shape: tuple[int, ...]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Reads a batch's labels and the device's targets.

        Args:
            arrays: of the payload.
            shape: rows and positions of the last stack, without a prompt.

        Returns:
            (labels [rows] or [rows, positions], targets [examples], none for language models).

        Raises:
            WireError: ``missing``, ``wrong-dtype``, ``wrong-shape`` or ``bad-labels``.
        """
        for name in (LABELS, TARGETS):
            if name not in arrays:
                raise WireError("missing", f"no '{name}', and strategy.labels=server")
            if arrays[name].dtype != np.int64:
                raise WireError("wrong-dtype", f"'{name}' is {arrays[name].dtype}, must be int64")
        labels, targets = arrays[LABELS].copy(), arrays[TARGETS].copy()
        wanted = tuple(shape) if self.per_token else tuple(shape[:1])
        # without a class of its own a device has no balance to adjust for
        if labels.shape != wanted or targets.ndim != 1 or bool(targets.size) == self.per_token:
            raise WireError(
                "wrong-shape",
                f"labels {labels.shape} and targets {targets.shape}; labels must be {wanted}, "
                f"targets {'none' if self.per_token else 'one or more'}",
            )
        known = labels[labels != IGNORED] if self.per_token else labels
        for values in (known, targets):
            if ((values < 0) | (values >= self.num_classes)).any():
                raise WireError("bad-labels", f"a label is not in 0..{self.num_classes - 1}")
        return labels, targets
