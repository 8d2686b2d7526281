"""What crosses the downlink once: an emulator with all a device needs, in one safetensors blob.

The blob holds the weights (middle matrices pruned or quantised and packed, the rest exact or in
half precision), the ``transformers`` configuration, the tokenizer or preprocessor files, the labels
and the split. It is named by the SHA-256 of its bytes. There is no pickle anywhere.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from fl_app.fomo.blob import (
    WIRE_DTYPES,
    config_from,
    content_hash,
    load,
    load_untied,
    narrow,
    portable,
    rebuilt,
    require_wire_dtype,
    save,
    untied,
)
from fl_app.fomo.compress import Compression, pack_matrix, unpack_matrix
from fl_app.fomo.emulator import Split, empty_model, middle_parameters

_FORMAT = "deft-emulator/1"
_FIELD = "strategy.emulator.wire_dtype"
__all__ = ["WIRE_DTYPES", "EmulatorPackage", "content_hash", "pack", "unpack"]


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
    require_wire_dtype(wire_dtype, _FIELD)
    exact = wire_dtype == "float32" or (
        wire_dtype == "auto" and package.split.is_identity and how.is_lossless
    )
    middle = middle_parameters(package.model, package.split)
    tensors: dict[str, np.ndarray[Any, Any]] = {}
    packed: dict[str, list[int]] = {}
    for name, tensor in untied(package.model).items():
        array = tensor.detach().numpy()
        if name in middle and array.ndim == 2 and not how.is_lossless:
            packed[name] = list(array.shape)
            for part, values in pack_matrix(array, how).items():
                tensors[f"{name}|{part}"] = (
                    values if part == "span" else narrow(values, exact, _FIELD)
                )
        else:
            tensors[name] = narrow(array, exact, _FIELD)
    header = {
        "format": _FORMAT,
        "config": portable(package.model.config),
        "task": package.task,
        "labels": list(package.labels),
        "files": package.files,
        "class_shares": list(package.class_shares),
        "data_digest": package.data_digest,
        "split": _numbers(package.split),
        "compression": [how.sparsity, how.bits],
        "packed": packed,
    }
    return save(tensors, header)


def unpack(blob: bytes) -> EmulatorPackage:
    """Rebuilds an emulator.

    Raises:
        ModelError: the blob is no emulator of this format, or is damaged.
    """
    return rebuilt(blob, _rebuild, "emulator blob")


def _rebuild(blob: bytes) -> EmulatorPackage:
    tensors, header = load(blob, _FORMAT, "emulator")
    config = config_from(header["config"])
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
    load_untied(model, state, "emulator")
    return EmulatorPackage(
        model=model,
        split=split,
        task=header["task"],
        labels=tuple(header["labels"]),
        files=header["files"],
        class_shares=tuple(header["class_shares"]),
        data_digest=header["data_digest"],
    )


def _numbers(split: Split) -> tuple[int, int, int, int]:
    return split.left, split.middle, split.right, split.total


def _untied_names(tensors: dict[str, Any]) -> list[str]:
    return list(dict.fromkeys(key.split("|")[0] for key in tensors))
