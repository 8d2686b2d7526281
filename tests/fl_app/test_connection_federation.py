"""Federations whose devices and server tune and measure through a neural connection."""

import logging
import math
from typing import Any

import numpy as np
import pytest
from flwr.app import Message

from fl_app import wire
from fl_app.bench import prepare
from fl_app.config import load_config, to_dict
from fl_app.connections import link_spec
from fl_app.errors import ConfigError, ModelError
from fl_app.finetune import local_batches
from fl_app.job import adapter_sha256
from fl_app.material import load_material
from fl_app.measures import measure_emulator, measure_plug_in
from fl_app.schema import ConnectionConfig
from fl_app.seeding import generator
from fl_app.variants import as_reference
from tests import fakes
from tests.federation_fixtures import (
    NUM_DEVICES,
    NUM_ROUNDS,
    Player,
    player,
    tiny_federation,
)

__all__ = ["player", "tiny_federation"]

# Of the five blocks the split 1-1-1 keeps 0, 2 and 4.
CUT = "connection.block=4"


def test_words_of_the_command_line_make_a_link() -> None:
    config = load_config("connection.block=4 connection.tx_snr_db=10 connection.rotation=true")
    assert config.connection == ConnectionConfig(block=4, tx_snr_db=10.0, rotation=True)
    spec = link_spec(config.connection)
    assert (spec.tx_snr_db, spec.gradient_tx_snr_db, spec.rotation) == (10.0, 10.0, True)
    assert load_config().connection.block is None
    quiet = load_config("connection.tx_snr_db=inf connection.gradient_tx_snr_db=3").connection
    assert (quiet.tx_snr_db, link_spec(quiet).gradient_tx_snr_db) == (math.inf, 3.0)
    assert to_dict(config)["connection"]["block"] == 4


@pytest.mark.parametrize(
    "word",
    [
        "connection.block=-1",
        "connection.carries=all",
        "connection.num_tx=0",
        "connection.num_rx=257",
        "connection.fading=ideal",
        "connection.rician_k=-1",
        "connection.correlation=1.5",
        "connection.tx_snr_db=nan",
        "connection.gradient_tx_snr_db=-inf",
        "connection.csi_error=2",
        "connection.peak_db=-3",
        "connection.bandwidth_hz=0",
        "connection.tx_power_dbm=inf",
        "connection.gradient_tx_power_dbm=nan",
    ],
)
def test_values_out_of_range_are_refused_by_name(word: str) -> None:
    with pytest.raises(ConfigError, match=word.split("=")[0].replace(".", r"\.")):
        load_config(word)


def test_without_noise_the_federation_is_the_plain_one(player: Player) -> None:
    plain = player.play(warm=True)
    through = player.play(CUT, "connection.tx_snr_db=inf", warm=True)
    assert adapter_sha256(through.outcome.adapter) == adapter_sha256(plain.outcome.adapter)


@pytest.mark.parametrize("carries", ["features", "lora_a"])
def test_noise_reaches_devices_and_repeats(player: Player, carries: str) -> None:
    words = (CUT, "connection.tx_snr_db=5", f"connection.carries={carries}")
    plain = player.play(warm=True)
    first = player.play(*words, shuffle=1, warm=True, measure_rounds=True)
    again = player.play(*words, shuffle=2, warm=True, measure_rounds=True)
    assert adapter_sha256(first.outcome.adapter) == adapter_sha256(again.outcome.adapter)
    assert adapter_sha256(first.outcome.adapter) != adapter_sha256(plain.outcome.adapter)
    assert [r.metrics for r in first.outcome.rounds] == [r.metrics for r in again.outcome.rounds]
    bench, adapter = first.bench, first.outcome.adapter
    assert bench.full_link is not None
    assert bench.piece.emulated_link is not None
    for measure, link in (
        (measure_plug_in, bench.full_link),
        (measure_emulator, bench.piece.emulated_link),
    ):
        before = link.book.forward_uses
        assert measure(bench, adapter, bench.test) == measure(bench, adapter, bench.test)
        assert link.book.forward_uses > before
        assert link.book.backward_uses == 0  # the server only measures


def test_what_crosses_is_in_the_ledger(player: Player) -> None:
    """Per step and direction: real tokens times channel uses of one hidden state."""
    played = player.play(CUT, "connection.tx_snr_db=5", warm=True)
    account = played.outcome.ledger.as_dict()
    config = played.bench.config
    material, tokens = load_material(config), 0
    for exchange in played.grid.exchanges:
        encoded = played.bench.task.encode(material.of_device(exchange.device))
        rng = generator(config.seed, "local", exchange.round, exchange.device)
        size = config.finetune.batch_size
        step = next(local_batches(encoded, batch_size=size, epochs=1, rng=rng))
        tokens += int(encoded.lengths[step].sum())
    assert len(played.grid.exchanges) == NUM_DEVICES * NUM_ROUNDS
    hidden = played.bench.backbone.model.config.hidden_size
    streams = min(config.connection.num_tx, config.connection.num_rx)
    assert account["connection_uses"] == 2 * tokens * -(-hidden // streams)
    assert account["channel_uses"] == 0
    side = account["control_bytes"]  # means and scales, one set a pass, whatever the batch
    assert isinstance(side, int)
    assert side > 0
    assert side % (NUM_DEVICES * NUM_ROUNDS) == 0
    assert player.play(warm=True).outcome.ledger.as_dict()["connection_uses"] == 0


def test_seconds_and_joules_are_uses_over_the_bandwidth_times_power(player: Player) -> None:
    """Everything that goes forward comes back here: 0.1 W one way, 1 W the other, 2 MHz."""
    words = ("connection.bandwidth_hz=2e6", "connection.tx_power_dbm=20")
    played = player.play(CUT, *words, "connection.gradient_tx_power_dbm=30", warm=True)
    account: Any = played.outcome.ledger.as_dict()
    uses = account["connection_uses"]
    assert uses > 0
    assert account["connection_seconds"] == pytest.approx(uses / 2e6, rel=1e-12)
    assert account["connection_joules"] == pytest.approx(uses / 2 * 0.1 / 2e6, rel=1e-12)
    assert account["connection_server_joules"] == pytest.approx(uses / 2 * 1.0 / 2e6, rel=1e-12)
    assert account["radio_seconds"] == account["radio_joules"] == 0.0
    assert sum(row["connection_joules"] for row in account["per_round"]) == pytest.approx(
        account["connection_joules"], rel=1e-12
    )
    equal = player.play(CUT, warm=True).outcome.ledger.as_dict()  # both with 23 dBm in 1 MHz
    watt = 10.0**2.3 / 1e3
    for key in ("connection_joules", "connection_server_joules"):
        assert equal[key] == pytest.approx(uses / 2 * watt / 1e6, rel=1e-12)


def test_the_channel_is_paid_for_although_an_update_is_refused(player: Player) -> None:
    """What a refused device spent is in its reply; a silent one's cost nobody knows."""

    def account(fault: fakes.Fault | None) -> Any:
        faults = None if fault is None else {(1, 1): fault}
        played = player.play(CUT, faults=faults, warm=True)
        assert bool(played.dropped(1)) == (fault is not None)
        return {k: v for k, v in played.outcome.ledger.as_dict()["per_round"][0].items()}  # type: ignore[index,union-attr]

    def miscounts(_sent: Message, reply: Message) -> list[Message]:
        metrics: Any = reply.content.metric_records[wire.METRICS]
        metrics["forward_uses"] = -1
        return [reply]

    crossed = [f"connection_{part}" for part in ("uses", "seconds", "joules", "server_joules")]
    honest = account(None)
    for refused in (
        fakes.update(fakes.one_entry(math.nan)),
        fakes.config(layout_hash="another"),
        fakes.damaged_in_transit,
        fakes.without(wire.UPDATE),
        fakes.answers_twice,  # the work was done once
    ):
        row = account(refused)
        assert [row[key] for key in crossed] == [honest[key] for key in crossed]
    unknown = [
        account(fault)
        for fault in (
            fakes.vanishes,
            fakes.raises(),
            fakes.config(round=9),
            fakes.without(wire.METRICS),
            miscounts,
        )
    ]
    for row in unknown:
        assert 0 < row["connection_uses"] < honest["connection_uses"]
        assert row == unknown[0] | {"uplink_bytes": row["uplink_bytes"]}


def test_every_round_says_how_well_the_connection_did(player: Player) -> None:
    """The NMSE while the plug-in figure is measured: -10 dB for +10 dB of tx-SNR, 0 for inf."""

    def figures(*words: str) -> list[dict[str, float]]:
        played = player.play(CUT, *words, warm=True, measure_rounds=True)
        return [
            {k: v for k, v in record.metrics.items() if k.startswith("connection")}  # type: ignore[misc]
            for record in played.outcome.rounds
        ]

    loud, quiet = figures("connection.tx_snr_db=10"), figures("connection.tx_snr_db=20")
    assert len(loud) == NUM_ROUNDS + 1
    assert [set(row) for row in loud] == [{"connection_nmse"}] * len(loud)
    # before the first round both measure the same adapter through the same draws
    ratio = loud[0]["connection_nmse"] / quiet[0]["connection_nmse"]
    assert ratio == pytest.approx(10.0, rel=1e-4)
    assert figures("connection.tx_snr_db=inf") == [{"connection_nmse": 0.0}] * len(loud)
    clipped = figures("connection.tx_snr_db=inf", "connection.peak_db=0")
    for row in clipped:
        assert 0.0 < row["connection_clipping_nmse"]
        assert row["connection_clipping_nmse"] == pytest.approx(row["connection_nmse"], rel=1e-4)
        assert 0.0 < row["connection_clipped_share"] < 1.0
    plain = player.play(warm=True, measure_rounds=True).outcome.rounds
    assert not any("connection_nmse" in record.metrics for record in plain)


def test_rounds_meet_other_channels(player: Player) -> None:
    """The same device and data with all else equal: only the round, hence the channel, differs."""
    bench, start = player.bench(player.tiny.overrides(CUT, "connection.tx_snr_db=0"))
    link = bench.piece.emulated_link
    assert link is not None
    outputs = []
    for round_, device in ((1, 0), (2, 0), (1, 1), (1, 0)):
        link.redraw(round_, device=device)
        batch = bench.task.batch(bench.test, range(4))
        logits = bench.piece.emulated.model(
            **{k: v for k, v in batch.items() if k != "labels"}
        ).logits
        outputs.append(logits.detach().numpy().tobytes())
    assert outputs[0] == outputs[3]
    assert len(set(outputs)) == 3
    assert all(np.array_equal(bench.full.read()[name], array) for name, array in start.items())


def test_what_does_not_fit_is_refused_before_the_first_round(player: Player) -> None:
    def refused(*words: str) -> str:
        with pytest.raises((ModelError, ConfigError)) as caught:
            prepare(load_config(player.tiny.overrides(*words)))
        return str(caught.value)

    assert "[0, 2, 4]" in refused("connection.block=3")  # the full model has it, devices do not
    assert "connection.block=9" in refused("connection.block=9")
    assert "no LoRA" in refused("connection.block=2", "connection.carries=lora_a")
    refusal = refused(CUT, "connection.carries=lora_a", "peft.aggregation=factors")
    assert "peft.aggregation=freeze-a" in refusal


def test_a_cut_with_nothing_tuned_in_front_is_warned_of_once(
    player: Player, caplog: pytest.LogCaptureFixture
) -> None:
    """The split 0-3-2 of five blocks tunes blocks 3 and 4; only behind block 3 is one in front."""
    split = [f"strategy.emulator.{side}={n}" for side, n in (("left", 0), ("middle", 3))]
    for block, warned in ((3, 1), (4, 0)):
        caplog.clear()
        with caplog.at_level(logging.WARNING, logger="deft"):
            bench = prepare(
                load_config(
                    player.tiny.overrides(
                        *split, "strategy.emulator.right=2", f"connection.block={block}"
                    )
                )
            )
        assert bench.piece.split.outer == (3, 4)
        assert caplog.text.count(f"connection.block={block}") == warned
    assert "no gradient" not in caplog.text


def test_comparison_runs_keep_the_connection_where_they_can(player: Player) -> None:
    config = load_config(player.tiny.overrides(CUT))
    for name in ("frozen", "federated_full", "centralised"):
        assert as_reference(config, name).connection.block == 4
    config = load_config(player.tiny.overrides(CUT, "connection.carries=lora_a"))
    assert as_reference(config, "frozen").connection.block is None  # a head alone has no A
    assert as_reference(config, "federated_full").connection.block == 4
