"""The device side, message by message, through the ClientApp that Flower runs."""

import csv
import hashlib
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Context, Message, RecordDict

from clients.build import _worker, worker_of
from clients.worker import EmulatorSession
from fl_app import hello_wire, wire
from fl_app.bench import Bench
from fl_app.client_app import app
from fl_app.errors import ConfigError, DataError, WireError
from fl_app.fomo.package import content_hash
from fl_app.local_grid import FIRST_NODE_ID, LocalGrid
from fl_app.updates import Update
from tests.federation_fixtures import CLASSES, NUM_DEVICES, NUM_TRAIN, Player, write_rows

NODE = FIRST_NODE_ID


@pytest.fixture(autouse=True, scope="module")
def flower_process() -> Iterator[None]:
    """Flower's messages need the identity its own processes have."""
    with LocalGrid(app, num_nodes=1, run_config={}):
        yield


@pytest.fixture
def bench(player: Player) -> Bench:
    return player.bench(player.tiny.overrides())[0]


@pytest.fixture
def context(player: Player, tmp_path: Path) -> Callable[..., Context]:
    """Makes node contexts that share one cache folder of this test."""

    def make(partition: int = 0, *words: str, **facts: Any) -> Context:
        node = {"partition-id": partition, "num-partitions": NUM_DEVICES}
        node |= {"cache-dir": str(tmp_path / "cache"), **facts}
        run = {"overrides": player.tiny.overrides(*words)}
        return Context(1, NODE, node, RecordDict(), run)  # type: ignore[arg-type]

    return make


Make = Callable[..., Context]


def _order(bench: Bench, **changes: Any) -> wire.Order:
    fields: dict[str, Any] = {
        "round": 1,
        "device": 0,
        "num_devices": NUM_DEVICES,
        "model_hash": content_hash(bench.piece.blob),
        "adapter": bench.full.read(),
        "emulator": bench.piece.blob,
    }
    return wire.Order(**{**fields, **changes})


def _message(order: wire.Order) -> Message:
    return wire.order_message(order, NODE, wire.blob_record(wire.to_blob(order.adapter)))


def _train(context: Context, order: wire.Order) -> Message:
    return app(_message(order), context)


def _read(bench: Bench, order: wire.Order, reply: Message) -> wire.Reply:
    return wire.read_update(
        reply, order=order, layout_hash=bench.full.layout_hash(), like=order.adapter
    )


def _same(left: Update, right: Update) -> bool:
    return wire.to_blob(left) == wire.to_blob(right)


# --- hello -------------------------------------------------------------------------------------


def test_hello_tells_partition_and_what_is_held(bench: Bench, context: Make) -> None:
    node = context(2)
    before = hello_wire.read_hello(app(hello_wire.hello_message(NODE), node))
    assert (before.partition, before.held) == (2, frozenset())
    _train(node, _order(bench, device=2))
    after = hello_wire.read_hello(app(hello_wire.hello_message(NODE), node))
    assert after.held == {content_hash(bench.piece.blob)}
    assert (
        hello_wire.read_hello(app(hello_wire.hello_message(NODE), context(1))).held == frozenset()
    )


def test_a_damaged_emulator_is_not_held(bench: Bench, context: Make, tmp_path: Path) -> None:
    _train(context(), _order(bench))
    (tmp_path / "cache" / "0" / content_hash(bench.piece.blob)).write_bytes(b"damaged")
    assert hello_wire.read_hello(app(hello_wire.hello_message(NODE), context())).held == frozenset()


# --- train -------------------------------------------------------------------------------------


def test_a_device_answers_with_an_update_the_server_accepts(bench: Bench, context: Make) -> None:
    order = _order(bench)
    reply = _read(bench, order, _train(context(), order))
    assert reply.device == 0
    assert reply.num_examples == NUM_TRAIN // NUM_DEVICES
    assert reply.loss > 0
    assert reply.seconds > 0
    assert any(np.abs(array).max() > 0 for array in reply.update.values())


def test_an_answer_depends_on_seed_round_and_device_alone(bench: Bench, context: Make) -> None:
    """Not on what the process did before, nor on the node that plays the device."""

    def update(context: Context, **changes: Any) -> Update:
        order = _order(bench, **changes)
        return _read(bench, order, _train(context, order)).update

    first = update(context(0))
    update(context(0), device=1, round=5)
    assert _same(update(context(3)), first)  # another node plays device 0
    _worker.cache_clear()
    assert _same(update(context(0)), first)  # a new process
    assert not _same(update(context(0), round=2), first)
    assert not _same(update(context(0), device=1), first)
    assert not _same(update(context(0, "seed=1")), first)


def test_devices_with_equal_data_see_them_in_orders_of_their_own(
    bench: Bench, context: Make, tmp_path: Path
) -> None:
    facts = {"data-path": str(write_rows(tmp_path / "own.tsv", 24, "own"))}
    updates = []
    for device in (0, 1):
        order = _order(bench, device=device)
        updates.append(_read(bench, order, _train(context(device, **facts), order)).update)
    assert not _same(*updates)


def test_the_adapter_that_was_sent_is_not_changed(bench: Bench, context: Make) -> None:
    order = _order(bench)
    kept = {name: array.copy() for name, array in order.adapter.items()}
    _train(context(), order)
    assert _same(order.adapter, kept)


def test_the_emulator_is_needed_once(bench: Bench, context: Make) -> None:
    order = _order(bench, emulator=None)
    assert wire.lacks_emulator(_train(context(), order))
    with_it = _read(bench, order, _train(context(), _order(bench)))
    without = _read(bench, order, _train(context(), order))
    assert _same(with_it.update, without.update)
    _worker.cache_clear()  # a new process finds it on disk
    assert _same(_read(bench, order, _train(context(), order)).update, with_it.update)
    # another device of the same process holds none, though it lies in memory
    assert wire.lacks_emulator(_train(context(), _order(bench, emulator=None, device=1)))


@pytest.mark.parametrize("restarted", [False, True])
def test_a_removed_emulator_is_missed(
    bench: Bench, context: Make, tmp_path: Path, restarted: bool
) -> None:
    _train(context(), _order(bench))
    (tmp_path / "cache" / "0" / content_hash(bench.piece.blob)).unlink()
    if restarted:
        _worker.cache_clear()
    assert wire.lacks_emulator(_train(context(), _order(bench, emulator=None)))


def test_a_damaged_emulator_is_missed_even_where_a_good_one_is_in_memory(
    bench: Bench, context: Make, tmp_path: Path
) -> None:
    """Device 0 loads its good copy first; device 1 must still look at its own."""
    for device in (0, 1):
        _train(context(), _order(bench, device=device))
    path = tmp_path / "cache" / "1" / content_hash(bench.piece.blob)
    path.unlink()
    path.write_bytes(b"damaged")
    _worker.cache_clear()
    assert not wire.lacks_emulator(_train(context(), _order(bench, emulator=None)))
    assert wire.lacks_emulator(_train(context(), _order(bench, emulator=None, device=1)))


def test_an_emulator_that_is_not_what_was_announced_is_refused(bench: Bench, context: Make) -> None:
    with pytest.raises(WireError, match="damaged: the emulator has SHA-256"):
        _train(context(), _order(bench, emulator=bench.piece.blob + b"x"))


def test_a_damaged_adapter_is_refused(bench: Bench, context: Make) -> None:
    message = _message(_order(bench))
    message.content.config_records[wire.CONFIG][wire.CRC] = 1
    with pytest.raises(WireError, match="checksum"):
        app(message, context())


def test_a_process_loads_emulator_and_data_once(
    bench: Bench, context: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    loads = {"emulator": 0, "data": 0}

    def counted(name: str, made: Any) -> Any:
        def call(*args: Any) -> Any:
            loads[name] += 1
            return made(*args)

        return call

    from fl_app.material import load_material

    monkeypatch.setattr("clients.worker.EmulatorSession", counted("emulator", EmulatorSession))
    monkeypatch.setattr("clients.device_data.load_material", counted("data", load_material))
    for number in (1, 2):
        for device in range(NUM_DEVICES):
            emulator = bench.piece.blob if number == 1 else None
            _train(context(device), _order(bench, round=number, device=device, emulator=emulator))
    assert loads == {"emulator": 1, "data": 1}


def test_a_proximal_term_pulls_back(bench: Bench, context: Make) -> None:
    """It needs a second step: on the first the adapter is still where it started."""

    def update(mu: float, words: str) -> Update:
        order = _order(bench, proximal_mu=mu)
        return _read(bench, order, _train(context(0, words), order)).update

    def size(update: Update) -> float:
        return sum(float((array.astype(np.float64) ** 2).sum()) for array in update.values())

    one, three = "finetune.max_steps=1", "finetune.max_steps=3"
    assert _same(update(0.0, one), update(50.0, one))
    assert size(update(50.0, three)) < size(update(0.0, three))


def test_a_device_not_in_the_partition_says_so(bench: Bench, context: Make) -> None:
    with pytest.raises(DataError, match=r"partition-id=9.*data-path"):
        _train(context(9), _order(bench, device=9))


# --- a device with data of its own -------------------------------------------------------------


def test_a_device_reads_its_own_file_without_any_partitioner(
    bench: Bench, context: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forbidden(*_: object, **__: object) -> None:
        raise AssertionError("a real device must not deal itself a share of anybody's data")

    monkeypatch.setattr("fl_app.material.partition", forbidden)
    monkeypatch.setattr("clients.device_data.load_material", forbidden)
    own = write_rows(tmp_path / "own.tsv", 7, "own")
    node = context(9, **{"data-path": str(own)})  # no share of the server's data would be 9's
    order = _order(bench, device=9)
    reply = _read(bench, order, _train(node, order))
    assert reply.num_examples == 7


def test_two_devices_with_files_of_their_own_do_not_mix_them_up(
    bench: Bench, context: Make, tmp_path: Path
) -> None:
    files = [write_rows(tmp_path / f"own-{n}.tsv", 5 + n, "own", n) for n in range(2)]
    for _ in range(2):
        for device, file in enumerate(files):
            order = _order(bench, device=device)
            reply = _read(bench, order, _train(context(device, **{"data-path": str(file)}), order))
            assert reply.num_examples == 5 + device


def _table(path: Path, rows: list[list[str]], header: tuple[str, ...] = ("text", "label")) -> str:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([header, *rows])
    return str(path)


@pytest.mark.parametrize(
    ("rows", "header", "says"),
    [
        ([["w1", "zebra"]], ("text", "label"), r"'zebra' is not among the known ones \(lamp"),
        ([["w1", "lamp"]], ("words", "label"), r"data\.text_column='text'.*words, label"),
        ([], ("text", "label"), "own.csv"),
        ([["w1", ""]], ("text", "label"), "no label|no value"),
    ],
)
def test_unusable_local_data_are_an_error_that_says_why(
    bench: Bench,
    context: Make,
    tmp_path: Path,
    rows: list[list[str]],
    header: tuple[str, ...],
    says: str,
) -> None:
    path = _table(tmp_path / "own.csv", rows, header)
    with pytest.raises(DataError, match=says):
        _train(context(**{"data-path": path}), _order(bench))


def test_a_missing_local_file_is_an_error_that_says_why(
    bench: Bench, context: Make, tmp_path: Path
) -> None:
    path = str(tmp_path / "nowhere.csv")
    with pytest.raises(DataError, match=r"node-config data-path.*nowhere\.csv"):
        _train(context(**{"data-path": path}), _order(bench))


def test_such_a_device_is_dropped_and_the_others_go_on(
    player: Player, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A label the server has never heard of, and a file with a header alone."""
    strange = _table(tmp_path / "strange.csv", [["w1 w2", "zebra"]])
    empty = _table(tmp_path / "empty.csv", [])
    own = str(write_rows(tmp_path / "own.tsv", 9, "own"))
    node_config = {1: {"data-path": strange}, 2: {"data-path": empty}, 3: {"data-path": own}}
    played = player.play("strategy.num_rounds=1", node_config=node_config)
    assert played.dropped(1) == {"error": [1, 2]}
    assert played.devices(1) == [0, 3]
    assert f"'zebra' is not among the known ones ({', '.join(CLASSES)})" in caplog.text
    assert "empty.csv" in caplog.text
    weights = {
        e.device: e.received[0].content.metric_records[wire.METRICS][wire.NUM_EXAMPLES]
        for e in played.of_round(1)
        if e.device in (0, 3)
    }
    assert weights == {0: NUM_TRAIN // NUM_DEVICES, 3: 9}


def test_devices_tune_the_reference_they_are_told(player: Player, context: Make) -> None:
    node = context()
    node.run_config["reference"] = "frozen"
    bench, start = player.bench(player.tiny.overrides(), "frozen")
    order = _order(bench, adapter=start)
    assert _read(bench, order, _train(node, order)).update.keys() == start.keys()
    node.run_config["reference"] = "best"
    with pytest.raises(ConfigError, match="reference 'best'"):
        worker_of(node)


def test_the_fixture_names_the_emulator_as_the_cache_does(bench: Bench) -> None:
    assert content_hash(bench.piece.blob) == hashlib.sha256(bench.piece.blob).hexdigest()


def test_devices_whose_rows_are_not_the_servers_do_not_deal_from_them(
    player: Player, tmp_path: Path
) -> None:
    """Shares of two different tables would overlap, and hold the server's own rows."""
    shutil.copytree(player.tiny.data, tmp_path / "data")
    word = f"data.path={tmp_path / 'data'}"
    player.bench(player.tiny.overrides(word))
    with (tmp_path / "data" / "train.tsv").open("a") as file:
        file.write("w1 w2\tlamp\n")
    assert player.play(word).dropped(1) == {"error": list(range(NUM_DEVICES))}
