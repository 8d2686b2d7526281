"""Models as bytes: one safetensors blob with weights, configuration and whatever else is needed.

Everything that is no tensor is JSON in a single metadata entry; there is no pickle anywhere. Equal
content gives equal bytes, so a blob is named by the SHA-256 of its bytes.
"""

import hashlib
import json
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
import safetensors.numpy
import torch
import transformers

from fl_app.errors import ModelError

_HEADER = "deft"
WIRE_DTYPES = ("auto", "float16", "float32")
Array = np.ndarray[Any, Any]
Package = TypeVar("Package")


def content_hash(blob: bytes) -> str:
    """Returns the hex SHA-256 by which a blob is addressed."""
    return hashlib.sha256(blob).hexdigest()


def require_wire_dtype(wire_dtype: str, field: str) -> None:
    """Checks a precision.

    Raises:
        ModelError: it is none of ``WIRE_DTYPES``; the text names ``field``.
    """
    if wire_dtype not in WIRE_DTYPES:
        raise ModelError(f"{field}={wire_dtype!r}; choose one of {list(WIRE_DTYPES)}")


def narrow(array: Array, exact: bool, field: str) -> Array:
    """Returns ``array`` in half precision where allowed; integer arrays are left alone.

    Args:
        array: any shape.
        exact: go to half precision only where that loses nothing.
        field: the configuration field that chose the precision, for the error.

    Raises:
        ModelError: an entry overflows half precision.
    """
    if array.dtype != np.float32:
        return np.ascontiguousarray(array)
    with np.errstate(over="ignore"):
        half = array.astype(np.float16)
    if exact:
        same = np.array_equal(half.astype(np.float32), array)
        return half if same else np.ascontiguousarray(array)
    if not np.isfinite(half).all():
        raise ModelError(f"a weight overflows half precision; set {field}=float32")
    return half


def untied(model: Any) -> dict[str, torch.Tensor]:
    """Returns the state without second names of shared tensors."""
    seen: set[int] = set()
    state = {}
    for name, tensor in model.state_dict().items():
        if tensor.data_ptr() not in seen:
            seen.add(tensor.data_ptr())
            state[name] = tensor
    return state


def load_untied(model: Any, state: dict[str, torch.Tensor], what: str) -> None:
    """Loads what ``untied`` gave, ties the rest, and freezes the model in ``eval`` mode.

    Raises:
        ModelError: a weight is missing or strange; the text says ``what`` lacks it.
    """
    missing, unexpected = model.load_state_dict(state, strict=False)
    tied = set(model.state_dict()) - set(untied(model))
    if unexpected or set(missing) - tied:
        raise ModelError(f"the {what} blob lacks {missing[:3]} or has strange {unexpected[:3]}")
    model.tie_weights()
    model.eval().requires_grad_(False)


def portable(config: Any) -> dict[str, Any]:
    """Returns a configuration without the path of its checkpoint: that is no content."""
    fields: dict[str, Any] = json.loads(config.to_json_string(use_diff=False))
    fields.pop("_name_or_path", None)
    return fields


def config_from(fields: dict[str, Any]) -> Any:
    """Rebuilds the configuration that ``portable`` wrote down."""
    rest = dict(fields)
    return transformers.AutoConfig.for_model(rest.pop("model_type"), **rest)


def rebuilt(blob: bytes, rebuild: Callable[[bytes], Package], what: str) -> Package:
    """Returns ``rebuild(blob)``; whatever a damaged blob makes it raise becomes one error.

    Raises:
        ModelError: the blob is none of this format, or is damaged; the text says ``what`` it is.
    """
    try:
        return rebuild(blob)
    except ModelError:
        raise
    # A damaged configuration goes through transformers and torch, which raise whatever they like.
    except Exception as error:
        raise ModelError(f"the {what} is damaged: {error}") from error


def save(tensors: dict[str, Array], header: dict[str, Any]) -> bytes:
    """Serialises; one metadata entry only, for safetensors writes several in random order."""
    ordered = {name: tensors[name] for name in sorted(tensors)}
    text = json.dumps(header, sort_keys=True)
    return safetensors.numpy.save(ordered, metadata={_HEADER: text})


def load(blob: bytes, wanted: str, what: str) -> tuple[dict[str, Array], dict[str, Any]]:
    """Returns tensors and header.

    Raises:
        ModelError: the header's format is not ``wanted``. A damaged blob raises whatever
            safetensors, JSON or NumPy raise.
    """
    tensors = safetensors.numpy.load(blob)
    outer = json.loads(blob[8 : 8 + int.from_bytes(blob[:8], "little")])["__metadata__"]
    header: dict[str, Any] = json.loads(outer[_HEADER])
    if header["format"] != wanted:
        raise ModelError(f"unknown {what} format {header['format']!r}, expected {wanted}")
    return tensors, header
