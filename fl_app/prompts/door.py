"""The door of a service: a newcomer is measured beside those it would answer with.

``gate.probe`` compares two moments, and alone it would let accuracy run down, a point at every
newcomer. So the door remembers the best accuracy that those who answered have had here.
"""

from collections.abc import Sequence

import torch

from fl_app.prompts.batched import member_losses
from fl_app.prompts.gate import probe, require_use


class Door:
    """What members say of the probe rows, and how good they have been.

    Args:
        labels: [N] of the probe rows, N >= 1.
        how: a key of ``ensemble.COMBINERS``, by which members answer together.
    """

    def __init__(self, labels: torch.Tensor, how: str) -> None:
        self._labels, self._how = labels, how
        self._said: dict[str, torch.Tensor] = {}
        self._best = 0.0

    def seat(self, name: str, said: torch.Tensor) -> None:
        """Notes a member that is in, and its log-probabilities [N, classes] on the probe rows."""
        self._said[name] = said

    def dismiss(self, name: str) -> None:
        """Forgets a member that is in."""
        del self._said[name]

    def loss(self, said: torch.Tensor) -> float:
        """Returns the mean loss in nats of log-probabilities [N, classes]; infinite if NaN."""
        loss = float(member_losses(said.unsqueeze(0), self._labels)[0])
        return loss if loss < float("inf") else float("inf")

    def require(
        self,
        said: torch.Tensor,
        *,
        answering: Sequence[str],
        beside: Sequence[str],
        weights: torch.Tensor | None,
    ) -> None:
        """Lets a newcomer pass.

        Args:
            said: its log-probabilities [N, classes] on the probe rows.
            answering: the k members that answer now, k >= 0.
            beside: those of them that would answer together with it once it is heavy enough.
            weights: [k + 1] of those who answer, the newcomer's last; None for all alike.

        Raises:
            PromptError: ``knows-nothing`` or ``harms-ensemble``.
        """
        present = [self._said[name] for name in answering]
        found = probe(
            torch.stack(present) if present else said.new_zeros(0, *said.shape),
            said,
            self._labels,
            how=self._how,
            weights=weights,
            beside=[answering.index(name) for name in beside],
        )
        # what would be with the newcomer is not noted: a full pool, or weights, may keep it silent
        self._best = max(self._best, found.accuracy_before)
        require_use(found, best=self._best)
