"""Stacks where devices fail: the rest's mean counts, and who failed is sent what it missed."""

from typing import Any

import numpy as np

from fl_app import updates, wire
from fl_app.fomo.lora import lora_start
from fl_app.layout.prefix import unit_axis
from fl_app.layout_wire import RANK_BYTES
from fl_app.updates import Update
from tests import fakes
from tests.federation_fixtures import (
    ALL_DEVICES,
    SKEW,
    Played,
    Player,
    num_examples,
    player,
    tiny_federation,
)

__all__ = ["player", "tiny_federation"]

STACK = ("peft.combine=stack", "peft.aggregation=exact", "finetune.max_steps=2")
BOUND = 64 * float(np.finfo(np.float32).eps)


def _overflowing(old: Update) -> Update:
    """A product of 1e38 in every entry: finite, and infinite times alpha / rank = 2 and summed."""
    size = {".lora_A.": 1e19, ".lora_B.": 1e19}
    new = {}
    for name, array in old.items():
        new[name] = np.zeros_like(array)
        for factor, value in size.items():
            if factor in name:
                np.moveaxis(new[name], unit_axis(name) or 0, 0)[0] = value
    return new


def _mean_products(played: Played, number: int, devices: list[int]) -> dict[str, Any]:
    """The devices' mean product of a round by map, in float64, from what they sent."""
    chosen = [e for e in played.of_round(number) if e.device in devices]
    weights = [num_examples(exchange) for exchange in chosen]
    mean: dict[str, Any] = {}
    for exchange, weight in zip(chosen, weights, strict=True):
        update = exchange.updates[-1]
        shapes = {n: a.shape for n, a in update.items() if unit_axis(n) is not None}
        start = lora_start(shapes, played.bench.config.seed, number)
        tuned = updates.add(start, {name: update[name] for name in shapes})
        for name in (n for n in tuned if ".lora_B." in n):
            a = tuned[name.replace("lora_B", "lora_A")].astype(np.float64)
            product = weight / sum(weights) * (tuned[name].astype(np.float64) @ a)
            mean[name] = mean.get(name, 0.0) + product
    return mean


def test_a_hostile_and_a_failing_device_cost_themselves_a_round(player: Player) -> None:
    faults: dict[Any, fakes.Fault] = {(2, 1): fakes.raises(), (2, 2): fakes.update(_overflowing)}
    played = player.play(*STACK, SKEW, "strategy.num_rounds=3", faults=faults)
    heard = {1: ALL_DEVICES, 2: [0, 3], 3: ALL_DEVICES}
    assert played.dropped(2) == {"error": [1], "not-finite": [2]}
    assert {number: played.devices(number) for number in heard} == heard
    adapter = played.outcome.adapter
    rounds = [_mean_products(played, number, devices) for number, devices in heard.items()]
    for name in rounds[0]:
        wanted = sum(each[name] for each in rounds)
        given = adapter[name].astype(np.float64) @ adapter[name.replace("lora_B", "lora_A")]
        assert np.abs(wanted).max() > 0
        assert np.abs(given - wanted).max() <= BOUND * max(np.abs(wanted).max(), 1e-3)
    orders = {e.device: wire.read_order(e.sent) for e in played.of_round(3)}
    for device, order in orders.items():
        assert len(order.stacks or ()) == 2
        known = 1 if device in heard[2] else 0  # a stack is held once its device has answered
        assert list(order.new_stacks) == list(order.stacks or ())[known:]
        assert order.emulator is None


def test_names_of_stacks_are_booked_as_control(player: Player) -> None:
    """A SHA-256 of 32 bytes for every stack that an order names, beside the ranks of classes."""
    weak = "federation.classes=[{name:weak,devices:[1],params:140},{name:strong,devices:[0,2,3]}]"
    for words in ((), (weak, "peft=lora_linear_up", "peft.rank=3")):
        played = player.play(*words, *STACK, "strategy.num_rounds=3")
        for number in (1, 2, 3):
            orders = [wire.read_order(e.sent) for e in played.of_round(number)]
            ranks = sum(RANK_BYTES * len(order.layout) for order in orders) if words else 0
            booked = played.outcome.ledger.total_bytes(
                round=number, link="downlink", what="control"
            )
            assert booked == ranks + len(orders) * 32 * (number - 1)
