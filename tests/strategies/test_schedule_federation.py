"""Federations whose devices tune different blocks: what is assembled, booked and refused."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest

from fl_app import wire
from fl_app.bench import prepare
from fl_app.config import load_config
from fl_app.errors import ConfigError
from fl_app.job import adapter_sha256
from fl_app.layout.prefix import block_number, unit_axis
from fl_app.records import to_blob
from fl_app.updates import Update
from fl_app.variants import as_reference
from strategies.fit import require_fit
from tests import fakes
from tests.federation_fixtures import Played, Player
from tests.radio_rounds import config_of

EPS = float(np.finfo(np.float32).eps)
SLOW = (
    "federation.classes=[{name: slow, share: 1, device: phone, flops_per_s: 3e7},"
    "{name: fast, share: 1, device: laptop, flops_per_s: 9e7, distance_m: 400}]"
)
"""Computing takes these about as long as sending a tiny adapter."""
CELL = ("channel=digital", "channel.placement=cell", "channel.num_subcarriers=8")
SCHEMA = json.loads((Path(__file__).parents[2] / "docs/result.schema.json").read_text())


def _turns(played: Played, number: int = 1) -> list[dict[str, Any]]:
    assert played.outcome.results["schedule"] is not None
    rounds = {one["round"]: one for one in played.outcome.results["schedule"]["rounds"]}
    turns: list[dict[str, Any]] = rounds[number]["turns"]
    return turns


def _blocks(names: Sequence[str]) -> set[int]:
    return {block_number(name) for name in names if unit_axis(name) is not None}


@pytest.mark.parametrize("aggregation", ["freeze-a", "factors", "alternate"])
def test_the_adapter_is_assembled_from_what_devices_tuned(player: Player, aggregation: str) -> None:
    """Each block is the weighted mean over its own devices, the head that over all; by hand."""
    words = ("strategy.schedule=joint", "federation.num_devices=3", "strategy.num_rounds=1")
    words += ("data.partition.kind=quantity", f"peft.aggregation={aggregation}")
    played = player.play(*words)
    turns, exchanges = _turns(played), played.of_round(1)
    updates = {e.device: e.updates[0] for e in exchanges}
    weights = {
        e.device: int(e.received[0].content.metric_records[wire.METRICS][wire.NUM_EXAMPLES])  # type: ignore[arg-type]
        for e in exchanges
    }
    assert len(set(weights.values())) == 3
    assert sorted(block for turn in turns for block in turn["blocks"]) == [0, 4, 4]
    for turn in turns:
        assert _blocks([*updates[turn["device"]]]) == set(turn["blocks"])
    adapter, start = played.outcome.adapter, played.start
    for name, array in adapter.items():
        own = [device for device in updates if name in updates[device]]
        total = sum(weights[device] for device in own)
        wanted = start[name].astype(np.float64)
        for device in own:
            wanted = wanted + weights[device] / total * updates[device][name]
        # the mean and the sum are rounded once each
        assert np.abs(array - wanted).max() <= 2 * EPS * np.abs(wanted).max()
    moved = [name for name in adapter if not np.array_equal(adapter[name], start[name])]
    assert _blocks(moved) == {0, 4}
    assert any(unit_axis(name) is None for name in moved)


def test_a_block_whose_devices_are_lost_keeps_its_value(player: Player) -> None:
    words = ("strategy.schedule=matching", "federation.num_devices=2", "strategy.num_rounds=1")
    played = player.play(*words, faults={0: fakes.raises()})
    assert played.dropped(1) == {"error": [0]}
    lost = next(turn for turn in _turns(played) if turn["device"] == 0)
    assert len(lost["blocks"]) == 1
    names = [name for name in played.start if name.endswith("lora_B.weight")]
    for name in names:
        kept = np.array_equal(played.outcome.adapter[name], played.start[name])
        assert kept == (block_number(name) in lost["blocks"])
    assert _blocks(names) == {0, 4}


def test_a_device_that_tunes_another_block_is_dropped(player: Player) -> None:
    def other(update: Update) -> Update:
        swap = {0: 4, 4: 0}
        return {
            name
            if unit_axis(name) is None
            else name.replace(f".{block_number(name)}.", f".{swap[block_number(name)]}.", 1): array
            for name, array in update.items()
        }

    words = ("strategy.schedule=matching", "strategy.num_rounds=1")
    played = player.play(*words, faults={1: fakes.update(other)})
    assert played.dropped(1) == {"wrong-shape": [1]}


@pytest.mark.parametrize("way", ["equal_finish", "joint"])
def test_all_devices_finish_together_in_what_is_booked(player: Player, way: str) -> None:
    """The digital uplink's own seconds, bytes and uses are those that the schedule predicts."""
    played = player.play(f"strategy.schedule={way}", SLOW, *CELL)
    ledger = played.outcome.ledger
    rows = ledger.as_dict()["per_round"]
    assert isinstance(rows, list)
    for row in rows:
        number = int(row["round"])
        turns = _turns(played, number)
        ends = [turn["compute_s"] + turn["uplink_s"] for turn in turns]
        np.testing.assert_allclose(ends, ends[0], rtol=1e-6)
        assert len({turn["compute_s"] for turn in turns}) > 1
        assert min(t["compute_s"] for t in turns) > 0.05 * ends[0]
        longest = max(turn["uplink_s"] for turn in turns)
        assert row["radio_seconds"] == pytest.approx(longest, rel=1e-9)
        assert row["scheduled_s"] == pytest.approx(ends[0], rel=1e-6)
        band = played.bench.config.channel.bandwidth_hz  # type: ignore[attr-defined]
        assert sum(t["bandwidth_hz"] for t in turns) == pytest.approx(band, rel=1e-6)
        book = next(r for r in played.outcome.rounds if r.round == number)
        assert book.metrics["scheduled_s"] == row["scheduled_s"]
    assert [r.dropped for r in played.outcome.rounds] == [{}] * 3
    orders = played.of_round(2)
    told = {e.device: e.downlink_bytes for e in orders}
    whole = len(to_blob(played.outcome.adapter))
    assert all(sizes[wire.ADAPTER] < whole for sizes in told.values())
    jsonschema.Draft202012Validator(
        {"$defs": SCHEMA["$defs"], **SCHEMA["properties"]["schedule"]}
    ).validate(json.loads(json.dumps(played.outcome.results["schedule"])))


@pytest.mark.parametrize(
    "word",
    [
        "channel.csi_error=0.1",
        "channel.target_bits_per_use=0.5",
        "channel.power=density",
        "channel.bits=3",
        "channel.max_bits_per_use=2",
    ],
)
def test_predicted_and_booked_seconds_agree(player: Player, word: str) -> None:
    """Whatever devices code for, and also where the margin for a CSI error is known late."""
    words = ("strategy.schedule=joint", "strategy.num_rounds=1", *CELL, word)
    played = player.play(*words)
    longest = max(turn["uplink_s"] for turn in _turns(played))
    booked = played.outcome.ledger.as_dict()["radio_seconds"]
    assert booked == pytest.approx(longest, rel=1e-9)


def test_on_an_ideal_link_payloads_are_the_bytes_booked(player: Player) -> None:
    """Shannon's rate of the class's link at its share, bytes as serialised."""
    played = player.play("strategy.schedule=joint", SLOW)
    times = played.bench.times
    assert times is not None
    for number in (1, 2):
        for turn in _turns(played, number):
            booked = played.outcome.ledger.total_bytes(
                round=number, device=turn["device"], link="uplink"
            )
            snr, share = times.of(turn["device"]).snr_hz, turn["bandwidth_hz"]
            seconds = 8 * booked / (share * np.log2(1 + snr / share))
            assert turn["uplink_s"] == pytest.approx(seconds, rel=1e-9)


def test_a_schedule_is_the_same_however_devices_are_reached(player: Player) -> None:
    words = ("strategy.schedule=joint", SLOW, *CELL)
    plain = player.play(*words)
    for other in (
        player.play(*words, num_nodes=2, shuffle=1),
        player.play(*words, shuffle=7, warm=True),
    ):
        assert adapter_sha256(other.outcome.adapter) == adapter_sha256(plain.outcome.adapter)
        assert other.outcome.results["schedule"] == plain.outcome.results["schedule"]
    assert _turns(plain, 1) != _turns(plain, 2)  # the channel fades
    kinds = {
        way: player.play(f"strategy.schedule={way}", SLOW, *CELL) for way in ("random", "matching")
    }
    ends = [float(p.outcome.ledger.as_dict()["scheduled_s"]) for p in (plain, *kinds.values())]  # type: ignore[arg-type]
    assert ends[0] < min(ends[1:])


def test_several_blocks_a_device(player: Player) -> None:
    words = ("strategy.emulator.left=1", "strategy.emulator.right=2", "strategy.num_rounds=1")
    words += ("strategy.schedule=joint", "federation.num_devices=2")
    played = player.play(*words, "strategy.blocks_per_device=2")
    assert sorted(tuple(turn["blocks"]) for turn in _turns(played)) == [(0,), (3, 4)]
    with pytest.raises(ConfigError, match=r"3 groups of blocks for 2 devices.*blocks_per_device"):
        prepare(load_config(player.tiny.overrides(*words)))


def test_comparison_runs_have_the_schedule_where_devices_differ(player: Player) -> None:
    config = load_config(player.tiny.overrides("strategy.schedule=joint"))
    ways = {
        name: as_reference(config, name).strategy.schedule  # type: ignore[attr-defined]
        for name in ("frozen", "federated_full", "centralised")
    }
    assert ways == {"frozen": "none", "federated_full": "joint", "centralised": "none"}


REFUSED = {
    "peft.aggregation=exact peft.combine=flex": "peft.aggregation=exact",
    "peft=head": "set peft=lora",
    "channel=aircomp": "channel=digital or ideal",
    "channel=digital channel.gain_floor=0.1": "channel.gain_floor=0.1",
    "channel=digital channel.max_uses_per_real=1": "channel.max_uses_per_real=1",
    "finetune.max_steps=null": "finetune.max_steps",
    "peft.layout.round_s=1": "peft.layout.round_s=1",
    "connection.block=1": "connection.block=1",
    "strategy.server_rule.name=krum": "strategy.server_rule.name=krum",
}


@pytest.mark.parametrize("words", REFUSED)
def test_what_makes_no_sense_is_refused_by_name(words: str) -> None:
    with pytest.raises(ConfigError, match=REFUSED[words]):
        require_fit(config_of("strategy.schedule=joint", *words.split()))


@pytest.mark.parametrize(
    ("words", "named"),
    [
        ("strategy=gradient_download strategy.schedule=joint", "schedule"),
        ("strategy.schedule=fastest", "strategy.schedule='fastest'"),
        ("strategy.blocks_per_device=2", "strategy.blocks_per_device=2"),
        ("strategy.schedule=joint strategy.blocks_per_device=0", "strategy.blocks_per_device=0"),
    ],
)
def test_values_out_of_range_are_named(words: str, named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        config_of(*words.split())
