"""The door of a service: a newcomer is measured beside those it would answer with.

``gate.probe`` compares two moments, and alone it would let accuracy run down, a point at every
newcomer. So the door remembers the best accuracy that those who answered have had here, in a file
as well: members survive a restart, so what they may cost has to.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from fl_app.fomo.blob import content_hash
from fl_app.prompts.batched import member_losses
from fl_app.prompts.errors import PromptError
from fl_app.prompts.gate import probe, require_use
from fl_app.tasks import Encoded


@dataclass(frozen=True)
class BestFile:
    """Where the best accuracy is kept.

    Attributes:
        path: of a small JSON file; its folder is made if need be.
        measured_by: names what the accuracy was measured by, see ``measured_by``.
    """

    path: Path
    measured_by: str

    def save(self, best: float) -> None:
        """Writes an accuracy in [0, 1]; a crash on the way leaves the old file, or none."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        beside = self.path.with_suffix(".part")
        about = {"measured_by": self.measured_by, "best": best}
        beside.write_text(json.dumps(about), encoding="utf-8")
        beside.replace(self.path)

    def load(self) -> float:
        """Returns what was saved, 0 if there is no file or it was measured by something else.

        Raises:
            PromptError: ``damaged``.
        """
        if not self.path.exists():
            return 0.0
        try:
            key, best = _read(self.path.read_text(encoding="utf-8"))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise PromptError(
                "damaged",
                f"the best accuracy {self.path} cannot be read ({error}); delete the file, and "
                "newcomers may cost a point from now on",
            ) from error
        return best if key == self.measured_by else 0.0


def _read(text: str) -> tuple[str, float]:
    about = json.loads(text)
    key, best = about["measured_by"], about["best"]
    if type(key) is not str or type(best) is not float or not 0.0 <= best <= 1.0:
        raise ValueError(f"measured_by={key!r:.80}, best={best!r:.20}")
    return key, best


def measured_by(rows: Encoded, how: str) -> str:
    """Returns the hex SHA-256 of prepared probe rows, in any order, and a combiner."""
    table = sorted(json.dumps(pair) for pair in zip(rows.rows, rows.targets, strict=True))
    return content_hash(json.dumps([how, table]).encode())


class Door:
    """What members say of the probe rows, and how good they have been.

    Args:
        labels: [N] of the probe rows, N >= 1.
        how: a key of ``ensemble.COMBINERS``, by which members answer together.
        kept: where the best accuracy survives a restart; None forgets it.

    Raises:
        PromptError: ``damaged`` file.
    """

    def __init__(self, labels: torch.Tensor, how: str, kept: BestFile | None = None) -> None:
        self._labels, self._how, self._kept = labels, how, kept
        self._said: dict[str, torch.Tensor] = {}
        self._best = 0.0 if kept is None else kept.load()

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
        if found.accuracy_before > self._best:
            self._best = found.accuracy_before
            if self._kept is not None:
                self._kept.save(self._best)
        require_use(found, best=self._best)
