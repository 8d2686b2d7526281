"""A cell: where devices stand, and the mean gains and powers that follow from it.

Macro-cell path loss 128.1 + 37.6 log10(d / km) dB (3GPP TR 36.814), log-normal shadowing, thermal
noise of -174 dBm/Hz. Antenna gains and interference from other cells are not modelled.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fl_app.seeding import generator
from fl_app.wireless.errors import ChannelError
from fl_app.wireless.units import dbm_to_watt

THERMAL_NOISE_DBM_HZ = -174.0
"""Power density k T of thermal noise at 290 K."""


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One server in the middle of a disc of devices.

    Attributes:
        radius_m: radius of the disc in m.
        min_distance_m: nobody stands nearer, in m; 0 < min_distance_m < radius_m.
        shadowing_db: standard deviation of the shadowing in dB, >= 0.
        bandwidth_hz: bandwidth over which noise is collected, > 0.
        noise_figure_db: noise figure of the receiver in dB, >= 0.
    """

    radius_m: float = 500.0
    min_distance_m: float = 35.0
    shadowing_db: float = 8.0
    bandwidth_hz: float = 1e6
    noise_figure_db: float = 5.0

    def __post_init__(self) -> None:
        """Raises ChannelError on a value out of range."""
        if not 0.0 < self.min_distance_m < self.radius_m < math.inf:
            raise ChannelError(
                f"cell min_distance_m={self.min_distance_m} must lie between 0 and "
                f"radius_m={self.radius_m}, which must be finite"
            )
        for name in ("shadowing_db", "noise_figure_db"):
            if not 0.0 <= getattr(self, name) < math.inf:
                raise ChannelError(f"cell {name}={getattr(self, name)} must be finite and >= 0")
        if not 0.0 < self.bandwidth_hz < math.inf:
            raise ChannelError(f"cell bandwidth_hz={self.bandwidth_hz} must be finite and > 0")

    def distances_m(self, seed: int, devices: Iterable[int]) -> NDArray[np.float64]:
        """Returns [num_devices] distances in m of devices spread evenly over the ring's area."""
        shares = np.array([generator(seed, "placement", k).random() for k in devices])
        inner = self.min_distance_m**2
        distances: NDArray[np.float64] = np.sqrt(inner + shares * (self.radius_m**2 - inner))
        return distances

    def mean_gains(self, seed: int, devices: Iterable[int]) -> NDArray[np.float64]:
        """Returns [num_devices] linear power gains from path loss and shadowing, fixed per seed."""
        chosen = list(devices)
        shadows = [generator(seed, "shadowing", k).standard_normal() for k in chosen]
        losses_db = path_loss_db(self.distances_m(seed, chosen))
        losses_db += self.shadowing_db * np.array(shadows)
        gains: NDArray[np.float64] = 10.0 ** (-losses_db / 10.0)
        return gains

    def noise_power_w(self) -> float:
        """Returns the thermal noise in W over the bandwidth, noise figure included."""
        return dbm_to_watt(
            THERMAL_NOISE_DBM_HZ + 10.0 * math.log10(self.bandwidth_hz) + self.noise_figure_db
        )


def path_loss_db(distances_m: NDArray[np.float64]) -> NDArray[np.float64]:
    """Returns the path loss in dB of the macro cell at distances > 0 in m, any shape."""
    loss_db: NDArray[np.float64] = 128.1 + 37.6 * np.log10(distances_m / 1000.0)
    return loss_db
