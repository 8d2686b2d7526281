"""LoRA factors in the air: why one factor is frozen, and what noise on both costs."""

import math

import numpy as np

from fl_app.wireless.aggregate import aggregate
from fl_app.wireless.channel import Fading, draw_state
from fl_app.wireless.power import ZeroForcing

_DEVICES, _OUT, _RANK, _IN = 5, 6, 2, 9


def _factors(seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    up = rng.standard_normal((_DEVICES, _OUT, _RANK))
    down = rng.standard_normal((_DEVICES, _RANK, _IN))
    return up, down, rng.dirichlet(np.ones(_DEVICES))


def _receive(
    factors: np.ndarray, weights: np.ndarray, noise_power: float, rng: np.random.Generator
) -> tuple[np.ndarray, float]:
    """Returns the received mean factor and the predicted MSE per entry."""
    state = draw_state(Fading(), 1, 0, mean_gains=np.ones(_DEVICES), noise_power=noise_power)
    mean, report = aggregate(factors.reshape(_DEVICES, -1), weights, state, ZeroForcing(), rng)
    assert mean is not None
    return mean.reshape(factors.shape[1:]), report.predicted_mse


def test_averaging_both_factors_is_biased_by_their_covariance() -> None:
    """sum w B A - B_mean A_mean = sum w (B - B_mean)(A - A_mean), not 0; a frozen A has none."""
    up, down, weights = _factors(1)
    rng = np.random.default_rng(0)
    mean_up, _ = _receive(up, weights, 0.0, rng)
    mean_down, _ = _receive(down, weights, 0.0, rng)
    wanted = sum(w * b @ a for w, b, a in zip(weights, up, down, strict=True))
    bias = sum(
        w * (b - mean_up) @ (a - mean_down) for w, b, a in zip(weights, up, down, strict=True)
    )
    assert np.allclose(wanted - mean_up @ mean_down, bias, atol=1e-12)
    assert np.linalg.norm(bias) > 0.1 * np.linalg.norm(wanted)
    frozen = np.repeat(down[:1], _DEVICES, axis=0)
    exact = sum(w * b @ frozen[0] for w, b in zip(weights, up, strict=True))
    mean_frozen, _ = _receive(frozen, weights, 0.0, rng)
    assert np.allclose(mean_up @ mean_frozen, exact, atol=1e-12)


def test_noise_on_both_factors_multiplies() -> None:
    """d_out s_B^2 |A|^2 + d_in s_A^2 |B|^2 + d_out d_in r s_A^2 s_B^2; 2000 rounds, five errors."""
    up, down, weights = _factors(2)
    rng = np.random.default_rng(3)
    clean_up = np.einsum("k,kij->ij", weights, up)
    clean_down = np.einsum("k,kij->ij", weights, down)
    errors = []
    for _ in range(2000):
        noisy_up, up_mse = _receive(up, weights, 0.05, rng)
        noisy_down, down_mse = _receive(down, weights, 0.1, rng)
        errors.append(np.sum((noisy_up @ noisy_down - clean_up @ clean_down) ** 2))
    closed = (
        _OUT * up_mse * np.sum(clean_down**2)
        + _IN * down_mse * np.sum(clean_up**2)
        + _OUT * _IN * _RANK * up_mse * down_mse
    )
    assert abs(np.mean(errors) - closed) <= 5.0 * np.std(errors, ddof=1) / math.sqrt(2000)
