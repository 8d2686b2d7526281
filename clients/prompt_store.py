"""A device's own prompts between rounds: a few kilobytes each, on disk, for one run."""

import os
from dataclasses import dataclass
from pathlib import Path

from fl_app.certificate import device_name
from fl_app.errors import WireError
from fl_app.payload import Payload, read_payload
from fl_app.prompts.direct import Identity, make_identity
from fl_app.updates import Update

OWN, BEFORE, CANDIDATE, TUNED = "own", "before", "candidate", "tuned"
"""The prompt in use; during a round that tunes from a candidate: what was in use before it, the
candidate, and what tuning made of it. ``before`` goes with the head the round began with."""
_KIND, _MAX_BYTES = "kept", 2**28
_IDENTITY, _END = "identity.pem", b"-----END CERTIFICATE-----\n"


@dataclass(frozen=True, eq=False)
class Kept:
    """Arrays by their name in the adapter, and the round in which they were made."""

    round: int
    arrays: Update


class PromptStore:
    """Files below one folder; a damaged one counts as missing.

    Args:
        root: folder, made on first use.
    """

    def __init__(self, root: Path) -> None:
        self._root = root

    def put(self, device: int, name: str, kept: Kept) -> None:
        """Writes beside the final name and renames, so that nobody reads a half."""
        path = self._path(device, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{name}.{os.getpid()}")
        temporary.write_bytes(Payload(_KIND, kept.round, {}, kept.arrays).to_blob())
        temporary.replace(path)

    def get(self, device: int, name: str) -> Kept | None:
        """Returns what is there, None where there is nothing or it is damaged."""
        path = self._path(device, name)
        if not path.is_file():
            return None
        try:
            payload = read_payload(path.read_bytes(), max_bytes=_MAX_BYTES)
        except WireError:
            path.unlink(missing_ok=True)
            return None
        return Kept(payload.step, dict(payload.arrays))

    def identity(self, device: int) -> Identity:
        """Returns the device's certificate and key, made when first needed; the key stays here."""
        path = self._path(device, _IDENTITY)
        if not path.is_file():
            made = make_identity(device_name(device))
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch(mode=0o600)
            path.write_bytes(made.certificate + made.key)
        head, mark, tail = path.read_bytes().partition(_END)
        return Identity(head + mark, tail)

    def drop(self, device: int, *names: str) -> None:
        """Deletes."""
        for name in names:
            self._path(device, name).unlink(missing_ok=True)

    def _path(self, device: int, name: str) -> Path:
        return self._root / str(device) / name
