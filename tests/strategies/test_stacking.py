"""Stacks: the exact mean of products for any ranks, merged alike on devices and at the server."""

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fl_app import updates, wire
from fl_app.config import load_config
from fl_app.errors import ConfigError
from fl_app.finetune import local_batches
from fl_app.fomo.lora import lora_start
from fl_app.fomo.package import content_hash
from fl_app.job import adapter_sha256
from fl_app.layout.prefix import cut, layout_of, pad, unit_axis
from fl_app.material import load_material
from fl_app.measures import measure_emulator, measure_plug_in
from fl_app.seeding import generator
from fl_app.updates import Update
from strategies.combine import Gathered, Stacked, held_by
from strategies.fit import require_fit
from strategies.layouts import Layouts
from strategies.lora_space import ProductSpace
from strategies.round_start import Stacking
from strategies.uplink import Received
from tests.federation_fixtures import NUM_DEVICES, Played, Player, player, tiny_federation
from tests.layout_fixtures import FixedLayouts

__all__ = ["player", "tiny_federation"]

SCALE = 64 * float(np.finfo(np.float32).eps)
STACK = ("peft.combine=stack", "peft.aggregation=exact", "finetune.max_steps=2")
CLASSES = (
    "federation.classes=[{name:weak,devices:[1],params:140},{name:strong,devices:[0,2,3]}]",
    "peft=lora_linear_up",
    "peft.rank=3",
)
SKEW = "data.partition.kind=quantity"
WHOLE = ("strategy.emulator.middle=-1", "strategy.emulator.wire_dtype=float32")
cases = settings(derandomize=True, deadline=None, max_examples=20)


def _product(adapter: Update, stem: str) -> np.ndarray:
    a, b = (adapter.get(f"{stem}.lora_{which}.weight") for which in "AB")
    if a is None or b is None:
        return np.zeros(())
    return b.astype(np.float64) @ a.astype(np.float64)


def _stems(adapter: Update) -> list[str]:
    return sorted({name.rsplit(".lora_", 1)[0] for name in adapter if ".lora_" in name})


# --- combining ------------------------------------------------------------------------------------


@cases
@given(
    ranks=st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=5),
    seed=st.integers(0, 99),
)
def test_a_stack_is_the_mean_of_products_whatever_the_ranks(
    ranks: list[tuple[int, int]], seed: int
) -> None:
    """Unbiased, in float64 product by product; and nothing is discarded."""
    rng = np.random.default_rng(seed)
    stems = [f"layer.{block}.q" for block in (0, 1)]
    shapes = {f"{stem}.lora_A.weight": (3, 6) for stem in stems}
    shapes |= {f"{stem}.lora_B.weight": (5, 3) for stem in stems}
    start = lora_start(shapes, seed, 1) | {"classifier.weight": np.ones((2, 2), np.float32)}
    layouts = [{0: first, 1: second} for first, second in ranks]
    made = [
        {n: rng.normal(0, 0.3, a.shape).astype(np.float32) for n, a in cut(start, layout).items()}
        for layout in layouts
    ]
    weights = rng.integers(1, 9, len(ranks)).astype(np.float64)
    received = Received(
        rows=updates.stack([pad(change, start) for change in made]),
        weights=weights,
        is_heard=np.ones(len(ranks), dtype=np.bool_),
    )
    presence = held_by(layouts, start)
    gathered = Gathered(start, start, received, presence, weights)
    shares = weights / weights.sum()

    def mean(rows: Any, given_weights: np.ndarray) -> Update:
        assert np.array_equal(given_weights, weights)
        assert all(set(row) == {"classifier.weight"} for row in rows)
        total = sum(s * row["classifier.weight"] for s, row in zip(shares, rows, strict=True))
        return {"classifier.weight": np.asarray(total, np.float32)}

    stack, figures = Stacked().next_adapter(gathered, ProductSpace(3), mean)
    assert figures == {"discarded": 0.0}
    for block, stem in enumerate(stems):
        after = [updates.add(cut(start, lay), m) for lay, m in zip(layouts, made, strict=True)]
        products = [s * _product(each, stem) for s, each in zip(shares, after, strict=True)]
        wanted = sum(products, np.zeros((5, 6)))
        bound = SCALE * max(1.0, float(np.abs(wanted).max()))
        assert np.abs(_product(stack, stem) - wanted).max() <= bound
        assert stack[f"{stem}.lora_A.weight"].shape == (sum(own[block] for own in ranks), 6)
    head = sum(s * m["classifier.weight"] for s, m in zip(shares, made, strict=True)) + 1
    assert np.abs(stack["classifier.weight"] - head).max() <= SCALE


def test_the_sum_of_stacks_grows_to_the_size_of_the_maps_and_no_further() -> None:
    """Maps of 5 x 7: every sum has rank 5 at most, and the products are sums in float64."""
    rng = np.random.default_rng(0)
    layouts: Layouts = FixedLayouts({2: 2})
    stacking = Stacking(layouts, seed=3)
    stem = "layer.2.q"
    shapes = {f"{stem}.lora_A.weight": (2, 7), f"{stem}.lora_B.weight": (5, 2)}
    adapter = lora_start(shapes, 3) | {"head": np.zeros(2, np.float32)}
    total, drawn, sizes = np.zeros((5, 7)), [], []
    for number, rank in enumerate([1, 3, 2, 4], start=1):
        begun = stacking.begin(number, adapter)
        assert {name: array.shape for name, array in begun.items()} == {**shapes, "head": (2,)}
        assert not begun[f"{stem}.lora_B.weight"].any()
        drawn.append(begun[f"{stem}.lora_A.weight"])
        stack = {
            f"{stem}.lora_A.weight": rng.normal(size=(rank, 7)).astype(np.float32),
            f"{stem}.lora_B.weight": rng.normal(size=(5, rank)).astype(np.float32),
        }
        total += _product(stack, stem)
        adapter = stacking.end(number, stack | {"head": np.full(2, number, np.float32)})
        assert np.abs(_product(adapter, stem) - total).max() <= SCALE * np.abs(total).max()
        assert layout_of(adapter) == stacking.server
        assert adapter["head"][0] == number
        sizes.append(stacking.server[2])
        assert len(stacking.stacks or {}) == number
    assert sizes == [2, 4, 5, 5]  # not below what devices begin with, not above the map's size
    assert all((one != two).any() for one, two in itertools.pairwise(drawn))
    blobs = list((stacking.stacks or {}).items())
    assert all(content_hash(blob) == name for name, blob in blobs)


# --- whole federations ----------------------------------------------------------------------------


def _tuned_of(played: Played, number: int) -> list[tuple[float, Update]]:
    """Returns (weight, factors) of every device of a round, from the bytes on the wire."""
    seed, found = played.bench.config.seed, []
    for exchange in played.of_round(number):
        reply = exchange.received[-1]
        if wire.UPDATE not in reply.content:
            continue
        update = exchange.updates[-1]
        shapes = {n: a.shape for n, a in update.items() if unit_axis(n) is not None}
        start = lora_start(shapes, seed, number)
        metrics = reply.content.metric_records[wire.METRICS]
        tuned = updates.add(start, {name: update[name] for name in shapes})
        found.append((float(metrics[wire.NUM_EXAMPLES]), tuned))  # type: ignore[arg-type]
    return found


@pytest.mark.parametrize("words", [(), CLASSES])
def test_the_adapter_is_the_sum_over_rounds_of_mean_products(
    player: Player, words: tuple[str, ...]
) -> None:
    played = player.play(*words, *STACK, SKEW, "strategy.num_rounds=3")
    adapter = played.outcome.adapter
    for stem in _stems(adapter):
        total: Any = 0.0
        for number in (1, 2, 3):
            given_ = _tuned_of(played, number)
            assert len({weight for weight, _ in given_}) > 1
            weights = sum(weight for weight, _ in given_)
            total = total + sum(w / weights * _product(each, stem) for w, each in given_)
        size = max(np.abs(total).max(), 1e-3)
        assert np.abs(_product(adapter, stem) - total).max() <= SCALE * size
        assert np.abs(total).max() > 0
    assert played.bench.full.layout == {b: layout_of(adapter)[b] for b in (0, 4)}


def test_devices_compute_with_the_merged_stacks(player: Player) -> None:
    """A device's second round again in plain torch: its gradient is that at W0 + s B A."""
    words = (*STACK, *WHOLE, "strategy.num_rounds=2", "finetune.max_steps=1")
    played = player.play(*words)
    after_one = player.play(*words[:-2], "finetune.max_steps=1", "strategy.num_rounds=1")
    bench, merged = after_one.bench, after_one.outcome.adapter
    loss_by_device = {
        e.device: float(e.received[0].content.metric_records[wire.METRICS][wire.LOSS])  # type: ignore[arg-type]
        for e in played.of_round(2)
    }
    # LoRA of the sum of stacks at the server computes what merged weights compute on the device,
    # whose own LoRA begins with B = 0: the loss of the only step is that of this model
    bench.resize(layout_of(merged))
    bench.full.write(merged)
    config = bench.config
    for device, loss in loss_by_device.items():
        encoded = bench.task.encode(load_material(config).of_device(device))
        rng = generator(config.seed, "local", 2, device)
        first = next(iter(local_batches(encoded, batch_size=8, epochs=1, rng=rng)))
        with torch.no_grad():
            wanted = bench.task.loss(bench.full.model, bench.task.batch(encoded, first))
        assert loss == pytest.approx(float(wanted), rel=1e-5)
    assert measure_plug_in(bench, merged, bench.test) == measure_emulator(bench, merged, bench.test)


def test_bytes_are_those_of_heads_and_of_stacks_once_per_device(player: Player) -> None:
    played = player.play(*CLASSES, *STACK, "strategy.num_rounds=3")
    book = played.outcome.ledger
    sizes: dict[str, int] = {}
    for number in (1, 2, 3):
        sent = 0
        for exchange in played.of_round(number):
            order = wire.read_order(exchange.sent)
            assert all(unit_axis(name) is None for name in order.adapter)
            assert order.stacks is not None
            assert len(order.stacks) == number - 1
            assert list(order.new_stacks) == list(order.stacks[-1:])  # all others it holds
            sent += exchange.downlink_bytes[wire.ADAPTER]
            sent += sum(map(len, order.new_stacks.values()))
            sizes |= {name: len(blob) for name, blob in order.new_stacks.items()}
        assert book.total_bytes(round=number, link="downlink", what="adapter") == sent
    ranks: dict[int, int] = {}
    for _, each in _tuned_of(played, 1):
        for block, rank in layout_of(each).items():
            ranks[block] = ranks.get(block, 0) + rank
    reals = 2 * 2 * 16 * sum(ranks.values())  # A and B of query and value, width 16
    frame = next(iter(sizes.values())) - 4 * reals
    assert 0 < frame < 1500


def test_a_device_that_missed_rounds_is_sent_what_it_missed(player: Player) -> None:
    words = (*STACK, "strategy.num_rounds=4", "federation.devices_per_round=2")
    played = player.play(*words)
    held: dict[int, set[str]] = {device: set() for device in range(NUM_DEVICES)}
    most = 0
    for number in range(1, 5):
        for exchange in played.of_round(number):
            order = wire.read_order(exchange.sent)
            wanted = [name for name in order.stacks or () if name not in held[exchange.device]]
            assert list(order.new_stacks) == wanted
            held[exchange.device] |= set(wanted)
            most = max(most, len(wanted))
    assert most > 1
    # one process for all devices, or one for each: the weights are the same bits
    alone = player.play(*words, num_nodes=1, shuffle=5)
    assert adapter_sha256(alone.outcome.adapter) == adapter_sha256(played.outcome.adapter)


def test_a_device_that_lost_a_stack_is_sent_it_again(player: Player, tmp_path: Any) -> None:
    """Its cache is emptied of the first stack before round 3; the run ends as if it were not."""
    words = (*STACK, "strategy.num_rounds=3")
    plain = player.play(*words)
    cache = tmp_path / "cache"

    def lose(sent: Any, reply: Any) -> list[Any]:
        order = wire.read_order(sent)
        for path in (cache / "1").glob("*"):
            if path.name in (order.stacks or ()):
                path.unlink()
        return [reply]

    nodes = {partition: {"cache-dir": str(cache)} for partition in range(NUM_DEVICES)}
    played = player.play(*words, node_config=nodes, faults={(2, 1): lose})
    asked = [e for e in played.of_round(3) if e.device == 1]
    assert [len(wire.read_order(e.sent).new_stacks) for e in asked] == [1, 2]
    assert played.devices(3) == list(range(NUM_DEVICES))
    assert adapter_sha256(played.outcome.adapter) == adapter_sha256(plain.outcome.adapter)
    # the same processes again: what they merged in the run before is not in the next one's weights
    again = player.play(*words, node_config=nodes)
    assert adapter_sha256(again.outcome.adapter) == adapter_sha256(plain.outcome.adapter)


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (("peft.aggregation=factors",), "peft.aggregation=exact"),
        (("strategy.server_rule.name=fedadam",), "fedadam is not the mean"),
        (("strategy.server_rule.name=krum",), "krum"),
        (("channel=digital",), "one mean"),
        (("connection.block=1",), "connection.block=null"),
        (("strategy.schedule=joint",), "exact"),
        (("peft.layout.round_s=9",), r"round_s=9\.0 has no price"),
        (("peft.layout.rule=sensitivity", "strategy.num_rounds=5"), "exact"),
        (("strategy=gradient_download", "strategy.variant=lora"), "gradient_download"),
    ],
)
def test_what_does_not_go_together_is_refused(words: tuple[str, ...], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        require_fit(load_config(" ".join(["peft=lora", *STACK, *words])))
