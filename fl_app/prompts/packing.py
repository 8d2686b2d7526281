"""Members as bytes: one safetensors blob with a checksum, for storage, HTTP and the air alike.

Arrays go as float32, as float16, or as int8 with one scale per virtual token, rounded to nearest.
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fl_app.codec import CODECS, restore, squeeze
from fl_app.errors import WireError
from fl_app.payload import Payload, Scalar, read_payload
from fl_app.prompts.errors import PromptError
from fl_app.prompts.member import Card, Member
from fl_app.seeding import generator

_KIND = "prompt"
_PROMPT, _HEAD = "prompt", "head:"
_LEVELS = 127
_TEXTS = ("model_hash", "tokenizer_hash", "task", "codec")
_COUNTS = ("device", "round")


def pack(member: Member, codec: str = "float32") -> bytes:
    """Serialises a member; equal members give equal bytes.

    Args:
        member: what is sent or stored.
        codec: ``float32`` (exact), ``float16``, or ``int8``: an entry then moves by at most half
            its row's scale, max |x| / 127 of the row.

    Raises:
        WireError: ``unknown-codec``, ``not-finite``, or ``overflow`` in half precision.
    """
    card = member.card
    scalars: dict[str, Scalar] = {
        "model_hash": card.model_hash,
        "tokenizer_hash": card.tokenizer_hash,
        "device": card.device,
        "task": card.task,
        "round": card.round,
        "codec": codec,
    }
    if card.validation_loss is not None:
        scalars["validation_loss"] = float(card.validation_loss)
    arrays: dict[str, NDArray[Any]] = {}
    named = {_PROMPT: member.prompt} | {_HEAD + n: array for n, array in member.head.items()}
    for name, array in named.items():
        for part, coded in _coded(array, codec, name).items():
            arrays[f"{name}/{part}"] = coded
    return Payload(_KIND, card.round, scalars, arrays).to_blob()


def unpack(blob: bytes, *, max_bytes: int) -> Member:
    """Reads what ``pack`` wrote.

    Args:
        blob: what arrived.
        max_bytes: the longest blob to look at.

    Raises:
        WireError: the payload is damaged, too large or of another kind; a field or array is
            missing, strange, or of the wrong type, shape or dtype.
    """
    payload = read_payload(blob, max_bytes=max_bytes)
    if payload.kind != _KIND:
        raise PromptError("wrong-kind", f"got a {payload.kind!r}, expected a {_KIND!r}")
    scalars = payload.scalars
    wanted: dict[str, type] = dict.fromkeys(_TEXTS, str) | dict.fromkeys(_COUNTS, int)
    for name, kind in wanted.items():
        if type(scalars.get(name)) is not kind:
            raise PromptError("bad-card", f"{name}={scalars.get(name)!r} must be {kind.__name__}")
    loss = scalars.get("validation_loss")
    if loss is not None and (type(loss) is not float or not math.isfinite(loss)):
        raise PromptError("bad-card", f"validation_loss={loss!r} must be a finite float, or absent")
    codec = str(scalars["codec"])
    parts: dict[str, dict[str, NDArray[Any]]] = {}
    for name, array in payload.arrays.items():
        owner, _, part = name.rpartition("/")
        parts.setdefault(owner, {})[part] = array
    decoded = {name: restore(coded, codec, name=name) for name, coded in parts.items()}
    strange = [name for name in decoded if name != _PROMPT and not name.startswith(_HEAD)]
    if _PROMPT not in decoded or strange:
        raise PromptError("missing", f"no prompt, or strange arrays {strange[:3]}")
    card = Card(
        model_hash=str(scalars["model_hash"]),
        tokenizer_hash=str(scalars["tokenizer_hash"]),
        device=_count(scalars, "device"),
        task=str(scalars["task"]),
        round=_count(scalars, "round"),
        validation_loss=loss,
    )
    head = {n.removeprefix(_HEAD): a for n, a in decoded.items() if n != _PROMPT}
    return Member(decoded[_PROMPT], card, head)


def _count(scalars: Mapping[str, Scalar], name: str) -> int:
    return int(scalars[name])


def _coded(array: NDArray[np.float32], codec: str, name: str) -> dict[str, NDArray[Any]]:
    match codec:
        case "int8":
            return _nearest(array, name)
        case "float32" | "float16":
            return squeeze(array, codec, generator(0, "unused"), name=name)
        case _:
            raise WireError("unknown-codec", f"codec {codec!r} must be one of {', '.join(CODECS)}")


def _nearest(array: NDArray[np.float32], name: str) -> dict[str, NDArray[Any]]:
    """Rounds to nearest: a prompt is sent once, so there is no mean over draws to be right."""
    if not np.isfinite(array).all():
        raise WireError("not-finite", f"'{name}' holds NaN or infinity, which has no code")
    peak = np.abs(array).max(axis=-1, keepdims=True, initial=0.0)
    scale = (peak.astype(np.float64) / _LEVELS).astype(np.float32)
    level = array.astype(np.float64) / np.where(scale > 0, scale, 1)
    codes = np.clip(np.rint(level), -_LEVELS, _LEVELS).astype(np.int8)
    return {"codes": codes, "scale": scale}
