"""What a round's messages, sums in the air and schedules leave in the ledger."""

from collections.abc import Mapping, Sequence
from typing import cast

from fl_app import wire
from fl_app.ledger import Ledger, Link, What
from strategies.round_log import RoundLog
from strategies.schedule import RoundPlan
from strategies.uplink import Airtime


def book_bytes(ledger: Ledger, link: str, order: wire.Order, what: str, num_bytes: int) -> None:
    """Books one payload of a device's order or of its answer; the ledger checks link and kind."""
    ledger.book(
        round=order.round,
        device=order.device,
        link=cast(Link, link),
        what=cast(What, what),
        num_bytes=num_bytes,
    )


def book_airtime(
    ledger: Ledger,
    cost: Airtime,
    replies: Sequence[wire.Reply],
    orders: Mapping[int, wire.Order],
) -> None:
    """Books what updates cost on the radio.

    Args:
        ledger: where.
        cost: of all of them; its entries are in the order of the replies.
        replies: the updates that were sent, heard or not; at least one.
        orders: of their devices.
    """
    number = orders[replies[0].device].round
    ledger.book_airtime(round=number, channel_uses=cost.channel_uses, seconds=cost.seconds)
    for k, reply in enumerate(replies):
        order, control = orders[reply.device], int(cost.control_bytes[k])
        scores = min(reply.score_bytes, control)  # a silent device sends neither
        book_bytes(ledger, "uplink", order, "update", int(cost.payload_bytes[k]))
        book_bytes(ledger, "uplink", order, "control", control - scores)
        book_bytes(ledger, "uplink", order, "scores", scores)
        book_bytes(ledger, "downlink", order, "control", cost.announced_bytes)
        ledger.book_joules(round=number, device=reply.device, joules=float(cost.joules[k]))


def book_plan(ledger: Ledger, plan: RoundPlan, server_round: int, log: RoundLog) -> None:
    """Books the turns of a scheduled round; nothing without a schedule."""
    log.turns = plan.turns
    for turn in plan.turns:
        ledger.book_turn(round=server_round, compute_s=turn.compute_s, uplink_s=turn.uplink_s)
    if plan.turns:
        log.metrics["scheduled_s"] = plan.round_s
