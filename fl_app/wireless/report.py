"""What an aggregation in the air is worth: predicted and realised error, power, channel uses."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fl_app.wireless.errors import ChannelError


class Relative:
    """Errors relative to the energy of the exact result, for reports with these three fields."""

    predicted_mse: float
    realised_mse: float
    mean_energy: float

    @property
    def realised_nmse(self) -> float:
        """Realised MSE over the energy of the exact result; ``inf`` if only that is 0."""
        return safe_ratio(self.realised_mse, self.mean_energy)

    @property
    def predicted_nmse(self) -> float:
        """Predicted MSE over the energy of the exact result; ``inf`` if only that is 0."""
        return safe_ratio(self.predicted_mse, self.mean_energy)


@dataclass(frozen=True)
class AirReport(Relative):
    """Figures of one round's aggregation; errors are against the mean of all scheduled devices.

    All errors are mean squares per real entry. Entries nobody was heard on keep the value 0 and
    count with the error that this means.

    Attributes:
        predicted_mse: closed form for the true channel and symbols that are uncorrelated between
            devices; misalignment, silence, clipping and noise included. The empty half of the last
            channel use of an odd block counts as if it carried a symbol.
        expected_mse: mean over the noise for the very updates that were sent (no such assumption).
        expected_mse_deviation: standard deviation of ``realised_mse`` around ``expected_mse``.
        realised_mse: what happened.
        noise_mse: the part of the predicted and expected MSE that is noise.
        noise_free_mse: the part of the expected MSE that is not: misalignment, silence, clipping.
        clipping_mse: energy of the clipped-off signal after the receiver's scaling.
        predicted_clipping_mse: what clipping adds to ``predicted_mse`` for Gaussian symbols; may be
            negative where a device was too loud.
        mean_energy: mean square of the exact weighted mean.
        aligned_snr: energy of the received sum over energy of the noise; ``inf`` without noise.
        is_silent: [num_devices] bool; never heard in this round.
        silent_share: [num_devices] share of channel uses in which the device was silent.
        tx_power: [num_devices] mean transmit power of a channel use, before clipping, for symbols
            of unit power; absent entries of a presence mask send nothing and make it smaller.
        channel_uses: complex symbols spent, shared by all devices.
        control_bytes: digital side information of all devices together, one number of the updates'
            type per mean and per spread.
        announced_bytes: what the server tells every device: denoising factors as float32 numbers.
        unheard_reals: entries on which no device was heard.
    """

    predicted_mse: float
    expected_mse: float
    expected_mse_deviation: float
    realised_mse: float
    noise_mse: float
    noise_free_mse: float
    clipping_mse: float
    predicted_clipping_mse: float
    mean_energy: float
    aligned_snr: float
    is_silent: NDArray[np.bool_]
    silent_share: NDArray[np.float64]
    tx_power: NDArray[np.float64]
    channel_uses: int
    control_bytes: int
    announced_bytes: int
    unheard_reals: int


def airtime(
    channel_uses: int, tx_power: NDArray[np.float64], bandwidth_hz: float
) -> tuple[float, NDArray[np.float64]]:
    """Returns seconds and [num_devices] transmit joules of a round in the air.

    Args:
        channel_uses: complex symbols spent, ``bandwidth_hz`` of them a second over all subcarriers.
        tx_power: [num_devices] mean power of a channel use in W.
        bandwidth_hz: > 0.

    Raises:
        ChannelError: the bandwidth is not finite and > 0.
    """
    if not 0.0 < bandwidth_hz < np.inf:
        raise ChannelError(f"bandwidth_hz={bandwidth_hz} must be finite and > 0")
    seconds = channel_uses / bandwidth_hz
    return seconds, tx_power * seconds


def safe_ratio(error: float, energy: float) -> float:
    """Returns error / energy with 0 / 0 = 0, so that no report holds a NaN."""
    if energy > 0.0:
        return error / energy
    return 0.0 if error == 0.0 else float("inf")
