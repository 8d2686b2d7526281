"""Federations whose ensemble looks at the text: fitted on public rows, reported like the others."""

import json
from pathlib import Path

import jsonschema
import numpy as np
import pytest
import torch

from fl_app import main_job, updates
from fl_app.client_app import app
from fl_app.local_grid import LocalGrid
from fl_app.material import load_material
from fl_app.measures import measure
from fl_app.prompts.attentive import FITS, FitSettings, hear
from fl_app.prompts.batched import Tensors, log_probabilities
from fl_app.prompts.errors import PromptError
from fl_app.seeding import generator
from tests.federation_fixtures import (
    NUM_DEVICES,
    Player,
    TinyFederation,
    player,
    tiny_federation,
)
from tests.gradient_fixtures import GRADIENT

__all__ = ["player", "tiny_federation"]

_SCHEMA = json.loads(
    (Path(__file__).parents[2] / "docs/result.schema.json").read_text(encoding="utf-8")
)
_WORDS = (
    "peft=prompt",
    "peft.num_tokens=3",
    "prompt.num_members=3",
    "data.public_fraction=0.25",
    "finetune.max_steps=12",
    "finetune.epochs=4",
    "finetune.lr=0.05",
    "strategy.num_rounds=3",
)


@pytest.mark.parametrize("kind", FITS)
def test_the_figure_is_that_of_a_fit_by_hand(player: Player, kind: str) -> None:
    """Public rows, members and settings taken from the run, the fit made again; no test row."""
    words = (*_WORDS, f"prompt=ensemble_{kind}", "prompt.lr=0.01", "prompt.epochs=3")
    played = player.play(*words, "strategy.emulator.middle=-1", warm=True)
    bench, adapter = played.bench, played.outcome.adapter
    figures = measure(bench, adapter, bench.test)
    ensemble = bench.ensemble
    assert ensemble is not None
    assert ensemble.latest is not None
    left_out = ensemble.pool(adapter)[1]
    members = []
    for j, part in enumerate(updates.split(adapter, 3)):
        if j not in left_out:
            tensors = {name: torch.from_numpy(array.copy()) for name, array in part.items()}
            members.append(Tensors(tensors.pop("base_model.prompt_embeddings"), tensors))
    public = bench.task.encode(load_material(bench.config).public)
    rows = generator(bench.config.seed, "screen").permutation(len(public))
    rows = sorted(map(int, rows), key=lambda i: int(public.lengths[i]))
    rows = generator(bench.config.seed, "attention-rows").permutation(rows).tolist()
    batches = [bench.task.batch(public, rows[i : i + 32]) for i in range(0, len(rows), 32)]
    how = FitSettings(kind, lr=0.01, epochs=3, hidden=100)
    model = bench.full.bare_model
    fitted = FITS[kind](hear(model, members, batches), how, bench.config.seed)
    batch = bench.task.batch(bench.test, range(len(bench.test)))
    with torch.inference_mode():
        said = log_probabilities(model, members, batch)[0]
        right = fitted.answer(model, batch, said).classes == batch["labels"]
    assert figures["plug_in"] == pytest.approx(float(right.double().mean()))
    assert ensemble.latest.weights == pytest.approx(fitted.weights)
    whole = ensemble.latest.weights
    measure(bench, adapter, bench.task.encode(load_material(bench.config).test.take(np.arange(5))))
    assert ensemble.latest.weights == whole
    assert 0 <= figures["emulator"] <= 1
    exploded = {name: np.float32(1e12) * array for name, array in adapter.items()}
    with pytest.raises(PromptError, match=r"no-member.*huge-norm.*lower finetune.lr"):
        measure(bench, exploded, bench.test)


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
@pytest.mark.parametrize("kind", FITS)
def test_a_run_reports_it(tiny_federation: TinyFederation, tmp_path: Path, kind: str) -> None:
    words = (*_WORDS, *GRADIENT, f"prompt=ensemble_{kind}", f"output.dir={tmp_path}")
    overrides = tiny_federation.overrides(*words, "strategy.num_rounds=2")
    with LocalGrid(app, num_nodes=NUM_DEVICES, run_config={"overrides": overrides}) as grid:
        main_job.run_main_job(grid, overrides)
    raw = json.loads((tmp_path / "result.json").read_text(encoding="utf-8"))
    jsonschema.Draft202012Validator(_SCHEMA).validate(raw)
    entry = raw["ensemble"]
    assert entry["combiner"] == kind
    assert entry["fit_failed"] is None
    assert entry["ensemble"] == raw["final"]["plug_in"]
    assert sum(entry["weights"]) == pytest.approx(1)
    assert f", {kind}" in (tmp_path / "report.html").read_text(encoding="utf-8")
