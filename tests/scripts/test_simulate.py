"""The in-process way in: the script runs the job, copies its result and fails with it."""

import json
import shlex
from pathlib import Path

import pytest

from scripts.simulate import main as simulate_main
from tests.federation_fixtures import TinyFederation, tiny_federation
from tests.main_job_fixtures import read_by_schema, undrawn

__all__ = ["tiny_federation", "undrawn"]


@pytest.mark.usefixtures("undrawn")
def test_simulate_runs_the_job_and_copies_its_result(
    tiny_federation: TinyFederation, tmp_path: Path
) -> None:
    words = shlex.split(tiny_federation.overrides("strategy.num_rounds=1"))
    target = tmp_path / "figures.json"
    assert simulate_main([*words, "--json", str(target)]) == 0
    raw = json.loads(target.read_text())
    assert raw["verdict"] == "ok"
    assert raw == read_by_schema(tmp_path / "figures")


def test_simulate_fails_with_the_run(tiny_federation: TinyFederation, tmp_path: Path) -> None:
    words = shlex.split(tiny_federation.overrides("peft.rank=0"))
    target = tmp_path / "figures.json"
    assert simulate_main([*words, "--json", str(target)]) == 1
    assert json.loads(target.read_text())["verdict"] == "failed"
