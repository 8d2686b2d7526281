"""Where a run writes: the folder it was given, or the newest of its own."""

import os
from pathlib import Path

import pytest

from fl_app.client_app import app
from fl_app.errors import RunError
from fl_app.main_job import output_folder, run_main_job
from fl_app.result import read_result
from tests.fakes import FaultyGrid
from tests.federation_fixtures import TinyFederation, tiny_federation
from tests.main_job_fixtures import undrawn

__all__ = ["tiny_federation", "undrawn"]


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
