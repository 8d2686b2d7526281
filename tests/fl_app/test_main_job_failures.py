"""The output folder of a failed run: it says why, and keeps what was reached."""

from pathlib import Path
from typing import Any

import pytest

from fl_app import main_job
from fl_app.client_app import app
from fl_app.errors import ConfigError, DataError, RunError
from fl_app.main_job import run_main_job
from tests import fakes
from tests.fakes import FaultyGrid
from tests.federation_fixtures import NUM_DEVICES, NUM_ROUNDS, TinyFederation, tiny_federation
from tests.main_job_fixtures import read_by_schema, run_job

__all__ = ["tiny_federation"]


def test_a_run_without_any_survivor_fails_and_says_why(
    tiny_federation: TinyFederation, tmp_path: Path
) -> None:
    faults = {0: fakes.raises(), 1: fakes.vanishes, 2: fakes.answers_twice, 3: fakes.empty}
    with pytest.raises(RunError, match="no round aggregated an update"):
        run_job(tiny_federation, tmp_path, faults=faults)
    raw = read_by_schema(tmp_path)
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
        run_job(tiny_federation, tmp_path, faults=faults)
    raw = read_by_schema(tmp_path)
    assert "worker process died" in raw["reason"]
    # The round before it is kept, with its traffic.
    assert [record["round"] for record in raw["rounds"]] == [0, 1, 2]
    assert raw["rounds"][1]["devices"] == list(range(NUM_DEVICES))
    assert raw["ledger"]["uplink_bytes"] > 0


def test_a_failed_run_says_what_it_would_have_measured(
    tiny_federation: TinyFederation, tmp_path: Path
) -> None:
    with pytest.raises(DataError):
        run_job(tiny_federation, tmp_path, "model.task=causal_lm", "data.path=/no/where")
    assert read_by_schema(tmp_path)["metric"] == {"name": "perplexity", "higher_is_better": False}


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
        run_job(tiny_federation, tmp_path / "out", word)
    raw = read_by_schema(tmp_path / "out")
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
        run_job(tiny_federation, tmp_path)
    assert read_by_schema(tmp_path)["reason"] == "ZeroDivisionError: by zero"


def test_unbalanced_quotes_still_leave_a_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with (
        FaultyGrid(app, num_nodes=1, run_config={"overrides": "'"}) as grid,
        pytest.raises(ConfigError, match="quotes"),
    ):
        run_main_job(grid, "'seed=1")
    assert read_by_schema(tmp_path / "outputs/latest")["verdict"] == "failed"
