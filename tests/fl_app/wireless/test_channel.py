"""Fading against its definitions; tolerances are five standard errors of each estimate."""

import math

import numpy as np
import pytest

from fl_app.wireless.channel import (
    ChannelState,
    Fading,
    complex_normal,
    draw_antenna_gains,
    draw_gains,
    draw_mimo_gains,
    draw_state,
    estimate_gains,
    jitter_phase,
)
from fl_app.wireless.errors import ChannelError

_MANY = 4000


def _within(samples: np.ndarray, expected: float) -> bool:
    """Tells whether the mean of independent samples is within five standard errors."""
    error = samples.std(ddof=1) / math.sqrt(samples.size)
    return bool(abs(samples.mean() - expected) <= 5.0 * error)


def test_complex_normal_splits_its_variance_between_real_and_imaginary() -> None:
    """Catches noise that is a factor of two too strong or too weak."""
    drawn = complex_normal(np.random.default_rng(1), (100_000,), variance=0.6)
    assert _within(drawn.real**2, 0.3)
    assert _within(drawn.imag**2, 0.3)
    assert _within(drawn.real * drawn.imag, 0.0)


@pytest.mark.parametrize(
    "fading",
    [
        Fading(kind="rayleigh"),
        Fading(kind="rician", rician_k=3.0),
        Fading(kind="rayleigh", num_subcarriers=8, num_taps=3),
    ],
)
def test_small_scale_fading_has_unit_mean_power(fading: Fading) -> None:
    gains = draw_gains(fading, 3, 0, range(_MANY))
    assert gains.shape == (_MANY, fading.num_subcarriers)
    for m in range(fading.num_subcarriers):
        assert _within(np.abs(gains[:, m]) ** 2, 1.0)


def test_rayleigh_gains_are_exponential() -> None:
    """P(|h|^2 < 0.1) = 1 - exp(-0.1)."""
    gains = np.abs(draw_gains(Fading(), 4, 0, range(_MANY))[:, 0]) ** 2
    assert _within((gains < 0.1).astype(float), 1.0 - math.exp(-0.1))


def test_rician_fading_varies_by_its_scatter_only() -> None:
    """Var |h|^2 = (1 + 2 K) / (1 + K)^2 over rounds, here K = 4; the sight itself never moves."""
    fading = Fading(kind="rician", rician_k=4.0)
    gains = np.array([draw_gains(fading, 5, t, range(1))[0, 0] for t in range(_MANY)])
    power = np.abs(gains) ** 2
    assert _within((power - 1.0) ** 2, 9.0 / 25.0)
    assert abs(abs(gains.mean()) - math.sqrt(0.8)) < 5.0 * math.sqrt(0.2 / _MANY)


def test_gauss_markov_rounds_are_correlated_by_rho() -> None:
    """E[h_t h_{t+2}*] = rho^2; rho = 1 never changes, rho = 0 is block fading."""
    fading = Fading(correlation=0.8)
    now, later = draw_gains(fading, 6, 1, range(_MANY)), draw_gains(fading, 6, 3, range(_MANY))
    assert _within((now * later.conj()).real[:, 0], 0.64)
    static = Fading(correlation=1.0)
    assert np.array_equal(draw_gains(static, 6, 0, range(3)), draw_gains(static, 6, 9, range(3)))


def test_taps_correlate_subcarriers_as_the_transform_of_their_profile() -> None:
    """E[H_0 H_1*] = sum_l p_l exp(2 pi j l / M)."""
    fading = Fading(num_subcarriers=16, num_taps=4, decay_taps=2.0)
    gains = draw_gains(fading, 7, 0, range(_MANY))
    profile = np.exp(-np.arange(4) / 2.0)
    expected = profile @ np.exp(2j * np.pi * np.arange(4) / 16) / profile.sum()
    product = gains[:, 0] * gains[:, 1].conj()
    assert _within(product.real, expected.real)
    assert _within(product.imag, expected.imag)


def test_a_draw_depends_on_its_name_only() -> None:
    """Neither on who else takes part nor on the order of calls."""
    fading = Fading(num_subcarriers=4)
    many, few = draw_gains(fading, 8, 2, range(5)), draw_gains(fading, 8, 2, range(2))
    assert np.array_equal(many[:2], few)
    assert not np.array_equal(many[0], many[1])
    assert not np.array_equal(many, draw_gains(fading, 8, 3, range(5)))
    assert np.array_equal(
        draw_antenna_gains(fading, 8, 2, range(5), 3)[4],
        draw_mimo_gains(fading, 8, 2, 4, 3, 1)[..., 0],
    )


@pytest.mark.parametrize("kind", ["ideal", "awgn"])
def test_a_channel_without_fading_is_one(kind: str) -> None:
    fading = Fading(kind=kind, num_subcarriers=2)  # type: ignore[arg-type]
    state = draw_state(fading, 1, 1, mean_gains=np.ones(3), noise_power=0.5)
    assert np.array_equal(state.gains, np.ones((3, 2)))
    assert state.noise_power == (0.0 if kind == "ideal" else 0.5)


def test_csi_error_keeps_the_power_and_costs_correlation() -> None:
    """E[h* h_hat] = sqrt(1 - eps^2) and E|h_hat|^2 = 1."""
    gains = draw_gains(Fading(), 9, 0, range(_MANY))
    known = estimate_gains(gains, 0.6, 9, 0)
    assert _within(np.abs(known[:, 0]) ** 2, 1.0)
    assert _within((gains.conj() * known).real[:, 0], 0.8)
    assert np.array_equal(estimate_gains(gains, 0.0, 9, 0), gains)


def test_phase_jitter_turns_all_subcarriers_of_a_device_alike() -> None:
    gains = draw_gains(Fading(num_subcarriers=3), 10, 0, range(_MANY))
    angles = np.angle(jitter_phase(gains, 0.2, 10, 0) / gains)
    assert np.allclose(angles, angles[:, :1])
    assert _within(angles[:, 0] ** 2, 0.04)


def test_path_loss_scales_truth_and_estimate_alike() -> None:
    large = np.array([1e-9, 4e-9])
    state = draw_state(Fading(), 11, 0, mean_gains=large, noise_power=1e-12)
    small = draw_gains(Fading(), 11, 0, range(2))
    assert np.allclose(np.abs(state.gains) ** 2, large[:, None] * np.abs(small) ** 2, rtol=1e-12)
    assert np.array_equal(state.gains, state.known_gains)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("kind", "nakagami"),
        ("num_subcarriers", 0),
        ("num_taps", 2),
        ("decay_taps", 0.0),
        ("rician_k", -1.0),
        ("rician_k", math.nan),
        ("correlation", 1.5),
    ],
)
def test_fading_refuses_values_out_of_range(field: str, value: object) -> None:
    with pytest.raises(ChannelError, match=field):
        Fading(**{field: value})  # type: ignore[arg-type]


def test_a_state_refuses_what_cannot_be_a_channel() -> None:
    ones = np.ones((2, 3), complex)
    with pytest.raises(ChannelError, match="known_gains"):
        ChannelState(ones, ones[:1], 0.1, np.ones(2))
    with pytest.raises(ChannelError, match="finite"):
        ChannelState(ones * np.nan, ones, 0.1, np.ones(2))
    with pytest.raises(ChannelError, match="noise_power"):
        ChannelState(ones, ones, -0.1, np.ones(2))
    with pytest.raises(ChannelError, match="mean_gains"):
        ChannelState(ones, ones, 0.1, np.zeros(2))
    with pytest.raises(ChannelError, match="csi_error"):
        estimate_gains(ones, 1.5, 0, 0)
    with pytest.raises(ChannelError, match="jitter_rad"):
        jitter_phase(ones, -1.0, 0, 0)
