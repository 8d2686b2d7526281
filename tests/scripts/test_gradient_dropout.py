"""Devices killed between features and gradients are booked, and nobody else is."""

import json
from pathlib import Path

import pytest

from scripts import gradient_dropout
from tests.federation_fixtures import TinyFederation, tiny_federation

__all__ = ["tiny_federation"]


@pytest.mark.parametrize("labels", ["private", "server"])
def test_exactly_the_killed_are_booked_in_every_round(
    labels: str,
    tiny_federation: TinyFederation,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(gradient_dropout, "_TIMEOUT_S", 0.1)
    known = tiny_federation.words("model.pooler=checkpoint")
    chosen = ("strategy.", "peft", "model=", "data=")  # the experiment says those
    words = [word for word in known if not word.startswith(chosen)]
    words += ["strategy.num_rounds=2", "peft.num_tokens=3", f"strategy.labels={labels}"]
    words += ["finetune.max_steps=2"]
    line = ["--kill", "2", "--assets", "/none", "--out", str(tmp_path), "--overrides", *words]
    assert gradient_dropout.main(line) == 0
    (row,) = json.loads((tmp_path / "gradient_dropout.json").read_text())
    assert row["undisturbed_dropped"] == {"1": {}, "2": {}}
    assert sorted(row["dropped"]) == ["1", "2"]
    for number, booked in row["dropped"].items():
        dead = gradient_dropout.doomed(0, int(number), num_devices=4, kill=2, num_steps=2)
        assert len(dead) == 2
        assert {reason: sorted(devices) for reason, devices in booked.items()} == {
            "silent": sorted(dead)
        }
    result = json.loads((tmp_path / "kill2-seed0" / "result.json").read_text())
    assert result["final"]["plug_in"] == row["killed"]
    for record in result["rounds"][1:]:
        lost = record["dropped"]["silent"]
        assert sorted([*record["devices"], *lost]) == [0, 1, 2, 3]
    assert "silent" in capsys.readouterr().out


def test_without_data_it_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert gradient_dropout.main(["--assets", str(tmp_path / "no"), "--out", str(out)]) == 0
    assert "skipped" in capsys.readouterr().err
    assert not out.exists()
