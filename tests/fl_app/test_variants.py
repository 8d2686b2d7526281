"""Comparison runs differ from the run they are compared with in one thing each."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM

from fl_app import wire
from fl_app.bench import prepare
from fl_app.config import load_config
from fl_app.errors import ConfigError
from fl_app.evaluate import evaluate
from fl_app.fomo.package import content_hash, unpack
from fl_app.references import run_reference
from fl_app.schema import Config, HeadConfig
from fl_app.variants import REFERENCES, as_reference
from tests.ensemble_fixtures import language_words
from tests.federation_fixtures import NUM_DEVICES, Played, Player, player, tiny_federation

__all__ = ["player", "tiny_federation"]


def _config(*words: str) -> Config:
    return load_config(" ".join(("strategy.emulator.bits=4", "strategy.num_rounds=3", *words)))


def _differences(left: Any, right: Any, path: str = "") -> set[str]:
    """Returns the paths at which two nested dictionaries differ."""
    if not (isinstance(left, dict) and isinstance(right, dict)):
        return set() if left == right else {path}
    keys = left.keys() | right.keys()
    return {
        place
        for key in keys
        for place in _differences(left.get(key), right.get(key), f"{path}.{key}".lstrip("."))
    }


def _changes(name: str, config: Config) -> set[str]:
    before = dataclasses.asdict(config)
    changed = as_reference(config, name)
    assert dataclasses.asdict(config) == before  # the run's own configuration is left alone
    return _differences(before, dataclasses.asdict(changed))


def test_the_run_itself_is_no_variant() -> None:
    config = _config()
    assert as_reference(config, "") is config


def test_the_full_federation_differs_in_the_emulator_alone() -> None:
    places = _changes("federated_full", _config("strategy.emulator.distil.steps=5"))
    assert places == {
        f"strategy.emulator.{key}" for key in ("middle", "bits", "wire_dtype", "distil.steps")
    }
    changed: Any = as_reference(_config(), "federated_full").strategy
    assert (changed.emulator.middle, changed.emulator.bits) == (-1, None)


def test_the_frozen_model_tunes_its_head_alone() -> None:
    config = _config()
    changed = as_reference(config, "frozen")
    assert isinstance(changed.peft, HeadConfig)
    full = as_reference(config, "federated_full")
    assert changed == dataclasses.replace(full, peft=HeadConfig())


def test_the_centralised_run_is_one_device_with_all_rows() -> None:
    config = _config("federation.devices_per_round=2", "strategy.server_rule.name=fedmedian")
    changed = as_reference(config, "centralised")
    # The rule moves an adapter after many devices; one that would need seven would fail here.
    assert changed.strategy.server_rule.name == "fedavg"
    assert changed.federation.num_devices == 1
    assert changed.federation.devices_per_round is None
    assert changed.strategy.num_rounds == 1
    assert changed.data.partition.kind == "iid"  # one device: nothing to skew
    assert (changed.seed, changed.peft, changed.model) == (config.seed, config.peft, config.model)


def test_an_unknown_variant_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ConfigError) as error:
        as_reference(_config(), "best")
    assert all(name in str(error.value) for name in ("'best'", *REFERENCES))


def _steps(played: Played) -> int:
    received = [e.received[0] for e in played.grid.exchanges]
    assert not any(message.has_error() for message in received), received[0].error
    metrics = [message.content.metric_records[wire.METRICS] for message in received]
    return sum(int(record[wire.STEPS]) for record in metrics)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "words",
    [
        ("finetune.max_steps=1",),  # 4 devices, 2 rounds: 8
        ("finetune.max_steps=null",),  # 24 rows each in batches of 8: 3 x 4 x 2
        ("finetune.max_steps=5",),  # more than an epoch has
        ("finetune.max_steps=null", "federation.devices_per_round=2"),
    ],
)
def test_centralised_tuning_makes_as_many_local_steps(player: Player, words: list[str]) -> None:
    """Where batches are full; a skewed federation's half-filled batches count as steps, too."""
    federated, central = player.play(*words), player.play(*words, reference="centralised")
    assert _steps(central) == _steps(federated) > 0
    (exchange,) = central.grid.exchanges
    rows = int(
        exchange.received[0].content.metric_records[wire.METRICS][wire.NUM_EXAMPLES]  # type: ignore[arg-type]
    )
    assert rows == len(player.tiny.rows())


def test_full_devices_hold_the_whole_model_exactly(player: Player) -> None:
    played = player.play(reference="federated_full")
    assert played.bench.piece.split.is_identity
    package = unpack(played.bench.piece.blob)
    theirs, ours = package.model.state_dict(), played.bench.backbone.model.state_dict()
    plain = {
        name.replace(".base_layer", "").replace(".original_module", ""): tensor
        for name, tensor in ours.items()
        if "lora_" not in name and "modules_to_save" not in name
    }
    assert theirs.keys() == plain.keys()
    assert all((theirs[name] == plain[name]).all() for name in theirs)
    sent = wire.read_order(played.grid.exchanges[0].sent)
    assert sent.model_hash == content_hash(played.bench.piece.blob)
    assert played.devices(1) == list(range(NUM_DEVICES))


@pytest.mark.parametrize("name", REFERENCES)
def test_a_comparison_run_gives_one_figure_and_the_same_each_time(
    player: Player, name: str
) -> None:
    overrides = player.tiny.overrides("strategy.num_rounds=1")
    measure = run_reference(name, overrides)
    assert 0 <= measure <= 1
    if name == "centralised":
        assert run_reference(name, overrides) == measure


@pytest.mark.parametrize("peft", ["lora", "deep_prompt", "bottleneck", "prompt"])
def test_a_frozen_language_model_is_the_checkpoint(tmp_path: Path, peft: str) -> None:
    """Whatever is tuned in the run: virtual tokens change outputs before the first step."""
    words = ("data.partition.kind=iid", "strategy.emulator.distil.steps=0", f"peft={peft}")
    overrides = " ".join([*language_words(tmp_path), *words])
    bench = prepare(load_config(overrides))
    model = AutoModelForCausalLM.from_pretrained(bench.config.model.path).eval()
    assert run_reference("frozen", overrides) == evaluate(model, bench.task, bench.test)
