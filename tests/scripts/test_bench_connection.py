"""The connection bench runs, and the accuracy script says why it does nothing without data."""

import json
from pathlib import Path

import pytest

from scripts.bench_connection import main
from scripts.connection_accuracy import main as measure_accuracy
from scripts.connection_accuracy import summarise


def test_bench_prints_ratios(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Small, so times mean nothing here."""
    target = tmp_path / "bench.json"
    main(["--width", "16", "--tokens", "8", "--rank", "3", "--repeats", "1", "--json", str(target)])
    figures = json.loads(target.read_text(encoding="utf-8"))
    assert figures["transport_ratio"] > 0.0
    assert figures["down_ratio"] > 0.0
    assert "transport_ratio" in capsys.readouterr().out


def test_accuracy_is_skipped_with_a_reason(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert measure_accuracy(["--assets", str(tmp_path), "--output", str(tmp_path / "out")]) == 0
    assert "skipped" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_summary_is_mean_and_spread_over_seeds() -> None:
    rows = [
        {"tx_snr_db": 10.0, "rotation": True, "accuracy": accuracy, "seed": seed}
        for seed, accuracy in enumerate((0.6, 0.8))
    ]
    (entry,) = summarise([*rows])
    assert entry["accuracy"] == pytest.approx(0.7)
    assert entry["std"] == pytest.approx(0.02**0.5)
    assert entry["seeds"] == 2
