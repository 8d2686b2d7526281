"""The price of side information: a few numbers per device that must arrive before power control.

They go over the same channel as bits (``fl_app.wireless.ofdma``), every device in an equal share of
the band at the rate that it knows to be safe, and are taken to arrive. Pilots are not modelled.
"""

import numpy as np
from numpy.typing import NDArray

from fl_app.wireless.channel import ChannelState
from fl_app.wireless.checks import check_devices
from fl_app.wireless.ofdma import Band, Cost, planned_bits_per_use, send_cost


def control_cost(
    state: ChannelState,
    num_bytes: NDArray[np.int64],
    power: float | NDArray[np.float64],
    band: Band,
) -> Cost:
    """Returns uses, seconds and joules of side information.

    Args:
        state: the round's channel.
        num_bytes: [num_devices] bytes that each device sends.
        power: limit P_k, one for all or [num_devices], > 0.
        band: the band, and how power is used in it.

    Raises:
        ChannelError: the channel is for other devices, or a power is not finite and > 0.
    """
    num_devices = len(num_bytes)
    limits, _ = check_devices(num_devices, state, power, None)
    shares = np.full(num_devices, 1.0 / num_devices)
    per_use = planned_bits_per_use(state, band.use_power(limits, shares), band)
    return send_cost(8 * num_bytes, per_use, shares, limits, band)
