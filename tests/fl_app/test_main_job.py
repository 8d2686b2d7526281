"""The output folder of a finished run: it says what happened, and others can use what is in it."""

from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import safetensors.numpy
import torch
import transformers
import yaml

from fl_app import main_job, wire
from fl_app.client_app import app
from fl_app.config import load_config, to_dict
from fl_app.evaluate import evaluate
from fl_app.fomo.package import unpack
from fl_app.job import adapter_sha256
from fl_app.main_job import run_main_job
from fl_app.material import load_material
from fl_app.references import run_reference
from fl_app.result import FINAL_KEYS, RunResult, read_result
from fl_app.settings import columns_of
from fl_app.tasks import build_task
from tests import fakes
from tests.fakes import FaultyGrid
from tests.federation_fixtures import (
    CLASSES,
    NUM_DEVICES,
    NUM_ROUNDS,
    Player,
    TinyFederation,
    player,
    tiny_federation,
)
from tests.main_job_fixtures import read_by_schema, run_job, undrawn

__all__ = ["player", "tiny_federation", "undrawn"]


old_name = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
"""PEFT, used plainly, reads a property of transformers by its old name."""


@pytest.fixture(scope="module")
def done(
    tiny_federation: TinyFederation, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, RunResult]:
    """One finished run with a faulty device."""
    folder = tmp_path_factory.mktemp("run") / "out"
    faults = {(1, 2): fakes.vanishes}
    return folder, run_job(tiny_federation, folder, "seed=3", faults=faults)


def test_the_result_keeps_to_its_schema(done: tuple[Path, RunResult]) -> None:
    folder, result = done
    raw = read_by_schema(folder)
    assert (raw["verdict"], raw["reason"]) == ("ok", None)
    assert raw["metric"] == {"name": "accuracy", "higher_is_better": True}
    assert raw["seed"] == 3
    assert set(raw["final"]) == set(FINAL_KEYS)
    assert raw["final"]["plug_in"] == result.final["plug_in"]
    assert raw["final"]["frozen"] is None  # no comparison run was asked for
    assert read_result(folder) == result
    assert 0 < sum(raw["timings"].values()) <= raw["seconds"]


def test_rounds_tell_who_counted_and_who_did_not(done: tuple[Path, RunResult]) -> None:
    raw = read_by_schema(done[0])
    assert [record["round"] for record in raw["rounds"]] == list(range(NUM_ROUNDS + 1))
    assert (raw["rounds"][1]["devices"], raw["rounds"][1]["dropped"]) == (
        [0, 1, 3],
        {"silent": [2]},
    )
    assert (raw["rounds"][2]["devices"], raw["rounds"][2]["dropped"]) == ([0, 1, 2, 3], {})
    for record in raw["rounds"]:
        assert {"plug_in", "emulator"} <= set(record["metrics"])
        assert all(0 <= record["metrics"][key] <= 1 for key in ("plug_in", "emulator"))


def test_the_ledger_of_the_result_adds_up(done: tuple[Path, RunResult]) -> None:
    ledger = read_by_schema(done[0])["ledger"]
    facts = read_by_schema(done[0])["model"]
    parts = ledger["emulator_bytes"] + ledger["adapter_downlink_bytes"] + ledger["control_bytes"]
    assert ledger["downlink_bytes"] == parts
    # once to each device, and again to the one that never answered the first time
    assert ledger["emulator_bytes"] == (NUM_DEVICES + 1) * facts["emulator_blob_bytes"]
    for key in ("uplink_bytes", "downlink_bytes", "emulator_bytes"):
        assert sum(row[key] for row in ledger["per_round"]) == ledger[key]


def test_the_resolved_configuration_can_be_read_again(
    done: tuple[Path, RunResult], tiny_federation: TinyFederation
) -> None:
    folder, _ = done
    written = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
    again = load_config(tiny_federation.overrides("seed=3", f"output.dir={folder}"))
    assert written == to_dict(again) == read_by_schema(folder)["config"]
    # What the values do not show, which member of each group was chosen, stands above them.
    assert "model=local" in (folder / "config.yaml").read_text().splitlines()[0]


def test_report_and_curves_are_there(done: tuple[Path, RunResult]) -> None:
    folder, _ = done
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert page.lower().startswith("<!doctype html>")
    assert 'src="http' not in page
    pictures = sorted(folder.glob("*.png"))
    assert pictures
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in pictures)


@old_name
def test_plain_peft_loads_the_adapter_and_finds_the_recorded_accuracy(
    done: tuple[Path, RunResult], tiny_federation: TinyFederation
) -> None:
    """On the base model as it lies on disk, with nothing of this project in the way."""
    folder, result = done
    base = transformers.AutoModelForSequenceClassification.from_pretrained(
        tiny_federation.model, num_labels=len(CLASSES), ignore_mismatched_sizes=True
    )
    with torch.random.fork_rng():
        model = peft.PeftModel.from_pretrained(base, folder / "adapter").eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(tiny_federation.model)
    lines = (tiny_federation.data / "test.tsv").read_text().splitlines()[1:]
    rows = [line.split("\t") for line in lines]
    hits = 0
    with torch.inference_mode():
        for text, label in rows:
            inputs = tokenizer(text, truncation=True, max_length=12, return_tensors="pt")
            inputs.pop("token_type_ids", None)
            guess = int(model(**inputs).logits.argmax())
            hits += CLASSES[guess] == label
    assert hits / len(rows) == result.final["plug_in"]


@old_name
def test_plain_peft_gives_identical_logits(
    done: tuple[Path, RunResult], tiny_federation: TinyFederation, player: Player
) -> None:
    folder, result = done
    config = load_config(tiny_federation.overrides("seed=3"))
    bench, _ = player.bench(tiny_federation.overrides("seed=3"))
    base = transformers.AutoModelForSequenceClassification.from_pretrained(
        tiny_federation.model, num_labels=len(CLASSES), ignore_mismatched_sizes=True
    )
    model = peft.PeftModel.from_pretrained(base, folder / "adapter").eval()
    task = build_task(
        "sequence_classification",
        files=bench.backbone.files,
        labels=CLASSES,
        columns=columns_of(config.data),
        max_length=config.model.max_length,
        model_config=base.config,
    )
    rows = task.encode(load_material(config).test)
    assert evaluate(model, task, rows) == result.final["plug_in"]
    saved = safetensors.numpy.load_file(folder / "adapter/adapter_model.safetensors")
    tuned = {name: saved[name] for name in bench.full.read()}
    bench.full.write(tuned)
    batch = task.batch(rows, range(len(rows)))
    batch.pop("labels")
    with torch.inference_mode():
        assert torch.equal(model(**batch).logits, bench.full.model(**batch).logits)
    assert adapter_sha256(tuned) == result.adapter_sha256


def test_the_saved_adapter_is_what_the_devices_made(
    done: tuple[Path, RunResult], player: Player
) -> None:
    """The same federation again, with nothing measured or written on the way."""
    _, result = done
    played = player.play("seed=3", faults={(1, 2): fakes.vanishes}, shuffle=4)
    assert adapter_sha256(played.outcome.adapter) == result.adapter_sha256


@pytest.mark.usefixtures("undrawn")
def test_the_same_words_give_the_same_result(
    done: tuple[Path, RunResult], tiny_federation: TinyFederation, tmp_path: Path
) -> None:
    again = run_job(
        tiny_federation, tmp_path, "seed=3", faults={(1, 2): fakes.vanishes}, num_nodes=9
    )
    first = done[1]
    assert (again.adapter_sha256, again.final) == (first.adapter_sha256, first.final)
    assert again.ledger == first.ledger
    assert [r.metrics for r in again.rounds] == [r.metrics for r in first.rounds]


@pytest.mark.usefixtures("undrawn")
def test_the_comparison_runs_complete_the_ladder(
    tiny_federation: TinyFederation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In process here; the processes they get are tested end to end."""

    def here(names: Any, overrides: str) -> dict[str, float]:
        return {name: run_reference(name, overrides) for name in names}

    monkeypatch.setattr(main_job, "run_references", here)
    words = ("strategy.references=null", "strategy.num_rounds=1", "strategy.round_test_rows=5")
    result = run_job(tiny_federation, tmp_path, *words)
    assert read_by_schema(tmp_path)["final"] == result.final
    assert all(0 <= float(result.final[key] or -1) <= 1 for key in FINAL_KEYS)


@pytest.mark.usefixtures("undrawn")
def test_real_devices_data_are_not_at_the_server_so_nothing_is_compared(
    tiny_federation: TinyFederation, tmp_path: Path
) -> None:
    words = ("strategy.references=null", "federation=edge", "strategy.num_rounds=1")
    result = run_job(tiny_federation, tmp_path, *words, "federation.join_timeout_s=0.1")
    assert [key for key in FINAL_KEYS if result.final[key] is not None] == ["emulator", "plug_in"]


@pytest.mark.usefixtures("undrawn")
def test_the_head_alone_leaves_no_adapter_folder(
    tiny_federation: TinyFederation, tmp_path: Path
) -> None:
    overrides = tiny_federation.overrides(f"output.dir={tmp_path}", "strategy.num_rounds=1")
    overrides = overrides.replace("peft=lora peft.rank=2 'peft.targets=[]'", "peft=head")
    with FaultyGrid(app, num_nodes=4, run_config={"overrides": overrides}) as grid:
        result = run_main_job(grid, overrides)
    assert result.verdict == "ok"
    assert not (tmp_path / "adapter").exists()


def test_the_emulator_on_the_wire_is_the_one_that_was_measured(
    done: tuple[Path, RunResult], player: Player
) -> None:
    played = player.play("seed=3", "strategy.num_rounds=1")
    blob = wire.read_order(played.grid.exchanges[0].sent).emulator
    assert blob == played.bench.piece.blob
    assert len(blob or b"") == done[1].model["emulator_blob_bytes"]
    assert unpack(played.bench.piece.blob).labels == CLASSES
    assert np.isfinite(float(done[1].final["emulator"] or np.nan))
