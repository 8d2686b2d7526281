"""Messages carry what was put in, byte for byte, and whatever is wrong with them has a name."""

import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fl_app import wire
from fl_app.client_app import app
from fl_app.errors import WireError
from fl_app.local_grid import FIRST_NODE_ID, LocalGrid
from fl_app.updates import Update

cases = settings(derandomize=True, deadline=None, max_examples=30)
NODE = FIRST_NODE_ID
LAYOUT = "1" * 64

_names = st.text(st.characters(codec="ascii", categories=["L", "N"]), min_size=1, max_size=12)
_arrays = hnp.arrays(
    np.float32,
    hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4),
    elements=st.floats(width=32, allow_nan=False),
)
updates = st.dictionaries(_names, _arrays, min_size=1, max_size=4)


@pytest.fixture(autouse=True, scope="module")
def flower_process() -> Iterator[None]:
    """Flower's messages need the identity its own processes have."""
    with LocalGrid(app, num_nodes=1, run_config={}):
        yield


def _update() -> Update:
    rng = np.random.default_rng(0)
    return {
        "b": rng.normal(size=(2, 3)).astype(np.float32),
        "a": rng.normal(size=(4,)).astype(np.float32),
    }


def _order(**changes: Any) -> wire.Order:
    fields: dict[str, Any] = {
        "round": 3,
        "device": 7,
        "num_devices": 10,
        "model_hash": "0" * 64,
        "adapter": _update(),
        "emulator": None,
        "proximal_mu": 0.25,
    }
    return wire.Order(**{**fields, **changes})


def _sent(order: wire.Order) -> Message:
    return wire.order_message(order, NODE, wire.blob_record(wire.to_blob(order.adapter)))


def _reply(**changes: Any) -> tuple[wire.Order, Message]:
    order = _order()
    fields: dict[str, Any] = {
        "update": _update(),
        "layout_hash": LAYOUT,
        "num_examples": 5,
        "loss": 0.5,
        "steps": 2,
        "seconds": 0.125,
        "crossed": {},
    }
    return order, wire.update_reply(_sent(order), order, **{**fields, **changes})


def _read(order: wire.Order, message: Message) -> wire.Reply:
    return wire.read_update(message, order=order, layout_hash=LAYOUT, like=order.adapter)


def _equal(left: Update, right: Update) -> bool:
    return left.keys() == right.keys() and all(
        left[k].dtype == right[k].dtype
        and left[k].shape == right[k].shape
        and left[k].tobytes() == right[k].tobytes()
        for k in left
    )


# --- blobs -------------------------------------------------------------------------------------


@cases
@given(update=updates)
def test_a_blob_gives_back_every_bit(update: Update) -> None:
    assert _equal(wire.from_blob(wire.to_blob(update)), update)


@cases
@given(update=updates, data=st.data())
def test_a_blob_does_not_depend_on_the_order_of_names(update: Update, data: st.DataObject) -> None:
    names = data.draw(st.permutations(list(update)))
    assert wire.to_blob({name: update[name] for name in names}) == wire.to_blob(update)


def test_a_blob_is_little_more_than_its_numbers() -> None:
    """One header for all arrays; safetensors pads it to eight bytes."""
    update = _update()
    blob = wire.to_blob(update)
    header = int.from_bytes(blob[:8], "little")
    assert len(blob) == 8 + header + sum(array.nbytes for array in update.values())


def test_strided_arrays_are_written_as_they_read() -> None:
    array = np.arange(12, dtype=np.float32).reshape(3, 4)
    assert np.array_equal(wire.from_blob(wire.to_blob({"t": array.T}))["t"], array.T)


@pytest.mark.parametrize("blob", [b"", b"\x00" * 7, b"\xff" * 64, b"8" * 40])
def test_noise_is_no_blob(blob: bytes) -> None:
    with pytest.raises(WireError) as error:
        wire.from_blob(blob)
    assert error.value.reason == "damaged"


@cases
@given(data=st.data())
def test_a_cut_blob_is_damaged(data: st.DataObject) -> None:
    blob = wire.to_blob(_update())
    cut = data.draw(st.integers(0, len(blob) - 1))
    with pytest.raises(WireError, match="damaged"):
        wire.from_blob(blob[:cut])


@cases
@given(blob=st.binary(max_size=50))
def test_bytes_travel_in_a_record_unchanged_and_uncounted_for_nothing(blob: bytes) -> None:
    record = wire.blob_record(blob)
    assert wire.blob_of(record) == blob
    assert sum(len(array.data) for array in record.values()) == len(blob)


# --- hello -------------------------------------------------------------------------------------


@pytest.mark.parametrize("held", [[], ["a" * 64], ["a" * 64, "b" * 64]])
def test_hello_tells_partition_and_held_emulators(held: list[str]) -> None:
    message = wire.hello_reply(wire.hello_message(NODE), 4, held)
    hello = wire.read_hello(message)
    assert (hello.node, hello.partition, hello.held) == (
        message.metadata.src_node_id,
        4,
        frozenset(held),
    )
    assert message.content.config_records[wire.CONFIG].count_bytes() > 0  # "" and [] break it


@pytest.mark.parametrize("spoilt", [{}, {"partition": "4", "held": "-"}, {"partition": 4}])
def test_a_hello_without_its_fields_is_refused(spoilt: dict[str, Any]) -> None:
    content = RecordDict({wire.CONFIG: ConfigRecord(spoilt)})
    with pytest.raises(WireError) as error:
        wire.read_hello(Message(content, reply_to=wire.hello_message(NODE)))
    assert error.value.reason == "missing"


# --- orders ------------------------------------------------------------------------------------


@cases
@given(
    adapter=updates,
    emulator=st.none() | st.binary(min_size=1, max_size=20),
    number=st.integers(1, 2**31),
    device=st.integers(0, 2**31),
    mu=st.floats(0, 1e6),
)
def test_an_order_arrives_as_it_was_given(
    adapter: Update, emulator: bytes | None, number: int, device: int, mu: float
) -> None:
    order = _order(adapter=adapter, emulator=emulator, round=number, device=device, proximal_mu=mu)
    message = _sent(order)
    got = wire.read_order(message)
    assert _equal(got.adapter, adapter)
    assert {**vars(got), "adapter": 0} == {**vars(order), "adapter": 0}
    assert message.metadata.dst_node_id == NODE
    assert message.metadata.message_type == wire.ACTION_TRAIN


def test_an_order_without_the_emulator_has_no_record_for_it() -> None:
    assert set(_sent(_order()).content) == {wire.ADAPTER, wire.CONFIG}
    assert set(_sent(_order(emulator=b"x")).content) == {wire.ADAPTER, wire.CONFIG, wire.EMULATOR}


def _spoilt_order(key: str, value: Any) -> Message:
    message = _sent(_order())
    config: Any = message.content.config_records[wire.CONFIG]
    if value is None:
        del config[key]
    else:
        config[key] = value
    return message


@pytest.mark.parametrize(
    ("key", "value", "reason"),
    [
        (wire.ROUND, None, "missing"),
        (wire.ROUND, True, "missing"),
        (wire.ROUND, "3", "missing"),
        (wire.DEVICE, None, "missing"),
        (wire.NUM_DEVICES, 1.0, "missing"),
        (wire.MODEL_HASH, None, "missing"),
        (wire.MODEL_HASH, 5, "missing"),
        (wire.PROXIMAL_MU, 1, "missing"),
        (wire.CRC, None, "missing"),
        (wire.CRC, 1, "damaged"),
    ],
)
def test_a_spoilt_order_is_refused(key: str, value: Any, reason: str) -> None:
    with pytest.raises(WireError) as error:
        wire.read_order(_spoilt_order(key, value))
    assert error.value.reason == reason


def test_an_order_without_an_adapter_is_refused() -> None:
    message = _sent(_order())
    del message.content[wire.ADAPTER]
    with pytest.raises(WireError, match="no 'adapter'"):
        wire.read_order(message)


def test_a_flipped_bit_of_the_adapter_is_noticed_on_the_device() -> None:
    message = _sent(_order())
    data = bytearray(wire.blob_of(message.content.array_records[wire.ADAPTER]))
    data[-3] ^= 4
    message.content[wire.ADAPTER] = wire.blob_record(bytes(data))
    with pytest.raises(WireError, match="checksum"):
        wire.read_order(message)


# --- replies -----------------------------------------------------------------------------------


@cases
@given(
    num_examples=st.integers(1, 10**9),
    loss=st.floats(allow_nan=False, allow_infinity=False),
    seconds=st.floats(0, 1e9),
)
def test_an_answer_arrives_as_it_was_given(num_examples: int, loss: float, seconds: float) -> None:
    order, message = _reply(num_examples=num_examples, loss=loss, seconds=seconds)
    reply = _read(order, message)
    assert _equal(reply.update, _update())
    got = (reply.device, reply.num_examples, reply.loss, reply.seconds)
    assert got == (7, num_examples, loss, seconds)
    assert wire.uplink_bytes(message) == len(wire.to_blob(_update()))
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
        message.content[wire.UPDATE] = wire.blob_record(data)
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
    return safetensors.numpy.save({**_update(), **arrays})


SPOILT: dict[str, tuple[Any, str]] = {
    "old round": (_set(wire.CONFIG, wire.ROUND, 2), "wrong-round"),
    "round to come": (_set(wire.CONFIG, wire.ROUND, 4), "wrong-round"),
    "other device": (_set(wire.CONFIG, wire.DEVICE, 6), "wrong-device"),
    "other model": (_set(wire.CONFIG, wire.MODEL_HASH, "f" * 64), "wrong-model"),
    "other layout": (_set(wire.CONFIG, wire.LAYOUT_HASH, "f" * 64), "wrong-layout"),
    "no round": (_set(wire.CONFIG, wire.ROUND, None), "missing"),
    "no layout": (_set(wire.CONFIG, wire.LAYOUT_HASH, None), "missing"),
    "no checksum": (_set(wire.CONFIG, wire.CRC, None), "missing"),
    "checksum differs": (_put(wire.to_blob(_update())[:-1] + b"x", crc=False), "damaged"),
    "no safetensors": (_put(b"hello"), "damaged"),
    "other shape": (_put(_changed(a=np.zeros(5, np.float32))), "wrong-shape"),
    "transposed": (_put(_changed(b=np.zeros((3, 2), np.float32))), "wrong-shape"),
    "one more": (_put(_changed(c=np.zeros(1, np.float32))), "wrong-shape"),
    "one less": (_put(wire.to_blob({"a": _update()["a"]})), "wrong-shape"),
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
    order = _order()
    message = Message(Error(2, "DataError: no file"), reply_to=_sent(order))
    with pytest.raises(WireError, match="error: DataError: no file"):
        _read(order, message)
    assert wire.uplink_bytes(message) == 0
    assert not wire.lacks_emulator(message)


def test_a_device_without_the_emulator_says_so_and_nothing_else() -> None:
    order = _order()
    message = wire.no_emulator_reply(_sent(order), order)
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
