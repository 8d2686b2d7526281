"""Deep prompts: virtual tokens of every tuned block's own, as keys and values of its attention.

Prefix-tuning (Li and Liang 2021, arXiv:2101.00190; P-tuning v2, arXiv:2110.07602) without its
re-parametrising network: in front of the keys [S, w] and values [S, w] that a block's own attention
computes, l tuned ones are put, which every position attends to. One unit is one virtual token: a
row of the keys and a row of the values. Inputs get no longer, a block's length is of no concern to
any other, and length 0 is the frozen block, bit for bit. Rotary positions do not turn tuned keys,
and relative positions (T5) do not weigh them: a virtual token is equally near to all.

All families call their attention through the table of ``transformers``; the entry made here puts
the virtual tokens in and calls the ordinary one.
"""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from fl_app.errors import ModelError
from fl_app.fomo.unit_layers import require_layout
from fl_app.layout.prefix import KEYS, Layout, block_number
from fl_app.seeding import generator

_ATTENTION, _PLAIN = "deft_deep_prompt", "sdpa"
"""Names in the table of ``transformers``: ours, and the one that it calls."""


@dataclass(frozen=True)
class DeepPromptSpec:
    """What deep prompts add.

    Attributes:
        num_tokens: l >= 1 virtual tokens of every tuned block, until ``DeepPrompts.resize`` says
            otherwise.
    """

    num_tokens: int


class DeepPrompt(nn.Module):
    """One block's virtual tokens; its parameters are None where there are none.

    Attributes:
        keys: [l, w], w = heads of keys times their width.
        values: [l, w].
    """

    keys: nn.Parameter | None
    values: nn.Parameter | None

    def __init__(self) -> None:
        super().__init__()
        self.register_parameter("keys", None)
        self.register_parameter("values", None)

    def extend(
        self, keys: torch.Tensor, values: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, int]:
        """Puts the virtual tokens in front of keys and values [B, heads, S, width of a head].

        Returns:
            ([B, heads, l + S, width] twice, l).
        """
        if self.keys is None or self.values is None:
            return keys, values, 0
        return _joined(self.keys, keys), _joined(self.values, values), len(self.keys)


def _joined(own: torch.Tensor, states: torch.Tensor) -> torch.Tensor:
    heads = own.view(len(own), states.shape[1], states.shape[3]).transpose(0, 1)
    return torch.cat([heads.expand(len(states), -1, -1, -1), states], dim=2)


def attend(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    position_bias: torch.Tensor | None = None,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """Attends to a block's virtual tokens and to the text; arguments are those of the table.

    Args:
        module: the attention; its ``prompt`` is what ``DeepPrompts`` put there, if it did.
        query: [B, query heads, Q, width of a head].
        key: [B, key heads, S, width of a head].
        value: like ``key``.
        attention_mask: [B, 1 or heads, Q, S], boolean or added to the scores; None for all, or, in
            causal attention, for all keys up to the query's own.
        position_bias: [1 or B, heads, Q, S] added to the scores.
        **options: passed on.
    """
    prompt = getattr(module, "prompt", None)
    if prompt is None or prompt.keys is None:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, position_bias=position_bias, **options
        )
    given = options.get("is_causal")
    is_causal = getattr(module, "is_causal", True) if given is None else given
    if attention_mask is None and is_causal:
        num_queries, num_keys = query.shape[2], key.shape[2]
        seen = torch.ones(num_queries, num_keys, dtype=torch.bool, device=query.device)
        attention_mask = seen.tril(num_keys - num_queries)[None, None]
    key, value, length = prompt.extend(key, value)
    if attention_mask is not None:
        sees = 1.0 if attention_mask.dtype == torch.bool else 0.0
        attention_mask = nn.functional.pad(attention_mask, (length, 0), value=sees)
    if position_bias is not None:
        position_bias = nn.functional.pad(position_bias, (length, 0))
    return sdpa_attention_forward(
        module, query, key, value, attention_mask, position_bias=position_bias, **options
    )


AttentionInterface.register(_ATTENTION, attend)
AttentionMaskInterface.register(_ATTENTION, sdpa_mask)


def keys_drawn(seed: int, name: str, shape: tuple[int, int]) -> NDArray[np.float32]:
    """Returns keys [l, w] as drawn, N(0, 1): scores of about the spread of the text's own.

    Row after row from one stream, so that fewer tokens are the first of more.
    """
    return generator(seed, "deep_prompt", name).normal(0.0, 1.0, shape).astype(np.float32)


class DeepPrompts:
    """The virtual tokens of one model's blocks; see ``UnitLayers``.

    Args:
        model: a ``transformers`` model; its attention is looked up in the table from now on.
        named: (canonical name, self-attention) of each tuned block; the tokens become its submodule
            ``prompt``.
        spec: how many.
        seed: draws the keys; values start at 0.

    Raises:
        ModelError: the model's attention is another than torch's own.
    """

    sends_whole_units = True

    def __init__(
        self, model: Any, named: Iterable[tuple[str, nn.Module]], spec: DeepPromptSpec, seed: int
    ) -> None:
        given = model.config._attn_implementation
        if given not in (_PLAIN, _ATTENTION):
            raise ModelError(
                f"peft=deep_prompt is built for attn_implementation={_PLAIN}, this "
                f"{model.config.model_type} model was loaded with {given}; load it with the former"
            )
        model.set_attn_implementation(_ATTENTION)
        self._seed, self._width = seed, _key_width(model.config)
        self._layers: dict[str, DeepPrompt] = {}
        for name, attention in named:
            attention.prompt = self._layers[name] = DeepPrompt()
        self._sizes = {block_number(name): 0 for name in self._layers}
        self.resize(dict.fromkeys(self.layout, spec.num_tokens))

    @property
    def layout(self) -> dict[int, int]:
        """Virtual tokens of every block that can have any, by index in the full model."""
        return dict(sorted(self._sizes.items()))

    def resize(self, layout: Layout, units: Mapping[int, Sequence[int]] | None = None) -> None:
        """See ``UnitLayers.resize``: new tokens have keys as drawn and values 0.

        Tokens are never named: all of one is tuned and travels. A new token changes outputs: it
        draws attention.

        Raises:
            ModelError: other blocks, a negative length, or units that are named.
        """
        require_layout(layout, self._sizes)
        if units:
            raise ModelError(f"units {dict(units)}: virtual tokens travel whole")
        for name, layer in self._layers.items():
            block = block_number(name)
            if layout[block] != self._sizes[block]:
                self._resize(name, layer, layout[block])
        self._sizes = dict(layout)

    def _resize(self, name: str, layer: DeepPrompt, length: int) -> None:
        if length == 0:
            layer.keys = layer.values = None
            return
        keys = torch.from_numpy(keys_drawn(self._seed, f"{name}{KEYS}", (length, self._width)))
        values = torch.zeros(length, self._width)
        if layer.keys is not None and layer.values is not None:
            kept = min(length, len(layer.keys))
            keys[:kept], values[:kept] = layer.keys.detach()[:kept], layer.values.detach()[:kept]
        layer.keys, layer.values = nn.Parameter(keys), nn.Parameter(values)

    def probed(self) -> AbstractContextManager[dict[str, nn.Parameter]]:
        """Raises ``ModelError``: there is no token that does nothing yet, nor its gain."""
        raise ModelError(
            "virtual tokens change the output as soon as they are there, so there is no gain to "
            "look up before; choose another peft.layout.rule than cost_aware"
        )


def _key_width(config: Any) -> int:
    """Returns w, the width of all heads' keys together."""
    queries = int(config.num_attention_heads)
    heads = getattr(config, "num_key_value_heads", None) or queries
    return int(heads * (getattr(config, "head_dim", None) or config.hidden_size // queries))
