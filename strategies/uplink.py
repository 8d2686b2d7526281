"""How updates reach the server: the link between the devices' answers and the server's rule.

A digital link hands over every device's update; a link that adds in the air can only hand over one
mean. Both answer with rows and weights, so the rule that follows needs no case distinction.
"""

from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Received:
    """What the server got.

    Attributes:
        rows: [num_rows, num_params] float32 updates; one per device, or a single mean.
        weights: [num_rows] relative weights, > 0.
        report: figures of this round's transmission by name, for the round's metrics.
    """

    rows: NDArray[np.float32]
    weights: NDArray[np.float64]
    report: dict[str, float] = field(default_factory=dict)


class Uplink(Protocol):
    """One way for updates to reach the server."""

    def receive(
        self,
        updates: NDArray[np.float32],
        weights: NDArray[np.float64],
        rng: np.random.Generator,
    ) -> Received:
        """Transmits one round's updates.

        Args:
            updates: [num_devices, num_params] float32, rows sorted by device; not changed.
            weights: [num_devices] numbers of examples, > 0.
            rng: the only source of randomness.
        """
        ...


class IdealUplink:
    """An error-free digital link: every update arrives as it was sent."""

    def receive(
        self,
        updates: NDArray[np.float32],
        weights: NDArray[np.float64],
        rng: np.random.Generator,
    ) -> Received:
        """Hands the rows over."""
        return Received(rows=updates, weights=weights)
