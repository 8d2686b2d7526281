"""Options of per-block layouts: limits, what a device can do, and the rule."""

from dataclasses import dataclass, field
from math import inf

from fl_app.schema.checks import MISSING, one_of, require
from fl_app.schema.scores import ProfileConfig, ScoresConfig

DEVICES = ("phone", "jetson", "laptop")
"""The rows of ``fl_app.resources.devices``."""
LAYOUT_RULES = (
    "uniform",
    "linear_up",
    "linear_down",
    "u_shape",
    "top_n",
    "list",
    "sensitivity",
    "cost_aware",
    "channel_aware",
)


@dataclass
class BudgetConfig:
    """Limits that a layout keeps; null: no limit."""

    params: int | None = None
    """Tuned parameters, the head's included."""
    uplink_bytes: int | None = None
    """Bytes of one update as serialised."""
    memory_bytes: float | None = None
    """Peak memory of a local step."""
    step_s: float | None = None
    """Seconds of a local step."""
    round_s: float | None = None
    """Seconds of a round: adapter down, finetune.max_steps local steps, update up."""

    def check(self, key: str) -> None:
        """Checks the ranges; ``key`` leads the names in errors."""
        for name in ("params", "uplink_bytes", "memory_bytes", "step_s", "round_s"):
            value = getattr(self, name)
            ok = value is None or 0 < value < inf
            require(f"{key}.{name}", value, ok, "must be > 0 and finite, or null for no limit")


@dataclass
class DeviceConfig:
    """What a device can do; null keeps the figure of its row in fl_app/resources/devices.py."""

    device: str = "phone"
    """phone, jetson or laptop."""
    flops_per_s: float | None = None
    tx_power_dbm: float | None = None
    bandwidth_hz: float = 1e6
    """Its share of the band."""
    distance_m: float = 200.0
    """To the server, 3GPP macro-cell loss."""

    def check_device(self, key: str) -> None:
        """Checks the ranges; ``key`` leads the names in errors."""
        one_of(f"{key}.device", self.device, DEVICES)
        flops = self.flops_per_s
        ok = flops is None or 0 < flops < inf
        require(f"{key}.flops_per_s", flops, ok, "must be > 0 and finite, or null")
        power = self.tx_power_dbm
        ok = power is None or -inf < power < inf
        require(f"{key}.tx_power_dbm", power, ok, "must be finite, or null")
        for name in ("bandwidth_hz", "distance_m"):
            value = getattr(self, name)
            require(f"{key}.{name}", value, 0 < value < inf, "must be > 0 and finite")


@dataclass
class DeviceClassConfig(DeviceConfig, BudgetConfig):
    """Devices alike: what they can do, and which they are.

    Limits left null are those of peft.layout; memory_bytes is then its row's where peft.layout sets
    none either. ``params`` is a limit of the class alone.
    """

    name: str = MISSING
    share: float = 0.0
    """Share of the federation's devices, drawn by seed; relative to the other classes'."""
    devices: list[int] = field(default_factory=list)
    """Or the devices by partition id."""

    def __post_init__(self) -> None:
        """Checks the ranges."""
        key = f"federation.classes.{self.name}"
        self.check(key)
        self.check_device(key)
        require(f"{key}.share", self.share, 0 <= self.share < inf, "must be >= 0 and finite")
        is_named = bool(self.devices)
        ok = is_named != (self.share > 0)
        require(f"{key}.share", self.share, ok, f"give either share > 0 or {key}.devices")


@dataclass
class LayoutConfig(BudgetConfig):
    """The size of every block outside the middle: rank, width, or virtual tokens.

    Below, a rank is a size of any kind; with peft=bottleneck peft.rank is peft.width, with
    peft=deep_prompt it is peft.num_tokens.
    Without a limit the parameters are those of the uniform layout of peft.rank, so that rules
    compare at equal parameters. With federation.classes the server's layout keeps ``params`` alone;
    the other limits are every class's.
    """

    rule: str = "uniform"
    """uniform, linear_up, linear_down (rank rises or falls towards the loss), u_shape, top_n (the
    num_tuned blocks nearest to the loss), list (the ranks given), sensitivity (AdaLoRA: devices
    score units, and the budget falls round by round to that of the other rules), cost_aware (units
    by gain over cost, gains from a look at the gradient before the first round), or channel_aware
    (units by score, as many as a device's rate carries until round_s). sensitivity keeps the limit
    params alone, channel_aware params and round_s."""
    ranks: list[int] = field(default_factory=list)
    """For rule=list: rank of every block outside the middle, in forward order; 0: untouched."""
    num_tuned: int | None = None
    """For rule=top_n: number of blocks."""
    max_rank: int | None = None
    """Greatest rank of a block; null: peft.rank times the number of blocks, for rule=cost_aware
    twice peft.rank."""
    scores: ScoresConfig = field(default_factory=ScoresConfig)
    """For rules sensitivity and channel_aware."""
    profile: ProfileConfig = field(default_factory=ProfileConfig)
    """For rule=cost_aware."""
    device: DeviceConfig = field(default_factory=DeviceConfig)
    """Whom memory and seconds are priced for where federation.classes is empty."""

    @property
    def is_plain(self) -> bool:
        """Whether every block has peft.rank, and nothing is to be priced."""
        return self == LayoutConfig(device=self.device)

    def __post_init__(self) -> None:
        """Checks the ranges; how many blocks there are is checked where that is known."""
        one_of("peft.layout.rule", self.rule, LAYOUT_RULES)
        self.check("peft.layout")
        self.device.check_device("peft.layout.device")
        is_list = self.rule == "list"
        ok = bool(self.ranks) == is_list
        require("peft.layout.ranks", self.ranks, ok, "goes with peft.layout.rule=list, only")
        ok = not is_list or (min(self.ranks) >= 0 and max(self.ranks) > 0)
        allowed = "must be >= 0 and not all 0; peft=head tunes the head alone"
        require("peft.layout.ranks", self.ranks, ok, allowed)
        tuned, top = self.num_tuned, self.rule == "top_n"
        ok = tuned is None if not top else tuned is not None and tuned >= 1
        require("peft.layout.num_tuned", tuned, ok, "must be >= 1 for rule=top_n, null for others")
        limits = ("uplink_bytes", "memory_bytes", "step_s", "round_s")
        others = [name for name in limits if getattr(self, name) is not None]
        ok = self.rule != "sensitivity" or not others
        allowed = f"keeps params alone, not {', '.join(others)}; rule=cost_aware keeps all limits"
        require("peft.layout.rule", self.rule, ok, allowed)
        others = [name for name in others if name != "round_s"]
        ok = self.rule != "channel_aware" or not others
        allowed = (
            f"keeps params and round_s alone, not {', '.join(others)}; leave these null, or set "
            "rule=cost_aware, which keeps all limits"
        )
        require("peft.layout.rule", self.rule, ok, allowed)
        deadline = self.round_s
        ok = self.rule != "channel_aware" or deadline is not None
        allowed = "must be given for rule=channel_aware: the deadline in seconds"
        require("peft.layout.round_s", deadline, ok, allowed)
        most = self.max_rank
        require("peft.layout.max_rank", most, most is None or most >= 1, "must be >= 1, or null")
