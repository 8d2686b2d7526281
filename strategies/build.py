"""Configuration to strategy: the only place on the server that branches on its type."""

from functools import partial
from typing import Any

from fl_app.block_times import BlockTimes
from fl_app.errors import ConfigError
from fl_app.ledger import Ledger
from fl_app.prompts.contacts import Contacts
from fl_app.schema import (
    Config,
    ConnectionConfig,
    EmulatorDownloadStrategy,
    EnsembleConfig,
    GradientDownloadStrategy,
    ServerRuleConfig,
    SizedConfig,
    TransferPrompt,
)
from fl_app.seed_pool import SeedPool
from fl_app.settings import aggregation_of, cycle_of, num_members_of
from fl_app.wireless.units import dbm_to_watt
from strategies.base import FederatedDeft
from strategies.build_uplink import build_uplink
from strategies.channel_aware import ChannelLayouts, ChannelScheduler
from strategies.combine import Combine, Whole, build_combine
from strategies.crossings import Crossings
from strategies.emulator_download import EmulatorDownload
from strategies.feature_cache import FeatureCache
from strategies.feature_server import FeatureServer
from strategies.gradient_download import GradientDownload
from strategies.gradient_round import GradientPlan
from strategies.groups import Cycles, Groups, deal
from strategies.judge import Require, require_nothing
from strategies.layouts import Layouts
from strategies.lora_space import FactorSpace, LoraSpace, build_space
from strategies.radio_uplink import DigitalUplink
from strategies.roster import Roster
from strategies.round_start import Continued, RoundStart
from strategies.rules import ISOMETRIC, ServerRule
from strategies.scalar_download import ScalarDownload
from strategies.scalar_round import ScalarPlan
from strategies.scalar_server import ScalarServer
from strategies.schedule import BlockScheduler, Scheduler, Unscheduled, blob_bits, class_links
from strategies.scoring import Scoring
from strategies.transfer_download import TransferDownload
from strategies.transfer_phase import SETTLED, TransferTools
from strategies.transport import build_transport
from strategies.uplink import Uplink


def build_rule(rule: ServerRuleConfig) -> ServerRule:
    """Turns the choice of a rule into the rule.

    Raises:
        ConfigError: unknown rule or option.
    """
    return ServerRule(rule.name, rule.options)


def num_per_round(config: Config, roster: Roster) -> int:
    """Returns how many devices a round has: fewer may have joined than were hoped for."""
    return min(config.federation.devices_per_round or len(roster.devices), len(roster.devices))


def most_steps(config: Config) -> int:
    """Returns how many local steps a device of gradient download makes in a round at most.

    Raises:
        ConfigError: there is no limit.
    """
    if config.finetune.max_steps is None:
        raise ConfigError(
            "finetune.max_steps=null: the server waits for every step of gradient download, and a "
            "device could go on for ever; set a number, devices with fewer rows stop before"
        )
    return config.finetune.max_steps


def _feature_crossings(connection: ConnectionConfig, ledger: Ledger) -> Crossings | None:
    """Returns what books features that cross; None where they travel as bytes."""
    return None if connection.block is None else _crossings(connection, ledger)


def build_groups(config: Config, roster: Roster) -> Groups:
    """Deals the devices: one group, or in a prompt ensemble mostly one for each member."""

    def rules(num_groups: int) -> list[ServerRule]:
        return [build_rule(config.strategy.server_rule) for _ in range(num_groups)]

    devices = roster.devices
    match config.prompt:
        case EnsembleConfig(members_from="joint"):  # everybody tunes all members
            return Groups(dict.fromkeys(devices, 0), rules(1))
        case EnsembleConfig(members_from="snapshots", num_members=int() as cycles):
            return Cycles(devices, rules(cycles), partial(cycle_of, config))
        case _:
            num_groups = num_members_of(config)
            return Groups(deal(devices, num_groups, config.seed), rules(num_groups))


def most_candidates(transfer: TransferPrompt) -> int:
    """Returns how many prompts may be on one trial: its own, those asked for, and their mixture."""
    return 1 + transfer.most + (transfer.mix_temperature is not None)


def _gradient_download(config: Config, *, server: FeatureServer, **common: Any) -> GradientDownload:
    """Returns gradient download by first-order steps, with transfer phases if asked for."""
    match config.prompt:
        case TransferPrompt() as transfer:
            devices = 1 + max(common["roster"].devices)
            tools = TransferTools(
                contacts=Contacts(devices, transfer.contacts, seed=config.seed),
                server=server,
                ledger=common["ledger"],
                timeout_s=common["plan"].timeout_s,
                max_candidates=max(most_candidates(transfer), SETTLED),
                mixes=transfer.mix_temperature is not None,
            )
            return TransferDownload(transfer=transfer, tools=tools, server=server, **common)
        case _:
            return GradientDownload(server=server, **common)


def _crossings(connection: ConnectionConfig, ledger: Ledger) -> Crossings:
    """Returns what books the neural connections of a run."""
    back_dbm = connection.gradient_tx_power_dbm
    return Crossings(
        ledger=ledger,
        bandwidth_hz=connection.bandwidth_hz,
        tx_power=dbm_to_watt(connection.tx_power_dbm),
        gradient_tx_power=dbm_to_watt(connection.tx_power_dbm if back_dbm is None else back_dbm),
    )


def build_scheduler(
    config: Config, layouts: Layouts, times: BlockTimes | None, uplink: Uplink
) -> Scheduler:
    """Turns ``strategy.schedule`` into what plans rounds; without one ``layouts`` say all."""
    match layouts, uplink:
        case ChannelLayouts(), DigitalUplink():
            return ChannelScheduler(layouts, links=uplink.links, payload_bits=uplink.payload_bits)
    match config.strategy, times:
        case EmulatorDownloadStrategy(schedule=way), BlockTimes():
            match uplink:
                case DigitalUplink():
                    carries: dict[str, Any] = {
                        "links": uplink.links,
                        "payload_bits": uplink.payload_bits,
                    }
                case _:
                    carries = {"links": class_links(times), "payload_bits": blob_bits}
            return BlockScheduler(way=way, times=times, seed=config.seed, **carries)
        case _:
            return Unscheduled(layouts)


def build_strategy(
    config: Config,
    *,
    roster: Roster,
    ledger: Ledger,
    layouts: Layouts,
    scoring: Scoring,
    blob: bytes,
    server: FeatureServer | ScalarServer | None,
    start: RoundStart | None = None,
    require: Require = require_nothing,
    times: BlockTimes | None = None,
) -> FederatedDeft:
    """Turns the configuration into the server side of a federation.

    Args:
        config: the run's configuration.
        roster: its devices.
        ledger: books what is sent.
        layouts: which device tunes which units.
        scoring: what becomes of units between rounds.
        blob: what devices download once.
        server: computes on features; only for gradient download, where it says what is sent back.
        start: what devices begin a round with; None for the server's adapter.
        require: what a device tuned must pass, beside being bounded.
        times: what groups of blocks take; None without a schedule.
    """
    uplink = build_uplink(config.channel, config.seed)
    scheduler = build_scheduler(config, layouts, times, uplink)
    space: LoraSpace = FactorSpace()
    combine: Combine = Whole()
    match config.peft:
        case SizedConfig() as peft:
            space = build_space(
                aggregation_of(peft),
                peft.size,
                layouts.server,
                has_cores=config.strategy.server_rule.name in ISOMETRIC,
            )
            combine = build_combine(peft.combine, is_shared=scheduler.is_shared)
    common: dict[str, Any] = {
        "blob": blob,
        "roster": roster,
        "uplink": uplink,
        "space": space,
        "groups": build_groups(config, roster),
        "ledger": ledger,
        "scheduler": scheduler,
        "scoring": scoring,
        "combine": combine,
        "start": start or Continued(),
        "require": require,
        "aggregation": aggregation_of(config.peft),
        "devices_per_round": num_per_round(config, roster),
        "timeout_s": config.federation.timeout_s,
        "seed": config.seed,
    }
    match config.strategy, server:
        case EmulatorDownloadStrategy(), _:
            return EmulatorDownload(crossings=_crossings(config.connection, ledger), **common)
        case GradientDownloadStrategy() as strategy, ScalarServer():
            return ScalarDownload(
                server=server,
                plan=ScalarPlan(
                    labels_at_server=strategy.labels == "server",
                    max_in_flight=strategy.max_in_flight,
                    timeout_s=strategy.exchange_timeout_s,
                    lr=strategy.scalar.lr,
                    eps=strategy.scalar.step,
                    max_steps=most_steps(config),
                ),
                pool=SeedPool(strategy.scalar.num_seeds, config.seed),
                cache=FeatureCache(strategy.scalar.max_cached_mb),
                transport=build_transport(config, strategy, roster, num_per_round(config, roster)),
                **common,
            )
        case GradientDownloadStrategy() as strategy, FeatureServer():
            return _gradient_download(
                config,
                server=server,
                crossings=_feature_crossings(config.connection, ledger),
                plan=GradientPlan(
                    labels_at_server=strategy.labels == "server",
                    shared=strategy.shared_gradient,
                    max_in_flight=strategy.max_in_flight,
                    timeout_s=strategy.exchange_timeout_s,
                    max_steps=most_steps(config),
                    noise_multiplier=strategy.privacy.noise_multiplier,
                    # an epoch has every example once
                    releases=min(config.finetune.epochs, most_steps(config)),
                ),
                transport=build_transport(config, strategy, roster, num_per_round(config, roster)),
                **common,
            )
        case _:
            raise ConfigError(f"strategy {type(config.strategy).__name__} has no server side")
