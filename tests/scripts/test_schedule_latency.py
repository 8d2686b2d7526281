"""The comparison of schedules: its figures obey what must hold in every cell."""

import json
from pathlib import Path

import numpy as np
import pytest

from scripts import schedule_latency

_WORDS = ["--cells", "6", "--devices", "6", "--blocks", "5", "--seed", "3"]


def test_order_of_ways_holds_in_every_cell(tmp_path: Path) -> None:
    assert schedule_latency.main([*_WORDS, "--out", str(tmp_path)]) == 0
    figures = json.loads((tmp_path / "schedule.json").read_text())
    assert (tmp_path / "schedule.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    rounds = {way: np.array(row) for way, row in figures["round_s"].items()}
    assert tuple(rounds) == schedule_latency.WAYS
    assert {len(row) for row in rounds.values()} == {6}
    slack = 1.0 + 1e-9
    for better, worse in (
        ("joint", "matched, equal finish"),
        ("matched, equal finish", "matched, equal"),
        ("joint", "random, equal finish"),
        ("random, equal finish", "random, equal"),
        ("matched, equal", "random, equal"),
    ):
        assert (rounds[better] <= rounds[worse] * slack).all(), (better, worse)
    summary = figures["summary"]
    cuts = 1.0 - rounds["joint"] / rounds["random, equal"]
    assert summary["joint"]["mean_cut"] == pytest.approx(cuts.mean())
    assert summary["joint"]["mean_cut_stderr"] == pytest.approx(cuts.std(ddof=1) / np.sqrt(6))
    assert summary["random, equal"]["mean_cut"] == summary["random, equal"]["longer"] == 0.0


def test_cells_repeat_and_follow_the_seed() -> None:
    parser = schedule_latency.parser()
    first, again, other = (
        schedule_latency.measure(parser.parse_args([*_WORDS[:-1], seed]))[0]["joint"]
        for seed in ("3", "3", "4")
    )
    np.testing.assert_array_equal(first, again)
    assert (first != other).all()


def test_impossible_settings_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = ["--out", str(tmp_path / "none")]
    assert schedule_latency.main([*_WORDS, "--blocks", "7", *out]) == 2
    assert "7 blocks for 6 devices" in " ".join(capsys.readouterr().err.split())
    with pytest.raises(SystemExit):
        schedule_latency.main([*_WORDS, "--spread", "0.5", *out])
    assert "--spread must be >= 1" in capsys.readouterr().err
