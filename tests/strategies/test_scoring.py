"""AdaLoRA in the federation, against the reference by hand and the schedule in closed form."""

import math
from typing import Any

import numpy as np
import pytest
import torch

from fl_app import wire
from fl_app.config import load_config
from fl_app.errors import ConfigError
from fl_app.finetune import local_batches, optimiser_of
from fl_app.fomo.package import unpack
from fl_app.layout.prefix import block_number, layout_of
from fl_app.layout.sensitivity import BudgetSchedule
from fl_app.material import load_material
from fl_app.records import blob_of, blob_record
from fl_app.seeding import generator
from fl_app.settings import adapter_for, local_tuning
from fl_app.updates import Update
from strategies.scoring import ScoredUnits, SensitivityLayouts
from tests.fakes import Fault
from tests.federation_fixtures import Played, Player

RULE = "peft=lora_sensitivity"
OUTER = (0, 4)
"""The tuned blocks of the tiny model."""


def _played(player: Player, *words: str, **more: Any) -> Played:
    return player.play(RULE, "strategy.num_rounds=5", "finetune.max_steps=3", *words, **more)


def _scores_sent(played: Played, number: int) -> dict[int, dict[int, np.ndarray]]:
    """Returns device to block to scores, read from the bytes that crossed the wire."""
    sent = {}
    for exchange in played.of_round(number):
        record = exchange.received[0].content.array_records.get(wire.SCORES)
        if record is None:
            continue
        config = exchange.sent.content.config_records[wire.CONFIG]
        values = np.frombuffer(blob_of(record), "<f4")
        ranks: Any = config["ranks"]
        rows = np.split(values, np.cumsum(ranks)[:-1])
        sent[exchange.device] = dict(zip(config["blocks"], rows, strict=True))  # type: ignore[arg-type]
    return sent


# --- the schedule ---------------------------------------------------------------------------------


def test_ranks_fall_from_start_to_the_parameters_of_uniform_lora(player: Player) -> None:
    """Closed form with RT = 4, R0 = 12, t_i = t_f = 1, T = 5; the head is not counted in units."""
    words = ("peft.layout.scores.start=3",)  # R0 = 12 units, so that the fall has steps
    played = _played(player, *words)
    units = [
        sum(wire.read_order(e.sent).layout.values())
        for n in range(1, 6)
        for e in played.of_round(n)[:1]
    ]
    closed = [12 if t <= 1 else 4 + math.floor(8 * (1 - (t - 1) / 3) ** 3) for t in range(5)]
    assert units == closed == [12, 12, 6, 4, 4]
    uniform, _ = player.bench(player.tiny.overrides())
    tuned = {name: array.size for name, array in played.outcome.adapter.items()}
    assert sum(tuned.values()) == sum(p.numel() for p in uniform.full.parameters.values())
    assert played.bench.full.layout == {
        b: layout_of(played.outcome.adapter).get(b, 0) for b in OUTER
    }


def test_devices_send_scores_alone_and_only_before_a_cut(player: Player) -> None:
    """Four bytes a unit; in the warm-up and once the last budget is reached nothing is sent."""
    played = _played(player)
    sizes = [6, 6, 4, 4, 4]
    account, devices = played.outcome.ledger, len(played.devices(1))
    cuts = [n for n in range(1, 6) if n < 5 and sizes[n] < sizes[n - 1]]
    assert cuts == [2]
    for number in range(1, 6):
        sent = 4 * sizes[number - 1] * devices if number in cuts else 0
        assert account.total_bytes(round=number, what="scores") == sent
        listed = 2 * sizes[number - 1] * devices if number > 2 else 0  # two bytes a unit
        assert account.total_bytes(round=number, link="downlink", what="control") == listed
    assert account.as_dict()["score_bytes"] == account.total_bytes(what="scores") > 0


# --- scores ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("aggregation", ["freeze-a", "factors"])
def test_scores_of_a_device_are_adalora_by_hand(player: Player, aggregation: str) -> None:
    """The device's round again, in plain torch, with the formulas of the paper written out."""
    words = (f"peft.aggregation={aggregation}", "finetune.clip_norm=0.05")
    played = _played(player, *words, faults=None)
    config, exchange = played.bench.config, played.of_round(2)[1]
    order = wire.read_order(exchange.sent)
    package = unpack(played.bench.piece.blob)
    adapter = adapter_for(config, package.model, blocks=package.split.blocks, tuned=OUTER)
    adapter.resize(order.layout, order.units)
    adapter.write(order.adapter)
    task = played.bench.task
    encoded = task.encode(load_material(config).of_device(order.device))
    tuned, beta = adapter.parameters, 0.85
    optimiser = optimiser_of(tuned, local_tuning(config.finetune))
    mean: dict[str, Any] = {name: 0.0 for name in tuned}
    spread: dict[str, Any] = {name: 0.0 for name in tuned}
    rng = generator(config.seed, "local", 2, order.device)
    batches = list(local_batches(encoded, batch_size=8, epochs=1, rng=rng))[:3]
    for indices in batches:
        optimiser.zero_grad()
        batch = task.batch(encoded, indices)
        labels = batch.pop("labels")
        torch.nn.functional.cross_entropy(adapter.model(**batch).logits, labels).backward()
        for name, p in tuned.items():
            now = (p.detach().double() * p.grad.double()).abs()  # type: ignore[union-attr]
            mean[name] = beta * mean[name] + (1 - beta) * now
            spread[name] = beta * spread[name] + (1 - beta) * (now - mean[name]).abs()
        torch.nn.utils.clip_grad_norm_(list(tuned.values()), 0.05)
        optimiser.step()
    for block in OUTER:
        rows, maps = 0.0, 0
        for name in tuned:
            if ".lora_" in name and block_number(name) == block:
                score = (mean[name] * spread[name]).numpy()
                rows = rows + (score.mean(1) if ".lora_A." in name else score.mean(0))
                maps += ".lora_B." in name
        assert maps == 2  # query and value
        given = _scores_sent(played, 2)[order.device][block]
        np.testing.assert_allclose(given, rows / maps, rtol=1e-4)
        assert np.ptp(given) > 0


def test_the_server_keeps_the_units_with_the_best_mean_score(player: Player) -> None:
    """Devices of unequal weight; which units stay is worked out from the bytes on the wire.

    Each device's scores are brought to sum 1 first, and no weight is above the lower median.
    """
    played = _played(player, "data.partition.kind=quantity", "data.partition.alpha=1")
    sent = _scores_sent(played, 2)
    metrics = {
        e.device: e.received[0].content.metric_records["metrics"] for e in played.of_round(2)
    }
    weights = {d: float(metrics[d]["num-examples"]) for d in sent}  # type: ignore[arg-type]
    assert len(set(weights.values())) > 1
    most = sorted(weights.values())[(len(weights) - 1) // 2]
    bounded = {d: min(weight, most) for d, weight in weights.items()}
    sums = {d: float(sum(row.sum(dtype=np.float64) for row in sent[d].values())) for d in sent}
    mean = {b: sum(bounded[d] * sent[d][b] / sums[d] for d in sent) for b in OUTER}
    ranked = sorted(((mean[b][i], b, i) for b in OUTER for i in range(3)), reverse=True)
    best = ranked[:4]
    wanted = {b: tuple(i for _, own, i in best if own == b) for b in OUTER}
    order = wire.read_order(played.of_round(3)[0].sent)
    assert {b: tuple(u) for b, u in order.units.items()} == wanted
    assert order.layout == {b: len(units) for b, units in wanted.items()}


# --- sorting and cutting --------------------------------------------------------------------------


def _adapter(rng: np.random.Generator, ranks: dict[int, int]) -> Update:
    arrays: Update = {"head": rng.standard_normal(3).astype(np.float32)}
    for block, rank in ranks.items():
        stem = f"layer.{block}.query"
        arrays[f"{stem}.lora_A.weight"] = rng.standard_normal((rank, 5)).astype(np.float32)
        arrays[f"{stem}.lora_B.weight"] = rng.standard_normal((7, rank)).astype(np.float32)
    return arrays


def _scored(scores: dict[int, list[float]], weight: int = 1) -> wire.Reply:
    rows = {block: np.array(row) for block, row in scores.items()}
    return wire.Reply(0, {}, weight, 0.0, 0.0, scores=rows)


def test_sorting_changes_no_product_and_cutting_drops_the_worst() -> None:
    rng = np.random.default_rng(0)
    before = _adapter(rng, {0: 3, 1: 2})
    units = ScoredUnits({0: 3, 1: 2}, is_a_sent=True)
    units.learn([_scored({0: [1, 4, 1], 1: [2, 4]}, 3), _scored({0: [1, 2, 5], 1: [2, 2]}, 1)])
    # sums 12 and 12; equal weights: means in 24ths are 2, 6, 6 and 4, 6
    sorted_ = units.sort(before)
    for block in (0, 1):
        a, b = (f"layer.{block}.query.lora_{letter}.weight" for letter in "AB")
        product = np.sort(before[b][:, :, None] * before[a], axis=1)  # the very same summands
        assert np.array_equal(product, np.sort(sorted_[b][:, :, None] * sorted_[a], axis=1))
        bound = 8 * np.finfo(np.float32).eps * np.abs(before[b]) @ np.abs(before[a])
        assert (np.abs(sorted_[b] @ sorted_[a] - before[b] @ before[a]) <= bound).all()
    a = "layer.0.query.lora_A.weight"
    assert np.array_equal(sorted_[a], before[a][[1, 2, 0]])
    kept = units.keep(sorted_, 3)
    assert units.layout == layout_of(kept) == {0: 2, 1: 1}
    assert np.array_equal(kept[a], before[a][[1, 2]])
    assert units.keep(kept, 1)["layer.0.query.lora_B.weight"].shape == (7, 1)
    assert units.layout == {0: 1, 1: 0}
    assert units.units == {}


def test_a_frozen_a_is_named_by_rows_and_permuted_blocks_permute_ranks() -> None:
    schedule = BudgetSchedule(start=6, end=3, warmup=0, final=0, steps=1)
    scores = {0: [0.1, 9.0, 0.2], 2: [0.3, 8.0, 7.0]}
    kept = {}
    for name, rows in (("as is", scores), ("swapped", {0: scores[2], 2: scores[0]})):
        layouts = SensitivityLayouts({0: 3, 2: 3}, schedule, is_a_sent=False)
        assert layouts.is_wanted(1)
        assert layouts.units == {}
        layouts.settle(1, _adapter(np.random.default_rng(0), {0: 3, 2: 3}), [_scored(rows)])
        kept[name] = layouts.units
        assert not layouts.is_wanted(2)
    assert kept["as is"] == {0: (1,), 2: (1, 2)}
    assert kept["swapped"] == {0: (1, 2), 2: (1,)}


# --- faults and refusals --------------------------------------------------------------------------


def _bad_scores(change: Any) -> Fault:
    def fault(_sent: Any, reply: Any) -> list[Any]:
        if wire.SCORES in reply.content:
            values = np.frombuffer(blob_of(reply.content[wire.SCORES]), "<f4").copy()
            reply.content[wire.SCORES] = blob_record(change(values).astype("<f4").tobytes())
        return [reply]

    return fault


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda s: s * np.nan, "not-finite"),
        (lambda s: s + np.inf, "not-finite"),
        (lambda s: -1.0 - s, "bad-score"),
        (lambda s: s[:-1], "wrong-shape"),
    ],
)
def test_a_device_with_bad_scores_is_dropped(player: Player, change: Any, reason: str) -> None:
    played = _played(player, faults={1: _bad_scores(change)})
    assert played.dropped(2) == {reason: [1]}
    assert 1 in played.devices(1)
    assert 1 in played.devices(3)


def test_a_round_that_nobody_survives_cuts_nothing_and_the_next_catches_up(player: Player) -> None:
    lost = {(2, device): _bad_scores(lambda s: s * np.nan) for device in range(4)}
    played = _played(player, faults=lost)
    ranks = [sum(wire.read_order(played.of_round(n)[0].sent).layout.values()) for n in (2, 3, 4)]
    assert ranks == [6, 6, 4]


def test_every_way_gives_the_same_adapter(player: Player) -> None:
    """One process that plays all devices, or four; answers in any order."""
    one = _played(player, num_nodes=1)
    many = _played(player, shuffle=3)
    for name, array in one.outcome.adapter.items():
        assert np.array_equal(array, many.outcome.adapter[name])


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (("peft.aggregation=exact",), "peft.aggregation=exact"),
        (("strategy.server_rule.name=fedadam",), "strategy.server_rule.name=fedadam"),
        (("strategy.num_rounds=2",), "strategy.num_rounds=2"),
        (("strategy.schedule=joint",), "strategy.schedule=none"),
        (("federation.classes=[{name: a, share: 1}]",), "federation.classes"),
    ],
)
def test_what_does_not_go_together_is_refused(
    player: Player, words: tuple[str, ...], named: str
) -> None:
    with pytest.raises(ConfigError, match=named):
        _played(player, *words)


def test_other_limits_are_refused_by_name() -> None:
    with pytest.raises(ConfigError, match="memory_bytes"):
        load_config(f"{RULE} peft.layout.memory_bytes=1e9")
