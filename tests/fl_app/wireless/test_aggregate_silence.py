"""Who is not heard in the air: nothing to say, silent by channel, lost on the way."""

from dataclasses import replace

import numpy as np
import pytest

from fl_app.wireless.aggregate import aggregate
from fl_app.wireless.channel import ChannelState
from fl_app.wireless.power import PowerControl, TruncatedInversion, ZeroForcing
from tests.air_fixtures import CONTROLS, random_state, random_updates, rng_of


@pytest.mark.parametrize("control", CONTROLS, ids=repr)
def test_a_constant_update_contributes_its_mean_and_no_power(control: PowerControl) -> None:
    """As LoRA factors do that have not moved yet; COTAF has no side channel for means."""
    updates, weights = random_updates(12, 3, 21)
    updates[1] = 0.25 if control.removes_mean else 0.0
    state = random_state(13, 3)
    _, report = aggregate(updates, weights, state, control, rng_of())
    assert report.tx_power[1] == 0.0
    still = np.full((3, 21), 0.25 if control.removes_mean else 0.0)
    mean, quiet = aggregate(still, weights, replace(state, noise_power=1.0), control, rng_of())
    assert mean is not None
    assert np.allclose(mean, still[0], atol=1e-15)
    assert quiet.channel_uses == 0
    assert quiet.realised_nmse < 1e-25


def test_a_weight_of_zero_sends_nothing_and_counts_for_nothing() -> None:
    updates, weights = random_updates(15, 3, 12)
    weights[2] = 0.0
    state = random_state(15, 3)
    mean, report = aggregate(updates, weights, state, ZeroForcing(), rng_of())
    assert mean is not None
    assert np.allclose(mean, weights[:2] @ updates[:2] / weights[:2].sum(), rtol=1e-12)
    assert report.tx_power[2] == 0.0
    assert not report.is_silent[2]


def test_all_silent_gives_no_mean() -> None:
    updates, weights = random_updates(16, 3, 10)
    gains = np.full((3, 2), 1e-3 + 0j)
    state = ChannelState(gains, gains, 0.1, np.ones(3))
    mean, report = aggregate(updates, weights, state, TruncatedInversion(), rng_of())
    assert mean is None
    assert report.is_silent.all()
    assert report.unheard_reals == 10
    assert report.channel_uses == 0
    assert report.realised_nmse == pytest.approx(1.0)
    assert report.expected_mse == pytest.approx(report.mean_energy)


def test_a_subcarrier_nobody_is_heard_on_keeps_zeros() -> None:
    """Uses 1, 3, ... of two subcarriers: entries 2, 3, 6, 7, ..."""
    updates, weights = random_updates(17, 3, 12)
    gains = np.ones((3, 2), complex)
    gains[:, 1] = 1e-3
    state = ChannelState(gains, gains, 0.0, np.ones(3))
    mean, report = aggregate(updates, weights, state, TruncatedInversion(), rng_of())
    assert mean is not None
    exact = weights @ updates / weights.sum()
    dead = np.arange(12) // 2 % 2 == 1
    assert np.allclose(mean[~dead], exact[~dead])
    assert (mean[dead] == 0.0).all()
    assert report.unheard_reals == 6
    assert report.silent_share.tolist() == [0.5] * 3
    assert report.realised_mse == pytest.approx((exact[dead] ** 2).sum() / 12)


def test_a_silent_device_leaves_the_mean_of_the_others() -> None:
    updates, weights = random_updates(18, 3, 11)
    gains = np.array([[1.0], [0.0], [1.0j]])
    state = ChannelState(gains, gains, 0.0, np.ones(3))
    mean, report = aggregate(updates, weights, state, ZeroForcing(), rng_of())
    assert mean is not None
    assert np.allclose(mean, weights[[0, 2]] @ updates[[0, 2]] / weights[[0, 2]].sum())
    assert report.is_silent.tolist() == [False, True, False]


@pytest.mark.parametrize("is_known", [True, False])
def test_a_device_lost_after_the_announcement(is_known: bool) -> None:
    """Known: mean of the rest. Unknown: its mean stays counted, its signal w (u - m) is missing."""
    updates, weights = random_updates(19, 4, 30)
    state = random_state(19, 4)
    lost = np.array([False, True, False, False])
    mean, report = aggregate(
        updates, weights, state, ZeroForcing(), rng_of(), is_lost=lost, loss_is_known=is_known
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
    updates, weights = random_updates(20, 2, 6)
    mean, report = aggregate(
        updates, weights, random_state(20, 2), ZeroForcing(), rng_of(), is_lost=np.ones(2, bool)
    )
    assert mean is None
    assert report.unheard_reals == 6
