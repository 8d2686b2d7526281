"""The pool of a small real run, whose model is no longer its checkpoint, served by the script."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from fl_app import main_job
from fl_app.client_app import app
from fl_app.data.readers import read_table
from fl_app.errors import DeftError
from fl_app.local_grid import LocalGrid
from fl_app.prompts.pool import MODEL_FILE
from fl_app.prompts.service import EnsembleService
from scripts.serve_ensemble import build_parser, make_service
from tests.federation_fixtures import CLASSES, TinyFederation, tiny_federation

__all__ = ["tiny_federation"]

_WORDS = (
    "peft=prompt",
    "peft.num_tokens=3",
    "prompt=ensemble_mean",
    "prompt.num_members=2",
    "federation.num_devices=2",
    "model.pooler=standardised",
    "data.public_fraction=0.25",
    "strategy.num_rounds=2",
)


def _run(tiny: TinyFederation, folder: Path, *more: str) -> Path:
    overrides = tiny.overrides(f"output.dir={folder}", *_WORDS, *more)
    with LocalGrid(app, num_nodes=2, run_config={"overrides": overrides}) as grid:
        main_job.run_main_job(grid, overrides)
    return folder


def _serve(tiny: TinyFederation, folder: Path, *more: str) -> EnsembleService:
    words = ["--model", str(tiny.model), "--pool", str(folder / "pool"), "--combiner", "mean"]
    return make_service(build_parser().parse_args([*words, *more]))


@pytest.mark.parametrize(
    "more", [(), ("strategy=gradient_download",)], ids=["emulator", "gradient, rounded"]
)
@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
def test_the_service_answers_as_the_run_was_measured(
    tiny_federation: TinyFederation, tmp_path: Path, more: tuple[str, ...]
) -> None:
    folder = _run(tiny_federation, tmp_path / "run", *more)
    result = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    service = _serve(tiny_federation, folder)
    state = service.state()
    assert state["labels"] == list(CLASSES)
    wanted = [member["content_hash"] for member in result["ensemble"]["members"]]
    assert [member["content_hash"] for member in state["members"]] == wanted
    test = read_table(tiny_federation.data / "test.tsv")
    answers = service.answer([str(text) for text in test.column("text")])
    right = [a.label == label for a, label in zip(answers, test.column("label"), strict=True)]
    assert np.mean(right) == pytest.approx(result["final"]["plug_in"])
    service.keep()
    assert _serve(tiny_federation, folder).state()["members"]  # the file outlives a shutdown


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
def test_without_the_file_or_with_other_labels_nothing_is_mixed_up(
    tiny_federation: TinyFederation, tmp_path: Path
) -> None:
    folder = _run(tiny_federation, tmp_path / "run")
    with pytest.raises(DeftError, match="leave the option out"):
        _serve(tiny_federation, folder, "--labels", ",".join(reversed(CLASSES)))
    bare = tmp_path / "bare"
    shutil.copytree(folder, bare)
    (bare / "pool" / MODEL_FILE).unlink()
    with pytest.raises(DeftError, match="name the classes"):
        _serve(tiny_federation, bare)
    labels = "--labels", ",".join(CLASSES), "--max-length", "12"
    assert _serve(tiny_federation, bare, *labels).state()["members"] == []
