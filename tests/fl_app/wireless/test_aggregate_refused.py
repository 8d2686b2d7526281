"""What aggregation in the air refuses, and how it names it."""

import math

import numpy as np
import pytest

from fl_app.wireless.aggregate import aggregate
from fl_app.wireless.errors import ChannelError
from fl_app.wireless.power import ZeroForcing
from tests.air_fixtures import random_state, random_updates, rng_of


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
    updates, weights = random_updates(30, 3, 5)
    with pytest.raises(ChannelError, match=text):
        aggregate(updates, weights, random_state(30, 3), ZeroForcing(), rng_of(), **change)  # type: ignore[arg-type]


def test_a_channel_for_other_devices_is_refused_and_nan_names_the_device() -> None:
    updates, weights = random_updates(31, 3, 5)
    with pytest.raises(ChannelError, match="2 devices"):
        aggregate(updates, weights, random_state(31, 2), ZeroForcing(), rng_of())
    updates[2, 1] = np.nan
    with pytest.raises(ChannelError, match="device 2"):
        aggregate(updates, weights, random_state(31, 3), ZeroForcing(), rng_of())
