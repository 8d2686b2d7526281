"""Every option of the project: name, type, default, range. The YAML in ``conf/`` only picks.

Alternatives are subclasses, so an option that means nothing for a choice does not exist there and
setting it is an error. Checks of one field sit in its ``__post_init__``.
"""

from fl_app.schema.budget import (
    LAYOUT_RULES,
    BudgetConfig,
    DeviceClassConfig,
    DeviceConfig,
    LayoutConfig,
)
from fl_app.schema.channel import (
    AircompChannel,
    CellConfig,
    ChannelConfig,
    DigitalChannel,
    IdealChannel,
    RadioChannel,
)
from fl_app.schema.connection import ConnectionConfig
from fl_app.schema.data import (
    DataConfig,
    DocstringsData,
    EmbeddedData,
    HubData,
    LocalData,
    PartitionConfig,
)
from fl_app.schema.device import (
    EdgeFederation,
    FederationConfig,
    FinetuneConfig,
    OutputConfig,
    SimulationFederation,
)
from fl_app.schema.gradient import (
    GradientDownloadStrategy,
    PrivacyConfig,
    ScalarConfig,
    StreamConfig,
)
from fl_app.schema.model import (
    BottleneckConfig,
    DeepPromptConfig,
    HeadConfig,
    HubModel,
    LocalModel,
    LoraConfig,
    MinilmModel,
    ModelConfig,
    PeftConfig,
    PromptTuningConfig,
    SizedConfig,
)
from fl_app.schema.prompt import (
    EnsembleAttention,
    EnsembleConfig,
    EnsembleFitted,
    EnsembleFusion,
    EnsembleLogitMean,
    EnsembleMean,
    EnsembleMedian,
    EnsembleVote,
    EnsembleWeighted,
    NoPrompt,
    PromptConfig,
)
from fl_app.schema.run import Config
from fl_app.schema.scores import ProfileConfig, ScoresConfig
from fl_app.schema.strategy import (
    DistilConfig,
    EmulatorConfig,
    EmulatorDownloadStrategy,
    ServerRuleConfig,
    StrategyConfig,
)
from fl_app.schema.transfer import ContactConfig, TransferPrompt

__all__ = [
    "LAYOUT_RULES",
    "AircompChannel",
    "BottleneckConfig",
    "BudgetConfig",
    "CellConfig",
    "ChannelConfig",
    "Config",
    "ConnectionConfig",
    "ContactConfig",
    "DataConfig",
    "DeepPromptConfig",
    "DeviceClassConfig",
    "DeviceConfig",
    "DigitalChannel",
    "DistilConfig",
    "DocstringsData",
    "EdgeFederation",
    "EmbeddedData",
    "EmulatorConfig",
    "EmulatorDownloadStrategy",
    "EnsembleAttention",
    "EnsembleConfig",
    "EnsembleFitted",
    "EnsembleFusion",
    "EnsembleLogitMean",
    "EnsembleMean",
    "EnsembleMedian",
    "EnsembleVote",
    "EnsembleWeighted",
    "FederationConfig",
    "FinetuneConfig",
    "GradientDownloadStrategy",
    "HeadConfig",
    "HubData",
    "HubModel",
    "IdealChannel",
    "LayoutConfig",
    "LocalData",
    "LocalModel",
    "LoraConfig",
    "MinilmModel",
    "ModelConfig",
    "NoPrompt",
    "OutputConfig",
    "PartitionConfig",
    "PeftConfig",
    "PrivacyConfig",
    "ProfileConfig",
    "PromptConfig",
    "PromptTuningConfig",
    "RadioChannel",
    "ScalarConfig",
    "ScoresConfig",
    "ServerRuleConfig",
    "SimulationFederation",
    "SizedConfig",
    "StrategyConfig",
    "StreamConfig",
    "TransferPrompt",
]
