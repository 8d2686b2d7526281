"""What one exchange carries: a kind, a step, flat scalars and named arrays in one blob.

The blob is a safetensors file, so there is no pickle; everything but the arrays stands as JSON in
its one metadata entry, behind a CRC-32 of the whole blob. Bytes booked are ``len(blob)``.
"""

import json
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy
from numpy.typing import NDArray

from fl_app.errors import WireError

Scalar = int | float | str | bool

FORMAT = "deft-payload/1"
DTYPES = ("float32", "float16", "int8", "uint8", "bool", "int32", "int64")
MAX_KIND = 40
_SCALARS = (int, float, str, bool)
_START = b'{"__metadata__":{"deft":"'  # safetensors writes its metadata first
_RESERVED = "__metadata__"
_CRC_AT = 8 + len(_START)
_CRC_LENGTH = 8
_NO_CRC = "0" * _CRC_LENGTH


@dataclass(frozen=True)
class Payload:
    """Content of one exchange in one direction.

    Attributes:
        kind: what it is, 1 to 40 characters; the reader compares it with what it expects.
        step: number of the local step it belongs to, >= 0.
        scalars: flat named values; NaN is allowed here and judged by who uses it.
        arrays: named arrays of any shape, of a dtype in ``DTYPES``; NaN is allowed likewise.

    Raises:
        WireError: ``bad-kind``, ``bad-step``, ``bad-scalar``, ``bad-name`` or
            ``wrong-dtype``.
    """

    kind: str
    step: int
    scalars: Mapping[str, Scalar] = field(default_factory=dict)
    arrays: Mapping[str, NDArray[Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Checks every field."""
        if type(self.kind) is not str or not 1 <= len(self.kind) <= MAX_KIND:
            raise WireError("bad-kind", f"kind={self.kind!r} must be 1 to {MAX_KIND} characters")
        if type(self.step) is not int or self.step < 0:
            raise WireError("bad-step", f"step={self.step!r} must be an int >= 0")
        for name, value in self.scalars.items():
            if type(name) is not str or type(value) not in _SCALARS:  # no np.float64, no list
                raise WireError(
                    "bad-scalar",
                    f"scalar '{name}'={str(value)[:80]!r} is {type(value).__name__}, must be int, "
                    "float, str or bool; convert it",
                )
        for name, array in self.arrays.items():
            if name == _RESERVED:
                raise WireError("bad-name", f"no array may be named '{_RESERVED}'; rename it")
            if array.dtype.name not in DTYPES:
                raise WireError(
                    "wrong-dtype",
                    f"array '{name}' is {array.dtype.name}, must be one of {', '.join(DTYPES)}",
                )

    def to_blob(self) -> bytes:
        """Serialises; equal payloads give equal bytes, whatever the order of names.

        Raises:
            WireError: ``bad-scalar``, a name or string is no valid Unicode.
        """
        facts = {"format": FORMAT, "kind": self.kind, "step": self.step, "scalars": self.scalars}
        ordered = {name: np.asarray(self.arrays[name], order="C") for name in sorted(self.arrays)}
        try:
            header = _NO_CRC + json.dumps(facts, sort_keys=True, default=dict)
            blob = safetensors.numpy.save(ordered, metadata={"deft": header})
        except UnicodeError as error:
            raise WireError("bad-scalar", f"a name or string is no Unicode: {error}") from error
        crc = f"{_crc(blob):08x}".encode()
        return b"".join((memoryview(blob)[:_CRC_AT], crc, memoryview(blob)[_CRC_AT + len(crc) :]))


def read_payload(blob: bytes, *, max_bytes: int) -> Payload:
    """Reads a payload; nothing is repaired.

    Args:
        blob: what arrived.
        max_bytes: the longest blob to look at, >= 1.

    Returns:
        The payload; its arrays are copies in the order of their names.

    Raises:
        WireError: ``too-large``, ``unknown-format``, ``damaged`` (CRC or structure), or one of
            those of ``Payload``.
    """
    if len(blob) > max_bytes:
        raise WireError("too-large", f"a payload of {len(blob)} bytes, allowed are {max_bytes}")
    if not blob.startswith(_START, 8):
        raise WireError("unknown-format", f"the bytes do not start as {FORMAT} does")
    if blob[_CRC_AT : _CRC_AT + _CRC_LENGTH] != f"{_crc(blob):08x}".encode():
        raise WireError("damaged", "the payload's checksum differs")
    try:
        header = json.loads(blob[8 : 8 + int.from_bytes(blob[:8], "little")])
        facts = json.loads(header["__metadata__"]["deft"][_CRC_LENGTH:])
        form = facts["format"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise WireError("damaged", f"the payload's header cannot be read: {error!r}") from error
    if form != FORMAT:
        raise WireError("unknown-format", f"the payload is {str(form)[:40]!r}, expected {FORMAT!r}")
    try:
        arrays = safetensors.numpy.load(blob)
        kind, step, scalars = facts["kind"], facts["step"], dict(facts["scalars"])
    except (safetensors.SafetensorError, ValueError, KeyError, TypeError) as error:
        raise WireError("damaged", f"the payload cannot be read: {error!r}") from error
    return Payload(kind, step, scalars, {name: arrays[name] for name in sorted(arrays)})


def _crc(blob: bytes) -> int:
    """CRC-32 of a blob whose own CRC field counts as zeros."""
    view = memoryview(blob)
    head = zlib.crc32(_NO_CRC.encode(), zlib.crc32(view[:_CRC_AT]))
    return zlib.crc32(view[_CRC_AT + _CRC_LENGTH :], head)
