"""Which entries are aggregated in the air: layouts that differ, and blocks of one layout."""

import math

import numpy as np
import pytest

from fl_app.wireless.aggregate import aggregate
from fl_app.wireless.power import (
    CotafScaling,
    OptimalThreshold,
    PhaseOnly,
    PowerControl,
    ZeroForcing,
)
from tests.air_fixtures import random_state, random_updates, rng_of


@pytest.mark.parametrize("control", [ZeroForcing(), OptimalThreshold()], ids=repr)
def test_layouts_that_differ_divide_by_the_weights_present(control: PowerControl) -> None:
    """Entry by entry; the last entry is held by nobody and stays 0."""
    updates, weights = random_updates(21, 4, 41)
    presence = np.random.default_rng(22).random((4, 41)) < 0.6
    presence[:, -1] = False
    presence[0, 0] = True
    updates[~presence] = np.nan  # never looked at
    mean, report = aggregate(
        updates, weights, random_state(21, 4), control, rng_of(), presence=presence
    )
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
    state = random_state(24, 3, noise_power=0.05, csi_error=0.2, jitter_rad=0.1)
    rng = rng_of(25)
    gaps = []
    for _ in range(60):
        updates = np.array([[1.0], [0.5], [2.0]]) * rng.standard_normal((3, 2000))
        _, report = aggregate(
            updates, np.array([1.0, 2.0, 1.0]), state, OptimalThreshold(), rng, presence=presence
        )
        gaps.append(report.expected_mse - report.predicted_mse)
    assert abs(np.mean(gaps)) <= 5.0 * np.std(gaps, ddof=1) / math.sqrt(len(gaps))


def test_a_full_mask_is_no_mask() -> None:
    updates, weights = random_updates(26, 3, 33)
    state = random_state(26, 3, noise_power=0.1)
    plain, one = aggregate(updates, weights, state, OptimalThreshold(), rng_of(3))
    masked, two = aggregate(
        updates, weights, state, OptimalThreshold(), rng_of(3), presence=np.ones((3, 33), bool)
    )
    assert plain is not None
    assert masked is not None
    assert np.allclose(plain, masked, rtol=1e-12)
    # The empty half of an odd last use counts in one and not in the other; 30 reals have none.
    even = updates[:, :30]
    one = aggregate(even, weights, state, OptimalThreshold(), rng_of())[1]
    held = np.ones((3, 30), bool)
    two = aggregate(even, weights, state, OptimalThreshold(), rng_of(), presence=held)[1]
    assert one.predicted_mse == pytest.approx(two.predicted_mse, rel=1e-12)


def test_blocks_are_standardised_apart_and_padded_apart() -> None:
    updates, weights = random_updates(27, 3, 10)
    updates[:, :3] *= 1000.0
    state = random_state(27, 3, noise_power=0.1)
    _, report = aggregate(updates, weights, state, ZeroForcing(), rng_of(), blocks=[3, 7])
    parts = [
        aggregate(updates[:, a:b], weights, state, ZeroForcing(), rng_of())[1]
        for a, b in ((0, 3), (3, 10))
    ]
    assert report.channel_uses == 2 + 4
    assert report.control_bytes == 2 * 3 * 2 * 8  # float64 updates
    assert report.announced_bytes == 2 * 3 * 4  # blocks, subcarriers, float32
    narrow = aggregate(updates.astype(np.float32), weights, state, CotafScaling(), rng_of())[1]
    assert (narrow.control_bytes, narrow.announced_bytes) == (3 * 4, 4)  # no means, one factor
    assert aggregate(updates, weights, state, PhaseOnly(), rng_of())[1].announced_bytes == 0
    total = 3 * parts[0].predicted_mse + 7 * parts[1].predicted_mse
    assert report.predicted_mse == pytest.approx(total / 10)
