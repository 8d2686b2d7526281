"""What a device tells about its prompt before anybody asks for it.

Two descriptors: the mean token embedding (SPoT, arXiv:2110.07904), and which neurons the prompt
switches on (Su et al. 2022, arXiv:2111.06719): the signs of the feed-forward pre-activations of all
blocks behind the prompt and a fixed probe text, one bit each.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from fl_app.fomo.blocks import family_of, stack_paths
from fl_app.prompts.batched import Batch, Tensors, forward
from fl_app.prompts.errors import PromptError
from fl_app.prompts.lengths import fit_length

Prompt = NDArray[np.float32]


def mean_embedding(prompt: Prompt) -> NDArray[np.float32]:
    """Returns the mean [width] over the virtual tokens; zeros for an empty prompt."""
    if len(prompt) == 0:
        return np.zeros(prompt.shape[1], np.float32)
    return np.asarray(prompt.mean(0, dtype=np.float64), dtype=np.float32)


def cosine(one: NDArray[Any], other: NDArray[Any]) -> float:
    """Returns the cosine in [-1, 1] of two arrays of one shape; 0 if either is zero.

    Raises:
        PromptError: ``wrong-shape``.
    """
    if one.shape != other.shape:
        raise PromptError("wrong-shape", f"cannot compare {one.shape} with {other.shape}")
    a, b = one.ravel().astype(np.float64), other.ravel().astype(np.float64)
    size = float(np.linalg.norm(a) * np.linalg.norm(b))
    return float(np.clip(a @ b / size, -1.0, 1.0)) if size > 0 else 0.0


def flat_cosine(one: Prompt, other: Prompt) -> float:
    """Returns the cosine of two whole prompts; the second is brought to the first's length."""
    return cosine(one, fit_length(other, len(one)))


def token_cosine(one: Prompt, other: Prompt) -> float:
    """Returns the mean cosine over all pairs of tokens; unlike the others not 1 for equal ones."""
    rows = [_unit(prompt) for prompt in (one, other)]
    return float((rows[0] @ rows[1].T).mean())


def nearness(one: Prompt, other: Prompt) -> float:
    """Returns 1 / (1 + ||P - Q||) in (0, 1]; the second is brought to the first's length."""
    gap = one.astype(np.float64) - fit_length(other, len(one))
    return float(1.0 / (1.0 + np.linalg.norm(gap)))


def activation_bits(model: Any, members: Sequence[Tensors], probe: Batch) -> NDArray[np.bool_]:
    """Returns which neurons each prompt switches on.

    Args:
        model: the frozen model, not wrapped (a device may take its emulator; then all do).
        members: k >= 1.
        probe: a fixed batch, the same for all devices; read is the last token of each text, and
            the pre-activations are averaged over the texts. An encoder-decoder's encoder is read.

    Returns:
        [k, blocks * neurons], in the order of the blocks.
    """
    path = stack_paths(model)[0]
    name = family_of(model.config).feed_forward
    states: list[torch.Tensor] = []
    handles = [
        _feed_forward(block, name).register_forward_hook(
            lambda _module, _args, output: states.append(output)
        )
        for block in model.get_submodule(path)
    ]
    try:
        with torch.inference_mode():
            forward(model, members, probe)
    finally:
        for handle in handles:
            handle.remove()
    ids = probe["input_ids"]
    last = probe.get("attention_mask", torch.ones_like(ids)).sum(1) - 1
    # OPT hands its feed-forward network all tokens of a batch in one row
    states = [state.reshape(len(members) * len(ids), -1, state.shape[-1]) for state in states]
    bits = []
    for j, member in enumerate(members):
        rows = torch.arange(len(ids)) + j * len(ids)
        read = [state[rows, last + member.prompt.shape[-2]].mean(0) > 0 for state in states]
        bits.append(torch.cat(read).numpy())
    return np.stack(bits)


def overlap(one: NDArray[np.bool_], other: NDArray[np.bool_]) -> float:
    """Returns |A and B| / sqrt(|A| |B|) in [0, 1] of two bit vectors, 0 if either is empty.

    Raises:
        PromptError: ``wrong-shape``.
    """
    return cosine(one.astype(np.float64), other.astype(np.float64))


def _feed_forward(block: nn.Module, name: str) -> nn.Module:
    """Finds the map into the neurons; T5's later checkpoints have two and gate by the first."""
    names = {inner for inner, _ in block.named_modules()}
    return block.get_submodule(name if name in names else f"{name}_0")


def _unit(prompt: Prompt) -> NDArray[np.float64]:
    rows = prompt.astype(np.float64)
    sizes = np.linalg.norm(rows, axis=1, keepdims=True)
    unit: NDArray[np.float64] = rows / np.where(sizes > 0, sizes, 1.0)
    return unit
