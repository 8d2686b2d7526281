"""Federated DEFT with the FoMo at the server: what all variants share.

Devices get their part of the model once; a round is a conversation with those who hold it.
"""

import logging
from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, Message
from flwr.serverapp import Grid
from typing_extensions import override

from fl_app import front_wire, wire
from fl_app.errors import WireError
from fl_app.payload import Scalar
from fl_app.updates import Update
from strategies.base import FederatedDeft
from strategies.exchange import Exchange
from strategies.round_log import RoundLog
from strategies.transport import Transport

log = logging.getLogger("deft")


@dataclass(frozen=True)
class Finished:
    """One device's round.

    Attributes:
        update: tuned minus received adapter.
        facts: what the device says of it, see ``fl_app.wire.check_update``.
    """

    update: Update
    facts: Mapping[str, Scalar]


class PartDownload(FederatedDeft):
    """Sends devices their part of the model, and opens the round's conversation.

    Args:
        transport: the way to the devices.
        **collaborators: see ``FederatedDeft``; the blob is the packed device part.
    """

    def __init__(self, *, transport: Transport, **collaborators: Any) -> None:
        super().__init__(**collaborators)
        self._transport = transport

    @abstractmethod
    def converse(
        self, exchange: Exchange, devices: Sequence[int], number: int, book: RoundLog
    ) -> dict[int, Finished]:
        """Makes the local steps of a round.

        Args:
            exchange: the way to the devices.
            devices: those that hold their part, ascending.
            number: server round.
            book: who is lost is booked here.

        Returns:
            What every device that came through made.
        """

    @override
    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Draws devices, and sends those who lack it their part of the model."""
        self.open_round(server_round, arrays, grid)
        self._sent = {}
        for device, order in self._orders.items():
            if order.emulator is not None:
                self._book("downlink", order, "emulator", len(order.emulator))
                front = front_wire.FrontOrder(device, order.model_hash, order.emulator)
                self._sent[device] = front_wire.front_message(front, self._roster.node_of[device])
        return list(self._sent.values())

    @override
    def collect(self, replies: Iterable[Message], book: RoundLog) -> list[wire.Reply]:
        """Runs the round's local steps with every device that holds its part."""
        answered = self._by_device(replies)
        for device in self._sent:
            try:
                front_wire.check_front_reply(answered.get(device, []), device)
                self.holdings.acknowledge(device)
            except WireError as error:
                self._drop(device, error, book)
        ready = [d for d in self._orders if self._roster.holds(d, self.model_hash)]
        number = next(iter(self._orders.values())).round
        with self._transport.open(self._grid, number) as exchange:
            finished = self.converse(exchange, ready, number, book)
        for device in book.dropped.get("no-emulator", []):
            self.holdings.forget(device)  # it is sent again in the next round
        return [reply for d in sorted(finished) for reply in self._accept(d, finished[d], book)]

    @override
    def close(self) -> None:
        """Closes the transport."""
        self._transport.close()

    def _book_bytes(self, link: str, device: int, what: str, size: int) -> None:
        if what == "update" and self._uplink.is_radio:
            return  # a radio is booked for what it sends, not for this message
        self._book(link, self._orders[device], what, size)

    def _accept(self, device: int, finished: Finished, book: RoundLog) -> list[wire.Reply]:
        order = self._orders[device]
        try:
            reply = wire.check_update(finished.update, finished.facts, **self._expected(order))
            reply = self._accepted(reply)
        except WireError as error:
            self._drop(device, error, book)
            return []
        self._ledger.book_seconds(
            round=order.round, device=device, phase="local", seconds=reply.seconds
        )
        return [reply]

    def _drop(self, device: int, error: WireError, book: RoundLog) -> None:
        log.warning("round %d: device %d dropped: %s", self._orders[device].round, device, error)
        book.drop(device, error.reason)
