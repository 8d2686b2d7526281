"""A federation of five groups, one tuned on flipped labels, one with a huge but legal head."""

import csv
import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from fl_app import updates
from fl_app.bench import Bench
from fl_app.config import load_config
from fl_app.ensemble import Ensemble, ensemble_of
from fl_app.fomo.soft_prompt import PROMPT_NAME
from fl_app.material import load_material
from fl_app.prompts.attentive import FITS, FitSettings, hear
from fl_app.prompts.batched import Tensors
from fl_app.prompts.ensemble import Combined, combine, exponential_weights
from fl_app.prompts.gate import MAX_DROP
from fl_app.prompts.public_rows import fitting_batches
from fl_app.schema import (
    EnsembleAttention,
    EnsembleConfig,
    EnsembleFitted,
    EnsembleFusion,
    EnsembleLogitMean,
    EnsembleMean,
    EnsembleMedian,
    EnsembleVote,
    EnsembleWeighted,
)
from fl_app.tasks import Encoded
from fl_app.updates import Update
from strategies.fit_prompts import require_prompts
from tests import fakes
from tests.fakes import Fault
from tests.federation_fixtures import (
    CLASSES,
    Played,
    Player,
    TinyFederation,
    tiny_federation,
    write_rows,
)

__all__ = ["tiny_federation"]

_GROUPS, _ROUNDS = 5, 4
_HONEST, _FLIPPED, _LOUD = [0, 1, 2], 3, 4
_WORDS = (
    "peft=prompt",
    "peft.num_tokens=3",
    "prompt=ensemble_mean",
    f"prompt.num_members={_GROUPS}",
    f"federation.num_devices={_GROUPS}",
    "data.public_fraction=0.2",
    "finetune.max_steps=12",
    "finetune.epochs=4",
    "finetune.lr=0.05",
    f"strategy.num_rounds={_ROUNDS}",
    "strategy.emulator.middle=-1",
)
_KINDS: list[EnsembleConfig] = [
    EnsembleVote(),
    EnsembleMean(),
    EnsembleLogitMean(),
    EnsembleMedian(),
    EnsembleWeighted(),
    EnsembleAttention(lr=0.02, epochs=30, hidden=20),
    EnsembleFusion(lr=0.02, epochs=30, hidden=20),
]


def _flip(source: Path, target: Path) -> None:
    """Copies a table; every row gets the next class's label."""
    with source.open(newline="") as file, target.open("w", newline="") as copy:
        table = csv.writer(copy, delimiter="\t")
        for row in csv.reader(file, delimiter="\t"):
            if row[1] in CLASSES:
                row[1] = CLASSES[(CLASSES.index(row[1]) + 1) % len(CLASSES)]
            table.writerow(row)


def _shout(start: Update, before: Update) -> Fault:
    """The device answers with its own head of the last round, turned round and at its bound."""

    def change(_old: Update) -> Update:
        head = {name: array for name, array in before.items() if name != PROMPT_NAME}
        loud = {n: np.float32(-90.0 / max(np.linalg.norm(a), 1e-3)) * a for n, a in head.items()}
        given = {**before, **loud}
        return {name: given[name] - start[name] for name in start}

    return fakes.update(change)


@pytest.fixture(scope="module")
def poisoned(tiny_federation: TinyFederation, tmp_path_factory: pytest.TempPathFactory) -> Played:
    """Groups share nothing, so the flipped one's answers are those of a run of such devices."""
    root = tmp_path_factory.mktemp("poisoned")
    homes = {name: root / name for name in ("right", "flipped")}
    for home in homes.values():
        home.mkdir()
    write_rows(homes["right"] / "train.tsv", 240, "poison-train")
    write_rows(homes["right"] / "test.tsv", 400, "poison-test")
    for name in ("train.tsv", "test.tsv"):
        _flip(homes["right"] / name, homes["flipped"] / name)
    players = {n: Player(TinyFederation(tiny_federation.model, d), root) for n, d in homes.items()}
    flipped = players["flipped"].play(*_WORDS)
    faults: dict[int | tuple[int, int], Fault] = {}
    for number in range(1, _ROUNDS + 1):
        answer = next(e for e in flipped.of_round(number) if e.device == _FLIPPED).updates[0]
        faults[number, _FLIPPED] = fakes.update(lambda _old, new=answer: new)  # type: ignore[misc]
    trial = players["right"].play(*_WORDS, f"strategy.num_rounds={_ROUNDS - 1}")
    before = updates.split(trial.outcome.adapter, _GROUPS)[_LOUD]
    faults[_ROUNDS, _LOUD] = _shout(before, before)
    return players["right"].play(*_WORDS, faults=faults)


def _ensemble(bench: Bench, kind: EnsembleConfig, public: Encoded) -> Ensemble:
    config = replace(bench.config, prompt=kind)
    made = ensemble_of(
        config, backbone=bench.backbone, full=bench.full, task=bench.task, public=public
    )
    assert made is not None
    return made


def _said(bench: Bench, adapter: Update, rows: Encoded) -> torch.Tensor:
    """Every member alone, by the wrapping of an ordinary run: log-probabilities [k, N, C]."""
    batch = bench.task.batch(rows, range(len(rows)))
    batch.pop("labels")
    said = []
    for member in updates.split(adapter, _GROUPS):
        bench.full.write(member)
        with torch.inference_mode():
            said.append(bench.full.model(**batch).logits.log_softmax(-1))
    return torch.stack(said)


def _honest_fit(bench: Bench, adapter: Update, public: Encoded, kind: EnsembleFitted) -> Combined:
    """The answers to the test rows of what is fitted to the honest members alone."""
    parts = [updates.split(adapter, _GROUPS)[j] for j in _HONEST]
    arrays = [{n: torch.from_numpy(a.copy()) for n, a in part.items()} for part in parts]
    members = [Tensors(own.pop(PROMPT_NAME), own) for own in arrays]
    model, batches = bench.full.bare_model, fitting_batches(bench.task, public, bench.config.seed)
    how = FitSettings(kind.combiner, kind.lr, kind.epochs, kind.hidden)
    fitted = FITS[how.kind](hear(model, members, batches), how, bench.config.seed)
    batch = bench.task.batch(bench.test, range(len(bench.test)))
    with torch.inference_mode():
        return fitted.answer(model, batch, hear(model, members, [batch]).said[0])


def _honest_accuracy(bench: Bench, adapter: Update, public: Encoded, kind: EnsembleConfig) -> float:
    test, weights = _said(bench, adapter, bench.test)[_HONEST], None
    match kind:
        case EnsembleFitted():
            answer = _honest_fit(bench, adapter, public, kind)
            return float((answer.classes == torch.tensor(bench.test.targets)).double().mean())
        case EnsembleWeighted(eta=eta):
            own = _said(bench, adapter, public)[_HONEST]
            rows = torch.arange(len(public))
            losses = -own[:, rows, torch.tensor(public.targets)].double().sum(-1)
            weights = exponential_weights(losses, eta)
    answer = combine(kind.combiner, test, weights)
    return float((answer.classes == torch.tensor(bench.test.targets)).double().mean())


@pytest.mark.parametrize("kind", _KINDS, ids=lambda kind: type(kind).__name__)
def test_hostile_groups_cost_a_point_at_most(poisoned: Played, kind: EnsembleConfig) -> None:
    bench, adapter = poisoned.bench, poisoned.outcome.adapter
    public = bench.task.encode(load_material(bench.config).public)
    ensemble = _ensemble(bench, kind, public)
    found = ensemble.measure(bench.full.bare_model, adapter, bench.test)
    honest = _honest_accuracy(bench, adapter, public, kind)
    assert honest > 0.5
    assert found.ensemble >= honest - MAX_DROP
    entry = ensemble.entry(adapter, bench.test, found)
    # the median of an even number may be the better for one that is flipped; then that one stays
    assert {str(_LOUD)} <= entry["left_out"].keys() <= {str(_FLIPPED), str(_LOUD)}
    assert set(entry["left_out"].values()) <= {"knows-nothing", "harms-ensemble"}
    assert (entry["screened_on"], entry["fit_failed"]) == (len(public), None)


def test_without_public_rows_the_loud_group_decides(poisoned: Played) -> None:
    """Its head is legal, and the geometric mean is what the warning says."""
    bench, adapter = poisoned.bench, poisoned.outcome.adapter
    nothing = bench.task.encode(load_material(bench.config).public.take(np.arange(0)))
    ensemble = _ensemble(bench, EnsembleLogitMean(), nothing)
    found = ensemble.measure(bench.full.bare_model, adapter, bench.test)
    entry = ensemble.entry(adapter, bench.test, found)
    assert (entry["left_out"], entry["screened_on"]) == ({}, 0)
    public = bench.task.encode(load_material(bench.config).public)
    assert found.ensemble < _honest_accuracy(bench, adapter, public, EnsembleMean()) - 0.2


@pytest.fixture
def warnings_of(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    with caplog.at_level(logging.WARNING, "deft"):
        yield caplog


@pytest.mark.parametrize(
    ("how", "fraction", "warned"),
    [("mean", 0, True), ("logit_mean", 0, True), ("vote", 0, False), ("mean", 0.1, False)],
)
def test_members_nobody_screens_are_warned_of(
    tiny_federation: TinyFederation,
    warnings_of: pytest.LogCaptureFixture,
    how: str,
    fraction: float,
    warned: bool,
) -> None:
    words = (*_WORDS, f"prompt=ensemble_{how}", f"data.public_fraction={fraction}")
    require_prompts(load_config(tiny_federation.overrides(*words)))
    text = f"data.public_fraction=0: nobody screens the members of prompt=ensemble_{how}"
    assert (text in warnings_of.text) == warned
