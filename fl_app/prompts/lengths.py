"""Prompts of another length: cut, repeated, or resampled."""

import numpy as np
from numpy.typing import NDArray

from fl_app.prompts.errors import PromptError

HOW = ("repeat", "resample")


def fit_length(
    prompt: NDArray[np.float32], num_tokens: int, how: str = "repeat"
) -> NDArray[np.float32]:
    """Returns a prompt of the wanted length; one that has it comes back as a copy.

    Args:
        prompt: [m, width] with m >= 1.
        num_tokens: wanted length, >= 1.
        how: ``repeat`` drops the last tokens, or begins again from the first; ``resample`` spreads
            the wanted tokens evenly from the first to the last and interpolates linearly.

    Raises:
        PromptError: ``wrong-shape``, or ``unknown-length-rule``.
    """
    if prompt.ndim != 2 or len(prompt) < 1 or num_tokens < 1:
        raise PromptError(
            "wrong-shape", f"cannot make {num_tokens} tokens of a prompt {prompt.shape}"
        )
    match how:
        case "repeat":
            return prompt[np.arange(num_tokens) % len(prompt)]
        case "resample":
            places = np.linspace(0.0, len(prompt) - 1.0, num_tokens)
            low = np.floor(places).astype(np.int64)
            high = np.minimum(low + 1, len(prompt) - 1)
            share = (places - low)[:, None]
            mixed = (1.0 - share) * prompt[low].astype(np.float64) + share * prompt[high]
            return np.asarray(mixed, dtype=np.float32)
        case _:
            raise PromptError("unknown-length-rule", f"{how!r} must be one of {', '.join(HOW)}")
