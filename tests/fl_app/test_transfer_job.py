"""The whole job with ``prompt=transfer``: result, schema, table and page say the same."""

import json
from pathlib import Path
from unittest.mock import patch

import jsonschema

from fl_app.client_app import app
from fl_app.local_grid import LocalGrid
from fl_app.main_job import run_main_job
from fl_app.report import final_table
from fl_app.result import read_result
from tests.federation_fixtures import TinyFederation, tiny_federation
from tests.gradient_fixtures import words_of

__all__ = ["tiny_federation"]
_SCHEMA = Path(__file__).parents[2] / "docs" / "result.schema.json"


def test_a_run_reports_its_transfers(tiny_federation: TinyFederation, tmp_path: Path) -> None:
    words = words_of("prompt", "prompt=transfer", "prompt.contacts.area_m=50")
    overrides = tiny_federation.overrides(*words, f"output.dir={tmp_path}")
    with (
        LocalGrid(app, num_nodes=4, run_config={"overrides": overrides}) as grid,
        patch.multiple("strategies.roster", _SETTLE_S=0.02, _POLL_S=0.01),
    ):
        result = run_main_job(grid, overrides)
    written = json.loads((tmp_path / "result.json").read_text())
    jsonschema.validate(written, json.loads(_SCHEMA.read_text()))
    found = written["transfer"]
    assert found["searches"] == len(found["devices"]) == 4
    assert found["bytes"] == written["ledger"]["d2d_bytes"] > 0
    assert read_result(tmp_path).transfer == found
    table = final_table(result)
    assert f"{found['adopted']} of 4" in table
    assert f"({found['bytes']:,} B)" in table
    page = (tmp_path / "report.html").read_text()
    assert "Prompts from device to device" in page
    assert all(f"{one['loss_own']:.4f}" in page for one in found["devices"])
