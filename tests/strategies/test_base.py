"""A federated round, with devices that fail in every way a device can."""

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from clients.build import _worker
from fl_app import wire
from fl_app.errors import ConfigError, RunError
from fl_app.job import adapter_sha256, require_progress
from fl_app.updates import Update
from tests import fakes
from tests.fakes import Fault
from tests.federation_fixtures import (
    NUM_DEVICES,
    NUM_ROUNDS,
    Played,
    Player,
    assert_float32_mean,
    fedavg64,
)

SKEW = "data.partition.kind=quantity"  # devices of 1, 2, 3, 4 shares: no two weights are equal
ALL = list(range(NUM_DEVICES))


def _num_examples(exchange: fakes.Exchange) -> int:
    return int(exchange.received[0].content.metric_records[wire.METRICS][wire.NUM_EXAMPLES])  # type: ignore[arg-type]


def _check_mean(played: Played, number: int, start: Update, survivors: list[int]) -> None:
    """The adapter is the float64 mean of the survivors' updates, weighted by examples."""
    chosen = [e for e in played.of_round(number) if e.device in survivors]
    sent = [exchange.updates[0] for exchange in chosen]
    wanted = fedavg64(start, sent, [_num_examples(exchange) for exchange in chosen])
    assert_float32_mean(played.outcome.adapter, wanted, start, sent)


def _transposed(old: Update) -> Update:
    name = next(name for name in old if name.endswith("lora_B.weight"))
    return {**old, name: np.ascontiguousarray(old[name].T)}


def _renamed(old: Update) -> Update:
    name = next(iter(old))
    return {("x" + key if key == name else key): value for key, value in old.items()}


def _as_type(dtype: str) -> Callable[[Update], dict[str, np.ndarray]]:
    return lambda old: {name: array.astype(dtype) for name, array in old.items()}


FAULTS: dict[str, tuple[Fault, str]] = {
    "raises": (fakes.raises(), "error"),
    "vanishes": (fakes.vanishes, "silent"),
    "answers twice": (fakes.answers_twice, "duplicate"),
    "answers another message": (fakes.answers_something_else, "silent"),
    "names an old round": (fakes.config(round=0), "wrong-round"),
    "names another device": (fakes.config(device=1), "wrong-device"),
    "computed on another model": (fakes.config(model_hash="0" * 64), "wrong-model"),
    "tuned another layout": (fakes.config(layout_hash="0" * 64), "wrong-layout"),
    "transposes an array": (fakes.update(_transposed), "wrong-shape"),
    "renames an array": (fakes.update(_renamed), "wrong-shape"),
    "leaves an array out": (fakes.update(lambda old: dict([*old.items()][1:])), "wrong-shape"),
    "adds an array": (fakes.update(lambda u: {**u, "x": np.ones(1, np.float32)}), "wrong-shape"),
    "sends nothing in it": (fakes.update(lambda old: {}), "wrong-shape"),
    "sends float64": (fakes.update(_as_type("float64")), "wrong-dtype"),
    "sends float16": (fakes.update(_as_type("float16")), "wrong-dtype"),
    "sends integers": (fakes.update(_as_type("int32")), "wrong-dtype"),
    "flips a bit": (fakes.damaged_in_transit, "damaged"),
    "cuts the end off": (fakes.blob(lambda data: data[:-4]), "damaged"),
    "sends no bytes": (fakes.blob(lambda data: b""), "damaged"),
    "sends noise": (fakes.blob(lambda data: b"\xff" * len(data)), "damaged"),
    "diverges to NaN": (fakes.update(fakes.one_entry(math.nan)), "not-finite"),
    "diverges to infinity": (fakes.update(fakes.one_entry(math.inf)), "not-finite"),
    "diverges to minus infinity": (fakes.update(fakes.one_entry(-math.inf)), "not-finite"),
    "loses to NaN": (fakes.metrics(loss=math.nan), "not-finite"),
    "loses to infinity": (fakes.metrics(loss=math.inf), "not-finite"),
    "has a broken clock": (fakes.metrics(seconds=math.nan), "bad-seconds"),
    "has a clock that runs back": (fakes.metrics(seconds=-1.0), "bad-seconds"),
    "has no examples": (fakes.metrics(num_examples=0), "bad-weight"),
    "has negative examples": (fakes.metrics(num_examples=-3), "bad-weight"),
    "has too many examples": (fakes.metrics(num_examples=10**12), "bad-weight"),
    "counts examples in halves": (fakes.metrics(num_examples=3.5), "missing"),
    "does not count examples": (fakes.metrics(num_examples=None), "missing"),
    "does not time itself": (fakes.metrics(seconds=None), "missing"),
    "names its round in words": (fakes.config(round="one"), "missing"),
    "names no round": (fakes.config(round=None), "missing"),
    "names no model": (fakes.config(model_hash=None), "missing"),
    "sends no checksum": (fakes.config(crc=None), "missing"),
    "sends no update": (fakes.without(wire.UPDATE), "missing"),
    "sends no config": (fakes.without(wire.CONFIG), "missing"),
    "sends no metrics": (fakes.without(wire.METRICS), "missing"),
    "sends an empty message": (fakes.empty, "missing"),
    "sends an array of another name": (fakes.other_array_name, "missing"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_failing_device_is_dropped_and_the_others_are_averaged(player: Player, name: str) -> None:
    fault, reason = FAULTS[name]
    words = (SKEW, "strategy.num_rounds=1")
    played = player.play(*words, faults={2: fault}, warm=True)
    assert played.dropped(1) == {reason: [2]}
    assert played.devices(1) == [0, 1, 3]
    _check_mean(played, 1, played.start, [0, 1, 3])
    # good or bad, what arrived was sent: the ledger counts it
    arrived = [message for e in played.grid.exchanges for message in e.received]
    if name == "answers another message":  # that one belongs to no message of this run
        arrived = [
            message for e in played.grid.exchanges for message in e.received if e.device != 2
        ]
    sizes = [fakes.payload_bytes(m).get(wire.UPDATE, 0) for m in arrived if not m.has_error()]
    assert played.outcome.ledger.total_bytes(link="uplink") == sum(sizes) > 0


def test_many_failures_at_once_are_each_booked_under_their_reason(player: Player) -> None:
    faults = {
        0: fakes.raises(),
        1: fakes.vanishes,
        3: fakes.update(fakes.one_entry(math.nan)),
        4: fakes.answers_twice,
        5: fakes.vanishes,
    }
    played = player.play("federation.num_devices=7", "strategy.num_rounds=1", faults=faults)
    assert played.dropped(1) == {
        "duplicate": [4],
        "error": [0],
        "not-finite": [3],
        "silent": [1, 5],
    }
    assert played.devices(1) == [2, 6]
    _check_mean(played, 1, played.start, [2, 6])


def test_an_answer_of_the_round_before_is_dropped(player: Player) -> None:
    """The device repeats its first answer, whole, as the reply to the second message."""
    first = []

    def keep(_sent: object, reply: object) -> list[object]:
        first.append(reply)
        return [reply]

    def repeat(sent: object, _reply: object) -> list[object]:
        stale = fakes.copy.deepcopy(first[0])
        stale.metadata.__dict__["_reply_to_message_id"] = sent.metadata.message_id  # type: ignore[attr-defined]
        return [stale]

    played = player.play(faults={(1, 2): keep, (2, 2): repeat})  # type: ignore[dict-item]
    assert (played.dropped(1), played.dropped(2)) == ({}, {"wrong-round": [2]})
    assert played.devices(2) == [0, 1, 3]


def test_without_faults_every_round_is_the_float64_mean(player: Player) -> None:
    """The oracle follows the adapter from round to round: each round starts where one ended."""
    played = player.play(SKEW)
    assert [played.devices(n) for n in range(1, NUM_ROUNDS + 1)] == [ALL] * NUM_ROUNDS
    for number in range(1, NUM_ROUNDS + 1):
        sent = [wire.read_order(e.sent).adapter for e in played.of_round(number)]
        for other in sent[1:]:
            assert adapter_sha256(other) == adapter_sha256(sent[0])
        assert (adapter_sha256(sent[0]) == adapter_sha256(played.start)) == (number == 1)
    _check_mean(played, NUM_ROUNDS, sent[0], ALL)


def test_a_round_without_survivors_keeps_the_adapter_and_the_next_goes_on(player: Player) -> None:
    lost = {(1, device): fakes.vanishes for device in ALL}
    played = player.play(SKEW, faults=lost)
    assert played.dropped(1) == {"silent": ALL}
    assert played.devices(1) == []
    orders = [wire.read_order(exchange.sent) for exchange in played.of_round(2)]
    assert {adapter_sha256(order.adapter) for order in orders} == {adapter_sha256(played.start)}
    _check_mean(played, 2, played.start, ALL)
    assert played.outcome.aggregated == 1
    require_progress(played.outcome)


def test_too_few_survivors_for_the_rule_cost_a_round_and_not_the_run(player: Player) -> None:
    """Bulyan needs 4 f + 3 updates; with two of four devices gone it has nothing to go by."""
    words = ("strategy.server_rule.name=bulyan",)
    played = player.play(*words, faults={(1, 2): fakes.vanishes, (1, 3): fakes.raises()})
    assert played.dropped(1) == {"silent": [2], "error": [3], "rule": [0, 1]}
    assert played.devices(1) == []
    assert (played.dropped(2), played.devices(2)) == ({}, ALL)
    orders = [wire.read_order(exchange.sent) for exchange in played.of_round(2)]
    assert {adapter_sha256(order.adapter) for order in orders} == {adapter_sha256(played.start)}


def test_a_rule_that_needs_more_devices_than_a_round_has_is_refused(player: Player) -> None:
    words = ("strategy.server_rule.name=bulyan", "federation.devices_per_round=2")
    with pytest.raises(ConfigError, match=r"bulyan.*more devices per round"):
        player.play(*words)


def test_a_last_round_without_survivors_keeps_the_adapter(player: Player) -> None:
    lost = {(2, device): fakes.raises() for device in ALL}
    played = player.play(SKEW, faults=lost)
    _check_mean(played, 1, played.start, ALL)
    assert played.dropped(2) == {"error": ALL}


def test_a_run_without_any_survivor_is_an_error_that_says_why(player: Player) -> None:
    faults = {0: fakes.vanishes, 1: fakes.raises(), 2: fakes.config(round=7), 3: fakes.vanishes}
    played = player.play(faults=faults)
    assert adapter_sha256(played.outcome.adapter) == adapter_sha256(played.start)
    with pytest.raises(RunError, match="dropped for: error, silent, wrong-round"):
        require_progress(played.outcome)


def test_a_dead_simulation_worker_ends_the_run(player: Player) -> None:
    """Ray puts a dead actor back into its pool, where it fails every later message."""
    reason = "ray.exceptions.ActorDiedError: The actor died unexpectedly before finishing"
    with pytest.raises(RunError, match="worker process died"):
        player.play(faults={(1, 1): fakes.raises(reason)})


def test_an_overflowing_update_costs_the_device_its_turn_and_not_the_run(player: Player) -> None:
    """Finite factors whose product is not: in product space the mean would be infinite."""

    def huge(old: Update) -> Update:
        return {name: np.full_like(array, 1e30) for name, array in old.items()}

    played = player.play("peft.aggregation=exact", SKEW, faults={(1, 2): fakes.update(huge)})
    assert (played.dropped(1), played.devices(1)) == ({"not-finite": [2]}, [0, 1, 3])
    assert played.devices(2) == ALL


# --- the same seed, the same bits --------------------------------------------------------------


@pytest.mark.parametrize("aggregation", ["freeze-a", "factors", "exact"])
def test_the_order_of_replies_changes_no_bit(player: Player, aggregation: str) -> None:
    words = (SKEW, f"peft.aggregation={aggregation}")
    faults = {(1, 3): fakes.vanishes}
    plain = player.play(*words, faults=faults)
    for shuffle in range(2):
        other = player.play(*words, faults=faults, shuffle=shuffle)
        assert adapter_sha256(other.outcome.adapter) == adapter_sha256(plain.outcome.adapter)
        assert other.outcome.ledger.as_dict() == plain.outcome.ledger.as_dict()
        for mine, theirs in zip(other.outcome.rounds, plain.outcome.rounds, strict=True):
            assert {**vars(mine), "seconds": 0} == {**vars(theirs), "seconds": 0}


def test_the_number_of_nodes_that_play_the_devices_changes_no_bit(player: Player) -> None:
    words = ("federation.num_devices=10",)
    results = {}
    for num_nodes in (1, 2, 10, 12):
        played = player.play(*words, num_nodes=num_nodes, warm=True)
        assert played.devices(2) == list(range(10))
        used = {e.sent.metadata.dst_node_id for e in played.grid.exchanges}
        assert len(used) == min(num_nodes, 10)
        results[num_nodes] = adapter_sha256(played.outcome.adapter)
    assert len(set(results.values())) == 1


def test_another_seed_gives_another_adapter(player: Player) -> None:
    results = {adapter_sha256(player.play(f"seed={s}").outcome.adapter) for s in (0, 1, 2)}
    assert len(results) == 3


def test_equal_seeds_draw_equal_cohorts_whatever_else_happens(player: Player) -> None:
    words = (
        "federation.num_devices=6",
        "federation.devices_per_round=2",
        "strategy.num_rounds=8",
    )

    def cohorts(played: Played) -> list[list[int]]:
        return [[e.device for e in played.of_round(n)] for n in range(1, 9)]

    plain = cohorts(player.play(*words))
    assert [len(set(cohort)) for cohort in plain] == [2] * 8
    assert len({tuple(cohort) for cohort in plain}) > 1
    lost = {device: fakes.vanishes for device in (0, 1, 2)}
    assert cohorts(player.play(*words, shuffle=1, num_nodes=3, faults=lost)) == plain
    assert cohorts(player.play(*words, "seed=1")) != plain


# --- bytes -------------------------------------------------------------------------------------


@pytest.mark.parametrize("drawn", [None, 2])
def test_the_emulator_is_sent_once_per_device_and_adapters_every_round(
    player: Player, drawn: int | None
) -> None:
    words = ["federation.num_devices=5", "strategy.num_rounds=4"]
    if drawn:
        words.append(f"federation.devices_per_round={drawn}")
    played = player.play(*words)
    blob = played.bench.piece.blob
    adapter_bytes = len(wire.to_blob(played.start))
    reached = {exchange.device for exchange in played.grid.exchanges}
    totals = played.outcome.ledger.as_dict()
    assert totals["emulator_bytes"] == len(reached) * len(blob)
    assert totals["adapter_downlink_bytes"] == 4 * (drawn or 5) * adapter_bytes
    assert totals["downlink_bytes"] == totals["emulator_bytes"] + totals["adapter_downlink_bytes"]
    crossed = [e.downlink_bytes for e in played.grid.exchanges]
    assert sum(sum(sizes.values()) for sizes in crossed) == totals["downlink_bytes"]
    updates = [fakes.payload_bytes(m) for e in played.grid.exchanges for m in e.received]
    assert sum(sizes[wire.UPDATE] for sizes in updates) == totals["uplink_bytes"]
    # an update has the adapter's names and shapes, hence its size
    assert totals["uplink_bytes"] == totals["adapter_downlink_bytes"]


def _damage(root: Path, device: int, name: str) -> None:
    path = root / str(device) / name
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.unlink()  # the file may share its blocks with those of other devices
    path.write_bytes(bytes(data))


@pytest.mark.parametrize("how", ["damaged", "missing", "missing in a new process"])
def test_a_lost_emulator_is_sent_again_within_the_round(
    player: Player, tmp_path_factory: pytest.TempPathFactory, how: str
) -> None:
    root = tmp_path_factory.mktemp("cache")
    plain = player.play()
    model_hash = wire.read_order(plain.grid.exchanges[0].sent).model_hash

    def lose(_sent: object, reply: object) -> list[object]:
        match how:
            case "damaged":
                _damage(root, 1, model_hash)
                _worker.cache_clear()  # what is in memory would still be good
            case "missing":
                (root / "1" / model_hash).unlink()
            case _:
                (root / "1" / model_hash).unlink()
                _worker.cache_clear()
        return [reply]

    folder = {device: {"cache-dir": str(root)} for device in ALL}
    played = player.play(faults={(1, 3): lose}, node_config=folder)  # type: ignore[dict-item]
    assert played.dropped(2) == {}
    assert [e.device for e in played.of_round(2)] == [0, 1, 1, 2, 3]
    asked, again = (e for e in played.of_round(2) if e.device == 1)
    assert wire.EMULATOR not in asked.downlink_bytes
    assert again.downlink_bytes[wire.EMULATOR] == len(played.bench.piece.blob)
    ledger = played.outcome.ledger
    adapter_bytes = len(wire.to_blob(played.start))
    assert ledger.total_bytes(device=1, what="emulator") == 2 * len(played.bench.piece.blob)
    assert ledger.total_bytes(device=1, round=2, what="adapter") == 2 * adapter_bytes
    assert ledger.total_bytes(device=0, what="emulator") == len(played.bench.piece.blob)
    assert adapter_sha256(played.outcome.adapter) == adapter_sha256(plain.outcome.adapter)


def test_a_device_that_never_holds_the_emulator_is_dropped(player: Player) -> None:
    def forgetful(sent: object, _reply: object) -> list[object]:
        return [wire.no_emulator_reply(sent, wire.read_order(sent))]  # type: ignore[arg-type]

    played = player.play(SKEW, "strategy.num_rounds=1", faults={2: forgetful})  # type: ignore[dict-item]
    assert played.dropped(1) == {"no-emulator": [2]}
    assert played.outcome.ledger.total_bytes(device=2, what="emulator") == 2 * len(
        played.bench.piece.blob
    )
    _check_mean(played, 1, played.start, [0, 1, 3])


def test_a_device_that_asks_for_the_emulator_and_answers_too_is_a_duplicate(player: Player) -> None:
    def both(sent: object, reply: object) -> list[object]:
        return [wire.no_emulator_reply(sent, wire.read_order(sent)), reply]  # type: ignore[arg-type]

    played = player.play("strategy.num_rounds=1", faults={2: both})  # type: ignore[dict-item]
    assert played.dropped(1) == {"duplicate": [2]}
    assert played.outcome.ledger.total_bytes(device=2, what="emulator") == len(
        played.bench.piece.blob
    )


def test_a_silent_device_is_sent_the_emulator_again_next_round(player: Player) -> None:
    """Nobody knows whether the first copy arrived; a device holds it once it has answered."""
    played = player.play(faults={(1, 2): fakes.vanishes})
    blob = len(played.bench.piece.blob)
    ledger = played.outcome.ledger
    assert [ledger.total_bytes(device=d, what="emulator") for d in ALL] == [
        blob,
        blob,
        2 * blob,
        blob,
    ]


def test_an_emulator_of_an_earlier_run_is_not_sent_again(
    player: Player, tmp_path_factory: pytest.TempPathFactory
) -> None:
    root = tmp_path_factory.mktemp("kept")
    folder = {device: {"cache-dir": str(root)} for device in ALL}
    first = player.play(node_config=folder)
    _worker.cache_clear()
    second = player.play(node_config=folder)
    blob = len(first.bench.piece.blob)
    assert first.outcome.ledger.total_bytes(what="emulator") == NUM_DEVICES * blob
    assert second.outcome.ledger.total_bytes(what="emulator") == 0
    assert all(wire.EMULATOR not in e.downlink_bytes for e in second.grid.exchanges)
    assert adapter_sha256(first.outcome.adapter) == adapter_sha256(second.outcome.adapter)
    third = player.play("strategy.emulator.left=2", node_config=folder)
    assert third.outcome.ledger.total_bytes(what="emulator") == NUM_DEVICES * len(
        third.bench.piece.blob
    )


def test_a_kept_emulator_that_was_damaged_is_noticed_before_the_first_round(
    player: Player, tmp_path_factory: pytest.TempPathFactory
) -> None:
    root = tmp_path_factory.mktemp("kept-badly")
    folder = {device: {"cache-dir": str(root)} for device in ALL}
    first = player.play(node_config=folder)
    name = wire.read_order(first.grid.exchanges[0].sent).model_hash
    _damage(root, 2, name)
    _worker.cache_clear()
    second = player.play(node_config=folder)
    blob = len(first.bench.piece.blob)
    ledger = second.outcome.ledger
    assert [ledger.total_bytes(device=d, what="emulator") for d in ALL] == [0, 0, blob, 0]
    assert len(second.of_round(1)) == NUM_DEVICES  # in the first message: nobody had to ask


# --- what devices may not see ------------------------------------------------------------------


def _downlink(played: Played) -> bytes:
    """All bytes that went to the devices, records and all."""
    return b"".join(
        array.data
        for exchange in played.grid.exchanges
        for record in exchange.sent.content.array_records.values()
        for array in record.values()
    )


def _tensors(played: Played, blocks: set[int]) -> dict[str, np.ndarray]:
    """The full model's own weights in some blocks (LoRA and constant vectors left out)."""
    found = {}
    for name, tensor in played.bench.backbone.model.state_dict().items():
        parts = name.split(".")
        if "layer" not in parts or "lora_" in name:
            continue
        array = tensor.detach().numpy()
        if int(parts[parts.index("layer") + 1]) in blocks and array.std() > 0:
            found[name] = array
    return found


@pytest.mark.parametrize(
    "words",
    [
        (),
        ("strategy.emulator.bits=4",),
        ("strategy.emulator.sparsity=0.5", "strategy.emulator.wire_dtype=float32"),
    ],
)
def test_dropped_blocks_never_reach_a_device(player: Player, words: tuple[str, ...]) -> None:
    played = player.play(*words)
    crossed = _downlink(played)
    split = played.bench.piece.split
    dropped = set(range(split.total)) - set(split.blocks)
    hidden = _tensors(played, dropped)
    assert len(dropped) >= 1
    assert len(hidden) >= 10 * len(dropped)
    for name, array in hidden.items():
        for dtype in (np.float32, np.float16):
            assert array.astype(dtype).tobytes() not in crossed, name
    # the search can find: what a device must hold is there
    outer = _tensors(played, set(split.outer))
    assert all(
        any(array.astype(dtype).tobytes() in crossed for dtype in (np.float32, np.float16))
        for array in outer.values()
    )


@pytest.mark.parametrize("words", [("bits=4",), ("sparsity=0.5",), ("sparsity=0.5", "bits=8")])
def test_compressed_matrices_of_the_middle_never_reach_a_device_whole(
    player: Player, words: tuple[str, ...]
) -> None:
    """Even where no block is dropped."""
    played = player.play(
        "strategy.emulator.middle=-1", *(f"strategy.emulator.{word}" for word in words)
    )
    crossed = _downlink(played)
    split = played.bench.piece.split
    middle = _tensors(played, set(range(split.total)) - set(split.outer))
    matrices = {name: array for name, array in middle.items() if array.ndim == 2}
    assert len(matrices) >= 6
    for name, array in matrices.items():
        for dtype in (np.float32, np.float16):
            assert array.astype(dtype).tobytes() not in crossed, name
