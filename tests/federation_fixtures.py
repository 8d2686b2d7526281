"""A federation so small that whole rounds take milliseconds: a tiny BERT and a table of words.

It is used as a user would use it, through ``model=local data=local`` and override strings.
"""

import csv
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest

from fl_app import wire
from fl_app.bench import Bench, prepare
from fl_app.client_app import app
from fl_app.config import load_config
from fl_app.job import Outcome, federate
from fl_app.seeding import generator
from fl_app.updates import Update
from fl_app.variants import as_reference
from tests.fakes import Exchange, Fault, FaultyGrid
from tests.fixtures_models import write_checkpoint

CLASSES = ("lamp", "music", "timer", "weather")
NUM_TRAIN, NUM_TEST = 96, 40
NUM_DEVICES, NUM_ROUNDS = 4, 2
ALL_DEVICES = list(range(NUM_DEVICES))
SKEW = "data.partition.kind=quantity"  # devices of 1, 2, 3, 4 shares: no two weights are equal
_WORDS_PER_CLASS = 10
_BELONG = {"strategy=gradient_download": "strategy.emulator"} | dict.fromkeys(
    ("peft=prompt", "peft=bottleneck", "peft=deep_prompt"), "peft"
)
"""A choice, and what the words it replaces begin with."""


def write_rows(path: Path, num_rows: int, *stream: int | str) -> Path:
    """Writes a table of (text, label): each class prefers its own ten words of the vocabulary."""
    rng = generator(0, "tiny-rows", *stream)
    with path.open("w", newline="") as file:
        table = csv.writer(file, delimiter="\t")
        table.writerow(["text", "label"])
        for row in range(num_rows):
            label = row % len(CLASSES)
            own = label * _WORDS_PER_CLASS + rng.integers(_WORDS_PER_CLASS, size=rng.integers(3, 8))
            text = " ".join(f"w{word}" for word in own)
            table.writerow([text, CLASSES[label]])
    return path


@dataclass(frozen=True)
class TinyFederation:
    """A model folder, a data folder, and the overrides that use them."""

    model: Path
    data: Path

    def rows(self) -> list[str]:
        """Returns the training rows as they stand in the file."""
        return (self.data / "train.tsv").read_text().splitlines()[1:]

    def overrides(self, *more: str) -> str:
        """Returns an override string; later words win."""
        return shlex.join(self.words(*more))

    def words(self, *more: str) -> list[str]:
        """Returns overrides one by one; those of a choice that ``more`` replaces are left out."""
        unfit = [lead for word, lead in _BELONG.items() if word in more]
        return [word for word in self._plain() if not word.startswith(tuple(unfit))] + [*more]

    def _plain(self) -> list[str]:
        return [
            "model=local",
            f"model.path={self.model}",
            "model.max_length=12",
            "data=local",
            f"data.path={self.data}",
            "data.partition.kind=iid",
            f"federation.num_devices={NUM_DEVICES}",
            f"strategy.num_rounds={NUM_ROUNDS}",
            "strategy.references=[]",
            "strategy.emulator.left=1",
            "strategy.emulator.middle=1",
            "strategy.emulator.right=1",
            "strategy.emulator.distil.steps=0",
            "data.public_fraction=0",
            "peft=lora",
            "peft.rank=2",
            "peft.targets=[]",
            "finetune.batch_size=8",
            "finetune.max_steps=1",
            "finetune.lr=0.01",
            "finetune.head_lr=0.05",
            "finetune.eps=1e-8",
            "finetune.logit_adjustment=0",
        ]


@dataclass(frozen=True)
class Played:
    """What a federation left behind, and what crossed the wire."""

    bench: Bench
    start: Update
    outcome: Outcome
    grid: FaultyGrid

    def of_round(self, number: int) -> list[Exchange]:
        """Exchanges of one round, by device."""
        found = [exchange for exchange in self.grid.exchanges if exchange.round == number]
        return sorted(found, key=lambda exchange: exchange.device)

    def dropped(self, number: int) -> dict[str, list[int]]:
        """Devices dropped in one round, by reason."""
        record = next(r for r in self.outcome.rounds if r.round == number)
        return {reason: list(devices) for reason, devices in record.dropped.items()}

    def devices(self, number: int) -> list[int]:
        """Devices aggregated in one round."""
        return list(next(r for r in self.outcome.rounds if r.round == number).devices)


@dataclass
class Player:
    """Runs federations; a prepared server is kept and reset, for loading takes most of the time."""

    tiny: TinyFederation
    warm_cache: Path
    _benches: dict[str, tuple[Bench, Update]] = field(default_factory=dict)

    def bench(self, overrides: str, reference: str = "") -> tuple[Bench, Update]:
        """Returns a prepared server at its starting adapter, and a copy of that adapter."""
        key = f"{reference}: {overrides}"
        if key not in self._benches:
            bench = prepare(as_reference(load_config(overrides), reference))
            self._benches[key] = bench, bench.full.read()
        bench, start = self._benches[key]
        bench.resize(bench.allocation.server)  # a rule may have cut it
        bench.full.write(start)
        return bench, {name: array.copy() for name, array in start.items()}

    def play(
        self,
        *more: str,
        faults: Mapping[int | tuple[int, int], Fault] | None = None,
        shuffle: int | None = None,
        num_nodes: int | None = None,
        node_config: Mapping[int, Mapping[str, Any]] | None = None,
        reference: str = "",
        warm: bool = False,
        measure_rounds: bool = False,
    ) -> Played:
        """Runs one federation to its end.

        ``warm`` devices share one folder with those of earlier runs: they hold the emulator already
        and their process is still there, which is faster.
        """
        overrides = self.tiny.overrides(*more)
        bench, start = self.bench(overrides, reference)
        nodes = num_nodes or bench.config.federation.num_devices
        grid = FaultyGrid(
            app,
            num_nodes=nodes,
            run_config={"overrides": overrides, "reference": reference},
            faults=faults,
            shuffle=shuffle,
            node_config=self._warmed(nodes) if warm else node_config,
        )
        # a round is over in milliseconds, so nobody needs a second to join
        with grid, patch.multiple("strategies.roster", _SETTLE_S=0.02, _POLL_S=0.01):
            outcome = federate(grid, bench, measure_rounds=measure_rounds)
        return Played(bench, start, outcome, grid)

    def _warmed(self, num_nodes: int) -> dict[int, dict[str, str]]:
        return {partition: {"cache-dir": str(self.warm_cache)} for partition in range(num_nodes)}


@pytest.fixture(scope="session")
def tiny_federation(tmp_path_factory: pytest.TempPathFactory) -> TinyFederation:
    """A tiny BERT without a head for these classes, and 96 + 40 rows."""
    root = tmp_path_factory.mktemp("federation")
    data = root / "data"
    data.mkdir()
    write_rows(data / "train.tsv", NUM_TRAIN, "train")
    write_rows(data / "test.tsv", NUM_TEST, "test")
    model = write_checkpoint(root / "bert", "bert", "sequence_classification")
    return TinyFederation(model, data)


@pytest.fixture(scope="session")
def player(tiny_federation: TinyFederation, tmp_path_factory: pytest.TempPathFactory) -> Player:
    """Runs tiny federations."""
    return Player(tiny_federation, tmp_path_factory.mktemp("warm-cache"))


def fedavg64(start: Update, updates: Sequence[Update], weights: Sequence[float]) -> Update:
    """Hand-written FedAvg in float64: start + sum_k w_k update_k / sum_k w_k."""
    total = float(sum(weights))
    return {
        name: start[name].astype(np.float64)
        + sum(w / total * u[name].astype(np.float64) for w, u in zip(weights, updates, strict=True))
        for name in start
    }


def assert_float32_mean(
    given: Update, wanted: Mapping[str, np.ndarray], start: Update, updates: Sequence[Update]
) -> None:
    """Checks a mean of K float32 adapters against float64.

    Each of the K adapters is rounded once (start + update), multiplied by a rounded weight and
    added up: at most K + 3 roundings of relative size eps / 2, each of at most the largest adapter.
    """
    assert given.keys() == wanted.keys()
    for name, array in given.items():
        largest = max(float(np.abs(start[name] + u[name]).max()) for u in updates)
        bound = (len(updates) + 3) * np.finfo(np.float32).eps / 2 * largest
        assert np.abs(array - wanted[name]).max() <= bound
    moved = max(float(np.abs(given[name] - start[name]).max()) for name in given)
    assert moved > 0  # a federation that does nothing would pass every mean


def num_examples(exchange: Exchange) -> int:
    """Returns the number of examples a device says it tuned on."""
    return int(exchange.received[0].content.metric_records[wire.METRICS][wire.NUM_EXAMPLES])  # type: ignore[arg-type]


def assert_round_mean(played: Played, number: int, start: Update, survivors: list[int]) -> None:
    """The adapter is the float64 mean of the survivors' updates, weighted by examples."""
    chosen = [e for e in played.of_round(number) if e.device in survivors]
    sent = [exchange.updates[0] for exchange in chosen]
    wanted = fedavg64(start, sent, [num_examples(exchange) for exchange in chosen])
    assert_float32_mean(played.outcome.adapter, wanted, start, sent)


def padded_mean(played: Played, *, all_weights: bool) -> Update:
    """One round by hand, unit by unit in float64; what devices sent is what they were asked for."""
    exchanges = played.of_round(1)
    weights = [
        float(e.received[0].content.metric_records[wire.METRICS][wire.NUM_EXAMPLES])
        for e in exchanges
    ]
    result = {}
    for name, start in played.start.items():
        total, held = np.zeros(start.shape), np.zeros(start.shape)
        for exchange, weight in zip(exchanges, weights, strict=True):
            sent = exchange.updates[0].get(name)
            if sent is not None:
                place = tuple(slice(size) for size in sent.shape)
                total[place] += weight * sent.astype(np.float64)
                held[place] += weight
        divisor = np.full(start.shape, sum(weights)) if all_weights else np.maximum(held, 1)
        result[name] = start + total / divisor
    return result
