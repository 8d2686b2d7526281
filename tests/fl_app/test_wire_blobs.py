"""Blobs give back what was put in, bit for bit, and damaged ones are refused."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fl_app.errors import WireError
from fl_app.records import blob_of, blob_record, from_blob, to_blob
from fl_app.updates import Update
from tests.wire_fixtures import cases, same_bits, small_update, updates


@cases
@given(update=updates)
def test_a_blob_gives_back_every_bit(update: Update) -> None:
    assert same_bits(from_blob(to_blob(update)), update)


@cases
@given(update=updates, data=st.data())
def test_a_blob_does_not_depend_on_the_order_of_names(update: Update, data: st.DataObject) -> None:
    names = data.draw(st.permutations(list(update)))
    assert to_blob({name: update[name] for name in names}) == to_blob(update)


def test_a_blob_is_little_more_than_its_numbers() -> None:
    """One header for all arrays; safetensors pads it to eight bytes."""
    update = small_update()
    blob = to_blob(update)
    header = int.from_bytes(blob[:8], "little")
    assert len(blob) == 8 + header + sum(array.nbytes for array in update.values())


def test_strided_arrays_are_written_as_they_read() -> None:
    array = np.arange(12, dtype=np.float32).reshape(3, 4)
    assert np.array_equal(from_blob(to_blob({"t": array.T}))["t"], array.T)


@pytest.mark.parametrize("blob", [b"", b"\x00" * 7, b"\xff" * 64, b"8" * 40])
def test_noise_is_no_blob(blob: bytes) -> None:
    with pytest.raises(WireError) as error:
        from_blob(blob)
    assert error.value.reason == "damaged"


@cases
@given(data=st.data())
def test_a_cut_blob_is_damaged(data: st.DataObject) -> None:
    blob = to_blob(small_update())
    cut = data.draw(st.integers(0, len(blob) - 1))
    with pytest.raises(WireError, match="damaged"):
        from_blob(blob[:cut])


@cases
@given(blob=st.binary(max_size=50))
def test_bytes_travel_in_a_record_unchanged_and_uncounted_for_nothing(blob: bytes) -> None:
    record = blob_record(blob)
    assert blob_of(record) == blob
    assert sum(len(array.data) for array in record.values()) == len(blob)
