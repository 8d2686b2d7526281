"""The comparison runs, each as a small change of a run's own configuration.

They answer what a federation by emulator download is worth: the same federation with the head
alone, the same with the full model on every device, and one device that holds all data.
"""

import dataclasses
import math
from typing import Any

from fl_app.errors import ConfigError
from fl_app.schema import (
    Config,
    EmulatorConfig,
    EmulatorDownloadStrategy,
    EnsembleConfig,
    GradientDownloadStrategy,
    HeadConfig,
    LayoutConfig,
    LoraConfig,
    NoPrompt,
    PeftConfig,
    ServerRuleConfig,
    SizedConfig,
    StrategyConfig,
)
from fl_app.settings import outer_blocks

REFERENCES = ("frozen", "federated_full", "centralised")


def as_reference(config: Config, name: str) -> Config:
    """Returns the configuration of a comparison run; ``config`` is not changed.

    Args:
        config: a run's configuration.
        name: one of ``REFERENCES``, or "" for the run itself.

    Raises:
        ConfigError: unknown name.
    """
    match name:
        case "":
            return config
        case "frozen":
            whole = _unscheduled(_full_model(config))
            connection = whole.connection
            if connection.carries == "lora_a":  # a head alone has no A to compute
                connection = dataclasses.replace(connection, block=None)
            alike = dataclasses.replace(whole.federation, classes=[])
            # A language model has no head: LoRA as it starts, which changes no output.
            has_head = config.model.task != "causal_lm"
            return dataclasses.replace(
                whole,
                peft=HeadConfig() if has_head else LoraConfig(),
                prompt=NoPrompt(),
                connection=connection,
                federation=alike,
            )
        case "federated_full":
            return _full_model(config)
        case "centralised":
            return _one_device(_unscheduled(_full_model(config)))
        case _:
            raise ConfigError(f"reference {name!r} is unknown; choose one of {list(REFERENCES)}")


def _full_model(config: Config) -> Config:
    """Every device holds the whole model, exactly; the adapter stays in the same blocks."""
    left, right = _outer(config.strategy)
    whole = EmulatorConfig(left=left, middle=-1, right=right, wire_dtype="float32")
    shared = {field.name for field in dataclasses.fields(StrategyConfig)}
    common: Any = {name: value for name, value in vars(config.strategy).items() if name in shared}
    match config.strategy:
        case EmulatorDownloadStrategy() as own:
            common |= {"schedule": own.schedule, "blocks_per_device": own.blocks_per_device}
    strategy = EmulatorDownloadStrategy(emulator=whole, **common)
    match config.prompt:
        case EnsembleConfig() as prompt:
            return dataclasses.replace(config, strategy=strategy, prompt=prompt)
        case _:  # a transfer between devices is no part of what is compared
            return dataclasses.replace(config, strategy=strategy, prompt=NoPrompt())


def _unscheduled(config: Config) -> Config:
    """Every device tunes all there is to tune."""
    strategy: Any = config.strategy
    return dataclasses.replace(
        config, strategy=dataclasses.replace(strategy, schedule="none", blocks_per_device=1)
    )


def _outer(strategy: StrategyConfig) -> tuple[int, int]:
    """Returns how many blocks, from the input and up to the last, are tuned."""
    match strategy:
        case EmulatorDownloadStrategy(emulator=emulator):
            return emulator.left, emulator.right
        case GradientDownloadStrategy():
            return outer_blocks(strategy)
        case _:
            raise ConfigError(f"strategy {type(strategy).__name__} has no comparison runs")


def _rounds_alone(config: Config) -> int:
    """Returns the rounds of one device that holds all data: one, unless layouts change by round."""
    match config.peft:
        case SizedConfig(layout=LayoutConfig(rule="sensitivity")):
            return config.strategy.num_rounds
        case _:
            return 1


def _without_deadline(peft: PeftConfig) -> PeftConfig:
    """Returns the server's layout of rule channel_aware; all else as it is."""
    match peft:
        case SizedConfig(layout=LayoutConfig(rule="channel_aware")):
            whole = dataclasses.replace(peft.layout, rule="uniform", round_s=None)
            return dataclasses.replace(peft, layout=whole)
        case _:
            return peft


def _one_device(config: Config) -> Config:
    """One device with all training data, and at most as many local steps as the federation makes.

    It tunes one prompt where the federation tunes an ensemble.

    The server's rule is of no concern there: what the one device made is the result. Nor is a
    deadline: layouts by rate are replaced by the server's, whole.
    """
    federation, finetune = config.federation, config.finetune
    drawn = federation.devices_per_round or federation.num_devices
    kept = _rounds_alone(config)
    rounds = config.strategy.num_rounds // kept
    steps = finetune.max_steps
    return dataclasses.replace(
        config,
        peft=_without_deadline(config.peft),
        prompt=NoPrompt(),
        strategy=dataclasses.replace(
            config.strategy, num_rounds=kept, server_rule=ServerRuleConfig()
        ),
        federation=dataclasses.replace(
            federation, num_devices=1, devices_per_round=None, classes=[]
        ),
        data=dataclasses.replace(
            config.data, partition=dataclasses.replace(config.data.partition, kind="iid")
        ),
        finetune=dataclasses.replace(
            finetune,
            epochs=math.ceil(finetune.epochs * rounds * drawn / federation.num_devices),
            max_steps=None if steps is None else steps * rounds * drawn,
        ),
    )
