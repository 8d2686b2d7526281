"""A payload survives the wire bit for bit, and nothing else passes for one."""

import json
import math

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fl_app.errors import WireError
from fl_app.payload import DTYPES, Payload, read_payload

LIMIT = 10**6
_shapes = hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4)
_arrays = st.sampled_from(DTYPES).flatmap(lambda d: hnp.arrays(np.dtype(d), _shapes))
_scalars = st.one_of(st.integers(), st.floats(), st.text(), st.booleans())


def _example() -> Payload:
    arrays = {"x": np.arange(6, dtype=np.float32).reshape(2, 3), "mask": np.array([True, False])}
    return Payload("features", 3, {"loss": 0.1, "last": True, "n": 7, "how": 'i"8\\'}, arrays)


def _reason(blob: bytes, max_bytes: int = LIMIT) -> str:
    with pytest.raises(WireError) as caught:
        read_payload(blob, max_bytes=max_bytes)
    return caught.value.reason


@given(
    st.text(min_size=1, max_size=40).filter(lambda text: text.isprintable()),
    st.integers(min_value=0),
    st.dictionaries(st.text(max_size=9), _scalars, max_size=4),
    st.dictionaries(st.text(max_size=9).filter("__metadata__".__ne__), _arrays, max_size=4),
)
@settings(max_examples=150, deadline=None)
def test_it_comes_back_bit_for_bit(kind, step, scalars, arrays) -> None:
    blob = Payload(kind, step, scalars, arrays).to_blob()
    read = read_payload(blob, max_bytes=len(blob))
    assert (read.kind, read.step) == (kind, step)
    assert set(read.scalars) == set(scalars)
    for name, value in scalars.items():
        assert type(read.scalars[name]) is type(value)
        assert read.scalars[name] == value or (math.isnan(value) and math.isnan(read.scalars[name]))
    assert list(read.arrays) == sorted(arrays)
    for name, array in arrays.items():
        assert read.arrays[name].dtype == array.dtype
        assert read.arrays[name].shape == array.shape
        assert read.arrays[name].tobytes() == array.tobytes()
    assert read.to_blob() == blob


def test_equal_payloads_give_equal_bytes_whatever_the_order_and_layout() -> None:
    one = _example()
    arrays = {"mask": one.arrays["mask"], "x": np.asfortranarray(one.arrays["x"])}
    other = Payload("features", 3, dict(reversed(one.scalars.items())), arrays)
    assert other.to_blob() == one.to_blob()


def test_it_is_an_ordinary_safetensors_blob_with_one_metadata_entry() -> None:
    blob = _example().to_blob()
    np.testing.assert_array_equal(safetensors.numpy.load(blob)["x"], _example().arrays["x"])
    header = json.loads(blob[8 : 8 + int.from_bytes(blob[:8], "little")])
    assert list(header["__metadata__"]) == ["deft"]


def test_any_flipped_bit_is_noticed() -> None:
    blob = _example().to_blob()
    for at in range(len(blob)):
        spoilt = bytearray(blob)
        spoilt[at] ^= 1 << (at % 8)
        assert _reason(bytes(spoilt)) in {"damaged", "unknown-format"}


def test_cut_and_lengthened_bytes_are_noticed() -> None:
    blob = _example().to_blob()
    for end in range(len(blob)):
        assert _reason(blob[:end]) in {"damaged", "unknown-format"}
    assert _reason(blob + b"\0") == "damaged"


@pytest.mark.parametrize("blob", [b"", b"x", b"\0" * 100, safetensors.numpy.save({})])
def test_other_bytes_are_no_payload(blob: bytes) -> None:
    assert _reason(blob) == "unknown-format"


def test_the_limit_is_inclusive() -> None:
    blob = _example().to_blob()
    assert read_payload(blob, max_bytes=len(blob)).step == 3
    assert _reason(blob, len(blob) - 1) == "too-large"


def _forged(monkeypatch: pytest.MonkeyPatch, **facts: object) -> bytes:
    """A blob as a hostile device would write it, with a checksum that fits."""
    real = json.dumps
    monkeypatch.setattr("json.dumps", lambda old, **_: real({**old, "scalars": {}, **facts}))
    blob = _example().to_blob()
    monkeypatch.undo()
    return blob


@pytest.mark.parametrize(
    ("facts", "reason"),
    [
        ({"format": "deft-payload/2"}, "unknown-format"),
        ({"format": None}, "unknown-format"),
        ({"kind": ""}, "bad-kind"),
        ({"kind": 5}, "bad-kind"),
        ({"kind": "x" * 41}, "bad-kind"),
        ({"step": -1}, "bad-step"),
        ({"step": True}, "bad-step"),
        ({"step": 1.0}, "bad-step"),
        ({"scalars": 5}, "damaged"),
        ({"scalars": {"a": None}}, "bad-scalar"),
        ({"scalars": {"a": [1]}}, "bad-scalar"),
    ],
)
def test_forged_facts_are_refused(monkeypatch, facts, reason) -> None:
    assert _reason(_forged(monkeypatch, **facts)) == reason


def test_a_nested_header_is_refused_and_no_crash(monkeypatch) -> None:
    monkeypatch.setattr("json.dumps", lambda *_, **__: "[" * 100_000)
    blob = _example().to_blob()
    monkeypatch.undo()
    assert _reason(blob) == "damaged"


@pytest.mark.parametrize("dtype", ["float64", "uint16", "complex64"])
def test_other_dtypes_are_refused_by_name_on_both_sides(monkeypatch, dtype) -> None:
    with pytest.raises(WireError, match=f"'x' is {dtype}"):
        Payload("k", 0, {}, {"x": np.zeros(2, dtype)})
    monkeypatch.setattr("fl_app.payload.DTYPES", (*DTYPES, dtype))
    blob = Payload("k", 0, {}, {"x": np.zeros(2, dtype)}).to_blob()
    monkeypatch.undo()
    assert _reason(blob) == "wrong-dtype"


@pytest.mark.parametrize("value", [np.float64(1.0), None, [1], b"x"])
def test_scalars_are_plain(value: object) -> None:
    with pytest.raises(WireError, match="'a'") as caught:
        Payload("k", 0, {"a": value})  # type: ignore[dict-item]
    assert caught.value.reason == "bad-scalar"


def test_an_array_cannot_pose_as_the_metadata() -> None:
    with pytest.raises(WireError, match="__metadata__"):
        Payload("k", 0, {}, {"__metadata__": np.zeros(2, np.float32)})
