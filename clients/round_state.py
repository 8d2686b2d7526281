"""What every device of gradient download remembers between two exchanges of a round."""

from abc import ABC, abstractmethod
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class RoundState(ABC):
    """One device in the middle of a round.

    Attributes:
        round: server round.
        device: partition index.
        model_hash: of the device's part of the model.
        step: local steps made here.
        loss_sum: sum of their losses.
        seconds: spent computing so far.
    """

    round: int
    device: int
    model_hash: str
    step: int = 0
    loss_sum: float = 0.0
    seconds: float = 0.0

    @abstractmethod
    def to_blob(self) -> bytes:
        """Serialises."""
