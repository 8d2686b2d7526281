"""Federations that tune bottleneck adapters or deep prompts, by the rules of LoRA's ranks."""

import json
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
import torch
import transformers

from fl_app import wire
from fl_app.client_app import app
from fl_app.config import load_config
from fl_app.errors import ConfigError, ModelError
from fl_app.fomo.adapter import is_head
from fl_app.fomo.load_adapter import load_adapter
from fl_app.layout.prefix import block_number, cut, layout_of, unit_axis
from fl_app.local_grid import LocalGrid
from fl_app.main_job import run_main_job
from fl_app.pricing import LayoutPrices
from fl_app.records import blob_of, from_blob, to_blob
from fl_app.schema import DeviceConfig
from fl_app.updates import num_reals
from strategies.fit import require_fit
from tests import fakes
from tests.federation_fixtures import (
    ALL_DEVICES,
    CLASSES,
    SKEW,
    Player,
    assert_round_mean,
    padded_mean,
    player,
    tiny_federation,
)

__all__ = ["player", "tiny_federation"]

EPS = float(np.finfo(np.float32).eps)
HEAD, WIDTH = 4 * 16 + 4, 16
SCHEMA = json.loads((Path(__file__).parents[2] / "docs/result.schema.json").read_text())
ONE_ROUND = "strategy.num_rounds=1"
KINDS = {
    "bottleneck": ("peft=bottleneck", "peft.width=3"),
    "deep_prompt": ("peft=deep_prompt", "peft.num_tokens=3"),
}
UNIT = {"bottleneck": 2 * WIDTH, "deep_prompt": 2 * WIDTH}
"""Reals of one unit: a row of D and a column of U, or one of keys and one of values."""
EVERY = pytest.mark.parametrize("kind", list(KINDS))


def _classes(kind: str) -> str:
    """Limits that leave the weak 0 and 1 units of 3 a block, the middling 1 and 2."""
    weak, middling = (HEAD + units * UNIT[kind] for units in (1, 3))
    return (
        f"federation.classes=[{{name:weak,devices:[1],params:{weak}}},"
        f"{{name:middling,devices:[3],params:{middling}}},{{name:strong,devices:[0,2]}}]"
    )


@EVERY
def test_a_round_is_the_mean_of_the_arrays(player: Player, kind: str) -> None:
    played = player.play(*KINDS[kind], SKEW, ONE_ROUND)
    assert_round_mean(played, 1, played.start, ALL_DEVICES)
    tuned = {name: array for name, array in played.start.items() if not is_head(name)}
    assert layout_of(tuned) == {0: 3, 4: 3}
    assert num_reals(tuned) == 6 * UNIT[kind]
    sent = {e.device: e.updates[0] for e in played.of_round(1)}
    moved = [n for n in tuned if all(np.abs(update[n]).max() > 0 for update in sent.values())]
    assert len(moved) >= 2  # D has no gradient before U has moved


@EVERY
@pytest.mark.parametrize("combine", ["pad", "zero"])
def test_unequal_sizes_are_combined_unit_by_unit(player: Player, kind: str, combine: str) -> None:
    words = (*KINDS[kind], _classes(kind), "peft.layout.rule=linear_up", SKEW, ONE_ROUND)
    played = player.play(*words, f"peft.combine={combine}", "finetune.max_steps=2")
    server = played.start
    assert layout_of(server) == {0: 2, 4: 4}
    ledger = 0
    for exchange in played.of_round(1):
        layout = played.bench.allocation.at(1, exchange.device)
        sent = from_blob(blob_of(exchange.sent.content.array_records[wire.ADAPTER]))
        wanted = cut(server, layout)
        assert sent.keys() == wanted.keys() == exchange.updates[0].keys()
        assert all(np.array_equal(sent[name], wanted[name]) for name in sent)
        assert list(layout.values()) == {1: [0, 1], 3: [1, 2]}.get(exchange.device, [2, 4])
        ledger += fakes.payload_bytes(exchange.received[0])[wire.UPDATE]
    assert played.outcome.ledger.as_dict()["uplink_bytes"] == ledger
    given = played.outcome.adapter
    wanted = padded_mean(played, all_weights=combine == "zero")
    other = padded_mean(played, all_weights=combine != "zero")
    assert max(np.abs(given[n] - wanted[n]).max() for n in given) <= 16 * EPS
    assert max(np.abs(other[n] - wanted[n]).max() for n in given) > 1600 * EPS


@EVERY
@pytest.mark.parametrize("rule", ["linear_up", "linear_down", "u_shape", "top_n", "list"])
def test_rules_compare_at_equal_parameters_priced_as_sent(
    player: Player, kind: str, rule: str
) -> None:
    more = {"top_n": ["peft.layout.num_tuned=1"], "list": ["peft.layout.ranks=[1,5]"]}
    words = (*KINDS[kind], f"peft.layout.rule={rule}", *more.get(rule, []))
    bench, adapter = player.bench(player.tiny.overrides(*words))
    assert num_reals(adapter) == HEAD + 6 * UNIT[kind]
    wanted = {"linear_up": [2, 4], "linear_down": [4, 2], "u_shape": [3, 3], "top_n": [0, 6]}
    assert list(bench.allocation.server.values()) == wanted.get(rule, [1, 5])
    limit = len(to_blob(adapter)) - 1
    words += (f"peft.layout.uplink_bytes={limit}",)
    if rule == "list":
        with pytest.raises(ConfigError, match="uplink_bytes"):
            player.bench(player.tiny.overrides(*words))
        return
    _, less = player.bench(player.tiny.overrides(*words))
    assert limit - 4 * UNIT[kind] - 300 < len(to_blob(less)) <= limit
    assert num_reals(less) <= num_reals(adapter) - UNIT[kind]


@EVERY
def test_units_fall_by_score(player: Player, kind: str) -> None:
    """AdaLoRA's schedule: from 1.5 times the units to as many; devices score theirs."""
    words = (*KINDS[kind], "peft.layout.rule=sensitivity", "strategy.num_rounds=4")
    played = player.play(*words, "finetune.max_steps=3")
    sizes = [
        sum(wire.read_order(played.of_round(number)[0].sent).layout.values())
        for number in (1, 2, 3, 4)
    ]
    assert sizes[0] == 9
    assert sizes[-1] == sum(layout_of(played.outcome.adapter).values()) == 6
    assert sizes == sorted(sizes, reverse=True)
    order = wire.read_order(played.of_round(4)[0].sent)
    assert order.units == {}  # units travel whole
    assert played.outcome.ledger.as_dict()["score_bytes"] > 0


def test_units_go_by_gain_over_cost(player: Player) -> None:
    words = (*KINDS["bottleneck"], "peft.layout.rule=cost_aware", ONE_ROUND)
    played = player.play(*words, "peft.layout.profile.by=devices")
    assert sum(played.bench.full.layout.values()) == 6
    assert layout_of(played.outcome.adapter) == {b: s for b, s in played.bench.full.layout.items()}
    assert played.outcome.ledger.as_dict()["score_bytes"] > 0


@EVERY
def test_a_rate_carries_the_first_units(player: Player, kind: str) -> None:
    words = (*KINDS[kind], "peft.layout.rule=channel_aware", "peft.layout.round_s=1e9")
    played = player.play(*words, "channel=digital", ONE_ROUND)
    assert layout_of(played.outcome.adapter) == {0: 3, 4: 3}
    assert played.devices(1) == ALL_DEVICES


@EVERY
def test_devices_tune_different_blocks(player: Player, kind: str) -> None:
    played = player.play(*KINDS[kind], "strategy.schedule=matching", ONE_ROUND)
    blocks = {
        e.device: {block_number(n) for n in e.updates[0] if unit_axis(n) is not None}
        for e in played.of_round(1)
    }
    assert set().union(*blocks.values()) == {0, 4}
    assert all(len(own) == 1 for own in blocks.values())


def test_prices_are_those_of_the_layers(player: Player) -> None:
    """More units cost more of everything; the deepest block sets the backward pass."""
    bench, _ = player.bench(player.tiny.overrides(*KINDS["bottleneck"]))
    peft: Any = bench.config.peft
    shapes = {name: tuple(p.shape) for name, p in bench.full.parameters.items()}
    prices = LayoutPrices(
        bench.config,
        peft,
        bench.backbone.model.config,
        num_labels=len(CLASSES),
        split=bench.piece.split,
        shapes=shapes,
    ).of(DeviceConfig())
    near, far, both = prices([0, 2]), prices([2, 0]), prices([2, 2])
    assert near.params == far.params == HEAD + 2 * 2 * WIDTH
    assert near.flops < far.flops < both.flops
    assert near.memory_bytes < far.memory_bytes < both.memory_bytes
    tokens = bench.config.finetune.batch_size * bench.config.model.max_length
    # forward 4 d s a token; backward 6, and 2 more where the stream needs a gradient already
    assert both.flops - far.flops == 12 * tokens * WIDTH * 2


@EVERY
def test_the_whole_job_leaves_an_adapter_that_loads(
    player: Player, kind: str, tmp_path: Path
) -> None:
    words = (*KINDS[kind], "peft.layout.rule=linear_up", f"output.dir={tmp_path}")
    overrides = player.tiny.overrides(*words, "strategy.round_test_rows=8")
    with LocalGrid(app, num_nodes=4, run_config={"overrides": overrides}) as grid:
        result = run_main_job(grid, overrides)
    raw: dict[str, Any] = json.loads((tmp_path / "result.json").read_text("utf-8"))
    jsonschema.Draft202012Validator(SCHEMA).validate(raw)
    assert raw["layout"]["size"] == {"bottleneck": "width", "deep_prompt": "length"}[kind]
    assert raw["layout"]["server"] == [2, 0, 0, 0, 4]
    assert (tmp_path / "ranks.png").exists()
    assert not (tmp_path / "adapter_padded").exists()
    base = transformers.AutoModelForSequenceClassification.from_pretrained(
        player.tiny.model, num_labels=len(CLASSES), ignore_mismatched_sizes=True
    )
    loaded = load_adapter(base, tmp_path / "adapter")
    bench, _ = player.bench(player.tiny.overrides(*KINDS[kind]))
    batch = bench.task.batch(bench.test, range(len(bench.test)))
    labels = batch.pop("labels")
    with torch.inference_mode():
        right = loaded(**batch).logits.argmax(-1) == labels
    assert float(right.double().mean()) == pytest.approx(result.final["plug_in"], abs=1e-9)


@EVERY
@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["peft.combine=flex"], r"peft\.combine='flex'.*pad, zero"),
        (["peft.aggregation=exact"], "aggregation"),
        (["strategy=gradient_download", "strategy.variant=lora"], "tunes LoRA; set peft=lora"),
        (["strategy=gradient_download", "strategy.variant=prompt"], "set peft=prompt"),
        (["prompt=ensemble_mean"], "set peft=prompt"),
    ],
)
def test_what_does_not_go_together_is_named(
    player: Player, kind: str, words: list[str], says: str
) -> None:
    with pytest.raises(ConfigError, match=says):
        require_fit(load_config(player.tiny.overrides(*KINDS[kind][:1], *words)))


def test_lora_over_the_air_needs_lora(player: Player) -> None:
    words = (*KINDS["bottleneck"], "connection.block=4", "connection.carries=lora_a")
    with pytest.raises(ModelError, match="no LoRA layer"):
        player.bench(player.tiny.overrides(*words))


@pytest.mark.parametrize(
    "word",
    ["bottleneck peft.width=0", "bottleneck peft.activation=tanh", "deep_prompt peft.num_tokens=0"],
)
def test_values_out_of_range_are_named(word: str) -> None:
    with pytest.raises(ConfigError, match=word.split()[1].split("=")[0]):
        load_config(f"peft={word}")


def test_virtual_tokens_have_no_gain_before_they_are_there() -> None:
    with pytest.raises(ConfigError, match=r"peft\.layout\.rule='cost_aware'.*sensitivity"):
        load_config("peft=deep_prompt peft.layout.rule=cost_aware")


@EVERY
@pytest.mark.parametrize(
    ("reference", "num_nodes", "layout"),
    [("frozen", 4, {}), ("federated_full", 4, {0: 2, 4: 4}), ("centralised", 1, {0: 2, 4: 4})],
)
def test_comparison_runs_have_the_same_layout(
    player: Player, kind: str, reference: str, num_nodes: int, layout: dict[int, int]
) -> None:
    words = (*KINDS[kind], "peft.layout.rule=linear_up", ONE_ROUND)
    played = player.play(*words, reference=reference, num_nodes=num_nodes)
    assert played.outcome.aggregated == 1
    assert layout_of(played.outcome.adapter) == layout
