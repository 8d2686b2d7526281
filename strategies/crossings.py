"""What devices' neural connections cost: channel uses, seconds, joules and side information."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from flwr.app import ConfigRecord, Message

from fl_app import wire
from fl_app.errors import WireError
from fl_app.ledger import Ledger


@dataclass(frozen=True, kw_only=True)
class Crossings:
    """Books what crossed the connections of a run.

    A device knows what crossed and says so in its reply. A reply whose update is refused is booked
    all the same; a device that stays silent, or reports an error, took time on air that nobody
    knows of, and none is booked. Of several replies to one order the first that counts is booked:
    the work was done once.

    Attributes:
        ledger: where it is booked.
        bandwidth_hz: channel uses a second, > 0; devices take turns.
        tx_power: mean power of a device in W.
        gradient_tx_power: mean power of the server in W.
    """

    ledger: Ledger
    bandwidth_hz: float
    tx_power: float
    gradient_tx_power: float

    def book(self, order: wire.Order, messages: Sequence[Message]) -> None:
        """Books what one device's replies say."""
        found = (_counts(message, order) for message in messages)
        counts = next((counts for counts in found if counts), None)
        if counts is not None:
            self.book_counts(order.round, order.device, counts)

    def book_counts(self, round: int, device: int, counts: Mapping[str, int]) -> None:
        """Books what crossed one device's connection; adds up.

        Args:
            round: server round.
            device: partition index.
            counts: a number >= 0 for each of ``wire.CROSSED``.
        """
        forward_s = counts["forward_uses"] / self.bandwidth_hz
        backward_s = counts["backward_uses"] / self.bandwidth_hz
        self.ledger.book_connection(
            round=round,
            uses=counts["forward_uses"] + counts["backward_uses"],
            seconds=forward_s + backward_s,
            joules=self.tx_power * forward_s,
            server_joules=self.gradient_tx_power * backward_s,
        )
        place = {"round": round, "device": device}
        self.ledger.book(**place, link="uplink", what="control", num_bytes=counts["forward_bytes"])
        self.ledger.book(
            **place, link="downlink", what="control", num_bytes=counts["backward_bytes"]
        )


def _counts(message: Message, order: wire.Order) -> Mapping[str, int]:
    """Returns a reply's counts; nothing where it has none that make sense.

    A reply to another order has none either: that one's cost was booked with it.
    """
    if message.has_error():
        return {}
    config = message.content.config_records.get(wire.CONFIG, ConfigRecord())
    if (config.get(wire.ROUND), config.get(wire.DEVICE)) != (order.round, order.device):
        return {}
    try:
        return wire.counts_of(message.content)
    except WireError:
        return {}
