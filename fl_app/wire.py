"""Flower records to domain types and back; every record name and key is a constant here."""

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict

from fl_app.errors import WireError
from fl_app.layout_wire import (
    SCORE_BYTES,
    Scores,
    layout_fields,
    pack_scores,
    read_layout,
    read_scores,
    read_units,
)
from fl_app.records import BLOB, blob_of, blob_record, field_of, from_blob, to_blob
from fl_app.updates import Update, is_finite

ADAPTER, UPDATE, EMULATOR, SCORES = "adapter", "update", "emulator", "scores"
STACK = "stack-"
"""Leads the name of the record of a stack; its content hash follows."""
CONFIG, METRICS = "config", "metrics"

ROUND, DEVICE, NUM_DEVICES = "round", "device", "num-devices"
MODEL_HASH, LAYOUT_HASH, CRC = "model-hash", "layout-hash", "crc"
NUM_EXAMPLES, LOSS, SECONDS, STEPS = "num-examples", "loss", "seconds", "steps"
STATUS, STATUS_OK, STATUS_NO_EMULATOR = "status", "ok", "no-emulator"
SCORED, STACKS = "scored", "stacks"
PROXIMAL_MU = "proximal-mu"  # the key Flower's own FedProx uses
CROSSED = ("forward_uses", "backward_uses", "forward_bytes", "backward_bytes")
"""Counted at a device's neural connection; forward is from device to server."""

ACTION_TRAIN = "train.emulator"

MAX_EXAMPLES = 1_000_000_000
"""Weights come from devices and are trusted up to this many examples."""
_MAX_SECONDS = 1e9
MAX_FIGURE = float(np.finfo(np.float32).max)
"""Losses and errors come from devices too: those of float32, so that no mean overflows."""


@dataclass(frozen=True)
class Order:
    """What the server tells one device: whose turn it is and with what.

    Attributes:
        round: server round.
        device: partition id.
        num_devices: devices of the federation.
        model_hash: content hash of what the device computes on.
        adapter: as this device is sent it: the prefix slices of its layout.
        emulator: packed, where the device is not known to hold it.
        proximal_mu: FedProx's mu.
        layout: LoRA's rank in every tuned block, 0 for a block to be left alone; empty where the
            adapter has no LoRA.
        units: of every block, which rows of A as drawn its units are; empty for the first ones, and
            where A itself travels.
        scored: whether the answer must score the layout's units.
        stacks: content hashes of what is to be merged into the frozen weights, in order; LoRA then
            begins as drawn for the round and does not travel. None where LoRA is in ``adapter``.
        new_stacks: those that this device is not known to hold, by content hash.
    """

    round: int
    device: int
    num_devices: int
    model_hash: str
    adapter: Update
    emulator: bytes | None
    proximal_mu: float = 0.0
    layout: Mapping[int, int] = field(default_factory=dict)
    units: Mapping[int, Sequence[int]] = field(default_factory=dict)
    scored: bool = False
    stacks: tuple[str, ...] | None = None
    new_stacks: Mapping[str, bytes] = field(default_factory=dict)


@dataclass(frozen=True)
class Reply:
    """One device's checked answer."""

    device: int
    update: Update
    num_examples: int
    loss: float
    seconds: float
    scores: Scores = field(default_factory=dict)

    @property
    def score_bytes(self) -> int:
        """Bytes of the scores as sent."""
        return SCORE_BYTES * sum(len(own) for own in self.scores.values())


def order_message(
    order: Order, node: int, adapter: ArrayRecord, action: str = ACTION_TRAIN
) -> Message:
    """Builds the message that sends one device to work.

    Args:
        order: what to do; its adapter is already wrapped, once for all devices.
        node: Flower's id of the node that plays the device.
        adapter: the wrapped adapter.
        action: what the device is to do with it.
    """
    config = ConfigRecord(
        {
            ROUND: order.round,
            DEVICE: order.device,
            NUM_DEVICES: order.num_devices,
            MODEL_HASH: order.model_hash,
            PROXIMAL_MU: order.proximal_mu,
            CRC: zlib.crc32(blob_of(adapter)),
            SCORED: order.scored,
            **layout_fields(order.layout, order.units),
        }
    )
    if order.stacks is not None:  # one string, for an empty list breaks Flower's byte count
        config[STACKS] = ",".join(order.stacks)
    content = RecordDict({ADAPTER: adapter, CONFIG: config})
    for name, blob in order.new_stacks.items():
        content[STACK + name] = blob_record(blob)
    if order.emulator is not None:
        content[EMULATOR] = blob_record(order.emulator)
    return Message(content, node, action)


def read_order(message: Message) -> Order:
    """Reads the server's message on a device.

    Raises:
        WireError: something is missing or damaged.
    """
    content = message.content
    config = content.config_records.get(CONFIG, ConfigRecord())
    if ADAPTER not in content.array_records:
        raise WireError("missing", f"the message carries no '{ADAPTER}'")
    blob = blob_of(content.array_records[ADAPTER])
    if zlib.crc32(blob) != field_of(config, CRC, int):
        raise WireError("damaged", "the adapter's checksum differs")
    emulator = content.array_records.get(EMULATOR)
    layout = read_layout(config)
    return Order(
        round=field_of(config, ROUND, int),
        device=field_of(config, DEVICE, int),
        num_devices=field_of(config, NUM_DEVICES, int),
        model_hash=field_of(config, MODEL_HASH, str),
        adapter=from_blob(blob),
        emulator=None if emulator is None else blob_of(emulator),
        proximal_mu=field_of(config, PROXIMAL_MU, float),
        layout=layout,
        units=read_units(config, layout),
        scored=field_of(config, SCORED, bool),
        stacks=_stacks(config),
        new_stacks={
            name.removeprefix(STACK): blob_of(record)
            for name, record in content.array_records.items()
            if name.startswith(STACK)
        },
    )


def _stacks(config: ConfigRecord) -> tuple[str, ...] | None:
    if STACKS not in config:
        return None
    listed = str(field_of(config, STACKS, str))
    return tuple(listed.split(",")) if listed else ()


def update_reply(
    message: Message,
    order: Order,
    *,
    update: Update,
    layout_hash: str,
    num_examples: int,
    loss: float,
    steps: int,
    seconds: float,
    crossed: Mapping[str, int],
    scores: Scores | None = None,
) -> Message:
    """Builds a device's answer.

    ``crossed`` is empty or has a count for each of ``CROSSED``; scores go along where the order
    asks for them.
    """
    blob = to_blob(update)
    config = ConfigRecord(
        {
            STATUS: STATUS_OK,
            ROUND: order.round,
            DEVICE: order.device,
            MODEL_HASH: order.model_hash,
            LAYOUT_HASH: layout_hash,
            CRC: zlib.crc32(blob),
        }
    )
    metrics = MetricRecord(
        {NUM_EXAMPLES: num_examples, LOSS: loss, STEPS: steps, SECONDS: seconds, **crossed}
    )
    content = RecordDict({UPDATE: blob_record(blob), CONFIG: config, METRICS: metrics})
    if scores is not None:
        content[SCORES] = blob_record(pack_scores(scores, order.layout))
    return Message(content, reply_to=message)


def no_emulator_reply(message: Message, order: Order) -> Message:
    """Says that this device has no (undamaged) copy of the emulator and must be sent one."""
    config = ConfigRecord({STATUS: STATUS_NO_EMULATOR, ROUND: order.round, DEVICE: order.device})
    return Message(RecordDict({CONFIG: config}), reply_to=message)


def lacks_emulator(message: Message) -> bool:
    """Tells whether a device asks for the emulator."""
    if message.has_error():
        return False
    config = message.content.config_records.get(CONFIG, ConfigRecord())
    return config.get(STATUS) == STATUS_NO_EMULATOR


def uplink_bytes(message: Message, record: str = UPDATE) -> int:
    """Returns the payload bytes of a reply, or of another of its records; 0 where it has none."""
    if message.has_error() or record not in message.content.array_records:
        return 0
    return sum(len(array.data) for array in message.content.array_records[record].values())


def read_update(message: Message, *, order: Order, layout_hash: str, like: Update) -> Reply:
    """Checks one device's answer against what was asked; nothing is repaired.

    Args:
        message: the reply.
        order: what this device was sent.
        layout_hash: of the server's adapter.
        like: the server's adapter; names, shapes and dtypes must agree.

    Raises:
        WireError: with the reason the report books: ``error``, ``missing``, ``wrong-round``,
            ``wrong-device``, ``wrong-model``, ``wrong-layout``, ``damaged``, ``wrong-shape``,
            ``wrong-dtype``, ``not-finite``, ``bad-weight``, ``bad-seconds``, ``bad-count``,
            ``bad-score`` or ``no-emulator``.
    """
    if message.has_error():
        raise WireError("error", str(message.error.reason))
    if lacks_emulator(message):
        raise WireError("no-emulator", "the device has no undamaged emulator, though it was sent")
    content = message.content
    config = content.config_records.get(CONFIG, ConfigRecord())
    if UPDATE not in content.array_records or BLOB not in content.array_records[UPDATE]:
        raise WireError("missing", f"the reply carries no '{UPDATE}'")
    blob = blob_of(content.array_records[UPDATE])
    if zlib.crc32(blob) != field_of(config, CRC, int):
        raise WireError("damaged", "the update's checksum differs")
    metrics = content.metric_records.get(METRICS, MetricRecord())
    reply = check_update(
        from_blob(blob), {**config, **metrics}, order=order, layout_hash=layout_hash, like=like
    )
    counts_of(content)
    return replace(reply, scores=_scores(content, order.layout)) if order.scored else reply


def check_update(
    update: Update,
    facts: Mapping[str, Any],
    *,
    order: Order,
    layout_hash: str,
    like: Update,
) -> Reply:
    """Checks an update and what a device says of it, however it travelled.

    Raises:
        WireError: see ``read_update``.
    """
    _same("wrong-round", ROUND, field_of(facts, ROUND, int), order.round)
    _same("wrong-device", DEVICE, field_of(facts, DEVICE, int), order.device)
    _same("wrong-model", MODEL_HASH, field_of(facts, MODEL_HASH, str), order.model_hash)
    _same("wrong-layout", LAYOUT_HASH, field_of(facts, LAYOUT_HASH, str), layout_hash)
    _same(
        "wrong-shape",
        "names and shapes",
        {name: array.shape for name, array in update.items()},
        {name: array.shape for name, array in like.items()},
    )
    dtypes = {str(array.dtype) for array in update.values()}
    _same("wrong-dtype", "dtypes", dtypes, {"float32"})
    if not is_finite(update):
        raise WireError("not-finite", "the update holds NaN or infinity")
    num_examples = field_of(facts, NUM_EXAMPLES, int)
    loss, seconds = field_of(facts, LOSS, float), field_of(facts, SECONDS, float)
    if not 0 < num_examples <= MAX_EXAMPLES:
        raise WireError("bad-weight", f"{NUM_EXAMPLES}={num_examples} is not in 1..{MAX_EXAMPLES}")
    if not abs(loss) <= MAX_FIGURE:
        raise WireError("not-finite", f"{LOSS}={loss} is no float32")
    if not 0 <= seconds <= _MAX_SECONDS:
        raise WireError("bad-seconds", f"{SECONDS}={seconds} is not in 0..{_MAX_SECONDS:g}")
    return Reply(order.device, update, num_examples, loss, seconds)


def _scores(content: RecordDict, layout: Mapping[int, int]) -> Scores:
    if BLOB not in content.array_records.get(SCORES, {}):
        raise WireError("missing", f"the reply carries no '{SCORES}'")
    return read_scores(blob_of(content.array_records[SCORES]), layout)


def counts_of(content: RecordDict) -> dict[str, int]:
    """Returns what crossed a device's neural connection; nothing where there was none.

    Raises:
        WireError: a count is missing or negative.
    """
    metrics = content.metric_records.get(METRICS, MetricRecord())
    if not any(name in metrics for name in CROSSED):
        return {}
    counts = {name: field_of(metrics, name, int) for name in CROSSED}
    if min(counts.values()) < 0:
        raise WireError("bad-count", f"{counts} must all be >= 0")
    return counts


def _same(reason: str, what: str, given: object, wanted: object) -> None:
    if given != wanted:
        raise WireError(reason, f"{what}: got {str(given)[:200]}, expected {str(wanted)[:200]}")
