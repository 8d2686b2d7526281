"""Named arrays and single fields in Flower's records.

An adapter or update travels as one safetensors blob in one Flower ``Array``: no pickle, one header
instead of one per tensor, and the bytes booked are the bytes sent.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy
from flwr.app import Array, ArrayRecord
from numpy.typing import NDArray

from fl_app.errors import WireError
from fl_app.updates import Update

BLOB = "blob"


def blob_record(blob: bytes) -> ArrayRecord:
    """Wraps raw bytes; Flower chunks and deduplicates them like any array."""
    return ArrayRecord({BLOB: Array(dtype="uint8", shape=(len(blob),), stype="bytes", data=blob)})


def blob_of(record: ArrayRecord) -> bytes:
    """Unwraps raw bytes."""
    return record[BLOB].data


def to_blob(update: Mapping[str, NDArray[np.float32]]) -> bytes:
    """Serialises named arrays, sorted by name."""
    ordered = {name: np.asarray(update[name], order="C") for name in sorted(update)}
    return safetensors.numpy.save(ordered)


def from_blob(blob: bytes) -> Update:
    """Reads named arrays.

    Raises:
        WireError: the bytes are no safetensors blob.
    """
    try:
        return dict(safetensors.numpy.load(blob))
    except (safetensors.SafetensorError, KeyError, ValueError) as error:
        raise WireError("damaged", f"the payload is no safetensors blob: {error}") from error


def field_of(record: Mapping[str, Any], key: str, kind: type) -> Any:
    """Returns one entry of a record.

    Raises:
        WireError: ``missing``, or not exactly of this type.
    """
    value = record.get(key)
    if type(value) is not kind:  # bool is an int for isinstance, and no round number
        raise WireError("missing", f"'{key}' should be {kind.__name__}, got {value!r}")
    return value
