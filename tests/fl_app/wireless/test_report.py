"""Ratios that never divide by zero, and the time and energy of a round."""

import math

import numpy as np
import pytest

from fl_app.wireless.errors import ChannelError
from fl_app.wireless.report import airtime, safe_ratio


def test_nothing_over_nothing_is_nothing() -> None:
    assert safe_ratio(0.0, 0.0) == 0.0
    assert safe_ratio(1.0, 0.0) == math.inf
    assert safe_ratio(1.0, 4.0) == 0.25


def test_a_round_lasts_its_channel_uses_over_the_bandwidth() -> None:
    """1000 uses in 1 MHz are 1 ms; 0.2 W for 1 ms are 0.2 mJ."""
    seconds, joules = airtime(1000, np.array([0.2, 0.0]), 1e6)
    assert seconds == pytest.approx(1e-3)
    assert joules.tolist() == pytest.approx([2e-4, 0.0])
    with pytest.raises(ChannelError, match="bandwidth_hz"):
        airtime(1, np.ones(1), 0.0)
