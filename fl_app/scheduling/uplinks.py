"""What a share of the band carries: the law that a schedule reckons with."""

from dataclasses import dataclass
from typing import Protocol, Self

import numpy as np
from numpy.typing import NDArray

from fl_app.resources.links import bandwidth_hz, rate_bps
from fl_app.wireless.channel import ChannelState
from fl_app.wireless.ofdma import Band, capacity_bits_per_use, planned_bits_per_use

Floats = NDArray[np.float64]

_HALVINGS = 50


class Uplinks(Protocol):
    """The uplinks of some devices; a rate never falls with its share."""

    def __len__(self) -> int:
        """Returns the number of devices."""
        ...

    def rate_bps(self, shares_hz: Floats) -> Floats:
        """Returns [num_devices] rates in bit/s on [num_devices] shares in Hz, > 0 on any share."""
        ...

    def bandwidth_hz(self, rates: Floats) -> Floats:
        """Returns the share that carries a rate, ``inf`` where none does.

        Args:
            rates: [num_devices, ...] in bit/s, >= 0; the result has the same shape.
        """
        ...

    def coded_bps(self, shares_hz: Floats) -> Floats:
        """Returns [num_devices] rates that devices use on their shares in the end."""
        ...

    def of(self, devices: NDArray[np.int64]) -> Self:
        """Returns the uplinks of these devices, in this order."""
        ...


@dataclass(frozen=True)
class Shannon:
    """Links without fading: R(B) = B log2(1 + snr_hz / B), see ``fl_app.resources.links``.

    Attributes:
        snr_hz: [num_devices] p g / N0 in Hz, > 0.
    """

    snr_hz: Floats

    def __len__(self) -> int:
        """See ``Uplinks``."""
        return len(self.snr_hz)

    def rate_bps(self, shares_hz: Floats) -> Floats:
        """See ``Uplinks``."""
        return rate_bps(shares_hz, self.snr_hz)

    def bandwidth_hz(self, rates: Floats) -> Floats:
        """See ``Uplinks``."""
        return bandwidth_hz(rates, self.snr_hz.reshape(-1, *[1] * (rates.ndim - 1)))

    def coded_bps(self, shares_hz: Floats) -> Floats:
        """See ``Uplinks``."""
        return self.rate_bps(shares_hz)

    def of(self, devices: NDArray[np.int64]) -> "Shannon":
        """See ``Uplinks``."""
        return Shannon(self.snr_hz[devices])


@dataclass(frozen=True)
class Faded:
    """One round of a fading channel, by ``fl_app.wireless.ofdma``; what is known decides.

    Where ``state.csi_error`` is above 0 the law is that of the gains as known, and only
    ``coded_bps`` has the margin that devices keep.

    Attributes:
        state: the round's channel.
        power: P of every device in W, > 0.
        band: the band and how power is used in it.
        bits_per_use: that everybody codes for; None for what known gains carry.
    """

    state: ChannelState
    power: float
    band: Band
    bits_per_use: float | None = None

    def __len__(self) -> int:
        """See ``Uplinks``."""
        return len(self.state.mean_gains)

    def rate_bps(self, shares_hz: Floats) -> Floats:
        """See ``Uplinks``."""
        return shares_hz * self._carried(self.state, shares_hz / self.band.bandwidth_hz)

    def bandwidth_hz(self, rates: Floats) -> Floats:
        """See ``Uplinks``; nobody can have more than the whole band."""
        wanted = rates.ravel()
        rows = np.repeat(np.arange(len(self)), rates.size // len(self))
        links = self.of(rows)
        whole = np.full(len(rows), self.band.bandwidth_hz)
        low, high = np.zeros(len(rows)), whole.copy()
        for _ in range(_HALVINGS):
            middle = (low + high) / 2.0
            is_enough = links.rate_bps(middle) >= wanted
            low, high = np.where(is_enough, low, middle), np.where(is_enough, middle, high)
        needed = np.where(links.rate_bps(whole) >= wanted, high, np.inf)
        return np.where(wanted > 0.0, needed, 0.0).reshape(rates.shape)

    def coded_bps(self, shares_hz: Floats) -> Floats:
        """See ``Uplinks``."""
        shares = shares_hz / self.band.bandwidth_hz
        if self.bits_per_use is not None:
            return shares_hz * self.bits_per_use
        power = self.band.use_power(np.full(len(self), self.power), shares)
        return shares_hz * planned_bits_per_use(self.state, power, self.band)

    def of(self, devices: NDArray[np.int64]) -> "Faded":
        """See ``Uplinks``."""
        chosen = ChannelState(
            gains=self.state.gains[devices],
            known_gains=self.state.known_gains[devices],
            noise_power=self.state.noise_power,
            mean_gains=self.state.mean_gains[devices],
            csi_error=self.state.csi_error,
            law=self.state.law,
        )
        return Faded(chosen, self.power, self.band, self.bits_per_use)

    def _carried(self, state: ChannelState, shares: Floats) -> Floats:
        if self.bits_per_use is not None:
            return np.full(len(shares), self.bits_per_use)
        power = self.band.use_power(np.full(len(shares), self.power), shares)
        return capacity_bits_per_use(
            state.known_gains, state.noise_power, power, self.band.max_bits_per_use
        )
