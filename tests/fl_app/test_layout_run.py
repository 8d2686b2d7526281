"""A whole run with unequal ranks: result.json, the picture, and adapters that others can load."""

import json
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import peft
import pytest
import safetensors.numpy
import torch
import transformers

from fl_app.client_app import app
from fl_app.local_grid import LocalGrid
from fl_app.main_job import run_main_job
from fl_app.report import plots
from fl_app.result import RunResult, read_result
from tests.federation_fixtures import CLASSES, TinyFederation, tiny_federation

__all__ = ["tiny_federation"]

SCHEMA = json.loads((Path(__file__).parents[2] / "docs/result.schema.json").read_text("utf-8"))
WORDS = (
    "peft=lora_linear_up",
    "peft.rank=3",
    "federation.classes=[{name:weak,devices:[1,3],params:110},{name:strong,devices:[0,2]}]",
    "strategy.round_test_rows=8",
)


@pytest.fixture(scope="module")
def done(
    tiny_federation: TinyFederation, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, RunResult]:
    folder = tmp_path_factory.mktemp("run") / "out"
    words = tiny_federation.overrides(f"output.dir={folder}", *WORDS)
    with LocalGrid(app, num_nodes=4, run_config={"overrides": words}) as grid:
        return folder, run_main_job(grid, words)


def test_the_result_says_who_tuned_what(done: tuple[Path, RunResult]) -> None:
    folder, result = done
    raw: dict[str, Any] = json.loads((folder / "result.json").read_text("utf-8"))
    jsonschema.Draft202012Validator(SCHEMA).validate(raw)
    assert read_result(folder) == result
    head, unit = 4 * 16 + 4, 2 * 16  # B of query and value alone, for A is frozen
    assert raw["layout"] == {
        "size": "rank",
        "rule": "linear_up",
        "combine": "pad",
        "server": [2, 0, 0, 0, 4],
        "params": head + 6 * unit,
        "late_units": 0,
        "classes": {
            "weak": {"ranks": [0, 0, 0, 0, 1], "params": head + unit, "devices": [1, 3]},
            "strong": {"ranks": [2, 0, 0, 0, 4], "params": head + 6 * unit, "devices": [0, 2]},
        },
    }
    assert raw["model"]["adapter_parameters"] == raw["layout"]["params"]


def test_the_report_has_a_heat_map_of_ranks(done: tuple[Path, RunResult]) -> None:
    folder, result = done
    assert (folder / "ranks.png").read_bytes().startswith(b"\x89PNG")
    assert 'alt="Heat map of LoRA ranks' in (folder / "report.html").read_text("utf-8")
    assert "ranks.png" in plots.draw_plots(result)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
def test_both_exports_load_in_plain_peft_with_equal_logits(
    done: tuple[Path, RunResult], tiny_federation: TinyFederation
) -> None:
    folder, _ = done
    logits = []
    ids = torch.arange(5, 35).reshape(5, 6)
    for name in ("adapter", "adapter_padded"):
        base = transformers.AutoModelForSequenceClassification.from_pretrained(
            tiny_federation.model, num_labels=len(CLASSES), ignore_mismatched_sizes=True
        )
        model = peft.PeftModel.from_pretrained(base, folder / name).eval()
        with torch.inference_mode():
            logits.append(model(input_ids=ids).logits)
    bound = 64 * torch.finfo(torch.float32).eps * float(logits[0].abs().max())
    assert (logits[0] - logits[1]).abs().max() <= bound
    ranks = {
        name: {a.shape[0] for n, a in arrays.items() if "lora_A" in n}
        for name in ("adapter", "adapter_padded")
        for arrays in [safetensors.numpy.load_file(folder / name / "adapter_model.safetensors")]
    }
    assert ranks == {"adapter": {2, 4}, "adapter_padded": {4}}
    moved = safetensors.numpy.load_file(folder / "adapter/adapter_model.safetensors")
    assert all(np.abs(a).max() > 0 for name, a in moved.items() if "lora_B" in name)


def test_a_uniform_run_has_one_adapter_and_no_heat_map(
    tiny_federation: TinyFederation, tmp_path: Path
) -> None:
    words = [f"output.dir={tmp_path}", "strategy.num_rounds=1", "strategy.round_test_rows=8"]
    overrides = tiny_federation.overrides(*words)
    with LocalGrid(app, num_nodes=4, run_config={"overrides": overrides}) as grid:
        result = run_main_job(grid, overrides)
    assert result.layout is not None
    assert result.layout["server"] == [2, 0, 0, 0, 2]
    assert result.layout["combine"] is None
    assert result.layout["classes"] == {}
    assert not (tmp_path / "ranks.png").exists()
    assert not (tmp_path / "adapter_padded").exists()


def test_equal_ranks_below_that_of_the_configuration_are_exported_padded(
    tiny_federation: TinyFederation, tmp_path: Path
) -> None:
    """adapter_config.json then has peft.rank as r and a rank_pattern for every map."""
    words = ["strategy.num_rounds=1", "strategy.round_test_rows=8", "peft.layout.params=196"]
    overrides = tiny_federation.overrides(f"output.dir={tmp_path}", *words, "peft.rank=4")
    with LocalGrid(app, num_nodes=4, run_config={"overrides": overrides}) as grid:
        result = run_main_job(grid, overrides)
    assert result.layout is not None
    assert result.layout["server"] == [2, 0, 0, 0, 2]
    saved, padded = (
        json.loads((tmp_path / name / "adapter_config.json").read_text("utf-8"))
        for name in ("adapter", "adapter_padded")
    )
    assert (saved["r"], set(saved["rank_pattern"].values())) == (4, {2})
    assert (padded["r"], padded["rank_pattern"]) == (2, {})


def test_parameters_are_those_of_the_layout_in_the_end(
    tiny_federation: TinyFederation, tmp_path: Path
) -> None:
    """Devices' gains come after the server is prepared, with another layout until then."""
    words = ["strategy.num_rounds=1", "strategy.round_test_rows=8", "peft=lora_cost_aware"]
    words += ["peft.layout.profile.by=devices", "peft.layout.uplink_bytes=1400"]
    overrides = tiny_federation.overrides(f"output.dir={tmp_path}", *words)
    with LocalGrid(app, num_nodes=4, run_config={"overrides": overrides}) as grid:
        result = run_main_job(grid, overrides)
    assert result.layout is not None
    assert result.model["adapter_parameters"] == result.layout["params"] < 196


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
@pytest.mark.parametrize(("drawn", "ranks"), [("null", {8, 16}), ("1", {4, 2})])
def test_stacks_are_saved_as_their_sum(
    tiny_federation: TinyFederation, tmp_path: Path, drawn: str, ranks: set[int]
) -> None:
    """Both exports compute the same; one weak device alone leaves a sum below the strong's ranks.

    The weak have one unit of block 4, the strong 2 and 4. Of all devices in two rounds that makes
    8, and 20 of which maps of 16 x 16 can use 16.
    """
    weak = "{name:weak,devices:[1,3],params:140}"
    classes = f"federation.classes=[{weak},{{name:strong,devices:[0,2]}}]"
    words = [WORDS[0], WORDS[1], classes, WORDS[3], "peft.combine=stack", "peft.aggregation=exact"]
    words += [f"federation.devices_per_round={drawn}", f"output.dir={tmp_path}"]
    words += ["strategy.num_rounds=2" if drawn == "null" else "strategy.num_rounds=1", "seed=0"]
    overrides = tiny_federation.overrides(*words)
    with LocalGrid(app, num_nodes=4, run_config={"overrides": overrides}) as grid:
        result = run_main_job(grid, overrides)
    raw = json.loads((tmp_path / "result.json").read_text("utf-8"))
    jsonschema.Draft202012Validator(SCHEMA).validate(raw)
    assert result.layout is not None
    assert result.layout["combine"] == "stack"
    assert result.layout["classes"]["strong"]["ranks"] == [2, 0, 0, 0, 4]
    assert result.model["adapter_parameters"] == result.layout["params"]
    logits = []
    for name in ("adapter", "adapter_padded"):
        base = transformers.AutoModelForSequenceClassification.from_pretrained(
            tiny_federation.model, num_labels=len(CLASSES), ignore_mismatched_sizes=True
        )
        model = peft.PeftModel.from_pretrained(base, tmp_path / name).eval()
        with torch.inference_mode():
            logits.append(model(input_ids=torch.arange(5, 35).reshape(5, 6)).logits)
    bound = 64 * torch.finfo(torch.float32).eps * float(logits[0].abs().max())
    assert (logits[0] - logits[1]).abs().max() <= bound
    is_weak = set(result.rounds[1].devices) <= {1, 3}
    assert is_weak == (drawn == "1")
    assert {rank for rank in result.layout["server"] if rank} == ranks
