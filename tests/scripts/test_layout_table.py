"""The table of layout rules on a tiny model: equal parameters, resumed, summed up by hand."""

import json
import math
import statistics
from pathlib import Path
from typing import Any

import pytest

from scripts import layout_table
from tests.federation_fixtures import TinyFederation, tiny_federation

__all__ = ["tiny_federation"]

SPLIT = ("strategy.emulator.left=2", "strategy.emulator.middle=-1", "strategy.emulator.right=2")


def _row(task: str, rule: str, seed: int, value: float, *, is_accuracy: bool = True) -> Any:
    return {
        "task": task,
        "rule": rule,
        "seed": seed,
        "metric": "accuracy" if is_accuracy else "perplexity",
        "higher_is_better": is_accuracy,
        "plug_in": value,
        "ranks": [seed, 2],
        "params": 10,
        "uplink_bytes": 100,
        "score_bytes": 0,
        "seconds": 1.0,
    }


def test_summary_by_hand() -> None:
    rows = [
        _row("a", "uniform", 0, 0.8),
        _row("a", "uniform", 1, 0.9),
        _row("a", "best", 0, 0.9),
        _row("a", "best", 1, 0.92),
        _row("b", "uniform", 0, 10.0, is_accuracy=False),
        _row("b", "uniform", 1, 10.0, is_accuracy=False),
        _row("b", "best", 0, 8.0, is_accuracy=False),
        _row("b", "best", 1, 9.0, is_accuracy=False),
    ]
    uniform, best = layout_table.summarise(rows)
    assert (uniform["gain"], uniform["rule"]) == (0.0, "uniform")
    shares = [[0.5, 0.2], [1 - math.log(v) / math.log(10) for v in (8, 9)]]
    assert best["gain"] == pytest.approx(statistics.fmean([*shares[0], *shares[1]]))
    per_seed = [(shares[0][k] + shares[1][k]) / 2 for k in (0, 1)]
    assert best["gain_std"] == pytest.approx(statistics.stdev(per_seed))
    one = best["tasks"]["a"]
    assert (one["mean"], one["std"]) == pytest.approx((0.91, statistics.stdev([0.9, 0.92])))
    assert one["ranks"] == [0.5, 2.0]
    assert layout_table.summarise(rows[:5])[1]["gain"] is None  # task b has no such rule


def test_a_grid_at_equal_parameters_that_is_not_made_twice(
    tiny_federation: TinyFederation, tmp_path: Path, monkeypatch: Any, capsys: Any
) -> None:
    left_out = ("peft", "strategy.emulator", "strategy.num_rounds", "finetune.max_steps")
    more = ("data.public_fraction=0.2",)
    plain = [w for w in tiny_federation.words() if not w.startswith(left_out)]
    tasks = {"tiny": [*plain, *SPLIT, *more]}
    arguments = ["--seeds", "0", "--rounds", "3", "--steps", "1", "--rank", "2", "--assets", ""]
    arguments += ["--out", str(tmp_path), "--overrides", "peft.targets=[]"]
    assert layout_table.main(arguments, tasks) == 0
    content = json.loads((tmp_path / "layout_table.json").read_text())
    runs = {run["rule"]: run for run in content["runs"]}
    assert set(runs) == set(layout_table.RULES)
    assert {sum(run["ranks"]) for run in runs.values()} == {8}
    assert len({run["params"] for run in runs.values()}) == 1
    assert runs["uniform"]["ranks"] == [2, 2, 0, 2, 2]
    assert runs["top_n"]["ranks"] == [0, 0, 0, 4, 4]
    assert runs["sensitivity"]["score_bytes"] > 0 == runs["uniform"]["score_bytes"]
    assert (tmp_path / "layout_ranks.png").read_bytes().startswith(b"\x89PNG")
    assert "adaptive rule" in capsys.readouterr().out

    def never(*_: Any) -> None:
        raise AssertionError("made twice")

    monkeypatch.setattr(layout_table, "made", never)
    assert layout_table.main(arguments, tasks) == 0
    assert json.loads((tmp_path / "layout_table.json").read_text()) == content


def test_tasks_that_are_not_there_are_named(tmp_path: Path, capsys: Any) -> None:
    assert layout_table.main(["--assets", str(tmp_path), "--out", str(tmp_path / "out")]) == 0
    said = capsys.readouterr().out
    assert all(task in said for task in layout_table.TASKS)
    assert not (tmp_path / "out").exists()
