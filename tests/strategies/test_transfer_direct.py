"""Devices that meet on loopback: the server introduces them and passes no prompt on."""

import contextlib
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest

from clients.meeting import meet
from clients.prompt_store import OWN, Kept, PromptStore
from fl_app.bench import prepare
from fl_app.client_app import app
from fl_app.config import load_config
from fl_app.fomo.soft_prompt import PROMPT_NAME
from fl_app.job import federate
from fl_app.local_grid import ThreadedGrid
from fl_app.meeting_wire import Peer
from fl_app.prompts.direct import make_identity
from fl_app.transfer_wire import Heard
from tests.federation_fixtures import Player
from tests.gradient_fixtures import words_of
from tests.prompt_fixtures import shelf_on
from tests.transfer_fixtures import transfer_player

__all__ = ["transfer_player"]
_DEVICES = 3


def _free_ports(number: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(number)]
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


class _FileGrid(ThreadedGrid):
    """Nodes that read a file, as real devices do; the same one, for they share a worker here."""

    def __init__(self, file: Path, overrides: str) -> None:
        super().__init__(app, num_nodes=_DEVICES, run_config={"overrides": overrides})
        for context in self._contexts.values():
            context.node_config["data-path"] = str(file)


def test_prompts_go_over_direct_links(transfer_player: Player, tmp_path: Path) -> None:
    """All meet, all try what they chose, and no prompt passes the server."""
    ports = _free_ports(_DEVICES)
    words = words_of(
        "prompt",
        "prompt=transfer",
        "prompt.direct=[" + ",".join(f"127.0.0.1:{port}" for port in ports) + "]",
        "prompt.direct_s=6",
        "prompt.most=2",
        "prompt.contacts.area_m=20",
        "federation=edge",
        f"federation.num_devices={_DEVICES}",
        "federation.join_timeout_s=20",
        "strategy.num_rounds=2",
        "strategy.transport=messages",
        "finetune.max_steps=2",
    )
    header, *rows = (transfer_player.tiny.data / "train.tsv").read_text().splitlines()
    file = tmp_path / "rows.tsv"
    file.write_text("\n".join([header, *rows[:40]]) + "\n")
    overrides = transfer_player.tiny.overrides(*words)
    bench = prepare(load_config(overrides))
    with (
        _FileGrid(file, overrides) as grid,
        patch.multiple("strategies.roster", _SETTLE_S=0.02, _POLL_S=0.01),
    ):
        outcome = federate(grid, bench, measure_rounds=False)
    result, ledger = outcome.results["transfer"], outcome.ledger
    assert [r["offers"] for r in result["devices"]] == [_DEVICES - 1] * _DEVICES
    assert all(len(r["asked"]) == _DEVICES - 1 for r in result["devices"])
    assert all(r["refused"] == [] for r in result["devices"])
    assert all(r["probe_candidate"] is not None for r in result["devices"])
    sent = sum(r["bytes"] for r in result["devices"])
    adverts = ledger.total_bytes(link="d2d", what="advert")
    assert (ledger.total_bytes(link="d2d", what="prompt"), result["bytes"]) == (
        sent,
        sent + adverts,
    )
    assert adverts > 0
    assert ledger.total_bytes(link="uplink", what="relay") < sent + 6000 * _DEVICES


def test_who_is_not_there_is_not_waited_for_long() -> None:
    """Half of the time for hearing; the other peer's advert still arrives."""
    ours, theirs, gone = (make_identity(name) for name in ("ours", "theirs", "gone"))
    ports = _free_ports(3)
    shelf = shelf_on(1)
    peers = [
        Peer(1, f"127.0.0.1:{ports[1]}", theirs.certificate.decode(), 1e6, 1.0),
        Peer(2, f"127.0.0.1:{ports[2]}", gone.certificate.decode(), 1e6, 1.0),
    ]
    us = Peer(0, f"127.0.0.1:{ports[0]}", ours.certificate.decode(), 1e6, 1.0)

    def choose(heard: Sequence[Heard]) -> dict[int, str]:
        return {one.source: "" for one in heard}

    other = threading.Thread(
        target=meet, args=(theirs, peers[0].address, [us], shelf, None), kwargs={"seconds": 6.0}
    )
    other.start()
    met = meet(ours, us.address, peers, {}, choose, seconds=4.0)
    other.join()
    ((advert, blob),) = shelf.values()
    assert [(one.source, one.advert) for one in met.heard] == [(1, advert.to_blob())]
    assert met.blobs == {1: blob}


def _silent() -> Iterator[int]:
    """Accepts connections and says nothing."""
    listener, held, stop = socket.create_server(("127.0.0.1", 0)), list[socket.socket](), []

    def accept() -> None:
        while not stop:
            held.append(listener.accept()[0])

    thread = threading.Thread(target=accept)
    thread.start()
    yield listener.getsockname()[1]
    stop.append(True)
    socket.create_connection(listener.getsockname()).close()
    thread.join()
    for one in (*held, listener):
        one.close()


@pytest.fixture
def silent() -> Iterator[tuple[int, ...]]:
    with contextlib.ExitStack() as stack:
        yield tuple(stack.enter_context(contextlib.contextmanager(_silent)()) for _ in range(3))


def test_peers_that_keep_silent_cost_the_others_no_time(silent: tuple[int, ...]) -> None:
    """Three accept and say nothing; a fourth asks us and stalls. We still get the honest prompt."""
    ours, theirs = make_identity("ours"), make_identity("theirs")
    stalling = [make_identity(f"stalls{i}") for i in range(len(silent))]
    ports, shelf = _free_ports(2), shelf_on(1)
    us = Peer(0, f"127.0.0.1:{ports[0]}", ours.certificate.decode(), 1e6, 1.0)
    peers = [
        Peer(1 + i, f"127.0.0.1:{port}", one.certificate.decode(), 1e6, 1.0)
        for i, (port, one) in enumerate(zip(silent, stalling, strict=True))
    ]
    peers.append(Peer(9, f"127.0.0.1:{ports[1]}", theirs.certificate.decode(), 1e6, 1.0))
    other = threading.Thread(
        target=meet, args=(theirs, peers[-1].address, [us], shelf, None), kwargs={"seconds": 6.0}
    )
    other.start()
    asking = list[socket.socket]()

    def choose(heard: Sequence[Heard]) -> dict[int, str]:
        asking.append(socket.create_connection(("127.0.0.1", ports[0])))  # no handshake follows
        return {one.source: "" for one in heard}

    began = time.monotonic()
    met = meet(ours, us.address, peers, {}, choose, seconds=4.0)
    took = time.monotonic() - began
    other.join()
    asking[0].close()
    ((_, blob),) = shelf.values()
    assert [one.source for one in met.heard] == [9]
    assert met.blobs == {9: blob}
    assert took < 4.0 + 1.0 + 1.5  # the meeting, a second for those being answered, and slack


def test_a_store_keeps_prompts_and_one_identity(tmp_path: Path) -> None:
    store = PromptStore(tmp_path)
    assert store.get(3, OWN) is None
    prompt = np.arange(6, dtype=np.float32).reshape(2, 3)
    store.put(3, OWN, Kept(7, {PROMPT_NAME: prompt}))
    kept = PromptStore(tmp_path).get(3, OWN)
    assert kept is not None
    assert (kept.round, kept.arrays[PROMPT_NAME].tolist()) == (7, prompt.tolist())
    assert store.get(4, OWN) is None
    first = store.identity(3)
    assert PromptStore(tmp_path).identity(3) == first != store.identity(4)
    assert first.key.startswith(b"-----BEGIN")
    key_file = next((tmp_path / "3").glob("identity*"))
    assert key_file.stat().st_mode & 0o077 == 0
    blob = bytearray((tmp_path / "3" / OWN).read_bytes())
    blob[-1] ^= 1
    (tmp_path / "3" / OWN).write_bytes(blob)
    assert store.get(3, OWN) is None  # damaged counts as missing
