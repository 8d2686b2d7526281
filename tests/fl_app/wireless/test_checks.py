"""What uplinks ask of their devices."""

import numpy as np
import pytest

from fl_app.wireless.channel import ChannelState
from fl_app.wireless.checks import check_devices
from fl_app.wireless.errors import ChannelError

_ONES = np.ones((2, 1), complex)
_STATE = ChannelState(_ONES, _ONES, 0.1, np.ones(2))


def test_one_power_serves_all_and_nobody_is_lost_by_default() -> None:
    limits, lost = check_devices(2, _STATE, 0.5, None)
    assert limits.tolist() == [0.5, 0.5]
    assert lost.tolist() == [False, False]


@pytest.mark.parametrize("power", [0.0, -1.0, np.inf, np.nan, np.array([1.0]), np.ones((2, 1))])
def test_powers_that_are_no_limits_are_refused(power: float) -> None:
    with pytest.raises(ChannelError, match="power"):
        check_devices(2, _STATE, power, None)


@pytest.mark.parametrize("is_lost", [np.ones(3, bool), np.array([0, 1])])
def test_masks_of_another_shape_or_type_are_refused(is_lost: np.ndarray) -> None:
    """Integers would index devices 0 and 1 instead of masking."""
    with pytest.raises(ChannelError, match="is_lost"):
        check_devices(2, _STATE, 1.0, is_lost)


def test_a_channel_for_other_devices_is_refused() -> None:
    with pytest.raises(ChannelError, match="2 devices"):
        check_devices(3, _STATE, 1.0, None)
