"""The planner: what it writes adds up, and what cannot fit is refused by name."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from fl_app.layout.choose import RULES
from scripts import plan


def planned(folder: Path, *words: str) -> Any:
    assert plan.main([*words, "--out", str(folder)]) == 0
    assert (folder / "plan.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    return json.loads((folder / "plan.json").read_text())


@pytest.mark.parametrize("rule", RULES)
def test_every_rule_keeps_device_and_deadline(rule: str, tmp_path: Path) -> None:
    words = ["--model", "opt-1.3b", "--device", "laptop", "--deadline", "1", "--rule", rule]
    figures = planned(tmp_path, *words, "--top-n", "5")
    price, parts = figures["price"], figures["memory"]
    assert price["memory_bytes"] == sum(parts.values()) <= 8e9
    assert 0.9 < price["round_s"] <= 1.0 or max(figures["layout"]) == 16
    # q_proj and v_proj of width 2048: 2 (2048 + 2048) reals a unit
    assert price["params"] == 8192 * sum(figures["layout"])
    assert price["uplink_s"] == pytest.approx(8 * price["uplink_bytes"] / figures["uplink_bps"])


@pytest.mark.parametrize("model", ["opt-1.3b", "llama-7b", "t5-xxl"])
def test_published_models_on_a_phone_within_two_seconds(model: str, tmp_path: Path) -> None:
    words = ["--model", model, "--deadline", "2", "--weight-bits", "4", "--split", "auto"]
    figures = planned(tmp_path, *words)
    left, middle, right = figures["model"]["split"]
    stacks = 2 if model == "t5-xxl" else 1
    assert figures["model"]["num_blocks"] == stacks * (left + middle + right)
    for stack in range(stacks):
        start = stack * (left + middle + right) + left
        assert not any(figures["layout"][start : start + middle])
    assert figures["price"]["round_s"] <= 2.0
    assert figures["planned_in_s"] < 10.0


def test_what_cannot_fit_is_refused_by_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert plan.main(["--model", "llama-7b", "--out", str(tmp_path / "none")]) == 2
    message = " ".join(capsys.readouterr().err.split())
    assert "budget memory_bytes=4e+09: the smallest layout takes" in message
    assert not (tmp_path / "none").exists()
    for words, text in (
        (["--model", "no-such"], "cannot be read"),
        (["--model", "opt-1.3b", "--split", "2-x"], "give l-n-r"),
        (["--model", "opt-1.3b", "--split", "20-2-20"], "add up to 1 to 24"),
        (["--model", "opt-1.3b", "--scores", "no-such.json"], "give a JSON list of lists"),
    ):
        assert plan.main([*words, "--out", str(tmp_path / "none")]) == 2
        assert text in " ".join(capsys.readouterr().err.split())


def test_scores_from_a_file_decide(tmp_path: Path) -> None:
    scores = tmp_path / "scores.json"
    scores.write_text(json.dumps([[9.0, 8.0]] * 2 + [[1.0, 0.5]] * 22))
    words = ["--model", "opt-1.3b", "--device", "laptop", "--rule", "sensitivity"]
    figures = planned(tmp_path, *words, "--scores", str(scores), "--budget-params", str(5 * 8192))
    assert figures["layout"] == [2, 2, *[0] * 21, 1]


def test_no_torch_is_imported() -> None:
    code = "import sys, scripts.plan; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
