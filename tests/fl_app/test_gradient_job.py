"""The whole job by gradient download: its folder, its report, and an adapter for plain PEFT."""

import json
from pathlib import Path
from typing import Any

import jsonschema
import peft
import pytest
import torch
import transformers

from fl_app import main_job
from fl_app.client_app import app
from fl_app.job import adapter_sha256
from fl_app.local_grid import LocalGrid
from fl_app.main_job import run_main_job
from fl_app.report import final_table, write_report
from fl_app.result import FINAL_KEYS, RunResult
from tests.federation_fixtures import (
    CLASSES,
    NUM_DEVICES,
    Player,
    TinyFederation,
    player,
    tiny_federation,
)
from tests.gradient_fixtures import VARIANTS, play, words_of

__all__ = ["player", "tiny_federation"]

SCHEMA = json.loads(
    (Path(__file__).parents[2] / "docs/result.schema.json").read_text(encoding="utf-8")
)


def _run(tiny: TinyFederation, folder: Path, *words: str) -> RunResult:
    overrides = tiny.overrides(f"output.dir={folder}", *words)
    with LocalGrid(app, num_nodes=NUM_DEVICES, run_config={"overrides": overrides}) as grid:
        return run_main_job(grid, overrides)


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_folder_of_a_run(
    player: Player, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variant: str
) -> None:
    written: list[RunResult] = []
    monkeypatch.setattr(main_job, "write_report", lambda _folder, result: written.append(result))
    words = words_of(variant, "strategy.features=int8")
    result = _run(player.tiny, tmp_path, *words)
    assert written == [result]
    raw: dict[str, Any] = json.loads((tmp_path / "result.json").read_text(encoding="utf-8"))
    jsonschema.Draft202012Validator(SCHEMA).validate(raw)
    assert raw["verdict"] == "ok"
    assert raw["final"]["emulator"] is None
    assert 0 <= raw["final"]["plug_in"] <= 1
    assert raw["model"]["variant"] == variant
    for record in raw["rounds"][1:]:
        assert {"plug_in", "train_loss", "feature_error"} <= set(record["metrics"])
        assert "emulator" not in record["metrics"]
        assert 0 < record["metrics"]["feature_error"] < 0.02
    played = play(player, *words)
    assert raw["adapter_sha256"] == adapter_sha256(played.adapter)
    ledger = raw["ledger"]
    assert ledger["emulator_bytes"] == NUM_DEVICES * raw["model"]["device_blob_bytes"]
    down = ("emulator_bytes", "adapter_downlink_bytes", "gradient_bytes")
    assert ledger["downlink_bytes"] == sum(ledger[key] for key in down)
    updates = played.outcome.ledger.total_bytes(what="update")
    assert ledger["uplink_bytes"] == ledger["feature_bytes"] + updates


def test_the_report_speaks_of_gradients_and_of_no_emulator(player: Player, tmp_path: Path) -> None:
    words = words_of("prompt", "strategy.references=[federated_full]")
    result = _run(player.tiny, tmp_path, *words)
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    text = page.partition("<h2>How it was made</h2>")[0]
    assert "gradient download" in text
    assert "emulator" not in text.lower()
    assert "plug" not in text.lower()
    assert f"{result.ledger['gradient_bytes']:,}" in text
    assert f"{result.ledger['feature_bytes']:,}" in text
    assert text.count("<img") == 4
    for name in ("ladder.png", "curves.png", "traffic.png", "devices.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
    table = final_table(result)
    assert "emulator" not in table
    assert "adapter tuned by gradient download" in table
    assert "device part" in table
    assert result.final["federated_full"] is not None
    assert [key for key in FINAL_KEYS if result.final[key] is None] == [
        "frozen",
        "emulator",
        "centralised",
    ]


def test_a_failed_run_has_its_page_too(player: Player, tmp_path: Path) -> None:
    words = words_of("cut", "strategy.cut=5")
    overrides = player.tiny.overrides(f"output.dir={tmp_path}", *words)
    with (
        LocalGrid(app, num_nodes=NUM_DEVICES, run_config={"overrides": overrides}) as grid,
        pytest.raises(Exception, match=r"strategy\.cut=5"),
    ):
        run_main_job(grid, overrides)
    raw = json.loads((tmp_path / "result.json").read_text(encoding="utf-8"))
    assert raw["verdict"] == "failed"
    write_report(tmp_path, main_job.failed_result(**_known(raw)))
    assert "strategy.cut=5" in (tmp_path / "report.html").read_text(encoding="utf-8")


def _known(raw: dict[str, Any]) -> dict[str, Any]:
    return {
        "reason": raw["reason"],
        "metric": main_job.Metric(**raw["metric"]),
        "seed": raw["seed"],
        "config": raw["config"],
        "seconds": raw["seconds"],
    }


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
@pytest.mark.parametrize("variant", VARIANTS)
def test_the_adapter_is_one_for_plain_peft(player: Player, tmp_path: Path, variant: str) -> None:
    """The untouched checkpoint with the saved adapter gives the logits the server measures.

    With strategy.wire_dtype=float32 the server's model is the checkpoint; float16 would round its
    embeddings and the devices' blocks as devices get them.
    """
    played = play(player, *words_of(variant))
    bench = played.bench
    bench.full.write(played.adapter)
    bench.full.save(tmp_path)
    base = transformers.AutoModelForSequenceClassification.from_pretrained(
        player.tiny.model, num_labels=len(CLASSES), ignore_mismatched_sizes=True
    )
    reloaded = peft.PeftModel.from_pretrained(base, tmp_path).eval()
    batch = bench.task.batch(bench.test, range(len(bench.test)))
    inputs = {name: tensor for name, tensor in batch.items() if name != "labels"}
    with torch.inference_mode():
        wanted = bench.full.model(**inputs).logits
        assert torch.equal(reloaded(**inputs).logits, wanted)
        bench.full.write(played.start)
        assert not torch.equal(bench.full.model(**inputs).logits, wanted)
