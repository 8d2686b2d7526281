"""A layout inside a message: there and back, and nothing that is none."""

from typing import Any

import pytest
from flwr.app import ConfigRecord

from fl_app.errors import WireError
from fl_app.layout_wire import layout_fields, read_layout


@pytest.mark.parametrize("layout", [{}, {3: 0}, {0: 4, 11: 0, 10: 300}])
def test_there_and_back(layout: dict[int, int]) -> None:
    assert read_layout(ConfigRecord({**layout_fields(layout)})) == layout


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"blocks": [1]}, "missing"),
        ({"blocks": 1, "ranks": [1]}, "missing"),
        ({"blocks": [1, 2], "ranks": [1]}, "damaged"),
        ({"blocks": [1, 1], "ranks": [1, 2]}, "damaged"),
        ({"blocks": [1], "ranks": [-1]}, "damaged"),
        ({"blocks": [1], "ranks": [1.0]}, "damaged"),
        ({"blocks": [1], "ranks": [True]}, "damaged"),
    ],
)
def test_what_is_no_layout_is_refused(fields: dict[str, Any], reason: str) -> None:
    with pytest.raises(WireError) as found:
        read_layout(fields)
    assert found.value.reason == reason
