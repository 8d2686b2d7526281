"""The output folder: whatever happens, it says what happened, and others can use what is in it."""

import json
import os
import shlex
from pathlib import Path
from typing import Any

import jsonschema
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
from fl_app.errors import ConfigError, DataError, RunError
from fl_app.evaluate import evaluate
from fl_app.fomo.package import unpack
from fl_app.job import adapter_sha256
from fl_app.main_job import output_folder, run_main_job
from fl_app.material import load_material
from fl_app.references import run_reference
from fl_app.result import FINAL_KEYS, RunResult, read_result
from fl_app.settings import columns_of
from fl_app.tasks import build_task
from scripts.simulate import main as simulate_main
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

__all__ = ["player", "tiny_federation"]

SCHEMA = json.loads(
    (Path(__file__).parents[2] / "docs/result.schema.json").read_text(encoding="utf-8")
)


old_name = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
"""PEFT, used plainly, reads a property of transformers by its old name."""


def _run(
    tiny: TinyFederation,
    folder: Path,
    *words: str,
    faults: Any = None,
    num_nodes: int = NUM_DEVICES,
) -> RunResult:
    overrides = tiny.overrides(f"output.dir={folder}", *words)
    run_config = {"overrides": overrides}
    with FaultyGrid(app, num_nodes=num_nodes, run_config=run_config, faults=faults) as grid:
        return run_main_job(grid, overrides)


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leaves the report out: it is drawn, and looked at, in other tests, and takes long."""
    monkeypatch.setattr(main_job, "write_report", lambda *_: None)


def _read(folder: Path) -> dict[str, Any]:
    """Reads result.json as a stranger would: by its schema."""
    raw: dict[str, Any] = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    jsonschema.Draft202012Validator(SCHEMA).validate(raw)
    return raw


@pytest.fixture(scope="module")
def done(
    tiny_federation: TinyFederation, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, RunResult]:
    """One finished run with a faulty device."""
    folder = tmp_path_factory.mktemp("run") / "out"
    faults = {(1, 2): fakes.vanishes}
    return folder, _run(tiny_federation, folder, "seed=3", faults=faults)


# --- a finished run ----------------------------------------------------------------------------


def test_the_result_keeps_to_its_schema(done: tuple[Path, RunResult]) -> None:
    folder, result = done
    raw = _read(folder)
    assert (raw["verdict"], raw["reason"]) == ("ok", None)
    assert raw["metric"] == {"name": "accuracy", "higher_is_better": True}
    assert raw["seed"] == 3
    assert set(raw["final"]) == set(FINAL_KEYS)
    assert raw["final"]["plug_in"] == result.final["plug_in"]
    assert raw["final"]["frozen"] is None  # no comparison run was asked for
    assert read_result(folder) == result
    assert 0 < sum(raw["timings"].values()) <= raw["seconds"]


def test_rounds_tell_who_counted_and_who_did_not(done: tuple[Path, RunResult]) -> None:
    raw = _read(done[0])
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
    ledger = _read(done[0])["ledger"]
    facts = _read(done[0])["model"]
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
    assert written == to_dict(again) == _read(folder)["config"]
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
    again = _run(tiny_federation, tmp_path, "seed=3", faults={(1, 2): fakes.vanishes}, num_nodes=9)
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
    result = _run(tiny_federation, tmp_path, *words)
    assert _read(tmp_path)["final"] == result.final
    assert all(0 <= float(result.final[key] or -1) <= 1 for key in FINAL_KEYS)


@pytest.mark.usefixtures("undrawn")
def test_real_devices_data_are_not_at_the_server_so_nothing_is_compared(
    tiny_federation: TinyFederation, tmp_path: Path
) -> None:
    words = ("strategy.references=null", "federation=edge", "strategy.num_rounds=1")
    result = _run(tiny_federation, tmp_path, *words, "federation.join_timeout_s=0.1")
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


# --- a failed run ------------------------------------------------------------------------------


def test_a_run_without_any_survivor_fails_and_says_why(
    tiny_federation: TinyFederation, tmp_path: Path
) -> None:
    faults = {0: fakes.raises(), 1: fakes.vanishes, 2: fakes.answers_twice, 3: fakes.empty}
    with pytest.raises(RunError, match="no round aggregated an update"):
        _run(tiny_federation, tmp_path, faults=faults)
    raw = _read(tmp_path)
    assert raw["verdict"] == "failed"
    assert "duplicate, error, missing, silent" in raw["reason"]
    # What was reached is kept: who was dropped in which round, and what was sent for nothing.
    assert [len(record["dropped"]) for record in raw["rounds"]] == [0, *[4] * NUM_ROUNDS]
    assert raw["ledger"]["downlink_bytes"] > 0
    assert raw["config"]["strategy"]["num_rounds"] == NUM_ROUNDS
    assert not (tmp_path / "adapter").exists()
    assert not (tmp_path / "report.html").exists()


def test_a_dead_worker_fails_the_run(tiny_federation: TinyFederation, tmp_path: Path) -> None:
    faults = {(2, 1): fakes.raises("ActorDiedError: killed")}
    with pytest.raises(RunError, match="worker process died"):
        _run(tiny_federation, tmp_path, faults=faults)
    raw = _read(tmp_path)
    assert "worker process died" in raw["reason"]
    # The round before it is kept, with its traffic.
    assert [record["round"] for record in raw["rounds"]] == [0, 1, 2]
    assert raw["rounds"][1]["devices"] == list(range(NUM_DEVICES))
    assert raw["ledger"]["uplink_bytes"] > 0


def test_a_failed_run_says_what_it_would_have_measured(
    tiny_federation: TinyFederation, tmp_path: Path
) -> None:
    with pytest.raises(DataError):
        _run(tiny_federation, tmp_path, "model.task=causal_lm", "data.path=/no/where")
    assert _read(tmp_path)["metric"] == {"name": "perplexity", "higher_is_better": False}


@pytest.mark.parametrize(
    ("word", "error", "says"),
    [
        ("peft.rnk=3", ConfigError, "rnk"),
        ("peft.rank=0", ConfigError, "peft.rank=0"),
        ("data.path=/no/where", DataError, "/no/where"),
        ("strategy.server_rule.name=best", ConfigError, "fedavg"),
    ],
)
def test_a_wrong_word_fails_the_run_in_the_folder_it_names(
    tiny_federation: TinyFederation, tmp_path: Path, word: str, error: Any, says: str
) -> None:
    with pytest.raises(error):
        _run(tiny_federation, tmp_path / "out", word)
    raw = _read(tmp_path / "out")
    assert raw["verdict"] == "failed"
    assert says in raw["reason"]
    assert raw["reason"].startswith(error.__name__)


def test_an_unforeseen_error_is_booked_and_raised(
    tiny_federation: TinyFederation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError("by zero")

    monkeypatch.setattr(main_job, "prepare", broken)
    with pytest.raises(ZeroDivisionError):
        _run(tiny_federation, tmp_path)
    assert _read(tmp_path)["reason"] == "ZeroDivisionError: by zero"


def test_unbalanced_quotes_still_leave_a_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with (
        FaultyGrid(app, num_nodes=1, run_config={"overrides": "'"}) as grid,
        pytest.raises(ConfigError, match="quotes"),
    ):
        run_main_job(grid, "'seed=1")
    assert _read(tmp_path / "outputs/latest")["verdict"] == "failed"


# --- folders -----------------------------------------------------------------------------------


def test_outputs_latest_points_to_the_newest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    first = output_folder("seed=1")
    assert (tmp_path / "outputs/latest").resolve() == first
    second = output_folder("seed=1")
    assert first != second  # also within one second
    assert first.is_dir()
    link = tmp_path / "outputs/latest"
    assert link.is_symlink()
    assert link.resolve() == second
    assert not Path(os.readlink(link)).is_absolute()  # the folder may be moved
    assert sorted(p.name for p in (tmp_path / "outputs").iterdir()) == sorted(
        [first.name, second.name, "latest"]
    )


@pytest.mark.usefixtures("undrawn")
def test_a_finished_run_is_the_latest(
    tiny_federation: TinyFederation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    overrides = tiny_federation.overrides("strategy.num_rounds=1")
    with FaultyGrid(app, num_nodes=4, run_config={"overrides": overrides}) as grid:
        result = run_main_job(grid, overrides)
    assert read_result(tmp_path / "outputs/latest") == result


def test_null_names_no_folder_and_a_file_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert output_folder("output.dir=null").parent == tmp_path / "outputs"
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match=r"output\.dir=.*file/x.*choose a folder"):
        output_folder(f"output.dir={tmp_path}/file/x")


@pytest.mark.parametrize("word", ["output.dir={}", "output.dir='{}'", '"output.dir={}"'])
def test_a_given_folder_is_used_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, word: str
) -> None:
    monkeypatch.chdir(tmp_path)
    given = tmp_path / "my" / "run"
    assert output_folder(f"seed=1 {word.format(given)}") == given
    assert given.is_dir()
    assert not (tmp_path / "outputs").exists()


def test_where_nothing_can_be_written_the_home_folder_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A SuperLink may have been started in /."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("fl_app.main_job.os.access", lambda *_: False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert output_folder("").parent == tmp_path / "home" / "deft-outputs"


# --- the in-process way in ---------------------------------------------------------------------


@pytest.mark.usefixtures("undrawn")
def test_simulate_runs_the_job_and_copies_its_result(
    tiny_federation: TinyFederation, tmp_path: Path
) -> None:
    words = shlex.split(tiny_federation.overrides("strategy.num_rounds=1"))
    target = tmp_path / "figures.json"
    assert simulate_main([*words, "--json", str(target)]) == 0
    raw = json.loads(target.read_text())
    assert raw["verdict"] == "ok"
    assert raw == _read(tmp_path / "figures")


def test_simulate_fails_with_the_run(tiny_federation: TinyFederation, tmp_path: Path) -> None:
    words = shlex.split(tiny_federation.overrides("peft.rank=0"))
    target = tmp_path / "figures.json"
    assert simulate_main([*words, "--json", str(target)]) == 1
    assert json.loads(target.read_text())["verdict"] == "failed"


def test_the_emulator_on_the_wire_is_the_one_that_was_measured(
    done: tuple[Path, RunResult], player: Player
) -> None:
    played = player.play("seed=3", "strategy.num_rounds=1")
    blob = wire.read_order(played.grid.exchanges[0].sent).emulator
    assert blob == played.bench.piece.blob
    assert len(blob or b"") == done[1].model["emulator_blob_bytes"]
    assert unpack(played.bench.piece.blob).labels == CLASSES
    assert np.isfinite(float(done[1].final["emulator"] or np.nan))
