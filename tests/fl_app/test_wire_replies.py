"""Answers arrive at the server as they were given, and whatever is wrong with them has a name."""

import zlib
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from flwr.app import Array, ArrayRecord, Error, Message, MetricRecord
from hypothesis import given
from hypothesis import strategies as st

from fl_app import wire
from fl_app.errors import WireError
from fl_app.records import blob_record, to_blob
from tests.wire_fixtures import (
    cases,
    flower_process,
    message_of,
    same_bits,
    small_order,
    small_update,
)

__all__ = ["flower_process"]


LAYOUT = "1" * 64


def _reply(**changes: Any) -> tuple[wire.Order, Message]:
    order = small_order()
    fields: dict[str, Any] = {
        "update": small_update(),
        "layout_hash": LAYOUT,
        "num_examples": 5,
        "loss": 0.5,
        "steps": 2,
        "seconds": 0.125,
        "crossed": {},
    }
    return order, wire.update_reply(message_of(order), order, **{**fields, **changes})


def _read(order: wire.Order, message: Message) -> wire.Reply:
    return wire.read_update(message, order=order, layout_hash=LAYOUT, like=order.adapter)


@cases
@given(
    num_examples=st.integers(1, 10**9),
    loss=st.floats(allow_nan=False, allow_infinity=False, width=32),
    seconds=st.floats(0, 1e9),
)
def test_an_answer_arrives_as_it_was_given(num_examples: int, loss: float, seconds: float) -> None:
    order, message = _reply(num_examples=num_examples, loss=loss, seconds=seconds)
    reply = _read(order, message)
    assert same_bits(reply.update, small_update())
    got = (reply.device, reply.num_examples, reply.loss, reply.seconds)
    assert got == (7, num_examples, loss, seconds)
    assert wire.uplink_bytes(message) == len(to_blob(small_update()))
    assert not wire.lacks_emulator(message)


def _set(record: str, key: str, value: Any) -> Any:
    def spoil(message: Message) -> None:
        part: Any = message.content[record]
        if value is None:
            del part[key]
        else:
            part[key] = value

    return spoil


def _put(data: bytes, *, crc: bool = True) -> Any:
    def spoil(message: Message) -> None:
        message.content[wire.UPDATE] = blob_record(data)
        if crc:
            message.content.config_records[wire.CONFIG][wire.CRC] = zlib.crc32(data)

    return spoil


def _drop(record: str) -> Any:
    def spoil(message: Message) -> None:
        del message.content[record]

    return spoil


def _count(**changes: Any) -> Any:
    def spoil(message: Message) -> None:
        counts = {**dict.fromkeys(wire.CROSSED, 3), **changes}
        metrics: Any = message.content.metric_records[wire.METRICS]
        metrics.update({name: value for name, value in counts.items() if value is not None})

    return spoil


def _changed(**arrays: Any) -> bytes:
    return safetensors.numpy.save({**small_update(), **arrays})


SPOILT: dict[str, tuple[Any, str]] = {
    "old round": (_set(wire.CONFIG, wire.ROUND, 2), "wrong-round"),
    "round to come": (_set(wire.CONFIG, wire.ROUND, 4), "wrong-round"),
    "other device": (_set(wire.CONFIG, wire.DEVICE, 6), "wrong-device"),
    "other model": (_set(wire.CONFIG, wire.MODEL_HASH, "f" * 64), "wrong-model"),
    "other layout": (_set(wire.CONFIG, wire.LAYOUT_HASH, "f" * 64), "wrong-layout"),
    "no round": (_set(wire.CONFIG, wire.ROUND, None), "missing"),
    "no layout": (_set(wire.CONFIG, wire.LAYOUT_HASH, None), "missing"),
    "no checksum": (_set(wire.CONFIG, wire.CRC, None), "missing"),
    "checksum differs": (_put(to_blob(small_update())[:-1] + b"x", crc=False), "damaged"),
    "no safetensors": (_put(b"hello"), "damaged"),
    "other shape": (_put(_changed(a=np.zeros(5, np.float32))), "wrong-shape"),
    "transposed": (_put(_changed(b=np.zeros((3, 2), np.float32))), "wrong-shape"),
    "one more": (_put(_changed(c=np.zeros(1, np.float32))), "wrong-shape"),
    "one less": (_put(to_blob({"a": small_update()["a"]})), "wrong-shape"),
    "float64": (_put(_changed(a=np.zeros(4, np.float64))), "wrong-dtype"),
    "float16": (_put(_changed(a=np.zeros(4, np.float16))), "wrong-dtype"),
    "NaN": (_put(_changed(a=np.array([0, 1, np.nan, 2], np.float32))), "not-finite"),
    "infinity": (_put(_changed(a=np.array([0, 1, -np.inf, 2], np.float32))), "not-finite"),
    "no update": (_drop(wire.UPDATE), "missing"),
    "no config": (_drop(wire.CONFIG), "missing"),
    "no metrics": (_drop(wire.METRICS), "missing"),
    "examples 0": (_set(wire.METRICS, wire.NUM_EXAMPLES, 0), "bad-weight"),
    "examples -1": (_set(wire.METRICS, wire.NUM_EXAMPLES, -1), "bad-weight"),
    "examples 10^9 + 1": (_set(wire.METRICS, wire.NUM_EXAMPLES, 10**9 + 1), "bad-weight"),
    "examples 1.0": (_set(wire.METRICS, wire.NUM_EXAMPLES, 1.0), "missing"),
    "examples [1]": (_set(wire.METRICS, wire.NUM_EXAMPLES, [1]), "missing"),
    "loss NaN": (_set(wire.METRICS, wire.LOSS, float("nan")), "not-finite"),
    "loss of no float32": (_set(wire.METRICS, wire.LOSS, -1.7e308), "not-finite"),
    "seconds of a century": (_set(wire.METRICS, wire.SECONDS, 3.2e9), "bad-seconds"),
    "loss 1": (_set(wire.METRICS, wire.LOSS, 1), "missing"),
    "seconds NaN": (_set(wire.METRICS, wire.SECONDS, float("nan")), "bad-seconds"),
    "seconds infinite": (_set(wire.METRICS, wire.SECONDS, float("inf")), "bad-seconds"),
    "uses -1": (_count(forward_uses=-1), "bad-count"),
    "uses 1.0": (_count(backward_uses=1.0), "missing"),
    "uses one way": (_count(backward_uses=None), "missing"),
    "seconds -1": (_set(wire.METRICS, wire.SECONDS, -1.0), "bad-seconds"),
}


@pytest.mark.parametrize("name", SPOILT)
def test_a_spoilt_answer_is_refused_by_reason(name: str) -> None:
    spoil, reason = SPOILT[name]
    order, message = _reply()
    spoil(message)
    with pytest.raises(WireError) as error:
        _read(order, message)
    assert error.value.reason == reason
    assert len(str(error.value)) < 600  # it goes to the log of every round


def test_every_documented_reason_is_met() -> None:
    documented = set((wire.read_update.__doc__ or "").split("``")) & {
        reason for _, reason in SPOILT.values()
    }
    assert documented == {reason for _, reason in SPOILT.values()}


def test_an_error_reply_keeps_its_text() -> None:
    order = small_order()
    message = Message(Error(2, "DataError: no file"), reply_to=message_of(order))
    with pytest.raises(WireError, match="error: DataError: no file"):
        _read(order, message)
    assert wire.uplink_bytes(message) == 0
    assert not wire.lacks_emulator(message)


def test_a_device_without_the_emulator_says_so_and_nothing_else() -> None:
    order = small_order()
    message = wire.no_emulator_reply(message_of(order), order)
    assert wire.lacks_emulator(message)
    assert wire.uplink_bytes(message) == 0
    with pytest.raises(WireError, match="no-emulator"):
        _read(order, message)


def test_uplink_bytes_count_whatever_was_put_into_the_record() -> None:
    order, message = _reply()
    arrays = {
        name: Array(dtype="uint8", shape=(n,), stype="bytes", data=b"x" * n)
        for name, n in (("one", 3), ("two", 4))
    }
    message.content[wire.UPDATE] = ArrayRecord(arrays)
    assert wire.uplink_bytes(message) == 7
    with pytest.raises(WireError, match="missing"):
        _read(order, message)


def test_metrics_are_numbers_flower_can_carry() -> None:
    _, message = _reply()
    metrics = message.content.metric_records[wire.METRICS]
    assert isinstance(metrics, MetricRecord)
    assert dict(metrics) == {
        wire.NUM_EXAMPLES: 5,
        wire.LOSS: 0.5,
        wire.STEPS: 2,
        wire.SECONDS: 0.125,
    }
