"""Jobs that cannot be: named before anything is loaded or sent."""

import dataclasses

import pytest

from fl_app.bench import model_source, prepare
from fl_app.config import load_config
from fl_app.errors import ConfigError, DataError, DeftError, ModelError
from fl_app.schema import HubModel, LocalModel, ModelConfig, StrategyConfig
from tests.federation_fixtures import (
    Player,
    player,
    tiny_federation,
)

__all__ = ["player", "tiny_federation"]


@pytest.mark.parametrize(
    ("word", "error", "says"),
    [
        ("model.max_length=64", ModelError, r"model\.max_length=64.*32 positions.*set it to 32"),
        ("data.partition.kind=column", ConfigError, r"data\.partition\.column"),
        (
            "data.partition.kind=column data.partition.column=nope",
            DataError,
            r"data\.partition\.column='nope'.*columns are: text, label",
        ),
        ("federation.num_devices=97", DataError, "97"),
        ("strategy.emulator.middle=4", ModelError, r"strategy\.emulator\.middle=4.*3 blocks"),
        ("strategy.emulator.left=5", ModelError, r"strategy\.emulator\.left=5.*model's 5"),
        ("data.path=/no/where", DataError, r"data\.path.*/no/where"),
        ("data.label_column=category", DataError, r"data\.label_column='category'.*text, label"),
        ("model.path=/no/model", ModelError, r"/no/model.*model\.path"),
        ("peft.targets=[nothing]", ModelError, r"peft\.targets=\['nothing'\]"),
        ("strategy.emulator.distil.steps=3", ConfigError, r"data\.public_fraction above 0"),
        ("model.pooler=standardised", ModelError, r"data\.public_fraction above 0"),
    ],
)
def test_what_does_not_fit_is_named_before_anything_is_sent(
    player: Player, word: str, error: type[DeftError], says: str
) -> None:
    with pytest.raises(error, match=says):
        prepare(load_config(player.tiny.overrides(*word.split())))


def test_a_rule_that_does_not_exist_is_named_before_anything_is_loaded(player: Player) -> None:
    words = ("strategy.server_rule.name=best", "model.path=/no/model")
    with pytest.raises(ConfigError, match=r"strategy\.server_rule\.name='best'.*fedavg"):
        prepare(load_config(player.tiny.overrides(*words)))


def test_models_are_found_where_the_configuration_says() -> None:
    assert model_source(LocalModel(path="/a/b")) == "/a/b"
    assert model_source(HubModel(name="org/name")) == "org/name"
    with pytest.raises(ConfigError, match="ModelConfig"):
        model_source(ModelConfig())


def test_a_strategy_without_a_server_side_is_refused(player: Player) -> None:
    config = dataclasses.replace(load_config(player.tiny.overrides()), strategy=StrategyConfig())
    with pytest.raises(ConfigError, match="StrategyConfig has no server side"):
        prepare(config)
