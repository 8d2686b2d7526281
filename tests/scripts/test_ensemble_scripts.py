"""The ensemble scripts on tiny models: members once, every combiner right, the bound held."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fl_app.evaluate import evaluate
from fl_app.prompts.attentive import FITS, FitSettings
from fl_app.prompts.batched import tensors_of
from fl_app.prompts.ensemble import exponential_weights
from fl_app.prompts.measure import measure, weights_on
from fl_app.prompts.public_rows import PublicRows
from fl_app.schema import EnsembleFitted
from scripts import ensemble_members, ensemble_online, ensemble_triple
from scripts.ensemble_combine import Spoken, by_class, public_losses, windows
from scripts.ensemble_members import prepared, setting_of, tuned_members
from tests.ensemble_fixtures import language_words
from tests.federation_fixtures import TinyFederation, tiny_federation

__all__ = ["tiny_federation"]

_FEW = ("peft.num_tokens=2", "finetune.batch_size=8", "finetune.lr=0.05", "finetune.head_lr=0.05")


@pytest.fixture
def tasks(
    tiny_federation: TinyFederation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> list[str]:
    """Two tiny tasks in the place of the real ones; returns arguments for a script."""
    words = (
        "model=local",
        f"model.path={tiny_federation.model}",
        "model.max_length=12",
        "data=local",
        f"data.path={tiny_federation.data}",
    )
    (tmp_path / "lm").mkdir()
    monkeypatch.setitem(ensemble_members.TASKS, "sst2", (*words, *_FEW))
    monkeypatch.setitem(ensemble_members.TASKS, "t0", (*language_words(tmp_path / "lm"), *_FEW))
    return ["--assets", str(tmp_path), "--output", str(tmp_path / "out")]


def test_windows_hold_every_member_equally_often() -> None:
    for k in (1, 2, 3, 5):
        found = windows(5, k)
        counts = np.bincount(np.concatenate(found), minlength=5)
        assert (counts == counts[0]).all()
        assert all(len(set(window)) == k for window in found)


def test_the_triple_of_a_small_task(tasks: list[str], tmp_path: Path) -> None:
    """Members by themselves agree; a run that is repeated reads what it has."""
    arguments = [*tasks, "--tasks", "sst2,t0", "--seeds", "0,1", "--ks", "1,3", "--steps", "4"]
    assert ensemble_triple.main(arguments) == 0
    found: dict[str, Any] = json.loads((tmp_path / "out/triple.json").read_text())
    assert (tmp_path / "out/triple.png").read_bytes().startswith(b"\x89PNG")
    assert {(e["task"], e["metric"]) for e in found["summary"]} == {
        ("sst2", "accuracy"),
        ("t0", "perplexity"),
        ("t0", "exact match"),
    }
    for entry in found["summary"]:
        better = 1 if entry["metric"] != "perplexity" else -1
        assert better * entry["member_best"] >= better * entry["member_mean"] - 1e-9
        if entry["k"] == 1:
            assert entry["ensemble"] == pytest.approx(entry["member_mean"], rel=1e-4)
        if entry["metric"] == "perplexity" and entry["combiner"] == "mean":
            assert entry["ensemble"] <= entry["member_mean"] * (1 + 1e-6)  # Jensen
    fitted = [e for e in found["summary"] if e["combiner"] in FITS]
    assert {(e["combiner"], e["k"]) for e in fitted} == {("attention", 3), ("fusion", 3)}
    for entry in found["latency"]:
        assert (entry["fusion_seconds"] is not None) == (entry["task"] == "sst2" and entry["k"] > 1)
    cell = next(c for c in found["cells"] if (c["task"], c["seed"]) == ("sst2", 1))
    setting = setting_of(
        "sst2",
        assets=tmp_path,
        seed=1,
        num_members=3,
        steps=4,
        more=("data.limit_test=800",),
    )
    held = prepared(setting)
    members = tuned_members(setting, held, tmp_path / "out/members")
    assert len({member.content_hash for member in members}) == 3
    alone = []
    for member in members:
        held.bench.full.write(member.arrays())
        alone.append(evaluate(held.bench.full.model, held.bench.task, held.bench.test))
    assert cell["members"] == pytest.approx(alone)
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*.prompt")}
    assert len(times) == 12
    before = (tmp_path / "out/triple.json").read_text()
    assert ensemble_triple.main(arguments) == 0
    assert (tmp_path / "out/triple.json").read_text() == before
    assert times == {path: path.stat().st_mtime_ns for path in times}


@pytest.mark.parametrize("kind", FITS)
def test_fits_are_those_of_a_server(tasks: list[str], tmp_path: Path, kind: str) -> None:
    """Two windows of two members, each as a federation fits and measures it."""
    setting = setting_of("sst2", assets=tmp_path, seed=3, num_members=3, steps=4)
    held = prepared(setting)
    members = tuned_members(setting, held, tmp_path)
    spoken = Spoken(held, [tensors_of(m) for m in members], 3, fusion_windows=2)
    rows, alone = by_class(spoken, [1, 2])
    assert {row["combiner"] for row in rows if row["k"] == 1}.isdisjoint(FITS)
    (row,) = (row for row in rows if row["combiner"] == kind)
    default = EnsembleFitted()
    public = PublicRows(
        held.bench.full.bare_model,
        held.bench.task,
        held.public,
        how="mean",
        eta=None,
        fit=FitSettings(kind, default.lr, default.epochs, default.hidden),
        seed=3,
    )
    places = windows(3, 2)[: row["windows"]]
    assert row["windows"] == (2 if kind == "fusion" else 3)
    found = []
    for window in places:
        own = [members[j] for j in window]
        fitted = public.fitted(own)
        assert fitted is not None
        found.append(
            measure(
                held.bench.full.bare_model,
                [tensors_of(m) for m in own],
                held.bench.task,
                held.bench.test,
                answer=fitted.answer,
            )
        )
    assert row["ensemble"] == pytest.approx(np.mean([one.ensemble for one in found]))
    assert row["loss"] == pytest.approx(np.mean([one.ensemble_loss for one in found]), rel=1e-4)
    pairs = [[alone[j] for j in window] for window in places]
    assert row["member_mean"] == pytest.approx(np.mean(pairs))
    assert row["member_best"] == pytest.approx(np.mean([max(pair) for pair in pairs]))


def test_cells_of_other_weights_or_fits_are_measured_again(
    tasks: list[str], tmp_path: Path
) -> None:
    """Their members stay."""
    more = ["--seeds", "0", "--ks", "1,2", "--steps", "2"]
    arguments = [*tasks, "--tasks", "sst2,t0", *more]
    assert ensemble_triple.main(arguments) == 0
    members = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*.prompt")}
    cells = {name: tmp_path / f"out/cell-{name}-seed0.json" for name in ("sst2", "t0")}
    for path in cells.values():
        content = json.loads(path.read_text())
        old = {key: content["facts"][key] for key in ("words", "steps", "ks")}
        assert content["facts"] != old
        path.write_text(json.dumps({**content, "facts": old, "seconds": -1.0}))
    assert ensemble_triple.main(arguments) == 0
    made = {name: json.loads(path.read_text())["seconds"] for name, path in cells.items()}
    assert min(made.values()) > 0
    assert ensemble_triple.main([*arguments, "--fusion-windows", "1"]) == 0
    again = {name: json.loads(path.read_text())["seconds"] for name, path in cells.items()}
    assert (again["sst2"] != made["sst2"], again["t0"] != made["t0"]) == (True, False)
    assert members == {path: path.stat().st_mtime_ns for path in members}


def test_the_scripts_weigh_as_the_library(tasks: list[str], tmp_path: Path) -> None:
    for task in ("sst2", "t0"):
        setting = setting_of(task, assets=tmp_path, seed=0, num_members=2, steps=1)
        held = prepared(setting)
        members = [tensors_of(m) for m in tuned_members(setting, held, tmp_path)]
        model = held.bench.full.bare_model
        expected = weights_on(model, members, held.bench.task, held.public, eta=0.5)
        summed = public_losses(Spoken(held, members, 0))
        found = exponential_weights(summed, 0.5)
        assert found.tolist() == pytest.approx(expected, rel=1e-3)


def test_a_damaged_member_is_tuned_again_to_the_same_bits(tasks: list[str], tmp_path: Path) -> None:
    setting = setting_of("sst2", assets=tmp_path, seed=0, num_members=2, steps=2)
    held = prepared(setting)
    whole = tuned_members(setting, held, tmp_path)
    path = next(tmp_path.rglob("1.prompt"))
    path.write_bytes(path.read_bytes()[:100])
    again = tuned_members(setting, held, tmp_path)
    assert [m.content_hash for m in again] == [m.content_hash for m in whole]


def test_members_of_other_overrides_are_not_taken(tasks: list[str], tmp_path: Path) -> None:
    setting = setting_of("sst2", assets=tmp_path, seed=0, num_members=1, steps=1)
    tuned_members(setting, prepared(setting), tmp_path)
    other = setting_of(
        "sst2", assets=tmp_path, seed=0, num_members=1, steps=1, more=("finetune.lr=0.01",)
    )
    with pytest.raises(ensemble_members.PromptError, match="--output"):
        tuned_members(other, prepared(other), tmp_path)


def test_the_online_run_stays_under_its_bound(tasks: list[str], tmp_path: Path) -> None:
    arguments = [*tasks, "--queries", "150", "--members", "4", "--hostile", "1", "--steps", "3"]
    assert ensemble_online.main(arguments) == 0
    found = json.loads((tmp_path / "out/online.json").read_text())
    assert found["holds"]
    assert found["last_bound"] == pytest.approx(math.log(4))
    assert len(found["regret"]) == 150
    assert found["joins"] >= 4
    assert (tmp_path / "out/online.png").read_bytes().startswith(b"\x89PNG")


def test_regret_is_that_of_a_slow_count() -> None:
    """Random losses of members that come and go; weights by the definition, from scratch."""
    rng = np.random.default_rng(0)
    losses = rng.exponential(1.0, (60, 5))
    present = ensemble_online.timetable(5, 60, 3)
    assert present.any(1).all()
    assert not present.all()
    curves = ensemble_online.play(losses, present)
    total, joined = np.zeros(5), np.zeros(5, bool)
    mixture, regret = 0.0, np.zeros(5)
    for now in range(60):
        here = present[now]
        total[here & ~joined] = mixture
        joined |= here
        weights = np.where(here, np.exp(-(total - total[here].min())), 0.0)
        weights /= weights.sum()
        mixed = -math.log(float((weights[here] * np.exp(-losses[now, here])).sum()))
        assert curves["mixture_loss"][now] == pytest.approx(mixed)
        total[joined] += np.where(here, losses[now], mixed)[joined]
        regret[here] += mixed - losses[now, here]
        mixture += mixed
        assert curves["regret"][now] == pytest.approx(regret[joined].max())
        assert curves["regret"][now] <= math.log(joined.sum()) + 1e-9
    assert max(curves["uniform"]) > max(curves["regret"])  # the weights do something


def test_stays_are_those_of_the_timetable() -> None:
    present = np.array([[1, 0], [1, 1], [0, 1], [1, 1]], bool)
    assert ensemble_online.stays(present) == [[[0, 2], [3, 4]], [[1, 4]]]


@pytest.mark.parametrize("script", [ensemble_triple, ensemble_online])
def test_without_data_nothing_is_done(
    script: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert script.main(["--assets", "", "--output", str(tmp_path / "none")]) == 0
    assert "DEFT_ASSETS" in capsys.readouterr().out
    assert not (tmp_path / "none").exists()
