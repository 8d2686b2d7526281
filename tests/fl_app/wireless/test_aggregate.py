"""Aggregation in the air: exact without noise, closed forms with it, and every edge of it."""

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fl_app.wireless.aggregate import aggregate
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
from fl_app.wireless.report import AirReport
from tests.oracles.air_power import truncated_mean_variance
from tests.oracles.air_sum import (
    exact_mean,
    inverting_precoders,
    noise_free_mean,
    standardised,
    zero_forcing_eta,
)

_CONTROLS: list[PowerControl] = [
    ZeroForcing(),
    OptimalThreshold(),
    PhaseOnly(),
    CotafScaling(gain_floor=0.05),
    TruncatedInversion(gain_floor=0.2),
    TruncatedInversion(gain_floor=0.2, budget="per_use"),
    TruncatedInversion(gain_floor=0.2, knows_silence=False),
]


def _updates(seed: int, num_devices: int, num_params: int) -> tuple[np.ndarray, np.ndarray]:
    """Both signs, unequal scales, means and weights."""
    rng = np.random.default_rng(seed)
    scale, offset = rng.uniform(0.2, 2.0, (num_devices, 1)), rng.normal(size=(num_devices, 1))
    updates = scale * rng.standard_normal((num_devices, num_params)) + offset
    return updates, rng.uniform(0.5, 3.0, num_devices)


def _state(
    seed: int, num_devices: int, noise_power: float = 0.0, num_subcarriers: int = 3, **errors: float
) -> ChannelState:
    return draw_state(
        Fading(num_subcarriers=num_subcarriers),
        seed,
        0,
        mean_gains=np.random.default_rng(seed + 7).uniform(0.5, 2.0, num_devices),
        noise_power=noise_power,
        **errors,
    )


def _rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def _repeat(
    control: PowerControl,
    state: ChannelState,
    updates: np.ndarray,
    weights: np.ndarray,
    **how: float,
) -> tuple[np.ndarray, AirReport]:
    """Returns realised MSEs of 40 rounds that differ in noise, and the last report."""
    rng = _rng(5)
    reports = [aggregate(updates, weights, state, control, rng, **how)[1] for _ in range(40)]  # type: ignore[arg-type]
    return np.array([r.realised_mse for r in reports]), reports[-1]


@pytest.mark.parametrize("control", [ZeroForcing(), OptimalThreshold()], ids=repr)
@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float64, 1e-13), (np.float32, 1e-6)])
@pytest.mark.parametrize("num_params", [1, 7, 40_003])
def test_without_noise_the_sum_is_the_weighted_mean(
    control: PowerControl, dtype: type, tolerance: float, num_params: int
) -> None:
    """Odd lengths, several chunks, and a single parameter among them."""
    updates, weights = _updates(1, 5, num_params)
    updates = updates.astype(dtype)
    mean, report = aggregate(updates, weights, _state(1, 5), control, _rng())
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
    updates, weights = _updates(41, 60, 20_001)
    mean, report = aggregate(updates, weights, _state(41, 60), ZeroForcing(), _rng())
    exact = weights @ updates / weights.sum()
    assert mean is not None
    assert np.linalg.norm(mean - exact) <= 1e-13 * np.linalg.norm(exact)
    assert report.mean_energy == pytest.approx(np.mean(exact**2), rel=1e-12)


@pytest.mark.parametrize("control", _CONTROLS, ids=repr)
@pytest.mark.parametrize("peak_power", [math.inf, 0.4])
def test_every_rule_equals_the_sum_of_what_antennas_radiate(
    control: PowerControl, peak_power: float
) -> None:
    """Imperfect CSI, jitter, silence and clipping; catches a lost conjugate or a swapped pair."""
    updates, weights = _updates(2, 6, 31)
    state = _state(2, 6, noise_power=0.0, csi_error=0.2, jitter_rad=0.2)
    mean, report = aggregate(updates, weights, state, control, _rng(), peak_power=peak_power)
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
    updates, weights = _updates(3, 4, 20)
    state = _state(3, 4, num_subcarriers=2)
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
    mean, report = aggregate(updates, weights, state, ZeroForcing(), _rng(), power=2.0)
    assert mean is not None
    assert np.allclose(mean, expected, rtol=1e-12)
    spent = np.mean(np.abs(np.array(precoders)) ** 2, axis=0)
    assert np.allclose(report.tx_power, spent)
    noisy = replace(state, noise_power=0.3)
    _, with_noise = aggregate(updates, weights, noisy, ZeroForcing(), _rng(), power=2.0)
    closed = 0.3 * sum(1.0 / e for e in eta) / 2
    assert with_noise.predicted_mse == pytest.approx(closed, rel=1e-12)


@pytest.mark.parametrize("control", _CONTROLS, ids=repr)
@pytest.mark.parametrize("errors", [{}, {"csi_error": 0.1, "jitter_rad": 0.1}])
def test_realised_error_scatters_around_the_expected_one(
    control: PowerControl, errors: dict[str, float]
) -> None:
    """Within five standard errors, whose size the report states truly."""
    updates, weights = _updates(4, 5, 4001)
    state = _state(4, 5, noise_power=0.05, **errors)
    realised, report = _repeat(control, state, updates, weights)
    error = report.expected_mse_deviation / math.sqrt(len(realised))
    assert abs(realised.mean() - report.expected_mse) <= 5.0 * error
    spread = realised.std(ddof=1)
    assert abs(spread / report.expected_mse_deviation - 1.0) <= 5.0 / math.sqrt(2 * 39)
    assert report.expected_mse == pytest.approx(report.noise_mse + report.noise_free_mse)


@pytest.mark.parametrize("control", _CONTROLS, ids=repr)
@pytest.mark.parametrize("peak_power", [math.inf, 0.3])
def test_the_closed_form_holds_for_independent_gaussian_updates(
    control: PowerControl, peak_power: float
) -> None:
    """Mean of expected MSE minus predicted MSE over 60 draws of updates, 5 standard errors.

    Means are equal between devices and 0, so that no draw of them enters the comparison.
    """
    state = _state(5, 4, noise_power=0.02, csi_error=0.1, jitter_rad=0.1)
    weights = np.array([1.0, 2.0, 0.5, 1.0])
    rng = _rng(6)
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
    mean, report = aggregate(updates, np.ones(3), state, control, _rng(9))
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
    updates, weights = _updates(10, 5, 100)
    errors = [
        aggregate(updates, weights, _state(10, 5, noise_power), ZeroForcing(), _rng())[1]
        for noise_power in (1.0, 0.1, 0.01)
    ]
    assert errors[0].predicted_nmse == pytest.approx(10.0 * errors[1].predicted_nmse)
    assert errors[1].realised_nmse == pytest.approx(10.0 * errors[2].realised_nmse)


@pytest.mark.parametrize("control", _CONTROLS, ids=repr)
@given(data=st.data(), seed=st.integers(0, 1000), num_devices=st.integers(1, 6))
@settings(derandomize=True, max_examples=15, deadline=None)
def test_permuting_devices_changes_nothing(
    control: PowerControl, data: st.DataObject, seed: int, num_devices: int
) -> None:
    updates, weights = _updates(seed, num_devices, 23)
    state = _state(seed, num_devices, noise_power=0.1)
    order = np.array(data.draw(st.permutations(range(num_devices))))
    turned = ChannelState(
        state.gains[order], state.known_gains[order], 0.1, state.mean_gains[order]
    )
    mean, report = aggregate(updates, weights, state, control, _rng(1))
    other, second = aggregate(updates[order], weights[order], turned, control, _rng(1))
    assert (mean is None) == (other is None)
    if mean is not None and other is not None:
        assert np.allclose(mean, other, rtol=1e-9, atol=1e-9)
    assert np.allclose(report.tx_power[order], second.tx_power, rtol=1e-9)
    assert report.predicted_mse == pytest.approx(second.predicted_mse, rel=1e-9)


@pytest.mark.parametrize("control", _CONTROLS, ids=repr)
@given(scale=st.sampled_from([-1e3, -1.0, 1e-6, 3.0]), seed=st.integers(0, 1000))
@settings(derandomize=True, max_examples=15, deadline=None)
def test_scaling_updates_scales_the_noise_free_mean_and_the_error(
    control: PowerControl, scale: float, seed: int
) -> None:
    updates, weights = _updates(seed, 4, 23)
    state = _state(seed, 4, noise_power=0.0)
    mean, _ = aggregate(updates, weights, state, control, _rng(1))
    scaled, _ = aggregate(scale * updates, weights, state, control, _rng(1))
    assert (mean is None) == (scaled is None)
    if mean is not None and scaled is not None:
        assert np.allclose(scaled, scale * mean, rtol=1e-9, atol=1e-9 * abs(scale))
    noisy = replace(state, noise_power=0.1)
    _, one = aggregate(updates, weights, noisy, control, _rng(1))
    _, two = aggregate(scale * updates, weights, noisy, control, _rng(1))
    assert two.predicted_mse == pytest.approx(scale**2 * one.predicted_mse, rel=1e-9)


@pytest.mark.parametrize("control", _CONTROLS, ids=repr)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_inputs_are_unchanged_and_rounds_repeat(control: PowerControl, dtype: type) -> None:
    updates, weights = _updates(11, 4, 50)
    updates = updates.astype(dtype)
    state = _state(11, 4, noise_power=0.1)
    before = (updates.tobytes(), weights.tobytes(), state.gains.tobytes())
    first, _ = aggregate(updates, weights, state, control, _rng(2))
    second, _ = aggregate(updates, weights, state, control, _rng(2))
    assert first is not None
    assert second is not None
    assert first.tobytes() == second.tobytes()
    assert before == (updates.tobytes(), weights.tobytes(), state.gains.tobytes())


@pytest.mark.parametrize("control", _CONTROLS, ids=repr)
def test_a_constant_update_contributes_its_mean_and_no_power(control: PowerControl) -> None:
    """As LoRA factors do that have not moved yet; COTAF has no side channel for means."""
    updates, weights = _updates(12, 3, 21)
    updates[1] = 0.25 if control.removes_mean else 0.0
    state = _state(13, 3)
    _, report = aggregate(updates, weights, state, control, _rng())
    assert report.tx_power[1] == 0.0
    still = np.full((3, 21), 0.25 if control.removes_mean else 0.0)
    mean, quiet = aggregate(still, weights, replace(state, noise_power=1.0), control, _rng())
    assert mean is not None
    assert np.allclose(mean, still[0], atol=1e-15)
    assert quiet.channel_uses == 0
    assert quiet.realised_nmse < 1e-25


def test_one_device_alone_is_heard_exactly() -> None:
    updates, _ = _updates(14, 1, 9)
    mean, report = aggregate(updates, np.array([0.3]), _state(14, 1), ZeroForcing(), _rng())
    assert mean is not None
    assert np.allclose(mean, updates[0], rtol=1e-13)
    assert report.control_bytes == 16


def test_a_weight_of_zero_sends_nothing_and_counts_for_nothing() -> None:
    updates, weights = _updates(15, 3, 12)
    weights[2] = 0.0
    state = _state(15, 3)
    mean, report = aggregate(updates, weights, state, ZeroForcing(), _rng())
    assert mean is not None
    assert np.allclose(mean, weights[:2] @ updates[:2] / weights[:2].sum(), rtol=1e-12)
    assert report.tx_power[2] == 0.0
    assert not report.is_silent[2]


def test_all_silent_gives_no_mean() -> None:
    updates, weights = _updates(16, 3, 10)
    gains = np.full((3, 2), 1e-3 + 0j)
    state = ChannelState(gains, gains, 0.1, np.ones(3))
    mean, report = aggregate(updates, weights, state, TruncatedInversion(), _rng())
    assert mean is None
    assert report.is_silent.all()
    assert report.unheard_reals == 10
    assert report.channel_uses == 0
    assert report.realised_nmse == pytest.approx(1.0)
    assert report.expected_mse == pytest.approx(report.mean_energy)


def test_a_subcarrier_nobody_is_heard_on_keeps_zeros() -> None:
    """Uses 1, 3, ... of two subcarriers: entries 2, 3, 6, 7, ..."""
    updates, weights = _updates(17, 3, 12)
    gains = np.ones((3, 2), complex)
    gains[:, 1] = 1e-3
    state = ChannelState(gains, gains, 0.0, np.ones(3))
    mean, report = aggregate(updates, weights, state, TruncatedInversion(), _rng())
    assert mean is not None
    exact = weights @ updates / weights.sum()
    dead = np.arange(12) // 2 % 2 == 1
    assert np.allclose(mean[~dead], exact[~dead])
    assert (mean[dead] == 0.0).all()
    assert report.unheard_reals == 6
    assert report.silent_share.tolist() == [0.5] * 3
    assert report.realised_mse == pytest.approx((exact[dead] ** 2).sum() / 12)


def test_a_silent_device_leaves_the_mean_of_the_others() -> None:
    updates, weights = _updates(18, 3, 11)
    gains = np.array([[1.0], [0.0], [1.0j]])
    state = ChannelState(gains, gains, 0.0, np.ones(3))
    mean, report = aggregate(updates, weights, state, ZeroForcing(), _rng())
    assert mean is not None
    assert np.allclose(mean, weights[[0, 2]] @ updates[[0, 2]] / weights[[0, 2]].sum())
    assert report.is_silent.tolist() == [False, True, False]


@pytest.mark.parametrize("is_known", [True, False])
def test_a_device_lost_after_the_announcement(is_known: bool) -> None:
    """Known: mean of the rest. Unknown: its mean stays counted, its signal w (u - m) is missing."""
    updates, weights = _updates(19, 4, 30)
    state = _state(19, 4)
    lost = np.array([False, True, False, False])
    mean, report = aggregate(
        updates, weights, state, ZeroForcing(), _rng(), is_lost=lost, loss_is_known=is_known
    )
    shares = weights / weights.sum()
    exact = shares @ updates
    if is_known:
        expected = shares[~lost] @ updates[~lost] / shares[~lost].sum()
    else:
        expected = exact - shares[1] * (updates[1] - updates[1].mean())
    assert mean is not None
    assert np.allclose(mean, expected, rtol=1e-11)
    assert report.realised_mse == pytest.approx(np.mean((expected - exact) ** 2), rel=1e-9)
    assert report.is_silent.tolist() == lost.tolist()
    assert report.tx_power[1] == 0.0
    if not is_known:
        assert report.predicted_mse == pytest.approx((shares[1] * updates[1].std()) ** 2, rel=1e-9)


def test_everybody_lost_gives_no_mean() -> None:
    updates, weights = _updates(20, 2, 6)
    mean, report = aggregate(
        updates, weights, _state(20, 2), ZeroForcing(), _rng(), is_lost=np.ones(2, bool)
    )
    assert mean is None
    assert report.unheard_reals == 6


@pytest.mark.parametrize("control", [ZeroForcing(), OptimalThreshold()], ids=repr)
def test_layouts_that_differ_divide_by_the_weights_present(control: PowerControl) -> None:
    """Entry by entry; the last entry is held by nobody and stays 0."""
    updates, weights = _updates(21, 4, 41)
    presence = np.random.default_rng(22).random((4, 41)) < 0.6
    presence[:, -1] = False
    presence[0, 0] = True
    updates[~presence] = np.nan  # never looked at
    mean, report = aggregate(updates, weights, _state(21, 4), control, _rng(), presence=presence)
    assert mean is not None
    for i in range(41):
        holders = np.flatnonzero(presence[:, i])
        expected = (
            sum(weights[k] * updates[k, i] for k in holders) / weights[holders].sum()
            if len(holders)
            else 0.0
        )
        assert mean[i] == pytest.approx(expected, rel=1e-10, abs=1e-12)
    nobody = int((~presence.any(axis=0)).sum())
    assert report.unheard_reals == nobody
    assert report.realised_nmse < 1e-20


def test_layouts_that_differ_have_a_closed_form_too() -> None:
    """Expected minus predicted MSE over 60 draws of independent updates, five standard errors."""
    presence = np.random.default_rng(23).random((3, 2000)) < 0.7
    state = _state(24, 3, noise_power=0.05, csi_error=0.2, jitter_rad=0.1)
    rng = _rng(25)
    gaps = []
    for _ in range(60):
        updates = np.array([[1.0], [0.5], [2.0]]) * rng.standard_normal((3, 2000))
        _, report = aggregate(
            updates, np.array([1.0, 2.0, 1.0]), state, OptimalThreshold(), rng, presence=presence
        )
        gaps.append(report.expected_mse - report.predicted_mse)
    assert abs(np.mean(gaps)) <= 5.0 * np.std(gaps, ddof=1) / math.sqrt(len(gaps))


def test_a_full_mask_is_no_mask() -> None:
    updates, weights = _updates(26, 3, 33)
    state = _state(26, 3, noise_power=0.1)
    plain, one = aggregate(updates, weights, state, OptimalThreshold(), _rng(3))
    masked, two = aggregate(
        updates, weights, state, OptimalThreshold(), _rng(3), presence=np.ones((3, 33), bool)
    )
    assert plain is not None
    assert masked is not None
    assert np.allclose(plain, masked, rtol=1e-12)
    # The empty half of an odd last use counts in one and not in the other; 30 reals have none.
    even = updates[:, :30]
    one = aggregate(even, weights, state, OptimalThreshold(), _rng())[1]
    held = np.ones((3, 30), bool)
    two = aggregate(even, weights, state, OptimalThreshold(), _rng(), presence=held)[1]
    assert one.predicted_mse == pytest.approx(two.predicted_mse, rel=1e-12)


def test_blocks_are_standardised_apart_and_padded_apart() -> None:
    updates, weights = _updates(27, 3, 10)
    updates[:, :3] *= 1000.0
    state = _state(27, 3, noise_power=0.1)
    _, report = aggregate(updates, weights, state, ZeroForcing(), _rng(), blocks=[3, 7])
    parts = [
        aggregate(updates[:, a:b], weights, state, ZeroForcing(), _rng())[1]
        for a, b in ((0, 3), (3, 10))
    ]
    assert report.channel_uses == 2 + 4
    assert report.control_bytes == 2 * 3 * 2 * 8  # float64 updates
    assert report.announced_bytes == 2 * 3 * 4  # blocks, subcarriers, float32
    narrow = aggregate(updates.astype(np.float32), weights, state, CotafScaling(), _rng())[1]
    assert (narrow.control_bytes, narrow.announced_bytes) == (3 * 4, 4)  # no means, one factor
    assert aggregate(updates, weights, state, PhaseOnly(), _rng())[1].announced_bytes == 0
    total = 3 * parts[0].predicted_mse + 7 * parts[1].predicted_mse
    assert report.predicted_mse == pytest.approx(total / 10)


def test_channel_uses_do_not_grow_with_devices() -> None:
    for num_devices in (1, 2, 9):
        updates, weights = _updates(28, num_devices, 101)
        state = _state(28, num_devices, noise_power=0.1)
        _, report = aggregate(updates, weights, state, ZeroForcing(), _rng())
        assert report.channel_uses == 51


def test_float32_rounds_agree_with_float64_rounds() -> None:
    """Same noise-free sums to 1e-6 of the update's size, many subcarriers and chunks."""
    updates, weights = _updates(29, 6, 50_001)
    state = _state(29, 6, num_subcarriers=64, csi_error=0.1)
    small = updates.astype(np.float32)
    wide, _ = aggregate(small.astype(np.float64), weights, state, OptimalThreshold(), _rng())
    narrow, _ = aggregate(small, weights, state, OptimalThreshold(), _rng())
    assert wide is not None
    assert narrow is not None
    assert np.linalg.norm(wide - narrow) <= 1e-6 * np.linalg.norm(wide)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"power": 0.0}, "power"),
        ({"power": math.nan}, "power"),
        ({"peak_power": 0.0}, "peak_power"),
        ({"peak_power": math.nan}, "peak_power"),
        ({"presence": np.ones((3, 4), bool)}, "presence"),
        ({"presence": np.ones((3, 5), bool), "peak_power": 1.0}, "peak_power"),
        ({"is_lost": np.ones(2, bool)}, "is_lost"),
        ({"blocks": [4]}, "blocks"),
    ],
)
def test_what_cannot_be_sent_is_refused(change: dict[str, object], text: str) -> None:
    updates, weights = _updates(30, 3, 5)
    with pytest.raises(ChannelError, match=text):
        aggregate(updates, weights, _state(30, 3), ZeroForcing(), _rng(), **change)  # type: ignore[arg-type]


def test_a_channel_for_other_devices_is_refused_and_nan_names_the_device() -> None:
    updates, weights = _updates(31, 3, 5)
    with pytest.raises(ChannelError, match="2 devices"):
        aggregate(updates, weights, _state(31, 2), ZeroForcing(), _rng())
    updates[2, 1] = np.nan
    with pytest.raises(ChannelError, match="device 2"):
        aggregate(updates, weights, _state(31, 3), ZeroForcing(), _rng())


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("offset", [0.0, 1e4])
@pytest.mark.parametrize("num_params", [16_384, 16_385])
def test_whole_chunks_sum_as_partial_ones_do(dtype: type, offset: float, num_params: int) -> None:
    """The short cut for whole chunks against the slow reference, with means that forbid it too."""
    rng = _rng(40)
    updates = (rng.standard_normal((2, num_params)) + offset).astype(dtype)
    weights = np.array([1.0, 3.0])
    state = _state(41, 2, num_subcarriers=4, csi_error=0.2)
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
    mean, _ = aggregate(updates, weights, state, ZeroForcing(), _rng())
    assert mean is not None
    tolerance = 1e-6 if dtype is np.float32 else 1e-12
    assert np.abs(mean - expected).max() <= tolerance * (offset + 10.0)
