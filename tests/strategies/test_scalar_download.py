"""Federations by scalars: what is tuned, what is rebuilt, what is sent."""

import copy
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch

from clients.cache import BlobCache
from clients.device_session import DeviceSession
from clients.scalar_worker import ScalarWorker
from fl_app import scalar_wire
from fl_app.finetune import local_batches
from fl_app.job import adapter_sha256
from fl_app.material import load_material
from fl_app.seed_pool import SeedPool
from fl_app.seeding import generator
from fl_app.updates import Update
from tests.federation_fixtures import (
    NUM_DEVICES,
    Player,
    TinyFederation,
    player,
    tiny_federation,
)
from tests.fixtures_models import write_checkpoint
from tests.oracles.two_point import mean, walked, z_of
from tests.scalar_fixtures import LABELS, Tuned, tune

__all__ = ["player", "tiny_federation"]

_WIDE_EPS = "strategy.scalar.step=0.5"
"""A difference that float32 losses resolve to some 1e-6 of it."""


def _device_seeds(tuned: Tuned, server_round: int, device: int, count: int) -> list[int]:
    config = tuned.bench.config
    pool = SeedPool(config.strategy.scalar.num_seeds, config.seed)
    rng = generator(config.seed, "directions", server_round, device)
    return [pool.seeds[i] for i in rng.integers(len(pool.seeds), size=count, dtype=np.int32)]


def _oracle(tuned: Tuned) -> dict[str, np.ndarray[Any, np.dtype[np.float64]]]:
    """Runs all rounds on the whole model in float64."""
    bench, settings = tuned.bench, tuned.bench.config.strategy.scalar
    adapter = copy.deepcopy(bench.full)
    adapter.model.double()
    material = load_material(bench.config)
    theta = {name: array.astype(np.float64) for name, array in tuned.start.items()}
    for server_round in range(1, bench.config.strategy.num_rounds + 1):
        ends, weights = [], []
        for device in range(NUM_DEVICES):
            encoded = bench.task.encode(material.of_device(device))
            rng = generator(bench.config.seed, "local", 1, device)
            rows = list(local_batches(encoded, batch_size=8, epochs=1, rng=rng))[:3]
            losses = [
                partial(_cross_entropy, batch=bench.task.batch(encoded, some)) for some in rows
            ]
            seeds = _device_seeds(tuned, server_round, device, len(rows))
            end = walked(adapter, theta, seeds, losses, lr=settings.lr, eps=settings.step)
            ends.append(end)
            weights.append(len(encoded))
        theta = mean(ends, weights)
    return theta


def _cross_entropy(model: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    return torch.nn.functional.cross_entropy(model(**inputs).logits, batch["labels"])


def _relative(found: Update, wanted: dict[str, Any], start: Update) -> float:
    off = sum(float(((found[n] - wanted[n]) ** 2).sum()) for n in wanted)
    way = sum(float(((start[n] - wanted[n]) ** 2).sum()) for n in wanted)
    assert way > 0
    return float(np.sqrt(off / way))


@pytest.mark.parametrize("labels", LABELS)
@pytest.mark.parametrize("aggregation", ["freeze-a", "factors"])
def test_it_is_the_slow_oracle_on_the_whole_model(
    player: Player, labels: str, aggregation: str
) -> None:
    words = (f"strategy.labels={labels}", f"peft.aggregation={aggregation}", _WIDE_EPS)
    unequal = ("data.partition.kind=quantity", "strategy.max_in_flight=3")
    tuned = tune(player, *words, *unequal)
    assert tuned.devices(1) == tuned.devices(2) == list(range(NUM_DEVICES))
    assert _relative(tuned.outcome.adapter, _oracle(tuned), tuned.start) < 1e-5


def _rebuilt_by_a_device(tuned: Tuned, server_round: int) -> tuple[Update, np.ndarray[Any, Any]]:
    """Rebuilds from what a device was sent, with the code and the part a device has."""
    config = tuned.bench.config
    folder = tuned.grid._folder.name
    worker = ScalarWorker(
        config=config, strategy=config.strategy, cache=BlobCache(folder), local_path=None
    )
    session = DeviceSession(tuned.bench.piece.blob, config, config.strategy)
    opening = scalar_wire.read_opening(
        tuned.of(server_round, 0)[0].down, config.strategy.scalar.num_seeds
    )
    return worker.adapter(session, opening.coefficients), opening.coefficients


@pytest.mark.parametrize("aggregation", ["freeze-a", "factors"])
def test_a_device_rebuilds_the_servers_adapter_bit_for_bit(
    player: Player, aggregation: str
) -> None:
    """What opens round 3 stands for what rounds 1 and 2 made; and so says the sum by hand."""
    words = ("strategy.labels=server", f"peft.aggregation={aggregation}")
    two = tune(player, *words, "strategy.num_rounds=2")
    three = tune(player, *words, "strategy.num_rounds=3")
    rebuilt, coefficients = _rebuilt_by_a_device(three, 3)
    assert adapter_sha256(rebuilt) == adapter_sha256(two.outcome.adapter)
    config = three.bench.config
    pool = SeedPool(config.strategy.scalar.num_seeds, config.seed)
    by_hand = {name: array.astype(np.float64) for name, array in three.start.items()}
    for place in np.flatnonzero(coefficients):
        z = z_of(pool.seeds[place], by_hand)
        for name in by_hand:
            by_hand[name] -= config.strategy.scalar.lr * float(coefficients[place]) * z[name]
    assert 0 < np.count_nonzero(coefficients) <= 2 * NUM_DEVICES * 3
    for name, array in rebuilt.items():
        # sums in another order: some roundings of float64, seen only where float32 rounds
        spacing = np.finfo(np.float32).eps * np.abs(by_hand[name])
        assert (np.abs(array - by_hand[name]) <= 0.51 * spacing + 1e-12).all()


def test_a_pool_smaller_than_what_is_drawn_gives_the_same_sums(player: Player) -> None:
    """Seeds repeat, within a device and among devices: the oracle counts each step by itself."""
    words = ("strategy.labels=server", "strategy.scalar.num_seeds=4", _WIDE_EPS)
    tuned = tune(player, *words, "data.partition.kind=quantity")
    assert _relative(tuned.outcome.adapter, _oracle(tuned), tuned.start) < 1e-5


@pytest.mark.parametrize("labels", LABELS)
def test_bits_do_not_depend_on_the_order_of_answers(player: Player, labels: str) -> None:
    words = (f"strategy.labels={labels}",)
    plain = tune(player, *words).outcome
    mixed = tune(player, *words, shuffle=5).outcome
    assert adapter_sha256(plain.adapter) == adapter_sha256(mixed.adapter)
    assert plain.ledger.as_dict()["downlink_bytes"] == mixed.ledger.as_dict()["downlink_bytes"]


@pytest.mark.parametrize("adjustment", [0, 1])
def test_where_the_labels_are_changes_no_bit(player: Player, adjustment: int) -> None:
    """The same losses of the same logits, computed here or there; adjusted for skewed shares too.

    With public rows, both sides know the overall shares.
    """
    words = (f"finetune.logit_adjustment={adjustment}", "data.public_fraction=0.2")
    skewed = ("data.partition.kind=dirichlet", "data.partition.alpha=0.5")
    private, server = (
        tune(player, *words, *skewed, f"strategy.labels={where}").outcome for where in LABELS
    )
    assert adapter_sha256(private.adapter) == adapter_sha256(server.adapter)
    for one, other in zip(private.rounds[1:], server.rounds[1:], strict=True):
        assert one.metrics["train_loss"] == pytest.approx(other.metrics["train_loss"], rel=1e-12)


@pytest.mark.parametrize("num_in_flight", [1, 2])
def test_fewer_in_a_pass_give_the_same_steps(player: Player, num_in_flight: int) -> None:
    words = ("strategy.labels=server", _WIDE_EPS)
    together = tune(player, *words)
    apart = tune(player, *words, f"strategy.max_in_flight={num_in_flight}")
    wanted = {name: array.astype(np.float64) for name, array in together.outcome.adapter.items()}
    assert _relative(apart.outcome.adapter, wanted, together.start) < 1e-5


# --- what crosses the wire -----------------------------------------------------------------------

_TEN = (
    "federation.num_devices=10",
    "finetune.batch_size=1",
    "finetune.epochs=4",
    "finetune.max_steps=20",
)


def _later_round(tuned: Tuned) -> list[int]:
    """Bytes of each device in round 2, both directions, as the ledger has them."""
    ledger = tuned.outcome.ledger
    booked = [ledger.total_bytes(round=2, device=device) for device in range(10)]
    for device, total in enumerate(booked):
        crossings = tuned.of(2, device)
        assert total == sum(len(c.sent) + len(c.received) for c in crossings)
    return booked


@pytest.mark.parametrize("labels", LABELS)
def test_a_round_is_kilobytes_whatever_the_model(
    player: Player, tmp_path_factory: pytest.TempPathFactory, labels: str
) -> None:
    """Ten devices, twenty directions each; a model of four times the width and two blocks more."""
    words = (*_TEN, f"strategy.labels={labels}")
    small = tune(player, *words)
    folder = tmp_path_factory.mktemp("larger")
    model = write_checkpoint(
        folder / "bert", "bert", "sequence_classification", hidden_size=64, num_hidden_layers=7
    )
    larger = Player(TinyFederation(model, player.tiny.data), folder / "cache")
    large = tune(larger, *words)
    sizes = [sum(a.size for a in t.start.values()) for t in (small, large)]
    assert sizes[1] > 3 * sizes[0]
    for tuned in (small, large):
        assert tuned.devices(2) == list(range(10))
        seeds = [tuned.of(2, device)[0].up.arrays["seeds"] for device in range(10)]
        assert [len(one) for one in seeds] == [20] * 10
        assert max(_later_round(tuned)) < 20_000
    # numbers in the headers are written with as many digits as they have
    slack = 20 * 22 + 100
    for one, other in zip(_later_round(small), _later_round(large), strict=True):
        assert abs(one - other) < slack


def test_the_parts_of_a_round_have_the_sizes_they_should(player: Player) -> None:
    """Payloads without headers: 4 bytes a direction, seed and slope; 8 B C for both sides."""
    tuned = tune(player, "strategy.labels=private", "data.partition.kind=iid")
    opening, *steps, closing = tuned.of(2, 0)
    assert [c.down.kind for c in steps] == ["sides"] * 3
    contents = [
        sum(array.nbytes for array in payload.arrays.values())
        for payload in (opening.down, opening.up, steps[0].down, steps[0].up, closing.down)
    ]
    assert contents == [4 * 1024, 4 * 3, 8 * 8 * 4, 0, 4 * 3]


@pytest.mark.parametrize("tau", [0, 1])
@pytest.mark.parametrize("labels", LABELS)
def test_features_go_up_once(player: Player, labels: str, tau: int) -> None:
    adjusted = ("data.public_fraction=0.2", f"finetune.logit_adjustment={tau}")
    tuned = tune(player, f"strategy.labels={labels}", "strategy.num_rounds=3", *adjusted)
    ledger = tuned.outcome.ledger
    kinds = [next(c.up.kind for c in tuned.of(r, 1)) for r in (1, 2, 3)]
    assert kinds == ["features", "seeds", "seeds"]
    once = [ledger.total_bytes(round=r, what="features") for r in (1, 2, 3)]
    assert once[0] == sum(len(tuned.of(1, d)[0].received) for d in range(NUM_DEVICES))
    assert once[1:] == [0, 0]
    names = {name.rpartition("|")[2] for c in tuned.grid.crossings for name in c.up.arrays}
    assert ("labels" in names) == (labels == "server")
    assert ("counts" in names) == (labels == "server" and tau > 0)
    assert "input_ids" not in names


def test_the_loss_goes_down(player: Player) -> None:
    tuned = tune(player, "strategy.labels=server", "strategy.num_rounds=40")
    losses = [record.metrics["train_loss"] for record in tuned.outcome.rounds[1:]]
    assert losses[0] > 1.3  # four classes, nothing learnt: log 4 = 1.386
    assert np.mean(losses[-5:]) < np.mean(losses[:5]) - 0.15
