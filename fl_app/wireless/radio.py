"""One run's radio environment: who is heard how well, round by round.

Everything is drawn from streams named by seed, round and device, so a device's channel does not
depend on who else takes part.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fl_app.wireless.cell import Cell
from fl_app.wireless.channel import (
    ChannelState,
    Fading,
    draw_antenna_gains,
    draw_state,
    estimate_gains,
    jitter_phase,
)
from fl_app.wireless.simo import Floats, balanced_law, beamformed_state


@dataclass(frozen=True, kw_only=True)
class Radio:
    """The uplink of one run.

    Attributes:
        fading: small-scale fading.
        seed: the run's seed.
        power: mean power limit of a device in W, > 0.
        noise_power: sigma^2 of one channel use in W, >= 0; the tx-SNR is power / noise_power.
        csi_error: see ``estimate_gains``.
        jitter_rad: see ``jitter_phase``.
        num_antennas: receive antennas; above 1 they are combined by ``beamformed_state``.
        treats_alike: beams treat all devices alike and not by their weights, so that the law of
            their gains is known: for power limits that hold on average.
        cell: where devices stand; None gives everybody a mean gain of 1.
    """

    fading: Fading
    seed: int
    power: float
    noise_power: float
    csi_error: float = 0.0
    jitter_rad: float = 0.0
    num_antennas: int = 1
    treats_alike: bool = False
    cell: Cell | None = None

    def state(self, round: int, devices: Sequence[int], weights: Floats) -> ChannelState:
        """Draws one round's channel.

        Args:
            round: server round, >= 0.
            devices: partition indices of those that transmit, >= 0.
            weights: [num_devices] weights of the mean, > 0; receive beams favour large ones.

        Returns:
            The channel of these devices, in their order.
        """
        chosen = list(devices)
        means = np.ones(len(chosen))
        if self.cell is not None:
            means = self.cell.mean_gains(self.seed, chosen)
        if self.num_antennas == 1:
            return draw_state(
                self.fading,
                self.seed,
                round,
                mean_gains=means,
                noise_power=self.noise_power,
                csi_error=self.csi_error,
                jitter_rad=self.jitter_rad,
                devices=chosen,
            )
        small = draw_antenna_gains(self.fading, self.seed, round, chosen, self.num_antennas)
        scale = np.sqrt(means)[:, None, None]
        true = scale * jitter_phase(small, self.jitter_rad, self.seed, round, chosen)
        known = scale * estimate_gains(small, self.csi_error, self.seed, round, chosen)
        noise_power = 0.0 if self.fading.kind == "ideal" else self.noise_power
        if not self.treats_alike:
            return beamformed_state(
                true,
                known,
                weights / weights.sum(),
                noise_power=noise_power,
                mean_gains=means,
                csi_error=self.csi_error,
            )
        gain, law = balanced_law(len(chosen), self.num_antennas, self.fading, self.csi_error)
        return beamformed_state(
            true,
            known,
            np.sqrt(means),
            noise_power=noise_power,
            mean_gains=gain * means,
            csi_error=self.csi_error,
            law=law,
        )
