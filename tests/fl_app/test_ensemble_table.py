"""Device numbers in the ensemble's table."""

import pytest

from fl_app.report.ensemble import format_devices


@pytest.mark.parametrize(
    ("devices", "words"),
    [
        ([], ""),
        ([3], "3"),
        ([0, 1], "0, 1"),
        ([0, 1, 2], "0-2"),
        ([0, 2, 3, 4, 5, 9], "0, 2-5, 9"),
        ([1, 3, 5], "1, 3, 5"),
    ],
)
def test_runs_of_devices_are_short(devices: list[int], words: str) -> None:
    assert format_devices(devices) == words
