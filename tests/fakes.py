"""A federation inside the test process whose devices misbehave on demand, before the test's eyes.

``FaultyGrid`` is the in-process grid with two additions: it spoils or loses chosen replies, and it
keeps a record of every message that crossed it, so that a test can look at the wire itself.
"""

import copy
import dataclasses
import zlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp

from fl_app import wire
from fl_app.local_grid import LocalGrid
from fl_app.records import blob_of, blob_record, from_blob, to_blob
from fl_app.seeding import generator
from fl_app.updates import Update

Fault = Callable[[Message, Message], list[Message]]
"""Turns (what the server sent, what the device would answer) into what the server receives."""


@dataclasses.dataclass(frozen=True)
class Exchange:
    """One message to a device and what came back of it."""

    round: int
    device: int
    sent: Message
    received: list[Message]

    @property
    def downlink_bytes(self) -> dict[str, int]:
        """Payload bytes to the device by record name."""
        return payload_bytes(self.sent)

    @property
    def updates(self) -> list[Update]:
        """The updates that came back, as they were serialised."""
        return [
            from_blob(blob_of(message.content.array_records[wire.UPDATE]))
            for message in self.received
            if not message.has_error() and wire.UPDATE in message.content.array_records
        ]


class FaultyGrid(LocalGrid):
    """An in-process grid with faults, a log of all traffic and replies in any order.

    Args:
        app: the ClientApp of the devices.
        num_nodes: number of nodes.
        run_config: reaches the devices unchanged.
        faults: what happens to an answer, by device, or by (round, device).
        shuffle: seed of the order in which replies arrive; None keeps the order of sending.
        node_config: node facts by partition id, added to the grid's own.
    """

    def __init__(
        self,
        app: ClientApp,
        *,
        num_nodes: int,
        run_config: Mapping[str, Any],
        faults: Mapping[int | tuple[int, int], Fault] | None = None,
        shuffle: int | None = None,
        node_config: Mapping[int, Mapping[str, Any]] | None = None,
    ) -> None:
        super().__init__(app, num_nodes=num_nodes, run_config=run_config)
        self._faults, self._shuffle, self._pulls = dict(faults or {}), shuffle, 0
        self.exchanges: list[Exchange] = []
        for context in self._contexts.values():
            facts = (node_config or {}).get(int(str(context.node_config["partition-id"])), {})
            context.node_config.update(facts)

    @property
    def contexts(self) -> list[Context]:
        """The nodes' contexts, by partition."""
        return list(self._contexts.values())

    def deliver(self, message: Message) -> list[Message]:
        """Delivers, then spoils; the order to train is recorded as it was sent."""
        sent = copy.deepcopy(message)
        replies = super().deliver(message)
        if message.metadata.message_type != wire.ACTION_TRAIN:
            return replies
        config = sent.content.config_records[wire.CONFIG]
        place = int(str(config[wire.ROUND])), int(str(config[wire.DEVICE]))
        fault = self._faults.get(place, self._faults.get(place[1], _honest))
        received = fault(sent, replies[0])
        self.exchanges.append(Exchange(*place, sent, copy.deepcopy(received)))
        return received

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Returns the replies, in an order of its own where asked to."""
        replies = list(super().pull_messages(message_ids))
        if self._shuffle is None:
            return replies
        self._pulls += 1
        order = generator(self._shuffle, "replies", self._pulls).permutation(len(replies))
        return [replies[i] for i in order]


def payload_bytes(message: Message) -> dict[str, int]:
    """Returns the bytes of each array record of a message."""
    return {
        name: sum(len(array.data) for array in record.values())
        for name, record in message.content.array_records.items()
    }


# --- faults ------------------------------------------------------------------------------------


def _honest(_sent: Message, reply: Message) -> list[Message]:
    return [reply]


def raises(reason: str = "MemoryError: out of memory") -> Fault:
    """The device raises."""
    return lambda sent, _reply: [Message(Error(2, reason), reply_to=sent)]


def vanishes(_sent: Message, _reply: Message) -> list[Message]:
    """No reply ever comes."""
    return []


def answers_twice(_sent: Message, reply: Message) -> list[Message]:
    """The same answer comes twice."""
    return [reply, copy.deepcopy(reply)]


def answers_something_else(_sent: Message, _reply: Message) -> list[Message]:
    """The answer belongs to a message that was sent long ago."""
    _reply.metadata.__dict__["_reply_to_message_id"] = "a-message-of-an-earlier-round"
    return [_reply]


def empty(sent: Message, _reply: Message) -> list[Message]:
    """The answer holds no record at all."""
    return [Message(RecordDict(), reply_to=sent)]


def without(name: str) -> Fault:
    """The answer lacks one record."""

    def fault(_sent: Message, reply: Message) -> list[Message]:
        del reply.content[name]
        return [reply]

    return fault


def config(**changes: Any) -> Fault:
    """The answer's config record says something else (None takes a key away)."""
    return _record(wire.CONFIG, changes)


def metrics(**changes: Any) -> Fault:
    """The answer's metric record says something else (None takes a key away)."""
    return _record(wire.METRICS, changes)


def update(change: Callable[[Update], Mapping[str, np.ndarray]]) -> Fault:
    """The answer carries another update, with a checksum that fits."""

    def fault(_sent: Message, reply: Message) -> list[Message]:
        old = from_blob(blob_of(reply.content.array_records[wire.UPDATE]))
        return [_with_blob(reply, to_blob(change(old)))]  # type: ignore[arg-type]

    return fault


def blob(change: Callable[[bytes], bytes]) -> Fault:
    """The answer carries other bytes, with a checksum that fits."""

    def fault(_sent: Message, reply: Message) -> list[Message]:
        return [_with_blob(reply, change(blob_of(reply.content.array_records[wire.UPDATE])))]

    return fault


def damaged_in_transit(_sent: Message, reply: Message) -> list[Message]:
    """One bit of the update flips after the checksum was taken."""
    data = bytearray(blob_of(reply.content.array_records[wire.UPDATE]))
    data[-1] ^= 1
    reply.content[wire.UPDATE] = blob_record(bytes(data))
    return [reply]


def other_array_name(_sent: Message, reply: Message) -> list[Message]:
    """The update's record holds an array of another name."""
    data = blob_of(reply.content.array_records[wire.UPDATE])
    array = Array(dtype="uint8", shape=(len(data),), stype="bytes", data=data)
    reply.content[wire.UPDATE] = ArrayRecord({"something": array})
    return [reply]


def one_entry(value: float) -> Callable[[Update], Update]:
    """Sets one entry of the first array."""

    def change(old: Update) -> Update:
        name = next(iter(old))
        spoiled = old[name].copy()
        spoiled.flat[-1] = value
        return {**old, name: spoiled}

    return change


def _record(name: str, changes: Mapping[str, Any]) -> Fault:
    def fault(_sent: Message, reply: Message) -> list[Message]:
        record: Any = reply.content[name]
        for key, value in changes.items():
            if value is None:
                del record[key.replace("_", "-")]
            else:
                record[key.replace("_", "-")] = value
        return [reply]

    return fault


def _with_blob(reply: Message, data: bytes) -> Message:
    reply.content[wire.UPDATE] = blob_record(data)
    reply.content.config_records[wire.CONFIG][wire.CRC] = zlib.crc32(data)
    return reply
