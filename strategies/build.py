"""Configuration to strategy: the only place on the server that branches on its type."""

import numpy as np

from fl_app.errors import ConfigError, RunError
from fl_app.ledger import Ledger
from fl_app.schema import (
    ChannelConfig,
    Config,
    EmulatorDownloadStrategy,
    IdealChannel,
    LoraConfig,
    ServerRuleConfig,
)
from strategies.base import FederatedDeft
from strategies.emulator_download import EmulatorDownload
from strategies.lora_space import FactorSpace, LoraSpace, build_space
from strategies.roster import Roster
from strategies.rules import ServerRule
from strategies.uplink import IdealUplink, Uplink


def build_uplink(channel: ChannelConfig) -> Uplink:
    """Turns the channel choice into an uplink."""
    match channel:
        case IdealChannel():
            return IdealUplink()
        case _:
            raise ConfigError(f"channel of type {type(channel).__name__} has no uplink")


def build_rule(rule: ServerRuleConfig, num_devices: int | None = None) -> ServerRule:
    """Turns the choice of a rule into the rule.

    Args:
        rule: the choice.
        num_devices: devices per round, if known; the rule is tried on that many.

    Raises:
        ConfigError: unknown rule or option, or one that needs more devices.
    """
    if num_devices is not None:
        probe = {"probe": np.zeros(1, np.float32)}
        trial = ServerRule(rule.name, rule.options)
        trial.announce(1, probe)
        try:
            trial.apply(1, [probe] * num_devices, np.ones(num_devices))
        except RunError as error:
            raise ConfigError(
                f"{error}; choose another strategy.server_rule, or more devices per round"
            ) from error
    return ServerRule(rule.name, rule.options)


def build_strategy(
    config: Config, *, roster: Roster, ledger: Ledger, layout_hash: str, emulator: bytes
) -> FederatedDeft:
    """Turns the configuration into the server side of a federation."""
    space: LoraSpace = FactorSpace()
    if isinstance(config.peft, LoraConfig):
        space = build_space(config.peft.aggregation, config.peft.rank)
    drawn = min(config.federation.devices_per_round or len(roster.devices), len(roster.devices))
    match config.strategy:
        case EmulatorDownloadStrategy():
            return EmulatorDownload(
                emulator=emulator,
                roster=roster,
                uplink=build_uplink(config.channel),
                space=space,
                rule=build_rule(config.strategy.server_rule, num_devices=drawn),
                ledger=ledger,
                layout_hash=layout_hash,
                devices_per_round=drawn,
                timeout_s=config.federation.timeout_s,
                seed=config.seed,
            )
        case _:
            raise ConfigError(f"strategy {type(config.strategy).__name__} has no server side")
