"""The emulator on a device: kept for the next round, looked at again, and missed where lost."""

import hashlib
from pathlib import Path
from typing import Any

import pytest

from clients.build import _worker
from clients.cache import BlobCache
from clients.worker import EmulatorSession, EmulatorWorker
from fl_app import hello_wire, wire
from fl_app.bench import Bench
from fl_app.client_app import app
from fl_app.errors import DataError
from fl_app.fomo.package import content_hash
from tests.federation_fixtures import NUM_DEVICES
from tests.wire_fixtures import NODE, flower_process, message_of, same_bits
from tests.worker_fixtures import Make, assert_refused, order_of, read_reply, train

__all__ = ["flower_process"]


def test_a_damaged_emulator_is_not_held(bench: Bench, context: Make, tmp_path: Path) -> None:
    train(context(), order_of(bench))
    (tmp_path / "cache" / "0" / content_hash(bench.piece.blob)).write_bytes(b"damaged")
    assert hello_wire.read_hello(app(hello_wire.hello_message(NODE), context())).held == frozenset()


def test_the_emulator_is_needed_once(bench: Bench, context: Make) -> None:
    order = order_of(bench, emulator=None)
    assert wire.lacks_emulator(train(context(), order))
    with_it = read_reply(bench, order, train(context(), order_of(bench)))
    without = read_reply(bench, order, train(context(), order))
    assert same_bits(with_it.update, without.update)
    _worker.cache_clear()  # a new process finds it on disk
    assert same_bits(read_reply(bench, order, train(context(), order)).update, with_it.update)
    # another device of the same process holds none, though it lies in memory
    assert wire.lacks_emulator(train(context(), order_of(bench, emulator=None, device=1)))


@pytest.mark.parametrize("restarted", [False, True])
def test_a_removed_emulator_is_missed(
    bench: Bench, context: Make, tmp_path: Path, restarted: bool
) -> None:
    train(context(), order_of(bench))
    (tmp_path / "cache" / "0" / content_hash(bench.piece.blob)).unlink()
    if restarted:
        _worker.cache_clear()
    assert wire.lacks_emulator(train(context(), order_of(bench, emulator=None)))


def test_a_damaged_emulator_is_missed_even_where_a_good_one_is_in_memory(
    bench: Bench, context: Make, tmp_path: Path
) -> None:
    """Device 0 loads its good copy first; device 1 must still look at its own."""
    for device in (0, 1):
        train(context(), order_of(bench, device=device))
    path = tmp_path / "cache" / "1" / content_hash(bench.piece.blob)
    path.unlink()
    path.write_bytes(b"damaged")
    _worker.cache_clear()
    assert not wire.lacks_emulator(train(context(), order_of(bench, emulator=None)))
    assert wire.lacks_emulator(train(context(), order_of(bench, emulator=None, device=1)))


def test_an_emulator_that_is_not_what_was_announced_is_refused(
    bench: Bench, context: Make, caplog: pytest.LogCaptureFixture
) -> None:
    message = message_of(order_of(bench, emulator=bench.piece.blob + b"x"))
    says = "damaged: the emulator has SHA-256"
    assert_refused(caplog, "WireError: damaged", says, context(), message)


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
            train(context(device), order_of(bench, round=number, device=device, emulator=emulator))
    assert loads == {"emulator": 1, "data": 1}


def test_the_fixture_names_the_emulator_as_the_cache_does(bench: Bench) -> None:
    assert content_hash(bench.piece.blob) == hashlib.sha256(bench.piece.blob).hexdigest()


def test_a_cache_too_small_for_what_is_sent_at_once_says_so(bench: Bench, tmp_path: Path) -> None:
    """It would ask for the emulator in every round, and be dropped without a reason."""
    stack = b"stack"
    name = content_hash(stack)
    cache = BlobCache(tmp_path, max_bytes=len(bench.piece.blob) + 1)
    worker = EmulatorWorker(config=bench.config, cache=cache, local_path=None)
    order = order_of(bench, stacks=(name,), new_stacks={name: stack})
    with pytest.raises(DataError, match=rf"device 0 .*max_bytes={cache.max_bytes}.*cache-dir"):
        worker.train(message_of(order))
