"""The device part on the downlink: what a device needs once for gradient download, as one blob.

Like an emulator it is cached by the hash of its bytes. It holds embeddings, the first c blocks and
the head, and no weight of the blocks behind the cut. The server goes on with what devices hold:
``unpack_device_part`` of what it packed, then ``fl_app.fomo.parts.adopt``.
"""

from dataclasses import dataclass, field

import numpy as np
import torch

from fl_app.errors import ModelError
from fl_app.fomo.blob import (
    config_from,
    load,
    load_untied,
    narrow,
    portable,
    rebuilt,
    require_wire_dtype,
    save,
    untied,
)
from fl_app.fomo.parts import DevicePart, empty_device_part

_FORMAT = "deft-device-part/1"
_FIELD = "strategy.wire_dtype"


@dataclass(frozen=True)
class DevicePackage:
    """A device part with all a device needs beside it.

    Attributes:
        part: front and head.
        labels: class names in the order of the logits.
        files: tokenizer or preprocessor files by name.
        class_shares: share of each class in the server's public rows; empty if it has none.
        data_digest: hash of the training rows that simulated devices share among themselves.
        trunk_shapes: shapes, by canonical name, of the LoRA factors tuned in the server's blocks.
    """

    part: DevicePart
    labels: tuple[str, ...]
    files: dict[str, str]
    class_shares: tuple[float, ...] = ()
    data_digest: str = ""
    trunk_shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)


def pack_device_part(package: DevicePackage, wire_dtype: str = "float16") -> bytes:
    """Serialises a device part.

    Args:
        package: not changed; its model is not wrapped by PEFT.
        wire_dtype: ``float16`` rounds; ``float32`` and ``auto`` are exact (stored in half precision
            where that loses nothing).

    Raises:
        ModelError: unknown ``wire_dtype``, or a weight overflows half precision.
    """
    require_wire_dtype(wire_dtype, _FIELD)
    tensors = {
        name: narrow(tensor.detach().numpy(), wire_dtype != "float16", _FIELD)
        for name, tensor in untied(package.part.model).items()
    }
    header = {
        "format": _FORMAT,
        "config": portable(package.part.model.config),
        "task": package.part.task,
        "cut": package.part.cut,
        "labels": list(package.labels),
        "files": package.files,
        "class_shares": list(package.class_shares),
        "data_digest": package.data_digest,
        "trunk_shapes": package.trunk_shapes,
    }
    return save(tensors, header)


def unpack_device_part(blob: bytes) -> DevicePackage:
    """Rebuilds a device part.

    Raises:
        ModelError: the blob is no device part of this format, or is damaged.
    """
    return rebuilt(blob, _rebuild, "device part's blob")


def _rebuild(blob: bytes) -> DevicePackage:
    tensors, header = load(blob, _FORMAT, "device part")
    part = empty_device_part(config_from(header["config"]), header["task"])
    if part.cut != header["cut"]:
        raise ModelError(f"the device part's configuration has {part.cut} blocks, not its cut")
    state = {name: torch.from_numpy(t.astype(np.float32)) for name, t in tensors.items()}
    load_untied(part.model, state, "device part's")
    return DevicePackage(
        part=part,
        labels=tuple(header["labels"]),
        files=header["files"],
        class_shares=tuple(header["class_shares"]),
        data_digest=header["data_digest"],
        trunk_shapes={name: tuple(shape) for name, shape in header["trunk_shapes"].items()},
    )
