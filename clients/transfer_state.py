"""What a device remembers within a transfer phase, as bytes."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from typing_extensions import override

from clients.round_state import RoundState
from fl_app.payload import Payload, Scalar, read_payload
from fl_app.updates import Update

_KIND, _MAX_BYTES = "transfer-state", 2**31
_ADVERT, _BLOB = "advert", "blob"


@dataclass(frozen=True, kw_only=True)
class TransferState(RoundState):
    """One device between two exchanges of a transfer phase; see ``RoundState``.

    Attributes:
        adverts: of the prompts it asked for, by source.
        blobs: packed prompts that came over direct links, by source.
        candidates: adapters on trial, what is in use first; empty before.
        sources: where each candidate but the first came from.
        refused: reasons for which others are not on trial, separated by blanks.
        is_last: whether the trial settles what stays, after tuning.
    """

    adverts: dict[int, bytes]
    blobs: dict[int, bytes] = field(default_factory=dict)
    candidates: tuple[Update, ...] = ()
    sources: tuple[int, ...] = ()
    refused: str = ""
    is_last: bool = False

    @override
    def to_blob(self) -> bytes:
        """Serialises."""
        scalars: dict[str, Scalar] = {
            name: getattr(self, name)
            for name in ("round", "device", "model_hash", "loss_sum", "seconds", "refused")
        }
        scalars |= {"is_last": self.is_last, "sources": " ".join(map(str, self.sources))}
        arrays: dict[str, Any] = {
            f"{lead}|{source}": np.frombuffer(blob, np.uint8)
            for lead, parts in ((_ADVERT, self.adverts), (_BLOB, self.blobs))
            for source, blob in parts.items()
        }
        for k, candidate in enumerate(self.candidates):
            arrays |= {f"{k}|{name}": array for name, array in candidate.items()}
        return Payload(_KIND, self.step, scalars, arrays).to_blob()


def read_transfer_state(blob: bytes) -> TransferState:
    """Reads a state.

    Raises:
        WireError: damaged.
    """
    payload = read_payload(blob, max_bytes=_MAX_BYTES)
    adverts: dict[int, bytes] = {}
    blobs: dict[int, bytes] = {}
    candidates: dict[int, Update] = {}
    for key, array in payload.arrays.items():
        lead, _, name = key.partition("|")
        if lead == _ADVERT:
            adverts[int(name)] = array.tobytes()
        elif lead == _BLOB:
            blobs[int(name)] = array.tobytes()
        else:
            candidates.setdefault(int(lead), {})[name] = array
    scalars: dict[str, Any] = dict(payload.scalars)
    scalars["sources"] = tuple(int(one) for one in str(scalars["sources"]).split())
    return TransferState(
        step=payload.step,
        adverts=adverts,
        blobs=blobs,
        candidates=tuple(candidates[k] for k in sorted(candidates)),
        **scalars,
    )
