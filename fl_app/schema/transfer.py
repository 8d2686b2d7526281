"""Options of prompts that go from device to device."""

import re
from dataclasses import dataclass, field
from math import inf

from fl_app.schema.checks import one_of, require
from fl_app.schema.prompt import PromptConfig

USES = ("init", "zero_shot")
DESCRIPTORS = ("mean", "flat")
CODECS = ("float32", "float16", "int8")
_ADDRESS = re.compile(r"[^\s:]+:[1-9][0-9]{0,4}")


@dataclass
class ContactConfig:
    """Where devices are, how they move, and the radio between them."""

    area_m: float = 200.0
    """Side of the square in which devices are placed anew in every round."""
    range_m: float = 100.0
    """Farther apart there is no contact."""
    speed_m_s: float = 1.0
    """Every device walks straight ahead; 0: nobody moves, and a contact lasts for ever."""
    bandwidth_hz: float = 1e6
    """Band of a link, > 0."""
    tx_power_dbm: float = 23.0
    """Transmit power of every device."""
    noise_figure_db: float = 5.0
    """Of every receiver, over thermal noise."""

    def __post_init__(self) -> None:
        """Checks the ranges."""
        for key in ("area_m", "range_m", "bandwidth_hz"):
            value = getattr(self, key)
            require(f"prompt.contacts.{key}", value, 0 < value < inf, "must be > 0 and finite")
        for key in ("speed_m_s", "noise_figure_db"):
            value = getattr(self, key)
            require(f"prompt.contacts.{key}", value, 0 <= value < inf, "must be >= 0 and finite")
        power = self.tx_power_dbm
        require("prompt.contacts.tx_power_dbm", power, -inf < power < inf, "must be finite")


@dataclass
class TransferPrompt(PromptConfig):
    """Every device keeps a prompt of its own, and may take over that of another device."""

    rounds: list[int] | None = field(default_factory=lambda: [2])
    """Rounds that begin with a transfer; null: for each device the first round it takes part in."""
    use: str = "init"
    """init (tune from what passed the gate, and roll back if that is no better) or zero_shot (use
    it as it is, and make no local steps in this round)."""
    descriptor: str = "mean"
    """What is advertised: mean (the mean over the virtual tokens) or flat (the whole prompt, which
    costs as much as sending it)."""
    most: int = 1
    """At most this many prompts are asked for; the gate takes the best of them."""
    mix_temperature: float | None = None
    """tau > 0: where several prompts arrive, their mean weighted by softmax(cosine / tau) is on
    trial as well; towards 0 it is the likest one, towards infinity the plain mean. null: none. The
    cosine is of the descriptors of what arrived and of the device's own prompt, for which the mean
    prompt of all stands where it has none."""
    price_per_s: float = 0.1
    """Score units (a cosine) that a second on air costs when a source is chosen."""
    margin: float = 0.0
    """Nats by which a prompt must be better than the device's own on the probe rows."""
    probe_rows: int = 16
    """Local rows for the gate, never tuned on; at most a quarter of what a device has."""
    validation_rows: int = 16
    """Local rows that decide what stays in use, seen by neither gate nor tuning; likewise."""
    max_age: int = 10
    """Prompts read more rounds ago are left out."""
    codec: str = "float32"
    """Of prompts on the way: float32, float16 or int8."""
    contacts: ContactConfig = field(default_factory=ContactConfig)
    direct: list[str] = field(default_factory=list)
    """Where each device listens for the others, host:port in the order of partition ids; empty:
    the server relays."""
    direct_s: float = 10.0
    """Seconds for which devices meet on direct links, > 0."""

    def __post_init__(self) -> None:
        """Checks the ranges."""
        rounds = self.rounds
        ok = rounds is None or (len(rounds) > 0 and min(rounds) >= 1)
        require("prompt.rounds", rounds, ok, "must be numbers >= 1, or null for joining devices")
        one_of("prompt.use", self.use, USES)
        one_of("prompt.descriptor", self.descriptor, DESCRIPTORS)
        one_of("prompt.codec", self.codec, CODECS)
        for key in ("most", "probe_rows", "validation_rows"):
            value = getattr(self, key)
            require(f"prompt.{key}", value, value >= 1, "must be >= 1")
        for key in ("price_per_s", "margin"):
            value = getattr(self, key)
            require(f"prompt.{key}", value, 0 <= value < inf, "must be >= 0 and finite")
        if (tau := self.mix_temperature) is not None:
            require("prompt.mix_temperature", tau, 0 < tau < inf, "must be > 0 and finite, or null")
            require("prompt.most", self.most, self.most >= 2, "must be >= 2 for a mixture")
        require("prompt.max_age", self.max_age, self.max_age >= 0, "must be >= 0")
        ok = all(_ADDRESS.fullmatch(one) and _port(one) < 65536 for one in self.direct)
        require("prompt.direct", self.direct, ok, "must be a list of host:port, or []")
        wait = self.direct_s
        require("prompt.direct_s", wait, 0 < wait < inf, "must be > 0 seconds, finite")


def _port(address: str) -> int:
    return int(address.rpartition(":")[2])
