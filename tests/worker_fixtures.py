"""One device of a tiny federation: its node, the orders it gets, and what it answers."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from flwr.app import Context, Message, RecordDict

from fl_app import wire
from fl_app.bench import Bench
from fl_app.client_app import app
from fl_app.errors import DeviceError
from fl_app.fomo.package import content_hash
from tests.federation_fixtures import NUM_DEVICES, Player
from tests.wire_fixtures import NODE, message_of

Make = Callable[..., Context]
"""Makes a node context of (partition, *words, **facts)."""


@pytest.fixture
def bench(player: Player) -> Bench:
    """The server of a tiny federation, at its starting adapter."""
    return player.bench(player.tiny.overrides())[0]


@pytest.fixture
def context(player: Player, tmp_path: Path) -> Make:
    """Makes node contexts that share one cache folder of this test."""

    def make(partition: int = 0, *words: str, **facts: Any) -> Context:
        node = {"partition-id": partition, "num-partitions": NUM_DEVICES}
        node |= {"cache-dir": str(tmp_path / "cache"), **facts}
        run = {"overrides": player.tiny.overrides(*words)}
        return Context(1, NODE, node, RecordDict(), run)  # type: ignore[arg-type]

    return make


def order_of(bench: Bench, **changes: Any) -> wire.Order:
    """Returns the first order to device 0, emulator and all, with changes."""
    fields: dict[str, Any] = {
        "round": 1,
        "device": 0,
        "num_devices": NUM_DEVICES,
        "model_hash": content_hash(bench.piece.blob),
        "adapter": bench.full.read(),
        "emulator": bench.piece.blob,
    }
    return wire.Order(**{**fields, **changes})


def train(context: Context, order: wire.Order) -> Message:
    """Returns what a node answers to an order."""
    return app(message_of(order), context)


def read_reply(bench: Bench, order: wire.Order, reply: Message) -> wire.Reply:
    """Reads an answer as the server does."""
    return wire.read_update(
        reply, order=order, layout_hash=bench.full.layout_hash(), like=order.adapter
    )


def assert_refused(
    caplog: pytest.LogCaptureFixture, kind: str, says: str, context: Context, message: Message
) -> None:
    """Checks that the server hears the kind of a failure alone, and the device's log the rest.

    Args:
        caplog: of the test.
        kind: what travels, the whole of it.
        says: what the device's own log must match.
        context: the device's.
        message: what it is sent.
    """
    with pytest.raises(DeviceError) as refused:
        app(message, context)
    assert str(refused.value) == kind
    assert re.search(says, caplog.text), caplog.text
