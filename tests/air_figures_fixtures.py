"""Tiny runs of the scripts that draw the figures of the air interface, and their strict JSON."""

import json
from pathlib import Path
from typing import Any

import pytest

from scripts import air_latency, air_nmse

NMSE_DRAWS, NMSE_PARAMS, NMSE_SEED, NMSE_DEVICES = 2, 80, 3, (3, 8)


def read_strictly(file: Path) -> Any:
    """Returns the JSON, which must not hold what only Python understands."""

    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is not JSON")

    return json.loads(file.read_text(encoding="utf-8"), parse_constant=refuse)


@pytest.fixture(scope="session")
def nmse(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    """A tiny run of the NMSE curves: figures and folder."""
    folder = tmp_path_factory.mktemp("nmse")
    words = ["--draws", str(NMSE_DRAWS), "--params", str(NMSE_PARAMS), "--seed", str(NMSE_SEED)]
    words += ["--devices", *map(str, NMSE_DEVICES)]
    assert air_nmse.main([*words, "--out", str(folder)]) == 0
    return read_strictly(folder / "air_nmse.json"), folder


@pytest.fixture(scope="session")
def latency(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    """A tiny run of the latency figures, 1001 reals of 12 bits at 7 dB: figures and folder."""
    folder = tmp_path_factory.mktemp("latency")
    words = ["--params", "1001", "--placements", "2", "--bits", "12", "--seed", "5"]
    words += ["--tensors", "3"]
    assert air_latency.main([*words, "--snr-db", "7", "--out", str(folder)]) == 0
    return read_strictly(folder / "air_latency.json"), folder
