"""Whose rows a device tunes on: a file of its own, or a share of the server's very rows."""

import csv
import shutil
from pathlib import Path

import pytest

from fl_app import wire
from fl_app.bench import Bench
from tests.federation_fixtures import CLASSES, NUM_DEVICES, NUM_TRAIN, Player, write_rows
from tests.wire_fixtures import flower_process, message_of
from tests.worker_fixtures import Make, assert_refused, order_of, read_reply, train

__all__ = ["flower_process"]


def test_a_device_not_in_the_partition_says_so(
    bench: Bench, context: Make, caplog: pytest.LogCaptureFixture
) -> None:
    message = message_of(order_of(bench, device=9))
    assert_refused(caplog, "DataError", r"partition-id=9.*data-path", context(9), message)


def test_a_device_reads_its_own_file_without_any_partitioner(
    bench: Bench, context: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forbidden(*_: object, **__: object) -> None:
        raise AssertionError("a real device must not deal itself a share of anybody's data")

    monkeypatch.setattr("fl_app.material.partition", forbidden)
    monkeypatch.setattr("clients.device_data.load_material", forbidden)
    own = write_rows(tmp_path / "own.tsv", 7, "own")
    node = context(9, **{"data-path": str(own)})  # no share of the server's data would be 9's
    order = order_of(bench, device=9)
    reply = read_reply(bench, order, train(node, order))
    assert reply.num_examples == 7


def test_two_devices_with_files_of_their_own_do_not_mix_them_up(
    bench: Bench, context: Make, tmp_path: Path
) -> None:
    files = [write_rows(tmp_path / f"own-{n}.tsv", 5 + n, "own", n) for n in range(2)]
    for _ in range(2):
        for device, file in enumerate(files):
            order = order_of(bench, device=device)
            reply = read_reply(
                bench, order, train(context(device, **{"data-path": str(file)}), order)
            )
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
    caplog: pytest.LogCaptureFixture,
) -> None:
    path = _table(tmp_path / "own.csv", rows, header)
    node = context(**{"data-path": path})
    assert_refused(caplog, "DataError", says, node, message_of(order_of(bench)))


def test_a_missing_local_file_is_an_error_that_says_why(
    bench: Bench, context: Make, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    node = context(**{"data-path": str(tmp_path / "nowhere.csv")})
    says = r"node-config data-path.*nowhere\.csv"
    assert_refused(caplog, "DataError", says, node, message_of(order_of(bench)))


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
