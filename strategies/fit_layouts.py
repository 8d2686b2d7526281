"""Which choices go together with unequal ranks, checked before the work."""

import logging
from math import inf

from fl_app.block_times import is_scheduled
from fl_app.errors import ConfigError
from fl_app.schema import (
    AircompChannel,
    Config,
    DigitalChannel,
    EmulatorDownloadStrategy,
    GradientDownloadStrategy,
    SizedConfig,
)
from fl_app.settings import aggregation_of
from strategies.rules import COMPARING, MEANS, REMEMBERING

log = logging.getLogger("deft")


def require_layouts(config: Config) -> None:
    """Checks layouts and device classes against everything else.

    Raises:
        ConfigError: a choice needs equal ranks; the text says which and what to set.
    """
    classes = [one.name for one in config.federation.classes]
    match config.peft:
        case SizedConfig() as peft:
            pass
        case _:
            if classes:
                raise ConfigError(
                    f"federation.classes={classes} gives devices layouts of their own; set "
                    "peft=lora, bottleneck or deep_prompt, or federation.classes=[]"
                )
            return
    if peft.combine == "stack":
        _require_stack(config, peft)
    if not classes and peft.layout.is_plain:
        return
    match config.strategy:
        case GradientDownloadStrategy():
            raise ConfigError(
                "strategy=gradient_download has one LoRA rank for all blocks and devices; set "
                "peft=lora and federation.classes=[] without budgets, or strategy=emulator_download"
            )
    if config.connection.block is not None and config.connection.carries == "lora_a":
        raise ConfigError(
            "connection.carries=lora_a is built for one LoRA rank; set peft=lora and "
            "federation.classes=[] without budgets, or connection.carries=features"
        )
    _require_priced(config, peft)
    match peft.layout.rule:
        case "sensitivity":
            _require_scored(config, peft)
            _require_rounds(config, peft)
        case "channel_aware":
            _require_scored(config, peft)
            _require_rate(config, peft)
        case "cost_aware":
            _require_gains(config, peft)
    if classes:
        require_combine(config, peft)
        require_held(config, "federation.classes")


def _require_stack(config: Config, peft: SizedConfig) -> None:
    """Checks that every device's factors arrive, and that frozen weights can take them."""
    require_combine(config, peft)
    rule = config.strategy.server_rule.name
    if rule not in MEANS:
        raise ConfigError(
            f"strategy.server_rule.name={rule} is not the mean that peft.combine=stack is; set "
            f"{' or '.join(sorted(MEANS))}, or peft.combine=flex"
        )
    match config.strategy:
        case GradientDownloadStrategy():
            raise ConfigError(
                "peft.combine=stack merges into the frozen weights of devices, and with "
                "strategy=gradient_download these are at the server; set peft.combine=pad, or "
                "strategy=emulator_download"
            )
    if config.connection.block is not None:
        raise ConfigError(
            f"peft.combine=stack has no measured way through connection.block="
            f"{config.connection.block}; set connection.block=null, or peft.combine=flex"
        )


def _require_priced(config: Config, peft: SizedConfig) -> None:
    """Checks that the seconds of a round are known where a layout keeps a limit on them."""
    limits = {"peft.layout": peft.layout.round_s}
    limits |= {f"federation.classes.{one.name}": one.round_s for one in config.federation.classes}
    block = config.connection.block
    for key, limit in limits.items():
        if limit is not None and block is not None:
            raise ConfigError(
                f"{key}.round_s={limit} has no price for what crosses connection.block={block} in "
                "every step; set connection.block=null, or another limit than round_s"
            )
        if limit is not None and peft.combine == "stack":
            raise ConfigError(
                f"{key}.round_s={limit} has no price for peft.combine=stack, whose downlink goes "
                "by the ranks of all devices of a round; set another limit, or peft.combine=flex"
            )


def _require_scored(config: Config, peft: SizedConfig) -> None:
    """Checks what keeps units apart and in the order of their scores."""
    rule, server_rule = peft.layout.rule, config.strategy.server_rule.name
    if config.federation.classes:
        raise ConfigError(
            f"peft.layout.rule={rule} gives layouts round by round, federation.classes for the "
            "whole run; set federation.classes=[], or peft.layout.rule=cost_aware"
        )
    match config.strategy:
        case EmulatorDownloadStrategy(schedule=way) if way != "none":
            raise ConfigError(
                f"peft.layout.rule={rule} says itself who tunes what in a round; set "
                f"strategy.schedule=none instead of {way}, or another peft.layout.rule"
            )
    if aggregation_of(peft) == "exact":
        raise ConfigError(
            f"peft.layout.rule={rule} scores units, and peft.aggregation=exact makes new ones "
            "every round; set peft.aggregation=freeze-a, factors or alternate"
        )
    if server_rule in REMEMBERING:
        raise ConfigError(
            f"strategy.server_rule.name={server_rule} remembers moments entry by entry, and "
            f"peft.layout.rule={rule} moves entries about; choose fedavg, or a rule without memory"
        )


def _require_rate(config: Config, peft: SizedConfig) -> None:
    """Checks that devices have a rate of their own in every round."""
    match config.channel:
        case DigitalChannel():
            pass
        case _:
            raise ConfigError(
                f"channel={type(config.channel).__name__}: peft.layout.rule=channel_aware goes by "
                "the rate of every device in the round; set channel=digital"
            )
    require_combine(config, peft)
    require_held(config, "peft.layout.rule=channel_aware")


def _require_gains(config: Config, peft: SizedConfig) -> None:
    """Checks that no device looks at the gradient through a neural connection.

    The look is in front of the first round, where no channel is drawn and nothing that crosses is
    booked.
    """
    by, block = peft.layout.profile.by, config.connection.block
    on_devices = by == "devices" or (by == "auto" and config.data.public_fraction == 0)
    if block is not None and on_devices:
        raise ConfigError(
            f"peft.layout.profile.by={by} has devices look at the gradient in front of the first "
            f"round, where the channel of connection.block={block} is not there yet; set "
            "peft.layout.profile.by=server with data.public_fraction above 0, or "
            "connection.block=null"
        )


def _require_rounds(config: Config, peft: SizedConfig) -> None:
    """Checks that the schedule of a falling budget fits into the rounds."""
    scores, rounds = peft.layout.scores, config.strategy.num_rounds
    if rounds <= scores.warmup + scores.final:
        raise ConfigError(
            f"strategy.num_rounds={rounds} must be more than peft.layout.scores.warmup="
            f"{scores.warmup} and final={scores.final} together; raise it, or lower these"
        )


def require_combine(config: Config, peft: SizedConfig) -> None:
    """Checks how unequal ranks are combined."""
    aggregation = aggregation_of(peft)
    if (peft.combine in ("flex", "stack")) != (aggregation == "exact"):
        raise ConfigError(
            f"peft.combine={peft.combine} and peft.aggregation={aggregation}: flex and stack are "
            "means of products, which is aggregation exact, and only they are; set "
            "peft.aggregation=exact with either, or neither"
        )
    rule = config.strategy.server_rule.name
    if peft.combine != "flex" and rule in COMPARING:
        raise ConfigError(
            f"strategy.server_rule.name={rule} compares devices, and peft.combine={peft.combine} "
            "hands over one mean; choose a rule that averages, or peft.combine=flex"
        )


def say_unused_combine(config: Config) -> None:
    """Warns of a ``peft.combine`` that changes nothing, for all devices hold the same.

    Zero padding then divides by the same weights either way, and a mean of products is what
    peft.aggregation=exact makes by itself. Stacks are another way also of equal ranks.
    """
    match config.peft:
        case SizedConfig(combine="zero" | "flex") as peft:
            pass
        case _:
            return
    is_uneven = config.federation.classes or is_scheduled(config.strategy)
    if is_uneven or peft.layout.rule == "channel_aware":
        return
    log.warning(
        "peft.combine=%s has no effect: all devices hold the same, and peft.aggregation=%s alone "
        "says how they are averaged; give devices layouts of their own (federation.classes, "
        "strategy.schedule or peft.layout.rule=channel_aware), or set peft.combine=pad",
        peft.combine,
        aggregation_of(peft),
    )


def require_held(config: Config, name: str) -> None:
    """Checks that the channel can leave out what a device does not hold.

    Args:
        config: the run's configuration.
        name: the option that has devices hold different things.

    Raises:
        ConfigError: it cannot.
    """
    match config.channel:
        case AircompChannel(scheme="obda"):
            raise ConfigError(
                f"channel.scheme=obda has every device vote on every entry; with {name} "
                "choose another channel.scheme"
            )
        case AircompChannel(peak_to_mean_db=peak) if peak < inf:
            raise ConfigError(
                f"channel.peak_to_mean_db={peak} has no model for devices that hold only some "
                f"entries; with {name} set channel.peak_to_mean_db=inf"
            )
        case DigitalChannel(max_uses_per_real=float() as limit):
            raise ConfigError(
                f"channel.max_uses_per_real={limit} rations entries that all devices hold; with "
                f"{name} set channel.max_uses_per_real=null"
            )
