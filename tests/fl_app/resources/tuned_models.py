"""Tiny real models tuned in a given layout, with a step's inputs."""

import re
import warnings
from collections.abc import Sequence
from typing import Any

import peft
import torch

from fl_app.fomo.backbone import auto_class, head_modules
from fl_app.fomo.blocks import block_of, stack_paths
from tests.fixtures_models import DEPTH, IMAGE_SIZE, tiny_config

LANGUAGE = ("gpt2", "opt", "llama", "mistral", "qwen2", "t5")
CLASSIFIERS = ("bert", "roberta", "distilbert", "vit")
BATCH, SEQUENCE, NUM_LABELS = 3, 7, 2


def config_of(family: str, **changes: Any) -> Any:
    """A tiny configuration; grouped heads where a family has them."""
    grouped = family in ("llama", "mistral", "qwen2")
    heads = {"num_key_value_heads": 2, "num_attention_heads": 4} if grouped else {}
    return tiny_config(family, **(heads | changes))


def task_of(family: str) -> str:
    if family == "vit":
        return "image_classification"
    return "causal_lm" if family in LANGUAGE else "sequence_classification"


def depth_of(family: str) -> int:
    return 2 * DEPTH if family == "t5" else DEPTH


def frozen_model(config: Any, task: str) -> Any:
    """A model with drawn weights, ``eval`` mode, frozen."""
    if task != "causal_lm":
        config.num_labels = NUM_LABELS
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return auto_class(task, config).from_config(config).eval().requires_grad_(False)


def with_lora(
    model: Any, task: str, sizes: Sequence[int], targets: Sequence[str], *, train_a: bool
) -> Any:
    """The model with LoRA of one rank for every block, its head tuned in full."""
    stacks, ranks = stack_paths(model), {}
    for name, module in model.named_modules():
        place = block_of(name, stacks)
        weight = getattr(module, "weight", None)
        if place is None or name.rsplit(".", 1)[-1] not in targets or weight is None:
            continue
        size = sizes[place[1] + DEPTH * stacks.index(place[0])]
        if weight.ndim == 2 and size > 0:
            ranks["^" + re.escape(name) + "$"] = name, size
    settings = peft.LoraConfig(
        r=1,
        target_modules=[name for name, _ in ranks.values()],
        rank_pattern={pattern: size for pattern, (_, size) in ranks.items()},
        modules_to_save=list(head_modules(model, task)) or None,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wrapped = peft.get_peft_model(model, settings)
    for name, parameter in wrapped.named_parameters():
        if ".lora_A." in name:
            parameter.requires_grad_(train_a)
    return wrapped


def inputs_of(family: str, task: str) -> dict[str, Any]:
    """A padded batch with labels; text ends with the end token."""
    draw = torch.Generator().manual_seed(0)
    labels = torch.arange(BATCH) % NUM_LABELS
    if family == "vit":
        pixels = torch.randn(BATCH, 3, IMAGE_SIZE, IMAGE_SIZE, generator=draw)
        return {"pixel_values": pixels, "labels": labels}
    ids = torch.randint(5, 80, (BATCH, SEQUENCE), generator=draw)
    mask = torch.ones(BATCH, SEQUENCE, dtype=torch.long)
    mask[0, -1] = 0
    inputs = {"input_ids": ids, "attention_mask": mask, "labels": labels}
    return inputs | {"labels": ids, "use_cache": False} if task == "causal_lm" else inputs
