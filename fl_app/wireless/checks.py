"""What every uplink asks of the devices that it is given."""

import numpy as np
from numpy.typing import NDArray

from fl_app.wireless.channel import ChannelState
from fl_app.wireless.errors import ChannelError


def check_devices(
    num_devices: int,
    state: ChannelState,
    power: float | NDArray[np.float64],
    is_lost: NDArray[np.bool_] | None,
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Returns [num_devices] power limits and [num_devices] who is lost (nobody for None).

    Raises:
        ChannelError: the channel or a mask is for other devices, or a power is not finite and > 0.
    """
    if len(state.gains) != num_devices:
        raise ChannelError(f"the channel has {len(state.gains)} devices, updates {num_devices}")
    given = np.asarray(power, dtype=np.float64)
    if given.shape not in ((), (num_devices,)):
        raise ChannelError(f"power {given.shape} must be one number or [{num_devices}]")
    limits = np.broadcast_to(given, (num_devices,))
    if not ((limits > 0.0).all() and np.isfinite(limits).all()):
        raise ChannelError("power must be finite and > 0 for every device")
    lost = np.zeros(num_devices, dtype=np.bool_) if is_lost is None else is_lost
    if lost.shape != (num_devices,) or lost.dtype != np.bool_:
        raise ChannelError(f"is_lost {lost.dtype}{lost.shape} must be bool [{num_devices}]")
    return limits, lost
