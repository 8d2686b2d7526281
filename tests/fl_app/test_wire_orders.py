"""Orders arrive at devices as they were given, and spoilt ones are refused."""

from typing import Any

import pytest
from flwr.app import Message
from hypothesis import given
from hypothesis import strategies as st

from fl_app import wire
from fl_app.errors import WireError
from fl_app.records import blob_of, blob_record
from fl_app.updates import Update
from tests.wire_fixtures import (
    NODE,
    cases,
    flower_process,
    message_of,
    same_bits,
    small_order,
    updates,
)

__all__ = ["flower_process"]


@cases
@given(
    adapter=updates,
    emulator=st.none() | st.binary(min_size=1, max_size=20),
    number=st.integers(1, 2**31),
    device=st.integers(0, 2**31),
    mu=st.floats(0, 1e6),
    stacks=st.none() | st.lists(st.text("0123456789abcdef", min_size=4), max_size=3).map(tuple),
)
def test_an_order_arrives_as_it_was_given(
    adapter: Update,
    emulator: bytes | None,
    number: int,
    device: int,
    mu: float,
    stacks: tuple[str, ...] | None,
) -> None:
    order = small_order(
        adapter=adapter,
        emulator=emulator,
        round=number,
        device=device,
        proximal_mu=mu,
        stacks=stacks,
        new_stacks={name: name.encode() for name in (stacks or ())[1:]},
    )
    message = message_of(order)
    got = wire.read_order(message)
    assert same_bits(got.adapter, adapter)
    assert {**vars(got), "adapter": 0} == {**vars(order), "adapter": 0}
    assert message.metadata.dst_node_id == NODE
    assert message.metadata.message_type == wire.ACTION_TRAIN


def test_an_order_without_the_emulator_has_no_record_for_it() -> None:
    assert set(message_of(small_order()).content) == {wire.ADAPTER, wire.CONFIG}
    assert set(message_of(small_order(emulator=b"x")).content) == {
        wire.ADAPTER,
        wire.CONFIG,
        wire.EMULATOR,
    }


def _spoilt_order(key: str, value: Any) -> Message:
    message = message_of(small_order())
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
    message = message_of(small_order())
    del message.content[wire.ADAPTER]
    with pytest.raises(WireError, match="no 'adapter'"):
        wire.read_order(message)


def test_a_flipped_bit_of_the_adapter_is_noticed_on_the_device() -> None:
    message = message_of(small_order())
    data = bytearray(blob_of(message.content.array_records[wire.ADAPTER]))
    data[-3] ^= 4
    message.content[wire.ADAPTER] = blob_record(bytes(data))
    with pytest.raises(WireError, match="checksum"):
        wire.read_order(message)
