"""Prompts for a model of another width.

The linear projector is fitted to pairs of token embeddings that both models share (recycling of
prompts, "v2v-lin"); it needs no gradient. On top of it a two-layer correction may be tuned on the
task itself through the target model, which starts at exactly the linear projection.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from typing_extensions import override

from fl_app.prompts.errors import PromptError
from fl_app.seeding import torch_seed


@dataclass(frozen=True, eq=False)
class LinearProjector:
    """Maps virtual tokens: P weight + bias.

    Attributes:
        weight: [source width, target width] float32.
        bias: [target width] float32.
    """

    weight: NDArray[np.float32]
    bias: NDArray[np.float32]

    def __call__(self, prompt: NDArray[np.float32]) -> NDArray[np.float32]:
        """Returns [m, target width] of a prompt [m, source width].

        Raises:
            PromptError: ``wrong-width``.
        """
        if prompt.ndim != 2 or prompt.shape[1] != len(self.weight):
            raise PromptError(
                "wrong-width", f"the projector takes [m, {len(self.weight)}], got {prompt.shape}"
            )
        wide = prompt.astype(np.float64) @ self.weight + self.bias
        return np.asarray(wide, dtype=np.float32)


def fit_projector(
    source: NDArray[np.float32], target: NDArray[np.float32], *, ridge: float = 1e-3
) -> LinearProjector:
    """Fits min ||X W + b - Y||^2 + ridge tr(S) / d ||W||^2, X centred, S = X^T X.

    Args:
        source: [n, source width] embeddings of shared tokens.
        target: [n, target width] of the same tokens, in the same order.
        ridge: >= 0, relative to the mean energy of a source dimension.

    Raises:
        PromptError: ``wrong-shape``, or ``bad-ridge``.
    """
    if source.ndim != 2 or target.ndim != 2 or not 1 <= len(source) == len(target):
        raise PromptError("wrong-shape", f"pairs {source.shape} and {target.shape} do not match")
    if not 0.0 <= ridge < float("inf"):
        raise PromptError("bad-ridge", f"ridge={ridge} must be finite and >= 0")
    x, y = source.astype(np.float64), target.astype(np.float64)
    centre, mean = x.mean(0), y.mean(0)
    energy = float(((x - centre) ** 2).sum()) / x.shape[1]
    grown = np.sqrt(ridge * energy) * np.eye(x.shape[1])
    left = np.concatenate([x - centre, grown])
    right = np.concatenate([y - mean, np.zeros((x.shape[1], y.shape[1]))])
    weight, *_ = np.linalg.lstsq(left, right, rcond=None)
    bias = mean - centre @ weight
    return LinearProjector(weight.astype(np.float32), bias.astype(np.float32))


def shared_tokens(source: Any, target: Any) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Returns the ids of the tokens two tokenizers share, in the alphabetical order of the tokens.

    Raises:
        PromptError: ``no-shared-tokens``.
    """
    ours, theirs = source.get_vocab(), target.get_vocab()
    both = sorted(set(ours) & set(theirs))
    if not both:
        raise PromptError("no-shared-tokens", "the tokenizers share no token; nothing to fit to")
    pairs = np.array([(ours[token], theirs[token]) for token in both], np.int64)
    return pairs[:, 0], pairs[:, 1]


class TunedProjector(nn.Module):
    """A linear projection plus a two-layer correction, which is 0 at first.

    Args:
        linear: the projection, kept frozen.
        hidden: width of the correction's hidden layer.
        seed: draws its first layer, N(0, 1 / source width), from a stream of its own.
    """

    def __init__(self, linear: LinearProjector, *, hidden: int, seed: int) -> None:
        super().__init__()
        source, target = linear.weight.shape
        self.weight = torch.from_numpy(linear.weight.copy())
        self.bias = torch.from_numpy(linear.bias.copy())
        self.down = nn.Linear(source, hidden)
        self.up = nn.Linear(hidden, target)
        stream = torch.Generator().manual_seed(torch_seed(seed, "projector"))
        nn.init.normal_(self.down.weight, std=source**-0.5, generator=stream)
        for still in (self.down.bias, self.up.weight, self.up.bias):
            nn.init.zeros_(still)

    @override
    def forward(self, prompt: torch.Tensor) -> torch.Tensor:
        """Returns [m, target width] of a prompt [m, source width]; tune through it on a task."""
        correction: torch.Tensor = self.up(torch.tanh(self.down(prompt)))
        return prompt @ self.weight + self.bias + correction
