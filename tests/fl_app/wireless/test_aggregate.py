"""Aggregation in the air without noise: the sum is the mean, however it is computed."""

import math
from dataclasses import replace

import numpy as np
import pytest

from fl_app.wireless.aggregate import aggregate
from fl_app.wireless.power import OptimalThreshold, PowerControl, ZeroForcing
from tests.air_fixtures import CONTROLS, random_state, random_updates, rng_of
from tests.oracles.air_sum import (
    exact_mean,
    inverting_precoders,
    noise_free_mean,
    standardised,
    zero_forcing_eta,
)


@pytest.mark.parametrize("control", [ZeroForcing(), OptimalThreshold()], ids=repr)
@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float64, 1e-13), (np.float32, 1e-6)])
@pytest.mark.parametrize("num_params", [1, 7, 40_003])
def test_without_noise_the_sum_is_the_weighted_mean(
    control: PowerControl, dtype: type, tolerance: float, num_params: int
) -> None:
    """Odd lengths, several chunks, and a single parameter among them."""
    updates, weights = random_updates(1, 5, num_params)
    updates = updates.astype(dtype)
    mean, report = aggregate(updates, weights, random_state(1, 5), control, rng_of())
    exact = weights @ updates.astype(np.float64) / weights.sum()
    assert mean is not None
    assert mean.dtype == dtype
    assert np.linalg.norm(mean - exact) <= tolerance * np.linalg.norm(exact)
    assert report.realised_nmse <= tolerance**2
    assert report.predicted_mse <= 1e-25
    uses = math.ceil(num_params / 2) if num_params > 1 else 0  # one real has no spread
    assert report.channel_uses == uses


def test_a_chunk_of_many_devices_takes_several_products() -> None:
    """60 devices times a chunk of 16384 reals are more than one product holds."""
    updates, weights = random_updates(41, 60, 20_001)
    mean, report = aggregate(updates, weights, random_state(41, 60), ZeroForcing(), rng_of())
    exact = weights @ updates / weights.sum()
    assert mean is not None
    assert np.linalg.norm(mean - exact) <= 1e-13 * np.linalg.norm(exact)
    assert report.mean_energy == pytest.approx(np.mean(exact**2), rel=1e-12)


@pytest.mark.parametrize("control", CONTROLS, ids=repr)
@pytest.mark.parametrize("peak_power", [math.inf, 0.4])
def test_every_rule_equals_the_sum_of_what_antennas_radiate(
    control: PowerControl, peak_power: float
) -> None:
    """Imperfect CSI, jitter, silence and clipping; catches a lost conjugate or a swapped pair."""
    updates, weights = random_updates(2, 6, 31)
    state = random_state(2, 6, noise_power=0.0, csi_error=0.2, jitter_rad=0.2)
    mean, report = aggregate(updates, weights, state, control, rng_of(), peak_power=peak_power)
    shares = weights / weights.sum()
    spreads = updates.std(axis=1) if control.removes_mean else np.sqrt((updates**2).mean(axis=1))
    plan = control.plan(state, shares * spreads, np.ones(6))
    known = plan.heard_share is None
    expected = noise_free_mean(
        updates.tolist(),
        weights.tolist(),
        state.gains.tolist(),
        plan.precoders.tolist(),
        plan.denoising.tolist(),
        (plan.is_heard if known else np.ones((6, 3), bool)).tolist(),
        heard_share=plan.heard_share or 1.0,
        centres=control.removes_mean,
        peak_power=peak_power,
    )
    assert mean is not None
    assert np.allclose(mean, expected, rtol=1e-11, atol=1e-12)
    exact = np.array(exact_mean(updates.tolist(), weights.tolist()))
    assert report.realised_mse == pytest.approx(float(np.mean((mean - exact) ** 2)), rel=1e-9)
    assert report.noise_free_mse == pytest.approx(report.realised_mse, rel=1e-9)
    assert report.mean_energy == pytest.approx(float(np.mean(exact**2)), rel=1e-12)


def test_zero_forcing_from_the_formulas_alone() -> None:
    """Precoders and eta of the reference, not of the package."""
    updates, weights = random_updates(3, 4, 20)
    state = random_state(3, 4, num_subcarriers=2)
    rows, shares = updates.tolist(), (weights / weights.sum()).tolist()
    amplitudes = [s * standardised(u)[1] for s, u in zip(shares, rows, strict=True)]
    columns = state.gains.T.tolist()
    eta = [zero_forcing_eta(h, amplitudes, [2.0] * 4) for h in columns]
    precoders = [
        inverting_precoders(h, amplitudes, e, [False] * 4)
        for h, e in zip(columns, eta, strict=True)
    ]
    expected = noise_free_mean(
        rows,
        weights.tolist(),
        state.gains.tolist(),
        np.array(precoders).T.tolist(),
        eta,
        [[True] * 2] * 4,
    )
    mean, report = aggregate(updates, weights, state, ZeroForcing(), rng_of(), power=2.0)
    assert mean is not None
    assert np.allclose(mean, expected, rtol=1e-12)
    spent = np.mean(np.abs(np.array(precoders)) ** 2, axis=0)
    assert np.allclose(report.tx_power, spent)
    noisy = replace(state, noise_power=0.3)
    _, with_noise = aggregate(updates, weights, noisy, ZeroForcing(), rng_of(), power=2.0)
    closed = 0.3 * sum(1.0 / e for e in eta) / 2
    assert with_noise.predicted_mse == pytest.approx(closed, rel=1e-12)


def test_one_device_alone_is_heard_exactly() -> None:
    updates, _ = random_updates(14, 1, 9)
    mean, report = aggregate(updates, np.array([0.3]), random_state(14, 1), ZeroForcing(), rng_of())
    assert mean is not None
    assert np.allclose(mean, updates[0], rtol=1e-13)
    assert report.control_bytes == 16


def test_float32_rounds_agree_with_float64_rounds() -> None:
    """Same noise-free sums to 1e-6 of the update's size, many subcarriers and chunks."""
    updates, weights = random_updates(29, 6, 50_001)
    state = random_state(29, 6, num_subcarriers=64, csi_error=0.1)
    small = updates.astype(np.float32)
    wide, _ = aggregate(small.astype(np.float64), weights, state, OptimalThreshold(), rng_of())
    narrow, _ = aggregate(small, weights, state, OptimalThreshold(), rng_of())
    assert wide is not None
    assert narrow is not None
    assert np.linalg.norm(wide - narrow) <= 1e-6 * np.linalg.norm(wide)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("offset", [0.0, 1e4])
@pytest.mark.parametrize("num_params", [16_384, 16_385])
def test_whole_chunks_sum_as_partial_ones_do(dtype: type, offset: float, num_params: int) -> None:
    """The short cut for whole chunks against the slow reference, with means that forbid it too."""
    rng = rng_of(40)
    updates = (rng.standard_normal((2, num_params)) + offset).astype(dtype)
    weights = np.array([1.0, 3.0])
    state = random_state(41, 2, num_subcarriers=4, csi_error=0.2)
    plan = ZeroForcing().plan(
        state, weights / 4.0 * updates.astype(np.float64).std(axis=1), np.ones(2)
    )
    expected = noise_free_mean(
        updates.tolist(),
        weights.tolist(),
        state.gains.tolist(),
        plan.precoders.tolist(),
        plan.denoising.tolist(),
        [[True] * 4] * 2,
    )
    mean, _ = aggregate(updates, weights, state, ZeroForcing(), rng_of())
    assert mean is not None
    tolerance = 1e-6 if dtype is np.float32 else 1e-12
    assert np.abs(mean - expected).max() <= tolerance * (offset + 10.0)
