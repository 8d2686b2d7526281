"""Gaussian noise on what a device sends: every example clipped, then noised.

A mechanism of its own for every example, not for a sum over them: the server needs features row by
row. Replacing an example by any other of the same shape moves its row by at most twice the clipping
norm, which is what ``fl_app.privacy`` accounts for.
"""

from dataclasses import replace

import numpy as np
import torch

from fl_app.fomo.features import Features


def noised(
    features: Features, *, clip_norm: float, noise_multiplier: float, rng: np.random.Generator
) -> Features:
    """Clips and noises the hidden states of every example.

    An example is its states at all real positions of all stacks together, h; what is sent is
    h min(1, C / ||h||_2) + N(0, (z C)^2) at these positions and 0 at padding. Masks, readout and
    the soft prompt, which is the same for all examples, stay as they are. Gradients for what was
    sent are used for the states themselves (straight through).

    Args:
        features: of one device; not changed.
        clip_norm: C > 0.
        noise_multiplier: z >= 0.
        rng: draws the noise; whoever knows its seed can take the noise out again.
    """
    real = [mask[..., None].float() for mask in features.masks]
    states = [state * mask for state, mask in zip(features.hidden, real, strict=True)]
    squares = sum(((state.double() ** 2).sum((1, 2)) for state in states), torch.zeros(1).double())
    norms = torch.sqrt(squares).clamp(min=torch.finfo(torch.float64).tiny)
    scale = (clip_norm / norms).clamp(max=1.0).float()[:, None, None]
    sent = []
    for state, mask in zip(states, real, strict=True):
        noise = torch.from_numpy(rng.standard_normal(tuple(state.shape), np.float32))
        sent.append((state * scale + clip_norm * noise_multiplier * noise) * mask)
    return replace(features, hidden=tuple(sent))
