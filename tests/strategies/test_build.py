"""Every choice of the configuration has its object, and an unknown one is refused by name."""

import dataclasses
from unittest.mock import create_autospec

import pytest

from fl_app.allocation import Allocation
from fl_app.config import choices, load_config
from fl_app.errors import ConfigError
from fl_app.ledger import Ledger
from fl_app.schema import ChannelConfig, Config, StrategyConfig
from strategies.base import FederatedDeft
from strategies.build import build_strategy
from strategies.build_uplink import build_uplink
from strategies.emulator_download import EmulatorDownload
from strategies.feature_server import FeatureServer
from strategies.lora_space import FactorSpace, ProductSpace
from strategies.roster import Roster
from strategies.scoring import Unscored


def _build(config: Config, num_devices: int = 3) -> FederatedDeft:
    return build_strategy(
        config,
        roster=Roster({device: 2**63 + device for device in range(num_devices)}),
        ledger=Ledger(),
        layouts=Allocation(server={}),
        scoring=Unscored(),
        blob=b"emulator",
        server=create_autospec(FeatureServer, instance=True),  # emulator download needs none
    )


@pytest.mark.parametrize("name", choices("strategy"))
def test_every_strategy_of_the_folder_is_built(name: str) -> None:
    assert isinstance(_build(load_config(f"strategy={name}")), FederatedDeft)


@pytest.mark.parametrize("name", choices("channel"))
def test_every_channel_of_the_folder_is_built(name: str) -> None:
    uplink = build_uplink(load_config(f"channel={name}").channel, 0)
    assert uplink.is_radio == (name != "ideal")


@pytest.mark.parametrize("scheme", ["zf", "truncated", "optimal", "cotaf", "phase", "obda"])
def test_every_scheme_of_the_air_is_built(scheme: str) -> None:
    config = load_config(f"channel=aircomp channel.scheme={scheme}")
    assert build_uplink(config.channel, 0).is_radio


@pytest.mark.parametrize(
    ("word", "space"),
    [
        ("peft.aggregation=freeze-a", FactorSpace),
        ("peft.aggregation=factors", FactorSpace),
        ("peft.aggregation=exact", ProductSpace),
        ("peft.aggregation=alternate", FactorSpace),
        ("peft=head", FactorSpace),
        ("peft=prompt", FactorSpace),
    ],
)
def test_peft_chooses_the_space(word: str, space: type) -> None:
    assert type(_build(load_config(word))._space) is space


@pytest.mark.parametrize(("wanted", "drawn"), [("null", 3), ("2", 2), ("8", 3)])
def test_no_more_devices_are_drawn_than_there_are(wanted: str, drawn: int) -> None:
    """Fewer real devices may have joined than the configuration hoped for."""
    config = load_config(f"federation.num_devices=9 federation.devices_per_round={wanted}")
    assert _build(config)._devices_per_round == drawn


def test_the_emulator_is_named_by_its_content() -> None:
    strategy = _build(load_config(""))
    assert isinstance(strategy, EmulatorDownload)
    # sha256 of b"emulator", from sha256sum
    assert strategy.model_hash == (
        "91c477bfb062ddf0b760b33b0a8929df7931d7f4ec23fd354fc987d0a770e1b2"
    )


def test_unknown_kinds_are_refused() -> None:
    with pytest.raises(ConfigError, match="ChannelConfig"):
        build_uplink(ChannelConfig(), 0)
    config = dataclasses.replace(load_config(""), strategy=StrategyConfig())
    with pytest.raises(ConfigError, match="StrategyConfig"):
        _build(config)


def test_an_unknown_rule_is_refused_when_the_strategy_is_built() -> None:
    with pytest.raises(ConfigError, match="choose one of fedavg"):
        _build(load_config("strategy.server_rule.name=best"))
