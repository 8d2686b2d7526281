"""The bytes of federated rounds: an emulator is sent once, and again only where it was lost."""

from pathlib import Path

import pytest

from clients.build import _worker
from fl_app import wire
from fl_app.job import adapter_sha256
from fl_app.records import to_blob
from tests import fakes
from tests.federation_fixtures import ALL_DEVICES, NUM_DEVICES, SKEW, Player, assert_round_mean


@pytest.mark.parametrize("drawn", [None, 2])
def test_the_emulator_is_sent_once_per_device_and_adapters_every_round(
    player: Player, drawn: int | None
) -> None:
    words = ["federation.num_devices=5", "strategy.num_rounds=4"]
    if drawn:
        words.append(f"federation.devices_per_round={drawn}")
    played = player.play(*words)
    blob = played.bench.piece.blob
    adapter_bytes = len(to_blob(played.start))
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

    folder = {device: {"cache-dir": str(root)} for device in ALL_DEVICES}
    played = player.play(faults={(1, 3): lose}, node_config=folder)  # type: ignore[dict-item]
    assert played.dropped(2) == {}
    assert [e.device for e in played.of_round(2)] == [0, 1, 1, 2, 3]
    asked, again = (e for e in played.of_round(2) if e.device == 1)
    assert wire.EMULATOR not in asked.downlink_bytes
    assert again.downlink_bytes[wire.EMULATOR] == len(played.bench.piece.blob)
    ledger = played.outcome.ledger
    adapter_bytes = len(to_blob(played.start))
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
    assert_round_mean(played, 1, played.start, [0, 1, 3])


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
    assert [ledger.total_bytes(device=d, what="emulator") for d in ALL_DEVICES] == [
        blob,
        blob,
        2 * blob,
        blob,
    ]


def test_an_emulator_of_an_earlier_run_is_not_sent_again(
    player: Player, tmp_path_factory: pytest.TempPathFactory
) -> None:
    root = tmp_path_factory.mktemp("kept")
    folder = {device: {"cache-dir": str(root)} for device in ALL_DEVICES}
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
    folder = {device: {"cache-dir": str(root)} for device in ALL_DEVICES}
    first = player.play(node_config=folder)
    name = wire.read_order(first.grid.exchanges[0].sent).model_hash
    _damage(root, 2, name)
    _worker.cache_clear()
    second = player.play(node_config=folder)
    blob = len(first.bench.piece.blob)
    ledger = second.outcome.ledger
    assert [ledger.total_bytes(device=d, what="emulator") for d in ALL_DEVICES] == [0, 0, blob, 0]
    assert len(second.of_round(1)) == NUM_DEVICES  # in the first message: nobody had to ask
