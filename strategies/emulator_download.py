"""Federated DEFT by emulator download: devices tune against a compressed stand-in of the FoMo."""

import logging
from collections.abc import Iterable
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, Message
from flwr.serverapp import Grid
from typing_extensions import override

from fl_app import wire
from fl_app.errors import WireError
from fl_app.layout.prefix import unit_axis
from fl_app.layout_wire import RANK_BYTES
from fl_app.records import blob_of, blob_record, to_blob
from fl_app.updates import Update
from strategies.base import FederatedDeft
from strategies.crossings import Crossings
from strategies.judge import judge
from strategies.round_log import RoundLog
from strategies.schedule import SHARE_BYTES

HASH_BYTES = 32
"""Of a content hash, of which an order names one for every stack so far."""
log = logging.getLogger("deft")


class EmulatorDownload(FederatedDeft):
    """Sends each device the emulator once; later rounds carry only adapters.

    Args:
        crossings: books what devices' neural connections cost.
        **collaborators: see ``FederatedDeft``; the blob is the packed emulator.
    """

    def __init__(self, *, crossings: Crossings, **collaborators: Any) -> None:
        super().__init__(**collaborators)
        self._crossings = crossings
        self._wrapped: dict[tuple[int, tuple[tuple[int, int], ...]], ArrayRecord] = {}
        """The round's adapters as they cross the wire, by group and layout."""

    @override
    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Draws devices and writes one message to each."""
        self.open_round(server_round, arrays, grid)
        self._wrapped = {}
        self._sent = {device: self._write(order) for device, order in self._orders.items()}
        return list(self._sent.values())

    @override
    def collect(self, replies: Iterable[Message], book: RoundLog) -> list[wire.Reply]:
        """Returns the answers that count, by device; books everybody else as dropped."""
        answered = self._resend_lost(self._by_device(replies))
        return [
            reply
            for device in sorted(self._orders)
            for reply in self._judge(device, answered.get(device, []), book)
        ]

    def _write(self, order: wire.Order) -> Message:
        """Writes one device's message and books its payload."""
        key = self.groups.of[order.device], tuple(order.layout.items())
        if key not in self._wrapped:
            self._wrapped[key] = blob_record(to_blob(_sent(order)))
        arrays = self._wrapped[key]
        self._book("downlink", order, "adapter", len(blob_of(arrays)))
        self._book("downlink", order, "adapter", sum(map(len, order.new_stacks.values())))
        self._book("downlink", order, "control", HASH_BYTES * len(order.stacks or ()))
        if not self._scheduler.is_shared:
            told = RANK_BYTES * len(order.layout) + SHARE_BYTES * bool(self._planned.turns)
            self._book("downlink", order, "control", told)
        listed = sum(len(own) for own in order.units.values())
        self._book("downlink", order, "control", RANK_BYTES * listed)
        if order.emulator is not None:
            self._book("downlink", order, "emulator", len(order.emulator))
        return wire.order_message(order, self._roster.node_of[order.device], arrays)

    def _resend_lost(self, answered: dict[int, list[Message]]) -> dict[int, list[Message]]:
        """Sends the emulator, and stacks, again within the round to devices that lost a copy."""
        # Who asks for it and answers all the same has answered twice; that is judged later.
        lost = [d for d, rs in answered.items() if len(rs) == 1 and wire.lacks_emulator(rs[0])]
        if not lost:
            return answered
        log.warning("devices %s have no undamaged emulator; sending it again", sorted(lost))
        for device in sorted(lost):
            self.holdings.forget(device)
            old = self._orders[device]
            again: dict[str, Any] = {"emulator": self.holdings.blob_for(device)}
            again["new_stacks"] = self.holdings.stacks_for(device)
            order = wire.Order(**{**vars(old), **again})
            self._orders[device] = order
            self._sent[device] = self._write(order)
        repeated = [self._sent[device] for device in sorted(lost)]
        replies = self._grid.send_and_receive(repeated, timeout=self._timeout_s)
        kept = {device: r for device, r in answered.items() if device not in lost}
        return {**kept, **self._by_device(replies)}

    def _judge(self, device: int, messages: list[Message], book: RoundLog) -> list[wire.Reply]:
        """Accepts a device's one valid answer; books it as dropped otherwise."""
        order = self._orders[device]
        if not self._uplink.is_radio:  # a radio is booked for what it sends, not for this message
            for message in messages:
                self._book("uplink", order, "update", wire.uplink_bytes(message))
                self._book("uplink", order, "scores", wire.uplink_bytes(message, wire.SCORES))
        self._crossings.book(order, messages)
        try:
            reply = self._accepted(judge(messages, **self._expected(order)))
        except WireError as error:
            log.warning("round %d: device %d dropped: %s", order.round, device, error)
            book.drop(device, error.reason)
            return []
        self.holdings.acknowledge(device)
        self._ledger.book_seconds(
            round=order.round, device=device, phase="local", seconds=reply.seconds
        )
        return [reply]


def _sent(order: wire.Order) -> Update:
    """Returns what of the adapter a device is sent: not what it draws itself."""
    if order.stacks is None:
        return order.adapter
    return {name: array for name, array in order.adapter.items() if unit_axis(name) is None}
