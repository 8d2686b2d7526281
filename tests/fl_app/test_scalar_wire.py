"""Payloads of a round by scalars come back as they were, and strange ones are refused."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from fl_app import scalar_wire
from fl_app.errors import WireError
from fl_app.payload import Payload, read_payload
from fl_app.scalar_wire import Opening, Start

_OPENING = Opening(3, 2, "ab" * 32, True, np.array([0.0, 0.5, -1.25], np.float32))


def _sent(payload: Payload) -> Payload:
    return read_payload(payload.to_blob(), max_bytes=2**20)


def _reason(call: Any, *args: Any, **named: Any) -> str:
    with pytest.raises(WireError) as caught:
        call(*args, **named)
    return caught.value.reason


def test_an_opening_comes_back() -> None:
    found = scalar_wire.read_opening(_sent(_OPENING.to_payload()), 3)
    assert np.array_equal(found.coefficients, _OPENING.coefficients)
    assert replace(found, coefficients=None) == replace(_OPENING, coefficients=None)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"kind": "begin"}, "wrong-kind"),
        ({"scalars": {"round": 3}}, "missing"),
        ({"arrays": {}}, "missing"),
        ({"arrays": {"coefficients": np.zeros(4, np.float32)}}, "wrong-shape"),
        ({"arrays": {"coefficients": np.zeros((3, 1), np.float32)}}, "wrong-shape"),
        ({"arrays": {"coefficients": np.zeros(3, np.float16)}}, "wrong-dtype"),
        ({"arrays": {"coefficients": np.full(3, np.inf, np.float32)}}, "not-finite"),
    ],
)
def test_a_strange_opening_is_refused(change: dict[str, Any], reason: str) -> None:
    payload = replace(_OPENING.to_payload(), **change)
    assert _reason(scalar_wire.read_opening, payload, 3) == reason


def test_a_start_comes_back() -> None:
    batches = [{"hidden0.values": np.full((2, 1), i, np.float32)} for i in range(12)]
    start = Start(np.arange(12, dtype=np.int32), "cd", batches, np.arange(5), 0.25)
    found = scalar_wire.read_start(_sent(start.to_payload()), num_seeds=12, adapter="cd")
    assert np.array_equal(found.seeds, start.seeds)
    assert found.error == 0.25
    assert found.counts is not None
    assert found.counts.tolist() == [0, 1, 2, 3, 4]
    # twelve steps: "1|" must not take what is of "11|"
    assert [list(batch) for batch in found.batches] == [["hidden0.values"]] * 12
    assert [batch["hidden0.values"][0, 0] for batch in found.batches] == list(range(12))


def test_sides_come_back_as_they_are() -> None:
    plus, minus = torch.randn(3, 4), torch.randn(3, 4)
    readout = torch.tensor([[True, False], [True, True]])
    found = scalar_wire.read_sides(_sent(scalar_wire.sides(1, plus, minus, readout)))
    assert all(torch.equal(a, b) for a, b in zip(found, (plus, minus, readout), strict=True))
    *_, none = scalar_wire.read_sides(_sent(scalar_wire.sides(1, plus, minus, None)))
    assert len(none) == 0
    spoilt = scalar_wire.sides(1, plus, minus * float("nan"), None)
    assert _reason(scalar_wire.read_sides, spoilt) == "not-finite"
    lacking = Payload(scalar_wire.SIDES, 1, {}, {"side|plus": plus.numpy()})
    assert _reason(scalar_wire.read_sides, lacking) == "missing"


def test_a_slope_comes_back_exactly() -> None:
    assert scalar_wire.read_slope(_sent(scalar_wire.slope(4, 0.1))) == 0.1
    assert _reason(scalar_wire.read_slope, scalar_wire.close([0.1], None)) == "wrong-kind"
    assert _reason(scalar_wire.read_slope, Payload("slope", 4, {"slope": 1})) == "missing"


@pytest.mark.parametrize("loss", [None, 1.25])
def test_the_end_comes_back(loss: float | None) -> None:
    payload = _sent(scalar_wire.close([0.5, -0.25], loss))
    assert scalar_wire.read_close(payload, 2) == ([0.5, -0.25], loss)
    assert _reason(scalar_wire.read_close, payload, 3) == "wrong-shape"


def test_digests_see_every_bit() -> None:
    theta = {"a": np.array([1.0, 2.0], np.float32)}
    other = {"a": np.nextafter(theta["a"], np.float32(9.0))}
    assert scalar_wire.digest(theta) == scalar_wire.digest({"a": theta["a"].copy()})
    assert scalar_wire.digest(theta) != scalar_wire.digest(other)
    assert scalar_wire.digest(theta) != scalar_wire.digest({"b": theta["a"]})
