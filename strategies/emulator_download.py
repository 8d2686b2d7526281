"""Federated DEFT by emulator download: devices tune against a compressed stand-in of the FoMo."""

from typing import Any

from fl_app.fomo.package import content_hash
from strategies.base import FederatedDeft


class EmulatorDownload(FederatedDeft):
    """Sends each device the emulator once; later rounds carry only adapters.

    Args:
        emulator: the packed emulator, addressed by its content hash.
        **collaborators: see ``FederatedDeft``.
    """

    def __init__(self, *, emulator: bytes, **collaborators: Any) -> None:
        super().__init__(**collaborators)
        self._emulator = emulator
        self._hash = content_hash(emulator)

    @property
    def model_hash(self) -> str:
        """Content hash of the emulator."""
        return self._hash

    def download(self, device: int) -> bytes | None:
        """Returns the emulator for a device that is not known to hold it."""
        return None if self._roster.holds(device, self._hash) else self._emulator

    def acknowledge(self, device: int) -> None:
        """A device holds the emulator only once it has answered."""
        self._roster.holders.setdefault(device, set()).add(self._hash)

    def forget(self, device: int) -> None:
        """The device's copy is gone or damaged."""
        self._roster.holders.get(device, set()).discard(self._hash)
