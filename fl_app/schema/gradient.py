"""Options of federated DEFT by gradient download."""

from dataclasses import dataclass, field
from math import inf

from typing_extensions import override

from fl_app.schema.checks import one_of, require
from fl_app.schema.strategy import StrategyConfig

VARIANTS = ("prompt", "cut", "lora", "scalar")
LABELS = ("private", "server")
FEATURE_DTYPES = ("float32", "float16", "int8")
TRANSPORTS = ("auto", "messages", "stream")
WILDCARDS = ("", "0.0.0.0", "::")  # noqa: S104  # named to be refused


@dataclass
class StreamConfig:
    """Where the server listens for strategy.transport=stream.

    The default serves devices on the server's own machine. For others set ``host=0.0.0.0``,
    ``advertised_host`` to the address at which they reach the server, and a ``port`` that its
    firewall lets through.
    """

    host: str = "127.0.0.1"
    """Address the server binds; 0.0.0.0 or :: for every interface."""
    advertised_host: str | None = None
    """Address devices are told to connect to; null: the same as ``host``, which then must not be a
    wildcard."""
    port: int = 0
    """Port the server binds; 0: any that is free."""

    def __post_init__(self) -> None:
        """Checks the ranges."""
        require(
            "strategy.stream.host",
            self.host,
            self.advertised_host is not None or self.host not in WILDCARDS,
            "needs strategy.stream.advertised_host: no device can connect to a wildcard",
        )
        require("strategy.stream.port", self.port, 0 <= self.port < 65536, "must be 0 to 65535")


@dataclass
class ScalarConfig:
    """Zeroth-order gradients of strategy.variant=scalar.

    Features cross once, so every round walks over the same batches: the first
    ``finetune.max_steps`` of the device's rows. Of finetune's options lr, head_lr, eps,
    weight_decay and clip_norm have no effect here.

    After the first a round costs a device less than 20 kB, with the default pool, for up to some
    1800 steps with labels at the server, and for up to 26 with private labels (8 texts a step, 2
    classes).
    """

    step: float = 1e-3
    """eps of the two-point estimate (L(theta + eps z) - L(theta - eps z)) / (2 eps)."""
    lr: float = 1e-4
    """Learning rate of theta - lr g z; finetune's are for first-order steps. What is stable falls
    as one over the number of tuned parameters: about 0.03 for 200, 1e-4 for some 10 000."""
    num_seeds: int = 1024
    """Size of the pool of directions; every round opens with 4 bytes for each."""
    max_cached_mb: float = 2048.0
    """Most the server keeps of devices' features, which are sent once; who was there longest ago
    makes room, and sends them again."""

    def __post_init__(self) -> None:
        """Checks the ranges."""
        count, megabytes = self.num_seeds, self.max_cached_mb
        require("strategy.scalar.num_seeds", count, 1 <= count <= 2**20, "must be 1 to 2**20")
        require("strategy.scalar.max_cached_mb", megabytes, 0 < megabytes < inf, "must be > 0")
        for key in ("step", "lr"):
            value = getattr(self, key)
            require(f"strategy.scalar.{key}", value, 0 < value < inf, "must be > 0 and finite")


@dataclass
class PrivacyConfig:
    """Gaussian noise on features; what it does not protect is said in docs/leakage.md."""

    noise_multiplier: float = 0.0
    """Deviation of the noise over ``clip_norm``, >= 0; 0: neither noise nor clipping."""
    clip_norm: float = 50.0
    """Longest l2 norm of one example's features, all its tokens together, > 0. Far below their
    usual norm (MiniLM-L6's embeddings of 24 sentences of SST-2: 29 to 69) it distorts what the
    server computes."""

    def __post_init__(self) -> None:
        """Checks the ranges."""
        noise, norm = self.noise_multiplier, self.clip_norm
        ok = 0 <= noise < inf
        require("strategy.privacy.noise_multiplier", noise, ok, "must be >= 0 and finite")
        ok = 0 < norm < inf
        require("strategy.privacy.clip_norm", norm, ok, "must be > 0 and finite")


@dataclass
class GradientDownloadStrategy(StrategyConfig):
    """The FoMo stays at the server; devices upload features and download gradients."""

    variant: str = "prompt"
    """prompt (a soft prompt on the device), cut (the first blocks and their LoRA on the device),
    lora (LoRA at the server, owned by the device) or scalar (zeroth order: seeds up, one number per
    direction down; with private labels both sides' outputs down and one number up).
    prompt needs peft=prompt, the others peft=lora; that is chosen along."""
    labels: str = "private"
    """private (the last hidden states come down and the loss stays on the device) or server (labels
    go up with the features)."""
    cut: int = 1
    """Blocks on the device for variant=cut, >= 1."""
    left: int = 0
    """Blocks, from the input, that get LoRA for variant=lora and scalar."""
    right: int = 2
    """Blocks, up to the last, that get LoRA for variant=lora and scalar."""
    wire_dtype: str = "float16"
    """Of the device's part of the model: float16 or float32."""
    features: str = "float32"
    """Of features, states and their gradients: float32, float16 or int8 (stochastic rounding)."""
    shared_gradient: bool = False
    """Average the gradients of all devices in every step and send everybody the same one."""
    max_in_flight: int = 10
    """Devices whose graphs the server holds at once, in one pass; the rest of a step queues."""
    exchange_timeout_s: float = 120.0
    """Seconds the server waits for an answer within a step. The first of a round over a stream
    includes a Flower message, which starts a process on a real device: 10 to 30 s."""
    transport: str = "auto"
    """messages (Flower's), stream (one connection a round), or auto: messages in simulation, stream
    on real devices, where every Flower message costs seconds."""
    stream: StreamConfig = field(default_factory=StreamConfig)
    scalar: ScalarConfig = field(default_factory=ScalarConfig)
    privacy: PrivacyConfig = field(default_factory=PrivacyConfig)

    @override
    def __post_init__(self) -> None:
        """Checks the ranges; whether blocks fit the model is checked where that is known."""
        super().__post_init__()
        one_of("strategy.variant", self.variant, VARIANTS)
        one_of("strategy.labels", self.labels, LABELS)
        one_of("strategy.features", self.features, FEATURE_DTYPES)
        one_of("strategy.transport", self.transport, TRANSPORTS)
        one_of("strategy.wire_dtype", self.wire_dtype, ("float16", "float32"))
        require("strategy.cut", self.cut, self.cut >= 1, "must be >= 1")
        for key in ("left", "right"):
            value = getattr(self, key)
            require(f"strategy.{key}", value, value >= 0, "must be >= 0")
        both = self.left + self.right
        require("strategy.right", self.right, both >= 1, "and strategy.left must not both be 0")
        require(
            "strategy.max_in_flight", self.max_in_flight, self.max_in_flight >= 1, "must be >= 1"
        )
        noise = self.privacy.noise_multiplier
        require(
            "strategy.privacy.noise_multiplier",
            noise,
            noise == 0 or self.variant != "scalar",
            "must be 0 with strategy.variant=scalar, whose answers are not accounted for",
        )
        wait = self.exchange_timeout_s
        require("strategy.exchange_timeout_s", wait, 0 < wait < inf, "must be > 0 seconds, finite")
