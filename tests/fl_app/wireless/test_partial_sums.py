"""Partial results of devices, summed by the channel."""

import numpy as np
import pytest

from fl_app.wireless.channel import Fading, draw_state
from fl_app.wireless.errors import ChannelError
from fl_app.wireless.partial_sums import sum_partials
from fl_app.wireless.power import ZeroForcing


def test_a_split_layer_is_summed_exactly_without_noise() -> None:
    """W x = sum_k W_k x_k for columns shared out between three devices; signs and scales too."""
    rng = np.random.default_rng(1)
    weight, vector = rng.standard_normal((7, 9)), rng.standard_normal(9)
    partials = np.stack([weight[:, k::3] @ vector[k::3] for k in range(3)])
    state = draw_state(Fading(num_subcarriers=2), 1, 0, mean_gains=np.ones(3), noise_power=0.0)
    total, report = sum_partials(partials, np.ones(3), state, ZeroForcing(), rng)
    assert total is not None
    assert np.allclose(total, weight @ vector, rtol=1e-12)
    assert report.channel_uses == 4
    coefficients = np.array([2.0, -0.5, 0.0])
    before = partials.tobytes()
    total, report = sum_partials(partials, coefficients, state, ZeroForcing(), rng)
    assert total is not None
    assert np.allclose(total, coefficients @ partials, rtol=1e-12)
    assert report.mean_energy == pytest.approx(np.mean((coefficients @ partials) ** 2))
    assert partials.tobytes() == before


def test_the_error_of_the_sum_is_its_closed_form() -> None:
    """sigma^2 max_k (c_k nu_k)^2 / (P |h_k|^2), realised within the stated scatter."""
    rng = np.random.default_rng(2)
    partials = rng.standard_normal((4, 3000)) * np.array([[1.0], [2.0], [0.5], [1.0]])
    coefficients = np.array([1.0, -1.0, 2.0, 0.3])
    state = draw_state(Fading(), 2, 0, mean_gains=np.ones(4), noise_power=0.1)
    total, report = sum_partials(partials, coefficients, state, ZeroForcing(), rng, power=1.5)
    amplitudes = coefficients * partials.std(axis=1)
    closed = 0.1 * max(amplitudes**2 / (1.5 * np.abs(state.gains[:, 0]) ** 2))
    assert report.predicted_mse == pytest.approx(closed, rel=1e-9)
    assert total is not None
    realised = np.mean((total - coefficients @ partials) ** 2)
    assert report.realised_mse == pytest.approx(realised, rel=1e-9)
    assert abs(realised - closed) <= 5.0 * report.expected_mse_deviation


def test_coefficients_are_checked() -> None:
    state = draw_state(Fading(), 3, 0, mean_gains=np.ones(2), noise_power=0.1)
    for coefficients in (np.zeros(2), np.ones(3), np.array([1.0, np.nan])):
        with pytest.raises(ChannelError, match="coefficients"):
            sum_partials(
                np.ones((2, 3)), coefficients, state, ZeroForcing(), np.random.default_rng(0)
            )
