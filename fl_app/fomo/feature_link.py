"""Features of gradient download over a MIMO link, and their gradient over its reciprocal.

What enters the server's first block crosses as numbers on antennas (spec 2.2(a), W = I) instead of
as bytes: hidden states and soft prompt up, the gradient with respect to them down. Everything else
stays digital: last states and slopes, masks, labels, parameters and their gradients.

In a run the link is simulated where both ends of it are known, at the device: it spoils what it
sends and what it receives. So a features payload holds what the server's antennas received, and a
gradient payload what the server hands to its antennas; no server computes anything else.
"""

from collections.abc import Sequence
from dataclasses import asdict, astuple, dataclass, field, replace
from functools import partial

import torch

from fl_app.fomo.connection import Connection
from fl_app.fomo.connection_air import ConnectionBook
from fl_app.fomo.connection_link import LinkSpec
from fl_app.fomo.features import FeatureGradient, Features

CROSSING = ("hidden", "prompt")
"""What crosses, as ``Features`` calls it."""


@dataclass(frozen=True)
class CrossedEnergy:
    """Energies of what crossed, summed over all entries at real positions.

    Attributes:
        forward_energy: of the features sent.
        forward_error: of what the server received less what was sent.
        backward_energy: of the gradient sent.
        backward_error: of what the device received less what was sent.
    """

    forward_energy: float = 0.0
    forward_error: float = 0.0
    backward_energy: float = 0.0
    backward_error: float = 0.0

    def __add__(self, other: "CrossedEnergy") -> "CrossedEnergy":
        """Adds two accounts."""
        mine, theirs = astuple(self), astuple(other)
        return CrossedEnergy(*(a + b for a, b in zip(mine, theirs, strict=True)))


@dataclass
class FeatureLink:
    """One device's link during one exchange.

    A round has one channel per device; every local step, direction and tensor has noise of its own,
    drawn from the run's seed, so that a step repeats bit for bit in any process.

    Args:
        spec: the link; None where features travel as bytes, and everything arrives as it was sent.
        seed: the run's seed.
        round: server round, >= 0.
        device: partition index, >= 0.

    Attributes:
        book: channel uses and side information of what crossed so far.
        energy: of what crossed so far.
    """

    spec: LinkSpec | None
    seed: int
    round: int
    device: int
    book: ConnectionBook = field(default_factory=ConnectionBook)
    energy: CrossedEnergy = field(default_factory=CrossedEnergy)

    def up(self, features: Features, step: int) -> Features:
        """Sends the features of a local step; returns what the server receives.

        Args:
            features: not changed. Padding is not sent and arrives as it is.
            step: local step, >= 0.

        Raises:
            ModelError: they are not finite.
        """
        if self.spec is None:
            return features
        cross = partial(self._cross, self.spec, step, back=False)
        hidden = [
            cross(f"hidden{i}", state, mask)
            for i, (state, mask) in enumerate(zip(features.hidden, features.masks, strict=True))
        ]
        prompt = None if features.prompt is None else cross("prompt", features.prompt, None)
        return replace(features, hidden=tuple(hidden), prompt=prompt)

    def down(
        self, gradient: FeatureGradient, masks: Sequence[torch.Tensor], step: int
    ) -> FeatureGradient:
        """Sends the gradient with respect to a local step's features; returns what arrives.

        Args:
            gradient: not changed; its ``parameters`` are digital.
            masks: for each stack bool [B, S], as the features had them.
            step: local step, >= 0.

        Raises:
            ModelError: it is not finite.
        """
        if self.spec is None:
            return gradient
        cross = partial(self._cross, self.spec, step, back=True)
        hidden = [
            cross(f"hidden{i}", state, mask)
            for i, (state, mask) in enumerate(zip(gradient.hidden or (), masks, strict=True))
        ]
        prompt = None if gradient.prompt is None else cross("prompt", gradient.prompt, None)
        return replace(gradient, hidden=tuple(hidden) or None, prompt=prompt)

    def scalars(self) -> dict[str, int | float]:
        """Returns counts and energies by name, to be said beside the answer; {} without a link."""
        return {} if self.spec is None else {**asdict(self.book), **asdict(self.energy)}

    def _cross(
        self,
        spec: LinkSpec,
        step: int,
        place: str,
        sent: torch.Tensor,
        mask: torch.Tensor | None,
        *,
        back: bool,
    ) -> torch.Tensor:
        """Sends [..., width] one way over the round's channel, with noise of this step's own."""
        connection = Connection(
            width=sent.shape[-1], spec=spec, seed=self.seed, name=f"features.{place}.{step}"
        )
        connection.redraw(self.round, device=self.device)
        received = connection.send(sent, mask, back=back)
        self.book += connection.book
        energy = _energy(sent, mask), _energy(received - sent, mask)
        self.energy += CrossedEnergy(0.0, 0.0, *energy) if back else CrossedEnergy(*energy)
        return received


def _energy(values: torch.Tensor, mask: torch.Tensor | None) -> float:
    real = values if mask is None else values[mask]
    return float(real.square().sum(dtype=torch.float64))
