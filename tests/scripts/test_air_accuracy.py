"""The accuracy of every uplink on a tiny federation: the grid is complete and adds up."""

import json
import statistics
from pathlib import Path

import pytest

from scripts import air_accuracy
from tests.federation_fixtures import TinyFederation, tiny_federation

__all__ = ["tiny_federation"]


def test_the_grid_is_complete_and_adds_up(
    tiny_federation: TinyFederation, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = tiny_federation.words("strategy.num_rounds=1", "model.pooler=checkpoint")
    grid = ["--tx-snr-db", "0", "inf", "--seeds", "0", "1", "--schemes", "zf", "obda", "digital"]
    grid += ["--rounds", "1", "--steps", "1", "--out", str(tmp_path), "--assets", "/none"]
    assert air_accuracy.main([*grid, "--overrides", *words]) == 0
    assert "NMSE" in capsys.readouterr().out
    content = json.loads((tmp_path / "air_accuracy.json").read_text())
    runs = content["runs"]
    assert len(runs) == 2 * (1 + 3 * 2)
    for entry in content["summary"]:
        same = [
            run
            for run in runs
            if (run["scheme"], run["tx_snr_db"]) == (entry["scheme"], entry["tx_snr_db"])
        ]
        assert entry["seeds"] == len(same) == 2
        errors = [run["nmse"] for run in same if run["nmse"] is not None]
        assert entry["nmse"] == (pytest.approx(statistics.fmean(errors)) if errors else None)
        assert entry["plug_in"] == pytest.approx(statistics.fmean(run["plug_in"] for run in same))
    chosen = {(run["scheme"], run["tx_snr_db"], run["seed"]): run for run in runs}
    for seed in (0, 1):
        # without noise the air is the error-free uplink
        free, air = chosen["ideal", None, seed], chosen["zf", "inf", seed]
        assert air["plug_in"] == free["plug_in"]
        assert air["nmse"] <= 1e-10
        assert (free["channel_uses"], free["nmse"]) == (0, None)
        for level in (0.0, "inf"):
            # the digital rival spends no more of it and is better than sending nothing
            digital, air = chosen["digital", level, seed], chosen["zf", level, seed]
            payloads = [run["channel_uses"] - run["control_uses"] for run in (digital, air)]
            assert payloads[0] <= payloads[1]
            assert digital["nmse"] < 1.0
            assert chosen["obda", level, seed]["nmse"] > 0.0
    assert (tmp_path / "air_accuracy.png").read_bytes().startswith(b"\x89PNG")


def test_without_data_it_says_so(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert air_accuracy.main(["--assets", str(tmp_path), "--out", str(tmp_path / "out")]) == 0
    assert "skipped" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
