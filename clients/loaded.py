"""The one model a process holds in memory for all devices it plays."""

from collections.abc import Callable
from typing import Generic, TypeVar

from clients.cache import BlobCache

Session = TypeVar("Session")


class Loaded(Generic[Session]):
    """Builds a session from a device's blob, once for all devices with equal blobs.

    Every device's own copy on disk is read once by this process: a copy that is damaged or gone
    counts as missing, though another device's good one is in memory.

    Args:
        cache: where devices keep blobs.
        build: makes a session from a blob; the session before it is freed first.
    """

    def __init__(self, cache: BlobCache, build: Callable[[bytes], Session]) -> None:
        self._cache, self._build = cache, build
        self._held: tuple[str, Session] | None = None
        self._checked: set[int] = set()

    def of(self, device: int, name: str) -> Session | None:
        """Returns the session of the blob ``name``; None where the device holds no good copy."""
        held = self._held[1] if self._held and self._held[0] == name else None
        if held is not None and device in self._checked and self._cache.touch(device, name):
            return held
        blob = self._cache.get(device, name)
        if blob is None:
            return None
        if held is None:
            self.forget()  # before the new one is built: both may not fit
            held = self._build(blob)
            self._held = name, held
        self._checked.add(device)
        return held

    def forget(self) -> None:
        """Frees the session, as the end of the process would."""
        self._held = None
        self._checked.clear()
