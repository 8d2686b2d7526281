"""One block's way through the air: effective coefficients, divisors and closed-form errors.

The effective coefficient of device k on subcarrier m is C_km = h_km b_km / sqrt(eta_m). With d_km
the weights that the server counts, W_m their sum and q the share of them that it expects to hear
(1 if it knows who is silent), an entry of the mean is received as

    (sum_k C_km s_k + noise) / (q W_m) + sum_k d_km m_k / W_m.

With targets a_k = w_k nu_k its mean squared error is

    sum_k |C_km / (q W_m) - a_k|^2 + (sum_k (d_km / W_m - w_k) m_k)^2 + sigma^2 / (eta_m q^2 W_m^2)

for symbols uncorrelated between devices; an entry for which W_m = 0 stays 0 instead.
"""

from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray
from scipy.special import erfc

from fl_app.wireless.channel import ChannelState, Complex
from fl_app.wireless.power import PowerPlan
from fl_app.wireless.standardise import Moments

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Scaling:
    """What turns a received sum into a mean, and what that costs; arrays broadcast to one chunk.

    Attributes:
        factor: 1 / (q W); 0 where no device counts.
        offset: sum_k d_k m_k / W, the digital part of the mean.
        predicted: closed-form MSE without noise and clipping.
        clipping: what clipping adds to it for Gaussian symbols.
    """

    factor: Floats
    offset: Floats
    predicted: Floats
    clipping: Floats | float


@dataclass(frozen=True)
class BlockLink:
    """One block's way through the air; arrays are [num_devices, num_subcarriers] unless noted.

    Attributes:
        coefficients: C, complex.
        counted: d, the weights that the server counts.
        heard_share: q; see ``PowerPlan``.
        noise_variance: [num_subcarriers] sigma^2 / eta, per real entry before the division.
        clip_at: symbol magnitude at which a device's peak power is reached.
        shares: [num_devices] weights w of the exact mean.
        side: means and spreads.
        tx_power: |b|^2 of devices that do transmit.
        is_silent: bool; a device that should be heard and is not.
        speaks: the block needs channel uses at all.
    """

    coefficients: Complex
    counted: Floats
    heard_share: float
    noise_variance: Floats
    clip_at: Floats
    shares: Floats
    side: Moments
    tx_power: Floats
    is_silent: NDArray[np.bool_]
    speaks: bool

    @classmethod
    def build(
        cls,
        state: ChannelState,
        plan: PowerPlan,
        shares: Floats,
        side: Moments,
        *,
        lost: NDArray[np.bool_],
        loss_is_known: bool,
        peak_power: float,
    ) -> Self:
        """Puts the true channel behind a plan that was made for the known one."""
        sent = np.where(lost[:, None], 0.0, plan.precoders)
        knows_silence = plan.heard_share is None
        counted = plan.is_heard.copy() if knows_silence else np.ones_like(plan.is_heard)
        if loss_is_known:
            counted &= ~lost[:, None]
        amplitude = np.abs(sent)
        clip_at = np.full(sent.shape, np.inf)
        np.divide(np.sqrt(peak_power), amplitude, out=clip_at, where=amplitude > 0.0)
        return cls(
            coefficients=state.gains * sent / np.sqrt(plan.denoising),
            counted=np.where(counted, shares[:, None], 0.0),
            heard_share=1.0 if plan.heard_share is None else plan.heard_share,
            noise_variance=state.noise_power / plan.denoising,
            clip_at=clip_at,
            shares=shares,
            side=side,
            tx_power=amplitude**2 * side.present[:, None],
            is_silent=(~plan.is_heard | lost[:, None]) & (shares > 0.0)[:, None],
            speaks=bool((np.abs(plan.precoders) > 0.0).any()),
        )

    @property
    def clips(self) -> bool:
        """Tells whether any symbol can be too loud."""
        return bool(np.isfinite(self.clip_at).any())

    def scaling(self) -> Scaling:
        """Returns the scaling of entries that every device holds, arrays [num_subcarriers, 1]."""
        per_weight = inverse(self.counted.sum(axis=0))
        factor = per_weight / self.heard_share
        targets = (self.shares * self.side.spreads)[:, None]
        received = self.coefficients * factor
        offset = self.side.means @ self.counted * per_weight
        bias = offset - self.shares @ self.side.means
        predicted = (np.abs(received - targets) ** 2).sum(axis=0) + bias**2
        clipping = self._clipping(received, targets)[:, None] if self.clips else 0.0
        return Scaling(factor[:, None], offset[:, None], predicted[:, None], clipping)

    def _clipping(self, received: Complex, targets: Floats) -> Floats:
        """Returns [num_subcarriers] what clipping adds for c ~ CN(0, 1), |c| clipped to A.

        E|clip(c) - c|^2 = exp(-A^2) - A sqrt(pi) erfc(A), and E[(clip(c) - c) c*] is minus the same
        with half of the second term; the latter counts where a device is not aligned.
        """
        at = np.minimum(self.clip_at, 1e3)  # beyond 40 both terms are 0
        tail, edge = np.exp(-(at**2)), at * np.sqrt(np.pi) * erfc(at)
        crossed = np.real(np.conj(received - targets) * received) * (tail - edge / 2.0)
        total: Floats = (np.abs(received) ** 2 * (tail - edge) - 2.0 * crossed).sum(axis=0)
        return total

    def masked_scaling(
        self, presence: NDArray[np.bool_], shape: tuple[int, int, int]
    ) -> tuple[Scaling, Floats]:
        """Returns the scaling per entry when devices hold different entries.

        Args:
            presence: [num_devices, chunk_size] bool.
            shape: (rows, num_subcarriers, 2) of the chunk, padding included.

        Returns:
            The scaling, and per entry 1 over the sum of weights of the devices that hold it (0
            where nobody does); all arrays have ``shape``.
        """
        num_devices, size = presence.shape
        held = np.zeros((num_devices, *shape), dtype=np.bool_)
        held.reshape(num_devices, -1)[:, :size] = presence
        counted, digital, weight, means = (np.zeros(shape) for _ in range(4))
        for k in range(num_devices):
            here = self.counted[k][:, None] * held[k]
            counted += here
            digital += here * self.side.means[k]
            weight += self.shares[k] * held[k]
            means += self.shares[k] * self.side.means[k] * held[k]
        per_weight, per_all = inverse(counted), inverse(weight)
        factor, offset = per_weight / self.heard_share, digital * per_weight
        predicted = (offset - means * per_all) ** 2
        for k in range(num_devices):
            wanted = self.shares[k] * self.side.spreads[k] * per_all
            along = self.coefficients[k].real[:, None] * factor - wanted
            across = self.coefficients[k].imag[:, None] * factor
            # The imaginary part brings the other real of the same channel use.
            predicted += held[k] * along**2 + held[k][..., ::-1] * across**2
        return Scaling(factor, offset, predicted, 0.0), per_all


def inverse(values: Floats) -> Floats:
    """Returns 1 / values, and 0 where a value is 0."""
    return np.divide(1.0, values, out=np.zeros_like(values), where=values > 0.0)
