"""Metric against bytes on a tiny federation: points add up, finished runs are not made again."""

import json
from pathlib import Path

import pytest

from fl_app.result import Metric, RoundRecord, RunResult, failed_result
from scripts import gradient_bytes, runs
from scripts.bytes_curves import points_of, summarise
from tests.federation_fixtures import TinyFederation, tiny_federation

__all__ = ["tiny_federation"]


def test_runs_are_made_once_and_reported(
    tiny_federation: TinyFederation,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    known = tiny_federation.words("model.pooler=checkpoint")
    chosen = ("strategy.", "peft", "model=", "data=")  # the experiment and the script say those
    words = [word for word in known if not word.startswith(chosen)]
    line = ["--runs", "prompt", "cut", "emulator", "--rounds", "2", "--steps", "1"]
    line += ["--assets", "/none", "--out", str(tmp_path), "--overrides", *words, "--own"]
    line += ["emulator:strategy.emulator.distil.steps=0", "prompt:peft.num_tokens=3"]
    assert gradient_bytes.main(line) == 0
    content = json.loads((tmp_path / "gradient_bytes.json").read_text())
    assert [run["configuration"] for run in content["runs"]] == ["prompt", "cut", "emulator"]
    for run in content["runs"]:
        folder = tmp_path / "sst2" / f"{run['configuration']}-seed0"
        ledger = json.loads((folder / "result.json").read_text())["ledger"]
        assert [point["round"] for point in run["points"]] == [0, 1, 2]
        assert run["points"][0]["bytes"] == 0
        assert run["points"][-1]["bytes"] == ledger["uplink_bytes"] + ledger["downlink_bytes"]
        assert run["once_bytes"] == ledger["emulator_bytes"] > 0
        assert all(0 <= point["metric"] <= 1 for point in run["points"])
    assert (tmp_path / "gradient_bytes.png").read_bytes().startswith(b"\x89PNG")
    assert "total, MB" in capsys.readouterr().out

    made: list[str] = []
    monkeypatch.setattr(runs, "simulate", lambda overrides, _grid_of: made.append(overrides))
    assert gradient_bytes.main(line) == 0
    assert made == []  # nothing is made twice ...
    assert json.loads((tmp_path / "gradient_bytes.json").read_text()) == content
    assert gradient_bytes.main([*line, "cut:peft.rank=3"]) == 1
    assert len(made) == 1  # ... but other overrides are another run
    assert "peft.rank=3" in made[0]


def test_what_the_configuration_refuses_is_skipped_with_its_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(runs, "simulate", lambda *_call: pytest.fail("it ran"))
    line = ["--runs", "cut", "--assets", "/none", "--out", str(tmp_path), "--overrides"]
    assert gradient_bytes.main([*line, "strategy.shared_gradient=true"]) == 0
    content = json.loads((tmp_path / "gradient_bytes.json").read_text())
    assert content["runs"] == []
    assert "shared_gradient" in content["left_out"]["cut"]
    assert "skipped cut" in capsys.readouterr().err


def test_without_data_it_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert gradient_bytes.main(["--assets", str(tmp_path), "--out", str(out)]) == 0
    assert "skipped" in capsys.readouterr().err
    assert not out.exists()


def _result(plug_in: list[float | None], per_round: list[tuple[int, int]]) -> RunResult:
    rounds = [
        RoundRecord(round=i, metrics={"plug_in": value}, devices=[0], dropped={}, seconds=1.0)
        for i, value in enumerate(plug_in)
    ]
    rows = [
        {"round": i + 1, "uplink_bytes": up, "downlink_bytes": down}
        for i, (up, down) in enumerate(per_round)
    ]
    return failed_result(
        reason="none",
        metric=Metric("accuracy", True),
        seed=0,
        config={},
        seconds=1.0,
        rounds=rounds,
        ledger={"per_round": rows, "emulator_bytes": 5},
    )


def test_equal_bytes_means_the_last_round_within_what_the_emulator_sent() -> None:
    curves = {
        "emulator": ([0.5, 0.6, 0.7], [(10, 40), (10, 40)]),  # 100 in all
        "prompt": ([0.5, 0.8, 0.9], [(30, 31), (30, 31)]),  # 61, then 122
        "cut": ([0.5, 0.9, 0.9], [(200, 0), (200, 0)]),
    }
    rows = [
        {
            "configuration": name,
            "points": points_of(_result(*curve)),
            "final": curve[0][-1],
            "once_bytes": 5,
            "dropped": 0,
        }
        for name, curve in curves.items()
    ]
    found = {entry["configuration"]: entry for entry in summarise(rows)}
    assert {name: entry["bytes"] for name, entry in found.items()} == {
        "emulator": 100,
        "prompt": 122,
        "cut": 400,
    }
    assert found["emulator"]["at_equal_bytes"] == 0.7
    assert found["prompt"]["at_equal_bytes"] == 0.8
    assert found["cut"]["at_equal_bytes"] is None
    assert found["prompt"]["budget_bytes"] == 100
