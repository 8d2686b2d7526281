"""The table of device classes on a tiny model: ranks, bytes by hand, resumed, summed up by hand."""

import json
import statistics
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy

from scripts import class_table
from tests.federation_fixtures import TinyFederation, tiny_federation

__all__ = ["tiny_federation"]

SPLIT = ("strategy.emulator.left=2", "strategy.emulator.middle=-1", "strategy.emulator.right=2")
RANKS, ROUNDS = (1, 2, 4), 2
WIDTH = 16
"""Of the tiny model."""


def _row(run: str, seed: int, accuracy: float, discarded: float | None = None) -> Any:
    counts = {name: 100.0 * (seed + 1) for name in class_table.COUNTS}
    return {"run": run, "seed": seed, "accuracy": accuracy, "discarded": discarded, **counts}


def _blob(rank: int, *, has_a: bool = False, has_head: bool = True) -> int:
    """Bytes of the tiny model's serialised adapter: as many as of zeros of its shapes."""
    head = "base_model.model.classifier"
    shapes: dict[str, tuple[int, ...]] = {}
    if has_head:
        shapes = {f"{head}.weight": (4, WIDTH), f"{head}.bias": (4,)}
    for block in (0, 1, 3, 4) if rank else ():
        for side in ("query", "value"):
            stem = f"base_model.model.bert.encoder.layer.{block}.attention.self.{side}.lora_"
            shapes[f"{stem}B.weight"] = (WIDTH, rank)
            if has_a:
                shapes[f"{stem}A.weight"] = (rank, WIDTH)
    return len(safetensors.numpy.save({n: np.zeros(s, np.float32) for n, s in shapes.items()}))


def test_summary_by_hand() -> None:
    rows = [_row("pad", 0, 0.8), _row("flex", 0, 0.9, 0.1), _row("pad", 1, 0.9)]
    pad, flex = class_table.summarise(rows)
    assert pad["accuracy"] == pytest.approx(0.85)
    assert pad["std"] == pytest.approx(statistics.stdev([0.8, 0.9]))
    assert (pad["seeds"], pad["uplink_bytes"], pad["discarded"]) == (2, 150.0, None)
    assert (flex["std"], flex["discarded"], flex["seconds"]) == (None, 0.1, 100.0)


def test_three_classes_by_every_rule_and_not_made_twice(
    tiny_federation: TinyFederation, tmp_path: Path, monkeypatch: Any, capsys: Any
) -> None:
    left_out = ("strategy.emulator", "strategy.num_rounds", "finetune.max_steps", "peft.rank")
    plain = [w for w in tiny_federation.words() if not w.startswith(left_out)]
    task = [*plain, *SPLIT]
    arguments = ["--seeds", "0", "--rounds", str(ROUNDS), "--steps", "1", "--assets", ""]
    arguments += ["--ranks", *map(str, RANKS), "--out", str(tmp_path)]
    arguments += ["--overrides", "federation.num_devices=3"]
    assert class_table.main(arguments, task) == 0
    content = json.loads((tmp_path / "class_table.json").read_text())
    runs = {run["run"]: run for run in content["runs"]}
    assert set(runs) == set(class_table.RUNS)
    for run in class_table.UNEQUAL:
        for name, rank in zip(class_table.CLASSES, RANKS, strict=True):
            assert runs[run]["ranks"][name] == [rank, rank, 0, rank, rank]
        grown = ROUNDS * sum(RANKS) if run == "stack" else 4
        assert runs[run]["ranks"]["server"] == [grown, grown, 0, grown, grown]
        named = 3 * sum(range(ROUNDS)) if run == "stack" else 0  # the stacks of earlier rounds
        # two bytes a tuned block, and a hash for every stack an order names
        assert runs[run]["control_bytes"] == ROUNDS * 3 * 2 * 4 + 32 * named
    for run, rank in (("high", 4), ("low", 1), ("high_exact", 4), ("low_exact", 1)):
        assert runs[run]["ranks"] == {"server": [rank, rank, 0, rank, rank]}
        assert runs[run]["control_bytes"] == 0
    # one device of each class in every round, all of whom are sent what they send back
    sent = {
        "pad": sum(_blob(rank) for rank in RANKS),
        "flex": sum(_blob(rank, has_a=True) for rank in RANKS),
        "high": 3 * _blob(4),
        "low": 3 * _blob(1),
        "high_exact": 3 * _blob(4, has_a=True),
        "low_exact": 3 * _blob(1, has_a=True),
    }
    for run, num_bytes in sent.items():
        assert runs[run]["uplink_bytes"] == ROUNDS * num_bytes
        assert runs[run]["downlink_bytes"] == ROUNDS * num_bytes + runs[run]["control_bytes"]
    # heads in both rounds, and the one stack of the first to each of three devices
    heads = ROUNDS * 3 * _blob(0) + 3 * _blob(sum(RANKS), has_a=True, has_head=False)
    assert runs["stack"]["downlink_bytes"] == heads + runs["stack"]["control_bytes"]
    assert runs["stack"]["uplink_bytes"] == runs["flex"]["uplink_bytes"]
    assert runs["zero"]["uplink_bytes"] == runs["pad"]["uplink_bytes"]
    assert runs["pad_factors"]["uplink_bytes"] == runs["flex"]["uplink_bytes"]
    assert [run for run in runs if runs[run]["discarded"] is not None] == ["flex", "stack"]
    assert runs["stack"]["discarded"] == 0.0
    assert 0 <= runs["flex"]["discarded"] < 1
    assert (tmp_path / "class_table.png").read_bytes().startswith(b"\x89PNG")
    assert "discarded" in capsys.readouterr().out

    def never(*_: Any) -> None:
        raise AssertionError("made twice")

    monkeypatch.setattr(class_table, "made", never)
    assert class_table.main(arguments, task) == 0
    assert json.loads((tmp_path / "class_table.json").read_text()) == content


def test_it_says_what_it_needs(tmp_path: Path, capsys: Any) -> None:
    arguments = ["--assets", str(tmp_path), "--out", str(tmp_path / "out")]
    assert class_table.main(arguments) == 0
    assert "no sst2" in capsys.readouterr().out
    assert not (tmp_path / "out").exists()
    with pytest.raises(SystemExit):
        class_table.main([*arguments, "--ranks", "4", "2", "1"])
    assert "weakest to strongest" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        class_table.main([*arguments, "--overrides", "peft.rank=3"])
    assert "--overrides peft.rank: the table has options of its own" in capsys.readouterr().err
