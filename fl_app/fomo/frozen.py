"""How a run's frozen model differs from its checkpoint, so that others can have the same one.

Prompts fit the model they were tuned on to the last weight. A run may have replaced the pooler
(``pooler.standardise_pooler``) or rounded the device part to half precision. The pooler is saved;
of rounded tensors the names will do, since rounding a checkpoint again gives the same.
"""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from fl_app.errors import ModelError

_ABOUT = "deft-frozen/1"


@dataclass(frozen=True, eq=False)
class Frozen:
    """What a checkpoint lacks.

    Attributes:
        tensors: values of frozen parameters by name.
        rounded: names of frozen parameters that are to be rounded to float16.
        labels: class names in the order of the logits.
        max_length: tokens after which the run cut texts, >= 2; None in files that do not tell.
    """

    tensors: dict[str, torch.Tensor]
    rounded: tuple[str, ...]
    labels: tuple[str, ...]
    max_length: int | None = None

    def put_into(self, model: Any) -> None:
        """Changes a model that was just loaded from the checkpoint.

        Raises:
            ModelError: it has no such parameters; nothing is changed then.
        """
        own = dict(model.named_parameters())
        shapes = {name: tuple(tensor.shape) for name, tensor in self.tensors.items()}
        for name in (*self.rounded, *shapes):
            if name not in own or tuple(own[name].shape) != shapes.get(name, own[name].shape):
                found = tuple(own[name].shape) if name in own else "none"
                raise ModelError(
                    f"the frozen parameter '{name}' {shapes.get(name, '')} was saved for another "
                    f"model, this one has {found}; give the model of the run"
                )
        with torch.no_grad():
            for name in self.rounded:
                own[name].copy_(own[name].half().float())
            for name, tensor in self.tensors.items():
                own[name].copy_(tensor)


def frozen_of(
    model: Any,
    *,
    heads: Sequence[str],
    carried: Sequence[str],
    labels: Sequence[str],
    max_length: int,
) -> Frozen:
    """Reads off a model what its checkpoint lacks.

    Args:
        model: the frozen model, not wrapped.
        heads: modules that are tuned.
        carried: frozen modules that are not the checkpoint's, by path.
        labels: class names in the order of the logits.
        max_length: tokens after which texts are cut, >= 2.
    """
    leads = tuple(f"{path}." for path in carried)
    tensors, rounded = {}, []
    for name, parameter in model.named_parameters():
        if name.split(".")[0] in heads:
            continue
        tensor = parameter.detach()
        if name.startswith(leads):
            tensors[name] = tensor.clone()
        elif torch.equal(tensor.half().float(), tensor):
            rounded.append(name)  # or it was in half precision from the start: then nothing changes
    return Frozen(tensors, tuple(sorted(rounded)), tuple(labels), max_length)


def save_frozen(frozen: Frozen, path: Path) -> None:
    """Writes one safetensors file; a crash on the way leaves the old one, or none."""
    about = {
        "about": _ABOUT,
        "rounded": frozen.rounded,
        "labels": frozen.labels,
        "max_length": frozen.max_length,
    }
    beside = path.with_suffix(".part")
    beside.write_bytes(save(frozen.tensors, {_ABOUT: json.dumps(about)}))
    os.replace(beside, path)


def load_frozen(path: Path) -> Frozen:
    """Reads what ``save_frozen`` wrote.

    Raises:
        ModelError: it cannot be read, or is something else.
    """
    try:
        with safe_open(path, framework="pt") as file:
            about = json.loads((file.metadata() or {})[_ABOUT])
            tensors = {name: file.get_tensor(name) for name in file.keys()}
        rounded, labels = (tuple(map(str, about[name])) for name in ("rounded", "labels"))
        max_length = about.get("max_length")
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise ModelError(
            f"{path} is no {_ABOUT} file or is damaged ({error!r}); copy it from the run again"
        ) from error
    for name, tensor in tensors.items():
        if tensor.dtype != torch.float32 or not bool(tensor.isfinite().all()):
            raise ModelError(f"{path}: '{name}' must be finite float32; copy it from the run again")
    if max_length is not None and (type(max_length) is not int or max_length < 2):
        raise ModelError(
            f"{path}: max_length={str(max_length)[:20]} must be a whole number >= 2; "
            "copy it from the run again"
        )
    return Frozen(tensors, rounded, labels, max_length)
