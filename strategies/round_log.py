"""What a round leaves in the books besides bytes."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from strategies.schedule import Turn


@dataclass
class RoundLog:
    """What happened in one round.

    Attributes:
        devices: devices whose update was aggregated, ascending.
        dropped: reason to devices.
        metrics: loss and uplink figures.
        seconds: from sending to the new adapter.
        turns: who was to tune what when; empty without a schedule.
    """

    devices: list[int] = field(default_factory=list)
    dropped: dict[str, list[int]] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0
    turns: Sequence[Turn] = ()

    def drop(self, device: int, reason: str) -> None:
        """Books a device as dropped."""
        self.dropped.setdefault(reason, []).append(device)
