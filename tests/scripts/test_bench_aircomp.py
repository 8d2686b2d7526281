"""The aggregation bench runs and keeps its memory promise."""

import json
from pathlib import Path

import pytest

from scripts.bench_aircomp import main


def test_bench_prints_ratios_and_stays_below_three_updates(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Small, so times mean nothing here; 400000 reals are enough for chunks to be small beside."""
    target = tmp_path / "bench.json"
    main(["--devices", "3", "--params", "400000", "--repeats", "1", "--json", str(target)])
    figures = json.loads(target.read_text(encoding="utf-8"))
    for name in ("zf", "truncated", "optimal"):
        for suffix in ("", "_imperfect"):
            way = name + suffix
            assert figures[f"{way}_ratio"] == figures[f"{way}_s"] / figures["plain_mean_s"]
    assert 1.0 <= figures["peak_over_one_update"] < 3.0
    assert "peak_over_one_update" in capsys.readouterr().out
