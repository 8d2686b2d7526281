"""What does not matter to aggregation in the air: order of devices, scale, repetition."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fl_app.wireless.aggregate import aggregate
from fl_app.wireless.channel import ChannelState
from fl_app.wireless.power import PowerControl, ZeroForcing
from tests.air_fixtures import CONTROLS, random_state, random_updates, rng_of


@pytest.mark.parametrize("control", CONTROLS, ids=repr)
@given(data=st.data(), seed=st.integers(0, 1000), num_devices=st.integers(1, 6))
@settings(derandomize=True, max_examples=15, deadline=None)
def test_permuting_devices_changes_nothing(
    control: PowerControl, data: st.DataObject, seed: int, num_devices: int
) -> None:
    updates, weights = random_updates(seed, num_devices, 23)
    state = random_state(seed, num_devices, noise_power=0.1)
    order = np.array(data.draw(st.permutations(range(num_devices))))
    turned = ChannelState(
        state.gains[order], state.known_gains[order], 0.1, state.mean_gains[order]
    )
    mean, report = aggregate(updates, weights, state, control, rng_of(1))
    other, second = aggregate(updates[order], weights[order], turned, control, rng_of(1))
    assert (mean is None) == (other is None)
    if mean is not None and other is not None:
        assert np.allclose(mean, other, rtol=1e-9, atol=1e-9)
    assert np.allclose(report.tx_power[order], second.tx_power, rtol=1e-9)
    assert report.predicted_mse == pytest.approx(second.predicted_mse, rel=1e-9)


@pytest.mark.parametrize("control", CONTROLS, ids=repr)
@given(scale=st.sampled_from([-1e3, -1.0, 1e-6, 3.0]), seed=st.integers(0, 1000))
@settings(derandomize=True, max_examples=15, deadline=None)
def test_scaling_updates_scales_the_noise_free_mean_and_the_error(
    control: PowerControl, scale: float, seed: int
) -> None:
    updates, weights = random_updates(seed, 4, 23)
    state = random_state(seed, 4, noise_power=0.0)
    mean, _ = aggregate(updates, weights, state, control, rng_of(1))
    scaled, _ = aggregate(scale * updates, weights, state, control, rng_of(1))
    assert (mean is None) == (scaled is None)
    if mean is not None and scaled is not None:
        assert np.allclose(scaled, scale * mean, rtol=1e-9, atol=1e-9 * abs(scale))
    noisy = replace(state, noise_power=0.1)
    _, one = aggregate(updates, weights, noisy, control, rng_of(1))
    _, two = aggregate(scale * updates, weights, noisy, control, rng_of(1))
    assert two.predicted_mse == pytest.approx(scale**2 * one.predicted_mse, rel=1e-9)


@pytest.mark.parametrize("control", CONTROLS, ids=repr)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_inputs_are_unchanged_and_rounds_repeat(control: PowerControl, dtype: type) -> None:
    updates, weights = random_updates(11, 4, 50)
    updates = updates.astype(dtype)
    state = random_state(11, 4, noise_power=0.1)
    before = (updates.tobytes(), weights.tobytes(), state.gains.tobytes())
    first, _ = aggregate(updates, weights, state, control, rng_of(2))
    second, _ = aggregate(updates, weights, state, control, rng_of(2))
    assert first is not None
    assert second is not None
    assert first.tobytes() == second.tobytes()
    assert before == (updates.tobytes(), weights.tobytes(), state.gains.tobytes())


def test_channel_uses_do_not_grow_with_devices() -> None:
    for num_devices in (1, 2, 9):
        updates, weights = random_updates(28, num_devices, 101)
        state = random_state(28, num_devices, noise_power=0.1)
        _, report = aggregate(updates, weights, state, ZeroForcing(), rng_of())
        assert report.channel_uses == 51
