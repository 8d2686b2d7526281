"""The error of aggregation in the air: closed forms against what rounds realise."""

import math

import numpy as np
import pytest

from fl_app.wireless.aggregate import aggregate
from fl_app.wireless.channel import ChannelState, Fading, draw_state
from fl_app.wireless.power import PowerControl, TruncatedInversion, ZeroForcing
from fl_app.wireless.report import AirReport
from tests.air_fixtures import CONTROLS, random_state, random_updates, rng_of
from tests.oracles.air_power import truncated_mean_variance


def _repeat(
    control: PowerControl,
    state: ChannelState,
    updates: np.ndarray,
    weights: np.ndarray,
    **how: float,
) -> tuple[np.ndarray, AirReport]:
    """Returns realised MSEs of 40 rounds that differ in noise, and the last report."""
    rng = rng_of(5)
    reports = [aggregate(updates, weights, state, control, rng, **how)[1] for _ in range(40)]  # type: ignore[arg-type]
    return np.array([r.realised_mse for r in reports]), reports[-1]


@pytest.mark.parametrize("control", CONTROLS, ids=repr)
@pytest.mark.parametrize("errors", [{}, {"csi_error": 0.1, "jitter_rad": 0.1}])
def test_realised_error_scatters_around_the_expected_one(
    control: PowerControl, errors: dict[str, float]
) -> None:
    """Within five standard errors, whose size the report states truly."""
    updates, weights = random_updates(4, 5, 4001)
    state = random_state(4, 5, noise_power=0.05, **errors)
    realised, report = _repeat(control, state, updates, weights)
    error = report.expected_mse_deviation / math.sqrt(len(realised))
    assert abs(realised.mean() - report.expected_mse) <= 5.0 * error
    spread = realised.std(ddof=1)
    assert abs(spread / report.expected_mse_deviation - 1.0) <= 5.0 / math.sqrt(2 * 39)
    assert report.expected_mse == pytest.approx(report.noise_mse + report.noise_free_mse)


@pytest.mark.parametrize("control", CONTROLS, ids=repr)
@pytest.mark.parametrize("peak_power", [math.inf, 0.3])
def test_the_closed_form_holds_for_independent_gaussian_updates(
    control: PowerControl, peak_power: float
) -> None:
    """Mean of expected MSE minus predicted MSE over 60 draws of updates, 5 standard errors.

    Means are equal between devices and 0, so that no draw of them enters the comparison.
    """
    state = random_state(5, 4, noise_power=0.02, csi_error=0.1, jitter_rad=0.1)
    weights = np.array([1.0, 2.0, 0.5, 1.0])
    rng = rng_of(6)
    gaps = []
    for _ in range(60):
        updates = np.array([[1.0], [0.5], [2.0], [1.0]]) * rng.standard_normal((4, 3000))
        _, report = aggregate(updates, weights, state, control, rng, peak_power=peak_power)
        gaps.append(report.expected_mse - report.predicted_mse)
    error = np.std(gaps, ddof=1) / math.sqrt(len(gaps))
    assert abs(np.mean(gaps)) <= 5.0 * error + 1e-15
    assert (report.clipping_mse > 0.0) == (peak_power < math.inf)


def test_truncated_inversion_with_unknown_silence_is_unbiased_with_its_known_variance() -> None:
    """Mean and variance over 20000 independent fades of one entry, five standard errors.

    Two reals share a use: the noise per entry is sigma^2 / eta, twice that of one real per use.
    """
    num, floor, noise_power = 20_000, 0.3, 0.4
    entries = np.array([[1.0], [-0.5], [2.0]])
    updates = np.repeat(entries, 2 * num, axis=1)
    updates[:, 1::2] *= -1.0  # zero mean, so everything is in the air
    state = draw_state(
        Fading(num_subcarriers=num), 8, 0, mean_gains=np.ones(3), noise_power=noise_power
    )
    control = TruncatedInversion(gain_floor=floor, knows_silence=False)
    mean, report = aggregate(updates, np.ones(3), state, control, rng_of(9))
    assert mean is not None
    signs = np.tile([1.0, -1.0], num)
    samples = (mean * signs)[::2]  # one entry a fade: entries of one use share their silence
    eta = control.plan(state, np.abs(entries[:, 0]) / 3.0, np.ones(3)).denoising[0]
    # eta belongs to the mean of 3; the reference wants the noise in their sum.
    variance = truncated_mean_variance(entries[:, 0].tolist(), floor, 9.0 * noise_power / eta)
    assert abs(samples.mean() - entries.mean()) <= 5.0 * math.sqrt(variance / num)
    squares = (samples - entries.mean()) ** 2
    assert abs(squares.mean() - variance) <= 5.0 * squares.std() / math.sqrt(num)
    silent = 1.0 - math.exp(-floor)
    assert np.all(np.abs(report.silent_share - silent) < 5 * math.sqrt(silent / num))


def test_ten_decibels_more_tx_snr_are_ten_decibels_less_error() -> None:
    updates, weights = random_updates(10, 5, 100)
    errors = [
        aggregate(updates, weights, random_state(10, 5, noise_power), ZeroForcing(), rng_of())[1]
        for noise_power in (1.0, 0.1, 0.01)
    ]
    assert errors[0].predicted_nmse == pytest.approx(10.0 * errors[1].predicted_nmse)
    assert errors[1].realised_nmse == pytest.approx(10.0 * errors[2].realised_nmse)
