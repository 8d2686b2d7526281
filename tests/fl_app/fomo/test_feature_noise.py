"""Clipping and noise on features, against their definition and a normal law."""

from collections.abc import Sequence

import numpy as np
import torch

from fl_app.fomo.feature_noise import noised
from fl_app.fomo.features import Features
from fl_app.seeding import generator

WIDTH = 6
LENGTHS = ((5, 2, 4), (3, 3, 3))
"""Real positions of the three examples in both stacks."""


def features_of(sizes: Sequence[float]) -> Features:
    """Returns two stacks whose examples have these l2 norms at their real positions."""
    rng = torch.Generator().manual_seed(1)
    masks = tuple(torch.arange(max(ns)) < torch.tensor(ns)[:, None] for ns in LENGTHS)
    hidden = [torch.randn(3, mask.shape[1], WIDTH, generator=rng) for mask in masks]
    norms = norms_of(hidden, masks)
    scale = (torch.tensor(sizes) / norms).float()[:, None, None]
    return Features(
        hidden=tuple(state * scale for state in hidden),
        masks=masks,
        prompt=torch.ones(2, WIDTH),
        readout=torch.ones(3, 3, dtype=torch.bool),
    )


def norms_of(hidden: Sequence[torch.Tensor], masks: Sequence[torch.Tensor]) -> torch.Tensor:
    """Returns each example's l2 norm at real positions, both stacks together."""
    rows = [
        torch.cat([state[i][mask[i]].flatten() for state, mask in zip(hidden, masks, strict=True)])
        for i in range(3)
    ]
    return torch.stack([row.double().norm() for row in rows])


def test_long_examples_are_clipped_and_short_ones_are_not() -> None:
    features = features_of((0.5, 3.0, 40.0))
    before = [state.clone() for state in features.hidden]
    sent = noised(features, clip_norm=2.0, noise_multiplier=0.0, rng=generator(0, "unused"))
    factors = torch.tensor([1.0, 2 / 3, 1 / 20])[:, None, None]
    for state, mask, was in zip(sent.hidden, features.masks, before, strict=True):
        torch.testing.assert_close(state, was * factors * mask[..., None], rtol=1e-5, atol=0)
    assert all(torch.equal(a, b) for a, b in zip(features.hidden, before, strict=True))
    assert sent.masks is features.masks
    assert sent.readout is features.readout
    assert sent.prompt is features.prompt


def test_noise_has_the_deviation_asked_for_and_spares_padding() -> None:
    """4 000 draws of 120 entries: mean and variance within five standard errors of N(0, z C)."""
    features = features_of((0.5, 1.0, 9.0))
    clip, z, draws = 2.0, 1.5, 4000
    plain = noised(features, clip_norm=clip, noise_multiplier=0.0, rng=generator(0, "unused"))
    rng = generator(7, "noise")
    total, squares, count = 0.0, 0.0, 0
    for _ in range(draws):
        sent = noised(features, clip_norm=clip, noise_multiplier=z, rng=rng)
        for state, mask, mean in zip(sent.hidden, features.masks, plain.hidden, strict=True):
            assert not state[~mask].any()
            noise = (state - mean)[mask].double()
            total += float(noise.sum())
            squares += float((noise**2).sum())
            count += noise.numel()
    assert count == draws * WIDTH * sum(map(sum, LENGTHS))
    deviation = z * clip
    assert abs(total / count) < 5 * deviation / np.sqrt(count)
    assert abs(squares / count / deviation**2 - 1) < 5 * np.sqrt(2 / count)


def test_zeros_stay_finite() -> None:
    features = features_of((0.0, 0.0, 1.0))
    sent = noised(features, clip_norm=1.0, noise_multiplier=0.0, rng=generator(0, "unused"))
    assert not sent.hidden[0][:2].any()
    assert torch.isfinite(sent.hidden[0]).all()
