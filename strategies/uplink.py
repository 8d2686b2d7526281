"""How updates reach the server: the link between the devices' answers and the server's rule.

A digital link may hand over every device's update; a link that adds in the air can only hand over
one mean. Both answer with rows and weights, so the rule that follows needs no case distinction.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Sent:
    """What devices send in one round.

    Attributes:
        updates: [num_devices, num_params] float32; not to be changed.
        weights: [num_devices] numbers of examples, > 0.
        round: server round.
        devices: [num_devices] partition indices, ascending.
        sizes: lengths of the consecutive tensors that make up a row.
        presence: [num_devices, num_params] bool, False where a device holds no such entry and sends
            none; a mean is then over those who hold an entry. None where all hold all.
        bandwidths_hz: [num_devices] shares of the band by schedule, with ``presence``; None where
            the channel shares it itself.
        score_bytes: [num_devices] bytes of scores, digital side information of every channel; None
            for none.
    """

    updates: NDArray[np.float32]
    weights: NDArray[np.float64]
    round: int
    devices: Sequence[int]
    sizes: Sequence[int]
    presence: NDArray[np.bool_] | None = None
    bandwidths_hz: NDArray[np.float64] | None = None
    score_bytes: NDArray[np.int64] | None = None

    @property
    def beside(self) -> NDArray[np.int64]:
        """[num_devices] bytes that go along with an update."""
        none = np.zeros(len(self.updates), np.int64)
        return none if self.score_bytes is None else self.score_bytes


@dataclass(frozen=True)
class Airtime:
    """What a round cost on the radio, for the ledger.

    Attributes:
        channel_uses: complex symbols, all devices together, side information included.
        control_uses: those of side information alone.
        seconds: until the last symbol.
        joules: [num_devices] transmit energy.
        payload_bytes: [num_devices] bytes of updates sent digitally.
        control_bytes: [num_devices] bytes of digital side information, ``Sent.beside`` included.
        announced_bytes: bytes that the server sends every device before it transmits.
    """

    channel_uses: int
    control_uses: int
    seconds: float
    joules: NDArray[np.float64]
    payload_bytes: NDArray[np.int64]
    control_bytes: NDArray[np.int64]
    announced_bytes: int = 0


@dataclass(frozen=True)
class Received:
    """What the server got.

    Attributes:
        rows: [num_rows, num_params] float32 updates: one per device, or a single mean, or none.
        weights: [num_rows] relative weights, > 0.
        is_heard: [num_devices] bool; False for a device nothing arrived from.
        report: figures of this round's transmission by name, for the round's metrics.
        airtime: what it cost; None where bytes are all that counts.
    """

    rows: NDArray[np.float32]
    weights: NDArray[np.float64]
    is_heard: NDArray[np.bool_]
    report: dict[str, float] = field(default_factory=dict)
    airtime: Airtime | None = None


class Uplink(Protocol):
    """One way for updates to reach the server."""

    @property
    def is_radio(self) -> bool:
        """Whether the cost is that of ``Received.airtime``, and not of the messages simulated."""
        ...

    def receive(self, sent: Sent, rng: np.random.Generator) -> Received:
        """Transmits one round's updates.

        Args:
            sent: who sends what; not changed.
            rng: the only source of randomness besides the channel itself.
        """
        ...

    def carry(
        self, server_round: int, devices: Sequence[int], num_bytes: Sequence[int]
    ) -> Airtime | None:
        """Returns what digital side information alone takes, no update beside it.

        Args:
            server_round: 0 for what is asked before the first round.
            devices: who sends, by partition id, ascending; at least one.
            num_bytes: of every device, > 0.

        Returns:
            None where bytes are all that counts.
        """
        ...


class IdealUplink:
    """An error-free digital link: every update arrives as it was sent."""

    is_radio = False

    def receive(self, sent: Sent, rng: np.random.Generator) -> Received:
        """Hands the rows over."""
        everybody = np.ones(len(sent.updates), dtype=np.bool_)
        return Received(rows=sent.updates, weights=sent.weights, is_heard=everybody)

    def carry(
        self, server_round: int, devices: Sequence[int], num_bytes: Sequence[int]
    ) -> Airtime | None:
        """Returns None."""
        return None
