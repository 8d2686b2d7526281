"""One run: all options together."""

from dataclasses import dataclass, field

from fl_app.schema.channel import ChannelConfig
from fl_app.schema.checks import MISSING, require
from fl_app.schema.connection import ConnectionConfig
from fl_app.schema.data import DataConfig
from fl_app.schema.device import (
    FederationConfig,
    FinetuneConfig,
    OutputConfig,
)
from fl_app.schema.model import ModelConfig, PeftConfig
from fl_app.schema.prompt import PromptConfig
from fl_app.schema.strategy import StrategyConfig


@dataclass
class Config:
    """One run."""

    model: ModelConfig = MISSING
    peft: PeftConfig = MISSING
    data: DataConfig = MISSING
    strategy: StrategyConfig = MISSING
    channel: ChannelConfig = MISSING
    prompt: PromptConfig = MISSING
    federation: FederationConfig = MISSING
    finetune: FinetuneConfig = field(default_factory=FinetuneConfig)
    connection: ConnectionConfig = field(default_factory=ConnectionConfig)
    output: OutputConfig = field(default_factory=OutputConfig)
    seed: int = 0
    assets: str = ""
    """Folder with models and data sets for the experiments; default: $DEFT_ASSETS."""

    def __post_init__(self) -> None:
        """Checks the ranges."""
        require("seed", self.seed, 0 <= self.seed < 2**31, "must be 0 to 2147483647")
