"""The device side, message by message, through the ClientApp that Flower runs."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Context

from clients.build import _worker, worker_of
from fl_app import hello_wire, wire
from fl_app.bench import Bench
from fl_app.client_app import app
from fl_app.errors import ConfigError
from fl_app.fomo.package import content_hash
from fl_app.updates import Update
from tests.federation_fixtures import NUM_DEVICES, NUM_TRAIN, Player, write_rows
from tests.wire_fixtures import NODE, flower_process, message_of, same_bits
from tests.worker_fixtures import Make, assert_refused, order_of, read_reply, train

__all__ = ["flower_process"]


def test_hello_tells_partition_and_what_is_held(bench: Bench, context: Make) -> None:
    node = context(2)
    before = hello_wire.read_hello(app(hello_wire.hello_message(NODE), node))
    assert (before.partition, before.held) == (2, frozenset())
    train(node, order_of(bench, device=2))
    after = hello_wire.read_hello(app(hello_wire.hello_message(NODE), node))
    assert after.held == {content_hash(bench.piece.blob)}
    assert (
        hello_wire.read_hello(app(hello_wire.hello_message(NODE), context(1))).held == frozenset()
    )


def test_a_device_answers_with_an_update_the_server_accepts(bench: Bench, context: Make) -> None:
    order = order_of(bench)
    reply = read_reply(bench, order, train(context(), order))
    assert reply.device == 0
    assert reply.num_examples == NUM_TRAIN // NUM_DEVICES
    assert reply.loss > 0
    assert reply.seconds > 0
    assert any(np.abs(array).max() > 0 for array in reply.update.values())


def test_an_answer_depends_on_seed_round_and_device_alone(bench: Bench, context: Make) -> None:
    """Not on what the process did before, nor on the node that plays the device."""

    def update(context: Context, **changes: Any) -> Update:
        order = order_of(bench, **changes)
        return read_reply(bench, order, train(context, order)).update

    first = update(context(0))
    update(context(0), device=1, round=5)
    assert same_bits(update(context(3)), first)  # another node plays device 0
    _worker.cache_clear()
    assert same_bits(update(context(0)), first)  # a new process
    assert not same_bits(update(context(0), round=2), first)
    assert not same_bits(update(context(0), device=1), first)
    assert not same_bits(update(context(0, "seed=1")), first)


def test_devices_with_equal_data_see_them_in_orders_of_their_own(
    bench: Bench, context: Make, tmp_path: Path
) -> None:
    facts = {"data-path": str(write_rows(tmp_path / "own.tsv", 24, "own"))}
    updates = []
    for device in (0, 1):
        order = order_of(bench, device=device)
        updates.append(read_reply(bench, order, train(context(device, **facts), order)).update)
    assert not same_bits(*updates)


def test_the_adapter_that_was_sent_is_not_changed(bench: Bench, context: Make) -> None:
    order = order_of(bench)
    kept = {name: array.copy() for name, array in order.adapter.items()}
    train(context(), order)
    assert same_bits(order.adapter, kept)


def test_a_damaged_adapter_is_refused(
    bench: Bench, context: Make, caplog: pytest.LogCaptureFixture
) -> None:
    message = message_of(order_of(bench))
    message.content.config_records[wire.CONFIG][wire.CRC] = 1
    assert_refused(caplog, "WireError: damaged", "checksum", context(), message)


def test_a_proximal_term_pulls_back(bench: Bench, context: Make) -> None:
    """It needs a second step: on the first the adapter is still where it started."""

    def update(mu: float, words: str) -> Update:
        order = order_of(bench, proximal_mu=mu)
        return read_reply(bench, order, train(context(0, words), order)).update

    def size(update: Update) -> float:
        return sum(float((array.astype(np.float64) ** 2).sum()) for array in update.values())

    one, three = "finetune.max_steps=1", "finetune.max_steps=3"
    assert same_bits(update(0.0, one), update(50.0, one))
    assert size(update(50.0, three)) < size(update(0.0, three))


def test_devices_tune_the_reference_they_are_told(player: Player, context: Make) -> None:
    node = context()
    node.run_config["reference"] = "frozen"
    bench, start = player.bench(player.tiny.overrides(), "frozen")
    order = order_of(bench, adapter=start)
    assert read_reply(bench, order, train(node, order)).update.keys() == start.keys()
    node.run_config["reference"] = "best"
    with pytest.raises(ConfigError, match="reference 'best'"):
        worker_of(node)
