"""Devices that fail in the middle of a round: they alone are lost, and booked by reason."""

import dataclasses

import numpy as np
import pytest
from flwr.app import Message

from clients.gradient_worker import GradientWorker
from fl_app.errors import RunError
from fl_app.job import require_progress
from fl_app.local_grid import ThreadedGrid
from fl_app.payload import read_payload
from strategies.exchange import MAX_BYTES
from tests import fakes
from tests.exchange_fixtures import nothing_left_behind
from tests.fakes import Fault
from tests.federation_fixtures import NUM_DEVICES, Player, player, tiny_federation
from tests.gradient_fixtures import (
    VARIANTS,
    GradientPlayed,
    Place,
    lying,
    on,
    play,
    relative,
    words_of,
)

__all__ = ["player", "tiny_federation"]

BAD = 1
OTHERS = [device for device in range(NUM_DEVICES) if device != BAD]
QUICK = ("strategy.exchange_timeout_s=0.3",)
"""Nobody is slow in process, so a silent device need not be waited for."""
REASONS: dict[str, tuple[Fault, str]] = {
    "raises": (fakes.raises(), "error"),
    "silent": (fakes.vanishes, "silent"),
    "twice": (fakes.answers_twice, "duplicate"),
    "empty": (fakes.empty, "missing"),
    "old step": (lying(lambda p: dataclasses.replace(p, step=p.step + 7)), "wrong-step"),
    "wrong kind": (lying(lambda p: dataclasses.replace(p, kind="hello")), "wrong-kind"),
}


def survivors_only(player: Player, *words: str) -> GradientPlayed:
    """The same federation in which device BAD never answers anything, not even the first time."""
    never = on("front", fakes.vanishes, devices=[BAD], rounds=[0])
    return play(player, *words, spoil=never)


# --- in every place of a round -----------------------------------------------------------------


@pytest.mark.parametrize("fault", REASONS)
@pytest.mark.parametrize("kind", ["begin", "states", "gradient"])
def test_a_fault_costs_the_device_and_nobody_else(player: Player, kind: str, fault: str) -> None:
    """Whatever comes too late or wrong, the rest is the federation of those who came through."""
    spoil, reason = REASONS[fault]
    words = words_of("prompt", *QUICK, "strategy.num_rounds=1", "finetune.max_steps=2")
    played = play(player, *words, spoil=on(kind, spoil, devices=[BAD]))
    assert played.dropped(1) == {reason: [BAD]}
    assert played.devices(1) == OTHERS
    wanted = survivors_only(player, *words)
    assert wanted.dropped(1) == {"silent": [BAD]}
    assert relative(played.adapter, wanted.adapter, wanted.start) < 2e-5  # others in the batch
    later = [e for e in played.grid.steps if e.place.device == BAD]
    assert later[-1].place == Place(1, BAD, kind, 0)  # nothing more was sent to it
    ledger = played.outcome.ledger
    came = sum(len(blob) for e in later for blob in e.received)
    assert ledger.total_bytes(device=BAD, link="uplink") == came  # of no use, and booked
    assert (came > 0) == (kind != "begin" or fault in ("old step", "wrong kind", "twice"))
    if kind != "begin" or fault == "old step":
        assert ledger.total_bytes(device=BAD, what="features") > 0  # dropped, and booked


@pytest.mark.parametrize(
    ("variant", "shared"),
    [*((variant, "false") for variant in VARIANTS), ("prompt", "true"), ("lora", "true")],
)
def test_two_of_ten_drop_between_features_and_gradients_in_every_round(
    player: Player, variant: str, shared: str
) -> None:
    lost = {1: [2, 5], 2: [0, 9]}
    words = words_of(
        variant,
        *QUICK,
        f"strategy.shared_gradient={shared}",
        "federation.num_devices=10",
        "strategy.max_in_flight=4",
        "finetune.max_steps=2",
        "finetune.batch_size=4",
    )

    def spoil(place: Place, sent: Message, reply: Message) -> list[Message]:
        is_lost = place.kind == "states" and place.step == 1
        return [] if is_lost and place.device in lost[place.round] else [reply]

    played = play(player, *words, spoil=spoil)
    for number, devices in lost.items():
        assert played.dropped(number) == {"silent": devices}
        assert played.devices(number) == [d for d in range(10) if d not in devices]
        for device in devices:  # two batches of features each
            booked = played.outcome.ledger.total_bytes(
                round=number, device=device, link="uplink", what="features"
            )
            sent = [
                len(blob)
                for e in played.grid.steps
                if (e.place.round, e.place.device) == (number, device)
                for blob, up in zip(e.received, e.up, strict=True)
                if up.kind == "features"
            ]
            assert (len(sent), booked) == (2, sum(sent))


def test_a_device_that_vanishes_after_its_gradient_leaves_no_update(player: Player) -> None:
    words = words_of("lora", *QUICK, "strategy.num_rounds=1", "finetune.max_steps=2")
    spoil = on("gradient", fakes.vanishes, devices=[BAD], step=1)
    played = play(player, *words, spoil=spoil)
    assert played.dropped(1) == {"silent": [BAD]}
    wanted = survivors_only(player, *words)
    assert relative(played.adapter, wanted.adapter, wanted.start) < 2e-5


def test_survivors_weigh_what_they_weigh_among_themselves(player: Player) -> None:
    words = words_of(
        "cut",
        *QUICK,
        "strategy.num_rounds=1",
        "finetune.max_steps=1",
        "data.partition.kind=quantity",
    )
    played = play(player, *words, spoil=on("states", fakes.vanishes, devices=[BAD]))
    updates = {
        e.place.device: (up.arrays, int(up.scalars["num-examples"]))
        for e in played.grid.steps
        for up in e.up
        if up.kind == "update"
    }
    assert sorted(updates) == OTHERS
    total = sum(count for _, count in updates.values())
    assert len({count for _, count in updates.values()}) > 1
    for name, array in played.adapter.items():
        mean = sum(u[name].astype(np.float64) * n / total for u, n in updates.values())
        wanted = played.start[name].astype(np.float64) + mean
        bound = (len(updates) + 3) * np.finfo(np.float32).eps * np.abs(wanted).max()
        assert np.abs(array - wanted).max() <= bound


def test_a_run_in_which_nobody_comes_through_fails(player: Player) -> None:
    everybody = on("states", fakes.raises(), devices=range(NUM_DEVICES), rounds=(1, 2))
    played = play(player, *words_of("prompt"), spoil=everybody)
    assert played.dropped(1) == played.dropped(2) == {"error": list(range(NUM_DEVICES))}
    assert all(np.array_equal(played.adapter[n], played.start[n]) for n in played.start)
    with pytest.raises(RunError, match="error"):
        require_progress(played.outcome)


# --- the part of the model is lost -------------------------------------------------------------


@pytest.mark.parametrize("is_damaged", [False, True])
@pytest.mark.parametrize("step", [0, 1])
def test_a_lost_part_of_the_model_is_sent_again_in_the_next_round(
    player: Player, monkeypatch: pytest.MonkeyPatch, is_damaged: bool, step: int
) -> None:
    """The device's process forgets it too, as a new one would."""
    words = words_of("cut", "strategy.num_rounds=3", "finetune.max_steps=2")
    handle = GradientWorker.handle
    done: list[int] = []

    def hurt(worker: GradientWorker) -> None:
        (path,) = (worker._cache._root / str(BAD)).glob("[!.]*")
        data = bytearray(path.read_bytes())
        data[-1] ^= 1
        path.unlink()  # first, for equal parts of several devices share one file
        if is_damaged:
            path.write_bytes(bytes(data))
        worker._loaded.forget()
        done.append(BAD)

    def losing(
        worker: GradientWorker, state: bytes | None, blob: bytes
    ) -> tuple[bytes | None, bytes]:
        asked = read_payload(blob, max_bytes=MAX_BYTES)
        is_begin = asked.kind == "begin" and asked.scalars["device"] == BAD
        is_meant = is_begin and asked.scalars["round"] == 2
        if is_meant and step == 0:
            hurt(worker)
        answer = handle(worker, state, blob)
        if is_meant and step == 1:  # after its first features
            hurt(worker)
        return answer

    monkeypatch.setattr(GradientWorker, "handle", losing)
    played = play(player, *words)
    assert done == [BAD]
    assert [played.dropped(number) for number in (1, 2, 3)] == [{}, {"no-emulator": [BAD]}, {}]
    assert [device for device, _ in played.grid.fronts] == [0, 1, 2, 3, BAD]
    ledger = played.outcome.ledger
    sizes = {size for _, size in played.grid.fronts}
    assert ledger.total_bytes(round=3, device=BAD, what="emulator") == sizes.pop()


# --- over streams ------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["begin", "states", "gradient"])
def test_a_device_that_dies_on_its_stream_leaves_nothing_behind(
    player: Player, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    handle = GradientWorker.handle

    def dying(
        worker: GradientWorker, state: bytes | None, blob: bytes
    ) -> tuple[bytes | None, bytes]:
        asked = read_payload(blob, max_bytes=MAX_BYTES)
        sent_to = asked.scalars["device"] if state is None else _device(state)
        if (sent_to, asked.kind, asked.step) == (BAD, kind, 0):
            raise MemoryError("out of memory")
        return handle(worker, state, blob)

    monkeypatch.setattr(GradientWorker, "handle", dying)
    words = words_of("prompt", "strategy.num_rounds=1", "finetune.max_steps=2")
    with nothing_left_behind():
        streams = play(player, *words, "strategy.transport=stream", grid_type=ThreadedGrid)
    assert streams.dropped(1) == {"error": [BAD]}
    assert streams.devices(1) == OTHERS
    messages = play(player, *words)
    assert messages.dropped(1) == {"error": [BAD]}
    assert relative(streams.adapter, messages.adapter, messages.start) == 0.0


def _device(state: bytes) -> int:
    return int(read_payload(state, max_bytes=2**31).scalars["device"])
