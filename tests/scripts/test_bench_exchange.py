"""The transport bench runs and its figures hang together."""

import json
from pathlib import Path

import pytest

from scripts.bench_exchange import main


def test_bench_prints_seconds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Small, so times mean little."""
    target = tmp_path / "bench.json"
    words = "--devices 2 --bytes 1000 --repeats 2".split()
    main([*words, "--json", str(target)])
    figures = json.loads(target.read_text(encoding="utf-8"))
    assert min(figures.values()) > 0
    assert figures["streams_bytes_per_s"] == pytest.approx(4000 / figures["streams_s"])
    assert "streams_s" in capsys.readouterr().out
