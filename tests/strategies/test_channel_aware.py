"""Layouts by this round's rate: never late, never shorter than they need be, nested, and booked."""

import itertools
from typing import Any

import numpy as np
import pytest

from fl_app import wire
from fl_app.config import load_config
from fl_app.errors import ConfigError
from fl_app.layout.prefix import cut, is_within, unit_axis
from fl_app.layout_wire import SCORE_BYTES
from strategies.build_uplink import build_uplink
from strategies.fit import require_fit
from tests.federation_fixtures import NUM_DEVICES, Played, Player
from tests.strategies.test_scoring import OUTER

RANK = 6
WORDS = (
    "peft=lora_channel_aware",
    f"peft.rank={RANK}",
    "peft.layout.device.flops_per_s=1e12",
    "peft.layout.device.bandwidth_hz=1e9",  # of the downlink: next to no time
    "channel=digital",
    "channel.placement=cell",
    "channel.bandwidth_hz=1e5",
    "strategy.num_rounds=4",
)
DEADLINE = 0.012
"""Some devices of this cell can send all units within it, some a part."""


def _played(player: Player, *words: str, deadline: float = DEADLINE, **more: Any) -> Played:
    return player.play(*WORDS, f"peft.layout.round_s={deadline}", *words, **more)


def _spent(played: Played, number: int, order: wire.Order, layout: dict[int, int]) -> float:
    """Returns seconds of a device's round, by the formulas of channel and resource model."""
    config: Any = played.bench.config
    uplink: Any = build_uplink(config.channel, config.seed)
    devices = list(range(NUM_DEVICES))
    state = uplink._radio.state(number, devices, np.ones(NUM_DEVICES))
    snr = uplink._radio.power * NUM_DEVICES / uplink._radio.noise_power  # all power in a quarter
    carried = np.log2(1 + snr * np.abs(state.known_gains[order.device]) ** 2)
    rate = config.channel.bandwidth_hz / NUM_DEVICES * np.minimum(carried, 16.0).mean()
    held = cut(played.start, layout)
    bits = sum(8 * array.size + 64 for array in held.values()) + 32 * sum(layout.values())
    price_of: Any = played.bench.allocation.price_of
    price = price_of(list(layout.values()))
    return float(price.downlink_s + price.compute_s + bits / rate)


def test_layouts_are_the_largest_that_meet_the_deadline(player: Player) -> None:
    """One unit more, the next of the common order, would be late."""
    played = _played(player)
    totals = set()
    for number in (1, 4):
        for exchange in played.of_round(number):
            ranks = list(wire.read_order(exchange.sent).layout.values())
            price: Any = played.bench.allocation.price_of(ranks)  # type: ignore[misc]
            assert price.downlink_bytes == exchange.downlink_bytes[wire.ADAPTER]
        orders = {e.device: wire.read_order(e.sent) for e in played.of_round(number)}
        assert len(orders) > 2
        for order in orders.values():
            layout = dict(order.layout)
            totals.add(sum(layout.values()))
            assert _spent(played, number, order, layout) <= DEADLINE
            larger = [{**layout, b: layout[b] + 1} for b in OUTER if layout[b] < RANK]
            # blocks cost alike but for the pass back to the deeper one
            late = [_spent(played, number, order, one) > DEADLINE for one in larger]
            assert all(late)
        for one, other in itertools.combinations(orders.values(), 2):
            assert is_within(one.layout, other.layout) or is_within(other.layout, one.layout)
    assert len(totals) > 2


def test_a_smaller_payload_is_a_prefix_of_a_larger_one(player: Player) -> None:
    """Unit by unit, of the very adapter that devices are sent, and of their units' names."""
    played = _played(player)
    orders = [wire.read_order(e.sent) for e in played.of_round(4)]
    orders.sort(key=lambda order: sum(order.layout.values()))
    small, large = orders[0], orders[-1]
    assert sum(small.layout.values()) < sum(large.layout.values())
    for name, array in small.adapter.items():
        if unit_axis(name) == 1:  # columns are units
            whole = large.adapter[name].T.tobytes()
            assert whole.startswith(np.ascontiguousarray(array.T).tobytes())
    assert any(tuple(units) != tuple(range(len(units))) for units in large.units.values())
    for block in OUTER:
        assert large.units[block][: small.layout[block]] == small.units[block]


def test_predicted_and_booked_seconds_agree(player: Player) -> None:
    played = _played(player)
    account: Any = played.outcome.ledger.as_dict()
    for record in played.outcome.rounds[1:]:
        assert 0 < record.metrics["scheduled_s"] <= DEADLINE
        row = next(row for row in account["per_round"] if row["round"] == record.round)
        orders = [wire.read_order(e.sent) for e in played.of_round(record.round)]
        ends = [
            _spent(played, record.round, order, dict(order.layout))
            - _spent(played, record.round, order, dict.fromkeys(OUTER, 0))
            for order in orders
        ]
        assert max(ends) < row["radio_seconds"] <= record.metrics["scheduled_s"]
        units = sum(sum(order.layout.values()) for order in orders)
        given = played.outcome.ledger.total_bytes(round=record.round, what="scores")
        assert given == SCORE_BYTES * units


def test_who_can_afford_nothing_sits_out_and_is_booked(player: Player) -> None:
    sizes = {}
    for deadline in (DEADLINE, 0.0042, 0.0001):
        played = _played(player, "strategy.num_rounds=2", deadline=deadline)
        sizes[deadline] = len(played.of_round(1))
        out = played.dropped(1).get("too-slow", [])
        asked = [exchange.device for exchange in played.of_round(1)]
        assert sorted([*out, *asked]) == list(range(NUM_DEVICES))
    assert sizes[DEADLINE] == NUM_DEVICES > sizes[0.0042] > sizes[0.0001] == 0
    assert all(np.array_equal(played.start[n], a) for n, a in played.outcome.adapter.items())


@pytest.mark.parametrize("words", [(), ("peft.layout.params=260",)])
def test_one_device_with_all_data_has_no_deadline(player: Player, words: tuple[str, ...]) -> None:
    """Though the deadline leaves devices of the run a single unit, or none at all."""
    short = _played(player, "strategy.num_rounds=1", *words, deadline=0.002)
    assert all(sum(wire.read_order(e.sent).layout.values()) <= 1 for e in short.of_round(1))
    alone = _played(player, *words, deadline=0.002, reference="centralised", num_nodes=1)
    assert len(alone.of_round(1)) == alone.outcome.aggregated == 1
    order = wire.read_order(alone.of_round(1)[0].sent)
    assert (order.layout or alone.bench.full.layout) == short.bench.allocation.server
    assert sum(alone.bench.full.layout.values()) > 2


def test_every_way_gives_the_same_adapter(player: Player) -> None:
    one, many = _played(player, num_nodes=1), _played(player, shuffle=2)
    for name, array in one.outcome.adapter.items():
        assert np.array_equal(array, many.outcome.adapter[name])


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (("channel=ideal",), "set channel=digital"),
        (("channel=aircomp",), "set channel=digital"),
        (("channel.max_uses_per_real=0.5",), "max_uses_per_real"),
        (("peft.aggregation=exact",), "exact"),
        (("strategy.schedule=joint",), "round_s"),
        (("strategy.server_rule.name=fedyogi",), "fedyogi"),
        (("finetune.max_steps=null",), "max_steps"),
        (("connection.block=0",), r"peft\.layout\.round_s=.*connection\.block=0"),
    ],
)
def test_what_does_not_go_together_is_refused(
    player: Player, words: tuple[str, ...], named: str
) -> None:
    base = [w for w in WORDS if not (w.startswith("channel.") and words[0].startswith("channel="))]
    with pytest.raises(ConfigError, match=named):
        player.play(*base, *words)


@pytest.mark.parametrize("where", ["layout", "class"])
def test_seconds_of_a_round_are_no_limit_with_a_neural_connection(where: str) -> None:
    """What crosses takes time in every step, and the price of a layout has no part for it."""
    limits = {
        "layout": ("peft.layout.round_s=9", r"peft\.layout\.round_s=9"),
        "class": (
            "federation.classes=[{name: a, share: 1, round_s: 9}]",
            r"federation\.classes\.a\.round_s=9",
        ),
    }
    word, named = limits[where]
    require_fit(load_config(f"'{word}'"))
    with pytest.raises(ConfigError, match=f"{named}.*connection.block=1"):
        require_fit(load_config(f"'{word}' connection.block=1"))


def test_without_a_deadline_it_is_refused() -> None:
    with pytest.raises(ConfigError, match="round_s"):
        load_config("channel=digital peft=lora peft.layout.rule=channel_aware")
