"""Flower records of a round with several exchanges; every record name and key is a constant.

Either one message per device and exchange (a *step*), or one long message per device and round that
says where a stream is to be opened. Blobs are opaque here; ``fl_app.payload`` says what is in them.
"""

import zlib
from dataclasses import dataclass

from flwr.app import ArrayRecord, ConfigRecord, Message, RecordDict

from fl_app import wire
from fl_app.errors import WireError
from fl_app.records import BLOB, blob_of, blob_record, field_of

ACTION_STEP, ACTION_STREAM = "train.step", "train.stream"
STEP_BLOB = "step-blob"
STEP, STEPS_DONE = "step", "steps-done"
HOST, PORT, TOKEN, CERTIFICATE = "host", "port", "token", "certificate"
MAX_BYTES, IDLE_S = "max-bytes", "idle-s"


@dataclass(frozen=True)
class StepOrder:
    """One exchange with one device: the round, the exchange's number there (from 0), the blob."""

    round: int
    device: int
    step: int
    blob: bytes


@dataclass(frozen=True)
class StreamOrder:
    """Where a device finds its stream.

    Attributes:
        round: of the server.
        device: which device is meant.
        host: the server's address as devices see it.
        port: the server's port.
        token: proves, once, that the device was sent this order.
        certificate: the server's, PEM.
        max_bytes: longest blob in either direction.
        idle_s: seconds after which a device gives up a silent server, > 0.
    """

    round: int
    device: int
    host: str
    port: int
    token: str
    certificate: str
    max_bytes: int
    idle_s: float


def device_of(message: Message) -> int:
    """Returns which device a step or stream message is for.

    Raises:
        WireError: ``missing``.
    """
    return int(field_of(_config(message), wire.DEVICE, int))


def step_message(order: StepOrder, node: int, *, action: str, ttl_s: float) -> Message:
    """Builds the message of one exchange; Flower drops it ``ttl_s`` seconds from now."""
    return Message(_step_content(order, order.blob), node, action, ttl=ttl_s)


def read_step(message: Message) -> StepOrder:
    """Reads the server's message on a device.

    Raises:
        WireError: ``missing`` or ``damaged``.
    """
    config = _config(message)
    return StepOrder(
        round=field_of(config, wire.ROUND, int),
        device=field_of(config, wire.DEVICE, int),
        step=field_of(config, STEP, int),
        blob=_checked_blob(message),
    )


def step_reply(message: Message, order: StepOrder, answer: bytes) -> Message:
    """Builds a device's answer."""
    return Message(_step_content(order, answer), reply_to=message)


def read_answer(message: Message, order: StepOrder) -> bytes:
    """Checks a device's answer against what was asked.

    Raises:
        WireError: ``error``, ``missing``, ``wrong-round``, ``wrong-device``, ``wrong-step`` or
            ``damaged``.
    """
    if message.has_error():
        raise WireError("error", str(message.error.reason))
    answer = read_step(message)
    for reason, given, wanted in (
        ("wrong-round", answer.round, order.round),
        ("wrong-device", answer.device, order.device),
        ("wrong-step", answer.step, order.step),
    ):
        if given != wanted:
            raise WireError(reason, f"the answer says {given}, asked was {wanted}")
    return answer.blob


def answer_bytes(message: Message) -> int:
    """Returns the payload bytes of a device's answer, whatever is wrong with it."""
    if message.has_error():
        return 0
    record = message.content.array_records.get(STEP_BLOB, ArrayRecord())
    return sum(len(array.data) for array in record.values())


def stream_message(order: StreamOrder, node: int) -> Message:
    """Builds the one long message that lets a device open its stream."""
    config = ConfigRecord(
        {
            wire.ROUND: order.round,
            wire.DEVICE: order.device,
            HOST: order.host,
            PORT: order.port,
            TOKEN: order.token,
            CERTIFICATE: order.certificate,
            MAX_BYTES: order.max_bytes,
            IDLE_S: order.idle_s,
        }
    )
    return Message(RecordDict({wire.CONFIG: config}), node, ACTION_STREAM)


def read_stream(message: Message) -> StreamOrder:
    """Reads a stream order on a device.

    Raises:
        WireError: ``missing``.
    """
    config = _config(message)
    return StreamOrder(
        round=field_of(config, wire.ROUND, int),
        device=field_of(config, wire.DEVICE, int),
        host=field_of(config, HOST, str),
        port=field_of(config, PORT, int),
        token=field_of(config, TOKEN, str),
        certificate=field_of(config, CERTIFICATE, str),
        max_bytes=field_of(config, MAX_BYTES, int),
        idle_s=field_of(config, IDLE_S, float),
    )


def stream_done(message: Message, order: StreamOrder, steps: int) -> Message:
    """Says that the stream ended as the server wished, after ``steps`` exchanges."""
    config = ConfigRecord(
        {
            wire.STATUS: wire.STATUS_OK,
            wire.ROUND: order.round,
            wire.DEVICE: order.device,
            STEPS_DONE: steps,
        }
    )
    return Message(RecordDict({wire.CONFIG: config}), reply_to=message)


def _step_content(order: StepOrder, blob: bytes) -> RecordDict:
    config = ConfigRecord(
        {
            wire.ROUND: order.round,
            wire.DEVICE: order.device,
            STEP: order.step,
            wire.CRC: zlib.crc32(blob),
        }
    )
    return RecordDict({STEP_BLOB: blob_record(blob), wire.CONFIG: config})


def _checked_blob(message: Message) -> bytes:
    record = message.content.array_records.get(STEP_BLOB, ArrayRecord())
    if BLOB not in record:
        raise WireError("missing", f"the message carries no '{STEP_BLOB}'")
    blob = blob_of(record)
    if zlib.crc32(blob) != field_of(_config(message), wire.CRC, int):
        raise WireError("damaged", "the blob's checksum differs")
    return blob


def _config(message: Message) -> ConfigRecord:
    return message.content.config_records.get(wire.CONFIG, ConfigRecord())
