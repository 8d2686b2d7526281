"""Gains before the first round: against autograd, on the server and on devices."""

import itertools
from typing import Any

import numpy as np
import pytest
import torch

from fl_app import wire
from fl_app.bench import Bench, prepare
from fl_app.config import load_config
from fl_app.errors import ConfigError, RunError, WireError
from fl_app.fomo.package import unpack
from fl_app.gains_wire import gains_reply, read_gains
from fl_app.material import load_material
from fl_app.profiling import gains_of
from fl_app.records import blob_record, to_blob
from fl_app.settings import adapter_for
from fl_app.tasks import Encoded
from fl_app.variants import as_reference
from tests.federation_fixtures import NUM_DEVICES, Player, player, tiny_federation

__all__ = ["player", "tiny_federation"]

WORDS = ("peft=lora_cost_aware", "peft.layout.profile.head_steps=0", "finetune.batch_size=64")
SERVER = (*WORDS, "data.public_fraction=0.3")
OUTER, LARGEST = (0, 4), 4
"""The tuned blocks, and peft.rank=2 times their number."""


def _autograd(model: Any, bench: Bench, encoded: Encoded, places: dict[int, int]) -> Any:
    """Returns gains by numpy's SVD of the gradients of a plain ``transformers`` model."""
    weights = {
        (block, name): getattr(model.bert.encoder.layer[place].attention.self, name).weight
        for block, place in places.items()
        for name in ("query", "value")
    }
    for weight in weights.values():
        weight.requires_grad_(True)
    batch = bench.task.batch(encoded, range(len(encoded)))
    labels = batch.pop("labels")
    loss = torch.nn.functional.cross_entropy(model(**batch).logits, labels)
    gradients = dict(zip(weights, torch.autograd.grad(loss, list(weights.values())), strict=True))
    gains = {block: np.zeros(LARGEST) for block in places}
    for (block, _), gradient in gradients.items():
        gains[block] += np.linalg.svd(gradient.numpy(), compute_uv=False)[:LARGEST] ** 2
    return gains


def _best(gains: dict[int, np.ndarray], num_units: int) -> dict[int, int]:
    """Returns by exhaustive search the layout of so many units with the greatest gain."""
    choices = itertools.product(range(LARGEST + 1), repeat=len(gains))
    fitting = [sizes for sizes in choices if sum(sizes) == num_units]
    rows = list(gains.values())
    value = [sum(row[:n].sum() for row, n in zip(rows, sizes, strict=True)) for sizes in fitting]
    return dict(zip(gains, fitting[int(np.argmax(value))], strict=True))


def test_the_server_looks_at_its_public_rows_and_spends_as_uniform_does(player: Player) -> None:
    bench, _ = player.bench(player.tiny.overrides(*SERVER))
    fresh = prepare(as_reference(bench.config, "frozen"))
    public = bench.task.encode(load_material(bench.config).public)
    assert 8 < len(public) <= 64  # one batch
    plain = fresh.full.bare_model
    wanted = _autograd(plain, bench, public, {block: block for block in OUTER})
    uniform, _ = player.bench(player.tiny.overrides())
    uniform.resize(uniform.allocation.server)
    given = gains_of(bench.config, uniform.full, bench.task, public, "server")
    for block in OUTER:
        np.testing.assert_allclose(given[block], wanted[block], rtol=1e-3, atol=1e-12)
    assert bench.full.layout == _best(wanted, 4)
    sizes = [sum(p.numel() for p in b.full.parameters.values()) for b in (bench, uniform)]
    assert sizes[0] == sizes[1]
    one = 2 * 16  # a column of B in two maps of width 16
    layouts = []
    for units in (1, 3):
        limit = sizes[1] - (4 - units) * one
        less = prepare(load_config(player.tiny.overrides(*SERVER, f"peft.layout.params={limit}")))
        layouts.append(less.full.layout)
        assert layouts[-1] == _best(wanted, units)
        assert sum(p.numel() for p in less.full.parameters.values()) == limit


def test_looking_leaves_the_adapter_as_it_was(player: Player) -> None:
    bench, start = player.bench(player.tiny.overrides())
    public = bench.task.encode(load_material(bench.config).test)
    words = (*SERVER, "peft.layout.profile.head_steps=3")
    config = load_config(player.tiny.overrides(*words))
    tuned = gains_of(config, bench.full, bench.task, public, "server")
    plain = gains_of(
        load_config(player.tiny.overrides(*SERVER)), bench.full, bench.task, public, ""
    )
    assert not np.allclose(tuned[4], plain[4], rtol=1e-3)  # behind another head
    after = bench.full.read()
    assert all(np.array_equal(after[name], start[name]) for name in start)
    assert not any(weight.requires_grad for weight in bench.full.frozen_maps.values())
    assert all(p.grad is None for p in bench.full.model.parameters())


def test_devices_look_where_the_server_has_no_rows(player: Player) -> None:
    """The mean of what each device's own data say, as shares of its sum; four bytes a gain.

    Weights are numbers of examples, none above the lower median of four.
    """
    words = (*WORDS, "data.partition.kind=quantity", "strategy.num_rounds=1")
    played = player.play(*words)
    bench = played.bench
    material = load_material(bench.config)
    package = unpack(bench.piece.blob)
    adapter_for(bench.config, package.model, blocks=package.split.blocks, tuned=OUTER)
    shares, sizes = [], []
    for device in range(NUM_DEVICES):
        encoded = bench.task.encode(material.of_device(device))
        model = unpack(bench.piece.blob).model
        own = _autograd(model, bench, encoded, {0: 0, 4: 2})  # blocks 0, 2, 4 of the full model
        total = sum(own[block].sum() for block in OUTER)
        shares.append({block: own[block] / total for block in OUTER})
        sizes.append(len(encoded))
    assert len(set(sizes)) > 1
    weights = [min(size, sorted(sizes)[1]) for size in sizes]
    pairs = list(zip(weights, shares, strict=True))
    wanted = _best({block: sum(w * own[block] for w, own in pairs) for block in OUTER}, 4)
    assert wire.read_order(played.of_round(1)[0].sent).layout == wanted
    book = played.outcome.ledger
    assert book.total_bytes(round=0, what="scores") == 4 * LARGEST * len(OUTER) * NUM_DEVICES
    assert book.total_bytes(round=0, what="emulator") == NUM_DEVICES * len(bench.piece.blob)
    assert book.total_bytes(round=1, what="emulator") == 0
    assert played.devices(1) == list(range(NUM_DEVICES))


def test_the_server_needs_rows_to_look_at(player: Player) -> None:
    words = player.tiny.overrides(*WORDS, "peft.layout.profile.by=server")
    with pytest.raises(ConfigError, match="public_fraction"):
        prepare(load_config(words))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda g: {b: r * np.nan for b, r in g.items()}, "not-finite"),
        (lambda g: {b: -r for b, r in g.items()}, "bad-score"),
        (lambda g: {b: r[::-1] for b, r in g.items()}, "bad-score"),
        (lambda g: {b: 0 * r for b, r in g.items()}, "bad-score"),
        (lambda g: {b: r[:-1] for b, r in g.items()}, "wrong-shape"),
    ],
)
def test_gains_that_make_no_sense_are_refused(change: Any, reason: str) -> None:
    order = wire.Order(0, 1, 2, "hash", {}, None, layout={0: 2, 4: 2})
    sent = wire.order_message(order, 7, blob_record(to_blob({})))
    sent.metadata.__dict__["_message_id"] = "question"
    good = {block: np.array([4.0, 2.0, 1.0]) for block in (0, 4)}
    gains, weight = read_gains(gains_reply(sent, order, good, 9), order, 3)
    assert weight == 9
    assert all(np.array_equal(gains[block], good[block]) for block in good)
    with pytest.raises(WireError) as caught:
        read_gains(gains_reply(sent, order, change(good), 9), order, 3)
    assert caught.value.reason == reason
    other = wire.Order(**{**vars(order), "device": 0})
    with pytest.raises(WireError, match="answers for"):
        read_gains(gains_reply(sent, other, good, 9), order, 3)


def test_without_any_gains_there_is_no_run(player: Player, monkeypatch: Any) -> None:
    from clients.worker import EmulatorWorker

    def fails(self: Any, message: Any) -> Any:
        raise MemoryError("no room for the gradient")

    monkeypatch.setattr(EmulatorWorker, "gains", fails)
    with pytest.raises(RunError, match="no device gave gains"):
        player.play(*WORDS, "strategy.num_rounds=1")


@pytest.mark.parametrize("channel", ["digital", "aircomp"])
def test_gains_take_time_on_air(player: Player, channel: str) -> None:
    """Over AWGN everybody has an equal share of the band at the same rate; round 0 is theirs."""
    words = (*WORDS, f"channel={channel}", "channel.fading=awgn", "strategy.num_rounds=1")
    played = player.play(*words)
    config: Any = played.bench.config.channel
    book = played.outcome.ledger
    row: Any = book.as_dict()["per_round"][0]  # type: ignore[index]
    assert row["round"] == 0
    num_bytes = 4 * LARGEST * len(OUTER)
    assert book.total_bytes(round=0, what="scores") == num_bytes * NUM_DEVICES
    share = 1 / NUM_DEVICES  # all of a device's power in its share
    bits_per_use = np.log2(1 + 10 ** (config.tx_snr_db / 10) / share)
    uses = 8 * num_bytes / bits_per_use  # rounded up to whole ones
    assert NUM_DEVICES * uses <= row["channel_uses"] <= NUM_DEVICES * (uses + 1)
    seconds = uses / (config.bandwidth_hz * share)
    one = 1 / (config.bandwidth_hz * share)
    assert seconds - 1e-12 <= row["radio_seconds"] <= seconds + one
    assert row["radio_joules"] > 0
    ideal = player.play(*WORDS, "strategy.num_rounds=1").outcome.ledger
    assert ideal.as_dict()["per_round"][0]["radio_seconds"] == 0  # type: ignore[index]


def test_a_schedule_waits_for_the_blocks_that_gains_choose(player: Player) -> None:
    """Two tuned blocks for one device a round are too many, and gains leave one of them."""
    words = (*WORDS, "strategy.schedule=random", "federation.devices_per_round=1")
    bench, _ = player.bench(player.tiny.overrides(*words))
    assert bench.allocation.is_waiting
    assert bench.times is None
    bench.take({0: np.zeros(LARGEST), 4: np.arange(LARGEST, 0, -1.0)})
    assert bench.full.layout == {0: 0, 4: 4}
    assert bench.times is not None
    assert len(bench.times.layouts) == 1
    with pytest.raises(ConfigError, match="2 groups of blocks for 1 devices"):
        bench.take(dict.fromkeys(OUTER, np.arange(LARGEST, 0, -1.0)))
