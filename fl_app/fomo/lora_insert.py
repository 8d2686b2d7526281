"""Puts LoRA layers into a model: PEFT does it, this module says into which maps."""

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import peft
import torch
from torch import nn

from fl_app.errors import ModelError
from fl_app.fomo.blocks import family_of
from fl_app.fomo.lora import LoraSpec

_ALL = "all-linear"


def insert_lora(
    model: Any,
    spec: LoraSpec,
    *,
    blocks: Sequence[int],
    is_tuned: Callable[[str], bool],
    saved: Sequence[str],
) -> Any:
    """Wraps a model in place.

    Args:
        model: a frozen ``transformers`` model.
        spec: rank, scale and targets.
        blocks: the tuned blocks by index in the full model, for errors.
        is_tuned: tells of a module's path whether it is in one of them.
        saved: names of modules that PEFT saves along.

    Raises:
        ModelError: no map of the tuned blocks has one of the target names.
    """
    maps = [name for name, each in model.named_modules() if _is_linear(each) and is_tuned(name)]
    known = {name.rsplit(".", 1)[-1] for name in maps}
    targets = set(spec.targets or family_of(model.config).targets)
    if targets == {_ALL}:
        targets = known
    if unknown := targets - known:
        raise ModelError(
            f"peft.targets={list(spec.targets)}: the tuned blocks {list(blocks)} of a "
            f"{model.config.model_type} model have no map {', '.join(sorted(unknown))}; choose "
            f"among {', '.join(sorted(known))}, or {_ALL} alone"
        )
    config = peft.LoraConfig(
        r=spec.rank,
        lora_alpha=spec.alpha,  # type: ignore[arg-type]  # PEFT divides, floats are fine
        target_modules=[name for name in maps if name.rsplit(".", 1)[-1] in targets],
        modules_to_save=list(saved) or None,
        task_type=None,
    )
    with warnings.catch_warnings():
        # GPT-2's fused projection is a transposed map; PEFT notices and says so each time.
        warnings.filterwarnings("ignore", message="fan_in_fan_out is set to False")
        # PEFT reads this by the name that transformers has replaced.
        warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated")
        return peft.get_peft_model(model, config)


def _is_linear(module: nn.Module) -> bool:
    """Tells linear maps (GPT-2's transposed ones too) from norms and T5's table of positions."""
    weight = getattr(module, "weight", None)
    is_matrix = torch.is_tensor(weight) and weight.ndim == 2
    return is_matrix and not isinstance(module, nn.Embedding)
