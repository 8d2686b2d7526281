"""A sweep: every combination runs, and the table says what came of each."""

import json
from pathlib import Path

import pytest

from scripts import sweep
from tests.federation_fixtures import TinyFederation, tiny_federation

__all__ = ["tiny_federation"]


def test_a_sweep_reaches_the_open_table_of_a_rule_and_keeps_failed_jobs(
    tiny_federation: TinyFederation,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = tiny_federation.words("strategy.num_rounds=1", "strategy.server_rule.name=fedadam")
    swept = [
        "strategy.server_rule.options.eta=0.01,fast",
        "seed=0,1",
        f"--json={tmp_path / 'table'}",
    ]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["sweep", "-m", *words, *swept])
    assert sweep.main() == 1  # a rate must be a number, and both of its jobs are named
    table = json.loads((tmp_path / "table").read_text())
    assert [row["verdict"] for row in table["jobs"]] == ["ok", "ok", "failed", "failed"]
    assert "eta" in table["jobs"][2]["reason"]
    good = table["summary"][0]
    assert good["seeds"] == 2
    figures = [row["final"]["plug_in"] for row in table["jobs"][:2]]
    assert good["final"]["plug_in"]["mean"] == pytest.approx(sum(figures) / 2)
    assert good["final"]["plug_in"]["std"] == pytest.approx(abs(figures[0] - figures[1]) / 2**0.5)
    assert "[2, 3]" in capsys.readouterr().err
