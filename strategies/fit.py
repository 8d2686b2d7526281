"""Which choices of the configuration go together, checked before the work."""

import logging
from dataclasses import asdict

import numpy as np

from fl_app.errors import ConfigError, RunError
from fl_app.privacy import require_accountant
from fl_app.schema import (
    Config,
    ConnectionConfig,
    FinetuneConfig,
    GradientDownloadStrategy,
    IdealChannel,
    LoraConfig,
    PromptTuningConfig,
    RadioChannel,
)
from strategies.build import build_groups, build_rule, most_steps, num_per_round
from strategies.fit_layouts import require_layouts
from strategies.fit_prompts import require_prompts
from strategies.fit_schedule import require_schedule
from strategies.roster import Roster
from strategies.rules import COMPARING

log = logging.getLogger("deft")

_UNUSED = {
    "prompt": ("strategy.cut", "strategy.left", "strategy.right", "strategy.scalar"),
    "cut": ("strategy.left", "strategy.right", "strategy.scalar"),
    "lora": ("strategy.cut", "strategy.scalar"),
    "scalar": (
        "strategy.cut",
        "finetune.lr",
        "finetune.head_lr",
        "finetune.lr_final",
        "finetune.eps",
        "finetune.weight_decay",
        "finetune.clip_norm",
    ),
}
"""Options that a variant does not look at."""


def require_enough(config: Config, roster: Roster) -> None:
    """Tries the server rule on as many updates as a round has; Flower must be running.

    Raises:
        ConfigError: the rule needs more.
    """
    rule, num_devices = build_rule(config.strategy.server_rule), num_per_round(config, roster)
    sizes = build_groups(config, roster).sizes
    if min(sizes) == 0:
        raise ConfigError(
            f"prompt.num_members makes {len(sizes)} groups of devices, and {len(roster.devices)} "
            "devices joined; lower it, or start more devices"
        )
    num_devices = min(num_devices, min(sizes))
    probe = {"probe": np.zeros(1, np.float32)}
    rule.announce(1, probe)
    try:
        rule.apply(1, [probe] * num_devices, np.ones(num_devices))
    except RunError as error:
        raise ConfigError(
            f"{error}; choose another strategy.server_rule, or more devices per round"
        ) from error


def require_fit(config: Config) -> None:
    """Checks that channel, LoRA space, rule, strategy and ensemble go together.

    Raises:
        ConfigError: two choices contradict each other, or one needs what another does not give.
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
    require_prompts(config)
    rule = config.strategy.server_rule
    match config.channel:
        case RadioChannel() if rule.name in COMPARING:
            raise ConfigError(
                f"strategy.server_rule.name={rule.name} compares devices, and this channel hands "
                "over one mean; choose a rule that averages, or channel=ideal"
            )


def _require_variant(config: Config, strategy: GradientDownloadStrategy) -> None:
    """Checks that variant and layout of the adapter go together."""
    most_steps(config)
    _say_unused(config, strategy)
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
        _require_crossing(config.connection, strategy)


def _require_crossing(connection: ConnectionConfig, strategy: GradientDownloadStrategy) -> None:
    """Checks that features can cross a neural connection, which sits where the model is cut."""
    if strategy.variant == "scalar":
        raise ConfigError(
            "strategy.variant=scalar sends features once and keeps them for all rounds, and no "
            "gradient of them comes back, so there is no connection to tune through; set "
            "connection.block=null, or choose variant prompt, cut or lora"
        )
    place = strategy.cut if strategy.variant == "cut" else 0
    if connection.block != place:
        raise ConfigError(
            f"connection.block={connection.block}: with strategy.variant={strategy.variant} "
            f"features enter the server's blocks at block {place}; set connection.block={place}"
        )
    if connection.carries != "features":
        raise ConfigError(
            f"connection.carries={connection.carries}: gradient download sends features over a "
            "connection; set connection.carries=features"
        )
    if strategy.features != "float32":
        raise ConfigError(
            f"strategy.features={strategy.features} codes features into bytes, and over a "
            "connection they travel as numbers; set strategy.features=float32"
        )


def _say_unused(config: Config, strategy: GradientDownloadStrategy) -> None:
    """Warns of options that were set and have no effect."""
    given = {"strategy": asdict(strategy), "finetune": asdict(config.finetune)}
    plain = {"strategy": asdict(GradientDownloadStrategy()), "finetune": asdict(FinetuneConfig())}
    for key in _UNUSED[strategy.variant]:
        group, _, name = key.partition(".")
        if given[group][name] != plain[group][name]:
            text = "strategy.variant=%s does not use %s=%s"
            log.warning(text, strategy.variant, key, given[group][name])


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
