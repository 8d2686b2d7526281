"""A federated round, with devices that fail in every way a device can."""

import math
from collections.abc import Callable

import numpy as np
import pytest

from fl_app import wire
from fl_app.updates import Update
from tests import fakes
from tests.fakes import Fault
from tests.federation_fixtures import ALL_DEVICES, SKEW, Player, assert_round_mean


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
    assert_round_mean(played, 1, played.start, [0, 1, 3])
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
    assert_round_mean(played, 1, played.start, [2, 6])


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


def test_an_overflowing_update_costs_the_device_its_turn_and_not_the_run(player: Player) -> None:
    """Finite factors whose product is not: in product space the mean would be infinite."""

    def huge(old: Update) -> Update:
        return {name: np.full_like(array, 1e30) for name, array in old.items()}

    played = player.play("peft.aggregation=exact", SKEW, faults={(1, 2): fakes.update(huge)})
    assert (played.dropped(1), played.devices(1)) == ({"not-finite": [2]}, [0, 1, 3])
    assert played.devices(2) == ALL_DEVICES
