"""Power control against brute force, closed forms and its limits."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import exp1

from fl_app.wireless.channel import ChannelState, Fading, draw_state
from fl_app.wireless.errors import ChannelError
from fl_app.wireless.power import (
    CotafScaling,
    OptimalThreshold,
    PhaseOnly,
    PowerControl,
    TruncatedInversion,
    ZeroForcing,
)
from tests.oracles.air_power import cotaf_plan, least_sum_mse, sum_mse

_PER_USE: list[PowerControl] = [
    ZeroForcing(),
    OptimalThreshold(),
    PhaseOnly(),
    CotafScaling(),
    TruncatedInversion(budget="per_use"),
]
_ALL: list[PowerControl] = [*_PER_USE, TruncatedInversion()]


def _state(
    seed: int, num_devices: int, noise_power: float, num_subcarriers: int = 3
) -> ChannelState:
    fading = Fading(num_subcarriers=num_subcarriers)
    large = np.random.default_rng(seed).uniform(0.3, 3.0, num_devices)
    return draw_state(fading, seed, 0, mean_gains=large, noise_power=noise_power)


def _inputs(seed: int, num_devices: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed + 1)
    return rng.uniform(0.1, 2.0, num_devices), rng.uniform(0.5, 2.0, num_devices)


@pytest.mark.parametrize("control", _PER_USE, ids=repr)
@given(seed=st.integers(0, 10_000), num_devices=st.integers(1, 9))
@settings(derandomize=True, max_examples=40, deadline=None)
def test_mean_power_never_exceeds_the_limit(
    control: PowerControl, seed: int, num_devices: int
) -> None:
    targets, power = _inputs(seed, num_devices)
    plan = control.plan(_state(seed, num_devices, 0.1), targets, power)
    assert (np.abs(plan.precoders) ** 2 <= power[:, None] * (1 + 1e-12)).all()
    assert (plan.precoders[~plan.is_heard] == 0).all()


def test_zero_forcing_uses_all_power_of_the_weakest_device() -> None:
    state = _state(1, 6, 0.1)
    targets, power = _inputs(1, 6)
    plan = ZeroForcing().plan(state, targets, power)
    ratio = power[:, None] * np.abs(state.gains) ** 2 / targets[:, None] ** 2
    used = np.abs(plan.precoders) ** 2 / power[:, None]
    for m in range(3):
        weakest = ratio[:, m].argmin()
        assert plan.denoising[m] == pytest.approx(ratio[weakest, m], rel=1e-12)
        assert used[weakest, m] == pytest.approx(1.0, rel=1e-12)
        assert plan.sum_mse[m] == pytest.approx(0.1 / ratio[weakest, m], rel=1e-12)


@given(
    seed=st.integers(0, 10_000),
    num_devices=st.integers(1, 9),
    noise_power=st.sampled_from([0.0, 1e-4, 0.03, 1.0, 30.0]),
)
@settings(derandomize=True, max_examples=80, deadline=None)
def test_no_denoising_factor_on_a_grid_beats_the_optimal_threshold(
    seed: int, num_devices: int, noise_power: float
) -> None:
    """And it is never worse than zero forcing; its own formula agrees with the loop's."""
    state = _state(seed, num_devices, noise_power, 1)
    targets, power = _inputs(seed, num_devices)
    plan = OptimalThreshold().plan(state, targets, power)
    reach = (np.sqrt(power) * np.abs(state.gains[:, 0])).tolist()
    wanted = targets.tolist()
    mse = float(plan.sum_mse[0])
    assert mse == pytest.approx(
        sum_mse(float(plan.denoising[0]), reach, wanted, noise_power), rel=1e-9, abs=1e-24
    )
    assert mse <= least_sum_mse(reach, wanted, noise_power, 500) * (1 + 1e-9) + 1e-24
    assert mse <= ZeroForcing().plan(state, targets, power).sum_mse[0] * (1 + 1e-9) + 1e-24


def test_the_optimal_threshold_becomes_zero_forcing_as_noise_vanishes() -> None:
    targets, power = _inputs(2, 5)
    for noise_power in (0.0, 1e-12):
        state = _state(2, 5, noise_power)
        best = OptimalThreshold().plan(state, targets, power)
        inverted = ZeroForcing().plan(state, targets, power)
        assert np.allclose(best.denoising, inverted.denoising, rtol=1e-6)
        assert np.allclose(best.precoders, inverted.precoders, rtol=1e-6)


def test_truncated_inversion_meets_its_power_on_average_over_rayleigh_fading() -> None:
    """E|b|^2 = P for the device that sets eta and less for others, within 5 standard errors."""
    fading = Fading(num_subcarriers=40_000)
    large = np.array([0.5, 2.0])
    state = draw_state(fading, 5, 0, mean_gains=large, noise_power=0.1)
    targets, power = np.array([1.0, 0.7]), np.array([2.0, 2.0])
    plan = TruncatedInversion(gain_floor=0.2).plan(state, targets, power)
    limits = power * large / targets**2
    listens = np.isfinite(plan.denoising)
    assert np.allclose(plan.denoising[listens], limits.min() / exp1(0.2), rtol=1e-12)
    assert np.array_equal(listens, plan.is_heard.any(axis=0))
    spent = np.abs(plan.precoders) ** 2
    error = spent.std(axis=1) / math.sqrt(40_000)
    assert abs(spent[0].mean() - 2.0) < 5.0 * error[0]
    assert abs(spent[1].mean() - 2.0 * limits[0] / limits[1]) < 5.0 * error[1]
    silent = (~plan.is_heard).mean(axis=1)
    share = 1.0 - math.exp(-0.2)
    assert (abs(silent - share) < 5.0 * math.sqrt(share * (1 - share) / 40_000)).all()


@given(seed=st.integers(0, 10_000), num_devices=st.integers(1, 6))
@settings(derandomize=True, max_examples=40, deadline=None)
def test_cotaf_scales_all_updates_by_the_loudest(seed: int, num_devices: int) -> None:
    """Eta, precoders and error of every subcarrier against a loop; the floor uses all the power."""
    state, floor = _state(seed, num_devices, 0.3), 0.2
    targets, power = _inputs(seed, num_devices)
    plan = CotafScaling(gain_floor=floor).plan(state, targets, power)
    for m in range(3):
        eta, sent = cotaf_plan(
            state.gains[:, m].tolist(),
            targets.tolist(),
            state.mean_gains.tolist(),
            power.tolist(),
            floor,
        )
        assert plan.precoders[:, m].tolist() == pytest.approx(sent, rel=1e-12)
        if any(sent):
            assert plan.denoising[m] == pytest.approx(eta, rel=1e-12)
            assert plan.sum_mse[m] == pytest.approx(0.3 / eta, rel=1e-9)
    # nothing is left of the power of the loudest update at its floor
    gains = np.sqrt(floor * state.mean_gains)[:, None].astype(complex)
    edge = ChannelState(gains * (1 + 1e-12), gains * (1 + 1e-12), 0.3, state.mean_gains)
    used = np.abs(CotafScaling(gain_floor=floor).plan(edge, targets, power).precoders[:, 0]) ** 2
    assert (used / power).max() == pytest.approx(1.0, rel=1e-9)


@pytest.mark.parametrize("gain_floor", [0.0, -1.0, math.nan, math.inf])
def test_a_floor_of_zero_is_refused(gain_floor: float) -> None:
    """E1(0) is infinite."""
    for control in (TruncatedInversion, CotafScaling):
        with pytest.raises(ChannelError, match="gain_floor"):
            control(gain_floor=gain_floor)
    with pytest.raises(ChannelError, match="budget"):
        TruncatedInversion(budget="yearly")  # type: ignore[arg-type]


@pytest.mark.parametrize("control", _ALL, ids=repr)
def test_a_device_in_a_deep_fade_is_silent_and_does_not_count(control: PowerControl) -> None:
    """|h| = 0, and so small that |h|^2 underflows; no division warns."""
    gains = np.array([[1.0 + 1.0j], [0.0], [1e-170j]])
    state = ChannelState(gains, gains, 0.1, np.ones(3))
    plan = control.plan(state, np.ones(3), np.ones(3))
    assert plan.is_heard[:, 0].tolist() == [True, False, False]
    assert np.isfinite(plan.precoders).all()
    assert np.isfinite(plan.sum_mse).all()


@pytest.mark.parametrize("control", _ALL, ids=repr)
def test_nobody_heard_or_nothing_to_send_takes_in_no_noise(control: PowerControl) -> None:
    dead = ChannelState(np.zeros((2, 1), complex), np.zeros((2, 1), complex), 0.1, np.ones(2))
    plan = control.plan(dead, np.ones(2), np.ones(2))
    assert not plan.is_heard.any()
    assert plan.sum_mse.tolist() == [0.0]
    idle = control.plan(_state(3, 2, 0.1), np.zeros(2), np.ones(2))
    assert idle.is_heard.all()
    assert not idle.precoders.any()
    assert (idle.sum_mse == 0.0).all()


def test_a_server_that_cannot_tell_silence_listens_to_noise() -> None:
    dead = ChannelState(np.zeros((2, 1), complex), np.zeros((2, 1), complex), 0.1, np.ones(2))
    plan = TruncatedInversion(knows_silence=False).plan(dead, np.ones(2), np.ones(2))
    assert plan.denoising[0] == pytest.approx(1.0 / exp1(0.1))
    assert plan.heard_share == pytest.approx(math.exp(-0.1))


@pytest.mark.parametrize("control", _ALL, ids=repr)
def test_precoders_invert_what_is_known_not_what_is_true(control: PowerControl) -> None:
    state = draw_state(
        Fading(), 6, 0, mean_gains=np.ones(4), noise_power=0.01, csi_error=0.3, jitter_rad=0.2
    )
    plan = control.plan(state, np.ones(4), np.ones(4))
    received = (state.known_gains * plan.precoders)[plan.is_heard]
    assert np.allclose(received.imag, 0.0, atol=1e-12)
    assert (received.real > 0.0).all()


def test_phase_only_scales_best_for_full_power_and_loses_to_the_optimum() -> None:
    """No other denoising factor on a grid does better with |b|^2 = P."""
    state = _state(7, 5, 0.2, 1)
    targets, power = _inputs(7, 5)
    plan = PhaseOnly().plan(state, targets, power)
    assert np.allclose(np.abs(plan.precoders[:, 0]) ** 2, power)
    reach = np.sqrt(power) * np.abs(state.gains[:, 0])

    def error(eta: float) -> float:
        return float(np.sum((reach / math.sqrt(eta) - targets) ** 2) + 0.2 / eta)

    best = float(plan.denoising[0])
    assert plan.sum_mse[0] == pytest.approx(error(best), rel=1e-12)
    assert all(error(best) <= error(best * factor) for factor in np.geomspace(0.1, 10.0, 201))
    assert OptimalThreshold().plan(state, targets, power).sum_mse[0] <= plan.sum_mse[0]
