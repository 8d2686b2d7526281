"""Which choices of the configuration go together, checked before the work."""

import numpy as np

from fl_app.errors import ConfigError, RunError
from fl_app.privacy import require_accountant
from fl_app.schema import (
    Config,
    GradientDownloadStrategy,
    IdealChannel,
    LoraConfig,
    PromptTuningConfig,
    RadioChannel,
)
from strategies.build import build_rule, num_per_round
from strategies.fit_layouts import require_layouts
from strategies.fit_schedule import require_schedule
from strategies.roster import Roster
from strategies.rules import COMPARING


def require_enough(config: Config, roster: Roster) -> None:
    """Tries the server rule on as many updates as a round has; Flower must be running.

    Raises:
        ConfigError: the rule needs more.
    """
    rule, num_devices = build_rule(config.strategy.server_rule), num_per_round(config, roster)
    probe = {"probe": np.zeros(1, np.float32)}
    rule.announce(1, probe)
    try:
        rule.apply(1, [probe] * num_devices, np.ones(num_devices))
    except RunError as error:
        raise ConfigError(
            f"{error}; choose another strategy.server_rule, or more devices per round"
        ) from error


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
    require_schedule(config)
    require_layouts(config)
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
    if strategy.privacy.noise_multiplier > 0:
        require_accountant()
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
