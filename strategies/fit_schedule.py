"""Which choices go together with a schedule, checked before the work."""

from fl_app.errors import ConfigError
from fl_app.schema import (
    AircompChannel,
    Config,
    DigitalChannel,
    EmulatorDownloadStrategy,
    LoraConfig,
    SizedConfig,
)
from strategies.fit_layouts import require_combine, require_held


def require_schedule(config: Config) -> None:
    """Checks a schedule against everything else; nothing without one.

    Raises:
        ConfigError: a choice needs every device to tune all blocks; the text says which, and what
            to set.
    """
    match config.strategy:
        case EmulatorDownloadStrategy(schedule=way) if way != "none":
            name = f"strategy.schedule={way}"
        case _:
            return
    match config.peft:
        case LoraConfig(aggregation="exact"):
            raise ConfigError(
                f"{name}: peft.aggregation=exact is a mean over all devices, and a block has few "
                "that tune it; choose peft.aggregation=freeze-a, factors or alternate"
            )
        case SizedConfig() as peft:
            require_combine(config, peft)
        case _:
            raise ConfigError(f"{name} deals out blocks; set peft=lora, bottleneck or deep_prompt")
    _require_known_seconds(config, peft, name)
    if config.connection.block is not None:
        raise ConfigError(
            f"{name} has no price for connection.block={config.connection.block}; set "
            "connection.block=null or strategy.schedule=none"
        )
    match config.channel:
        case AircompChannel():
            raise ConfigError(
                f"{name} shares a band, and channel=aircomp has everybody transmit in all of it; "
                "choose channel=digital or ideal"
            )
        case DigitalChannel(gain_floor=float() as floor) if floor > 0.0:
            raise ConfigError(
                f"{name} counts on every device, and channel.gain_floor={floor} silences some; set "
                "channel.gain_floor=0"
            )
    require_held(config, name)


def _require_known_seconds(config: Config, peft: SizedConfig, name: str) -> None:
    if config.finetune.max_steps is None:
        raise ConfigError(
            f"{name} needs to know the local steps of a round; set finetune.max_steps"
        )
    limits = {"peft.layout": peft.layout.round_s}
    limits |= {f"federation.classes.{one.name}": one.round_s for one in config.federation.classes}
    for key, limit in limits.items():
        if limit is not None:
            raise ConfigError(
                f"{key}.round_s={limit} is a limit at a fixed share of the band, and {name} shares "
                "it anew every round; set it to null"
            )
