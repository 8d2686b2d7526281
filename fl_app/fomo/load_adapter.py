"""Puts a saved adapter that PEFT cannot read into an untouched checkpoint.

::

    from transformers import AutoModelForSequenceClassification
    from fl_app.fomo.load_adapter import load_adapter

    base = AutoModelForSequenceClassification.from_pretrained(MODEL_DIR, num_labels=18)
    model = load_adapter(base, "outputs/latest/adapter")
"""

from pathlib import Path
from typing import Any

import torch
from torch import nn

from fl_app.errors import ModelError
from fl_app.fomo.adapter import Adapter
from fl_app.fomo.blocks import num_blocks
from fl_app.fomo.own_format import LEAD, read_own
from fl_app.layout.prefix import layout_of

_PLACES = ("bottleneck", "prompt")
"""Names under which blocks and attentions hold what is put into them."""


def load_adapter(model: Any, folder: str | Path) -> nn.Module:
    """Loads an adapter that ``Adapter.save`` wrote for ``peft=bottleneck`` or ``deep_prompt``.

    Args:
        model: the checkpoint the adapter was tuned for, as ``transformers`` loads it, with as many
            labels; it is changed in place.
        folder: the saved adapter.

    Returns:
        The model with its adapter, frozen, in ``eval`` mode; it is called as ``model`` is.

    Raises:
        ModelError: the folder holds no such adapter, it does not fit the model, or the model has
            one already.
    """
    config, spec, tensors = read_own(Path(folder))
    if any(hasattr(module, kind) for module in model.modules() for kind in _PLACES):
        raise ModelError(
            f"the model already has an adapter, and '{folder}' would come on top of it; load the "
            "checkpoint again"
        )
    try:
        blocks, heads = list(config["blocks"]), list(config["heads"])
        carried = {str(name): model.get_submodule(name) for name in config["carried"]}
        adapter = Adapter(
            model.eval().requires_grad_(False),
            blocks=range(num_blocks(model.config)),
            tuned_blocks=blocks,
            heads=heads,
            spec=spec,
            seed=0,
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise ModelError(
            f"the adapter in '{folder}' does not fit a {model.config.model_type} model: {error}; "
            "give the checkpoint that it was tuned for"
        ) from error
    arrays = {name: tensor.numpy() for name, tensor in tensors.items()}
    adapter.resize(dict.fromkeys(adapter.layout, 0) | layout_of(arrays))
    for name, module in carried.items():
        lead = f"{LEAD}{name}."
        own = {n.removeprefix(lead): t for n, t in tensors.items() if n.startswith(lead)}
        _load(module, name, own)
        arrays = {n: array for n, array in arrays.items() if not n.startswith(lead)}
    adapter.write(arrays)
    loaded: nn.Module = adapter.model
    return loaded.requires_grad_(False)


def _load(module: nn.Module, name: str, state: dict[str, torch.Tensor]) -> None:
    try:
        module.load_state_dict(state)
    except RuntimeError as error:
        raise ModelError(
            f"the adapter's module '{name}' does not fit the model: {error}"
        ) from error
