"""What a device advertises about a prompt, in far fewer bytes than the prompt has."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fl_app.fomo.blob import content_hash
from fl_app.payload import Payload, Scalar, read_payload
from fl_app.prompts.errors import PromptError
from fl_app.prompts.member import Card

_KIND = "advert"
MAX_ADVERT_BYTES = 2**20
CARD_BYTES = 2**12
"""Of an advert, at most, for everything but the descriptor."""
Descriptor = NDArray[np.bool_] | NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Advert:
    """What a device says about one prompt; all of it is a claim.

    Attributes:
        blob_hash: SHA-256 of the packed prompt as it would be sent; what arrives must have it.
        num_bytes: length of that blob, > 0.
        model_hash: of the model it was tuned on.
        tokenizer_hash: of the tokenizer.
        device: partition id of its origin.
        round: when it was read.
        descriptor: bits (bool) or an embedding (float32), one axis.
    """

    blob_hash: str
    num_bytes: int
    model_hash: str
    tokenizer_hash: str
    device: int
    round: int
    descriptor: Descriptor

    def to_blob(self) -> bytes:
        """Serialises; bits go as bits."""
        bits = self.descriptor.dtype == np.bool_
        descriptor = np.packbits(self.descriptor.astype(np.bool_)) if bits else self.descriptor
        scalars: dict[str, Scalar] = {
            "blob_hash": self.blob_hash,
            "num_bytes": self.num_bytes,
            "model_hash": self.model_hash,
            "tokenizer_hash": self.tokenizer_hash,
            "device": self.device,
            "num_bits": len(self.descriptor) if bits else 0,
        }
        return Payload(_KIND, self.round, scalars, {"descriptor": descriptor}).to_blob()


def advert_of(card: Card, blob: bytes, descriptor: Descriptor) -> Advert:
    """Returns the advert of a member as ``pack`` made it into ``blob``."""
    return Advert(
        content_hash(blob),
        len(blob),
        card.model_hash,
        card.tokenizer_hash,
        card.device,
        card.round,
        descriptor,
    )


def read_advert(blob: bytes) -> Advert:
    """Reads what ``Advert.to_blob`` wrote.

    Raises:
        WireError: it is damaged, too large, or a field is missing or strange.
    """
    payload = read_payload(blob, max_bytes=MAX_ADVERT_BYTES)
    fields = payload.scalars
    wanted = dict.fromkeys(("blob_hash", "model_hash", "tokenizer_hash"), str)
    counts = dict.fromkeys(("num_bytes", "device", "num_bits"), int)
    found = {name: type(value) for name, value in fields.items()}
    if payload.kind != _KIND or found != {**wanted, **counts}:
        raise PromptError("bad-advert", f"a {payload.kind!r} with fields {sorted(fields)}")
    num_bytes, device, num_bits = (int(fields[name]) for name in counts)
    given = payload.arrays.get("descriptor")
    if given is None or given.ndim != 1 or min(num_bytes - 1, device, num_bits) < 0:
        raise PromptError("bad-advert", "no descriptor with one axis, or a number below 0")
    right = "uint8" if num_bits else "float32"
    if given.dtype != right or (num_bits and len(given) != -(-num_bits // 8)):
        raise PromptError("bad-advert", f"{num_bits} bits as {given.dtype.name} {given.shape}")
    descriptor = np.unpackbits(given, count=num_bits).astype(np.bool_) if num_bits else given
    hashes = (str(fields[name]) for name in wanted)
    blob_hash, model_hash, tokenizer_hash = hashes
    return Advert(
        blob_hash, num_bytes, model_hash, tokenizer_hash, device, payload.step, descriptor
    )
