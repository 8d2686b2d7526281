"""Options of local tuning, who takes part, and the output."""

from dataclasses import dataclass, field
from math import inf

from fl_app.schema.budget import DeviceClassConfig
from fl_app.schema.checks import require


@dataclass
class FinetuneConfig:
    """Local fine-tuning on a device."""

    epochs: int = 1
    max_steps: int | None = 10
    """At most this many local steps a round; null: no limit (not with gradient download, where the
    server waits for every step)."""
    batch_size: int = 8
    lr: float = 5e-3
    """AdamW learning rate of LoRA or the soft prompt. Where gradients are small (language models),
    the large ``eps`` asks for a large lr."""
    head_lr: float = 2e-2
    """AdamW learning rate of the task head."""
    lr_final: float = 1.0
    """Share of both rates that is left when the run ends: they fall geometrically over rounds and
    local steps. 1: constant."""
    eps: float = 1e-3
    """AdamW's denominator constant. With the usual 1e-8 a device with next to nothing to learn
    moves the adapter as much as the others."""
    weight_decay: float = 0.0
    clip_norm: float = 1.0
    logit_adjustment: float = 1.0
    """Strength tau >= 0 (usually 0 or 1) with which log(own share / overall share) of each class is
    added to the logits in a device's loss. Overall shares are those of the server's public rows:
    without public rows, and for language models, there is no adjustment."""

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
        final = self.lr_final
        require("finetune.lr_final", final, 0 < final <= 1, "must be in (0, 1]")
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
    classes: list[DeviceClassConfig] = field(default_factory=list)
    """Classes of unequal devices, each with a LoRA layout of its own; empty: all devices alike."""

    def __post_init__(self) -> None:
        """Checks the ranges."""
        names = [one.name for one in self.classes]
        require("federation.classes", names, len(set(names)) == len(names), "names must differ")
        is_named = {bool(one.devices) for one in self.classes}
        allowed = "give all of them a share, or all of them devices"
        require("federation.classes", names, len(is_named) <= 1, allowed)
        listed = sorted(device for one in self.classes for device in one.devices)
        ok = not listed or listed == list(range(self.num_devices))
        allowed = f"devices must name each of 0 to {self.num_devices - 1} once"
        require("federation.classes", names, ok, allowed)
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
