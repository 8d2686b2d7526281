"""The figures of the air interface alike: pictures exist, useless options are refused."""

import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fl_app.report import canvas
from scripts import air_latency, air_nmse


def png_size(file: Path) -> tuple[int, int]:
    """Returns width and height in pixels from the header."""
    content = file.read_bytes()
    assert content[:8] == b"\x89PNG\r\n\x1a\n"
    width, height = struct.unpack(">II", content[16:24])
    return int(width), int(height)


def test_pictures_are_as_wide_as_the_reports(
    nmse: tuple[Any, Path], latency: tuple[Any, Path]
) -> None:
    for file in (nmse[1] / "air_nmse.png", latency[1] / "air_latency.png"):
        width, height = png_size(file)
        assert width == 1260
        assert 900 <= height <= 1300


@pytest.mark.parametrize(
    ("main", "words"),
    [
        (air_nmse.main, ["--draws", "0"]),
        (air_nmse.main, ["--devices", "0", "3"]),
        (air_nmse.main, ["--params", "1"]),
        (air_latency.main, ["--params", "0"]),
        (air_latency.main, ["--bits", "25"]),
        (air_latency.main, ["--bandwidth-hz", "inf"]),
    ],
)
def test_useless_options_are_refused(
    main: Callable[[list[str]], int], words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(words)
    assert words[0] in capsys.readouterr().err


def test_columns_come_row_by_row_and_share_the_height() -> None:
    _, panels = canvas.blank(4.0, 2, 2)
    panels[0].set_ylim(0.0, 3.0)
    assert [axes.get_ylim() for axes in panels[:3]] == [(0.0, 3.0), (0.0, 3.0), (0.0, 1.0)]
