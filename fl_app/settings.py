"""Configuration to the flat settings that server and device must agree on."""

from typing import Any

from fl_app.errors import ConfigError
from fl_app.fomo.adapter import LoraSpec
from fl_app.fomo.blocks import num_blocks
from fl_app.fomo.emulator import Split
from fl_app.schema import DataConfig, EmulatorConfig, HeadConfig, LoraConfig, PeftConfig
from fl_app.tasks import Columns


def lora_spec(peft: PeftConfig) -> LoraSpec | None:
    """Returns the LoRA layers; None tunes the head alone."""
    match peft:
        case LoraConfig():
            return LoraSpec(
                rank=peft.rank,
                alpha=peft.alpha,
                targets=tuple(peft.targets),
                train_a=peft.aggregation != "freeze-a",
            )
        case HeadConfig():
            return None
        case _:
            raise ConfigError(f"peft of type {type(peft).__name__} is unknown")


def aggregation_of(peft: PeftConfig) -> str:
    """Returns how LoRA factors are averaged; a head has none, so any way is exact."""
    match peft:
        case LoraConfig():
            return peft.aggregation
        case _:
            return "factors"


def split_of(emulator: EmulatorConfig, model_config: Any) -> Split:
    """Returns the split l-n-r of a model; ``middle=-1`` keeps all middle blocks."""
    total = num_blocks(model_config)
    middle = emulator.middle
    if middle == -1:
        middle = total - emulator.left - emulator.right
    return Split(left=emulator.left, middle=middle, right=emulator.right, total=total)


def columns_of(data: DataConfig) -> Columns:
    """Returns the column names a task reads."""
    return Columns(
        text=data.text_column,
        label=data.label_column,
        prompt=data.prompt_column,
        completion=data.completion_column,
        image=data.image_column,
    )
