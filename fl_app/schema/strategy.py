"""Options of the federated strategy and its emulator."""

from dataclasses import dataclass, field
from math import inf
from typing import Any

from typing_extensions import override

from fl_app.schema.checks import one_of, require

SCHEDULES = ("none", "random", "matching", "equal_finish", "joint")


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
    middle: int = 3
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

    num_rounds: int = 12
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
    schedule: str = "none"
    """Who tunes which block in a round: none (everybody all blocks), random, matching (the
    assignment that ends first at equal shares of the band), equal_finish (that assignment, the band
    shared so that all finish together) or joint (assignment and shares that end first of all)."""
    blocks_per_device: int = 1
    """With a schedule: neighbouring blocks that a device tunes in a round."""

    @override
    def __post_init__(self) -> None:
        """Checks the ranges."""
        super().__post_init__()
        one_of("strategy.schedule", self.schedule, SCHEDULES)
        count = self.blocks_per_device
        fits = count >= 1 and (count == 1 or self.schedule != "none")
        allowed = "must be >= 1, and 1 with strategy.schedule=none"
        require("strategy.blocks_per_device", count, fits, allowed)
