"""What crosses the downlink once: an emulator with all a device needs, in one safetensors blob.

The blob holds the weights (middle matrices pruned or quantised and packed, the rest exact or in
half precision), the ``transformers`` configuration, the tokenizer or preprocessor files, the labels
and the split. It is named by the SHA-256 of its bytes. There is no pickle anywhere.
"""

import hashlib
import json
from dataclasses import dataclass
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy
import torch
import transformers

from fl_app.errors import ModelError
from fl_app.fomo.compress import Compression, pack_matrix, unpack_matrix
from fl_app.fomo.emulator import Split, empty_model, middle_parameters

_FORMAT = "deft-emulator/1"
_HEADER = "deft"
WIRE_DTYPES = ("auto", "float16", "float32")


@dataclass(frozen=True)
class EmulatorPackage:
    """An unpacked emulator.

    Attributes:
        model: frozen float32 model in ``eval`` mode.
        split: which blocks it holds.
        task: the model's task.
        labels: class names in the order of the logits.
        files: tokenizer or preprocessor files by name.
        class_shares: share of each class in the server's public rows; empty if it has none.
        data_digest: hash of the training rows that simulated devices share among themselves.
    """

    model: Any
    split: Split
    task: str
    labels: tuple[str, ...]
    files: dict[str, str]
    class_shares: tuple[float, ...] = ()
    data_digest: str = ""


def content_hash(blob: bytes) -> str:
    """Returns the hex SHA-256 by which an emulator is addressed."""
    return hashlib.sha256(blob).hexdigest()


def pack(package: EmulatorPackage, how: Compression, wire_dtype: str = "auto") -> bytes:
    """Serialises an emulator.

    Args:
        package: the emulator; not changed.
        how: compression of the two-dimensional weights of the middle blocks.
        wire_dtype: of everything else. ``float32`` is exact (stored in half precision only where
            that loses nothing), ``float16`` rounds, ``auto`` rounds unless the emulator drops,
            prunes and quantises nothing, for then it is meant to be the full model bit for bit.

    Raises:
        ModelError: unknown ``wire_dtype``, or a weight overflows half precision.
    """
    if wire_dtype not in WIRE_DTYPES:
        raise ModelError(
            f"strategy.emulator.wire_dtype={wire_dtype!r}; choose one of {list(WIRE_DTYPES)}"
        )
    exact = wire_dtype == "float32" or (
        wire_dtype == "auto" and package.split.is_identity and how.is_lossless
    )
    middle = middle_parameters(package.model, package.split)
    tensors: dict[str, np.ndarray[Any, Any]] = {}
    packed: dict[str, list[int]] = {}
    for name, tensor in _untied(package.model).items():
        array = tensor.detach().numpy()
        if name in middle and array.ndim == 2 and not how.is_lossless:
            packed[name] = list(array.shape)
            for part, values in pack_matrix(array, how).items():
                tensors[f"{name}|{part}"] = values if part == "span" else _narrow(values, exact)
        else:
            tensors[name] = _narrow(array, exact)
    header = {
        "format": _FORMAT,
        "config": _portable(package.model.config),
        "task": package.task,
        "labels": list(package.labels),
        "files": package.files,
        "class_shares": list(package.class_shares),
        "data_digest": package.data_digest,
        "split": _numbers(package.split),
        "compression": [how.sparsity, how.bits],
        "packed": packed,
    }
    return _save(tensors, header)


def unpack(blob: bytes) -> EmulatorPackage:
    """Rebuilds an emulator.

    Raises:
        ModelError: the blob is no emulator of this format, or is damaged.
    """
    try:
        return _rebuild(blob)
    except ModelError:
        raise
    # A damaged configuration goes through transformers and torch, which raise whatever they like.
    except Exception as error:
        raise ModelError(f"the emulator blob is damaged: {error}") from error


def _rebuild(blob: bytes) -> EmulatorPackage:
    tensors = safetensors.numpy.load(blob)
    outer = json.loads(blob[8 : 8 + int.from_bytes(blob[:8], "little")])["__metadata__"]
    header = json.loads(outer[_HEADER])
    if header["format"] != _FORMAT:
        raise ModelError(f"unknown emulator format {header['format']!r}, expected {_FORMAT}")
    fields = header["config"]
    config = transformers.AutoConfig.for_model(fields.pop("model_type"), **fields)
    split = Split(*header["split"])
    how = Compression(*header["compression"])
    packed: dict[str, list[int]] = header["packed"]
    state = {}
    for name in _untied_names(tensors):
        if name in packed:
            parts = {
                key.split("|")[1]: tensors[key] for key in tensors if key.startswith(f"{name}|")
            }
            array = unpack_matrix(parts, tuple(packed[name]), how)
        else:
            array = tensors[name].astype(np.float32)
        state[name] = torch.from_numpy(array)
    model = empty_model(config, header["task"])
    missing, unexpected = model.load_state_dict(state, strict=False)
    tied = set(model.state_dict()) - set(_untied(model))
    if unexpected or set(missing) - tied:
        raise ModelError(f"the emulator blob lacks {missing[:3]} or has strange {unexpected[:3]}")
    model.tie_weights()
    return EmulatorPackage(
        model=model.eval().requires_grad_(False),
        split=split,
        task=header["task"],
        labels=tuple(header["labels"]),
        files=header["files"],
        class_shares=tuple(header["class_shares"]),
        data_digest=header["data_digest"],
    )


def _numbers(split: Split) -> tuple[int, int, int, int]:
    return split.left, split.middle, split.right, split.total


def _narrow(array: np.ndarray[Any, Any], exact: bool) -> np.ndarray[Any, Any]:
    """Returns ``array`` in half precision where allowed; integer arrays are left alone."""
    if array.dtype != np.float32:
        return np.ascontiguousarray(array)
    with np.errstate(over="ignore"):
        half = array.astype(np.float16)
    if exact:
        same = np.array_equal(half.astype(np.float32), array)
        return half if same else np.ascontiguousarray(array)
    if not np.isfinite(half).all():
        raise ModelError(
            "a weight overflows half precision; set strategy.emulator.wire_dtype=float32"
        )
    return half


def _untied(model: Any) -> dict[str, torch.Tensor]:
    """Returns the state without second names of shared tensors."""
    seen: set[int] = set()
    state = {}
    for name, tensor in model.state_dict().items():
        if tensor.data_ptr() not in seen:
            seen.add(tensor.data_ptr())
            state[name] = tensor
    return state


def _untied_names(tensors: dict[str, Any]) -> list[str]:
    return list(dict.fromkeys(key.split("|")[0] for key in tensors))


def _portable(config: Any) -> dict[str, Any]:
    """Returns a configuration without the path of its checkpoint: that is no content."""
    fields: dict[str, Any] = json.loads(config.to_json_string(use_diff=False))
    fields.pop("_name_or_path", None)
    return fields


def _save(tensors: dict[str, np.ndarray[Any, Any]], header: dict[str, Any]) -> bytes:
    """Serialises; one metadata entry only, for safetensors writes several in random order."""
    ordered = {name: tensors[name] for name in sorted(tensors)}
    text = json.dumps(header, sort_keys=True)
    return safetensors.numpy.save(ordered, metadata={_HEADER: text})
