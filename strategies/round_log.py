"""What a round leaves in the books besides bytes."""

from dataclasses import dataclass, field


@dataclass
class RoundLog:
    """What happened in one round.

    Attributes:
        devices: devices whose update was aggregated, ascending.
        dropped: reason to devices.
        metrics: loss and uplink figures.
        seconds: from sending to the new adapter.
    """

    devices: list[int] = field(default_factory=list)
    dropped: dict[str, list[int]] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0

    def drop(self, device: int, reason: str) -> None:
        """Books a device as dropped."""
        self.dropped.setdefault(reason, []).append(device)
