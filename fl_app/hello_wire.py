"""The first message of a run: the server asks every node who it is and what it holds already."""

from dataclasses import dataclass

from flwr.app import ConfigRecord, Message, RecordDict

from fl_app import wire
from fl_app.records import field_of

PARTITION, HELD = "partition", "held"
ACTION_HELLO = "query.hello"


@dataclass(frozen=True)
class Hello:
    """What a node says of itself: its stable partition and the emulators it holds already."""

    node: int
    partition: int
    held: frozenset[str]


def hello_message(node: int) -> Message:
    """Asks a node who it is."""
    return Message(
        RecordDict({wire.CONFIG: ConfigRecord({wire.STATUS: wire.STATUS_OK})}), node, ACTION_HELLO
    )


def hello_reply(message: Message, partition: int, held: list[str]) -> Message:
    """Says who this node is."""
    # An empty list breaks Flower's byte count, hence one string.
    config = ConfigRecord({PARTITION: partition, HELD: ",".join(held) or "-"})
    return Message(RecordDict({wire.CONFIG: config}), reply_to=message)


def read_hello(message: Message) -> Hello:
    """Reads a node's answer.

    Raises:
        WireError: a key is missing or of the wrong type.
    """
    config = message.content.config_records.get(wire.CONFIG, ConfigRecord())
    partition = field_of(config, PARTITION, int)
    held = field_of(config, HELD, str)
    names = frozenset(held.split(",")) - {"-"}
    return Hello(node=message.metadata.src_node_id, partition=partition, held=names)
