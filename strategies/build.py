"""Configuration to strategy: the only place on the server that branches on its type."""

import dataclasses
from typing import Any

import numpy as np

from fl_app.errors import ConfigError, RunError
from fl_app.ledger import Ledger
from fl_app.schema import (
    AircompChannel,
    ChannelConfig,
    Config,
    DigitalChannel,
    EmulatorDownloadStrategy,
    GradientDownloadStrategy,
    IdealChannel,
    LoraConfig,
    PromptTuningConfig,
    RadioChannel,
    ServerRuleConfig,
)
from fl_app.seed_pool import SeedPool
from fl_app.settings import aggregation_of
from fl_app.wireless.cell import Cell
from fl_app.wireless.channel import Fading
from fl_app.wireless.digital import Ofdma
from fl_app.wireless.power import (
    CotafScaling,
    OptimalThreshold,
    PhaseOnly,
    PowerControl,
    TruncatedInversion,
    ZeroForcing,
)
from fl_app.wireless.radio import Radio
from fl_app.wireless.units import dbm_to_watt, noise_power_from_tx_snr
from strategies.base import FederatedDeft
from strategies.emulator_download import EmulatorDownload
from strategies.feature_cache import FeatureCache
from strategies.feature_server import FeatureServer
from strategies.gradient_download import GradientDownload
from strategies.gradient_round import GradientPlan
from strategies.lora_space import FactorSpace, LoraSpace, build_space
from strategies.radio_uplink import AircompUplink, DigitalUplink, VoteUplink
from strategies.roster import Roster
from strategies.rules import COMPARING, ServerRule
from strategies.scalar_download import ScalarDownload
from strategies.scalar_round import ScalarPlan
from strategies.scalar_server import ScalarServer
from strategies.transport import build_transport
from strategies.uplink import IdealUplink, Uplink


def build_uplink(channel: ChannelConfig, seed: int) -> Uplink:
    """Turns the channel choice into an uplink."""
    match channel:
        case IdealChannel():
            return IdealUplink()
        case AircompChannel(scheme="obda"):
            return VoteUplink(
                radio=_radio(channel, seed, channel.num_antennas),
                control=TruncatedInversion(gain_floor=channel.gain_floor),
                bandwidth_hz=channel.bandwidth_hz,
                step=channel.vote_step,
            )
        case AircompChannel():
            peak = dbm_to_watt(channel.tx_power_dbm + channel.peak_to_mean_db)
            return AircompUplink(
                radio=_radio(channel, seed, channel.num_antennas),
                control=_power_control(channel),
                bandwidth_hz=channel.bandwidth_hz,
                peak_power=peak,
            )
        case DigitalChannel():
            setup = Ofdma(
                bits=channel.bits,
                bandwidth_hz=channel.bandwidth_hz,
                target_bits_per_use=channel.target_bits_per_use,
                gain_floor=channel.gain_floor,
                max_uses_per_real=channel.max_uses_per_real,
            )
            return DigitalUplink(radio=_radio(channel, seed, 1), setup=setup)
        case _:
            raise ConfigError(f"channel of type {type(channel).__name__} has no uplink")


def _power_control(channel: AircompChannel) -> PowerControl:
    match channel.scheme:
        case "zf":
            return ZeroForcing()
        case "truncated":
            return TruncatedInversion(gain_floor=channel.gain_floor)
        case "optimal":
            return OptimalThreshold()
        case "cotaf":
            return CotafScaling(gain_floor=channel.gain_floor)
        case "phase":
            return PhaseOnly()
        case _:
            raise ConfigError(f"channel.scheme={channel.scheme!r} has no power control")


def _radio(channel: RadioChannel, seed: int, num_antennas: int) -> Radio:
    """Returns the fading channel; in a cell distances and thermal noise set the SNR."""
    power = dbm_to_watt(channel.tx_power_dbm)
    cell = None
    noise_power = noise_power_from_tx_snr(channel.tx_snr_db, power)
    if channel.placement == "cell":
        cell = Cell(bandwidth_hz=channel.bandwidth_hz, **dataclasses.asdict(channel.cell))
        noise_power = cell.noise_power_w()
    fading = Fading(
        kind=channel.fading,  # type: ignore[arg-type]  # the schema has checked it
        num_subcarriers=channel.num_subcarriers,
        num_taps=channel.num_taps,
        rician_k=channel.rician_k,
        correlation=channel.correlation,
    )
    return Radio(
        fading=fading,
        seed=seed,
        power=power,
        noise_power=noise_power,
        csi_error=channel.csi_error,
        jitter_rad=channel.phase_jitter_rad,
        num_antennas=num_antennas,
        cell=cell,
    )


def build_rule(rule: ServerRuleConfig) -> ServerRule:
    """Turns the choice of a rule into the rule.

    Raises:
        ConfigError: unknown rule or option.
    """
    return ServerRule(rule.name, rule.options)


def require_enough(config: Config, roster: Roster) -> None:
    """Tries the server rule on as many updates as a round has; Flower must be running.

    Raises:
        ConfigError: the rule needs more.
    """
    rule, num_devices = build_rule(config.strategy.server_rule), _per_round(config, roster)
    probe = {"probe": np.zeros(1, np.float32)}
    rule.announce(1, probe)
    try:
        rule.apply(1, [probe] * num_devices, np.ones(num_devices))
    except RunError as error:
        raise ConfigError(
            f"{error}; choose another strategy.server_rule, or more devices per round"
        ) from error


def _per_round(config: Config, roster: Roster) -> int:
    """Returns how many devices a round has: fewer may have joined than were hoped for."""
    return min(config.federation.devices_per_round or len(roster.devices), len(roster.devices))


def require_fit(config: Config) -> None:
    """Checks that channel, LoRA space and rule go together.

    Raises:
        ConfigError: the channel hands over one mean, and something needs every device's update.
    """
    match config.channel, config.peft:
        case RadioChannel(), LoraConfig(aggregation="exact"):
            raise ConfigError(
                "peft.aggregation=exact needs every device's factors, and this channel hands over "
                "one mean; choose peft.aggregation=freeze-a or alternate, or channel=ideal"
            )
    match config.strategy:
        case GradientDownloadStrategy() as strategy:
            _require_variant(config, strategy)
    rule = config.strategy.server_rule
    match config.channel:
        case RadioChannel() if rule.name in COMPARING:
            raise ConfigError(
                f"strategy.server_rule.name={rule.name} compares devices, and this channel hands "
                "over one mean; choose a rule that averages, or channel=ideal"
            )


def _require_variant(config: Config, strategy: GradientDownloadStrategy) -> None:
    """Checks that variant and layout of the adapter go together."""
    match strategy.variant, config.peft:
        case ("prompt", PromptTuningConfig()) | ("cut" | "lora", LoraConfig()):
            pass
        case ("scalar", LoraConfig(aggregation=aggregation)):
            _require_pairs(config, aggregation)
        case ("prompt", _):
            raise ConfigError("strategy.variant=prompt tunes a soft prompt; set peft=prompt")
        case _:
            raise ConfigError(f"strategy.variant={strategy.variant} tunes LoRA; set peft=lora")
    if strategy.shared_gradient and strategy.variant in ("cut", "scalar"):
        raise ConfigError(
            "strategy.shared_gradient=true needs gradients of shared parameters, and there are "
            f"none with strategy.variant={strategy.variant}; choose variant prompt or lora"
        )
    if config.connection.block is not None:
        raise ConfigError(
            "connection.block puts a neural connection inside an emulator; with "
            "strategy=gradient_download set connection.block=null"
        )


def _require_pairs(config: Config, aggregation: str) -> None:
    """Checks that the adapter of every round is a sum over directions."""
    only = "strategy.variant=scalar keeps the adapter as one sum over its directions; "
    rule = config.strategy.server_rule.name
    if rule != "fedavg":
        raise ConfigError(f"{only}strategy.server_rule.name={rule} is no sum, choose fedavg")
    if aggregation not in ("freeze-a", "factors"):
        raise ConfigError(
            f"{only}peft.aggregation={aggregation} is none, choose freeze-a or factors"
        )
    match config.channel:
        case IdealChannel():
            pass
        case _:
            raise ConfigError(f"{only}a radio channel would distort it, choose channel=ideal")


def build_strategy(
    config: Config,
    *,
    roster: Roster,
    ledger: Ledger,
    layout_hash: str,
    blob: bytes,
    server: FeatureServer | ScalarServer | None,
) -> FederatedDeft:
    """Turns the configuration into the server side of a federation.

    Args:
        config: the run's configuration.
        roster: its devices.
        ledger: books what is sent.
        layout_hash: of the server's adapter.
        blob: what devices download once.
        server: computes on features; only for gradient download, where it says what is sent back.
    """
    space: LoraSpace = FactorSpace()
    if isinstance(config.peft, LoraConfig):
        space = build_space(config.peft.aggregation, config.peft.rank)
    common: dict[str, Any] = {
        "roster": roster,
        "uplink": build_uplink(config.channel, config.seed),
        "space": space,
        "rule": build_rule(config.strategy.server_rule),
        "ledger": ledger,
        "layout_hash": layout_hash,
        "aggregation": aggregation_of(config.peft),
        "devices_per_round": _per_round(config, roster),
        "timeout_s": config.federation.timeout_s,
        "seed": config.seed,
    }
    match config.strategy, server:
        case EmulatorDownloadStrategy(), _:
            return EmulatorDownload(emulator=blob, **common)
        case GradientDownloadStrategy() as strategy, ScalarServer():
            return ScalarDownload(
                front=blob,
                server=server,
                plan=ScalarPlan(
                    labels_at_server=strategy.labels == "server",
                    max_in_flight=strategy.max_in_flight,
                    timeout_s=strategy.exchange_timeout_s,
                    lr=strategy.scalar.lr,
                    eps=strategy.scalar.step,
                ),
                pool=SeedPool(strategy.scalar.num_seeds, config.seed),
                cache=FeatureCache(strategy.scalar.max_cached_mb),
                transport=build_transport(config, strategy, roster, _per_round(config, roster)),
                **common,
            )
        case GradientDownloadStrategy() as strategy, FeatureServer():
            return GradientDownload(
                front=blob,
                server=server,
                plan=GradientPlan(
                    labels_at_server=strategy.labels == "server",
                    shared=strategy.shared_gradient,
                    max_in_flight=strategy.max_in_flight,
                    timeout_s=strategy.exchange_timeout_s,
                    max_steps=config.finetune.max_steps,
                ),
                transport=build_transport(config, strategy, roster, _per_round(config, roster)),
                **common,
            )
        case _:
            raise ConfigError(f"strategy {type(config.strategy).__name__} has no server side")
