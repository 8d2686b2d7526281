"""A federation of device classes: what is sent, who is dropped, and what comes of it."""

from typing import Any

import numpy as np
import pytest

from fl_app import wire
from fl_app.errors import ConfigError
from fl_app.job import adapter_sha256
from fl_app.layout.prefix import cut, layout_of
from fl_app.layout_wire import RANK_BYTES
from fl_app.records import blob_of, from_blob
from strategies.fit import require_fit
from tests import fakes
from tests.federation_fixtures import (
    NUM_DEVICES,
    Player,
    padded_mean,
    player,
    tiny_federation,
)
from tests.radio_rounds import config_of

__all__ = ["player", "tiny_federation"]

SKEW = "data.partition.kind=quantity"
CLASSES = (
    "federation.classes=[{name:weak,devices:[1],params:110},{name:middling,devices:[3],params:170},"
    "{name:strong,devices:[0,2]}]",
    "peft=lora_linear_up",
    "peft.rank=3",
    SKEW,
)
FLEX = (
    CLASSES[0].replace("110", "140").replace("170", "270"),  # A is sent, too
    *CLASSES[1:],
    "peft.aggregation=exact",
    "peft.combine=flex",
)


@pytest.mark.parametrize("combine", ["pad", "zero"])
def test_a_round_is_the_mean_by_hand(player: Player, combine: str) -> None:
    played = player.play(*CLASSES, f"peft.combine={combine}", "strategy.num_rounds=1", warm=True)
    wanted = padded_mean(played, all_weights=combine == "zero")
    given = played.outcome.adapter
    assert len({len(exchange.updates[0]) for exchange in played.of_round(1)}) == 2  # one has rank 0
    bound = 16 * float(np.finfo(np.float32).eps)
    for name, array in given.items():
        assert np.abs(array - wanted[name]).max() <= bound
    other = padded_mean(played, all_weights=combine != "zero")
    assert max(np.abs(other[name] - wanted[name]).max() for name in wanted) > 100 * bound


@pytest.mark.parametrize("words", [CLASSES, FLEX])
def test_devices_get_and_send_their_prefix_and_its_bytes_are_booked(
    player: Player, words: tuple[str, ...]
) -> None:
    played = player.play(*words)
    allocation = played.bench.allocation
    assert layout_of(played.start) == {b: r for b, r in allocation.server.items() if r}
    server = played.start
    for exchange in played.of_round(1):
        layout = allocation.at(1, exchange.device)
        sent = from_blob(blob_of(exchange.sent.content.array_records[wire.ADAPTER]))
        wanted = cut(server, layout)
        assert sent.keys() == wanted.keys() == exchange.updates[0].keys()
        assert all(np.array_equal(sent[name], wanted[name]) for name in sent)
        assert wire.read_order(exchange.sent).layout == dict(layout)
        assert list(layout.values()) == {1: [0, 1], 3: [1, 2]}.get(exchange.device, [2, 4])
    ledger = played.outcome.ledger.as_dict()
    up = sum(
        fakes.payload_bytes(e.received[0])[wire.UPDATE] for n in (1, 2) for e in played.of_round(n)
    )
    assert ledger["uplink_bytes"] == up
    down = sum(e.downlink_bytes[wire.ADAPTER] for n in (1, 2) for e in played.of_round(n))
    assert ledger["adapter_downlink_bytes"] == down
    assert ledger["control_bytes"] == 2 * NUM_DEVICES * RANK_BYTES * len(allocation.server)
    assert played.devices(2) == list(range(NUM_DEVICES))


@pytest.mark.parametrize("words", [CLASSES, FLEX])
@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        (fakes.update(fakes.one_entry(np.nan)), "not-finite"),
        (fakes.update(lambda old: {**old, "more": np.zeros(1, np.float32)}), "wrong-shape"),
        (fakes.config(layout_hash="0" * 64), "wrong-layout"),
    ],
)
def test_a_bad_answer_is_dropped_and_booked(
    player: Player, words: tuple[str, ...], fault: Any, reason: str
) -> None:
    played = player.play(*words, faults={(1, 1): fault}, warm=True)
    assert played.dropped(1) == {reason: [1]}
    assert played.devices(1) == [0, 2, 3]
    assert played.devices(2) == list(range(NUM_DEVICES))


def test_a_weak_device_cannot_pose_as_a_strong_one(player: Player) -> None:
    """An update of the server's whole layout from a device that was sent less is refused."""
    whole = {name: array + 1 for name, array in player.play(*CLASSES, warm=True).start.items()}
    played = player.play(*CLASSES, faults={(1, 1): fakes.update(lambda _: whole)}, warm=True)
    assert played.dropped(1) == {"wrong-shape": [1]}


def test_one_class_of_everybody_is_plain_lora(player: Player) -> None:
    """A class without limits holds what the server holds: the mean but for its rounding."""
    plain = player.play(SKEW, warm=True)
    one = player.play("federation.classes=[{name:all,share:1}]", SKEW, warm=True)
    for name, array in plain.outcome.adapter.items():
        # two rounds: a rounding apart after the first, AdamW's first step is lr * g / |g|
        assert np.abs(one.outcome.adapter[name] - array).max() <= 1e-4
    assert adapter_sha256(one.start) == adapter_sha256(plain.start)


@pytest.mark.parametrize(
    "channel", [("channel=digital", "channel.bits=16"), ("channel=aircomp", "channel.scheme=zf")]
)
def test_a_radio_carries_what_devices_hold(player: Player, channel: tuple[str, ...]) -> None:
    """Without noise to speak of the result is that of the ideal link; bytes are fewer."""
    words = (*channel, "channel.tx_snr_db=140", "strategy.num_rounds=1")
    played = player.play(*CLASSES, *words, warm=True)
    wanted = padded_mean(played, all_weights=False)
    moved = max(float(np.abs(wanted[n] - played.start[n]).max()) for n in wanted)
    off = max(float(np.abs(played.outcome.adapter[n] - wanted[n]).max()) for n in wanted)
    assert off <= 2e-3 * moved
    alike = player.play("peft=lora_linear_up", "peft.rank=3", SKEW, *words, warm=True)
    fewer, all_of_it = (p.outcome.ledger.as_dict()["uplink_bytes"] for p in (played, alike))
    assert 0 < fewer < all_of_it


@pytest.mark.parametrize(
    ("words", "names"),
    [
        (("strategy=gradient_download", "peft=lora", "strategy.variant=lora"), "gradient_download"),
        (("peft=head",), "peft=lora"),
        (("peft.combine=flex",), "peft.aggregation=freeze-a"),
        (("peft.aggregation=exact",), "peft.combine=pad"),
        (("strategy.server_rule.name=krum",), "server_rule.name=krum"),
        (("channel=aircomp", "channel.scheme=obda"), "scheme=obda"),
        (("channel=aircomp", "channel.peak_to_mean_db=6"), "peak_to_mean_db=6"),
        (("channel=digital", "channel.max_uses_per_real=0.5"), "max_uses_per_real=0.5"),
        (("connection.block=5", "connection.carries=lora_a"), "carries=lora_a"),
    ],
)
def test_what_does_not_go_together_is_refused_by_name(words: tuple[str, ...], names: str) -> None:
    config = config_of("federation.classes=[{name:a,share:1}]", *words)
    with pytest.raises(ConfigError, match=names):
        require_fit(config)


def test_flex_keeps_a_block_alive_that_the_first_round_left_out(player: Player) -> None:
    """The first round's one device has rank 0 there; the second round's tunes it all the same."""
    classes = "[{name:weak,devices:[3],params:140},{name:strong,devices:[0,1,2]}]"
    one = ("federation.devices_per_round=1", "strategy.num_rounds=2")
    played = player.play(*FLEX, f"federation.classes={classes}", *one)
    first, second = (wire.read_order(played.of_round(n)[0].sent) for n in (1, 2))
    assert (first.layout, second.layout) == ({0: 0, 4: 1}, {0: 2, 4: 4})
    moved = [name for name in played.start if ".0." in name and "lora_B" in name]
    assert moved
    assert all(played.outcome.adapter[name].any() for name in moved)


@pytest.mark.parametrize(
    ("by", "share", "is_refused"),
    [("devices", 0.3, True), ("auto", 0.0, True), ("auto", 0.3, False), ("server", 0.3, False)],
)
def test_devices_do_not_look_through_a_connection(by: str, share: float, is_refused: bool) -> None:
    """In front of the first round no channel is drawn, and what crosses would not be booked."""
    words = (
        "peft=lora_cost_aware",
        f"peft.layout.profile.by={by}",
        f"data.public_fraction={share}",
    )
    require_fit(config_of(*words))
    config = config_of(*words, "connection.block=5")
    if not is_refused:
        require_fit(config)
        return
    with pytest.raises(ConfigError, match=rf"profile\.by={by}.*connection\.block=5"):
        require_fit(config)
