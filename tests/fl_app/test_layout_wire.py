"""A layout inside a message: there and back, and nothing that is none."""

from typing import Any

import pytest
from flwr.app import ConfigRecord

from fl_app.errors import WireError
from fl_app.layout_wire import layout_fields, read_layout, read_units


@pytest.mark.parametrize("layout", [{}, {3: 0}, {0: 4, 11: 0, 10: 300}])
def test_there_and_back(layout: dict[int, int]) -> None:
    assert read_layout(ConfigRecord({**layout_fields(layout)})) == layout


@pytest.mark.parametrize("layout", [{}, {3: 0}, {3: 0, 5: 2}])
def test_every_message_can_be_counted(layout: dict[int, int]) -> None:
    """Flower's byte count fails on empty lists."""
    units = {block: tuple(range(rank)) for block, rank in layout.items()}
    fields = ConfigRecord({**layout_fields(layout, units)})
    listed = [number for block in layout for number in (block, layout[block])]
    assert fields.count_bytes() >= len(listed)
    assert read_units(fields, layout) == (units if any(layout.values()) else {})


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
