"""The one table that says where each model family keeps its transformer blocks.

Everything that treats blocks one by one (emulators, layouts) goes through this table, so a new
family is one row here and nothing else.
"""

import dataclasses
import re
from dataclasses import dataclass
from typing import Any

from torch import nn

from fl_app.errors import ModelError


@dataclass(frozen=True)
class Family:
    """Where one ``transformers`` model type keeps its blocks.

    Attributes:
        stacks: paths of the block lists, relative to the model without its head. An
            encoder-decoder has two; both are split alike.
        depth_fields: configuration fields that hold the number of blocks, one for each stack.
        targets: names of the linear maps inside a block that LoRA adapts where ``peft.targets`` is
            empty (query and value projections, or the fused projection of a family that has one).
        self_attention: name, inside a block, of the module that computes self-attention.
        feed_forward: name, inside a block of the first stack, of the linear map into the neurons of
            the feed-forward network.
        pooler: name, relative to the model without its head, of a frozen map between the last block
            and the classifier; None where the classifier brings its own or needs none.
    """

    stacks: tuple[str, ...]
    depth_fields: tuple[str, ...]
    targets: tuple[str, ...]
    self_attention: str
    feed_forward: str
    pooler: str | None = None


_BERT = Family(
    ("encoder.layer",),
    ("num_hidden_layers",),
    ("query", "value"),
    "attention.self",
    "intermediate.dense",
)
_POOLED = dataclasses.replace(_BERT, pooler="pooler")
_LLAMA = Family(
    ("layers",), ("num_hidden_layers",), ("q_proj", "v_proj"), "self_attn", "mlp.gate_proj"
)

FAMILIES: dict[str, Family] = {
    "bert": _POOLED,
    "roberta": _BERT,
    "distilbert": Family(
        ("transformer.layer",), ("n_layers",), ("q_lin", "v_lin"), "attention", "ffn.lin1"
    ),
    "gpt2": Family(("h",), ("n_layer",), ("c_attn",), "attn", "mlp.c_fc"),
    "opt": Family(
        ("decoder.layers",), ("num_hidden_layers",), ("q_proj", "v_proj"), "self_attn", "fc1"
    ),
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "qwen2": _LLAMA,
    "t5": Family(
        ("encoder.block", "decoder.block"),
        ("num_layers", "num_decoder_layers"),
        ("q", "v"),
        "layer.0.SelfAttention",
        "layer.1.DenseReluDense.wi",
    ),
    "vit": Family(
        ("layers",), ("num_hidden_layers",), ("q_proj", "v_proj"), "attention", "mlp.fc1"
    ),
}


def family_of(config: Any) -> Family:
    """Returns the table row of a ``transformers`` configuration.

    Raises:
        ModelError: the model type has no row.
    """
    model_type = str(config.model_type)
    if model_type not in FAMILIES:
        raise ModelError(
            f"model type '{model_type}' is not supported; choose one of {sorted(FAMILIES)} "
            "or add a row to fl_app/fomo/blocks.py"
        )
    return FAMILIES[model_type]


def stack_paths(model: nn.Module) -> tuple[str, ...]:
    """Returns the full paths of the block lists inside ``model``, head included or not."""
    prefix = str(model.base_model_prefix)
    lead = f"{prefix}." if hasattr(model, prefix) else ""
    return tuple(lead + stack for stack in family_of(model.config).stacks)


def num_blocks(config: Any) -> int:
    """Returns the number of blocks of each stack.

    Raises:
        ModelError: the stacks differ in depth; a split l-n-r needs equal depths.
    """
    depths = [int(getattr(config, field)) for field in family_of(config).depth_fields]
    if len(set(depths)) != 1:
        raise ModelError(
            f"encoder and decoder have {depths} blocks; an emulator splits both alike, "
            "so choose a model with equal depths"
        )
    return depths[0]


def block_of(name: str, stacks: tuple[str, ...]) -> tuple[str, int] | None:
    """Returns (stack path, block index) of a parameter or module name, None outside all blocks."""
    for stack in stacks:
        if match := re.match(re.escape(stack) + r"\.(\d+)(\.|$)", name):
            return stack, int(match[1])
    return None


def renumber(name: str, stacks: tuple[str, ...], to: dict[int, int]) -> str:
    """Returns ``name`` with its block index replaced through ``to``; other names unchanged.

    Raises:
        KeyError: the block index is not in ``to``.
    """
    place = block_of(name, stacks)
    if place is None:
        return name
    stack, index = place
    return f"{stack}.{to[index]}{name[len(stack) + 1 + len(str(index)) :]}"
