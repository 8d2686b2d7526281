"""Whole jobs on tiny federations: their run, their report left out, their result read by schema."""

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from fl_app import main_job
from fl_app.client_app import app
from fl_app.main_job import run_main_job
from fl_app.result import RunResult
from tests.fakes import FaultyGrid
from tests.federation_fixtures import NUM_DEVICES, TinyFederation

_SCHEMA = json.loads(
    (Path(__file__).parents[1] / "docs/result.schema.json").read_text(encoding="utf-8")
)


def run_job(
    tiny: TinyFederation,
    folder: Path,
    *words: str,
    faults: Any = None,
    num_nodes: int = NUM_DEVICES,
) -> RunResult:
    """Runs a job in process; devices answer as ``faults`` says."""
    overrides = tiny.overrides(f"output.dir={folder}", *words)
    run_config = {"overrides": overrides}
    with FaultyGrid(app, num_nodes=num_nodes, run_config=run_config, faults=faults) as grid:
        return run_main_job(grid, overrides)


def read_by_schema(folder: Path) -> dict[str, Any]:
    """Reads result.json as a stranger would: by its schema."""
    raw: dict[str, Any] = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    jsonschema.Draft202012Validator(_SCHEMA).validate(raw)
    return raw


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leaves the report out: it is drawn, and looked at, in other tests, and takes long."""
    monkeypatch.setattr(main_job, "write_report", lambda *_: None)
