"""The question for gains in front of the first round: an order of round 0, and its answer."""

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict

from fl_app import wire
from fl_app.errors import WireError
from fl_app.gains import Gains
from fl_app.layout_wire import pack_scores, read_scores
from fl_app.records import blob_of, blob_record, field_of

ACTION_GAINS = "query.gains"


def gains_message(order: wire.Order, node: int, adapter: ArrayRecord) -> Message:
    """Builds the question; see ``wire.order_message``."""
    return wire.order_message(order, node, adapter, ACTION_GAINS)


def gains_reply(message: Message, order: wire.Order, gains: Gains, num_examples: int) -> Message:
    """Builds a device's answer: four bytes a gain."""
    sizes = {block: len(row) for block, row in gains.items()}
    config = ConfigRecord({wire.STATUS: wire.STATUS_OK, wire.DEVICE: order.device})
    content = RecordDict(
        {
            wire.SCORES: blob_record(pack_scores(gains, sizes)),
            wire.CONFIG: config,
            wire.METRICS: MetricRecord({wire.NUM_EXAMPLES: num_examples}),
        }
    )
    return Message(content, reply_to=message)


def read_gains(message: Message, order: wire.Order, largest: int) -> tuple[Gains, int]:
    """Checks one device's answer.

    Args:
        message: the reply.
        order: what the device was sent; its layout names the blocks.
        largest: gains of a block.

    Returns:
        (gains, number of examples).

    Raises:
        WireError: with the reasons of ``wire.read_update``, or ``bad-score`` for gains that rise
            or are all 0.
    """
    if message.has_error():
        raise WireError("error", str(message.error.reason))
    if wire.lacks_emulator(message):
        raise WireError("no-emulator", "the device has no undamaged emulator, though it was sent")
    content = message.content
    config = content.config_records.get(wire.CONFIG, ConfigRecord())
    metrics = content.metric_records.get(wire.METRICS, MetricRecord())
    device = field_of(config, wire.DEVICE, int)
    if device != order.device:
        raise WireError("wrong-device", f"{device} answers for {order.device}")
    if wire.SCORES not in content.array_records:
        raise WireError("missing", f"the reply carries no '{wire.SCORES}'")
    blob = blob_of(content.array_records[wire.SCORES])
    gains = read_scores(blob, dict.fromkeys(order.layout, largest))
    if any((row[1:] > row[:-1]).any() for row in gains.values()):
        raise WireError("bad-score", "gains of a block's units must fall")
    if not any(row.any() for row in gains.values()):
        raise WireError("bad-score", "all gains are 0, which prefers no unit to another")
    num_examples = field_of(metrics, wire.NUM_EXAMPLES, int)
    if not 0 < num_examples <= wire.MAX_EXAMPLES:
        raise WireError("bad-weight", f"{wire.NUM_EXAMPLES}={num_examples}")
    return gains, num_examples
