"""The ordinary job with a prompt ensemble: measured in one pass, as each member alone would be."""

import json
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import peft
import pytest
import torch
import transformers

from fl_app import main_job, updates
from fl_app.bench import Bench
from fl_app.client_app import app
from fl_app.evaluate import evaluate
from fl_app.fomo.soft_prompt import PROMPT_NAME
from fl_app.local_grid import LocalGrid
from fl_app.material import load_material
from fl_app.measures import measure
from fl_app.prompts.fit import fit_of
from fl_app.prompts.pool import Pool
from fl_app.report import final_table
from fl_app.report.page import render_page
from fl_app.report.plots import draw_plots
from fl_app.result import RunResult
from fl_app.schema import EnsembleConfig, NoPrompt
from fl_app.updates import Update
from fl_app.variants import as_reference
from tests.federation_fixtures import (
    CLASSES,
    NUM_DEVICES,
    Played,
    Player,
    TinyFederation,
    player,
    tiny_federation,
)
from tests.gradient_fixtures import GRADIENT

__all__ = ["player", "tiny_federation"]

SCHEMA = json.loads(
    (Path(__file__).parents[2] / "docs/result.schema.json").read_text(encoding="utf-8")
)
WORDS = ("peft=prompt", "peft.num_tokens=3", "prompt.num_members=3")
LEARN = (
    "finetune.max_steps=12",
    "finetune.epochs=4",
    "finetune.lr=0.05",
    "strategy.num_rounds=4",
    "strategy.emulator.middle=-1",
)
"""Enough for members to differ in what they answer."""


def _played(player: Player, *more: str) -> Played:
    return player.play(*WORDS, *more, warm=True)


def _logits(bench: Bench, member: Update) -> torch.Tensor:
    """One member alone, by the wrapping that an ordinary run measures with."""
    bench.full.write(member)
    batch = bench.task.batch(bench.test, range(len(bench.test)))
    batch.pop("labels")
    with torch.inference_mode():
        logits: torch.Tensor = bench.full.model(**batch).logits.double()
    return logits


def test_members_and_ensemble_are_what_each_alone_makes(player: Player) -> None:
    played = _played(player, "prompt=ensemble_vote", *LEARN)
    bench, ensemble = played.bench, played.bench.ensemble
    assert ensemble is not None
    figures = measure(bench, played.outcome.adapter, bench.test)
    found = ensemble.latest
    assert found is not None
    members = updates.split(played.outcome.adapter, 3)
    alone = []
    for member in members:
        bench.full.write(member)
        alone.append(evaluate(bench.full.model, bench.task, bench.test))
    np.testing.assert_allclose(found.members, alone, atol=1e-7)
    assert len(set(alone)) > 1  # else the triple would be one figure
    assert figures["member_mean"] == pytest.approx(np.mean(alone))
    assert figures["member_best"] == pytest.approx(max(alone))
    votes = np.stack([_logits(bench, member).argmax(-1).numpy() for member in members])
    probs = np.stack([_logits(bench, member).softmax(-1).numpy() for member in members])
    chosen = []
    for row in range(votes.shape[1]):
        counts = np.bincount(votes[:, row], minlength=len(CLASSES))
        tied = np.flatnonzero(counts == counts.max())
        chosen.append(int(tied[probs[:, row].mean(0)[tied].argmax()]))
    wanted = np.mean(np.array(chosen) == np.array(bench.test.targets))
    assert figures["plug_in"] == pytest.approx(wanted)
    assert 0 <= figures["emulator"] <= 1


def test_weights_come_from_public_rows_and_from_no_test_row(player: Player) -> None:
    played = _played(player, "prompt=ensemble_weighted", "data.public_fraction=0.25", *LEARN)
    bench, ensemble = played.bench, played.bench.ensemble
    assert ensemble is not None
    public = bench.task.encode(load_material(bench.config).public)
    batch = bench.task.batch(public, range(len(public)))
    labels = batch.pop("labels")
    left_out = ensemble.pool(played.outcome.adapter)[1]
    assert len(left_out) <= 1
    losses = []
    for j, member in enumerate(updates.split(played.outcome.adapter, 3)):
        if j in left_out:
            continue
        bench.full.write(member)
        with torch.inference_mode():
            logits = bench.full.model(**batch).logits.double()
        losses.append(float(torch.nn.functional.cross_entropy(logits, labels, reduction="sum")))
    raw = np.exp(-(np.array(losses) - min(losses)))
    measure(bench, played.outcome.adapter, bench.test)
    assert ensemble.latest is not None
    np.testing.assert_allclose(ensemble.latest.weights, raw / raw.sum(), rtol=1e-4, atol=1e-7)
    few = bench.task.encode(load_material(bench.config).test.take(np.arange(5)))
    whole = ensemble.latest.weights
    measure(bench, played.outcome.adapter, few)
    assert ensemble.latest.weights == whole


def test_a_member_that_explodes_or_doubles_has_no_say(player: Player) -> None:
    played = _played(player, "prompt=ensemble_mean")
    bench, ensemble = played.bench, played.bench.ensemble
    assert ensemble is not None
    good, bad, _ = updates.split(played.outcome.adapter, 3)
    bad = {**bad, PROMPT_NAME: bad[PROMPT_NAME] * np.float32(1e6)}
    joined = updates.join([good, bad, good])
    figures = measure(bench, joined, bench.test)
    bench.full.write(good)
    assert figures["plug_in"] == evaluate(bench.full.model, bench.task, bench.test)
    assert ensemble.latest is not None
    entry = ensemble.entry(joined, bench.test, ensemble.latest)
    assert entry["left_out"] == {"1": "huge-norm", "2": "duplicate"}
    assert entry["weights"] == [1.0]


def test_a_member_nobody_has_tuned_yet_has_no_say_beside_one_that_is(player: Player) -> None:
    bench = player.bench(player.tiny.overrides(*WORDS, "prompt=ensemble_vote"))[0]
    assert bench.ensemble is not None
    start = bench.ensemble.start()
    bench.ensemble.note(0, start, [[0], [1], [2]])
    pool, left_out = bench.ensemble.pool(start)
    assert (len(pool), left_out) == (3, {})  # or nobody could answer before the first round
    first, *others = updates.split(start, 3)
    tuned = updates.join([{**first, PROMPT_NAME: first[PROMPT_NAME] + np.float32(0.1)}, *others])
    bench.ensemble.note(1, tuned, [[0], [1], [2]])
    pool, left_out = bench.ensemble.pool(tuned)
    assert ([m.card.device for m in pool.members], left_out) == ([0], {1: "untuned", 2: "untuned"})


def _run(tiny: TinyFederation, folder: Path, *words: str) -> RunResult:
    overrides = tiny.overrides(f"output.dir={folder}", *words)
    with LocalGrid(app, num_nodes=NUM_DEVICES, run_config={"overrides": overrides}) as grid:
        return main_job.run_main_job(grid, overrides)


@pytest.mark.parametrize("source", ["joint", "snapshots"])
def test_a_run_whose_members_all_devices_tune(player: Player, tmp_path: Path, source: str) -> None:
    """Result by its schema, comparison runs, report and a pool that loads again."""
    rounds = (
        "strategy.num_rounds=3",
        "data.public_fraction=0.25",
        "strategy.references=[frozen,federated_full]",
    )
    words = (*WORDS, "prompt=ensemble_vote", f"prompt.members_from={source}", *rounds)
    result = _run(player.tiny, tmp_path, *words)
    raw: dict[str, Any] = json.loads((tmp_path / "result.json").read_text(encoding="utf-8"))
    jsonschema.Draft202012Validator(SCHEMA).validate(raw)
    entry = raw["ensemble"]
    assert all(raw["final"][name] is not None for name in ("frozen", "federated_full"))
    placed = {member["index"]: member for member in entry["members"]}
    assert sorted([*placed, *map(int, entry["left_out"])]) == [0, 1, 2]
    for index, member in placed.items():
        assert member["devices"] == list(range(NUM_DEVICES))
        assert member["round"] == (3 if source == "joint" else index + 1)
    backbone = player.bench(player.tiny.overrides(*words))[0].backbone
    pool = Pool(fit_of(backbone, max_length=12), capacity=3)
    assert pool.load(tmp_path / "pool", now_round=3) == {}
    assert [m.content_hash for m in pool.members] == [m["content_hash"] for m in entry["members"]]
    first = min(placed)
    assert f"member {first} of devices 0-{NUM_DEVICES - 1}, round" in render_page(
        result, draw_plots(result)
    )


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
def test_the_folder_of_a_run(player: Player, tmp_path: Path) -> None:
    """Result, report, a pool that loads again, and every member for plain PEFT."""
    words = (*WORDS, "prompt=ensemble_logit_mean", *GRADIENT)
    result = _run(player.tiny, tmp_path, *words)
    raw: dict[str, Any] = json.loads((tmp_path / "result.json").read_text(encoding="utf-8"))
    jsonschema.Draft202012Validator(SCHEMA).validate(raw)
    entry = raw["ensemble"]
    assert entry["ensemble"] == raw["final"]["plug_in"]
    measures = [member["measure"] for member in entry["members"]]
    assert entry["member_mean"] == pytest.approx(np.mean(measures))
    assert entry["member_best"] == max(measures)
    assert sorted(d for m in entry["members"] for d in m["devices"]) == list(range(NUM_DEVICES))
    assert {"member_mean", "member_best", "plug_in"} <= set(raw["rounds"][-1]["metrics"])
    backbone = player.bench(player.tiny.overrides(*words))[0].backbone
    pool = Pool(fit_of(backbone, max_length=12), capacity=3)
    assert pool.load(tmp_path / "pool", now_round=2) == {}
    assert [m.content_hash for m in pool.members] == [m["content_hash"] for m in entry["members"]]
    assert [m.card.round for m in pool.members] == [2, 2, 2]
    for j, member in enumerate(pool.members):
        base = transformers.AutoModelForSequenceClassification.from_pretrained(
            player.tiny.model, num_labels=len(CLASSES), ignore_mismatched_sizes=True
        )
        loaded = peft.PeftModel.from_pretrained(base, tmp_path / "adapter" / str(j))
        saved = loaded.state_dict()["prompt_encoder.default.embedding.weight"]
        assert np.array_equal(saved.numpy(), member.prompt)
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "<h2>The ensemble</h2>" in page
    assert (tmp_path / "ensemble.png").read_bytes().startswith(b"\x89PNG")
    assert "best member of the ensemble" in final_table(result)


def test_a_run_without_ensemble_says_nothing_of_one(player: Player, tmp_path: Path) -> None:
    result = _run(player.tiny, tmp_path, "finetune.max_steps=1", "strategy.num_rounds=1")
    assert result.ensemble is None
    assert "ensemble" not in final_table(result)
    page = render_page(result, draw_plots(result))
    assert "The ensemble" not in page
    assert not (tmp_path / "ensemble.png").exists()


@pytest.mark.parametrize(
    ("reference", "kind"),
    [("frozen", NoPrompt), ("centralised", NoPrompt), ("federated_full", EnsembleConfig)],
)
def test_comparison_runs_keep_the_ensemble_where_devices_are_many(
    player: Player, reference: str, kind: type
) -> None:
    num = 1 if reference == "centralised" else NUM_DEVICES
    played = player.play(
        *WORDS, "prompt=ensemble_mean", reference=reference, num_nodes=num, measure_rounds=True
    )
    assert isinstance(played.bench.config.prompt, kind)
    assert as_reference(played.bench.config, "").prompt == played.bench.config.prompt
    assert played.outcome.aggregated >= 1
