"""What devices download once and keep: the model they compute on, and stacks merged into it."""

from collections.abc import Mapping

from fl_app.fomo.package import content_hash
from strategies.roster import Roster
from strategies.round_start import RoundStart


class Holdings:
    """Knows who holds what, by content hash.

    Args:
        blob: what every device computes on, packed.
        roster: notes what each device is known to hold.
        start: may add stacks between rounds.
    """

    def __init__(self, blob: bytes, roster: Roster, start: RoundStart) -> None:
        self._blob, self._roster, self._start = blob, roster, start
        self.model_hash = content_hash(blob)
        """Of the blob; replies must name the same."""

    @property
    def stack_names(self) -> tuple[str, ...] | None:
        """Content hashes of what devices merge, in order; None where nothing ever is."""
        return None if self._start.stacks is None else tuple(self._stacks)

    def blob_for(self, device: int) -> bytes | None:
        """Returns the blob for a device that is not known to hold it."""
        return None if self._roster.holds(device, self.model_hash) else self._blob

    def stacks_for(self, device: int) -> dict[str, bytes]:
        """Returns the stacks that a device is not known to hold."""
        return {n: blob for n, blob in self._stacks.items() if not self._roster.holds(device, n)}

    def acknowledge(self, device: int) -> None:
        """A device holds what it was sent only once it has answered."""
        self._roster.holders.setdefault(device, set()).update(self._names)

    def forget(self, device: int) -> None:
        """The device's copies are gone or damaged."""
        self._roster.holders.get(device, set()).difference_update(self._names)

    @property
    def _stacks(self) -> Mapping[str, bytes]:
        return self._start.stacks or {}

    @property
    def _names(self) -> set[str]:
        return {self.model_hash, *self._stacks}
