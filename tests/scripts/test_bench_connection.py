"""The connection bench runs, and the accuracy script says why it does nothing without data."""

import json
from pathlib import Path

import pytest

from fl_app.config import load_config
from scripts.bench_connection import main
from scripts.connection_accuracy import cells_of, parse, summarise
from scripts.connection_accuracy import main as measure_accuracy
from scripts.connection_picture import draw, show


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
        {"tx_snr_db": 10.0, "peak_db": 6.0, "rotation": True, "accuracy": accuracy, "seed": seed}
        for seed, accuracy in enumerate((0.6, 0.8))
    ]
    (entry,) = summarise([*rows])
    assert entry["accuracy"] == pytest.approx(0.7)
    assert entry["std"] == pytest.approx(0.02**0.5)
    assert entry["seeds"] == 2
    other = summarise([*rows, rows[0] | {"peak_db": None}, rows[0] | {"rotation": False}])
    assert [row["seeds"] for row in other] == [2, 1, 1]


def test_the_default_grid_shows_what_rotation_is_for(tmp_path: Path) -> None:
    """One scale for all uses and a peak limit: without clipping rotation only moves noise."""
    cells = cells_of(parse(["--assets", str(tmp_path), "--seeds", "0", "--tx-snr-db", "5,10"]))
    assert [(c.tx_snr_db, c.peak_db, c.rotation) for c in cells] == [
        (None, None, False),
        *((5.0, 6.0, False), (5.0, 6.0, True)),
        *((10.0, 6.0, False), (10.0, 6.0, True)),
    ]
    (overrides,) = {cell.overrides for cell in cells}
    assert load_config(overrides).connection.power_per_use is False
    words = ["--assets", str(tmp_path), "--seeds", "0", "--tx-snr-db", "5", "--peak-db", "3,none"]
    assert [c.peak_db for c in cells_of(parse(words))[1:]] == [3.0, 3.0, None, None]
    assert [c.peak_db for c in cells_of(parse([*words, "--learned"]))[1:]] == [None, None]


def test_picture_and_table_show_every_curve(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    summary = [
        {"tx_snr_db": tx_snr_db, "peak_db": peak_db, "rotation": rotation, "accuracy": 0.5}
        | {"std": 0.01, "seeds": 3}
        for tx_snr_db in (5.0, "inf")
        for peak_db in (6.0, None)
        for rotation in (False, True)
    ]
    summary.append(summary[0] | {"tx_snr_db": None, "peak_db": None})
    draw(summary, tmp_path / "picture.png", "a title")
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")
    show(summary)
    text = capsys.readouterr().out
    assert len([line for line in text.splitlines() if "50.0" in line]) == 9
    assert "no channel" in text
