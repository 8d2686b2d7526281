"""The message that brings a device its part of the model, once, for gradient download."""

from collections.abc import Sequence
from dataclasses import dataclass

from flwr.app import ConfigRecord, Message, RecordDict

from fl_app import wire
from fl_app.errors import WireError
from fl_app.records import blob_of, blob_record

ACTION_FRONT = "train.front"


@dataclass(frozen=True)
class FrontOrder:
    """A device's part of the model, addressed by its content hash."""

    device: int
    model_hash: str
    blob: bytes


def front_message(order: FrontOrder, node: int) -> Message:
    """Builds the message."""
    config = ConfigRecord({wire.DEVICE: order.device, wire.MODEL_HASH: order.model_hash})
    content = RecordDict({wire.EMULATOR: blob_record(order.blob), wire.CONFIG: config})
    return Message(content, node, ACTION_FRONT)


def read_front(message: Message) -> FrontOrder:
    """Reads it on the device.

    Raises:
        WireError: ``missing``.
    """
    config = message.content.config_records.get(wire.CONFIG, ConfigRecord())
    record = message.content.array_records.get(wire.EMULATOR)
    device, model_hash = config.get(wire.DEVICE), config.get(wire.MODEL_HASH)
    if record is None or type(device) is not int or type(model_hash) is not str:
        raise WireError("missing", "the message carries no part of a model, or does not name it")
    return FrontOrder(device, model_hash, blob_of(record))


def front_reply(message: Message, order: FrontOrder) -> Message:
    """Says that the part is kept."""
    config = ConfigRecord({wire.STATUS: wire.STATUS_OK, wire.DEVICE: order.device})
    return Message(RecordDict({wire.CONFIG: config}), reply_to=message)


def check_front_reply(replies: Sequence[Message], device: int) -> None:
    """Checks that a device holds its part.

    Raises:
        WireError: ``silent``, ``duplicate``, ``error`` or ``wrong-device``.
    """
    if not replies:
        raise WireError("silent", "no answer came back in time")
    if len(replies) > 1:
        raise WireError("duplicate", f"{len(replies)} answers came back to one message")
    if replies[0].has_error():
        raise WireError("error", str(replies[0].error.reason))
    config = replies[0].content.config_records.get(wire.CONFIG, ConfigRecord())
    if (config.get(wire.STATUS), config.get(wire.DEVICE)) != (wire.STATUS_OK, device):
        raise WireError("wrong-device", f"got {dict(config)}, expected device {device}")
