"""What a round of votes in the air is worth."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class VoteReport:
    """Figures of one round of one-bit aggregation; rates are shares of the decided entries.

    Attributes:
        predicted_error_rate: mean closed-form probability that noise, silence or misalignment
            turns the vote of all scheduled devices around, given the signs that were sent.
        predicted_deviation: standard deviation of ``realised_error_rate`` around it.
        realised_error_rate: what happened.
        decided_reals: entries on which the scheduled devices do not tie; 0 makes the rates 0.
        is_silent: [num_devices] bool; never heard in this round.
        silent_share: [num_devices] share of channel uses in which the device was silent.
        tx_power: [num_devices] mean transmit power of a channel use; abstentions send nothing and
            make it smaller.
        channel_uses: complex symbols spent, shared by all devices.
        announced_bytes: what the server tells every device: denoising factors as float32 numbers.
            Devices send no side information.
        unheard_reals: entries on which no device was heard; their vote is 0.
    """

    predicted_error_rate: float
    predicted_deviation: float
    realised_error_rate: float
    decided_reals: int
    is_silent: NDArray[np.bool_]
    silent_share: NDArray[np.float64]
    tx_power: NDArray[np.float64]
    channel_uses: int
    announced_bytes: int
    unheard_reals: int
