"""Weights that depend on the text, and prompts mixed for every text, by one small attention.

G(x) = LayerNorm(W_up silu(W_down max_t E(x))) is compared with the keys max_t P_j; a_j = softmax
over j of G(x) . max_t P_j / T. Weighting the members' outputs by a is sample-specific attention as
in SESoM (arXiv:2210.12587); P + sum_j a_j P_j in front of the text is attentional fusion as in
ATTEMPT (arXiv:2205.11961). ``fitting.fit_parameters`` tunes it while the members stay frozen.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from typing_extensions import override

from fl_app.fomo.soft_prompt import token_table
from fl_app.prompts.batched import Batch, Tensors
from fl_app.prompts.errors import PromptError
from fl_app.seeding import torch_seed

_STD = 0.02


class PromptAttention(nn.Module):
    """Attention of texts to prompts.

    Args:
        width: d of the model.
        hidden: width of the bottleneck.
        temperature: T > 0; the larger, the more uniform. ATTEMPT takes about 2000 for T5.
        seed: draws the starting values, N(0, 0.02), from a stream of its own.
    """

    def __init__(
        self, width: int, *, seed: int, hidden: int = 100, temperature: float | None = None
    ) -> None:
        super().__init__()
        self.temperature = float(width) if temperature is None else temperature
        if not self.temperature > 0:
            raise PromptError("bad-temperature", f"temperature={temperature} must be > 0")
        self.down = nn.Linear(width, hidden, bias=False)
        self.up = nn.Linear(hidden, width, bias=False)
        self.norm = nn.LayerNorm(width)
        for name, layer in (("down", self.down), ("up", self.up)):
            stream = torch.Generator().manual_seed(torch_seed(seed, "attention", name))
            nn.init.normal_(layer.weight, std=_STD, generator=stream)

    @override
    def forward(self, pooled: torch.Tensor, prompts: Sequence[torch.Tensor]) -> torch.Tensor:
        """Returns weights [k, B], >= 0, that sum to 1 over the members.

        Args:
            pooled: [B, width], see ``pooled_texts``.
            prompts: k prompts [m_j, width], of any lengths.
        """
        return self.scores(pooled, prompts).softmax(0)

    def scores(self, pooled: torch.Tensor, prompts: Sequence[torch.Tensor]) -> torch.Tensor:
        """Returns [k, B] what the weights are the softmax of; arguments as for the weights."""
        keys = torch.stack([prompt.max(0).values for prompt in prompts])
        query: torch.Tensor = self.norm(self.up(nn.functional.silu(self.down(pooled))))
        return keys @ query.T / self.temperature


def pooled_texts(model: Any, batch: Batch) -> torch.Tensor:
    """Returns the largest entry of each dimension over a text's token embeddings, [B, width]."""
    embedded = token_table(model).weight.detach()[batch["input_ids"]]
    mask = batch.get("attention_mask", torch.ones_like(batch["input_ids"])).bool()
    return embedded.masked_fill(~mask.unsqueeze(-1), -torch.inf).max(1).values


def fused(weights: torch.Tensor, prompts: Sequence[torch.Tensor], target: torch.Tensor) -> Tensors:
    """Mixes prompts for every text: target + sum_j a_j P_j.

    Args:
        weights: [k, B].
        prompts: k prompts [m, width], of one length.
        target: [m, width], the prompt of the task at hand.

    Returns:
        A member for ``batched.forward`` with a prompt [B, m, width].

    Raises:
        PromptError: ``wrong-shape``, the prompts differ in length; see ``lengths.fit_length``.
    """
    shapes = {tuple(prompt.shape) for prompt in (*prompts, target)}
    if len(shapes) != 1:
        raise PromptError("wrong-shape", f"prompts of shapes {sorted(shapes)} cannot be added up")
    return Tensors(target + torch.einsum("kb,kmd->bmd", weights, torch.stack(list(prompts))))
