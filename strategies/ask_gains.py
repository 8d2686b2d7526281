"""Asks devices for the gains of units before the first round, for layouts by gain over cost."""

import logging
from collections.abc import Mapping, Sequence

import numpy as np
from flwr.app import Message
from flwr.serverapp import Grid

from fl_app import wire
from fl_app.errors import RunError, WireError
from fl_app.fomo.package import content_hash
from fl_app.gains import Gains
from fl_app.gains_wire import gains_message, read_gains
from fl_app.layout.prefix import Layout
from fl_app.ledger import Ledger
from fl_app.records import blob_of, blob_record, to_blob
from fl_app.updates import Update
from strategies.judge import by_device
from strategies.roster import Roster
from strategies.score_mean import mean_scores
from strategies.uplink import Uplink

log = logging.getLogger("deft")


def ask_gains(
    grid: Grid,
    roster: Roster,
    ledger: Ledger,
    *,
    blob: bytes,
    adapter: Update,
    layout: Layout,
    largest: int,
    timeout_s: float,
    uplink: Uplink,
) -> Gains:
    """Sends all devices the emulator and takes the mean of their gains, see ``mean_scores``.

    What is sent is booked in round 0, on a radio with what it takes on air. The layout is the
    uniform one that every device finds in its configuration, and books nothing. Who gives no gains
    that count is left out, and takes part in the rounds all the same.

    Args:
        grid: the way to the devices.
        roster: the devices; who answers holds the emulator from now on.
        ledger: books what is sent.
        blob: the packed emulator.
        adapter: the starting adapter.
        layout: its ranks.
        largest: gains of a block.
        timeout_s: seconds to wait for answers.
        uplink: what carries the gains.

    Raises:
        RunError: no device gave gains that count.
    """
    name, record = content_hash(blob), blob_record(to_blob(adapter))
    orders = {
        device: wire.Order(
            round=0,
            device=device,
            num_devices=len(roster.devices),
            model_hash=name,
            adapter=adapter,
            emulator=None if roster.holds(device, name) else blob,
            layout=layout,
        )
        for device in roster.devices
    }
    sent = {d: gains_message(order, roster.node_of[d], record) for d, order in orders.items()}
    for device, order in orders.items():
        place = {"round": 0, "device": device}
        size = len(blob_of(record))
        ledger.book(**place, link="downlink", what="adapter", num_bytes=size)
        size = 0 if order.emulator is None else len(order.emulator)
        ledger.book(**place, link="downlink", what="emulator", num_bytes=size)
    replies = grid.send_and_receive(list(sent.values()), timeout=timeout_s)
    asked = {message.metadata.message_id: device for device, message in sent.items()}
    answers = by_device(replies, asked)
    found: list[tuple[Gains, int]] = []
    sizes: dict[int, int] = {}
    for device, order in orders.items():
        for message in answers.get(device, []):
            size = wire.uplink_bytes(message, wire.SCORES)
            ledger.book(round=0, device=device, link="uplink", what="scores", num_bytes=size)
            sizes[device] = sizes.get(device, 0) + size
        try:
            found.append(_one(answers.get(device, []), order, largest))
            roster.holders.setdefault(device, set()).add(name)
        except WireError as error:
            log.warning("device %d gives no gains: %s", device, error)
    _book_airtime(ledger, uplink, {device: size for device, size in sizes.items() if size})
    if not found:
        raise RunError(
            "no device gave gains for peft.layout.rule=cost_aware; see the log, or set "
            "peft.layout.profile.by=server"
        )
    nothing = {block: np.zeros(largest) for block in layout}
    return mean_scores([gains for gains, _ in found], [count for _, count in found], nothing)


def _book_airtime(ledger: Ledger, uplink: Uplink, sizes: Mapping[int, int]) -> None:
    """Books what bytes of these devices take on air, where the uplink is a radio."""
    cost = uplink.carry(0, list(sizes), list(sizes.values())) if sizes else None
    if cost is None:
        return
    ledger.book_airtime(round=0, channel_uses=cost.channel_uses, seconds=cost.seconds)
    for device, joules in zip(sizes, cost.joules.tolist(), strict=True):
        ledger.book_joules(round=0, device=device, joules=joules)


def _one(messages: Sequence[Message], order: wire.Order, largest: int) -> tuple[Gains, int]:
    if not messages:
        raise WireError("silent", "no answer came back in time")
    if len(messages) > 1:
        raise WireError("duplicate", f"{len(messages)} answers came back to one message")
    return read_gains(messages[0], order, largest)
