"""What every task offers: prepared inputs, a loss, and a measure of success."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from fl_app.data.examples import Examples

Batch = dict[str, torch.Tensor]
LossFunction = Callable[[Any, Batch], torch.Tensor]


@dataclass(frozen=True)
class Columns:
    """Names of the columns a task reads; ``prompt`` may be None for plain text."""

    text: str = "text"
    label: str = "label"
    prompt: str | None = "prompt"
    completion: str = "completion"
    image: str = "image"


@dataclass(frozen=True)
class Encoded:
    """Prepared examples.

    Attributes:
        rows: one prepared input per example (token ids, or an image [channels, height, width]).
        targets: what the loss needs per example.
        lengths: tokens per example; examples of like length are batched together.
    """

    rows: list[Any]
    targets: list[Any]
    lengths: NDArray[np.int64]

    def __len__(self) -> int:
        """Number of examples."""
        return len(self.rows)


class Goal(Protocol):
    """What tuning needs of a task."""

    def batch(self, encoded: Encoded, indices: Sequence[int]) -> Batch:
        """Assembles one padded batch."""
        ...

    def local_loss(self, encoded: Encoded, logit_adjustment: float) -> LossFunction:
        """Returns the loss a device with these examples minimises."""
        ...


class Task(Goal, Protocol):
    """One task: inputs, loss, measure."""

    metric: str
    higher_is_better: bool

    def encode(self, examples: Examples) -> Encoded:
        """Prepares examples once."""
        ...

    def loss(self, model: Any, batch: Batch) -> torch.Tensor:
        """Mean loss of a batch (over examples, or over completion tokens)."""
        ...

    def class_shares(self, encoded: Encoded) -> tuple[float, ...]:
        """Returns the share of each class in these rows; empty without rows or classes."""
        ...

    def class_counts(self, encoded: Encoded) -> NDArray[np.int64]:
        """Returns the examples of each class, [C]; empty without classes."""
        ...

    def adjusts(self, logit_adjustment: float) -> bool:
        """Tells whether a device's loss depends on its own class counts."""
        ...

    def logit_offset(self, counts: NDArray[np.int64], logit_adjustment: float) -> torch.Tensor:
        """Returns what such a loss adds to logits, [C] or a 0; of ``class_counts``."""
        ...

    def counted_loss(self, counts: NDArray[np.int64], logit_adjustment: float) -> LossFunction:
        """Returns the same of a device with these ``class_counts``; not read unless ``adjusts``."""
        ...

    def score(self, model: Any, batch: Batch) -> tuple[float, float]:
        """Returns (sum, count) whose ratio over all batches gives the measure."""
        ...

    def measure(self, total: float, count: float) -> float:
        """Turns the totals of ``score`` into the measure."""
        ...


def pad(rows: Sequence[Sequence[int]], filler: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Right-pads integer rows; returns ids and mask, both [rows, longest]."""
    longest = max(len(row) for row in rows)
    ids = np.full((len(rows), longest), filler, np.int64)
    mask = np.zeros((len(rows), longest), np.int64)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = row
        mask[i, : len(row)] = 1
    return torch.from_numpy(ids), torch.from_numpy(mask)
